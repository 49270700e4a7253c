/**
 * The law of accuracy: a kernel's error against the f64 reference is at most twice that of the same computation done
 * naively in f32, plus one unit in the last place of the result's type.
 */
import { type DType, dtypes, type HostArray, hostArray, isFloat, roundTo } from "../../tensor/dtype.ts";
import { show } from "../../tensor/errors.ts";
import { type NdArray, ndarray, type Op, type Spec } from "../../tensor/op.ts";
import { broadcastLayout, sizeOf, stridesOf } from "../../tensor/shape.ts";
import { Random } from "../choices.ts";
import { AssertionError, indexOf, short } from "../close.ts";
import { forEachOffset } from "../../tensor/op.ts";
import type { TensorData } from "../tensors.ts";
import type { Accuracy, Call, Naive } from "./sample.ts";

/** Tensor data as dense elements, floats in f64 with `wide`. */
export function onHost({ shape, dtype, data }: TensorData, wide = false): NdArray {
  const type = wide && isFloat(dtype) ? "f64" : dtype;
  return { shape, dtype: type, strides: stridesOf(shape), offset: 0, data: hostArrayOf(type, data) };
}

function hostArrayOf(dtype: DType, data: ArrayLike<number>): HostArray {
  const out = hostArray(dtype, data.length);
  out.set(data);
  return out;
}

/** The specs of an op's results, always as a list. */
export function specsOf<P>(op: Op<P>, inputs: readonly Spec[], params: P): readonly Spec[] {
  const specs = op.infer(inputs, params);
  return Array.isArray(specs) ? specs as readonly Spec[] : [specs as Spec];
}

/** The reference's results in f64, whatever float types the call has; integers stay what they are. */
export function exactly<P>(op: Op<P>, { inputs, params }: Call<P>): NdArray[] {
  const outputs = specsOf(op, inputs, params).map(({ shape, dtype }): NdArray => ({
    ...ndarray({ shape, dtype: isFloat(dtype) ? "f64" : dtype }),
    dtype, // which a reference may round to before it goes on
  }));
  if (outputs.some((y) => y.data.length > 0)) op.reference(inputs.map((x) => onHost(x, true)), params, ...outputs);
  return outputs;
}

/** Numbers as a dtype holds them. A 16-bit result comes from f32, as a kernel's does. */
export function rounded(dtype: DType, data: HostArray): HostArray {
  const out = hostArrayOf(dtype, data);
  roundTo(dtype, out);
  return out;
}

/** The distance between neighbouring numbers of a float type at the size of `x`. */
function unitAt(dtype: DType, x: number): number {
  const least = dtype === "f16" ? -14 : dtype === "f64" ? -1022 : -126;
  const size = Math.abs(x);
  let exponent = least;
  if (size > 0 && Number.isFinite(size)) {
    exponent = Math.floor(Math.log2(size));
    if (2 ** exponent > size) exponent--; // log2 rounds up just below a power of two
  }
  return 2 ** Math.max(least, exponent) * dtypes[dtype].epsilon;
}

/** The largest finite number of a type. */
function largest(dtype: DType): number {
  return dtype === "f16" ? 65504 : dtype === "f64" ? Number.MAX_VALUE : (2 - dtypes[dtype].epsilon) * 2 ** 127;
}

/** Below these, a device may flush numbers to zero. f16 is packed from f32 by integers, which flush nothing. */
const flushedBelow: Partial<Record<DType, number>> = { f32: 2 ** -126, bf16: 2 ** -126 };

/**
 * Asserts that two arrays hold the same numbers, the sign of zero included; NaN is like any other NaN.
 * @throws {AssertionError} naming the first element that differs
 */
export function assertSame(actual: HostArray, expected: HostArray, what = "the result"): void {
  if (actual.length !== expected.length) {
    throw new AssertionError(`${what} has ${actual.length} elements, expected ${expected.length}`);
  }
  const at = actual.findIndex((x, i) => !Object.is(x, expected[i]));
  if (at >= 0) throw new AssertionError(`element ${at} of ${what} is ${actual[at]}, expected ${expected[at]}`);
}

