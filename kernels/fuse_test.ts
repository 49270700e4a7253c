import assert from "node:assert/strict";
import { setBackend } from "../tensor/backend.ts";
import { compile } from "../tensor/compile.ts";
import { full, ones, tensor } from "../tensor/create.ts";
import type { DType } from "../tensor/dtype.ts";
import {
  add,
  cast,
  div,
  exp,
  greater,
  maximum,
  mul,
  neg,
  relu,
  sigmoid,
  silu,
  square,
  sub,
  tanh,
  where,
} from "../tensor/elementwise.ts";
import { reshape, slice, transpose } from "../tensor/movement.ts";
import { key, randn } from "../tensor/random.ts";
import { sum } from "../tensor/reduce.ts";
import { dispose } from "../tensor/scope.ts";
import type { Tensor } from "../tensor/tensor.ts";
import { sgdUpdate } from "../tensor/update.ts";
import { Arbitrary, integer } from "../testing/arbitrary.ts";
import { needAdapter } from "../testing/laws/adapter.ts";
import { property } from "../testing/property.ts";
import { webgpu } from "./webgpu.ts";

const gpu = await needAdapter(webgpu());
setBackend(gpu);

/** Ops and bits of a function's results, compiled. */
async function same<A extends readonly Tensor[]>(f: (...args: A) => Tensor, ...args: A): Promise<string[]> {
  using compiled = compile(f);
  const expected = [...await f(...args).bytes()];
  for (let i = 0; i < 2; i++) {
    const y = compiled(...args);
    assert.deepEqual([...await y.bytes()], expected);
    y.dispose();
  }
  return compiled.recordings[0].kernels.flatMap(({ op, calls }) => Array<string>(calls).fill(op));
}

const normal = (seed: number, shape: number[], dtype: DType = "f32") => randn(key(seed), shape, { dtype });

Deno.test("a chain of elementwise ops is one kernel and gives the same bits", async () => {
  const x = normal(1, [37, 5]), y = normal(2, [37, 5]);
  assert.deepEqual(await same((a, b) => sub(mul(silu(add(a, b)), b), square(a)), x, y), ["fused"]);
});

Deno.test("a product and a sum in one kernel keep both roundings", async () => {
  const x = normal(3, [4096]), y = normal(4, [4096]), z = normal(5, [4096]);
  assert.deepEqual(await same((a, b, c) => add(mul(a, b), c), x, y, z), ["fused"]);
  assert.deepEqual(await same((a, b, c) => sub(c, mul(mul(a, b), mul(b, c))), x, y, z), ["fused"]);
});

Deno.test("a fused step does not know that its operands are equal, or shared with another step", async () => {
  const x = normal(15, [64, 100]), y = normal(16, [64, 100]);
  assert.deepEqual(await same((a, b) => neg(div(mul(a, b), mul(a, b))), x, y), ["fused"]);
  assert.deepEqual(await same((a) => neg(div(a, a)), x), ["fused"]);
  assert.deepEqual(await same((a, b) => add(div(a, b), div(b, b)), x, y), ["fused"]);
  assert.deepEqual(await same((a, b) => add(tanh(div(a, b)), exp(div(b, a))), x, y), ["fused"]);
});

Deno.test("fused steps round to 16 bits where the plain ones do", async () => {
  for (const dtype of ["bf16", "f16"] as const) {
    const x = normal(6, [513], dtype), y = normal(7, [513], dtype);
    assert.deepEqual(await same((a, b) => mul(add(mul(a, b), b), a), x, y), ["fused"]);
    assert.deepEqual(await same((a, b) => cast(add(exp(a), b), "f32"), x, y), ["fused"]);
    assert.deepEqual(await same((a, b) => add(cast(mul(a, b), "f32"), cast(a, "f32")), x, y), ["fused"]);
  }
});

Deno.test("integers, bools and selections fuse", async () => {
  const x = normal(8, [100]), i = tensor(Int32Array.from({ length: 100 }, (_, i) => i - 50));
  assert.deepEqual(await same((a, n) => where(greater(a, 0), cast(mul(n, n), "f32"), neg(a)), x, i), ["fused"]);
});

