import assert from "node:assert/strict";
import { type Backend, matrixUnits } from "../tensor/backend.ts";
import { cpu } from "../tensor/cpu.ts";
import { compile } from "../tensor/compile.ts";
import { tensor } from "../tensor/create.ts";
import type { DType } from "../tensor/dtype.ts";
import { abs, cast } from "../tensor/elementwise.ts";
import { matmul } from "../tensor/matmul.ts";
import { project } from "../tensor/project.ts";
import type { Tensor } from "../tensor/tensor.ts";
import { assertClose } from "../testing/close.ts";
import { needAdapter } from "../testing/laws/adapter.ts";
import { draw } from "../testing/laws/both.ts";
import { matmulMatrix, matrixMemory, type MatrixParts, type MatrixTile } from "./matmul_matrix.ts";
import { webgpu } from "./webgpu.ts";

const gpu = await needAdapter(webgpu());

const unit = { m: 16, n: 16, k: 16 }, small = { m: 8, n: 8, k: 8 };
const tiles: MatrixTile[] = [
  [128, 128, 32, 64, 64, 1],
  [128, 256, 16, 64, 64, 2],
  [64, 64, 64, 32, 32, 2],
  [16, 64, 64, 16, 32, 1],
].map(([bm, bn, bk, wm, wn, buffers]) => ({
  ...{ kind: "matrix", bm, bn, bk, wm, wn, buffers: buffers as 1 | 2, splits: 1, unit, lanes: 32 },
}));
tiles.push({ ...tiles[0], bm: 32, bn: 32, bk: 16, wm: 16, wn: 16, unit: small, lanes: 8 });

function* everyParts(): Generator<MatrixParts> {
  const flags = [false, true];
  for (const transposedA of flags) {
    for (const transposedB of flags) {
      for (const exactK of flags) {
        for (const adds of [undefined, "c", "r"] as const) {
          for (const scaledA of flags) {
            for (
              const [out, outVec, inner] of [["f32", 8, 1], ["f32", 1, 4], ["f16", 8, 4], ["f16", 2, 1], [
                "bf16",
                4,
                1,
              ]] as const
            ) {
              const layout = { transposedA, transposedB, exactK, adds, out, outVec, inner };
              const parts = { ...layout, scaledA, scaledB: !scaledA, deviceRounds: out === "f16" && exactK };
              yield parts;
              if (transposedB && !scaledA) yield { ...parts, gate: "joined" };
              if (transposedB && scaledA) yield { ...parts, gate: "apart" };
            }
          }
        }
      }
    }
  }
}

