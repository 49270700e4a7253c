/** From a matmul call to a plan: operands read where they lie when one of their last two axes is adjacent in memory. */
import type { DType } from "../tensor/dtype.ts";
import { matmulSizes } from "../tensor/matmul.ts";
import { broadcastLayout, collapse, type Shape, sizeOf } from "../tensor/shape.ts";
import { copy, type Lowering, type View } from "./lowering.ts";
import type { MatmulDType } from "./matmul.ts";
import type { PooledBuffer } from "./memory.ts";
import { stripColumns } from "./matmul_matrix.ts";
import type { MatrixFold } from "./matmul_matrix_fold.ts";
import { pickMatrix, planMatrix } from "./matmul_matrix_plan.ts";
import { type MatmulPlan, type MatmulProblem, type MatmulView, planMatmul } from "./matmul_plan.ts";
import { isPacked } from "./storage.ts";

interface Params {
  readonly transposeA: boolean;
  readonly transposeB: boolean;
}

/** The operand as rows × columns with its batch strides, or null when neither axis is adjacent in memory. */
function place(x: Left, swapped: boolean, batchStrides: readonly number[]): MatmulView | null {
  const [row, column] = swapped ? [-1, -2] : [-2, -1];
  const sr = x.strides.at(row)!, sc = x.strides.at(column)!;
  const { weight, eps } = x.norm ?? {};
  const norm = weight && { dtype: weight.dtype as MatmulDType, offset: weight.offset, eps: eps! };
  const at = { dtype: x.dtype as MatmulDType, offset: x.offset, batchStrides, norm };
  if (sc === 1 || x.shape.at(column)! <= 1) return { ...at, transposed: false, stride: sr };
  if (sr === 1 || x.shape.at(row)! <= 1) return { ...at, transposed: true, stride: sc };
  return null;
}

/** Batch strides of both operands over the fewest shared axes. */
function batches(a: View, b: View, batch: Shape): { shape: number[]; strides: number[][] } {
  const lead = (x: View) =>
    broadcastLayout({ shape: x.shape.slice(0, -2), strides: x.strides.slice(0, -2), offset: 0 }, batch).strides;
  return collapse(batch, [lead(a), lead(b)]);
}

type Uniforms = Readonly<Record<string, number>>;

/** What a product needs of its call. */
export interface Multiplying extends Pick<Lowering<unknown>, "dispatch" | "capabilities"> {
  /** A dense tensor that lives until the call ends; calls may share those of one shape, dtype and use. */
  temporary(shape: Shape, dtype: DType, use?: string): View;
  /** What was packed for matrix units into which buffer; operands that lie there already are not packed again. */
  readonly packed?: Map<PooledBuffer, { readonly from: PooledBuffer; readonly how: string }>;
}

/**
 * A call whose temporaries of one size and use are one buffer, for products that follow one another; what one of them packed for
 * matrix units the next need not pack.
 */
export function sharing(call: Lowering<unknown>): Multiplying {
  const made = new Map<string, View>();
  return {
    capabilities: call.capabilities,
    packed: new Map(),
    dispatch: (...launch) => call.dispatch(...launch),
    temporary: (shape, dtype, use = "") => {
      const id = `${dtype} ${shape} ${use}`, known = made.get(id) ?? call.temporary(shape, dtype);
      made.set(id, known);
      return known;
    },
  };
}

/** Says that other numbers lie in a buffer now: what was packed from it is not what it holds. */
export function rewritten({ packed }: Multiplying, x: View): void {
  for (const [to, { from }] of packed ?? []) if (from === x.buffer) packed!.delete(to);
}

/** Where a product goes: into what its target holds, or from some row of it on. */
export interface MatmulTarget {
  /** The first row of the target; the columns are all of its columns. */
  readonly row?: number;
  /** Adds to what the target holds. */
  readonly accumulate?: boolean;
  /** Adds this, dense as the target and of its type, from an offset that is a multiple of 4. */
  readonly residual?: View;
}

/** RMSNorm of the rows of a product's first operand. */
interface RowNorm {
  /** f32 or 16 bits, one number a column, at an offset that is a multiple of 8. */
  readonly weight: View;
  readonly eps: number;
  /** The normed rows, for products that do not norm them while they pack them. */
  readonly whole: () => View;
}

/** A first operand, and what its rows go through before they are multiplied. */
export interface Left extends View {
  readonly norm?: RowNorm;
}

/** The buffers of a first operand for a plan; null where the plan does not norm rows that have a norm. */
function boundLeft(a: Left, { packs }: MatmulPlan): View[] | null {
  if (a.norm === undefined) return [a];
  return packs.some(({ normed }) => normed) ? [a, a.norm.weight] : null;
}

