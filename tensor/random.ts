/**
 * Random numbers from keys. A function of a key has no state: the same key gives the same numbers, bit for bit, on every
 * backend, so a key is used once and new ones come from `split` and `foldIn`.
 *
 * Element i of a draw is word i mod 4 of Philox-4x32-10 at counter [⌊i/4⌋ low, ⌊i/4⌋ high, 0, stream], under the key.
 */
import type { Backend } from "./backend.ts";
import { type DType, isFloat } from "./dtype.ts";
import { DTypeError, ShapeError, show, ValueError } from "./errors.ts";
import { reshape, slice } from "./movement.ts";
import { normalOf, normalTable } from "./normal.ts";
import { dense, expectDType, type NdArray, type Op, run, type Spec } from "./op.ts";
import { mulHigh, philox4x32 } from "./philox.ts";
import { unscoped } from "./scope.ts";
import { checkShape, type Shape } from "./shape.ts";
import { setRange, type Tensor } from "./tensor.ts";
import { tensor } from "./create.ts";
import { floatOf, runAs } from "./elementwise.ts";

const floats: readonly DType[] = ["f64", "f32", "f16", "bf16"];

/** The last counter word: what a key is used for, so that its uses never meet. */
export const streams = { draw: 0, split: 1, foldIn: 2, sample: 3 } as const;

/** Random bits that a uniform number of a dtype holds exactly; f64 draws the numbers of f32. */
export const uniformBits: Readonly<Record<string, number>> = { f64: 24, f32: 24, f16: 11, bf16: 8 };

/** Refuses what is no key. */
export function checkKey(op: string, key: Spec): void {
  expectDType(op, "key", key.dtype, ["u32"]);
  if (key.shape.length !== 1 || key.shape[0] !== 2) {
    throw new ShapeError(op, `a key is u32 [2], got ${key.dtype} ${show(key.shape)}: make one by key(seed) or split`);
  }
}

function wordsOf(key: NdArray): [number, number] {
  const { data } = dense(key);
  return [data[0], data[1]];
}

/** Calls `f` with each element's place and its 32 random bits. */
function forEachDraw(key: NdArray, size: number, f: (i: number, bits: number) => void): void {
  const [k0, k1] = wordsOf(key), words = new Uint32Array(4);
  for (let i = 0; i < size; i += 4) {
    const block = i / 4;
    philox4x32(block >>> 0, Math.floor(block / 2 ** 32), 0, streams.draw, k0, k1, words);
    for (let j = 0; j < 4 && i + j < size; j++) f(i + j, words[j]);
  }
}

/** Key i is the first half of Philox at counter [i, 0, 0, split]. */
export const splitOp: Op<{ count: number }> = {
  name: "split",
  infer: ([key], { count }) => {
    checkKey("split", key);
    return { shape: [count, 2], dtype: "u32" };
  },
  reference: ([key], { count }, y) => {
    const [k0, k1] = wordsOf(key), words = new Uint32Array(4);
    for (let i = 0; i < count; i++) {
      philox4x32(i, 0, 0, streams.split, k0, k1, words);
      y.data[2 * i] = words[0];
      y.data[2 * i + 1] = words[1];
    }
  },
};

/** The first half of Philox at counter [data, 0, 0, foldIn]. */
export const foldInOp: Op = {
  name: "foldIn",
  infer: ([key, data]) => {
    checkKey("foldIn", key);
    expectDType("foldIn", "data", data.dtype, ["i32", "u32"]);
    if (data.shape.length !== 0) throw new ShapeError("foldIn", `data is one whole number, got ${show(data.shape)}`);
    return { shape: [2], dtype: "u32" };
  },
  reference: ([key, data], _, y) => {
    const [k0, k1] = wordsOf(key);
    y.data.set(philox4x32(dense(data).data[0] >>> 0, 0, 0, streams.foldIn, k0, k1).subarray(0, 2));
  },
};

/** y = min + range · b·2⁻ⁿ, b the n leading bits of a draw; both roundings are f32's. */
export const uniformOp: Op<{ shape: Shape; dtype: DType; min: number; range: number }> = {
  name: "uniform",
  infer: ([key], { shape, dtype }) => {
    checkKey("uniform", key);
    expectDType("uniform", "dtype", dtype, floats);
    return { shape, dtype };
  },
  reference: ([key], { dtype, min, range }, y) => {
    const bits = uniformBits[dtype], scale = 2 ** -bits;
    forEachDraw(key, y.data.length, (i, word) => {
      y.data[i] = Math.fround(min + Math.fround(range * ((word >>> (32 - bits)) * scale)));
    });
  },
};

/**
 * The normal distribution's inverse at a draw, an f32 rounded to the dtype. Inputs: the key, and {@linkcode normalTable},
 * a tensor because compilers of kernels choke on a constant of that size.
 */
