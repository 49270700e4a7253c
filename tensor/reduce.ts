/** Reductions: fewer numbers out of many, along axes. */
import { type DType, type HostArray, hostArray } from "./dtype.ts";
import { floatOf, runAs } from "./elementwise.ts";
import { ShapeError, show, ValueError } from "./errors.ts";
import { dense, expectDType, forEachOffset, type NdArray, type Op, run, runAll } from "./op.ts";
import { axesOf, axisOf, type Shape, sizeOf } from "./shape.ts";
import { setRange, type Tensor } from "./tensor.ts";
import { reshape } from "./movement.ts";

/** Which axes to reduce, and whether they stay with length 1. */
export interface ReduceOptions {
  /** One axis or several, negative from the end; all when not given. */
  readonly axis?: number | readonly number[];
  /** Keeps the reduced axes with length 1. */
  readonly keepDims?: boolean;
}

/** What every reduction op is told. */
export interface ReduceParams {
  readonly axes: readonly number[];
  readonly keepDims: boolean;
}

const numbers: readonly DType[] = ["f64", "f32", "f16", "bf16", "i32", "u32"];
const floats: readonly DType[] = ["f64", "f32", "f16", "bf16"];

/** The shape without the reduced axes, or with them at length 1. */
export function reducedShape(shape: Shape, { axes, keepDims }: ReduceParams): Shape {
  return keepDims ? shape.map((n, i) => axes.includes(i) ? 1 : n) : shape.filter((_, i) => !axes.includes(i));
}

/** Calls `f` with each group of elements that reduces to one, in the order of the results. */
function forEachGroup(x: NdArray, axes: readonly number[], f: (group: HostArray, i: number) => void): void {
  const kept = x.shape.map((_, i) => i).filter((i) => !axes.includes(i));
  const part = (of: readonly number[], offset: number) => ({
    shape: of.map((i) => x.shape[i]),
    strides: of.map((i) => x.strides[i]),
    offset,
  });
  const size = sizeOf(axes.map((i) => x.shape[i]));
  const group = hostArray(x.dtype, size);
  const last = axes.length === 1 && x.strides[axes[0]] === 1;
  let i = 0;
  forEachOffset(part(kept, x.offset), (start) => {
    if (last) return f(x.data.subarray(start, start + size) as HostArray, i++);
    let n = 0;
    forEachOffset(part(axes, start), (at) => {
      group[n++] = x.data[at];
    });
    f(group, i++);
  });
}

function reduction(
  name: string,
  f: (group: HostArray) => number,
  allowed = numbers,
  needsOne = false,
): Op<ReduceParams> {
  return {
    name,
    infer: ([x], params) => {
      expectDType(name, "input", x.dtype, allowed);
      const empty = params.axes.find((a) => x.shape[a] === 0);
      if (needsOne && empty !== undefined) {
        throw new ShapeError(name, `axis ${empty} of ${show(x.shape)} is empty and ${name} of nothing is undefined`);
      }
      return { shape: reducedShape(x.shape, params), dtype: x.dtype };
    },
    reference: ([x], { axes }, y) =>
      forEachGroup(x, axes, (group, i) => {
        y.data[i] = f(group);
      }),
  };
}

function total(group: HostArray): number {
  let sum = 0;
  for (let i = 0; i < group.length; i++) sum += group[i];
  return sum;
}

function extreme(better: (a: number, b: number) => number): (group: HostArray) => number {
  return (group) => {
    let best = group[0];
    for (let i = 1; i < group.length; i++) best = better(best, group[i]);
    return best;
  };
}

/** log Σ e^x, computed from the largest element down. */
export function logSumExp(group: ArrayLike<number>): number {
  let max = -Infinity, sum = 0;
  for (let i = 0; i < group.length; i++) max = Math.max(max, group[i]);
  if (!Number.isFinite(max)) return max;
  for (let i = 0; i < group.length; i++) sum += Math.exp(group[i] - max);
  return max + Math.log(sum);
}