/** y = a · b for matrices, f32 or of an even number of columns; written from a row of y on, or added to y. */
export function multiply(
  call: Multiplying,
  a: Left,
  b: View,
  params: Params,
  y: View,
  target: MatmulTarget = {},
): void {
  const { transposeA, transposeB } = params, { row = 0, accumulate = false, residual } = target;
  const { m, n, k } = matmulSizes(a.shape, b.shape, { transposeA, transposeB });
  const [left, right] = [place(a, transposeA, []), place(b, transposeB, [])];
  if (left === null || right === null) throw new RangeError("[matmul] an operand has no axis adjacent in memory");
  const problem: MatmulProblem = {
    ...{ m, n, k, batch: [], a: left, b: right, out: y.dtype as MatmulDType },
    ...{ offsetC: row * n, accumulate, offsetR: residual?.offset },
  };
  const plan = planMatmul(call.capabilities, problem), bound = boundLeft(a, plan);
  if (bound === null) return multiply(call, a.norm!.whole(), b, params, y, target);
  dispatchPlan(call, [bound, [b], y], problem, plan, residual);
}

/** Operands that one dispatch packs: with what it writes they are as many buffers as every device binds at once. */
const mostOperands = 4;

/**
 * y = x · [W₁; W₂; …]ᵀ, the products with several weights side by side: their rows are packed for matrix units as those of one
 * weight. Or y = silu(x · W₁ᵀ) · (x · W₂ᵀ) by one product, which reads two weights that need not be packed where they lie.
 * Plus a residual, laid out as y. False where that cannot be done; nothing has been done then.
 */
export function multiplyJoined(
  call: Multiplying,
  x: Left,
  weights: readonly View[],
  y: View,
  options: { readonly gated: boolean; readonly residual?: View },
): boolean {
  const { gated, residual } = options;
  const [m, k] = x.shape, n = weights.reduce((sum, w) => sum + w.shape[0], 0);
  const { capabilities } = call, [first, ...others] = weights;
  const placed = (w: View) => ({ rows: w.shape[0], offset: w.offset, stride: w.strides[0] });
  if (
    weights.length > mostOperands || k % 8 !== 0 || Math.max(4 * m, 2 * k) * n > capabilities.maxBinding ||
    weights.some((w) => w.strides[1] !== 1 || w.offset % 8 !== 0 || w.strides[0] % 8 !== 0) ||
    gated && weights[0].strides[0] !== weights[1].strides[0]
  ) return false;
  const { rows: _, ...at } = placed(first), left = place(x, false, []);
  if (left === null) return false;
  const problem: MatmulProblem = {
    ...{ m, n, k, batch: [], a: left, out: "f32" },
    b: { dtype: first.dtype as MatmulDType, ...at, transposed: true, batchStrides: [], below: others.map(placed) },
    ...{ gated, offsetR: residual?.offset },
  };
  const plan = planMatmul(capabilities, problem);
  if (plan.choice.kind !== "matrix") return false;
  const bound = boundLeft(x, plan);
  if (bound === null) return multiplyJoined(call, x.norm!.whole(), weights, y, options);
  dispatchPlan(call, [bound, weights, y], problem, plan, residual);
  return true;
}

function dispatchPlan(
  call: Multiplying,
  [a, b, y]: readonly [readonly View[], readonly View[], View],
  problem: MatmulProblem,
  plan: MatmulPlan,
  residual?: View,
): void {
  const { kernel, uniforms, workgroups, sum } = plan, operands = packed(call, [a, b], plan);
  const added = residual === undefined ? [] : [residual];
  if (sum === undefined) {
    const { n, out } = problem, product = plan.end && { n, size: sizeOf(y.shape), output: out, end: plan.end };
    return call.dispatch(kernel, [...operands, ...added, y], uniforms, workgroups, { ...costOf(problem), product });
  }
  const parts = call.temporary([plan.scratchBytes / 4], "f32");
  call.dispatch(kernel, [...operands, parts], uniforms, workgroups, costOf(problem));
  call.dispatch(sum.kernel, [parts, ...added, y], sum.uniforms, sum.workgroups);
}

const costOf = ({ m, n, k, batch }: MatmulProblem) => ({ flops: 2 * m * n * k * sizeOf(batch) });

