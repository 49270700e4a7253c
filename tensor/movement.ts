/** Movement: other shapes, orders and parts of the same numbers. Views where the layout allows, copies where not. */
import { ShapeError, show, ValueError } from "./errors.ts";
import { forEachOffset, type NdArray, type Op, run } from "./op.ts";
import {
  axesOf,
  axisOf,
  broadcastLayout,
  broadcastShapes,
  checkShape,
  type Layout,
  reshapeLayout,
  sameShape,
  type Shape,
  sizeOf,
  stridesOf,
} from "./shape.ts";
import { isFloat, promote } from "./dtype.ts";
import { runAs } from "./elementwise.ts";
import type { Tensor } from "./tensor.ts";

/** y takes the elements that a layout of x sees, in row-major order. */
function gather(x: NdArray, layout: Layout, y: NdArray): void {
  let i = 0;
  forEachOffset(layout, (at) => {
    y.data[i++] = x.data[at];
  });
}

/** The same elements in row-major order under another shape. */
export const reshapeOp: Op<{ shape: Shape }> = {
  name: "reshape",
  infer: ([x], { shape }) => ({ shape, dtype: x.dtype }),
  view: (x, { shape }) => reshapeLayout(x, shape),
  reference: ([x], _, y) => gather(x, x, y),
};

/** y[i_axes[0], i_axes[1], …] = x[i_0, i_1, …]. */
export const permuteOp: Op<{ axes: readonly number[] }> = {
  name: "permute",
  infer: ([x], { axes }) => ({ shape: axes.map((a) => x.shape[a]), dtype: x.dtype }),
  view: ({ shape, strides, offset }, { axes }) => ({
    shape: axes.map((a) => shape[a]),
    strides: axes.map((a) => strides[a]),
    offset,
  }),
  reference: ([x], params, y) => gather(x, permuteOp.view!(x, params)!, y),
};

/** y[…, i, …] = x[…, 0, …] along axes of length 1, and over new axes in front. */
export const broadcastToOp: Op<{ shape: Shape }> = {
  name: "broadcastTo",
  infer: ([x], { shape }) => {
    if (!sameShape(broadcastShapes("broadcastTo", x.shape, shape), shape)) {
      throw new ShapeError("broadcastTo", `${show(x.shape)} does not broadcast to ${show(shape)}`);
    }
    return { shape, dtype: x.dtype };
  },
  view: (x, { shape }) => broadcastLayout(x, shape),
  reference: ([x], { shape }, y) => gather(x, broadcastLayout(x, shape), y),
};

interface SliceParams {
  readonly begin: readonly number[];
  readonly end: readonly number[];
  readonly strides: readonly number[];
}

/** y[i] = x[begin + i · stride] along every axis, while below end. */
export const sliceOp: Op<SliceParams> = {
  name: "slice",
  infer: ([x], { begin, end, strides }) => ({
    shape: begin.map((b, i) => Math.max(0, Math.ceil((end[i] - b) / strides[i]))),
    dtype: x.dtype,
  }),
  view: (x, { begin, end, strides }) => ({
    shape: begin.map((b, i) => Math.max(0, Math.ceil((end[i] - b) / strides[i]))),
    strides: x.strides.map((s, i) => s * strides[i]),
    offset: begin.reduce((offset, b, i) => offset + b * x.strides[i], x.offset),
  }),
  reference: ([x], params, y) => gather(x, sliceOp.view!(x, params)!, y),
};

interface PadParams {
  readonly before: readonly number[];
  readonly after: readonly number[];
  /** Padding between neighbours: what makes pad the transpose of a strided slice. */
  readonly interior: readonly number[];
  readonly value: number;
}

/** x with `value` around it, and `interior` times between its elements. */
export const padOp: Op<PadParams> = {
  name: "pad",
  infer: ([x], { before, after, interior }) => ({
    shape: x.shape.map((n, i) => before[i] + n + Math.max(0, n - 1) * interior[i] + after[i]),
    dtype: x.dtype,
  }),
  reference: ([x], { before, interior, value }, y) => {
    y.data.fill(value);
    const steps = stridesOf(y.shape);
    const inside = {
      shape: x.shape,
      strides: steps.map((s, i) => s * (interior[i] + 1)),
      offset: before.reduce((offset, b, i) => offset + b * steps[i], 0),
    };
    const from: number[] = [];
    forEachOffset(x, (at) => from.push(at));
    let i = 0;
    forEachOffset(inside, (at) => {
      y.data[at] = x.data[from[i++]];
    });
  },
};