/**
 * Asserts the law for each result of a call.
 * @throws {AssertionError} naming the worst element, the error and its bound
 */
export function assertAccurate<P>(
  op: Op<P>,
  call: Call<P>,
  accuracy: Accuracy<P>,
  actual: readonly HostArray[],
): void {
  const specs = specsOf(op, call.inputs, call.params);
  const exact = exactly(op, call);
  specs.forEach(({ shape, dtype }, n) => {
    const wanted = rounded(dtype, exact[n].data);
    const where = specs.length === 1 ? "" : ` of result ${n}`;
    const fail = (i: number, why: string) => {
      throw new AssertionError(
        `[${op.name}] element ${show(indexOf(i, shape))}${where} (${dtype}): got ${actual[n][i]}, the reference ` +
          `gives ${exact[n].data[i]}; ${why}`,
      );
    };
    if (accuracy.kind === "exact" || !isFloat(dtype)) {
      for (let i = 0; i < wanted.length; i++) {
        if (!Object.is(wanted[i], actual[n][i])) fail(i, `as ${dtype} that is ${wanted[i]}`);
      }
      return;
    }
    const judge = (errors: Float64Array) => {
      const bounds = boundsOf(dtype, exact[n].data, errors);
      const over = bounds.map((bound, i) => excessOf(dtype, actual[n][i], exact[n].data[i], wanted[i], bound));
      const worst = over.reduce((at, excess, i) => excess > Math.max(1, over[at] ?? 0) ? i : at, -1);
      return { worst, bound: bounds[worst] };
    };
    const alike = (errors: Float64Array) =>
      accuracy.kind === "worst" ? errors.fill(errors.reduce((most, error) => Math.max(most, error), 0)) : errors;
    const errors = errorsOf(op, call, accuracy, specs, n);
    let { worst, bound } = judge(alike(errors));
    // A naive result may be rounded luckily: then naive errors around it count.
    for (let batch = 0; worst >= 0 && batch < batches; batch++) {
      errorsAround(op, call, accuracy, n, batch).forEach((error, i) => errors[i] = Math.max(errors[i], error));
      ({ worst, bound } = judge(alike(errors)));
    }
    if (worst < 0) return;
    const error = Math.abs(actual[n][worst] - exact[n].data[worst]);
    const unit = unitAt(dtype, exact[n].data[worst]);
    fail(
      worst,
      `error ${short(error)} (${short(error / unit)} units), bound ${short(bound)}; naive f32 gives ` +
        `${naively(call, accuracy, specs).map((results) => results[n][worst])}`,
    );
  });
}

/** The largest naive error of each element of one result; 0 where it is not finite. */
function errorsOf<P>(op: Op<P>, call: Call<P>, accuracy: Accuracy<P>, specs: readonly Spec[], n: number): Float64Array {
  const exact = exactly(op, call)[n].data, all = naively(call, accuracy, specs);
  return Float64Array.from(exact, (x, i) => {
    const errors = all.map((results) => Math.abs(results[n][i] - x));
    return errors.reduce((most, error) => Number.isFinite(error) ? Math.max(most, error) : most, 0);
  });
}

/** How often, in batches of how many, inputs are moved to see how naive errors scatter. */
const batches = 16, movesOfBatch = 32;

/**
 * The same when the elements of an input are moved by up to a thousandth. Where each element counts by itself,
 * what is found elsewhere counts in proportion to the results.
 */
