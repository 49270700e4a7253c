/** Equality of numbers up to rounding. */

import { type DType, dtypes } from "../tensor/dtype.ts";
import { ShapeError, show, ValueError } from "../tensor/errors.ts";
import { sameShape, type Shape, sizeOf } from "../tensor/shape.ts";
import { Tensor } from "../tensor/tensor.ts";

/** How far numbers may lie apart: |actual − expected| ≤ `atol` + `rtol` · |expected|. */
export interface Tolerance {
  /** The part of the bound that grows with the expected value. */
  readonly rtol: number;
  /** The part that does not. */
  readonly atol: number;
}

/** What {@link assertClose} goes by. */
export interface CloseOptions extends Partial<Tolerance> {
  /**
   * The element type whose default tolerance counts: f64 1e-9, f32 1e-5 and 1e-6, f16 2e-3 and 1e-3, bf16 2e-2 and 1e-2;
   * integers and bool are exact. By default the coarser type of the two sides, where a number or a plain array counts as
   * f64 and takes the type of the other side.
   */
  readonly dtype?: DType;
}

/** Numbers on the host: one, nested arrays, or a typed array of any shape. */
export type HostNumbers = number | boolean | readonly HostNumbers[] | NumberArray;

/** The typed arrays whose elements are numbers. */
export type NumberArray =
  | Float64Array
  | Float32Array
  | Int32Array
  | Int16Array
  | Int8Array
  | Uint32Array
  | Uint16Array
  | Uint8Array
  | Uint8ClampedArray;

/** A few units in the last place more than a naive sum of some hundred terms loses. */
const defaults: Readonly<Record<DType, Tolerance>> = {
  f64: { rtol: 1e-9, atol: 1e-9 },
  f32: { rtol: 1e-5, atol: 1e-6 },
  f16: { rtol: 2e-3, atol: 1e-3 },
  bf16: { rtol: 2e-2, atol: 1e-2 },
  i32: { rtol: 0, atol: 0 },
  u32: { rtol: 0, atol: 0 },
  bool: { rtol: 0, atol: 0 },
};

/** Thrown where numbers lie too far apart. */
export class AssertionError extends Error {
  /** Always `"AssertionError"`, as test runners know it. */
  override readonly name = "AssertionError";
}

/**
 * Asserts that numbers are close, element by element: tensors, typed arrays, nested arrays, numbers. One number is
 * compared with every element. NaN is close to NaN alone, an infinity to itself alone. Where both sides have a shape, the
 * shapes must be equal; a typed array has none, only a length.
 *
 * With a tensor on either side the result is a promise: `await` it. Without, the check is done when the call returns.
 *
 * @throws {AssertionError} naming the element that is furthest off, both values, the error and its bound
 * @throws {ValueError} when a tolerance is negative or NaN
 *
 * @example
 * ```ts
 * import { assertClose } from "@flashtape/flashtape/testing";
 * import { exp, tensor } from "@flashtape/flashtape";
 *
 * assertClose(0.1 + 0.2, 0.3);
 * assertClose(new Float32Array([1, 2]), [1.000001, 2]);
 * await assertClose(exp(tensor([0, 1])), [1, Math.E]);
 * await assertClose(exp(tensor([0, 1])), [1, 2.7], { atol: 0.1 });
 * ```
 */
export function assertClose(actual: HostNumbers, expected: HostNumbers, options?: CloseOptions): void;
/** With a tensor on either side: a promise. */
export function assertClose(
  actual: Tensor | HostNumbers,
  expected: Tensor | HostNumbers,
  options?: CloseOptions,
): Promise<void>;
export function assertClose(
  actual: Tensor | HostNumbers,
  expected: Tensor | HostNumbers,
  options: CloseOptions = {},
): void | Promise<void> {
  if (!(actual instanceof Tensor) && !(expected instanceof Tensor)) {
    return compare(onHost(actual), onHost(expected), options);
  }
  return Promise.all([read(actual), read(expected)]).then(([a, e]) => compare(a, e, options));
}

/** One side of a comparison. */
interface Side {
  readonly data: ArrayLike<number>;
  /** Undefined where only the length is known. */
  readonly shape: Shape | undefined;
  /** Undefined for plain numbers. */
  readonly dtype: DType | undefined;
}

async function read(side: Tensor | HostNumbers): Promise<Side> {
  return side instanceof Tensor ? { data: await side.data(), shape: side.shape, dtype: side.dtype } : onHost(side);
}