/** The inputs one after another along an axis. */
export const concatOp: Op<{ axis: number }> = {
  name: "concat",
  infer: (inputs, { axis }) => {
    const [first] = inputs;
    inputs.forEach((x, i) => {
      const fits = x.shape.length === first.shape.length && x.shape.every((n, a) => a === axis || n === first.shape[a]);
      if (!fits || x.dtype !== first.dtype) {
        throw new ShapeError(
          "concat",
          `input ${i} does not fit along axis ${axis}: ${first.dtype} ${show(first.shape)}, ${x.dtype} ${
            show(x.shape)
          }`,
        );
      }
    });
    const total = inputs.reduce((n, x) => n + x.shape[axis], 0);
    return { shape: first.shape.map((n, a) => a === axis ? total : n), dtype: first.dtype };
  },
  reference: (inputs, { axis }, y) => {
    const strides = stridesOf(y.shape);
    let start = 0;
    for (const x of inputs) {
      const from: number[] = [];
      forEachOffset(x, (at) => from.push(at));
      let i = 0;
      forEachOffset({ shape: x.shape, strides, offset: start * strides[axis] }, (at) => {
        y.data[at] = x.data[from[i++]];
      });
      start += x.shape[axis];
    }
  },
};

/**
 * The same elements under another shape; one axis may be −1 and is worked out.
 * @throws {ShapeError} when the sizes differ
 */
export function reshape(x: Tensor, shape: Shape): Tensor {
  let target = [...shape];
  const open = target.indexOf(-1);
  if (open >= 0) {
    const rest = sizeOf(target.filter((_, i) => i !== open));
    const length = rest === 0 ? 0 : x.size / rest;
    if (!Number.isInteger(length) || target.indexOf(-1, open + 1) >= 0) {
      throw new ShapeError("reshape", `${show(x.shape)} (${x.size} elements) does not fill ${show(shape)}`);
    }
    target = target.map((n, i) => i === open ? length : n);
  }
  checkShape("reshape", target);
  if (sizeOf(target) !== x.size) {
    throw new ShapeError("reshape", `${show(x.shape)} has ${x.size} elements, ${show(target)} has ${sizeOf(target)}`);
  }
  return run(reshapeOp, [x], { shape: target });
}

/**
 * The axes in another order.
 * @throws {ShapeError} when `axes` does not name every axis once
 */
export function permute(x: Tensor, axes: readonly number[]): Tensor {
  const order = axes.map((a) => axisOf("permute", x.shape, a));
  if (axesOf("permute", x.shape, order).length !== x.rank) {
    throw new ShapeError(
      "permute",
      `${show(x.shape)} has ${x.rank} axes, the order ${show(axes)} names ${axes.length}`,
    );
  }
  return run(permuteOp, [x], { axes: order });
}

/** Two axes swapped; the last two when not given. */
export function transpose(x: Tensor, axis0 = -2, axis1 = -1): Tensor {
  const a = axisOf("transpose", x.shape, axis0), b = axisOf("transpose", x.shape, axis1);
  return permute(x, x.shape.map((_, i) => i === a ? b : i === b ? a : i));
}

/**
 * `x` repeated along axes of length 1 and along new axes in front, without a copy.
 * @throws {ShapeError} when the shapes do not broadcast
 */
export function broadcastTo(x: Tensor, shape: Shape): Tensor {
  return run(broadcastToOp, [x], { shape: [...checkShape("broadcastTo", shape)] });
}

/**
 * The part of `x` from `begin` up to and without `end`, axis by axis from the first; axes not named stay whole.
 * Negative places count from the end, places beyond it are cut to it.
 *
 * @param options.strides takes every n-th element along an axis, n ≥ 1
 * @throws {ShapeError} when there are more places than axes
 * @throws {ValueError} when a place is no whole number or a stride is below 1
 *
 * @example
 * ```ts
 * import { slice, tensor } from "@flashtape/flashtape";
 * const x = tensor([[1, 2, 3], [4, 5, 6]]);
 * console.log(await slice(x, [0, 1], [2, 3]).array()); // [[2, 3], [5, 6]]
 * ```
 */
