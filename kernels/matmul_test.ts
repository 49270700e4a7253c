import assert from "node:assert/strict";
import {
  matmulColumns,
  type MatmulDType,
  type MatmulOperand,
  type MatmulParts,
  matmulRows,
  type MatmulStream,
  matmulSum,
  type MatmulTile,
  matmulTile,
  tileMemory,
} from "./matmul.ts";
import type { Kernel } from "./kernel.ts";

const dtypes: MatmulDType[] = ["f32", "f16", "bf16"];
const tiles: MatmulTile[] = [[128, 128, 16, 8, 8], [64, 128, 16, 8, 8], [64, 64, 32, 4, 8], [32, 32, 32, 4, 4], [
  32,
  32,
  8,
  4,
  4,
]]
  .map(([bm, bn, bk, tm, tn]) => ({ kind: "tile", bm, bn, bk, tm, tn, splits: 1 }));

function* operands(vecs: readonly (1 | 4 | 8)[]): Generator<MatmulOperand> {
  for (const dtype of dtypes) {
    for (const transposed of [false, true]) {
      for (const vec of vecs) if (vec !== 8 || dtype !== "f32") yield { dtype, transposed, vec };
    }
  }
}

function* parts(vecs: readonly (1 | 4 | 8)[]): Generator<MatmulParts> {
  for (const a of operands(vecs)) {
    for (const b of operands(vecs)) {
      for (const out of dtypes) {
        for (const outVec of [1, 4] as const) {
          for (const adds of [undefined, "c", "r"] as const) yield { a, b, out, outVec, exactK: false, adds };
        }
      }
    }
  }
}

/** Fails when two sets of parameters have one name, or one set has two texts. */
function distinct(kernels: Iterable<readonly [parameters: string, kernel: Kernel]>): void {
  const names = new Map<string, string>();
  for (const [parameters, kernel] of kernels) {
    assert.equal(names.get(kernel.name) ?? parameters, parameters, `two kernels are called ${kernel.name}`);
    names.set(kernel.name, parameters);
    assert.deepEqual(kernel.reads, kernel.name.endsWith("_residual") ? ["a", "b", "r"] : ["a", "b"]);
    assert.deepEqual(kernel.writes, ["c"]);
    assert.doesNotMatch(kernel.source, /undefined|NaN|enable |\[object/);
  }
}

Deno.test("matmulTile() names a kernel by all of its parameters", () => {
  distinct(function* () {
    for (const tile of tiles) {
      for (const p of parts([1, 4])) {
        if (tile.bm !== 32 && p.out === "bf16") continue;
        for (const exactK of [false, true]) {
          yield [JSON.stringify([tile, p, exactK]), matmulTile(tile, { ...p, exactK })] as const;
        }
      }
    }
  }());
});

Deno.test("matmulRows() and matmulColumns() name a kernel by all of their parameters", () => {
  distinct(function* () {
    for (const x of ["a", "b"] as const) {
      for (const [m, lanes, groups, rows, unroll] of [[1, 32, 8, 1, 4], [4, 4, 16, 2, 2], [4, 16, 4, 2, 1]]) {
        for (const p of parts([1, 4])) {
          const choice = { m, lanes, groups, rows, unroll, splits: 1 };
          const stream: MatmulStream = { kind: "rows", ...choice };
          yield [JSON.stringify([stream, p, x]), matmulRows(stream, p, x)] as const;
          const columns: MatmulStream = { kind: "columns", ...choice, rows: 1 };
          const vectors = { ...p, [x]: { ...p[x], vec: 1 } };
          yield [JSON.stringify([columns, vectors, x]), matmulColumns(columns, vectors, x)] as const;
        }
      }
    }
  }());
});

Deno.test("tileMemory() is what the kernel declares", () => {
  for (const tile of tiles) {
    for (const p of parts([4])) {
      const arrays = matmulTile(tile, p).source.matchAll(
        /var<workgroup> \w+: array<array<array<vec4f, (\d+)>, (\d+)>, (\d+)>;/g,
      );
      const bytes = [...arrays].reduce((sum, [, x, y, z]) => sum + 16 * Number(x) * Number(y) * Number(z), 0);
      assert.equal(bytes, tileMemory(tile));
    }
  }
});

Deno.test("a tile's threads load every vector of its slices, and none twice", () => {
  for (const tile of tiles) {
    const { bm, bn, bk, tm, tn } = tile;
    const threads = bm * bn / tm / tn;
    const operand: MatmulOperand = { dtype: "f32", transposed: false, vec: 4 };
    const { source } = matmulTile(tile, {
      a: operand,
      b: operand,
      out: "f32",
      outVec: 4,
      exactK: true,
    });
    assert.equal(Number(source.match(/@workgroup_size\((\d+)\)/)?.[1]), threads);
    assert.equal([...source.matchAll(/var v_a\d+ /g)].length * threads * 4, bm * bk);
    assert.equal([...source.matchAll(/var v_b\d+ /g)].length * threads * 4, bn * bk);
  }
});

Deno.test("matmulSum() reads partial products and writes C in its own type", () => {
  assert.deepEqual(dtypes.map((dtype) => matmulSum(dtype).source.match(/> c: array<(\w+)>/)?.[1]), [
    "vec4f",
    "vec2u",
    "vec2u",
  ]);
});
