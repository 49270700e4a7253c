import assert from "node:assert/strict";
import * as flashtape from "../mod.ts";
import { assertClose, checkGradients } from "../testing/mod.ts";
import { eager } from "./eager.ts";
import { key, randn } from "./random.ts";
import { square } from "./elementwise.ts";
import { sum } from "./reduce.ts";
import { tensor } from "./create.ts";
import type { Tensor } from "./tensor.ts";

Deno.test("every eager twin bears the name of a fused function", () => {
  for (const name of Object.keys(eager)) assert.equal(typeof Reflect.get(flashtape, name), "function", name);
});

Deno.test("eager twins follow their formulas on numbers that can be checked by hand", async () => {
  const x = tensor([[3, 4]]), one = tensor([1, 1]);
  await assertClose(eager.rmsNorm(x, one, { eps: 0 }), [[3 / Math.sqrt(12.5), 4 / Math.sqrt(12.5)]]);
  await assertClose(eager.layerNorm(x, one, null, { eps: 0 }), [[-1, 1]]);
  await assertClose(eager.swiglu(tensor([0, 1]), tensor([5, 2])), [0, 2 / (1 + Math.exp(-1))]);
  await assertClose(eager.geglu(tensor([0, 1]), tensor([5, 2])), [0, 2 * 0.8413447460685429]);
  await assertClose(eager.crossEntropy(tensor([[0, 0]]), tensor([1], { dtype: "i32" })), Math.LN2);
  const turned = eager.rotaryEmbedding(tensor([1, 2], { shape: [1, 1, 1, 2] }), tensor([[0]]), tensor([[1]]));
  await assertClose(turned, [[[[-2, 1]]]]);
});

Deno.test("eager twins have second derivatives", async () => {
  const x = randn(key(1), [2, 3], { dtype: "f64" }), w = randn(key(2), [3], { dtype: "f64" });
  const labels = tensor([0, 2], { dtype: "i32" });
  const slope = (f: (x: Tensor) => Tensor) => (x: Tensor) => flashtape.grad((x: Tensor) => sum(square(f(x))))(x);
  await checkGradients(slope((x) => eager.rmsNorm(x, w)), [x]);
  await checkGradients(slope((x) => eager.layerNorm(x, w)), [x]);
  await checkGradients(slope((x) => eager.swiglu(x, x)), [x]);
  await checkGradients(slope((x) => eager.crossEntropy(x, labels, { zLoss: 0.1, softcap: 3, labelSmoothing: 0.1 })), [
    x,
  ]);
});
