import assert from "node:assert/strict";
import {
  type AttentionCache,
  type AttentionOptions,
  type CacheAttentionOptions,
  cast,
  concat,
  cpu,
  flashAttention,
  flashAttentionWithKvCache,
  flashAttentionWithLse,
  full,
  grad,
  key,
  permute,
  randn,
  reshape,
  rotaryEmbedding,
  slice,
  split,
  sum,
  take,
  type Tensor,
  tensor,
  zeros,
} from "../mod.ts";
import { assertClose, integer, property } from "../testing/mod.ts";

const f64 = { dtype: "f64" } as const;
const i32 = (values: number[], shape = [values.length]) => tensor(values, { dtype: "i32", shape, backend: cpu() });
const seeds = integer(0, 2 ** 20);

/** Random q, k, v and what goes with them: T positions, all of them known. */
function sequence(seed: number, [B, T, H, Hk, D, Dv]: number[]) {
  const [a, b, c, d] = split(key(seed, { backend: cpu() }), 4);
  return {
    q: randn(a, [B, T, H, D], f64),
    k: randn(b, [B, T, Hk, D], f64),
    v: randn(c, [B, T, Hk, Dv], f64),
    alibiSlopes: tensor(Array.from({ length: H }, (_, h) => (h + 1) / 8), f64),
    sinks: randn(d, [H], f64),
  };
}

const rows = (x: Tensor, from: number, to: number) => slice(x, [0, from], [x.shape[0], to]);
const emptyCache = (B: number, S: number, Hk: number, D: number, Dv: number): AttentionCache => ({
  k: full([B, S, Hk, D], NaN, f64),
  v: full([B, S, Hk, Dv], NaN, f64),
});

property(
  "flashAttentionWithKvCache() step by step is the full causal forward",
  [seeds, integer(0, 31)],
  async (seed, bits) => {
    const [B, T, H, Hk, D, Dv] = [1 + seed % 2, 6, 4, seed % 3 === 0 ? 4 : 2, 4, 3 + seed % 2];
    const { q, k, v, alibiSlopes, sinks } = sequence(seed, [B, T, H, Hk, D, Dv]);
    const options: AttentionOptions = {
      causal: true,
      ...(bits & 1 && { window: [2, -1] }),
      ...(bits & 2 && { softcap: 2 }),
      ...(bits & 4 && { alibiSlopes }),
      ...(bits & 8 && { sinks }),
      ...(bits & 16 && { softmaxScale: 0.7 }),
    };
    const whole = flashAttentionWithLse(q, k, v, options);
    let cache = emptyCache(B, T + 2, Hk, D, Dv);
    for (let at = 0; at < T;) {
      const to = Math.min(T, at + 1 + (seed >> at) % 3);
      const step = { k: rows(k, at, to), v: rows(v, at, to), cacheSeqlens: at, numSplits: seed % 3 };
      const result = flashAttentionWithKvCache(rows(q, at, to), cache, { ...options, ...step });
      await assertClose(result.out, rows(whole.out, at, to));
      await assertClose(result.lse, slice(whole.lse, [0, 0, at], [B, H, to]));
      cache = result.cache;
      at = to;
    }
    await assertClose(rows(cache.k, 0, T), k);
    await assertClose(rows(cache.v, T, T + 2), NaN); // what lies behind is not touched
  },
  { runs: 60 },
);

property(
  "flashAttentionWithKvCache() takes each row's own length, cache row and left padding",
  [seeds],
  async (seed) => {
    const [B, S, H, Hk, D] = [3, 9, 2, 1, 4], { q, k, v } = sequence(seed, [B, S, H, Hk, D, D]);
    const lengths = [seed % 8, (seed >> 3) % 8, (seed >> 6) % 8], pads = lengths.map((n) => (seed >> 9) % (n + 1));
    const order = [[0, 1, 2], [2, 0, 1], [4, 1, 3]][seed % 3];
    // Row b's positions 0 … lengths[b] are in cache row order[b]; all others hold NaN.
    const place = (x: Tensor) => {
      const cacheRows = Array.from({ length: 5 }, (_, r) => {
        const b = order.indexOf(r), known = b < 0 ? 0 : lengths[b];
        return concat(
          [slice(x, [Math.max(b, 0)], [Math.max(b, 0) + 1, known]), full([1, S - known, Hk, D], NaN, f64)],
          { axis: 1 },
        );
      });
      return concat(cacheRows);
    };
    const at = (x: Tensor) => concat(lengths.map((n, b) => slice(x, [b, n], [b + 1, n + 1])));
    const { out, lse } = flashAttentionWithKvCache(at(q), { k: place(k), v: place(v) }, {
      k: at(k),
      v: at(v),
      causal: true,
      cacheSeqlens: i32(lengths),
      cacheBatchIdx: i32(order),
      cacheLeftpad: i32(pads),
    });
    for (const [b, n] of lengths.entries()) {
      const own = (x: Tensor, from: number) => slice(x, [b, from], [b + 1, n + 1]);
      const expected = flashAttentionWithLse(own(q, n), own(k, pads[b]), own(v, pads[b]));
      await assertClose(slice(out, [b], [b + 1]), expected.out);
      await assertClose(slice(lse, [b], [b + 1]), expected.lse);
    }
  },
  { runs: 60 },
);

