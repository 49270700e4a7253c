/** Normalisations along one axis: softmax and its kin, and the layers that scale each row by its own statistics. */
import { zeros } from "./create.ts";
import { type DType, promote, roundTo } from "./dtype.ts";
import { floatOf, runAs } from "./elementwise.ts";
import { ShapeError, show, ValueError } from "./errors.ts";
import { dense, expectDType, type NdArray, type Op, type Spec } from "./op.ts";
import { logSumExp } from "./reduce.ts";
import { axisOf, sameShape, sizeOf } from "./shape.ts";
import type { Tensor } from "./tensor.ts";

const floats: readonly DType[] = ["f64", "f32", "f16", "bf16"];

/** An op that makes each slice along `axis` into another of the same length. */
function alongAxis(
  name: string,
  f: (row: ArrayLike<number>, write: (i: number, value: number) => void) => void,
): Op<{ axis: number }> {
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

/**
 * Softmax along one axis.
 * @param x scores, any shape
 * @returns the same shape and dtype; each slice along `axis` sums to 1
 * @throws {ShapeError} when `axis` is not an axis of `x`
 */
export function softmax(x: Tensor, { axis = -1 }: { readonly axis?: number } = {}): Tensor {
  return runAs(softmaxOp, [x], floatOf(x.dtype), { axis: axisOf("softmax", x.shape, axis) })[0];
}

/**
 * The logarithm of softmax along one axis, without overflow.
 * @throws {ShapeError} when `axis` is not an axis of `x`
 */
export function logSoftmax(x: Tensor, { axis = -1 }: { readonly axis?: number } = {}): Tensor {
  return runAs(logSoftmaxOp, [x], floatOf(x.dtype), { axis: axisOf("logSoftmax", x.shape, axis) })[0];
}

/** The type in which a kernel sums numbers of a dtype. */
export function accumulatorOf(dtype: DType): DType {
  return dtype === "f64" ? "f64" : "f32";
}

/** Refuses what is no row-wise layer: x [..., D] of floats, and vectors [D] of the same type. */
function checkRows(op: string, x: Spec, vectors: Readonly<Record<string, Spec>>): void {
  expectDType(op, "x", x.dtype, floats);
  if (x.shape.length === 0) throw new ShapeError(op, "x needs at least one axis, got a scalar");
  const length = x.shape.at(-1)!;
  for (const [name, { shape, dtype }] of Object.entries(vectors)) {
    if (shape.length !== 1 || shape[0] !== length) {
      const got = shape.length === 1 ? ` (${shape[0]} ≠ ${length})` : "";
      throw new ShapeError(op, `${name} has one number a column: x ${show(x.shape)}, ${name} ${show(shape)}${got}`);
    }
    expectDType(op, name, dtype, [x.dtype]);
  }
}

/** One number for each row of x. */
function perRow(x: Spec): Spec {
  return { shape: x.shape.slice(0, -1), dtype: accumulatorOf(x.dtype) };
}

/**
 * y = s·r·w with s = x + residual, r = 1/√(mean s² + eps); gives y, r, and s when there is a residual. Inputs w, x and,
 * when there is one, the residual.
 */
export const rmsNormOp: Op<{ eps: number }> = {
  name: "rmsNorm",
  infer: ([weight, x, residual]) => {
    checkRows("rmsNorm", x, { weight });
    if (residual === undefined) return [x, perRow(x)];
    expectDType("rmsNorm", "residual", residual.dtype, [x.dtype]);
    if (!sameShape(x.shape, residual.shape)) {
      throw new ShapeError("rmsNorm", `x and residual differ in shape: ${show(x.shape)}, ${show(residual.shape)}`);
    }
    return [x, perRow(x), x];
  },
  reference: ([weight, x, residual], { eps }, y, r, sum) => {
    const w = dense(weight).data, length = w.length;
    let from = dense(x).data;
    if (residual !== undefined) {
      const other = dense(residual).data;
      for (let i = 0; i < other.length; i++) sum.data[i] = from[i] + other[i];
      roundTo(sum.dtype, sum.data); // what is returned is what is normalised
      from = sum.data;
    }
    for (let row = 0; row < r.data.length; row++) {
      const start = row * length;
      let square = 0;
      for (let i = 0; i < length; i++) square += from[start + i] ** 2;
      const scale = 1 / Math.sqrt(square / Math.max(1, length) + eps);
      for (let i = 0; i < length; i++) y.data[start + i] = from[start + i] * scale * w[i];
      r.data[row] = scale;
    }
  },
};

/** ds = r·(m − s·r²·mean(m·s)) + dsum with m = dy·w; dw = Σ dy·s·r over rows. Inputs dy, s, w, r, and dsum when given. */
export const rmsNormBackwardOp: Op = {
  name: "rmsNormBackward",
  infer: ([, s, weight]) => [s, weight],
  reference: ([dy, s, weight, r, dsum], _, ds, dweight) => {
    const g = dense(dy).data, x = dense(s).data, w = dense(weight).data, scale = dense(r).data;
    const more = dsum === undefined ? null : dense(dsum).data;
    const length = w.length, dw = new Float64Array(length);
    for (let row = 0; row < scale.length; row++) {
      const start = row * length, k = scale[row];
      let dot = 0;
      for (let i = 0; i < length; i++) dot += g[start + i] * w[i] * x[start + i];
      const pull = dot * k * k / length;
      for (let i = 0; i < length; i++) {
        const at = start + i;
        ds.data[at] = k * (g[at] * w[i] - x[at] * pull) + (more === null ? 0 : more[at]);
        dw[i] += g[at] * x[at] * k;
      }
    }
    dweight.data.set(dw);
  },
};

/** y = (x − mean)·r·w + b with r = 1/√(variance + eps); gives y, mean and r. */
export const layerNormOp: Op<{ eps: number }> = {
  name: "layerNorm",
  infer: ([x, weight, bias]) => {
    checkRows("layerNorm", x, { weight, bias });
    return [x, perRow(x), perRow(x)];
  },
  reference: ([x, weight, bias], { eps }, y, means, r) => {
    const from = dense(x).data, w = dense(weight).data, b = dense(bias).data, length = w.length;
    for (let row = 0; row < r.data.length; row++) {
      const start = row * length;
      let mean = 0, square = 0;
      for (let i = 0; i < length; i++) mean += from[start + i] / length;
      for (let i = 0; i < length; i++) square += (from[start + i] - mean) ** 2;
      const scale = 1 / Math.sqrt(square / Math.max(1, length) + eps);
      for (let i = 0; i < length; i++) y.data[start + i] = (from[start + i] - mean) * scale * w[i] + b[i];
      means.data[row] = mean;
      r.data[row] = scale;
    }
  },
};

/** dx = r·(m − mean(m) − n·mean(m·n)) with m = dy·w, n = (x − mean)·r; dw = Σ dy·n and db = Σ dy over rows. */
export const layerNormBackwardOp: Op = {
  name: "layerNormBackward",
  infer: ([, x, weight]) => [x, weight, weight],
  reference: ([dy, x, weight, means, r], _, dx, dweight, dbias) => {
    const g = dense(dy).data, from = dense(x).data, w = dense(weight).data;
    const mean = dense(means).data, scale = dense(r).data;
    const length = w.length, dw = new Float64Array(length), db = new Float64Array(length);
    for (let row = 0; row < scale.length; row++) {
      const start = row * length, k = scale[row], centre = mean[row];
      let level = 0, dot = 0;
      for (let i = 0; i < length; i++) {
        const m = g[start + i] * w[i];
        level += m / length;
        dot += m * (from[start + i] - centre) * k / length;
      }
      for (let i = 0; i < length; i++) {
        const at = start + i, n = (from[at] - centre) * k;
        dx.data[at] = k * (g[at] * w[i] - level - n * dot);
        dw[i] += g[at] * n;
        db[i] += g[at];
      }
    }
    dweight.data.set(dw);
    dbias.data.set(db);
  },
};

function checkEps(op: string, eps: number): void {
  if (!(eps >= 0 && eps < Infinity)) throw new ValueError(op, `eps is at least 0 and finite, got ${eps}`);
}

/** Options of {@linkcode rmsNorm}. */
export interface RmsNormOptions {
  /** Keeps the root from 0; 1e-6 when not given. */
  readonly eps?: number;
  /** Added to `x` before it is normalised; the shape of `x`. */
  readonly residual?: Tensor;
}

/** What {@linkcode rmsNorm} gives for a residual. */
export interface ResidualNorm {
  /** The normalised sum. */
  readonly out: Tensor;
  /** x + residual, the next residual. */
  readonly sum: Tensor;
}

/**
 * Rows divided by their root mean square, times a weight a column (Zhang and Sennrich 2019, arXiv:1910.07467), in one
 * pass; with a residual, the addition before it and its sum too.
 *
 * @param x floats, `[…, D]`
 * @param weight `[D]`, taken in the dtype of `x`
 * @returns the shape and dtype of `x`; with a residual `{ out, sum }`
 * @throws {ShapeError} when `weight` is not `[D]` or the residual is not of the shape of `x`
 * @throws {ValueError} when eps is negative
 */
export function rmsNorm(
  x: Tensor,
  weight: Tensor,
  options: RmsNormOptions & { readonly residual: Tensor },
): ResidualNorm;
/** Without a residual: the normalised rows. */
export function rmsNorm(
  x: Tensor,
  weight: Tensor,
  options?: RmsNormOptions & { readonly residual?: undefined },
): Tensor;
export function rmsNorm(x: Tensor, weight: Tensor, options: RmsNormOptions = {}): Tensor | ResidualNorm {
  const { eps = 1e-6, residual } = options;
  checkEps("rmsNorm", eps);
  if (residual === undefined) {
    const [y, r] = runAs(rmsNormOp, [weight, x], floatOf(x.dtype), { eps });
    r.dispose();
    return y;
  }
  const dtype = promote("rmsNorm", floatOf(x.dtype), residual.dtype);
  const [out, r, sum] = runAs(rmsNormOp, [weight, x, residual], dtype, { eps });
  r.dispose();
  return { out, sum };
}

/**
 * Rows brought to mean 0 and variance 1, times a weight and plus a bias a column (Ba, Kiros and Hinton 2016,
 * arXiv:1607.06450).
 *
 * @param x floats, `[…, D]`
 * @param weight `[D]`, taken in the dtype of `x`
 * @param bias `[D]` likewise; none when null
 * @param options.eps keeps the root from 0; 1e-5 when not given
 * @returns the shape and dtype of `x`
 * @throws {ShapeError} when `weight` or `bias` is not `[D]`
 * @throws {ValueError} when eps is negative
 */
export function layerNorm(
  x: Tensor,
  weight: Tensor,
  bias: Tensor | null = null,
  { eps = 1e-5 }: { readonly eps?: number } = {},
): Tensor {
  checkEps("layerNorm", eps);
  const dtype = floatOf(x.dtype), none = { shape: weight.shape, dtype };
  layerNormOp.infer([{ shape: x.shape, dtype }, none, none], { eps });
  const b = bias ?? zeros(weight.shape, { dtype, backend: weight.backend });
  const [y, mean, r] = runAs(layerNormOp, [x, weight, b], dtype, { eps });
  if (bias === null) b.dispose();
  mean.dispose();
  r.dispose();
  return y;
}
