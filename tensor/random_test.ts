import assert from "node:assert/strict";
import { grad } from "../mod.ts";
import { tensor } from "./create.ts";
import { type DType, dtypes, roundTo } from "./dtype.ts";
import { erf, mul } from "./elementwise.ts";
import { DTypeError, IndexError, ShapeError, ValueError } from "./errors.ts";
import { take } from "./gather.ts";
import { normalOf } from "./normal.ts";
import { philox4x32 } from "./philox.ts";
import { bernoulli, dropout, foldIn, key, randint, randn, split, uniform } from "./random.ts";
import { sum } from "./reduce.ts";
import { cpu } from "./cpu.ts";
import type { Tensor } from "./tensor.ts";

const hex = (words: Uint32Array) => [...words].map((w) => w.toString(16).padStart(8, "0")).join(" ");

/** The largest distance between the samples' distribution and F (Kolmogorov and Smirnov). */
function distance(samples: ArrayLike<number>, F: (x: number[]) => ArrayLike<number>): number {
  const sorted = Array.from(samples).sort((a, b) => a - b), n = sorted.length, expected = F(sorted);
  let worst = 0;
  for (let i = 0; i < n; i++) {
    worst = Math.max(worst, Math.abs(expected[i] - i / n), Math.abs(expected[i] - (i + 1) / n));
  }
  return worst;
}

/** The normal distribution, in f64. */
function normal(z: number[]): number[] {
  const halves = tensor(z.map((v) => v * Math.SQRT1_2), { dtype: "f64", backend: cpu() });
  return Array.from(erf(halves).dataSync(), (v) => 0.5 * (1 + v));
}

/** 1.95/√n is passed by chance once in 1000 draws; the keys are fixed, so a test passes always or never. */
const bound = (n: number) => 1.95 / Math.sqrt(n);

function correlation(a: ArrayLike<number>, b: ArrayLike<number>): number {
  const n = a.length;
  let ab = 0, aa = 0, bb = 0;
  for (let i = 0; i < n; i++) {
    ab += a[i] * b[i];
    aa += a[i] * a[i];
    bb += b[i] * b[i];
  }
  return ab / Math.sqrt(aa * bb);
}

Deno.test("key() holds seeds to 53 bits, bigints to 64, and refuses the rest", async () => {
  assert.deepEqual(await key(0).array(), [0, 0]);
  assert.deepEqual(await key(2 ** 53 - 1).array(), [0xffffffff, 0x1fffff]);
  assert.deepEqual(await key(0x123456789abcdef0n).array(), [0x9abcdef0, 0x12345678]);
  for (const seed of [-1, 0.5, NaN, 2 ** 53, -1n, 2n ** 64n]) assert.throws(() => key(seed), ValueError);
});

Deno.test("the same key gives the same numbers, and a draw's start does not depend on its length", async () => {
  const a = await randn(key(3), [4, 5]).data(), b = await randn(key(3), [4, 5]).data();
  assert.deepEqual(a, b);
  assert.deepEqual(await randn(key(3), [7]).data(), a.slice(0, 7));
  assert.notDeepEqual(await randn(key(4), [4, 5]).data(), a);
  assert.equal((await randn(key(3), [0, 5]).data()).length, 0);
});

Deno.test("randn() keeps its numbers: a change would change every seeded run", async () => {
  const bits = new Uint32Array((await randn(key(0), [4]).data()).buffer);
  const words = philox4x32(0, 0, 0, 0, 0, 0);
  assert.deepEqual([...bits], [...new Uint32Array(Float32Array.from(words, (word) => normalOf(word)).buffer)]);
  assert.equal(hex(bits), "3e82fa50 be9bb4ef bf385c80 bfa01e25");
});

Deno.test("randn() is distributed normally", async () => {
  const n = 1 << 16, x = await randn(key(11), [n]).data();
  assert(distance(x, normal) < bound(n));
  let square = 0, fourth = 0;
  for (const z of x) {
    square += z * z / n;
    fourth += z ** 4 / n;
  }
  assert(Math.abs(square - 1) < 4 * Math.sqrt(2 / n));
  assert(Math.abs(fourth - 3) < 4 * Math.sqrt(96 / n));
});