property("a paged cache is a dense one, whatever the page size", [seeds, integer(1, 7)], async (seed, page) => {
  const [B, T, H, Hk, D, Dv] = [2, 10, 4, 2, 3, 5], { q, k, v } = sequence(seed, [B, T, H, Hk, D, Dv]);
  const pages = Math.ceil(T / page), blocks = B * pages + 1;
  // Blocks in a mixed order, one of them nobody's.
  const order = Array.from({ length: blocks }, (_, n) => n).sort((a, b) => Math.sin(seed + a) - Math.sin(seed + b));
  const table = i32(order.slice(0, B * pages), [B, pages]), known = 1 + seed % (T - 2), to = Math.min(T, known + 2);
  const paged = { k: full([blocks, page, Hk, D], NaN, f64), v: full([blocks, page, Hk, Dv], NaN, f64) };
  const dense = emptyCache(B, T, Hk, D, Dv);
  const run = (cache: AttentionCache, more: CacheAttentionOptions) => {
    const first = flashAttentionWithKvCache(rows(q, 0, known), cache, {
      ...more,
      k: rows(k, 0, known),
      v: rows(v, 0, known),
      cacheSeqlens: 0,
      causal: true,
    });
    return flashAttentionWithKvCache(rows(q, known, to), first.cache, {
      ...more,
      k: rows(k, known, to),
      v: rows(v, known, to),
      cacheSeqlens: known,
      causal: true,
    });
  };
  const a = run(paged, { blockTable: table }), b = run(dense, {});
  await assertClose(a.out, b.out);
  await assertClose(a.lse, b.lse);
  const gathered = reshape(take(a.cache.k, table), [B, pages * page, Hk, D]);
  await assertClose(rows(gathered, 0, to), rows(k, 0, to));
}, { runs: 60 });

property("rotary embedding in the call is rotary embedding before it", [seeds, integer(0, 3)], async (seed, bits) => {
  const [B, T, H, Hk, D] = [2, 7, 2, 2, 6], { q, k, v } = sequence(seed, [B, T, H, Hk, D, D]);
  const interleaved = (bits & 1) > 0, causal = (bits & 2) > 0, R = 1 + seed % 3, known = seed % 5;
  const angles = randn(key(seed + 1, { backend: cpu() }), [T, R], f64);
  const cos = tensor(angles.dataSync().map(Math.cos), { shape: [T, R], ...f64 });
  const sin = tensor(angles.dataSync().map(Math.sin), { shape: [T, R], ...f64 });
  const turned = (x: Tensor, positions: number[]) =>
    rotaryEmbedding(x, cos, sin, { interleaved, positions: i32(positions) });
  const all = Array.from({ length: T }, (_, i) => i), steps = all.slice(known, known + 2), count = steps.length;
  const old = turned(rows(k, 0, known), all.slice(0, known)), room = full([B, T - known, Hk, D], NaN, f64);
  const cache = { k: concat([old, room], { axis: 1 }), v: concat([rows(v, 0, known), room], { axis: 1 }) };
  const { out } = flashAttentionWithKvCache(rows(q, known, known + count), cache, {
    k: rows(k, known, known + count),
    v: rows(v, known, known + count),
    rotary: { cos, sin, interleaved },
    cacheSeqlens: known,
    causal,
  });
  const queries = turned(rows(q, known, known + count), causal ? steps : steps.map(() => known));
  const expected = flashAttention(
    queries,
    turned(rows(k, 0, known + count), all.slice(0, known + count)),
    rows(v, 0, known + count),
    { causal },
  );
  await assertClose(out, expected);
}, { runs: 40 });

Deno.test("flashAttentionWithKvCache() without new keys reads all of the cache and gives the same handles back", async () => {
  const { q, k, v } = sequence(3, [2, 5, 2, 1, 4, 4]), cache = { k, v };
  const { out, cache: same } = flashAttentionWithKvCache(rows(q, 0, 1), cache);
  assert.equal(same, cache);
  await assertClose(out, flashAttention(rows(q, 0, 1), k, v));
  const part = flashAttentionWithKvCache(rows(q, 0, 1), cache, { cacheSeqlens: 3 });
  await assertClose(part.out, flashAttention(rows(q, 0, 1), rows(k, 0, 3), rows(v, 0, 3)));
  const none = flashAttentionWithKvCache(rows(q, 0, 1), cache, { cacheSeqlens: 0 });
  await assertClose(none.out, 0);
  await assertClose(none.lse, -Infinity);
});

