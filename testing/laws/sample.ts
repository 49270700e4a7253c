/**
 * What the laws are tried on: for each op, how to draw a call. Ops get their samplers in `samples.ts`, a table over the
 * names of all ops, so that an op without one does not compile.
 */
import { getBackend } from "../../tensor/backend.ts";
import { tensor } from "../../tensor/create.ts";
import { type DType, hostArray, isFloat } from "../../tensor/dtype.ts";
import type { FlashtapeError } from "../../tensor/errors.ts";
import type { NdArray } from "../../tensor/op.ts";
import type { Shape } from "../../tensor/shape.ts";
import type { Tensor } from "../../tensor/tensor.ts";
import { Arbitrary, compose, constant, elementOf } from "../arbitrary.ts";
import { Random, Source } from "../choices.ts";
import { arbShape, arbTensorData, type ShapeOptions, type TensorData } from "../tensors.ts";

/** One call of an op, before its tensors are made. */
export interface Call<P> {
  readonly inputs: readonly TensorData[];
  readonly params: P;
}

/** How near a kernel must come to the reference. */
export type Accuracy<P> =
  /** To the bit, once the reference is rounded to the result's type; the sign of zero counts. */
  | { readonly kind: "exact" }
  /** By each element alone: `naive` is the plain formula, every step rounded to f32. */
  | { readonly kind: "elementwise"; naive(params: P): (...values: number[]) => number }
  /**
   * `naive` are plain loops, every step rounded to f32, over dense inputs: several where sums have several
   * orders, since one may be rounded luckily. The worst error of a result counts, or that of each element by itself.
   */
  | { readonly kind: "worst" | "each"; readonly naive: readonly Naive<P>[] };

/** An op in f32: writes dense outputs from dense inputs. */
export type Naive<P> = (inputs: readonly NdArray[], params: P, ...outputs: NdArray[]) => void;

/** A call that the public function must refuse. */
export interface Refusal {
  readonly error: new (op: string, message: string) => FlashtapeError;
  readonly inputs: readonly TensorData[];
  readonly call: (...inputs: Tensor[]) => unknown;
}

/** What matrix units take of f32 numbers beside operands of such a dtype: f16's eleven digits, in any range. */
export function onUnits(other: DType, x: number): number {
  if (other !== "f16" && other !== "bf16") return x;
  const high = x * (2 ** 42 + 1); // Dekker 1971
  return high - (high - x);
}

/** How to draw calls of one op. */
export interface Sample<P> {
  /** Valid calls with tensors of the dtypes that a backend holds: all dtypes that the op takes, shapes, views, specials. */
  calls(held: readonly DType[]): Arbitrary<Call<P>>;
  readonly accuracy: Accuracy<P>;
  /** The same for devices with matrix units, where a product of f32 by 16 bits has eleven digits of the f32 operand. */
  readonly onUnits?: Accuracy<P>;
  /** Small calls in f64 away from kinks; null where the op has no derivative. */
  readonly smooth: Arbitrary<Call<P>> | null;
  /** The reference counts on outputs that are zero at first. */
  readonly leavesZeros?: true;
  /** A result is rounded to its type before others are computed from it. */
  readonly roundsBetween?: true;
  /** For fused ops: their derivative has none of its own, and says so. */
  readonly once?: true;
  /** Float inputs that are constants to the derivative. */
  constants?(params: P): readonly number[];
  /** The results that users get, where an op has more. */
  results?(outputs: readonly Tensor[]): readonly Tensor[];
  /** Calls that are not valid; null where the op takes every tensor. */
  readonly refused: Arbitrary<Refusal> | null;
}

/** Every type with fractions. */
export const floats: readonly DType[] = ["f32", "f16", "bf16", "f64"];
/** Every type but bool. */
export const numbers: readonly DType[] = [...floats, "i32", "u32"];
/** Every type. */
export const everyType: readonly DType[] = [...numbers, "bool"];