Deno.test("uniform() is even over its bounds, in every float type, and never reaches 1", async () => {
  const n = 1 << 14;
  for (const dtype of ["f64", "f32", "f16", "bf16"] as const) {
    const x = await uniform(key(5), [n], { dtype, backend: cpu() } as { dtype: DType }).data();
    assert(x.every((v) => v >= 0 && v < 1), dtype);
    const coarse = dtype === "bf16" ? 2 ** -8 : dtype === "f16" ? 2 ** -11 : 0;
    assert(distance(x, (x) => x) < bound(n) + coarse, dtype);
    const rounded = x.slice();
    roundTo(dtype, rounded);
    assert.deepEqual(rounded, x, dtype);
  }
  const y = await uniform(key(5), [n], { min: -3, max: 5 }).data();
  assert(distance(y, (x) => x.map((v) => (v + 3) / 8)) < bound(n));
  assert.deepEqual([...await uniform(key(5), [n], { dtype: "f64" }).data()], [...await uniform(key(5), [n]).data()]);
});

Deno.test("randint() is even over whole ranges, the widest too, and says what it can reach", async () => {
  const n = 1 << 14, counts: number[] = new Array(7).fill(0);
  for (const v of await randint(key(8), [n], { min: -3, max: 4 }).data()) counts[v + 3]++;
  const chi = counts.reduce((s, c) => s + (c - n / 7) ** 2 / (n / 7), 0);
  assert(chi < 22.5, `χ² = ${chi}`); // 6 degrees of freedom, passed once in 1000
  const wide = await randint(key(8), [n], { min: -(2 ** 31), max: 2 ** 31 }).data();
  assert(distance(wide, (x) => x.map((v) => v / 2 ** 32 + 0.5)) < bound(n));
  assert.deepEqual([...await randint(key(1), [50], { min: 4, max: 5 }).data()], new Array(50).fill(4));
  assert.throws(() => take(tensor([1, 2, 3]), randint(key(1), [5], { max: 4 })), IndexError);
  for (const bad of [{ max: 0 }, { min: 2, max: 2 }, { max: 1.5 }, { max: NaN }, { max: 2 ** 31 + 1 }]) {
    assert.throws(() => randint(key(1), [5], bad), ValueError);
  }
});

Deno.test("bernoulli() is true with its probability, never with 0 and always with 1", async () => {
  const n = 1 << 16;
  for (const p of [0, 0.1, 0.5, 0.9, 1]) {
    const hits = Array.from(await bernoulli(key(2), [n], { p }).data()).reduce((s, v) => s + v, 0);
    assert(Math.abs(hits - p * n) <= 4 * Math.sqrt(p * (1 - p) * n), `p = ${p}: ${hits}`);
  }
  for (const p of [-0.1, 1.1, NaN]) assert.throws(() => bernoulli(key(2), [n], { p }), ValueError);
});

Deno.test("split() makes keys whose numbers do not correlate, with each other or with their parent's", async () => {
  const n = 1 << 14, parent = key(42);
  const keys = [parent, ...split(parent), ...split(parent, 5).slice(2), ...split(split(parent)[0])];
  const draws: ArrayLike<number>[] = [];
  for (const k of keys) draws.push(await randn(k, [n]).data());
  for (let i = 0; i < draws.length; i++) {
    for (let j = 0; j < i; j++) assert(Math.abs(correlation(draws[i], draws[j])) < 4 / Math.sqrt(n), `${i} and ${j}`);
  }
  assert.deepEqual(await split(parent, 5)[1].array(), await split(parent)[1].array());
  assert.deepEqual(split(parent, 3).map((k) => k.shape), [[2], [2], [2]]);
  for (const count of [0, -1, 1.5, NaN]) assert.throws(() => split(parent, count), ValueError);
});

