import assert from "node:assert/strict";
import { assertClose, checkGradients } from "../testing/mod.ts";
import * as fused from "../mod.ts";
import { grad } from "../mod.ts";
import { tensor, zeros } from "./create.ts";
import { eager } from "./eager.ts";
import { square } from "./elementwise.ts";
import { key, randn } from "./random.ts";
import { mean, sum } from "./reduce.ts";
import type { Tensor } from "./tensor.ts";

const f64 = (seed: number, shape: number[]) => randn(key(seed), shape, { dtype: "f64" });
const labels = tensor([0, -100, 2], { dtype: "i32" });

Deno.test("every twin has the name of a fused function", () => {
  for (const [name, twin] of Object.entries(eager)) {
    assert.equal(typeof fused[name as keyof typeof eager], "function", name);
    assert.notEqual(fused[name as keyof typeof eager], twin);
  }
});

Deno.test("eager norms give rows their mean and size", async () => {
  const x = f64(1, [4, 8]), one = tensor(Array(8).fill(1), { dtype: "f64" });
  await assertClose(mean(square(eager.rmsNorm(x, one, { eps: 0 })), { axis: -1 }), 1);
  const y = eager.layerNorm(x, one, null, { eps: 0 });
  await assertClose(mean(y, { axis: -1 }), 0);
  await assertClose(mean(square(y), { axis: -1 }), 1);
});

Deno.test("eager norms of 16-bit rows sum wide and come back narrow", async () => {
  const x = tensor([[200, 300]], { dtype: "f16" }); // 300² is beyond f16
  const y = eager.rmsNorm(x, tensor([1, 1], { dtype: "f16" }));
  assert.equal(y.dtype, "f16");
  await assertClose(y, [[0.7845, 1.1767]], { dtype: "f16" });
});

Deno.test("eager.rotaryEmbedding() turns each pair by its angle", async () => {
  const x = tensor([[[[1, 0, 5]]]]), cos = tensor([[0.6]]), sin = tensor([[0.8]]); // [1, 1, 1, 3], tables [1, 1]
  await assertClose(eager.rotaryEmbedding(x, cos, sin), [[[[0.6, 0.8, 5]]]]);
  await assertClose(eager.rotaryEmbedding(x, cos, sin, { interleaved: true }), [[[[0.6, 0.8, 5]]]]);
});

Deno.test("eager.crossEntropy() of equal logits is the logarithm of their count, without ignored rows", async () => {
  await assertClose(eager.crossEntropy(zeros([3, 5]), labels), Math.log(5));
  await assertClose(eager.crossEntropy(zeros([3, 5]), labels, { reduction: "none" }), [Math.log(5), 0, Math.log(5)]);
  const smooth = { labelSmoothing: 0.5, zLoss: 0.1, reduction: "sum" } as const;
  await assertClose(eager.crossEntropy(zeros([3, 5]), labels, smooth), 2 * (Math.log(5) + 0.1 * Math.log(5) ** 2));
});

Deno.test("eager twins have second derivatives", async () => {
  const twice = (f: (x: Tensor) => Tensor) => (x: Tensor) => grad((x: Tensor) => sum(square(f(x))))(x);
  const w = f64(2, [4]), x = f64(3, [3, 4]), rows = f64(4, [5, 4]);
  await checkGradients(twice((x) => eager.rmsNorm(x, w)), [x]);
  await checkGradients(twice((x) => eager.layerNorm(x, w, w)), [x]);
  await checkGradients(twice((x) => eager.swiglu(x, x)), [x]);
  await checkGradients(twice((x) => eager.geglu(x, x, { approximate: "tanh" })), [x]);
  await checkGradients(twice((x) => eager.crossEntropy(x, labels, { softcap: 2, zLoss: 0.1 })), [x]);
  await checkGradients(twice((x) => eager.linearCrossEntropy(x, rows, labels)), [x]);
});
