/** Calls of attention on random operands, kept as numbers so that a test can put the same call on any backend. */
import assert from "node:assert/strict";
import type { OptionalInput } from "../../tensor/attention_options.ts";
import type { Backend } from "../../tensor/backend.ts";
import { cpu } from "../../tensor/cpu.ts";
import { tensor } from "../../tensor/create.ts";
import { type DType, dtypes, isFloat, roundTo } from "../../tensor/dtype.ts";
import { key, randn } from "../../tensor/random.ts";
import type { Tensor } from "../../tensor/tensor.ts";

/** The backend of the loops in f64. */
export const host: Backend = cpu();

/** An operand as numbers, already rounded to its dtype. */
export interface Input {
  readonly shape: readonly number[];
  readonly dtype: DType;
  readonly values: ArrayLike<number>;
}

let seed = 1;

/** Normal numbers times `scale`, as the dtype holds them; others at each call. */
export async function normal(shape: readonly number[], dtype: DType = "f32", scale = 1): Promise<Input> {
  const values = Float32Array.from(await randn(key(seed++, { backend: host }), shape).data(), (x) => x * scale);
  roundTo(dtype, values);
  return { shape, dtype, values };
}

/** Lengths, starts and places: i32, one axis unless said otherwise. */
export function integers(values: readonly number[], shape: readonly number[] = [values.length]): Input {
  return { shape, dtype: "i32", values };
}

/** The operand on a backend, in f64 on the one that has the loops. */
export function on(backend: Backend, { shape, dtype, values }: Input): Tensor {
  const type = backend === host && isFloat(dtype) ? "f64" : dtype;
  return tensor(Array.from(values), { shape, dtype: type, backend });
}

/** One call of attention. */
export interface Problem {
  readonly q: Input;
  readonly k: Input;
  readonly v: Input;
  readonly optional?: Partial<Record<OptionalInput, Input>>;
  readonly window?: readonly [number, number];
  readonly softcap?: number;
  readonly dropout?: number;
  readonly maxSeqlens?: readonly [number, number];
  /** How large the numbers of an operand are, 1 where nothing is said. */
  readonly sizes?: Partial<Record<"q" | "k" | "v" | "dOut", number>>;
}

/** The op's parameters and inputs of a call. */
export function opCall({ q, k, v, optional = {}, ...options }: Problem) {
  const { window = [-1, -1], softcap = 0, dropout = 0, maxSeqlens = null } = options;
  const names = Object.keys(optional) as OptionalInput[];
  return {
    params: { scale: q.shape.at(-1)! ** -0.5, window, softcap, dropout, maxSeqlens, optional: names },
    inputs: [q, k, v, ...names.map((name) => optional[name]!)],
  } as const;
}

/** Random operands. */
export async function dense(
  [batch, seqlenQ, seqlenK, heads, kvHeads, headDim, valueDim]: readonly number[],
  dtype: DType = "f32",
  sizes: Problem["sizes"] = {},
): Promise<Pick<Problem, "q" | "k" | "v" | "sizes">> {
  return {
    q: await normal([batch, seqlenQ, heads, headDim], dtype, sizes.q),
    k: await normal([batch, seqlenK, kvHeads, headDim], dtype, sizes.k),
    v: await normal([batch, seqlenK, kvHeads, valueDim], dtype, sizes.v),
    sizes,
  };
}

/** Sequences of varying length, one of them without queries and one without keys, and rows of no sequence behind them. */
export async function packed(dtype: DType = "f32"): Promise<Problem> {
  return {
    q: await normal([50, 4, 16], dtype),
    k: await normal([70, 2, 16], dtype),
    v: await normal([70, 2, 16], dtype),
    optional: { cuSeqlensQ: integers([0, 13, 13, 40, 44]), cuSeqlensK: integers([0, 20, 29, 29, 66]) },
    maxSeqlens: [27, 37],
  };
}

/** What may be given beside `dense([2, 37, 45, 4, …])`, but for dropout. */
export async function everyOption(): Promise<Problem["optional"]> {
  return {
    mask: await randomMask([2, 1, 37, 45]),
    alibiSlopes: await normal([2, 4], "f32", 0.1),
    bias: await normal([4, 1, 45]),
    sinks: await normal([4]),
  };
}

/** A mask that lets seven scores of ten through. */
export async function randomMask(shape: readonly number[]): Promise<Input> {
  const { values } = await normal(shape);
  return { shape, dtype: "bool", values: Array.from(values, (x) => x < 0.5 ? 1 : 0) };
}

/** Dropout's key. */
export const dropoutKey: Input = { shape: [2], dtype: "u32", values: [123456789, 987654321] };

/** Asserts that results are near, as far as f32 sums of their size and one rounding to the dtype may take them. */
export function assertNear(what: string, actual: ArrayLike<number>, expected: ArrayLike<number>, dtype: DType): void {
  const size = Array.from(expected).filter(Number.isFinite).reduce((most, x) => Math.max(most, Math.abs(x)), 1);
  const unit = dtype === "f32" ? 0 : dtypes[dtype].epsilon;
  for (let i = 0; i < expected.length; i++) {
    if (actual[i] === expected[i]) continue;
    const bound = 4e-6 * size + unit * Math.abs(expected[i]);
    assert.ok(Math.abs(actual[i] - expected[i]) <= bound, `${what}[${i}] is ${actual[i]}, expected ${expected[i]}`);
  }
}
