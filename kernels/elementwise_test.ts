import assert from "node:assert/strict";
import { tensor } from "../tensor/create.ts";
import type { DType } from "../tensor/dtype.ts";
import { add, cast, maximum, mul, neg, sub, where } from "../tensor/elementwise.ts";
import { concat, reshape, slice } from "../tensor/movement.ts";
import { key, randint } from "../tensor/random.ts";
import { broadcastLayout, type Layout, stridesOf } from "../tensor/shape.ts";
import type { Tensor } from "../tensor/tensor.ts";
import { needAdapter } from "../testing/laws/adapter.ts";
import { type ElementwiseShape, expressions, gridFor, planElementwise } from "./elementwise.ts";
import { webgpu } from "./webgpu.ts";

const gpu = await needAdapter(webgpu());

/** x in other places: between columns that are not its own, and behind one element. */
function views(x: Tensor): Tensor[] {
  const [rows, columns] = x.shape;
  const between = slice(concat([x, x, x], { axis: 1 }), [0, columns], [rows, 2 * columns]);
  const flat = reshape(x, [x.size]);
  const behind = reshape(slice(concat([slice(flat, [0], [1]), flat]), [1]), x.shape);
  return [x, between, behind];
}

/** Whole numbers on the GPU, which every type holds. */
const numbers = (seed: number, shape: number[], dtype: DType) =>
  cast(randint(key(seed, { backend: gpu }), shape, { min: dtype === "u32" ? 1 : -9, max: 10 }), dtype);

for (const dtype of ["f32", "f16", "bf16", "i32", "u32"] as const) {
  Deno.test(`elementwise results in ${dtype} do not depend on how the operands lie, at any size`, async () => {
    for (const shape of [[1, 1], [3, 1], [5, 3], [4, 8], [7, 37]]) {
      const as = views(numbers(1, shape, dtype)), bs = views(numbers(2, shape, dtype));
      for (const f of [add, sub, mul, maximum, (a: Tensor, b: Tensor) => neg(add(mul(a, a), b))]) {
        const expected = await f(as[0], bs[0]).bytes();
        for (const a of as) for (const b of bs) assert.deepEqual(await f(a, b).bytes(), expected);
      }
    }
  });

  Deno.test(`a ${dtype} scalar, row or column stands beside every element`, async () => {
    const x = numbers(1, [5, 37], dtype), xs = await x.data();
    for (const shape of [[1, 1], [1, 37], [5, 1], [37], []]) {
      const y = numbers(2, shape, dtype), ys = await y.data();
      const [perRow, perColumn] = [shape.length === 2 && shape[0] === 5, shape.at(-1) === 37];
      const expected = xs.map((v, i) => v * ys[perRow ? Math.floor(i / 37) : perColumn ? i % 37 : 0]);
      assert.deepEqual(await mul(x, y).data(), expected);
      assert.deepEqual(await mul(y, x).data(), expected);
    }
  });
}

Deno.test("where() and casts take conditions and numbers from any view", async () => {
  const condition = cast(tensor([[1, 0, 1], [0, 0, 1]], { backend: gpu }), "bool");
  for (const c of views(condition)) {
    for (const x of views(numbers(1, [2, 3], "f16"))) {
      const [on, off] = [await x.array(), await neg(x).array()] as number[][][];
      const expected = [[on[0][0], off[0][1], on[0][2]], [off[1][0], off[1][1], on[1][2]]];
      assert.deepEqual(await where(c, x, neg(x)).array(), expected);
      assert.deepEqual(await cast(c, "i32").array(), [[1, 0, 1], [0, 0, 1]]);
    }
  }
});

Deno.test("planElementwise() walks dense operands and scalars by fours, and only other views one by one", () => {
  const dense = (shape: number[], offset = 0): Layout => ({ shape, strides: stridesOf(shape), offset });
  const what: ElementwiseShape = { name: "add", inputs: ["f32", "f32"], output: "f32", expression: expressions.add };
  const plan = (a: Layout, b: Layout) => planElementwise(what, [a, b], 30);
  const x = dense([5, 6]);
  assert.match(plan(x, dense([5, 6], 8)).kernel.name, /^add_linear_f32_f32_f32$/);
  assert.match(plan(x, broadcastLayout(dense([1], 3), [5, 6])).kernel.name, /^add_linear_f32_f32s_f32$/);
  assert.equal(plan(x, x).threads, 8);
  for (const b of [dense([5, 6], 2), broadcastLayout(dense([6]), [5, 6]), { ...x, strides: [1, 5] }]) {
    const { kernel, threads } = plan(x, b);
    assert.match(kernel.name, /^add_strided\d_f32_f32_f32$/);
    assert.equal(threads, 30);
  }
});

Deno.test("gridFor() has a thread for everyone and keeps within the limit", () => {
  for (const threads of [0, 1, 256, 257, 65535 * 256, 65535 * 256 + 1, 2 ** 31]) {
    const [x, y, z] = gridFor(threads, 65535);
    assert(x <= 65535 && y <= 65535 && z === 1, `${[x, y, z]}`);
    assert(x * y * 256 >= threads && x * y * 256 - threads < 256 * (y + 1), `${threads}: ${[x, y]}`);
  }
});