function errorsAround<P>(
  op: Op<P>,
  { inputs, params }: Call<P>,
  accuracy: Accuracy<P>,
  n: number,
  batch: number,
): Float64Array {
  const specs = specsOf(op, inputs, params), base = exactly(op, { inputs, params })[n].data;
  const wide = inputs.map((x): TensorData =>
    isFloat(x.dtype) ? { ...x, dtype: "f32", data: x.data, tensor: x.tensor } : x
  );
  const random = new Random(1, batch), most = new Float64Array(base.length);
  const movable = inputs.flatMap((x, i) => isFloat(x.dtype) ? [i] : []);
  const units = () => (random.unit() < 0.5 ? 1 : -1) * Math.round(2 ** (13 * random.unit())) * 2 ** -23;
  for (let move = 0; move < movesOfBatch && movable.length > 0; move++) {
    const at = movable[move % movable.length]; // one at a time, since 2 and 2.0000002 are different powers
    const shared = units(), alone = random.upTo(1); // equal elements may stay equal, and then err alike
    const data = Float32Array.from(inputs[at].data, (v) => v * (1 + shared + alone * units()));
    const call = { inputs: wide.with(at, { ...wide[at], data }), params };
    const exact = exactly(op, call)[n].data;
    errorsOf(op, call, accuracy, specs, n).forEach((error, i) => {
      const here = accuracy.kind === "worst" ? error : error * Math.abs(base[i] / exact[i]);
      if (here > most[i]) most[i] = here;
    });
  }
  return most;
}

/** What each element may be off by. */
function boundsOf(dtype: DType, exact: HostArray, errors: Float64Array): Float64Array {
  return errors.map((error, i) => {
    const unit = unitAt(dtype, exact[i]);
    return 2 * Math.max(error, unit / 2) + unit;
  });
}

/** An error in units of its bound. */
function excessOf(dtype: DType, actual: number, exact: number, wanted: number, bound: number): number {
  if (Object.is(actual, wanted) || (actual === 0 && wanted === 0)) return 0;
  if (Number.isNaN(actual) || Number.isNaN(wanted)) return Infinity;
  // Near the end of the range either side of overflow is right.
  const end = largest(dtype), bounded = (x: number) => Math.max(-2 * end, Math.min(2 * end, x));
  if (!Number.isFinite(actual) || !Number.isFinite(wanted)) {
    if (Math.sign(actual) !== Math.sign(wanted) || !Number.isFinite(exact)) return Infinity;
    return Math.abs(Math.abs(bounded(exact)) - end) <= 2 * bound ? 0 : Infinity;
  }
  const floor = flushedBelow[dtype] ?? 0;
  return Math.abs(actual - exact) / Math.max(bound, Math.abs(exact) < 2 * floor ? floor : 0);
}

/** What each naive computation gives, rounded to the types of the results. */
function naively<P>({ inputs, params }: Call<P>, accuracy: Accuracy<P>, specs: readonly Spec[]): HostArray[][] {
  if (accuracy.kind === "exact") return [];
  const all = accuracy.kind === "elementwise" ? [mapped(accuracy.naive(params))] : accuracy.naive;
  return all.map((naive: Naive<P>) => {
    const outputs = specs.map(({ shape, dtype }) => ndarray({ shape, dtype: dtype === "f64" ? "f32" : dtype }));
    if (outputs.some((y) => y.data.length > 0)) naive(inputs.map((x) => onHost(x)), params, ...outputs);
    return outputs.map((y, n) => rounded(specs[n].dtype, y.data));
  });
}

/** A formula over each place of the inputs, broadcast to the result. */
function mapped(f: (...values: number[]) => number): Naive<unknown> {
  return (inputs, _, y) => {
    const columns = inputs.map((x) => repeated(x, y));
    for (let i = 0; i < sizeOf(y.shape); i++) y.data[i] = f(...columns.map((column) => column[i]));
  };
}

/** The elements of `x` broadcast to the shape of `y`. */
function repeated(x: NdArray, y: NdArray): number[] {
  const out: number[] = [];
  forEachOffset(broadcastLayout(x, y.shape), (at) => out.push(x.data[at]));
  return out;
}