/** Σ x. */
export const sumOp: Op<ReduceParams> = reduction("sum", total);
/** Σ x / n. */
export const meanOp: Op<ReduceParams> = reduction("mean", (group) => total(group) / group.length, floats);
/** The largest; NaN when one is. */
export const maxOp: Op<ReduceParams> = reduction("max", extreme((a, b) => Math.max(a, b)), numbers, true);
/** The smallest; NaN when one is. */
export const minOp: Op<ReduceParams> = reduction("min", extreme((a, b) => Math.min(a, b)), numbers, true);
/** log Σ e^x. */
export const logsumexpOp: Op<ReduceParams> = reduction("logsumexp", logSumExp, floats);

function arg(name: string, sign: number): Op<{ axis: number; keepDims: boolean }> {
  return {
    name,
    infer: ([x], { axis, keepDims }) => {
      expectDType(name, "input", x.dtype, numbers);
      if (x.shape[axis] === 0) {
        throw new ShapeError(name, `axis ${axis} of ${show(x.shape)} is empty and has no ${name}`);
      }
      return { shape: reducedShape(x.shape, { axes: [axis], keepDims }), dtype: "i32" };
    },
    reference: ([x], { axis }, y) =>
      forEachGroup(x, [axis], (group, i) => {
        let best = 0;
        for (let j = 1; j < group.length; j++) {
          if (sign * (group[j] - group[best]) > 0 || (Number.isNaN(group[j]) && !Number.isNaN(group[best]))) best = j;
        }
        y.data[i] = best;
      }),
  };
}

/** The place of the first largest element; of the first NaN when there is one. */
export const argmaxOp: Op<{ axis: number; keepDims: boolean }> = arg("argmax", 1);
/** The place of the first smallest element; of the first NaN when there is one. */
export const argminOp: Op<{ axis: number; keepDims: boolean }> = arg("argmin", -1);

/** y_i = Σ_{j ≤ i} x_j along an axis; from the other end with `reverse`. */
export const cumsumOp: Op<{ axis: number; reverse: boolean }> = {
  name: "cumsum",
  infer: ([x]) => {
    expectDType("cumsum", "input", x.dtype, numbers);
    return { shape: x.shape, dtype: x.dtype };
  },
  reference: ([x], { axis, reverse }, y) => {
    const from = dense(x).data, length = x.shape[axis];
    const inner = sizeOf(x.shape.slice(axis + 1)), outer = sizeOf(x.shape.slice(0, axis));
    for (let o = 0; o < outer; o++) {
      for (let i = 0; i < inner; i++) {
        let sum = 0;
        for (let j = 0; j < length; j++) {
          const at = (o * length + (reverse ? length - 1 - j : j)) * inner + i;
          y.data[at] = sum += from[at];
        }
      }
    }
  },
};

/** The k largest of the last axis in falling order, the first of equals first, and their places. */
export const topKOp: Op<{ k: number }> = {
  name: "topK",
  infer: ([x], { k }) => {
    expectDType("topK", "input", x.dtype, numbers);
    const shape = x.shape.with(-1, k);
    return [{ shape, dtype: x.dtype }, { shape, dtype: "i32" }];
  },
  reference: ([x], { k }, values, indices) => {
    const rank = (v: number) => Number.isNaN(v) ? Infinity : v; // NaN first, as in argmax
    forEachGroup(x, [x.shape.length - 1], (group, row) => {
      const order = Array.from(group.keys()).sort((i, j) => {
        const a = rank(group[i]), b = rank(group[j]);
        if (Number.isNaN(group[i]) !== Number.isNaN(group[j])) return Number.isNaN(group[i]) ? -1 : 1;
        return a === b ? i - j : b - a;
      });
      for (let j = 0; j < k; j++) {
        values.data[row * k + j] = group[order[j]];
        indices.data[row * k + j] = order[j];
      }
    });
  },
};