Deno.test("flashAttentionWithKvCache() takes mask, bias and dropout over the positions of the cache", async () => {
  const [B, T, H] = [2, 6, 2], { q, k, v } = sequence(4, [B, T, H, 2, 4, 4]);
  const mask = tensor(Array.from({ length: T }, (_, j) => j !== 1)), bias = randn(key(9), [H, 1, T], f64);
  const dropout = { p: 0.4, key: key(8) }, step = rows(q, T - 1, T);
  const { out } = flashAttentionWithKvCache(step, { k, v }, { mask, bias, dropout, causal: true });
  await assertClose(out, flashAttention(step, k, v, { mask, bias, dropout }));
});

Deno.test("flashAttentionWithKvCache() keeps 16-bit caches under f32 queries", async () => {
  const [a, b, c] = split(key(2), 3);
  const q = randn(a, [1, 1, 4, 8]),
    k = randn(b, [1, 6, 2, 8], { dtype: "bf16" }),
    v = randn(c, [1, 6, 2, 8], { dtype: "bf16" });
  const expected = flashAttention(q, cast(k, "f32"), cast(v, "f32"));
  const last = [k, v].map((x) => cast(rows(x, 5, 6), "f32"));
  const { out, cache } = flashAttentionWithKvCache(q, { k, v }, { k: last[0], v: last[1], cacheSeqlens: 5 });
  assert.deepEqual([out.dtype, cache.k.dtype], ["f32", "bf16"]);
  await assertClose(out, expected);
});

Deno.test("flashAttentionWithKvCache() consumes the cache that it writes", () => {
  const { q, k, v } = sequence(5, [1, 3, 2, 2, 4, 4]);
  const cache = emptyCache(1, 4, 2, 4, 4);
  const { cache: next } = flashAttentionWithKvCache(q, cache, { k, v, cacheSeqlens: 0 });
  assert.throws(() => cache.k.dataSync(), /was consumed by cacheAppend/);
  assert.ok(!next.k.disposed && !next.v.disposed);
});

Deno.test("flashAttentionWithKvCache() keeps keys and values apart that start as one tensor", async () => {
  const one = zeros([1, 2, 1, 1], { backend: cpu() }), q = zeros([1, 1, 1, 1], { backend: cpu() });
  const [k, v] = [3, 5].map((n) => full([1, 1, 1, 1], n, { backend: cpu() }));
  const { cache, out } = flashAttentionWithKvCache(q, { k: one, v: one }, { k, v, cacheSeqlens: 0 });
  assert.deepEqual(await Promise.all([cache.k, cache.v, out].map((x) => x.array())), [[[[[3]], [[0]]]], [[[[5]], [[
    0,
  ]]]], [
    [[[5]]],
  ]]);
  assert.ok(one.disposed);
});

Deno.test("flashAttentionWithKvCache() writes nothing when the new keys do not fit, and names both lengths", () => {
  const { q, k, v } = sequence(6, [2, 3, 2, 2, 4, 4]);
  const cache = { k: zeros([2, 4, 2, 4], f64), v: zeros([2, 4, 2, 4], f64) };
  const append = (cacheSeqlens: number | Tensor) => () => flashAttentionWithKvCache(q, cache, { k, v, cacheSeqlens });
  const message =
    /\[flashAttentionWithKvCache\] the cache is too short: it holds 4 positions, cacheSeqlens 2 \+ 3 new is 5/;
  assert.throws(append(2), message);
  assert.throws(append(i32([0, 2])), message);
  const blockTable = i32([0, 1], [2, 1]);
  assert.throws(() => flashAttentionWithKvCache(q, cache, { k, v, cacheSeqlens: 2, blockTable }), message);
  assert.ok(cache.k.dataSync().every((x) => x === 0) && cache.v.dataSync().every((x) => x === 0));
});

Deno.test("flashAttentionWithKvCache() has no derivative and says so", () => {
  const { q, k, v } = sequence(7, [1, 3, 2, 2, 4, 4]);
  const f = (q: Tensor) => sum(flashAttentionWithKvCache(q, { k, v }).out);
  assert.throws(() => grad(f)(q), /\[flashAttentionWithKvCache\] has no derivative: use flashAttention/);
});

