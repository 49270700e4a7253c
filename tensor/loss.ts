/**
 * Cross-entropy, from logits and straight from the last layer's input.
 *
 * For a row with logits x, label t and V classes: z = softcap·tanh(x/softcap), or x; lse = log Σ e^z;
 *   loss = lse − (1 − ε)·z_t − ε·mean z + zLoss·lse²
 *   dz_j = e^(z_j − lse)·(1 + 2·zLoss·lse) − (1 − ε)·[j = t] − ε/V,  dx = dz·(1 − (z/softcap)²).
 */
import { ones } from "./create.ts";
import { cast, div, equal, logicalNot } from "./elementwise.ts";
import { type DType, isFloat, promote } from "./dtype.ts";
import { IndexError, ShapeError, show, ValueError } from "./errors.ts";
import { reshape } from "./movement.ts";
import { accumulatorOf } from "./norm.ts";
import { dense, expectDType, listening, type NdArray, type Op, runAll, type Spec } from "./op.ts";
import { logSumExp, sum } from "./reduce.ts";
import { sameShape, type Shape, sizeOf } from "./shape.ts";
import { rangeOf, type Tensor } from "./tensor.ts";

const floats: readonly DType[] = ["f64", "f32", "f16", "bf16"];

/** How a row's loss is computed. */
export interface RowLossOptions {
  /** Rows with this label have loss and gradient 0; −100 when not given. */
  readonly ignoreIndex?: number;
  /** ε: the part of the target that is spread over all classes (Szegedy et al. 2016, arXiv:1512.00567); 0 when not given. */
  readonly labelSmoothing?: number;
  /** Adds zLoss·lse², which keeps logits from drifting (PaLM, arXiv:2204.02311); 0 when not given. */
  readonly zLoss?: number;
  /** Bends logits to (−softcap, softcap) by tanh; 0, the default, is off. */
  readonly softcap?: number;
}

/** Options of {@linkcode crossEntropy} and {@linkcode linearCrossEntropy}. */
export interface CrossEntropyOptions extends RowLossOptions {
  /** `"mean"` over the rows not ignored, the default; `"sum"`; or `"none"`, a number a row. */
  readonly reduction?: "mean" | "sum" | "none";
}

/** What the ops are told. */
export type RowLoss = Required<RowLossOptions>;

/** One row: turns logits in `z` into their loss and lse, and, when wanted, into dx. */
function rowLoss(
  z: Float64Array,
  label: number,
  params: RowLoss,
  wantsGradient: boolean,
): { loss: number; lse: number } {
  const { ignoreIndex, labelSmoothing, zLoss, softcap } = params, V = z.length;
  if (softcap > 0) { for (let j = 0; j < V; j++) z[j] = softcap * Math.tanh(z[j] / softcap); }
  const lse = logSumExp(z);
  if (label === ignoreIndex) {
    if (wantsGradient) z.fill(0);
    return { loss: 0, lse };
  }
  const inside = label >= 0 && label < V;
  let total = 0;
  if (labelSmoothing > 0) { for (let j = 0; j < V; j++) total += z[j]; }
  const target = inside ? (1 - labelSmoothing) * z[label] : NaN;
  const loss = lse - target - labelSmoothing * total / V + zLoss * lse * lse;
  if (!wantsGradient) return { loss, lse };
  for (let j = 0; j < V; j++) {
    const hit = j === label ? 1 - labelSmoothing : 0;
    const dz = Math.exp(z[j] - lse) * (1 + 2 * zLoss * lse) - hit - labelSmoothing / V;
    z[j] = inside ? dz * (softcap > 0 ? 1 - (z[j] / softcap) ** 2 : 1) : NaN;
  }
  return { loss, lse };
}

function checkLabels(op: string, labels: Spec, rows: number): void {
  expectDType(op, "labels", labels.dtype, ["i32"]);
  if (!sameShape(labels.shape, [rows])) {
    throw new ShapeError(op, `one label a row: ${rows} rows, labels ${show(labels.shape)}`);
  }
}

