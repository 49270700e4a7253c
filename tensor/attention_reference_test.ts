import assert from "node:assert/strict";
import { flashAttentionWithLse, full, key, randn, slice, split, type Tensor, tensor, vjp } from "../mod.ts";
import { assertClose, integer, property, tuple } from "../testing/mod.ts";
import { attend, attendBackward, type Problem } from "./attention_reference.ts";
import { type NdArray, ndarray } from "./op.ts";

function numbers(shape: number[], seed: number): NdArray {
  const x = ndarray({ shape, dtype: "f64" });
  x.data.set(randn(key(seed), shape, { dtype: "f64" }).dataSync());
  return x;
}

/** One sequence whose keys lie backwards in k and v, behind one row of padding. */
function backwards(sq: number, sk: number, D: number, window: readonly [number, number]): Problem {
  const sizes = { batch: 1, seqlenQ: sq, seqlenK: sk, heads: 1, kvHeads: 1, headDim: D, valueDim: D };
  const sequence = { b: 0, sq, sk, first: 1, qRow: 0, keyRow: (j: number) => sk - 1 - j, lseAt: () => 0 };
  return {
    params: { scale: 0.5, window, softcap: 0, dropout: 0, optional: [] },
    sizes,
    sequences: [sequence],
    q: numbers([1, sq, 1, D], 1),
    k: numbers([1, sk, 1, D], 2),
    v: numbers([1, sk, 1, D], 3),
    optional: {},
  };
}

property("attend() is the definition, for any place of the keys", [
  tuple(integer(1, 5), integer(1, 9), integer(1, 4)),
  integer(-1, 4),
  integer(-1, 4),
], ([sq, sk, D], left, right) => {
  const problem = backwards(sq, sk, D, [left, right]), { q, k, v } = problem;
  const out = ndarray({ shape: [1, sq, 1, D], dtype: "f64" }), lse = ndarray({ shape: [1, 1, sq], dtype: "f64" });
  attend(problem, out, lse);
  for (let i = 0; i < sq; i++) {
    const weights = Array.from({ length: sk }, (_, j) => {
      const away = i + sk - sq - j, row = sk - 1 - j;
      if (j < 1 || (left >= 0 && away > left) || (right >= 0 && -away > right)) return 0;
      let dot = 0;
      for (let d = 0; d < D; d++) dot += q.data[i * D + d] * k.data[row * D + d];
      return Math.exp(0.5 * dot);
    });
    const total = weights.reduce((a, b) => a + b, 0);
    assertClose(lse.data[i], Math.log(total));
    for (let d = 0; d < D; d++) {
      const mixed = weights.reduce((sum, w, j) => sum + w * v.data[(sk - 1 - j) * D + d], 0);
      assertClose(out.data[i * D + d], total === 0 ? 0 : mixed / total);
    }
  }
});

Deno.test("attendBackward() writes a key's gradient where the key lies, and none into padding", () => {
  const problem = backwards(2, 4, 3, [-1, -1]);
  const like = (x: NdArray) => ndarray({ shape: x.shape, dtype: "f64" });
  const out = like(problem.q), lse = ndarray({ shape: [1, 1, 2], dtype: "f64" });
  attend(problem, out, lse);
  const dOut = numbers([1, 2, 1, 3], 4), gradients = { dq: like(problem.q), dk: like(problem.k), dv: like(problem.v) };
  attendBackward(problem, { dOut, dLse: like(lse), out, lse }, gradients);
  // Every output is a mean of values, so the values' gradients sum up to that of out.
  for (let d = 0; d < 3; d++) {
    let sum = 0;
    for (let row = 0; row < 4; row++) sum += gradients.dv.data[row * 3 + d];
    assertClose(sum, dOut.data[d] + dOut.data[3 + d]);
  }
  // Key 0 is padding and lies in the last row.
  for (const { data } of [gradients.dk, gradients.dv]) {
    assert.ok(data.subarray(9).every((x) => x === 0));
    assert.ok(data.subarray(0, 9).every((x) => x !== 0));
  }
});

Deno.test("keys that no row can see are never read: NaN in them changes nothing", async () => {
  const [B, S, H, D] = [1, 6, 2, 3], f64 = { dtype: "f64" } as const;
  const [a, b, c, d] = split(key(3), 4), q = slice(randn(a, [B, S, H, D], f64), [0, 0], [1, 2]);
  const [k, v] = [b, c].map((seed) => randn(seed, [B, S, H, D], f64)), dOut = randn(d, q.shape, f64);
  const options = { window: [1, 0] } as const; // two rows and one to their left: keys 0 to 2 are out of sight
  const spoilt = (x: Tensor) =>
    tensor(x.dataSync().map((value, i) => i < 3 * H * D ? NaN : value), { shape: x.shape, ...f64 });
  const results = [[k, v], [spoilt(k), spoilt(v)]].map(([k, v]) => {
    const [{ out, lse }, pullback] = vjp(
      (q: Tensor, k: Tensor, v: Tensor) => flashAttentionWithLse(q, k, v, options),
      q,
      k,
      v,
    );
    return [out, lse, ...pullback({ out: dOut, lse: full(lse.shape, 1, f64) })];
  });
  for (const [i, x] of results[0].entries()) await assertClose(results[1][i], x, { rtol: 0, atol: 0 });
});
