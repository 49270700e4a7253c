/** Which reduction kernel a call becomes: rows, columns, or a dense copy first; in one pass or two. */
import type { DType } from "../tensor/dtype.ts";
import { collapse, sizeOf, stridesOf } from "../tensor/shape.ts";
import { gridFor } from "./elementwise.ts";
import { copy, type Lowering, type View } from "./lowering.ts";
import { cumsumRows, reduceColumns, type ReduceName, reduceRows, topKRows } from "./reduce.ts";
import { pickSoftmax, softmaxRows, type SoftmaxTile } from "./softmax.ts";
import { isPacked } from "./storage.ts";

type Call = Pick<Lowering<unknown>, "dispatch" | "temporary" | "dense" | "capabilities">;

/** Workgroups that keep a large device busy; below them a long reduction is split. */
const enoughGroups = 1024;
/** Threads likewise, for columns. */
const enoughThreads = 65536;

/** The result computed in 32 bits: y itself, or a temporary that is cast into it afterwards. */
function wide(call: Call, y: View, run: (y: View) => void): void {
  if (!isPacked(y.dtype)) return run(y);
  const result = call.temporary(y.shape, "f32");
  run(result);
  copy(call, result, y);
}

/** y = reduction of x over axes. */
export function lowerReduce(call: Call, name: ReduceName, x: View, axes: readonly number[], y: View): void {
  wide(call, y, (out) => reduce(call, name, x, axes, out));
}

function reduce(call: Call, name: ReduceName, x: View, axes: readonly number[], y: View): void {
  const kept = x.shape.map((_, i) => i).filter((i) => !axes.includes(i));
  const part = (of: readonly number[]) => {
    const { shape, strides } = collapse(of.map((i) => x.shape[i]), [of.map((i) => x.strides[i])]);
    return { shape, strides: strides[0] };
  };
  const outer = part(kept), inner = part(axes);
  const n = sizeOf(inner.shape), rows = sizeOf(outer.shape);
  if (rows === 0) return;
  const step = inner.strides[0] ?? 1;
  const simple = name !== "argmax" && name !== "argmin" && name !== "logsumexp";
  if (
    n > 0 && inner.shape.length === 1 && simple && step !== 1 && outer.shape.length <= 2 && outer.strides.at(-1) === 1
  ) {
    const width = outer.shape.at(-1)!;
    const columns = { k: rows / width, sk: outer.shape.length === 2 ? outer.strides[0] : 0, n, sr: step, width };
    return reduceColumnsOf(call, name, x, columns, y, n);
  }
  if (name === "logsumexp" && step === 1 && n >= heldFrom && n < heldTo && outerDense(outer, n)) {
    const tile = pickSoftmax(name, x.dtype, n);
    if (x.offset % tile.vec === 0) {
      const uniforms = { rows, loads: n / tile.vec, offset: x.offset / tile.vec };
      const grid = gridFor(Math.ceil(rows * tile.lanes / 256) * 256, call.capabilities.maxWorkgroups);
      return call.dispatch(softmaxRows(tile), [x, y], uniforms, grid);
    }
  }
  if (inner.shape.length > 1 || outer.shape.length > 3 || n === 0) {
    if (sizeOf(x.shape) > 0) {
      const order = [...kept, ...axes];
      const seen = { ...x, shape: order.map((i) => x.shape[i]), strides: order.map((i) => x.strides[i]) };
      const whole = call.temporary([rows, n], x.dtype);
      copy(call, seen, { ...whole, shape: seen.shape, strides: stridesOf(seen.shape) });
      return reduceRowsOf(call, name, whole, { shape: [rows], strides: [n] }, n, 1, y, n);
    }
    return reduceRowsOf(call, name, x, { shape: [rows], strides: [0] }, 0, 1, y, n);
  }
  reduceRowsOf(call, name, x, outer, n, step, y, n);
}

/** Rows of at least so many elements, and fewer than so many, take the kernel that holds a row in registers. */
const heldFrom = 128, heldTo = 16384;

/** Whether rows of n elements follow one another. */
function outerDense({ shape, strides }: Strided, n: number): boolean {
  return shape.length === 0 || (shape.length === 1 && strides[0] === n);
}

interface Strided {
  readonly shape: readonly number[];
  readonly strides: readonly number[];
}

function reduceRowsOf(
  call: Call,
  name: ReduceName,
  x: View,
  outer: Strided,
  n: number,
  step: number,
  y: View,
  count: number,
): void {
  const rows = sizeOf(outer.shape);
  const aligned = [x.offset, n, ...outer.strides].every((v) => v % 4 === 0);
  const vec = step === 1 && aligned && n > 0 ? 4 : 1;
  const lanes = Math.min(256, 2 ** Math.ceil(Math.log2(Math.max(1, n / vec))));
  const groups = Math.ceil(rows * lanes / 256);
  const splittable = name !== "argmax" && name !== "argmin" && n >= 16384 && groups < enoughGroups;
  const wanted = splittable ? Math.min(Math.ceil(n / 8192), Math.ceil(enoughGroups / groups)) : 1;
  const chunk = Math.ceil(Math.max(1, n) / wanted / 4) * 4;
  const splits = Math.max(1, Math.ceil(n / chunk));
  const first = splits > 1 && name === "mean" ? "sum" : name;
  const target = splits > 1 ? call.temporary([rows, splits], y.dtype) : y;
  const pad = 3 - outer.shape.length;
  const dim = (i: number) => i < pad ? 1 : outer.shape[i - pad];
  const stride = (i: number) => i < pad ? 0 : outer.strides[i - pad] / vec;
  const kernel = reduceRows({ name: first, dtype: x.dtype, output: target.dtype, lanes, vec });
  const [gx, gy] = gridFor(groups * 256, call.capabilities.maxWorkgroups);
  const uniforms = {
    rows,
    n,
    chunk,
    splits,
    step,
    offset: x.offset / vec,
    d1: dim(1),
    d2: dim(2),
    s0: stride(0),
    s1: stride(1),
    s2: stride(2),
    count,
  };
  call.dispatch(kernel, [x, target], uniforms, [gx, gy, splits]);
  if (splits > 1) reduceRowsOf(call, name, target, { shape: [rows], strides: [splits] }, splits, 1, y, count);
}