const refusals: [string, RegExp, (q: Tensor, cache: AttentionCache, k: Tensor) => unknown][] = [
  [
    "k without v",
    /new keys and values come together/,
    (q, c, k) => flashAttentionWithKvCache(q, c, { k, cacheSeqlens: 0 }),
  ],
  ["new keys without a length", /need cacheSeqlens/, (q, c, k) => flashAttentionWithKvCache(q, c, { k, v: k })],
  [
    "a length of NaN",
    /cacheSeqlens is a whole number of at least 0, got NaN/,
    (q, c) => flashAttentionWithKvCache(q, c, { cacheSeqlens: NaN }),
  ],
  [
    "a length below 0",
    /cacheSeqlens is at least 0, got -1/,
    (q, c) => flashAttentionWithKvCache(q, c, { cacheSeqlens: i32([0, -1]) }),
  ],
  [
    "lengths of another shape",
    /cacheSeqlens \[3\] is not \[B\] = \[2\]/,
    (q, c) => flashAttentionWithKvCache(q, c, { cacheSeqlens: i32([0, 0, 0]) }),
  ],
  [
    "lengths that are no i32",
    /cacheSeqlens is f64/,
    (q, c) => flashAttentionWithKvCache(q, c, { cacheSeqlens: zeros([2], f64) }),
  ],
  [
    "a cache row beyond the cache",
    /cacheBatchIdx goes from 0 to 1, got 2/,
    (q, c) => flashAttentionWithKvCache(q, c, { cacheBatchIdx: i32([0, 2]) }),
  ],
  [
    "two rows written to one",
    /two batch rows would write to cache row 1/,
    (q, c, k) => flashAttentionWithKvCache(q, c, { k, v: k, cacheSeqlens: 0, cacheBatchIdx: i32([1, 1]) }),
  ],
  [
    "padding beyond the cache",
    /cacheLeftpad goes from 0 to 4, got 5/,
    (q, c) => flashAttentionWithKvCache(q, c, { cacheLeftpad: i32([0, 5]) }),
  ],
  [
    "a block that does not exist",
    /blockTable\[1,0\] is 7, the cache has blocks 0 to 1/,
    (q, c) => flashAttentionWithKvCache(q, c, { blockTable: i32([0, 7], [2, 1]), cacheSeqlens: 1 }),
  ],
  [
    "a table of another batch",
    /blockTable \[1,2\] has not one row for each of 2/,
    (q, c) => flashAttentionWithKvCache(q, c, { blockTable: i32([0, 1], [1, 2]) }),
  ],
  [
    "a table and cache rows",
    /cacheBatchIdx belongs to a dense cache/,
    (q, c) => flashAttentionWithKvCache(q, c, { blockTable: i32([0, 1], [2, 1]), cacheBatchIdx: i32([0, 1]) }),
  ],
  [
    "another batch than the cache's",
    /has 2 rows for 1 batch rows: give cacheBatchIdx/,
    (q, c) => flashAttentionWithKvCache(slice(q, [0], [1]), c),
  ],
  [
    "new keys of other heads",
    /k \[2,1,1,4\] does not fit cache.k \[2,4,2,4\]/,
    (q, c) =>
      flashAttentionWithKvCache(q, c, { k: zeros([2, 1, 1, 4], f64), v: zeros([2, 1, 2, 4], f64), cacheSeqlens: 0 }),
  ],
  [
    "a cache with other heads",
    /cache.k \[2,4,2,4\] and cache.v \[2,4,1,4\] differ/,
    (q, c) => flashAttentionWithKvCache(q, { k: c.k, v: zeros([2, 4, 1, 4], f64) }),
  ],
  [
    "tables wider than a head",
    /not both \[positions, R\/2\] with R up to the head size 4/,
    (q, c) => flashAttentionWithKvCache(q, c, { rotary: { cos: zeros([9, 3]), sin: zeros([9, 3]) } }),
  ],
  [
    "tables that end too soon",
    /rotary has 3 positions, the call reaches 4/,
    (q, c, k) =>
      flashAttentionWithKvCache(q, c, { k, v: k, cacheSeqlens: 3, rotary: { cos: zeros([3, 2]), sin: zeros([3, 2]) } }),
  ],
  [
    "splits below 0",
    /numSplits is a whole number of at least 0, got -1/,
    (q, c) => flashAttentionWithKvCache(q, c, { numSplits: -1 }),
  ],
  ["softcap below 0", /softcap is finite and at least 0/, (q, c) => flashAttentionWithKvCache(q, c, { softcap: -1 })],
  [
    "queries of three axes",
    /q has 3 axes, expected 4/,
    (q, c) => flashAttentionWithKvCache(permute(reshape(q, [2, 2, 4]), [0, 1, 2]), c),
  ],
];

for (const [what, message, call] of refusals) {
  Deno.test(`flashAttentionWithKvCache() refuses ${what} and leaves the cache alone`, () => {
    const { q, k, v } = sequence(8, [2, 4, 2, 2, 4, 4]), cache = { k, v };
    assert.throws(() => call(rows(q, 0, 1), cache, rows(k, 0, 1)), message);
    assert.ok(!k.disposed && !v.disposed);
  });
}
