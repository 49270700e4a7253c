import assert from "node:assert/strict";
import {
  cpu,
  cuSeqlensFromMask,
  cuSeqlensFromPositionIds,
  flashAttention,
  flashAttentionVarlen,
  grad,
  key,
  mul,
  padInput,
  randn,
  reshape,
  sum,
  type Tensor,
  tensor,
  unpadInput,
  where,
  zeros,
} from "../mod.ts";
import { arbTensor, assertClose, integer, property, tuple } from "../testing/mod.ts";

const masks = tuple(integer(0, 4), integer(0, 6)).chain(([B, S]) =>
  arbTensor({ shape: [B, S], dtype: "bool", backend: cpu() })
);

property(
  "padInput() of unpadInput() is the input with its padding at 0",
  [masks, integer(0, 99)],
  async (mask, seed) => {
    const [B, S] = mask.shape, x = randn(key(seed, { backend: cpu() }), [B, S, 2, 3]);
    const { x: rows, indices, cuSeqlens, maxSeqlen } = unpadInput(x, mask);
    const kept = Array.from(mask.dataSync()),
      counts = Array.from({ length: B }, (_, b) => kept.slice(b * S, (b + 1) * S).reduce((a, n) => a + n, 0));
    assert.deepEqual(rows.shape, [counts.reduce((a, n) => a + n, 0), 2, 3]);
    assert.equal(maxSeqlen, Math.max(0, ...counts));
    assert.deepEqual([...cuSeqlens.dataSync()], counts.reduce((starts, n) => [...starts, starts.at(-1)! + n], [0]));
    const back = padInput(rows, indices, B, S);
    await assertClose(back, where(reshape(mask, [B, S, 1, 1]), x, 0), { rtol: 0, atol: 0 });
  },
);

property("packing from a host array is packing from the tensor", [masks], async (mask) => {
  const host = await mask.array();
  if (mask.size === 0) return;
  const a = cuSeqlensFromMask(mask), b = cuSeqlensFromMask(host);
  assert.deepEqual(a.cuSeqlens.dataSync(), b.cuSeqlens.dataSync());
  assert.equal(a.maxSeqlen, b.maxSeqlen);
});

property(
  "attention over packed sequences is attention over padded ones, gradients included",
  [integer(0, 999)],
  async (seed) => {
    const [B, S, H, D] = [3, 6, 2, 4], x = randn(key(seed), [B, S, H, D], { dtype: "f64" });
    const lengths = [seed % 7, (seed >> 3) % 7, (seed >> 6) % 7];
    const host = lengths.map((n) => Array.from({ length: S }, (_, s) => s < n)), mask = tensor(host);
    const weights = where(reshape(mask, [B, S, 1, 1]), randn(key(seed + 1), [B, S, H, D], { dtype: "f64" }), 0);
    const packed = (x: Tensor) => {
      const { x: rows, indices, cuSeqlens, maxSeqlen } = unpadInput(x, host);
      const sizes = { cuSeqlensQ: cuSeqlens, cuSeqlensK: cuSeqlens, maxSeqlenQ: maxSeqlen, maxSeqlenK: maxSeqlen };
      return sum(
        mul(weights, padInput(flashAttentionVarlen(rows, rows, rows, { causal: true, ...sizes }), indices, B, S)),
      );
    };
    const padded = (x: Tensor) =>
      sum(mul(weights, flashAttention(x, x, x, { mask: reshape(mask, [B, 1, 1, S]), causal: true })));
    await assertClose(packed(x), padded(x));
    await assertClose(grad(packed)(x), grad(padded)(x));
  },
  { runs: 30 },
);

Deno.test("cuSeqlensFromPositionIds() starts a sequence where the position id is 0", async () => {
  const { cuSeqlens, maxSeqlen } = cuSeqlensFromPositionIds(tensor([0, 1, 2, 0, 0, 1], { dtype: "i32" }));
  await assertClose(cuSeqlens, [0, 3, 4, 6]);
  assert.equal(maxSeqlen, 3);
  await assertClose(cuSeqlensFromPositionIds([[0, 1], [0, 1]]).cuSeqlens, [0, 2, 4]);
  const none = cuSeqlensFromPositionIds([]);
  await assertClose(none.cuSeqlens, [0]);
  assert.equal(none.maxSeqlen, 0);
});

Deno.test("the packing tools refuse what does not fit", () => {
  const mask = [[true, false], [true, true]];
  assert.throws(() => unpadInput(zeros([2, 3, 1]), mask), /\[unpadInput\] x is \[B,S,…\].*x \[2,3,1\], mask \[2,2\]/);
  assert.throws(() => cuSeqlensFromMask([true]), /\[cuSeqlensFromMask\] mask is \[B,S\].*got \[1\]/);
  assert.throws(() => cuSeqlensFromMask([[true], [true, false]]), /differ in length/);
  assert.throws(() => cuSeqlensFromPositionIds([1, 2]), /the first position id is 0, got 1/);
  const indices = tensor([0, 4], { dtype: "i32" });
  assert.throws(() => padInput(zeros([2, 3]), indices, 2, 2), /\[padInput\] index 4 is outside B·S = 4/);
  assert.throws(
    () => padInput(zeros([3, 3]), indices, 2, 2),
    /indices are \[T\] of x \[T,…\]: x \[3,3\], indices \[2\]/,
  );
  assert.throws(() => padInput(zeros([2, 3]), indices, NaN, 2), /whole numbers/);
});