Deno.test("foldIn() makes streams that do not correlate, from numbers and from tensors alike", async () => {
  const n = 1 << 12, parent = key(42), draws: ArrayLike<number>[] = [];
  for (let i = 0; i < 12; i++) draws.push(await randn(foldIn(parent, i), [n]).data());
  for (let i = 0; i < draws.length; i++) {
    for (let j = 0; j < i; j++) {
      assert(Math.abs(correlation(draws[i], draws[j])) < 4 / Math.sqrt(n), `${i} and ${j}`);
      const shifted = Array.from(draws[j]).slice(1);
      assert(
        Math.abs(correlation(Array.from(draws[i]).slice(0, -1), shifted)) < 4 / Math.sqrt(n),
        `${i} and ${j} shifted`,
      );
    }
  }
  assert.deepEqual(await foldIn(parent, 9).array(), await foldIn(parent, tensor(9, { dtype: "i32" })).array());
  assert.deepEqual(await foldIn(parent, -1).array(), await foldIn(parent, 2 ** 32 - 1).array());
  for (const data of [0.5, NaN, 2 ** 32, -(2 ** 31) - 1]) assert.throws(() => foldIn(parent, data), ValueError);
  assert.throws(() => foldIn(parent, tensor([1, 2], { dtype: "i32" })), ShapeError);
  assert.throws(() => foldIn(parent, tensor(1)), DTypeError);
});

Deno.test("random functions refuse what is no key, no shape and no float type", () => {
  const calls: ((k: Tensor) => unknown)[] = [
    (k) => split(k),
    (k) => foldIn(k, 1),
    (k) => uniform(k, [2]),
    (k) => randn(k, [2]),
    (k) => randint(k, [2], { max: 3 }),
    (k) => bernoulli(k, [2]),
    (k) => dropout(tensor([1, 2]), { p: 0.5, key: k }),
  ];
  for (const call of calls) {
    assert.throws(() => call(tensor([1, 2])), DTypeError);
    assert.throws(() => call(tensor([1, 2, 3], { dtype: "u32" })), ShapeError);
  }
  assert.throws(() => randn(key(1), [-1]), ShapeError);
  assert.throws(() => randn(key(1), [2], { dtype: "i32" }), DTypeError);
  assert.throws(() => uniform(key(1), [2], { dtype: "bool" }), DTypeError);
  for (const bounds of [{ min: 1 }, { max: NaN }, { max: Infinity }, { min: -3e38, max: 3e38 }]) {
    assert.throws(() => uniform(key(1), [2], bounds), ValueError);
  }
});

Deno.test("dropout() scales what bernoulli() leaves, and leaves x alone with p = 0", async () => {
  const x = randn(key(1), [37, 11]), k = key(2), p = 0.3;
  const mask = await bernoulli(k, [37, 11], { p }).data(), from = await x.data();
  const y = await dropout(x, { p, key: k }).data();
  y.forEach((v, i) => assert(mask[i] ? v === 0 : Math.abs(v - from[i] / 0.7) <= 1e-6 * Math.abs(v)));
  assert.equal(dropout(x, { p: 0, key: k }), x);
  for (const bad of [-0.1, 1, NaN]) assert.throws(() => dropout(x, { p: bad, key: k }), ValueError);
});

Deno.test("dropout() has the gradient of its mask, and differentiates again", async () => {
  const x = randn(key(1), [64], { dtype: "f64" }), k = key(2), p = 0.5;
  const mask = await bernoulli(k, [64], { p }).data();
  const f = (v: Tensor) => sum(dropout(mul(v, v), { p, key: k }));
  const expected = (await x.data()).map((v, i) => mask[i] ? 0 : 4 * v);
  assert.deepEqual(Array.from(await grad(f)(x).data(), (v) => v + 0), Array.from(expected, (v) => v + 0));
  const second = grad((v: Tensor) => sum(grad(f)(v)))(x);
  assert.deepEqual([...await second.data()], [...mask.map((m) => m ? 0 : 4)]);
  assert.equal(dtypes[second.dtype].kind, "float");
});
