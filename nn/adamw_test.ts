import assert from "node:assert/strict";
import { tensor, zeros } from "../tensor/create.ts";
import { mapTree } from "../tensor/tree.ts";
import { array, float, property } from "../testing/mod.ts";
import { adamw, cosineSchedule } from "./mod.ts";

/** AdamW on plain numbers, as the paper writes it. */
function plainAdamw(p: number, grads: readonly number[], rate: (t: number) => number, decay: number): number {
  let m = 0, v = 0;
  grads.forEach((g, i) => {
    const t = i + 1;
    m = 0.9 * m + 0.1 * g;
    v = 0.99 * v + 0.01 * g * g;
    p -= rate(t) * (decay * p + m / (1 - 0.9 ** t) / (Math.sqrt(v / (1 - 0.99 ** t)) + 1e-8));
  });
  return p;
}

property("adamw() does what the formula says, with a schedule and with decay by name", [
  array(float({ min: -2, max: 2 }), { minLength: 1, maxLength: 8 }),
], async (grads) => {
  const optimizer = adamw({
    learningRate: cosineSchedule({ learningRate: 0.1, totalSteps: 10 }),
    betas: [0.9, 0.99],
    weightDecay: 0.5,
    decays: (name) => name !== "b",
  });
  let params = { a: [tensor([1], { dtype: "f64" })], b: tensor([1], { dtype: "f64" }) };
  let state = optimizer.init(params);
  for (const g of grads) {
    ({ params, state } = optimizer.update(params, mapTree(params, () => tensor([g], { dtype: "f64" })), state));
  }
  const rate = (t: number) => 0.05 * (1 + Math.cos(Math.PI * t / 10));
  assert(Math.abs(await params.a[0].item() - plainAdamw(1, grads, rate, 0.5)) < 1e-6);
  assert(Math.abs(await params.b.item() - plainAdamw(1, grads, rate, 0)) < 1e-6);
  assert.equal(await state.step.item(), grads.length);
});

Deno.test("parameters of 16 bits have their moments in f32", () => {
  const { m, v } = adamw({ learningRate: 1 }).init({ w: zeros([2], { dtype: "bf16" }) });
  assert.deepEqual([m.w.dtype, v.w.dtype], ["f32", "f32"]);
});

Deno.test("adamw() refuses options out of their range", () => {
  assert.throws(() => adamw({ learningRate: -1 }), /learningRate is at least 0/);
  assert.throws(() => adamw({ learningRate: NaN }), /learningRate/);
  assert.throws(() => adamw({ learningRate: 1, betas: [1, 0.9] }), /betas\[0\]/);
  assert.throws(() => adamw({ learningRate: 1, weightDecay: -0.1 }), /weightDecay/);
  assert.throws(() => adamw({ learningRate: 1, eps: NaN }), /eps/);
});