Deno.test("matmulMatrix() names a kernel by all of its parameters", () => {
  const names = new Map<string, string>();
  for (const tile of tiles) {
    for (const parts of everyParts()) {
      const { name, source, requires } = matmulMatrix(tile, parts), parameters = JSON.stringify([tile, parts]);
      assert.equal(names.get(name) ?? parameters, parameters, `two kernels are called ${name}`);
      names.set(name, parameters);
      assert.doesNotMatch(source, /undefined|NaN|enable |\[object|\d\.\d+u/);
      assert.deepEqual(requires, ["f16", "subgroups", "subgroup-matrix"]);
    }
  }
});

Deno.test("matrixMemory() is what the kernel declares, and every vector of a slice is loaded once", () => {
  for (const tile of tiles) {
    for (const parts of everyParts()) {
      const { source } = matmulMatrix(tile, parts);
      assert.equal(16 * Number(source.match(/slices: array<vec4u, (\d+)>/)?.[1]), matrixMemory(tile, parts));
      const threads = Number(source.match(/@workgroup_size\((\d+)\)/)?.[1]);
      assert.equal([...source.matchAll(/var v_a\d+ /g)].length * threads * 8, tile.bm * tile.bk);
      assert.equal([...source.matchAll(/var v_b\d+ /g)].length * threads * 8, tile.bn * tile.bk);
    }
  }
});

/** Sizes, layout, batches and the power of two by which A is larger and B smaller than usual. */
interface Case {
  readonly sizes: readonly [m: number, n: number, k: number];
  readonly dtype: DType;
  readonly layout?: "nn" | "nt" | "tn" | "tt";
  readonly batch?: readonly [a: readonly number[], b: readonly number[]];
  readonly exponent?: number;
}

/** The largest error of a product in units of what rounding the result and sums in f32 may cost, and its kernels. */
async function measure({ sizes: [m, n, k], dtype, layout = "nn", batch = [[], []], exponent = 0 }: Case) {
  const options = { transposeA: layout[0] === "t", transposeB: layout[1] === "t" };
  const shapes = [
    [...batch[0], ...options.transposeA ? [k, m] : [m, k]],
    [...batch[1], ...options.transposeB ? [n, k] : [k, n]],
  ];
  const xs = shapes.map((shape, i) => {
    const values = draw(i, shape).dataSync() as Float32Array;
    return tensor(values.map((v) => v * 2 ** (i === 0 ? exponent : -exponent)), { shape, dtype, backend: cpu() });
  });
  const [a, b] = xs.map((x) => tensor(x.dataSync(), { shape: x.shape, dtype, backend: gpu }));
  const compiled = compile((a: Tensor, b: Tensor) => matmul(a, b, options));
  const got = await compiled(a, b).data();
  const [left, right] = xs.map((x) =>
    tensor(Float64Array.from(x.dataSync()), { shape: x.shape, dtype: "f64", backend: cpu() })
  );
  const exact = Array.from(matmul(left, right, options).dataSync());
  const size = matmul(abs(left), abs(right), options).dataSync();
  const rounding = dtype === "f16" ? 2 ** -11 : 2 ** -8;
  return {
    error: exact.reduce(
      (most, x, i) => Math.max(most, Math.abs(got[i] - x) / (Math.abs(x) * rounding + size[i] * 2 ** -20)),
      0,
    ),
    kernels: compiled.recordings[0].kernels.flatMap(({ name, calls }) => Array<string>(calls).fill(name)),
  };
}

/** Whether matrix units are to be used here; where there are none, the same cases try the portable kernels. */
const hasUnits = matrixUnits(gpu.capabilities).length > 0;

async function check(cases: readonly Case[], packs: number | null): Promise<void> {
  for (const each of cases) {
    const { error, kernels } = await measure(each), what = `${JSON.stringify(each)}: ${kernels}`;
    assert.ok(error <= 1, `${error}, ${what}`);
    if (!hasUnits) continue;
    assert.equal(kernels.filter((name) => name.startsWith("matmul_matrix")).length, 1, what);
    // Launches of one kernel on its own results' neighbours are recorded as one, with their number at the end.
    const launches = kernels.map((name) =>
      name.startsWith("matmul_pack") ? Number(name.match(/_x(\d+)$/)?.[1] ?? 1) : 0
    );
    if (packs !== null) assert.equal(launches.reduce((x, y) => x + y), packs, what);
  }
}

Deno.test("f16 products read whole vectors where they lie, in every layout, with ragged edges", async () => {
  await check([
    { sizes: [40, 48, 24], dtype: "f16", layout: "nn" },
    { sizes: [37, 45, 40], dtype: "f16", layout: "nt" },
    { sizes: [40, 48, 37], dtype: "f16", layout: "tn" },
    { sizes: [72, 33, 64], dtype: "f16", layout: "tt" },
    { sizes: [33, 40, 256], dtype: "f16", layout: "nt" },
  ], 0);
});

Deno.test("f16 operands whose rows are no whole vectors are packed", async () => {
  await check([{ sizes: [19, 22, 13], dtype: "f16" }, { sizes: [21, 35, 33], dtype: "f16", layout: "tt" }], 2);
});

Deno.test("batches repeat, and share one packed operand", async () => {
  await check([
    { sizes: [16, 24, 16], dtype: "f16", batch: [[2, 3], [3]] },
    { sizes: [12, 20, 18], dtype: "bf16", batch: [[2, 1], [3]] },
    { sizes: [20, 16, 24], dtype: "bf16", layout: "tn", batch: [[3], [2, 3]] },
  ], null);
});

Deno.test("what lies after the last term of an operand does not count", async () => {
  const batch = [[3], [3]] as const;
  await check([{ sizes: [16, 24, 37], dtype: "f16", layout: "tn", batch }], 0);
  for (const dtype of ["f16", "bf16"] as const) await check([{ sizes: [16, 24, 37], dtype, batch }], null);
});

Deno.test("bf16 products keep their range: numbers far beyond that of f16 neither overflow nor vanish", async () => {
  for (const exponent of [0, 60, -100]) {
    await check([{ sizes: [17, 24, 40], dtype: "bf16", layout: exponent > 0 ? "nt" : "nn", exponent }], 2);
  }
  // Rows side by side, more than a workgroup packs, in several parts of k.
  for (const exponent of [50, -50]) await check([{ sizes: [24, 264, 136], dtype: "bf16", layout: "tn", exponent }], 2);
});

Deno.test("each row and column of a bf16 product has a range of its own", async () => {
  const [m, n, k] = [16, 16, 24],
    powers = (count: number, step: number) => Array.from({ length: count }, (_, i) => 2 ** (i * step));
  const rows = powers(m, 6), columns = powers(n, -6);
  const a = (draw(1, [m, k]).dataSync() as Float32Array).map((v, i) => v * rows[Math.floor(i / k)]);
  const b = (draw(2, [k, n]).dataSync() as Float32Array).map((v, i) => v * columns[i % n]);
  const [ac, bc] = [
    tensor(a, { shape: [m, k], dtype: "bf16", backend: cpu() }),
    tensor(b, { shape: [k, n], dtype: "bf16", backend: cpu() }),
  ];
  const [ag, bg] = [ac, bc].map((x) => tensor(x.dataSync(), { shape: x.shape, dtype: "bf16", backend: gpu }));
  const got = await matmul(ag, bg).data(), exact = await matmul(cast(ac, "f32"), cast(bc, "f32")).data();
  got.forEach((x, i) => {
    const scale = rows[Math.floor(i / n)] * columns[i % n];
    assert.ok(Math.abs(x - exact[i]) <= Math.abs(exact[i]) * 2 ** -8 + scale * 2 ** -18, `${i}: ${x} for ${exact[i]}`);
  });
});

Deno.test("infinities and NaN of bf16 go through", async () => {
  const row = [1, Infinity, 2, -3, 0.5, 1, 1, 1], bad = row.with(1, NaN);
  const a = tensor([...row, ...bad, ...row.with(1, 4), ...Array(72).fill(1)], {
    shape: [12, 8],
    dtype: "bf16",
    backend: gpu,
  });
  const got = await matmul(a, tensor(Array(128).fill(1), { shape: [8, 16], dtype: "bf16", backend: gpu })).data();
  assert.deepEqual([got[0], got[16], got[32], got[48]], [Infinity, NaN, 7.5, 8]);
});

Deno.test("f32 rows beside 16-bit weights are packed, each with a range of its own, and keep what is not finite", async () => {
  const [k, n] = [24, 16], values = draw(1, [k]).dataSync() as Float32Array;
  const sizes = [1, 2 ** 100, 2 ** -100, 0, 3e38, 2 ** -140, 1e-3, 5, NaN, Infinity, -Infinity, 7];
  const rows = [...sizes, ...sizes, ...sizes].map((size) =>
    Number.isFinite(size) ? values.map((v) => Math.sign(v) * Math.min(1, Math.abs(v)) * size) : values.with(3, size)
  );
  for (const dtype of ["f16", "bf16"] as const) {
    const weight = (draw(2, [n, k], dtype).dataSync() as Float32Array).map((w) => w / 64);
    const x = tensor(rows.flatMap((row) => [...row]), { shape: [rows.length, k], backend: gpu });
    const w = tensor(weight, { shape: [n, k], dtype, backend: gpu });
    const held = await w.data(), compiled = compile((x: Tensor, w: Tensor) => project(x, [w]));
    const got = await compiled(x, w).data();
    if (hasUnits) {
      const names = compiled.recordings[0].kernels.map(({ name }) => name).join();
      assert.match(names, /matmul_pack_f32.*matmul_matrix/);
    }
    rows.forEach((row, i) => {
      for (let j = 0; j < n; j++) {
        const terms = Array.from(row, (v, l) => v * held[j * k + l]), y = got[i * n + j], at = `${dtype} ${i}, ${j}`;
        const exact = terms.reduce((a, b) => a + b), size = terms.reduce((a, b) => a + Math.abs(b), 0);
        if (Number.isFinite(exact)) {
          // Below 2^-126 a device may flush to zero what it reads.
          assert.ok(Math.abs(y - exact) <= size * 2 ** -11 + (size < 2 ** -120 ? size : 0), `${at}: ${y} for ${exact}`);
        } else assert.equal(y, exact, at);
      }
    });
  }
});

Deno.test("several weights of a projection are one product, packed as one, x once for all", async () => {
  for (const dtype of ["bf16", "f16"] as const) {
    for (const weights of [[32, 40, 27], [40, 40]]) {
      const gated = weights.length === 2, shapes = [[40, 24], [40, gated ? 40 : 99], ...weights.map((n) => [n, 24])];
      const host = shapes.map((shape, i) => draw(i, shape, i < 2 ? "f32" : dtype));
      const on = (backend: Backend) =>
        host.map((x) => tensor(x.dataSync(), { shape: x.shape, dtype: x.dtype, backend })) as [
          Tensor,
          Tensor,
          ...Tensor[],
        ];
      const f = (x: Tensor, residual: Tensor, ...w: Tensor[]) => project(x, w, { gated, residual });
      const compiled = compile(f), got = await compiled(...on(gpu)).data();
      await assertClose(f(...on(cpu())), got, { rtol: 0, atol: 2 ** -11 * 24 * (gated ? 8 : 1) });
      if (!hasUnits) continue;
      const calls = (part: string) =>
        compiled.recordings[0].kernels.filter(({ name }) => name.startsWith(part)).reduce((sum, k) => sum + k.calls, 0);
      assert.equal(calls("matmul_pack_f32"), 1);
      assert.equal(calls("matmul_matrix"), 1);
      assert.equal(calls("swiglu"), 0);
      assert.equal(calls(`matmul_pack_${dtype}`), dtype === "f16" && gated ? 0 : 1); // a gate reads f16 in place
    }
  }
});

Deno.test("the same product gives the same bits", async () => {
  const [a, b] = [draw(1, [70, 120], "f16"), draw(2, [120, 88], "f16")]
    .map((x) => tensor(x.dataSync(), { shape: x.shape, dtype: "f16", backend: gpu }));
  assert.deepEqual(await matmul(a, b).bytes(), await matmul(a, b).bytes());
});
