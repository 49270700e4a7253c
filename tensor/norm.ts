/** Normalisations along one axis: softmax and its kin. */
import { cast } from "./elementwise.ts";
import { type DType, isFloat } from "./dtype.ts";
import { dense, expectDType, type NdArray, type Op, run } from "./op.ts";
import { logSumExp } from "./reduce.ts";
import { axisOf, sizeOf } from "./shape.ts";
import type { Tensor } from "./tensor.ts";

const floats: readonly DType[] = ["f64", "f32", "f16", "bf16"];

/** An op that makes each slice along `axis` into another of the same length. */
function alongAxis(name: string, f: (row: ArrayLike<number>, write: (i: number, value: number) => void) => void): Op<{ axis: number }> {
  return {
    name,
    infer: ([x]) => {
      expectDType(name, "input", x.dtype, floats);
      return { shape: x.shape, dtype: x.dtype };
    },
    reference: ([x], { axis }, y) => {
      for (const { row, at } of rows(x, axis)) f(row, (i, value) => y.data[at(i)] = value);
    },
  };
}

/** Each slice along an axis, and the place of its elements in a dense result. */
function* rows(x: NdArray, axis: number): Generator<{ row: ArrayLike<number>; at: (i: number) => number }> {
  const { data } = dense(x), length = x.shape[axis];
  const inner = sizeOf(x.shape.slice(axis + 1)), outer = sizeOf(x.shape.slice(0, axis));
  const copy = new Float64Array(length);
  for (let o = 0; o < outer; o++) {
    for (let i = 0; i < inner; i++) {
      const at = (j: number) => (o * length + j) * inner + i;
      for (let j = 0; j < length; j++) copy[j] = data[at(j)];
      yield { row: copy, at };
    }
  }
}

/** y = exp(x − max x) / Σ exp(x − max x) along one axis. */
export const softmaxOp: Op<{ axis: number }> = alongAxis("softmax", (row, write) => {
  let max = -Infinity, sum = 0;
  for (let i = 0; i < row.length; i++) max = Math.max(max, row[i]);
  for (let i = 0; i < row.length; i++) sum += Math.exp(row[i] - max);
  for (let i = 0; i < row.length; i++) write(i, Math.exp(row[i] - max) / sum);
});

/** y = x − log Σ exp x along one axis. */
export const logSoftmaxOp: Op<{ axis: number }> = alongAxis("logSoftmax", (row, write) => {
  const lse = logSumExp(row);
  for (let i = 0; i < row.length; i++) write(i, row[i] - lse);
});

function floating(x: Tensor): Tensor {
  return isFloat(x.dtype) ? x : cast(x, "f32");
}

/**
 * Softmax along one axis.
 * @param x scores, any shape
 * @returns the same shape and dtype; each slice along `axis` sums to 1
 * @throws {ShapeError} when `axis` is not an axis of `x`
 */
export function softmax(x: Tensor, { axis = -1 }: { readonly axis?: number } = {}): Tensor {
  return run(softmaxOp, [floating(x)], { axis: axisOf("softmax", x.shape, axis) });
}

/**
 * The logarithm of softmax along one axis, without overflow.
 * @throws {ShapeError} when `axis` is not an axis of `x`
 */
export function logSoftmax(x: Tensor, { axis = -1 }: { readonly axis?: number } = {}): Tensor {
  return run(logSoftmaxOp, [floating(x)], { axis: axisOf("logSoftmax", x.shape, axis) });
}
