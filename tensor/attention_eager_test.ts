import assert from "node:assert/strict";
import {
  type AttentionOptions,
  combineAttention,
  cpu,
  flashAttentionV1,
  flashAttentionV2,
  flashAttentionVarlenWithLse,
  flashAttentionWithLse,
  full,
  grad,
  mul,
  naiveAttention,
  naiveAttentionWithLse,
  slice,
  sum,
  type Tensor,
  tensor,
  vjp,
  zeros,
} from "../mod.ts";
import { arbAttention, assertClose, checkGradients, integer, property } from "../testing/mod.ts";

const f64 = { dtype: "f64" } as const;
const exact = arbAttention({ dtype: "f64", features: ["softmaxScale", "softcap", "bias", "mask"], backend: cpu() });

Deno.test("naiveAttention() gives what a hand computes", async () => {
  const q = tensor([[[[1]], [[2]]]], f64), k = tensor([[[[0]], [[1]]]], f64), v = tensor([[[[10]], [[20]]]], f64);
  const share = (s: number) => Math.exp(s) / (1 + Math.exp(s));
  const { out, lse } = naiveAttentionWithLse(q, k, v);
  await assertClose(out, [[[[10 + 10 * share(1)]], [[10 + 10 * share(2)]]]]);
  await assertClose(lse, [[[Math.log(1 + Math.E), Math.log(1 + Math.E ** 2)]]]);
  await assertClose(naiveAttention(q, k, v, { causal: true }), [[[[10]], [[10 + 10 * share(2)]]]]);
});

property("naiveAttention() has second derivatives, and ALiBi's slopes a first one", [
  arbAttention({
    dtype: "f64",
    features: ["causal", "softcap", "bias", "sinks"],
    backend: cpu(),
    maxSeqlen: 3,
    maxHeadDim: 2,
    maxBatch: 1,
  }),
], async ({ q, k, v, H, options }) => {
  if (q.size + k.size === 0) return;
  const slope = (q: Tensor, k: Tensor) =>
    grad((q: Tensor) => sum(mul(naiveAttention(q, k, v, options), v.shape[3])))(q);
  await checkGradients((q, k) => slope(q, k), [q, k], { rtol: 1e-4, atol: 1e-7 });
  const alibiSlopes = full([H], 0.5, { ...f64, backend: cpu() });
  await checkGradients((alibiSlopes) => naiveAttention(q, k, v, { ...options, alibiSlopes }), [alibiSlopes], {
    rtol: 1e-5,
  });
}, { runs: 15 });

for (const algorithm of [flashAttentionV1, flashAttentionV2]) {
  property(`${algorithm.name}() does not depend on the size of a block`, [
    arbAttention({ features: ["causal", "window", "sinks"], backend: cpu() }),
    integer(1, 13),
  ], async ({ q, k, v, options }, blockSize) => {
    await assertClose(algorithm(q, k, v, { ...options, blockSize }), naiveAttention(q, k, v, options), { atol: 1e-5 });
  }, { runs: 40 });
}

property("combineAttention() makes attention over all keys from attention over parts, gradients included", [
  exact,
  integer(0, 12),
  integer(0, 12),
], async ({ q, k, v, options, Sk }, a, b) => {
  const cuts = [0, ...[a, b].map((n) => Math.min(n, Sk)).sort((x, y) => x - y), Sk];
  const columns = (x: Tensor | undefined, from: number, to: number) =>
    x && (x.shape[3] === 1 && Sk !== 1 ? x : slice(x, [0, 0, 0, from], [...x.shape.slice(0, 3), to]));
  const parts = (q: Tensor, k: Tensor, v: Tensor) => {
    const found = [0, 1, 2].map((n) => {
      const [from, to] = [cuts[n], cuts[n + 1]], keys = (x: Tensor) => slice(x, [0, from], [x.shape[0], to]);
      const bias = columns(options.bias, from, to), mask = columns(options.mask, from, to);
      const own: AttentionOptions = { ...options, ...(bias && { bias }), ...(mask && { mask }) };
      return flashAttentionWithLse(q, keys(k), keys(v), own);
    });
    return combineAttention(found.map(({ out }) => out), found.map(({ lse }) => lse));
  };
  const whole = (q: Tensor, k: Tensor, v: Tensor) => flashAttentionWithLse(q, k, v, options);
  const results = [parts, whole].map((f) => {
    const [{ out, lse }, pullback] = vjp(f, q, k, v);
    const gradients = pullback({ out: full(out.shape, 1, f64), lse: full(lse.shape, 0.5, f64) });
    return [out, lse, ...gradients];
  });
  for (const [i, x] of results[0].entries()) await assertClose(x, results[1][i], { atol: 1e-8 });
});

Deno.test("combineAttention() takes packed results, and tensors with the parts in front", async () => {
  const q = tensor([[[1, 0]], [[0, 2]], [[1, 1]]], f64); // [T, H, D]
  const cu = (n: number) => tensor([0, n], { dtype: "i32" });
  const over = (from: number, to: number) => {
    const keys = slice(q, [from], [to]), maxSeqlenK = to - from;
    return flashAttentionVarlenWithLse(q, keys, keys, {
      cuSeqlensQ: cu(3),
      cuSeqlensK: cu(to - from),
      maxSeqlenQ: 3,
      maxSeqlenK,
    });
  };
  const parts = [over(0, 1), over(1, 1), over(1, 3)], whole = over(0, 3);
  const combined = combineAttention(parts.map(({ out }) => out), parts.map(({ lse }) => lse));
  await assertClose(combined.out, whole.out);
  await assertClose(combined.lse, whole.lse);
});

Deno.test("combineAttention() of nothing seen is 0 and −∞, and keeps 16-bit storage", async () => {
  const outs = full([2, 1, 3, 1, 2], 5, { dtype: "f16" }), lses = full([2, 1, 1, 3], -Infinity);
  const { out, lse } = combineAttention(outs, lses);
  assert.equal(out.dtype, "f16");
  await assertClose(out, 0);
  await assertClose(lse, -Infinity);
});

Deno.test("combineAttention() refuses shapes that do not belong together", () => {
  const outs = zeros([2, 1, 3, 4, 8]);
  assert.throws(
    () => combineAttention(outs, zeros([2, 1, 3, 4])),
    /lses are \[N,B,H,S\].*outs \[2,1,3,4,8\], lses \[2,1,3,4\]/,
  );
  assert.throws(() => combineAttention(zeros([2, 3, 4]), zeros([2, 3])), /outs are/);
  assert.throws(() => combineAttention(zeros([0, 1, 3, 4, 8]), zeros([0, 1, 4, 3])), /N ≥ 1/);
  assert.throws(
    () => combineAttention(zeros([2, 1, 3, 4, 8], { dtype: "i32" }), zeros([2, 1, 4, 3])),
    /takes floats, got i32/,
  );
});