/** Loss and lse of each row. Inputs logits [N, V], labels [N]. */
export const crossEntropyOp: Op<RowLoss> = {
  name: "crossEntropy",
  infer: ([logits, labels]) => {
    expectDType("crossEntropy", "logits", logits.dtype, floats);
    const [N] = logits.shape;
    checkLabels("crossEntropy", labels, N);
    const row: Spec = { shape: [N], dtype: accumulatorOf(logits.dtype) };
    return [row, row];
  },
  reference: ([logits, labels], params, losses, lses) => {
    const [N, V] = logits.shape, x = dense(logits).data, t = dense(labels).data, z = new Float64Array(V);
    for (let i = 0; i < N; i++) {
      z.set(x.subarray(i * V, (i + 1) * V));
      const { loss, lse } = rowLoss(z, t[i], params, false);
      losses.data[i] = loss;
      lses.data[i] = lse;
    }
  },
};

/** dlogits. Inputs dloss [N], logits [N, V], labels [N], lse [N]. */
export const crossEntropyBackwardOp: Op<RowLoss> = {
  name: "crossEntropyBackward",
  infer: ([, logits]) => logits,
  reference: ([dloss, logits, labels], params, dlogits) => {
    const [N, V] = logits.shape, x = dense(logits).data, t = dense(labels).data, g = dense(dloss).data;
    const z = new Float64Array(V);
    for (let i = 0; i < N; i++) {
      z.set(x.subarray(i * V, (i + 1) * V));
      rowLoss(z, t[i], params, true);
      for (let j = 0; j < V; j++) dlogits.data[i * V + j] = g[i] * z[j];
    }
  },
};

function checkLinear(op: string, [hidden, weight, labels]: readonly Spec[]): void {
  expectDType(op, "hidden", hidden.dtype, floats);
  expectDType(op, "weight", weight.dtype, [hidden.dtype]);
  checkLabels(op, labels, hidden.shape[0]);
}

/** Calls `f` with the logits of each row in turn: no more than one row of them exists. */
function forEachLogits(hidden: NdArray, weight: NdArray, f: (z: Float64Array, i: number) => void): void {
  const [N, D] = hidden.shape, [V] = weight.shape, h = dense(hidden).data, w = dense(weight).data;
  const z = new Float64Array(V), row = new Float64Array(D);
  for (let i = 0; i < N; i++) {
    row.set(h.subarray(i * D, (i + 1) * D));
    for (let j = 0, at = 0; j < V; j++) {
      let dot = 0;
      for (let d = 0; d < D; d++) dot += row[d] * w[at++];
      z[j] = dot;
    }
    f(z, i);
  }
}

/** From dz of row i: dhidden_i = dz·W, and dW += dzᵀ·hidden_i. */
function pullRow(
  dz: Float64Array,
  i: number,
  hidden: NdArray,
  weight: NdArray,
  dhidden: NdArray,
  dw: Float64Array,
): void {
  const D = hidden.shape[1], h = dense(hidden).data, w = dense(weight).data, start = i * D;
  const dh = new Float64Array(D);
  for (let j = 0; j < dz.length; j++) {
    const g = dz[j];
    if (g === 0) continue;
    for (let d = 0, at = j * D; d < D; d++, at++) {
      dh[d] += g * w[at];
      dw[at] += g * h[start + d];
    }
  }
  dhidden.data.set(dh, start);
}

/** Loss and lse of each row of hidden·weightᵀ. Inputs hidden [N, D], weight [V, D], labels [N]. */
export const linearCrossEntropyOp: Op<RowLoss> = {
  name: "linearCrossEntropy",
  infer: (inputs) => {
    checkLinear("linearCrossEntropy", inputs);
    const row: Spec = { shape: [inputs[0].shape[0]], dtype: accumulatorOf(inputs[0].dtype) };
    return [row, row];
  },
  reference: ([hidden, weight, labels], params, losses, lses) => {
    const t = dense(labels).data;
    forEachLogits(hidden, weight, (z, i) => {
      const { loss, lse } = rowLoss(z, t[i], params, false);
      losses.data[i] = loss;
      lses.data[i] = lse;
    });
  },
};

/** dhidden and dweight; the logits are computed again. Inputs dloss [N], hidden, weight, labels, lse [N]. */
export const linearCrossEntropyBackwardOp: Op<RowLoss> = {
  name: "linearCrossEntropyBackward",
  infer: ([, hidden, weight]) => [hidden, weight],
  reference: ([dloss, hidden, weight, labels], params, dhidden, dweight) => {
    const t = dense(labels).data, g = dense(dloss).data, dw = new Float64Array(sizeOf(weight.shape));
    forEachLogits(hidden, weight, (z, i) => {
      rowLoss(z, t[i], params, true);
      for (let j = 0; j < z.length; j++) z[j] *= g[i];
      pullRow(z, i, hidden, weight, dhidden, dw);
    });
    dweight.data.set(dw);
  },
};

