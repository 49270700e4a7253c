import assert from "node:assert/strict";
import { grad } from "../autograd/grad.ts";
import { tensor, zeros } from "../tensor/create.ts";
import { key, randint, randn } from "../tensor/random.ts";
import { array, boolean, integer, property } from "../testing/mod.ts";
import { nextTokenLoss } from "./mod.ts";

const classes = 5, size = 3;

property("nextTokenLoss() is the mean surprise of each next label that is not ignored", [
  integer(1, 3),
  integer(2, 5),
  array(boolean(), { minLength: 15, maxLength: 15 }),
], async (batch, length, ignore) => {
  const hidden = randn(key(1), [batch, length, size]), weight = randn(key(2), [classes, size]);
  const labels = (await randint(key(3), [batch, length], { max: classes }).data()).map((v, i) => ignore[i] ? -100 : v);
  const h = await hidden.data(), w = await weight.data();
  let sum = 0, count = 0;
  for (let b = 0; b < batch; b++) {
    for (let s = 0; s + 1 < length; s++) {
      const label = labels[b * length + s + 1];
      if (label < 0) continue;
      const scores = Array.from(
        { length: classes },
        (_, c) =>
          Array.from({ length: size }, (_, d) => h[(b * length + s) * size + d] * w[c * size + d]).reduce((a, b) =>
            a + b
          ),
      );
      sum += Math.log(scores.reduce((total, v) => total + Math.exp(v), 0)) - scores[label];
      count++;
    }
  }
  const got = await nextTokenLoss({ weight }, hidden, tensor(labels, { shape: [batch, length], dtype: "i32" })).item();
  if (count === 0) assert(Number.isNaN(got));
  else assert(Math.abs(got - sum / count) < 1e-5, `${got} for ${sum / count}`);
});

Deno.test("nextTokenLoss() sends no gradient to the last place, which predicts nothing", async () => {
  const weight = randn(key(2), [classes, size]), labels = tensor([[1, 2, 3]], { dtype: "i32" });
  const dx = await grad((h: typeof weight) => nextTokenLoss({ weight }, h, labels))(randn(key(1), [1, 3, size])).data();
  assert(dx.slice(0, 6).every((v) => v !== 0) && dx.slice(6).every((v) => v === 0));
});

Deno.test("nextTokenLoss() refuses labels of another shape or outside the vocabulary", () => {
  const params = { weight: zeros([classes, size]) }, hidden = zeros([1, 3, size]);
  assert.throws(() => nextTokenLoss(params, hidden, tensor([1, 2, 3], { dtype: "i32" })), /labels \[B, S\]/);
  assert.throws(() => nextTokenLoss(params, hidden, tensor([[1, 2, 5]], { dtype: "i32" })), /label 5 is outside/);
  assert.throws(() => nextTokenLoss(params, hidden, tensor([[1, 2, -1]], { dtype: "i32" })), /label -1 is outside/);
});
