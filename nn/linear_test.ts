import assert from "node:assert/strict";
import { grad } from "../autograd/grad.ts";
import { tensor } from "../tensor/create.ts";
import { mul } from "../tensor/elementwise.ts";
import { sum } from "../tensor/reduce.ts";
import { embedding, linear } from "./mod.ts";

Deno.test("linear() multiplies by the transposed weight and adds the bias along the last axis", async () => {
  const weight = tensor([[1, 2], [3, 4], [5, 6]]), bias = tensor([10, 20, 30]);
  assert.deepEqual(await linear({ weight, bias }, tensor([[[1, 0]], [[0, 1]]])).array(), [[[11, 23, 35]], [[
    12,
    24,
    36,
  ]]]);
  assert.deepEqual(await linear({ weight }, tensor([1, 1])).array(), [3, 7, 11]);
});

Deno.test("linear() has gradients in weight, bias and input", async () => {
  const params = { weight: tensor([[1, 2], [3, 4]]), bias: tensor([0, 0]) }, x = tensor([[1, 10], [2, 20]]);
  const by = tensor([[1, 0], [0, 1]]);
  const [dp, dx] = grad((p: typeof params, x: typeof by) => sum(mul(linear(p, x), by)), [0, 1])(params, x);
  assert.deepEqual(await dp.weight.array(), [[1, 10], [2, 20]]);
  assert.deepEqual(await dp.bias.array(), [1, 1]);
  assert.deepEqual(await dx.array(), [[1, 2], [3, 4]]);
});

Deno.test("embedding() reads a row for each id, and its gradient adds up where ids repeat", async () => {
  const params = { weight: tensor([[0, 1], [2, 3], [4, 5]]) }, ids = tensor([[2, 0], [2, 2]], { dtype: "i32" });
  assert.deepEqual(await embedding(params, ids).array(), [[[4, 5], [0, 1]], [[4, 5], [4, 5]]]);
  const dp = grad((p: typeof params) => sum(embedding(p, ids)))(params);
  assert.deepEqual(await dp.weight.array(), [[1, 1], [0, 0], [3, 3]]);
  assert.throws(() => embedding(params, tensor([3], { dtype: "i32" })), /index 3 is outside/);
});