/** One of the types that are in both lists. */
export function typeOf(held: readonly DType[], allowed: readonly DType[]): Arbitrary<DType> {
  return elementOf(...allowed.filter((dtype) => held.includes(dtype)));
}

/** Shapes: small ones most of the time, and now and then one large enough for several workgroups and a tail. */
export function shapes(options: ShapeOptions & { readonly large?: number } = {}): Arbitrary<number[]> {
  const { large = 3000, ...rest } = options;
  return new Arbitrary((source) => {
    const maxSize = source.draw(19) === 19 ? large : rest.maxSize ?? 120;
    return arbShape({ ...rest, maxSize }).draw(source);
  });
}

/** Shapes with at least one axis, and one of the axes. */
export function shapesWithAxis(options: Parameters<typeof shapes>[0] = {}): Arbitrary<[shape: number[], axis: number]> {
  return compose((draw) => {
    const shape = draw(shapes({ minRank: 1, ...options }));
    return [shape, draw(elementOf(...shape.keys()))];
  });
}

/** Shapes that broadcast to one. */
export function broadcastable(count: number, options: Parameters<typeof shapes>[0] = {}): Arbitrary<number[][]> {
  const whole = shapes(options);
  const part = (shape: Shape) => (source: Source) => {
    const kept = source.draw(3) === 1 ? shape.slice(source.draw(shape.length)) : shape;
    return kept.map((n) => source.draw(3) === 1 ? 1 : n);
  };
  return new Arbitrary((source) => {
    const shape = whole.draw(source);
    return Array.from({ length: count }, () => source.group(part(shape)));
  });
}

/** What {@link values} draws. */
export interface ValueOptions {
  /** Most values lie between these, −8 and 8 by default. */
  readonly range?: readonly [min: number, max: number];
  /** Others are of either sign with exponents of two between these. */
  readonly exponents?: readonly [min: number, max: number];
  /** Others are these: NaN, both infinities and both zeros by default. */
  readonly specials?: readonly number[];
}

/** Not finite, or a zero. */
const odd: readonly number[] = [NaN, Infinity, -Infinity, 0, -0];

/** Element values that try an op: plain ones, tiny and huge ones, special ones. */
export function values({ range = [-8, 8], exponents, specials = odd }: ValueOptions = {}): Arbitrary<number> {
  const [min, max] = range;
  const fraction = (source: Source) => source.draw(2 ** 24) / 2 ** 24;
  return new Arbitrary((source) => {
    const kind = source.draw(15);
    if (kind >= 14 && specials.length > 0) return specials[source.draw(specials.length - 1)];
    if (kind >= 10 && exponents !== undefined) {
      const [low, high] = exponents;
      return (source.draw(1) === 0 ? 1 : -1) * (1 + fraction(source)) * 2 ** (low + source.draw(high - low));
    }
    if (kind < 3) return Math.min(max, Math.max(min, Math.round(min + fraction(source) * (max - min))));
    return min + fraction(source) * (max - min);
  });
}

/** Integers of a type: small ones, and the ends of its range. */
function integers(dtype: DType): Arbitrary<number> {
  const [min, max] = dtype === "u32" ? [0, 2 ** 32 - 1] : [-(2 ** 31), 2 ** 31 - 1];
  return new Arbitrary((source) => {
    const kind = source.draw(7);
    if (kind < 4) return Math.max(min, source.draw(16) - 8);
    if (kind === 4) return min + source.draw(3);
    if (kind === 5) return max - source.draw(3);
    return min + source.draw(2 ** 32 - 1);
  });
}

/** Exponents whose numbers are normal in a type, or are in f32 what the type holds. */
export function exponentsOf(dtype: DType): readonly [min: number, max: number] {
  return dtype === "f16" ? [-24, 15] : [-126, 127];
}