export const randnOp: Op<{ shape: Shape; dtype: DType }> = {
  name: "randn",
  infer: ([key, table], { shape, dtype }) => {
    checkKey("randn", key);
    expectDType("randn", "table", table.dtype, ["i32"]);
    expectDType("randn", "dtype", dtype, floats);
    return { shape, dtype };
  },
  reference: ([key, table], _, y) => {
    const coefficients = dense(table).data;
    forEachDraw(key, y.data.length, (i, word) => {
      y.data[i] = normalOf(word, coefficients);
    });
  },
};

const tables = new WeakMap<Backend, Tensor>();

/** The coefficients of {@linkcode randnOp} on a backend, uploaded once and never freed. */
function normalTableOn(backend: Backend): Tensor {
  const known = tables.get(backend);
  if (known !== undefined) return known;
  const made = unscoped(() => tensor(normalTable(), { shape: [32, 8], dtype: "i32", backend }));
  tables.set(backend, made);
  return made;
}

/** y = min + ⌊range · w·2⁻⁶⁴⌋, w two words of a draw: element i has words 2i, the high half, and 2i + 1. */
export const randintOp: Op<{ shape: Shape; min: number; range: number }> = {
  name: "randint",
  infer: ([key], { shape }) => {
    checkKey("randint", key);
    return { shape, dtype: "i32" };
  },
  reference: ([key], { min, range }, y) => {
    let high = 0;
    forEachDraw(key, 2 * y.data.length, (i, word) => {
      if (i % 2 === 0) high = word;
      else y.data[(i - 1) / 2] = min + scaleWords(high, word, range);
    });
  },
};

/** ⌊range · (high·2³² + low)·2⁻⁶⁴⌋ for a range of at most 2³². */
function scaleWords(high: number, low: number, range: number): number {
  if (range === 2 ** 32) return high;
  const carry = mulHigh(low, range) + (Math.imul(high, range) >>> 0) >= 2 ** 32 ? 1 : 0;
  return mulHigh(high, range) + carry;
}

/** Whether the 31 leading bits of a draw are below p·2³¹. */
export const bernoulliOp: Op<{ shape: Shape; threshold: number }> = {
  name: "bernoulli",
  infer: ([key], { shape }) => {
    checkKey("bernoulli", key);
    return { shape, dtype: "bool" };
  },
  reference: ([key], { threshold }, y) =>
    forEachDraw(key, y.data.length, (i, word) => {
      y.data[i] = word >>> 1 < threshold ? 1 : 0;
    }),
};

/** y = x · scale where `bernoulli` is false, else 0. The mask is drawn again in the derivative, which is this op. */
export const dropoutOp: Op<{ threshold: number; scale: number }> = {
  name: "dropout",
  infer: ([key, x]) => {
    checkKey("dropout", key);
    expectDType("dropout", "input", x.dtype, floats);
    return { shape: x.shape, dtype: x.dtype };
  },
  reference: ([key, x], { threshold, scale }, y) => {
    const { data } = dense(x);
    forEachDraw(key, y.data.length, (i, word) => {
      y.data[i] = word >>> 1 < threshold ? 0 : data[i] * scale;
    });
  },
};

/** A probability as a bound for the 31 leading bits of a draw. */
export function thresholdOf(op: string, p: number): number {
  if (!(p >= 0 && p <= 1)) throw new ValueError(op, `p is a probability between 0 and 1, got ${p}`);
  return Math.round(p * 2 ** 31);
}

/** Shape and element type of random numbers. */
export interface RandomOptions {
  /** A float type; f32 when not given. */
  readonly dtype?: DType;
}

/** Bounds of {@linkcode uniform}. */
export interface UniformOptions extends RandomOptions {
  /** The least value; 0 when not given. */
  readonly min?: number;
  /** The end, itself left out; 1 when not given. */
  readonly max?: number;
}

/**
 * A key from a seed.
 *
 * @param seed a whole number from 0 to 2⁵³ − 1, or a bigint below 2⁶⁴
 * @param options.backend where the key lives; the current backend when not given
 * @returns u32 [2]
 * @throws {ValueError} for any other seed
 *
 * @example
 * ```ts
 * import { key, randn, split } from "@flashtape/flashtape";
 * const [a, b] = split(key(7));
 * const w = randn(a, [4, 4]), x = randn(b, [4]);
 * ```
 */
export function key(seed: number | bigint, options: { readonly backend?: Backend } = {}): Tensor {
  const whole = typeof seed === "bigint" || Number.isSafeInteger(seed);
  if (!whole || seed < 0 || (typeof seed === "bigint" && seed >= 2n ** 64n)) {
    throw new ValueError("key", `a seed is a whole number from 0 to 2⁵³ − 1, or a bigint below 2⁶⁴, got ${seed}`);
  }
  const bits = BigInt(seed);
  const words = [Number(bits & 0xffffffffn), Number(bits >> 32n)];
  return tensor(words, { dtype: "u32", backend: options.backend });
}

/**
 * New keys from one, which is then spent: their numbers have nothing to do with each other.
 *
 * @param key u32 [2]
 * @param count how many
 * @returns `count` keys, u32 [2] each, views of one tensor
 * @throws {ValueError} when `count` is no whole number of at least 1
 */
