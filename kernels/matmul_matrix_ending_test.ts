import assert from "node:assert/strict";
import { compile } from "../tensor/compile.ts";
import { tensor } from "../tensor/create.ts";
import type { DType } from "../tensor/dtype.ts";
import { add, cast, gelu, greater, mul, relu, silu, sub, where } from "../tensor/elementwise.ts";
import { matmul } from "../tensor/matmul.ts";
import { reshape, slice, transpose } from "../tensor/movement.ts";
import { sum } from "../tensor/reduce.ts";
import type { Tensor } from "../tensor/tensor.ts";
import { needAdapter } from "../testing/laws/adapter.ts";
import { draw } from "../testing/laws/both.ts";
import { each } from "./kernel.ts";
import { type Ending, endingName, endingReads, endingText, endingUniforms } from "./matmul_matrix_ending.ts";
import { matrixUnit } from "./matmul_matrix_plan.ts";
import { webgpu } from "./webgpu.ts";

const gpu = await needAdapter(webgpu());
const units = matrixUnit(gpu.capabilities) !== undefined;

/** Asserts that compiled f gives the bits of plain f, and returns the kernels that it dispatches. */
async function same<A extends readonly Tensor[]>(f: (...args: A) => Tensor, ...args: A): Promise<string[]> {
  const expected = await f(...args).bytes();
  using compiled = compile(f);
  for (let i = 0; i < 2; i++) assert.deepEqual(await compiled(...args).bytes(), expected);
  return compiled.recordings[0].kernels.flatMap(({ name, calls }) => Array<string>(calls).fill(name));
}

/** Asserts that a product on matrix units, and only there, is all that remains; packing aside. */
function isOne(names: readonly string[]): void {
  const rest = names.filter((name) => !name.startsWith("matmul_pack") && !name.startsWith("matmul_most"));
  if (units) assert.deepEqual(rest.map((name) => /^matmul_matrix.*_fused\d+_/.test(name)), [true], `${names}`);
  else assert.ok(names.every((name) => !/^matmul.*_fused/.test(name)), `${names}`);
}

const on = (seed: number, shape: number[], dtype: DType) =>
  tensor(draw(seed, shape).dataSync(), { shape, dtype, backend: gpu });

Deno.test("a bias and an activation after a product happen in its store, to the bit, whatever the sizes", async () => {
  const linear = (x: Tensor, w: Tensor) => matmul(x, w, { transposeB: true });
  const ends: ((x: Tensor, w: Tensor, b: Tensor, c: Tensor) => Tensor)[] = [
    (x, w, b) => add(linear(x, w), b),
    (x, w, b) => gelu(add(linear(x, w), b)),
    (x, w, b, c) => add(mul(silu(sub(linear(x, w), b)), 0.5), c),
    (x, w) => relu(linear(x, w)),
  ];
  const sizes = [[33, 24, 24], [40, 20, 16], [37, 50, 40], [70, 34, 13]];
  for (const [shift, dtype] of [[0, "f16"], [1, "bf16"], [2, "f16"]] as const) {
    for (const [i, [m, n, k]] of sizes.entries()) {
      const given = [on(1, [m, k], dtype), on(2, [n, k], dtype), on(3, [n], dtype), on(4, [m, n], dtype)] as const;
      isOne(await same(ends[(i + shift) % ends.length], ...given));
    }
  }
});

Deno.test("a product ends in steps over batches, slices and selections of other types", async () => {
  const [x, w] = [on(1, [2, 3, 24, 16], "f16"), on(2, [3, 16, 20], "f16")];
  const [b, c] = [on(3, [21], "f16"), on(4, [3, 3, 24, 20], "bf16")];
  isOne(await same((x, w, b) => add(matmul(x, w), slice(b, [1], [21])), x, w, b));
  const f = (x: Tensor, w: Tensor, b: Tensor, c: Tensor) => {
    const y = matmul(x, w), from = slice(c, [1], [3]);
    return cast(where(greater(cast(from, "f16"), slice(b, [1], [21])), cast(y, "f32"), cast(from, "f32")), "f16");
  };
  isOne(await same(f, x, w, b, c));
});

Deno.test("a step knows which of its operands the product is", async () => {
  const [x, w, c] = [on(1, [33, 16], "f16"), on(2, [16, 24], "f16"), on(3, [33, 24], "f16")];
  isOne(await same((x, w, c) => sub(matmul(x, w), c), x, w, c));
  isOne(await same((x, w, c) => sub(c, matmul(x, w)), x, w, c));
});

Deno.test("a product stays by itself where somebody else reads it, or its steps do not go through it in order", async () => {
  const [x, w, b] = [on(1, [40, 16], "f16"), on(2, [40, 16], "f16"), on(3, [40], "f16")];
  const linear = (x: Tensor, w: Tensor) => matmul(x, w, { transposeB: true });
  const alone: ((x: Tensor, w: Tensor, b: Tensor) => Tensor)[] = [
    (x, w, b) => {
      const y = linear(x, w);
      return add(sum(y, { axis: 0 }), sum(add(y, b), { axis: 0 }));
    },
    (x, w, b) => add(transpose(linear(x, w)), b),
    (x, w, b) => {
      const y = linear(x, w);
      return mul(add(transpose(y), b), y);
    },
    (x, w, b) => add(linear(x, w), reshape(b, [40, 1])),
    (x, w) => cast(linear(x, w), "f32"),
  ];
  for (const f of alone) {
    const names = await same(f, x, w, b);
    assert.ok(names.every((name) => !/^matmul.*_fused/.test(name)), `${names}`);
  }
});

Deno.test("the text of an ending reads each input where it lies, and its name tells it from others", () => {
  const names = new Set<string>();
  for (const vec of [1, 4] as const) {
    for (const dtype of ["f32", "f16", "bf16", "i32", "bool"] as const) {
      for (const at of ["element", "column", "one"] as const) {
        const helpers = "fn fused(x0: f32, x1: f32) -> f32 { return x0; }";
        const ending: Ending = { name: "fused1_add", helpers, inputs: ["product", { dtype, at }], vec };
        for (const inputs of [ending.inputs, ending.inputs.toReversed()]) names.add(endingName({ ...ending, inputs }));
        assert.deepEqual([Object.keys(endingReads(ending)), Object.keys(endingUniforms(ending))], [
          ["e0"],
          ["zero", "offset_e0"],
        ]);
        const text = endingText(ending, "f32");
        for (const part of each(4, (j) => `fused(v[${j}], `)) assert.ok(text.includes(part), text);
        assert.doesNotMatch(text, /undefined|NaN|\[object/);
      }
    }
  }
  assert.equal(names.size, 60);
});