Deno.test("views and broadcasts are read where they lie by the fused kernel", async () => {
  const x = normal(9, [6, 8]), row = normal(10, [8]), column = normal(11, [6, 1]);
  assert.deepEqual(await same((a, r, c) => add(mul(transpose(a), transpose(c)), reshape(r, [8, 1])), x, row, column), [
    "fused",
  ]);
  assert.deepEqual(await same((a, r) => tanh(add(slice(mul(a, a), [1, 0], [3, 8]), r)), x, row), ["mul", "fused"]);
  assert.deepEqual(await same((a) => exp(reshape(mul(a, 2), [48])), x), ["fused"]);
});

Deno.test("a value that others read too is written, and read by them", async () => {
  const x = normal(12, [64]), y = normal(13, [64]);
  assert.deepEqual(
    await same(
      (a, b) => {
        const t = mul(a, b);
        return add(relu(t), sum(t));
      },
      x,
      y,
    ),
    ["mul", "sum", "fused"],
  );
  assert.deepEqual(
    await same((a) => {
      const t = exp(a);
      return mul(t, add(t, 1)); // both readers are in the kernel
    }, x),
    ["fused"],
  );
});

Deno.test("results of the function are written", async () => {
  using f = compile((a: Tensor) => {
    const t = mul(a, a);
    return { t, y: exp(t) };
  });
  const x = normal(14, [10]);
  for (let i = 0; i < 2; i++) {
    const { t, y } = f(x);
    assert.deepEqual([...await t.bytes()], [...await mul(x, x).bytes()]);
    assert.deepEqual([...await y.bytes()], [...await exp(mul(x, x)).bytes()]);
    dispose([t, y]);
  }
});

Deno.test("a value is computed before what it reads is written in place", async () => {
  using f = compile((param: Tensor, grad: Tensor) => {
    const before = mul(param, 2);
    const { param: next } = sgdUpdate({ param, grad, learningRate: full([], 1) });
    return { next, change: sub(before, next) };
  });
  let param = tensor([1, 2]);
  const grad = ones([2]);
  for (let i = 1; i <= 3; i++) {
    const { next, change } = f(param, grad);
    assert.deepEqual([...await change.data()], [2 * (2 - i) - (1 - i), 2 * (3 - i) - (2 - i)]);
    param = next;
  }
});

Deno.test("kernels read at most 24 tensors, or as many as the device binds, however long the chain", async () => {
  const all = Array.from({ length: 60 }, (_, i) => normal(20 + i, [50]));
  const ops = await same((...xs) => xs.reduce((a, b) => maximum(mul(a, b), a)), ...all);
  assert(ops.length >= 3 && ops.length <= 4, `${ops}`);
});

Deno.test("the text of a fused kernel can be printed", async () => {
  using f = compile((a: Tensor, b: Tensor) => sigmoid(add(a, b)));
  await f(ones([4]), ones([4])).data();
  const [{ op, name, calls, source }] = f.recordings[0].kernels;
  assert.deepEqual([op, calls], ["fused", 1]);
  assert.match(name, /^fused\d+_add_sigmoid_linear_f32_f32_f32$/);
  assert.match(source, /fn fused\(x0: f32, x1: f32\) -> f32/);
});

/** Random elementwise programs over three tensors. */
const arbProgram = new Arbitrary((source) =>
  Array.from({ length: integer(1, 14).draw(source) }, (_, i) => ({
    op: integer(0, 7).draw(source),
    left: integer(0, i + 2).draw(source),
    right: integer(0, i + 2).draw(source),
  }))
);
const steps = [add, sub, mul, maximum, div, (a: Tensor) => tanh(a), (a: Tensor) => neg(a), (a: Tensor) => square(a)];

property("fused programs give the bits of plain ones", [arbProgram], async (program) => {
  const inputs = [normal(30, [3, 4]), normal(31, [4]), normal(32, [3, 1])];
  await same((...xs: Tensor[]) => {
    const values = [...xs];
    for (const { op, left, right } of program) values.push(steps[op](values[left], values[right]));
    return values.at(-1)!;
  }, ...inputs);
}, { runs: 60 });