export function split(key: Tensor, count = 2): Tensor[] {
  if (!Number.isInteger(count) || count < 1 || count > 0xffffffff) {
    throw new ValueError("split", `makes a whole number of keys, at least 1, got ${count}`);
  }
  const keys = run(splitOp, [key], { count });
  const views = Array.from({ length: count }, (_, i) => {
    using row = slice(keys, [i], [i + 1]);
    return reshape(row, [2]);
  });
  keys.dispose();
  return views;
}

/**
 * A key that belongs to a number, such as a layer's place or a step's count.
 *
 * @param key u32 [2]
 * @param data a whole number of 32 bits, or an i32 or u32 scalar, so that a recorded call can count on
 * @returns u32 [2]
 * @throws {ValueError} when the number does not fit 32 bits
 */
export function foldIn(key: Tensor, data: number | Tensor): Tensor {
  if (typeof data !== "number") return run(foldInOp, [key, data], {});
  if (!Number.isInteger(data) || data < -(2 ** 31) || data >= 2 ** 32) {
    throw new ValueError("foldIn", `data is a whole number of 32 bits, got ${data}`);
  }
  using word = tensor(data >>> 0, { dtype: "u32", backend: key.backend });
  return run(foldInOp, [key, word], {});
}

function floatType(op: string, dtype: DType): DType {
  if (!isFloat(dtype)) throw new DTypeError(op, `makes floats, not ${dtype}`);
  return dtype;
}

/**
 * Numbers spread evenly over [min, max): multiples of 2⁻²⁴ of the range (f16 2⁻¹¹, bf16 2⁻⁸), so that every one of them
 * is exact in its dtype on [0, 1). On other ranges rounding may give `max` itself.
 *
 * @param key u32 [2]
 * @throws {ValueError} when the bounds are not finite or not in order
 */
export function uniform(key: Tensor, shape: Shape, options: UniformOptions = {}): Tensor {
  const { min = 0, max = 1, dtype = "f32" } = options;
  const from = Math.fround(min), range = Math.fround(Math.fround(max) - from);
  if (!(min < max) || !Number.isFinite(from) || !Number.isFinite(range)) {
    throw new ValueError("uniform", `needs finite bounds, min below max, got ${min} and ${max}`);
  }
  const params = { shape: [...checkShape("uniform", shape)], dtype: floatType("uniform", dtype), min: from, range };
  return run(uniformOp, [key], params);
}

/**
 * Normal numbers with mean 0 and standard deviation 1, the distribution's exact inverse to f32's accuracy, ±6.3 at most.
 *
 * @param key u32 [2]
 */
export function randn(key: Tensor, shape: Shape, { dtype = "f32" }: RandomOptions = {}): Tensor {
  checkKey("randn", key);
  const params = { shape: [...checkShape("randn", shape)], dtype: floatType("randn", dtype) };
  return run(randnOp, [key, normalTableOn(key.backend)], params);
}

/**
 * Whole numbers in [min, max), all equally likely to within 2⁻³².
 *
 * @param key u32 [2]
 * @param options.min 0 when not given
 * @returns i32
 * @throws {ValueError} when the bounds are not i32 or not in order; `max` may be 2³¹
 */
export function randint(
  key: Tensor,
  shape: Shape,
  { min = 0, max }: { readonly min?: number; readonly max: number },
): Tensor {
  if (!Number.isInteger(min) || !Number.isInteger(max) || min >= max || min < -(2 ** 31) || max > 2 ** 31) {
    throw new ValueError("randint", `needs whole bounds of 32 bits, min below max, got ${min} and ${max}`);
  }
  const y = run(randintOp, [key], { shape: [...checkShape("randint", shape)], min, range: max - min });
  return setRange(y, [min, max - 1]);
}

/**
 * True with probability p.
 *
 * @param key u32 [2]
 * @param options.p 0.5 when not given; counted in steps of 2⁻³¹
 * @returns bool
 * @throws {ValueError} when p is no probability
 */
export function bernoulli(key: Tensor, shape: Shape, { p = 0.5 }: { readonly p?: number } = {}): Tensor {
  const threshold = thresholdOf("bernoulli", p);
  return run(bernoulliOp, [key], { shape: [...checkShape("bernoulli", shape)], threshold });
}

/**
 * `x` with elements set to 0 at random and the others divided by 1 − p. Nothing is stored for the way back: the mask is
 * `bernoulli(key, x.shape, { p })`, drawn again.
 *
 * @param x floats, any shape
 * @param options.p the probability of a 0, at least 0 and below 1; with 0, `x` is returned as it is
 * @param options.key u32 [2]
 * @throws {ValueError} when p is out of its range
 */
export function dropout(x: Tensor, { p, key }: { readonly p: number; readonly key: Tensor }): Tensor {
  const threshold = thresholdOf("dropout", p);
  if (p === 1) throw new ValueError("dropout", "p is below 1: nothing would be left of the input");
  if (p === 0) return x;
  return runAs(dropoutOp, [key, x], [key.dtype, floatOf(x.dtype)], { threshold, scale: 1 / (1 - p) })[0];
}
