import assert from "node:assert/strict";
import { tensor } from "../tensor/create.ts";
import { array, float, property } from "../testing/mod.ts";
import { sgd } from "./mod.ts";

property("sgd() does what the formula says, with momentum, Nesterov's too", [
  array(float({ min: -2, max: 2 }), { minLength: 1, maxLength: 8 }),
], async (grads) => {
  for (const nesterov of [false, true]) {
    const optimizer = sgd({ learningRate: 0.1, momentum: 0.9, nesterov, weightDecay: 0.2 });
    let params = { w: tensor([1], { dtype: "f64" }) }, state = optimizer.init(params);
    let p = 1, v = 0;
    for (const g of grads) {
      ({ params, state } = optimizer.update(params, { w: tensor([g], { dtype: "f64" }) }, state));
      const u = g + 0.2 * p;
      v = 0.9 * v + u;
      p -= 0.1 * (nesterov ? u + 0.9 * v : v);
    }
    assert(Math.abs(await params.w.item() - p) < 1e-6);
  }
});

Deno.test("sgd() refuses options out of their range", () => {
  assert.throws(() => sgd({ learningRate: Infinity }), /learningRate/);
  assert.throws(() => sgd({ learningRate: 1, momentum: 1 }), /momentum/);
  assert.throws(() => sgd({ learningRate: 1, weightDecay: NaN }), /weightDecay/);
});