export function slice(
  x: Tensor,
  begin: readonly number[],
  end: readonly number[] = [],
  { strides = [] }: { readonly strides?: readonly number[] } = {},
): Tensor {
  const given = Math.max(begin.length, end.length, strides.length);
  if (given > x.rank) throw new ShapeError("slice", `${given} places for ${x.rank} axes of ${show(x.shape)}`);
  const bad = [...begin, ...end, ...strides].find((n) => !Number.isInteger(n));
  if (bad !== undefined) throw new ValueError("slice", `places and strides are whole numbers, got ${bad}`);
  if (strides.some((s) => s < 1)) throw new ValueError("slice", `strides are at least 1, got ${show(strides)}`);
  const place = (n: number, length: number) => Math.min(length, Math.max(0, n < 0 ? n + length : n));
  const params = {
    begin: x.shape.map((n, i) => place(begin[i] ?? 0, n)),
    end: x.shape.map((n, i) => place(end[i] ?? n, n)),
    strides: x.shape.map((_, i) => strides[i] ?? 1),
  };
  return run(sliceOp, [x], params);
}

/**
 * `x` with a border.
 * @param widths `[before, after]` for each axis
 * @param options.value what the border holds; 0 when not given
 * @throws {ShapeError} when there is not one pair an axis
 */
export function pad(
  x: Tensor,
  widths: readonly (readonly [before: number, after: number])[],
  { value = 0 }: { readonly value?: number } = {},
): Tensor {
  if (widths.length !== x.rank) {
    throw new ShapeError("pad", `${show(x.shape)} has ${x.rank} axes, got ${widths.length} pairs of widths`);
  }
  const bad = widths.flat().find((n) => !Number.isInteger(n) || n < 0);
  if (bad !== undefined) throw new ValueError("pad", `widths are whole numbers of at least 0, got ${bad}`);
  const ends = x.dtype === "i32" ? [-(2 ** 31), 2 ** 31 - 1] : [0, x.dtype === "u32" ? 2 ** 32 - 1 : 1];
  if (!isFloat(x.dtype) && !(Number.isInteger(value) && value >= ends[0] && value <= ends[1])) {
    throw new ValueError("pad", `the border of ${x.dtype} ${show(x.shape)} cannot hold ${value}`);
  }
  return run(padOp, [x], {
    before: widths.map(([n]) => n),
    after: widths.map(([, n]) => n),
    interior: widths.map(() => 0),
    value,
  });
}

/**
 * Tensors one after another along an axis; dtypes meet in the widest.
 * @throws {ShapeError} when the other axes differ or there is no tensor
 */
export function concat(xs: readonly Tensor[], { axis = 0 }: { readonly axis?: number } = {}): Tensor {
  if (xs.length === 0) throw new ShapeError("concat", "needs at least one tensor");
  const dtype = xs.map((x) => x.dtype).reduce((a, b) => promote("concat", a, b));
  return runAs(concatOp, xs, dtype, { axis: axisOf("concat", xs[0].shape, axis) })[0];
}

/**
 * Tensors of one shape along a new axis.
 * @throws {ShapeError} when their shapes differ
 */
export function stack(xs: readonly Tensor[], { axis = 0 }: { readonly axis?: number } = {}): Tensor {
  if (xs.length === 0) throw new ShapeError("stack", "needs at least one tensor");
  const at = axisOf("stack", [...xs[0].shape, 1], axis);
  return concat(xs.map((x) => expandDims(x, at)), { axis: at });
}

/**
 * Without axes of length 1: all of them, or those named.
 * @throws {ShapeError} when a named axis is longer
 */
export function squeeze(x: Tensor, { axis }: { readonly axis?: number | readonly number[] } = {}): Tensor {
  const axes = axis === undefined ? x.shape.flatMap((n, i) => n === 1 ? [i] : []) : axesOf("squeeze", x.shape, axis);
  const long = axes.find((a) => x.shape[a] !== 1);
  if (long !== undefined) {
    throw new ShapeError("squeeze", `axis ${long} of ${show(x.shape)} has length ${x.shape[long]}, not 1`);
  }
  return reshape(x, x.shape.filter((_, i) => !axes.includes(i)));
}

/** With a new axis of length 1 at `axis` of the result. */
export function expandDims(x: Tensor, axis: number): Tensor {
  const at = axisOf("expandDims", [...x.shape, 1], axis);
  return reshape(x, x.shape.toSpliced(at, 0, 1));
}
