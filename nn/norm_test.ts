import assert from "node:assert/strict";
import { ones, tensor } from "../tensor/create.ts";
import { layerNorm, rmsNorm } from "./mod.ts";

Deno.test("layerNorm() takes weight and bias as one object", async () => {
  const x = tensor([[1, 3]]);
  assert.deepEqual(await layerNorm({ weight: tensor([1, 2]), bias: tensor([0, 1]) }, x, { eps: 0 }).array(), [[-1, 3]]);
  assert.deepEqual(await layerNorm({ weight: tensor([1, 2]) }, x, { eps: 0 }).array(), [[-1, 2]]);
});

Deno.test("rmsNorm() gives the normalised rows, and the sum too when there is a residual", async () => {
  const params = { weight: ones([2]) };
  assert.deepEqual(await rmsNorm(params, tensor([[3, 3]]), { eps: 0 }).array(), [[1, 1]]);
  assert.deepEqual(await rmsNorm(params, tensor([[3, 3]]), { eps: 27 }).array(), [[0.5, 0.5]]);
  const { out, sum } = rmsNorm(params, tensor([[1, 3]]), { residual: tensor([[2, 0]]), eps: 0 });
  assert.deepEqual([await sum.array(), await out.array()], [[[3, 3]], [[1, 1]]]);
});