/** Packs what a plan wants packed: the operands that it binds, and their exponents. */
function packed(
  call: Multiplying,
  [a, b]: readonly [readonly View[], readonly View[]],
  plan: Pick<MatmulPlan, "packs">,
): View[] {
  const operands = { a, b }, exponents: View[] = [];
  for (const { operand, kernel, most, uniforms, workgroups, ...size } of plan.packs) {
    const xs = operands[operand], [x] = xs, whole = call.temporary([size.bytes / 4], "u32", operand);
    // Exponents are shared by those alone that share the packed numbers, so that they are there as long as those.
    const use = `${operand} ${size.bytes}`;
    const written = size.exponents === 0 ? [] : [call.temporary([size.exponents], "i32", use)];
    const from = x.buffer, how = `${kernel.name} ${Object.values(uniforms)} ${xs.map(({ buffer }) => buffer.id)}`;
    const there = call.packed?.get(whole.buffer);
    if (there?.from !== from || there.how !== how) {
      const known = most === undefined ? [] : [call.temporary([most.words], "u32", `${use} most`)];
      if (most !== undefined) call.dispatch(most.kernel, [...xs, ...known], uniforms, workgroups);
      call.dispatch(kernel, [...xs, ...known, whole, ...written], uniforms, workgroups);
    }
    call.packed?.set(whole.buffer, { from, how });
    operands[operand] = [whole];
    exponents.push(...written);
  }
  return [...operands.a, ...operands.b, ...exponents];
}

/** How logits are folded. */
export interface Folding {
  /** Neighbouring columns of a strip. */
  readonly columns: number;
  /** Whether the weight is packed first. */
  readonly packs: boolean;
  /** Folds the logits of rows of hidden and of weight, both laid out as those that this was made for. */
  fold(call: Multiplying, hidden: View, weight: View, labels: View, to: readonly View[], uniforms: Uniforms): void;
}

/** How logits of hidden · weightᵀ are folded by one tile; null where matrix units do not make them. */
export function folding(
  { capabilities }: Pick<Multiplying, "capabilities">,
  hidden: View,
  weight: View,
  fold: MatrixFold,
): Folding | null {
  const problemOf = (hidden: View, weight: View): MatmulProblem => {
    const [m, k] = hidden.shape, [n] = weight.shape;
    const [a, b] = [hidden, weight].map((x) => ({
      ...{ dtype: x.dtype as MatmulDType, offset: x.offset, stride: x.strides[0], batchStrides: [] },
    }));
    return { m, n, k, batch: [], a: { ...a, transposed: false }, b: { ...b, transposed: true }, out: "f32" };
  };
  const problem = problemOf(hidden, weight);
  if (planMatmul(capabilities, problem).choice.kind !== "matrix") return null;
  const tile = pickMatrix(capabilities, problem, 1)!, { parts, packs } = planMatrix(capabilities, problem, tile, fold);
  return {
    columns: stripColumns(tile, parts),
    packs: packs.some(({ operand }) => operand === "b"),
    fold: (call, hidden, weight, labels, to, uniforms) => {
      const problem = problemOf(hidden, weight), plan = planMatrix(capabilities, problem, tile, fold);
      const views = [...packed(call, [[hidden], [weight]], plan), labels, ...to];
      call.dispatch(plan.kernel, views, { ...plan.uniforms, ...uniforms }, plan.workgroups, costOf(problem));
    },
  };
}

/** y = a · b. */
export function lowerMatmul(call: Lowering<Params>): void {
  const [y] = call.outputs, { transposeA, transposeB } = call.params;
  let [a, b] = call.inputs;
  const { batch, m, n, k } = matmulSizes(a.shape, b.shape, call.params);
  const whole = (x: View, shape: Shape): View => {
    const copied = call.temporary(shape, x.dtype);
    if (sizeOf(shape) > 0) copy(call, { ...x, ...broadcastLayout(x, shape) }, copied);
    return copied;
  };
  if (place(a, transposeA, []) === null) a = whole(a, a.shape);
  if (place(b, transposeB, []) === null) b = whole(b, b.shape);
  if (batches(a, b, batch).shape.length > 3) { // patterns of repetition that three strides cannot tell
    a = whole(a, [...batch, ...a.shape.slice(-2)]);
    b = whole(b, [...batch, ...b.shape.slice(-2)]);
  }
  const { shape, strides } = batches(a, b, batch);
  const out: DType = isPacked(y.dtype) && n % 2 === 1 ? "f32" : y.dtype;
  const result = out === y.dtype ? y : call.temporary(y.shape, out);
  const problem: MatmulProblem = {
    ...{ m, n, k, batch: shape },
    a: place(a, transposeA, strides[0])!,
    b: place(b, transposeB, strides[1])!,
    out: out as MatmulDType,
  };
  dispatchPlan(call, [[a], [b], result], problem, planMatmul(call.capabilities, problem));
  if (result !== y) copy(call, result, y);
}