/**
 * scale · Σ loss with its gradients by hidden and weight, made while a chunk's logits are there: three products where a
 * backward pass of its own would need four. Inputs hidden [N, D], weight [V, D], labels [N], scale [].
 */
export const linearCrossEntropySumOp: Op<RowLoss> = {
  name: "linearCrossEntropySum",
  infer: (inputs) => {
    checkLinear("linearCrossEntropy", inputs);
    const [hidden, weight] = inputs;
    return [{ shape: [], dtype: accumulatorOf(hidden.dtype) }, hidden, weight];
  },
  reference: ([hidden, weight, labels, scale], params, total, dhidden, dweight) => {
    const t = dense(labels).data, [factor] = dense(scale).data, dw = new Float64Array(sizeOf(weight.shape));
    let all = 0;
    forEachLogits(hidden, weight, (z, i) => {
      all += rowLoss(z, t[i], params, true).loss;
      for (let j = 0; j < z.length; j++) z[j] *= factor;
      pullRow(z, i, hidden, weight, dhidden, dw);
    });
    total.data[0] = factor * all;
    dweight.data.set(dw);
  },
};

/** The gradients that the forward pass made, times that of the loss. Inputs dtotal [], dhidden, dweight. */
export const linearCrossEntropySumBackwardOp: Op = {
  name: "linearCrossEntropySumBackward",
  infer: ([, dhidden, dweight]) => [dhidden, dweight],
  reference: ([dtotal, ...made], _, ...outputs) => {
    const [g] = dense(dtotal).data;
    made.forEach((x, n) => {
      const { data } = dense(x);
      for (let i = 0; i < data.length; i++) outputs[n].data[i] = g * data[i];
    });
  },
};

/** The options with their defaults, checked. */
function checked(op: string, options: CrossEntropyOptions): Required<CrossEntropyOptions> {
  const { ignoreIndex = -100, labelSmoothing = 0, zLoss = 0, softcap = 0, reduction = "mean" } = options;
  if ((ignoreIndex | 0) !== ignoreIndex) throw new ValueError(op, `ignoreIndex is an i32, got ${ignoreIndex}`);
  if (!(labelSmoothing >= 0 && labelSmoothing < 1)) {
    throw new ValueError(op, `labelSmoothing is at least 0 and below 1, got ${labelSmoothing}`);
  }
  if (!(zLoss >= 0 && zLoss < Infinity)) throw new ValueError(op, `zLoss is at least 0 and finite, got ${zLoss}`);
  if (!(softcap >= 0 && softcap < Infinity)) {
    throw new ValueError(op, `softcap is above 0 and finite, or 0 for none, got ${softcap}`);
  }
  if (!["mean", "sum", "none"].includes(reduction)) {
    throw new ValueError(op, `reduction is "mean", "sum" or "none", got "${reduction}"`);
  }
  return { ignoreIndex, labelSmoothing, zLoss, softcap, reduction };
}

/** Refuses labels that the host knows to be no class. */
function checkClasses(op: string, labels: Tensor, classes: number, ignoreIndex: number): void {
  expectDType(op, "labels", labels.dtype, ["i32", "u32"]);
  const bad = rangeOf(labels)?.find((label) => label !== ignoreIndex && (label < 0 || label >= classes));
  if (bad !== undefined) {
    throw new IndexError(op, `label ${bad} is no class of ${classes} and not ignoreIndex (${ignoreIndex})`);
  }
}

/** How many rows count. */
function countOf(labels: Tensor, ignoreIndex: number, dtype: DType): Tensor {
  return sum(cast(logicalNot(equal(labels, ignoreIndex)), dtype));
}

/** Rows' losses as the reduction wants them. */
function reduced(
  loss: Tensor,
  labels: Tensor,
  shape: Shape,
  { reduction, ignoreIndex }: Required<CrossEntropyOptions>,
): Tensor {
  if (reduction === "none") return reshape(loss, shape);
  if (reduction === "sum") return sum(loss);
  return div(sum(loss), countOf(labels, ignoreIndex, loss.dtype));
}

