/** Gathering and scattering by index. Indices out of range read NaN (0 for integers) and are never written. */
import { arange } from "./create.ts";
import { type DType, isFloat } from "./dtype.ts";
import { cast, equal } from "./elementwise.ts";
import { DTypeError, IndexError, ShapeError, show, ValueError } from "./errors.ts";
import { expandDims } from "./movement.ts";
import { dense, expectDType, type Op, run } from "./op.ts";
import { axisOf, sameShape, type Shape, sizeOf } from "./shape.ts";
import { rangeOf, type Tensor } from "./tensor.ts";
import type { Backend } from "./backend.ts";

const indexTypes: readonly DType[] = ["i32", "u32"];

function takenShape(x: Shape, indices: Shape, axis: number): Shape {
  return [...x.slice(0, axis), ...indices, ...x.slice(axis + 1)];
}

/** y[…, i…, …] = x[…, indices[i…], …]. */
export const takeOp: Op<{ axis: number }> = {
  name: "take",
  infer: ([x, indices], { axis }) => {
    expectDType("take", "indices", indices.dtype, indexTypes);
    return { shape: takenShape(x.shape, indices.shape, axis), dtype: x.dtype };
  },
  reference: ([x, indices], { axis }, y) => {
    const from = dense(x).data, at = dense(indices).data, length = x.shape[axis];
    const inner = sizeOf(x.shape.slice(axis + 1)), outer = sizeOf(x.shape.slice(0, axis));
    const missing = isFloat(x.dtype) ? NaN : 0;
    let out = 0;
    for (let o = 0; o < outer; o++) {
      for (let i = 0; i < at.length; i++) {
        const start = (o * length + at[i]) * inner, inside = at[i] >= 0 && at[i] < length;
        for (let j = 0; j < inner; j++) y.data[out++] = inside ? from[start + j] : missing;
      }
    }
  },
};

/** y = x, then y[…, indices[i…], …] += updates[…, i…, …] in the order of i. */
export const scatterAddOp: Op<{ axis: number }> = {
  name: "scatterAdd",
  infer: ([x, indices, updates], { axis }) => {
    expectDType("scatterAdd", "indices", indices.dtype, indexTypes);
    expectDType("scatterAdd", "updates", updates.dtype, [x.dtype]);
    const shape = takenShape(x.shape, indices.shape, axis);
    if (!sameShape(shape, updates.shape)) {
      throw new ShapeError("scatterAdd", `updates are ${show(updates.shape)}, expected ${show(shape)}`);
    }
    return { shape: x.shape, dtype: x.dtype };
  },
  reference: ([x, indices, updates], { axis }, y) => {
    const at = dense(indices).data, add = dense(updates).data, length = x.shape[axis];
    const inner = sizeOf(x.shape.slice(axis + 1)), outer = sizeOf(x.shape.slice(0, axis));
    const sum = x.dtype === "f64" ? new Float64Array(sizeOf(x.shape)) : Array.from<number>({ length: sizeOf(x.shape) });
    const from = dense(x).data;
    for (let i = 0; i < from.length; i++) sum[i] = from[i];
    let u = 0;
    for (let o = 0; o < outer; o++) {
      for (let i = 0; i < at.length; i++) {
        const start = (o * length + at[i]) * inner, inside = at[i] >= 0 && at[i] < length;
        for (let j = 0; j < inner; j++, u++) if (inside) sum[start + j] += add[u];
      }
    }
    y.data.set(sum);
  },
};

/**
 * Refuses indices that the host knows to be outside an axis.
 * @throws {IndexError} naming the smallest or largest of them
 */
export function checkRange(op: string, indices: Tensor, length: number): void {
  const range = rangeOf(indices);
  const bad = range?.find((index) => index < 0 || index >= length);
  if (bad !== undefined) throw new IndexError(op, `index ${bad} is outside an axis of length ${length}`);
}

/**
 * Elements of `x` by their place along an axis, as an embedding reads its rows.
 *
 * @param indices i32 or u32, any shape, which takes the place of the axis
 * @throws {IndexError} when an index made from host data is outside the axis; an index computed on the device that is
 * outside reads NaN, 0 for integers
 * @throws {DTypeError} when the indices are no integers
 */
export function take(x: Tensor, indices: Tensor, { axis = 0 }: { readonly axis?: number } = {}): Tensor {
  const at = axisOf("take", x.shape, axis);
  checkRange("take", indices, x.shape[at]);
  return run(takeOp, [x, indices], { axis: at });
}

/**
 * `x` with updates added at places along an axis; equal places add up, always in the same order.
 *
 * @param indices i32 or u32; outside the axis, an update is dropped
 * @param updates the shape of `take(x, indices, { axis })`
 * @throws {IndexError} when an index made from host data is outside the axis
 */
export function scatterAdd(
  x: Tensor,
  indices: Tensor,
  updates: Tensor,
  { axis = 0 }: { readonly axis?: number } = {},
): Tensor {
  const at = axisOf("scatterAdd", x.shape, axis);
  checkRange("scatterAdd", indices, x.shape[at]);
  return run(scatterAddOp, [x, indices, updates], { axis: at });
}

/**
 * 1 at each index, 0 elsewhere, along a new last axis.
 * @param depth the length of that axis
 * @throws {IndexError} when an index made from host data is not below `depth`
 */
export function oneHot(indices: Tensor, depth: number, { dtype = "f32" }: { readonly dtype?: DType } = {}): Tensor {
  if (!indexTypes.includes(indices.dtype)) {
    throw new DTypeError("oneHot", `indices are ${indices.dtype}, expected i32 or u32`);
  }
  if (!Number.isInteger(depth) || depth < 0) throw new ValueError("oneHot", `depth is a whole number, got ${depth}`);
  checkRange("oneHot", indices, depth);
  const places = arange(0, depth, { dtype: indices.dtype, backend: indices.backend });
  return cast(equal(expandDims(indices, -1), places), dtype);
}

/** The identity matrix `[n, m]`; square when m is not given. */
export function eye(
  n: number,
  m: number = n,
  options: { readonly dtype?: DType; readonly backend?: Backend } = {},
): Tensor {
  const rows = arange(0, n, { dtype: "i32", backend: options.backend });
  const columns = arange(0, m, { dtype: "i32", backend: options.backend });
  return cast(equal(expandDims(rows, 1), columns), options.dtype ?? "f32");
}