/** A tensor of a type, a view more often than not unless `views` is false, with values fit for the type. */
export function arbInput(
  shape: Shape,
  dtype: DType,
  { views = true, ...options }: ValueOptions & { readonly views?: boolean } = {},
): Arbitrary<TensorData> {
  if (dtype === "bool") return arbTensorData({ shape, dtype, views });
  return arbTensorData({ shape, dtype, elements: isFloat(dtype) ? values(options) : integers(dtype), views });
}

/**
 * A few of the values that an arbitrary draws, always the same ones: for what kernels are built from, since a software
 * adapter takes a second to compile one.
 */
export function few<T>(arbitrary: Arbitrary<T>, count: number): Arbitrary<T> {
  return new Arbitrary((source) => arbitrary.draw(new Source(new Random(1, source.draw(count - 1)))));
}

/** A tensor of any finite numbers of a type, for calls that only move elements or are refused. */
export function arbAny(shape: Shape, dtype: DType): Arbitrary<TensorData> {
  return arbInput(shape, dtype, { exponents: exponentsOf(dtype) });
}

/** Small f64 tensors for derivatives, between `range`; as views or dense. */
export function arbSmooth(
  shape: Shape,
  range: readonly [min: number, max: number] = [-2, 2],
  views = true,
): Arbitrary<TensorData> {
  const elements = new Arbitrary((source) => range[0] + (1 + source.draw(4094)) / 4096 * (range[1] - range[0]));
  return arbTensorData({ shape, dtype: "f64", elements, views });
}

/** Small shapes for derivatives. */
export function smallShapes(options: ShapeOptions = {}): Arbitrary<number[]> {
  return arbShape({ maxRank: Math.max(3, options.minRank ?? 0), maxSize: 10, ...options });
}

/** Whether no two numbers are so near that a difference could step over the place where they are equal. */
export function apart(numbers: Iterable<number>): boolean {
  const sorted = Array.from(numbers).sort((a, b) => a - b);
  return sorted.every((x, i) => i === 0 || x - sorted[i - 1] > 1e-4);
}

/** Two shapes that do not broadcast. */
export function clashing(): Arbitrary<[number[], number[]]> {
  return compose((draw) => {
    const shape = draw(arbShape({ minRank: 1, maxRank: 3, maxSize: 30 }));
    const axis = draw(elementOf(...shape.keys()));
    const left = shape.with(axis, 2 + draw(elementOf(0, 1, 2)));
    return [left, left.with(axis, left[axis] + 1)];
  });
}

/** Calls with one tensor of a type that the op does not take. */
export function refuseTypes(
  refused: readonly DType[],
  error: Refusal["error"],
  call: (x: Tensor) => unknown,
  shape: Shape = [2, 3],
): Arbitrary<Refusal> {
  return compose((draw) => {
    const x = draw(arbAny(shape, draw(elementOf(...refused))));
    return { error, inputs: [x], call };
  });
}

/** One fixed kind of refusal over drawn inputs. */
export function refuse<const I extends readonly Arbitrary<TensorData>[]>(
  error: Refusal["error"],
  inputs: I,
  call: (...inputs: { readonly [K in keyof I]: Tensor }) => unknown,
): Arbitrary<Refusal> {
  return compose((draw) => ({ error, inputs: inputs.map(draw), call: call as Refusal["call"] }));
}

/** Always the same dense values. */
export function given(values: readonly number[], shape: Shape, dtype: DType): Arbitrary<TensorData> {
  const data = hostArray(dtype, values.length);
  data.set(values);
  return constant({
    shape,
    dtype,
    data,
    view: [],
    tensor: (backend = getBackend(), as = dtype) => tensor(data, { shape, dtype: as, backend }),
  });
}

/** A dense f32 tensor of a shape. */
export function plain(shape: Shape, dtype: DType = "f32"): Arbitrary<TensorData> {
  return arbTensorData({ shape, dtype });
}

/** A call of inputs and params that were drawn apart. */
export function callOf<P>(inputs: readonly TensorData[], params: P): Call<P> {
  return { inputs, params };
}