function checkLead(op: string, what: string, x: Tensor, labels: Tensor): void {
  if (x.rank === 0 || !sameShape(x.shape.slice(0, -1), labels.shape)) {
    throw new ShapeError(
      op,
      `labels have the shape of ${what} without its last axis: ${what} ${show(x.shape)}, labels ${show(labels.shape)}`,
    );
  }
}

/**
 * Cross-entropy of logits and labels in one pass over the logits.
 *
 * @param logits `[…, V]`, floats
 * @param labels `[…]`, i32 or u32, below V or `ignoreIndex`
 * @returns f32 (f64 for f64): a scalar, or one number a label with reduction `"none"`. The mean over no rows is NaN
 * @throws {ShapeError} when the labels do not fit the logits
 * @throws {IndexError} when a label made from host data is no class; one computed on the device makes its row NaN
 * @throws {ValueError} when an option is out of its range
 */
export function crossEntropy(logits: Tensor, labels: Tensor, options: CrossEntropyOptions = {}): Tensor {
  const all = checked("crossEntropy", options), { reduction: _, ...params } = all;
  checkLead("crossEntropy", "logits", logits, labels);
  const V = logits.shape.at(-1)!;
  checkClasses("crossEntropy", labels, V, params.ignoreIndex);
  const x = reshape(isFloat(logits.dtype) ? logits : cast(logits, "f32"), [labels.size, V]);
  const t = cast(reshape(labels, [labels.size]), "i32");
  const [loss, lse] = runAll(crossEntropyOp, [x, t], params);
  lse.dispose();
  return reduced(loss, t, labels.shape, all);
}

/**
 * Cross-entropy of `hidden · weightᵀ` and labels, without ever holding all the logits: they exist for a chunk of rows at
 * a time. Under `grad`, reductions `"mean"` and `"sum"` make the gradients along with the loss, while a chunk's logits are
 * there; `"none"` computes the logits again on the way back.
 *
 * The gradient of a 16-bit weight is summed over chunks in f32 and rounded once, while that sum takes no more than
 * 128 MiB (V·D of 2²⁵). That of a larger vocabulary is rounded after each chunk: at 4096 rows of 128256 classes 16 times.
 *
 * @param hidden `[…, D]`, floats
 * @param weight `[V, D]`, the last layer's weight as [out, in]
 * @param labels `[…]`, i32 or u32, below V or `ignoreIndex`
 * @returns as {@linkcode crossEntropy}
 * @throws as {@linkcode crossEntropy}
 */
export function linearCrossEntropy(
  hidden: Tensor,
  weight: Tensor,
  labels: Tensor,
  options: CrossEntropyOptions = {},
): Tensor {
  const op = "linearCrossEntropy";
  const all = checked(op, options), { reduction, ...params } = all;
  checkLead(op, "hidden", hidden, labels);
  if (weight.rank !== 2 || weight.shape[1] !== hidden.shape.at(-1)) {
    throw new ShapeError(
      op,
      `weight is [V, D] for hidden […, D]: hidden ${show(hidden.shape)}, weight ${show(weight.shape)}`,
    );
  }
  checkClasses(op, labels, weight.shape[0], params.ignoreIndex);
  const dtype = promote(op, hidden.dtype, weight.dtype);
  const x = cast(reshape(hidden, [labels.size, weight.shape[1]]), dtype), w = cast(weight, dtype);
  const t = cast(reshape(labels, [labels.size]), "i32");
  const wanted = listening().some((o) => o.tracks?.(x) || o.tracks?.(w));
  if (reduction === "none" || !wanted || labels.size === 0) {
    const [loss, lse] = runAll(linearCrossEntropyOp, [x, w, t], params);
    lse.dispose();
    return reduced(loss, t, labels.shape, all);
  }
  const exact = accumulatorOf(dtype);
  const scale = reduction === "sum"
    ? ones([], { dtype: exact, backend: x.backend })
    : div(1, countOf(t, params.ignoreIndex, exact));
  const [total, dx, dw] = runAll(linearCrossEntropySumOp, [x, w, t, scale], params);
  dx.dispose();
  dw.dispose();
  return total;
}
