import assert from "node:assert/strict";
import {
  type AttentionOptions,
  cast,
  cpu,
  flashAttention,
  flashAttentionKvPacked,
  flashAttentionQkvPacked,
  flashAttentionV1,
  flashAttentionV2,
  flashAttentionVarlen,
  FlashtapeError,
  key,
  naiveAttention,
  tensor,
  zeros,
} from "../mod.ts";

const refusals: [string, RegExp, () => unknown][] = (() => {
  const x = (...shape: number[]) => zeros(shape, { backend: cpu() });
  const q = x(2, 3, 4, 8), k = x(2, 5, 2, 8), v = x(2, 5, 2, 6);
  const f = (options: AttentionOptions) => () => flashAttention(q, k, v, options);
  const i32 = (...values: number[]) => tensor(values, { dtype: "i32", backend: cpu() });
  const packed = { cuSeqlensQ: i32(0, 3), cuSeqlensK: i32(0, 3), maxSeqlenQ: 3, maxSeqlenK: 3 }, t = x(3, 1, 2);
  const seed = key(0, { backend: cpu() });
  return [
    ["three axes", /q has 3 axes, expected 4: \[3,4,8\]/, () => flashAttention(x(3, 4, 8), k, v)],
    ["another batch", /batch sizes differ: q \[2,3,4,8\], k \[1,5,2,8\]/, () => flashAttention(q, x(1, 5, 2, 8), v)],
    ["another head size", /head sizes of q and k differ.*\(8 ≠ 7\)/, () => flashAttention(q, x(2, 5, 2, 7), v)],
    ["other lengths of k and v", /lengths of k and v differ.*\(5 ≠ 4\)/, () => flashAttention(q, k, x(2, 4, 2, 6))],
    ["other heads of k and v", /heads of k and v differ.*\(2 ≠ 1\)/, () => flashAttention(q, k, x(2, 5, 1, 6))],
    ["heads that do not divide", /no multiple.*\(4 and 3\)/, () => flashAttention(q, x(2, 5, 3, 8), x(2, 5, 3, 6))],
    [
      "D above 256",
      /D goes from 1 to 256, got 257/,
      () => flashAttention(x(1, 1, 1, 257), x(1, 1, 1, 257), x(1, 1, 1, 1)),
    ],
    [
      "Dv above 256",
      /Dv goes from 1 to 256, got 300/,
      () => flashAttention(x(1, 1, 1, 2), x(1, 1, 1, 2), x(1, 1, 1, 300)),
    ],
    ["mixed dtypes", /k is f16, expected f32/, () => flashAttention(q, cast(k, "f16"), v)],
    ["integers", /q is i32/, () => flashAttention(cast(q, "i32"), k, v)],
    ["NaN as scale", /softmaxScale is a finite number, got NaN/, f({ softmaxScale: NaN })],
    ["an infinite scale", /softmaxScale is a finite number, got Infinity/, f({ softmaxScale: Infinity })],
    ["softcap below 0", /softcap is finite and at least 0.*got -1/, f({ softcap: -1 })],
    ["NaN as softcap", /softcap.*got NaN/, f({ softcap: NaN })],
    ["a window below −1", /window is \[left, right\].*got \[-2,0\]/, f({ window: [-2, 0] })],
    ["NaN in a window", /window.*got \[NaN,0\]/, f({ window: [NaN, 0] })],
    ["null as window", /window is \[left, right\].*got \[null\]/, f({ window: null! })],
    [
      "dropout without its key",
      /dropout of 0.1 needs a key: make one by key/,
      f({ dropout: { p: 0.1, key: undefined! } }),
    ],
    ["p = 1", /dropout's p is at least 0 and below 1, got 1/, f({ dropout: { p: 1, key: seed } })],
    ["p below 0", /dropout's p.*got -0.1/, f({ dropout: { p: -0.1, key: seed } })],
    ["NaN as p", /dropout's p.*got NaN/, f({ dropout: { p: NaN, key: seed } })],
    ["a key that is none", /dropout's key is u32 \[2\]/, f({ dropout: { p: 0.1, key: x(2) } })],
    ["a mask of floats", /mask is f32, expected bool/, f({ mask: x(3, 5) })],
    [
      "a mask of another shape",
      /mask \[3,4\] does not broadcast to \[B,H,Sq,Sk\] = \[2,4,3,5\]/,
      f({ mask: cast(x(3, 4), "bool") }),
    ],
    ["a bias of another shape", /bias \[2,1,1\] does not broadcast/, f({ bias: x(2, 1, 1) })],
    ["a bias of five axes", /bias \[1,1,1,1,1\] does not broadcast/, f({ bias: x(1, 1, 1, 1, 1) })],
    ["a bias of integers", /bias is i32/, f({ bias: cast(x(3, 5), "i32") })],
    [
      "slopes of another shape",
      /alibiSlopes \[3\] are neither \[H\] = \[4\] nor \[B,H\] = \[2,4\]/,
      f({ alibiSlopes: x(3) }),
    ],
    ["sinks of another shape", /sinks \[2\] are not \[H\] = \[4\]/, f({ sinks: x(2) })],
    ["16-bit sinks", /sinks is f16/, f({ sinks: cast(x(4), "f16") })],
    ["naive with the same checks", /\[naiveAttention\] softcap/, () => naiveAttention(q, k, v, { softcap: -1 })],
    ["V1 with the same checks", /\[flashAttentionV1\] softcap/, () => flashAttentionV1(q, k, v, { softcap: -1 })],
    ["blocks of nothing", /\[flashAttentionV2\] blockSize/, () => flashAttentionV2(q, k, v, { blockSize: 0 })],
    ["qkv with four parts", /qkv is \[B,S,3,H,D\].*\(4 ≠ 3\)/, () => flashAttentionQkvPacked(x(1, 2, 4, 1, 2))],
    ["kv with three parts", /kv is \[B,S,2,Hk,D\].*\(3 ≠ 2\)/, () => flashAttentionKvPacked(q, x(2, 5, 3, 2, 8))],
    ["packed rows with a batch axis", /q has 4 axes, expected 3/, () => flashAttentionVarlen(q, k, v, packed)],
    [
      "starts that fall",
      /cuSeqlensQ falls from 3 to 1/,
      () => flashAttentionVarlen(t, t, t, { ...packed, cuSeqlensQ: i32(0, 3, 1), cuSeqlensK: i32(0, 1, 3) }),
    ],
    [
      "starts beyond the rows",
      /cuSeqlensQ goes from 0 to at most the 3 packed rows, got 0 to 4/,
      () => flashAttentionVarlen(t, t, t, { ...packed, cuSeqlensQ: i32(0, 4) }),
    ],
    [
      "a sequence above its maximum",
      /sequence 0 of cuSeqlensK has 3 rows, the given maximum is 2/,
      () => flashAttentionVarlen(t, t, t, { ...packed, maxSeqlenK: 2 }),
    ],
    [
      "other numbers of sequences",
      /both \[sequences \+ 1\]: \[2\], \[3\]/,
      () => flashAttentionVarlen(t, t, t, { ...packed, cuSeqlensK: i32(0, 1, 3) }),
    ],
    [
      "starts that are no i32",
      /cuSeqlensQ is f32/,
      () => flashAttentionVarlen(t, t, t, { ...packed, cuSeqlensQ: x(2) }),
    ],
    [
      "NaN as a maximum",
      /maxSeqlenQ is a whole number/,
      () => flashAttentionVarlen(t, t, t, { ...packed, maxSeqlenQ: NaN }),
    ],
  ];
})();

for (const [what, message, call] of refusals) {
  Deno.test(`attention refuses ${what}`, () => {
    assert.throws(
      call,
      (error) =>
        error instanceof FlashtapeError && message.test(error.message) && error.message.startsWith(`[${error.op}] `),
    );
  });
}