function paramsOf(op: string, x: Tensor, { axis, keepDims = false }: ReduceOptions): ReduceParams {
  return { axes: axesOf(op, x.shape, axis), keepDims };
}

/** Σ x along axes. bool is counted as i32; 16-bit floats are added in f32. */
export function sum(x: Tensor, options: ReduceOptions = {}): Tensor {
  return runAs(sumOp, [x], x.dtype === "bool" ? "i32" : x.dtype, paramsOf("sum", x, options))[0];
}

/** The mean along axes; integers and bool as f32. NaN over no elements. */
export function mean(x: Tensor, options: ReduceOptions = {}): Tensor {
  return runAs(meanOp, [x], floatOf(x.dtype), paramsOf("mean", x, options))[0];
}

/**
 * The largest along axes; NaN when an element is.
 * @throws {ShapeError} over an empty axis
 */
export function max(x: Tensor, options: ReduceOptions = {}): Tensor {
  return run(maxOp, [x], paramsOf("max", x, options));
}

/**
 * The smallest along axes; NaN when an element is.
 * @throws {ShapeError} over an empty axis
 */
export function min(x: Tensor, options: ReduceOptions = {}): Tensor {
  return run(minOp, [x], paramsOf("min", x, options));
}

/** log Σ e^x along axes, without overflow; −∞ over no elements. */
export function logsumexp(x: Tensor, options: ReduceOptions = {}): Tensor {
  return runAs(logsumexpOp, [x], floatOf(x.dtype), paramsOf("logsumexp", x, options))[0];
}

/** Which axis to search, and whether it stays with length 1. */
export interface ArgOptions {
  /** The axis, negative from the end; the flattened tensor when not given. */
  readonly axis?: number;
  /** Keeps the axis with length 1. */
  readonly keepDims?: boolean;
}

function place(op: Op<{ axis: number; keepDims: boolean }>, x: Tensor, { axis, keepDims = false }: ArgOptions): Tensor {
  const flat = { axis: 0, keepDims: false };
  if (axis === undefined) op.infer([{ shape: [x.size], dtype: x.dtype }], flat); // before a view is copied to be flat
  const found = axis === undefined
    ? run(op, [reshape(x, [x.size])], flat)
    : run(op, [x], { axis: axisOf(op.name, x.shape, axis), keepDims });
  const length = axis === undefined ? x.size : x.shape[axisOf(op.name, x.shape, axis)];
  const y = axis === undefined && keepDims ? reshape(found, x.shape.map(() => 1)) : found;
  return setRange(y, [0, length - 1]);
}

/**
 * The place of the largest element, the first of equals.
 * @returns i32
 * @throws {ShapeError} over an empty axis
 */
export function argmax(x: Tensor, options: ArgOptions = {}): Tensor {
  return place(argmaxOp, x, options);
}

/**
 * The place of the smallest element, the first of equals.
 * @returns i32
 * @throws {ShapeError} over an empty axis
 */
export function argmin(x: Tensor, options: ArgOptions = {}): Tensor {
  return place(argminOp, x, options);
}

/** Running sums along an axis. */
export function cumsum(x: Tensor, { axis = -1 }: { readonly axis?: number } = {}): Tensor {
  return run(cumsumOp, [x], { axis: axisOf("cumsum", x.shape, axis), reverse: false });
}

/**
 * The k largest elements of the last axis in falling order, and where they stood.
 * @returns values in the dtype of `x`, indices i32, both `[…, k]`; of equals the first comes first
 * @throws {ValueError} when k is below 0 or above the axis' length
 */
export function topK(x: Tensor, k: number): { values: Tensor; indices: Tensor } {
  const length = x.shape[axisOf("topK", x.shape, -1)];
  if (!Number.isInteger(k) || k < 0 || k > length) {
    throw new ValueError("topK", `k is a whole number from 0 to the axis' length ${length}, got ${k}`);
  }
  const [values, indices] = runAll(topKOp, [x], { k });
  return { values, indices: setRange(indices, [0, length - 1]) };
}
