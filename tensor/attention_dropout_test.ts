import assert from "node:assert/strict";
import {
  div,
  dropoutMask,
  flashAttention,
  grad,
  key,
  matmul,
  mul,
  permute,
  randn,
  softmax,
  split,
  sum,
  type Tensor,
  where,
} from "../mod.ts";
import { assertClose, integer, property } from "../testing/mod.ts";
import { dropThreshold } from "./attention_dropout.ts";
import { philox4x32 } from "./philox.ts";

Deno.test("dropoutMask() is Philox counted by key block, query, head and batch row", () => {
  const [B, H, Sq, Sk] = [2, 3, 4, 7], p = 0.3, seed = key(0x123456789);
  const mask = dropoutMask(seed, p, [B, H, Sq, Sk]).dataSync(), [k0, k1] = seed.dataSync();
  let at = 0;
  for (let b = 0; b < B; b++) {
    for (let h = 0; h < H; h++) {
      for (let i = 0; i < Sq; i++) {
        for (let j = 0; j < Sk; j++) {
          const word = philox4x32(Math.floor(j / 4), i, h, b, k0, k1)[j % 4];
          assert.equal(mask[at++], word >= p * 2 ** 32 ? 1 : 0);
        }
      }
    }
  }
});

property("dropoutMask() keeps 1 − p of the probabilities", [integer(0, 99), integer(0, 1e6)], (percent, seed) => {
  const p = percent / 100, n = 4 * 4 * 16 * 16;
  const kept = Array.from(dropoutMask(key(seed), p, [4, 4, 16, 16]).dataSync()).reduce((a, x) => a + x, 0);
  // Five standard deviations.
  assert.ok(Math.abs(kept - n * (1 - p)) <= 5 * Math.sqrt(n * p * (1 - p)), `${kept} of ${n} at p = ${p}`);
}, { runs: 50 });

Deno.test("dropThreshold() fits 32 bits up to the last p below 1", () => {
  assert.equal(dropThreshold(0), 0);
  assert.equal(dropThreshold(0.5), 2 ** 31);
  assert.equal(dropThreshold(1 - 2 ** -53), 2 ** 32 - 1);
});

property(
  "dropout's gradient is the gradient with its mask",
  [integer(1, 80), integer(0, 999)],
  async (percent, seed) => {
    const [B, S, H, D] = [2, 5, 2, 3], p = percent / 100, dropout = { p, key: key(seed) };
    const [a, b, c] = split(key(seed + 1), 3).map((k) => randn(k, [B, S, H, D], { dtype: "f64" }));
    const weights = randn(key(seed + 2), [B, S, H, D], { dtype: "f64" });
    const mask = dropoutMask(dropout.key, p, [B, H, S, S]), heads = (x: Tensor) => permute(x, [0, 2, 1, 3]);
    const masked = (q: Tensor, k: Tensor, v: Tensor) => {
      const all = softmax(mul(matmul(heads(q), heads(k), { transposeB: true }), 1 / Math.sqrt(D)));
      return sum(mul(weights, heads(matmul(where(mask, div(all, 1 - p), 0), heads(v)))));
    };
    const fused = (q: Tensor, k: Tensor, v: Tensor) => sum(mul(weights, flashAttention(q, k, v, { dropout })));
    const [da, db] = [grad(masked, [0, 1, 2])(a, b, c), grad(fused, [0, 1, 2])(a, b, c)];
    for (const [i, d] of da.entries()) await assertClose(db[i], d);
  },
  { runs: 20 },
);

Deno.test("dropoutMask() refuses what is no probability, key or shape", () => {
  const seed = key(1);
  for (const p of [1, -0.5, NaN]) {
    assert.throws(() => dropoutMask(seed, p, [1, 1, 1, 1]), /\[dropoutMask\] p is at least 0/);
  }
  assert.throws(() => dropoutMask(seed, 0.5, [1, 1, 1]), /the shape is \[B, H, Sq, Sk\], got \[1,1,1\]/);
  assert.throws(() => dropoutMask(randn(seed, [2]), 0.5, [1, 1, 1, 1]), /key is f32/);
});