interface Columns {
  readonly k: number;
  readonly sk: number;
  readonly n: number;
  readonly sr: number;
  readonly width: number;
}

function reduceColumnsOf(
  call: Call,
  name: "sum" | "mean" | "max" | "min",
  x: View,
  { k, sk, n, sr, width }: Columns,
  y: View,
  count: number,
): void {
  const vec = [x.offset, sk, sr, width].every((v) => v % 4 === 0) ? 4 : 1;
  const threads = k * width / vec;
  const wanted = threads < enoughThreads && n >= 64
    ? Math.min(Math.ceil(n / 32), Math.ceil(enoughThreads / threads))
    : 1;
  const chunk = Math.ceil(n / wanted), splits = Math.ceil(n / chunk);
  const first = splits > 1 && name === "mean" ? "sum" : name;
  const target = splits > 1 ? call.temporary([k, splits, width], y.dtype) : y;
  const kernel = reduceColumns({ name: first, dtype: x.dtype, output: target.dtype, vec });
  const [gx, gy] = gridFor(Math.ceil(threads / 64) * 256, call.capabilities.maxWorkgroups);
  const uniforms = { outer: k, width, n, chunk, splits, offset: x.offset / vec, sk: sk / vec, sr: sr / vec, count };
  call.dispatch(kernel, [x, target], uniforms, [gx, gy, splits]);
  if (splits > 1) {
    reduceColumnsOf(call, name, target, { k, sk: splits * width, n: splits, sr: width, width }, y, count);
  }
}

/** x with one axis moved last, dense. */
function axisLast(call: Call, x: View, axis: number): View {
  const order = [...x.shape.keys()].filter((i) => i !== axis).concat(axis);
  const seen = { ...x, shape: order.map((i) => x.shape[i]), strides: order.map((i) => x.strides[i]) };
  return call.dense(seen);
}

/** Runs a kernel over rows along any axis: rows in, rows out, and back to where the axis stood. */
function alongAxis(
  call: Call,
  x: View,
  axis: number,
  y: View,
  output: DType,
  run: (x: View, y: View, rows: number, n: number) => void,
): void {
  const from = axisLast(call, x, axis), n = x.shape[axis];
  const direct = axis === x.shape.length - 1 && output === y.dtype;
  const to = direct ? y : call.temporary(from.shape, output);
  run(from, to, sizeOf(x.shape) / n, n);
  if (direct) return;
  const back = [...x.shape.keys()].map((i) => i === axis ? x.shape.length - 1 : i < axis ? i : i - 1);
  copy(call, { ...to, shape: back.map((i) => to.shape[i]), strides: back.map((i) => to.strides[i]) }, y);
}

/** y = softmax or its logarithm along an axis. */
export function lowerSoftmax(call: Call, name: SoftmaxTile["name"], x: View, axis: number, y: View): void {
  const tile = pickSoftmax(name, x.dtype, x.shape[axis]);
  alongAxis(call, x, axis, y, tile.output, (from, to, rows, n) => {
    const [gx, gy, gz] = gridFor(Math.ceil(rows * tile.lanes / 256) * 256, call.capabilities.maxWorkgroups);
    const uniforms = { rows, loads: n / tile.vec, offset: from.offset / tile.vec };
    call.dispatch(softmaxRows(tile), [from, to], uniforms, [gx, gy, gz]);
  });
}

/** The 32-bit type in which a dtype is scanned and sorted. */
function plain(call: Call, x: View): View {
  if (!isPacked(x.dtype)) return x;
  const whole = call.temporary(x.shape, "f32");
  copy(call, x, whole);
  return whole;
}

/** y = running sums along an axis. */
export function lowerCumsum(call: Call, x: View, axis: number, reverse: boolean, y: View): void {
  const from = plain(call, x);
  alongAxis(call, from, axis, y, from.dtype, (rowsIn, to, rows, n) => {
    const uniforms = { rows, n, offset: rowsIn.offset, reverse: Number(reverse) };
    call.dispatch(cumsumRows(from.dtype), [rowsIn, to], uniforms, gridFor(rows * 256, call.capabilities.maxWorkgroups));
  });
}

/** The k largest of the last axis and their places. */
export function lowerTopK(call: Call, x: View, k: number, values: View, indices: View): void {
  const from = call.dense(plain(call, x)), n = x.shape.at(-1)!, rows = sizeOf(x.shape) / n;
  wide(call, values, (out) => {
    const uniforms = { rows, n, k, offset: from.offset };
    const grid = gridFor(rows * 256, call.capabilities.maxWorkgroups);
    call.dispatch(topKRows(from.dtype), [from, out, indices], uniforms, grid);
  });
}