function onHost(side: HostNumbers): Side {
  if (ArrayBuffer.isView(side)) return { data: side, shape: undefined, dtype: typeOfArray(side) };
  const shape = shapeOf(side);
  const flat = Array.isArray(side) ? side.flat(Infinity) : [side];
  return { data: flat.map(Number), shape, dtype: undefined };
}

function typeOfArray(array: NumberArray): DType {
  if (array instanceof Float64Array) return "f64";
  return array instanceof Float32Array ? "f32" : "i32";
}

function shapeOf(values: HostNumbers): number[] {
  if (ArrayBuffer.isView(values)) return [values.length];
  if (typeof values === "number" || typeof values === "boolean") return [];
  const shapes = values.map(shapeOf);
  const odd = shapes.findIndex((shape) => !sameShape(shape, shapes[0]));
  if (odd >= 0) {
    throw new ShapeError("assertClose", `rows differ in shape: ${show(shapes[0])}, and ${show(shapes[odd])} at ${odd}`);
  }
  return [values.length, ...(shapes[0] ?? [])];
}

function compare(actual: Side, expected: Side, options: CloseOptions): void {
  const dtype = options.dtype ?? coarser(actual.dtype, expected.dtype);
  const { rtol = defaults[dtype].rtol, atol = defaults[dtype].atol } = options;
  for (const [name, value] of [["rtol", rtol], ["atol", atol]] as const) {
    if (!(value >= 0)) throw new ValueError("assertClose", `${name} must be at least 0: got ${value}`);
  }
  const shape = commonShape(actual, expected);
  const size = sizeOf(shape);
  const at = ({ data }: Side, i: number) => data[data.length === 1 ? 0 : i];
  let [worst, worstExcess, off] = [0, 0, 0];
  for (let i = 0; i < size; i++) {
    const excess = excessOf(at(actual, i), at(expected, i), { rtol, atol });
    if (excess <= 1) continue;
    off++;
    if (excess > worstExcess) [worst, worstExcess] = [i, excess];
  }
  if (off === 0) return;
  const [a, e] = [at(actual, worst), at(expected, worst)];
  const where = size === 1 ? "" : `; the worst is ${show(indexOf(worst, shape))}`;
  throw new AssertionError(
    `[assertClose] ${off} of ${size} ${size === 1 ? "element is" : "elements are"} too far off${where}: ` +
      `actual ${a}, expected ${e}, error ${short(Math.abs(a - e))}, bound ${short(atol + rtol * Math.abs(e))} ` +
      `(${dtype}: atol ${atol}, rtol ${rtol})`,
  );
}

/** The error in units of its bound: above 1 is too much. */
function excessOf(actual: number, expected: number, { rtol, atol }: Tolerance): number {
  if (actual === expected || (Number.isNaN(actual) && Number.isNaN(expected))) return 0;
  const error = Math.abs(actual - expected);
  // What is not finite on one side only, and opposite infinities, no tolerance makes close.
  if (!Number.isFinite(error)) return Infinity;
  const bound = atol + rtol * Math.abs(expected);
  return bound === 0 ? Number.MAX_VALUE : error / bound;
}

function commonShape(actual: Side, expected: Side): Shape {
  const shape = (side: Side) => side.shape ?? [side.data.length];
  const isOne = (side: Side) => side.shape?.length === 0;
  if (isOne(expected)) return shape(actual);
  if (isOne(actual)) return shape(expected);
  const both = actual.shape !== undefined && expected.shape !== undefined;
  if (both ? sameShape(shape(actual), shape(expected)) : actual.data.length === expected.data.length) {
    return actual.shape ?? shape(expected);
  }
  throw new AssertionError(
    `[assertClose] shapes differ: actual ${show(shape(actual))}, expected ${show(shape(expected))}`,
  );
}

function coarser(a: DType | undefined, b: DType | undefined): DType {
  if (a === undefined || b === undefined) return a ?? b ?? "f64";
  return dtypes[a].epsilon > dtypes[b].epsilon ? a : b;
}

/** The index of the i-th element in row-major order. */
export function indexOf(i: number, shape: Shape): number[] {
  const index: number[] = [];
  for (let axis = shape.length - 1; axis >= 0; axis--) {
    index.unshift(i % shape[axis]);
    i = Math.floor(i / shape[axis]);
  }
  return index;
}

/** Three digits are enough for an error. */
export function short(x: number): string {
  return Number.isFinite(x) ? String(Number(x.toPrecision(3))) : String(x);
}
