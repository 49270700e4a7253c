/** From attention's ops to dispatches: what is read in place, which features a kernel contains, what is filled before. */
import type { FlashBackwardParams, FlashParams } from "../tensor/attention.ts";
import { type AttentionParams, named, type OptionalInput } from "../tensor/attention_options.ts";
import type { DType } from "../tensor/dtype.ts";
import { broadcastLayout, type Shape, sizeOf, stridesOf } from "../tensor/shape.ts";
import { pickAttentionBackward, planAttentionBackward } from "./attention_backward.ts";
import { attentionBackwardKeys } from "./attention_backward_keys.ts";
import { attentionBackwardQueries } from "./attention_backward_queries.ts";
import { attentionCombine, pickAttentionCombine, planAttentionCombine } from "./attention_combine.ts";
import {
  type AttentionFeatures,
  type AttentionLayout,
  type AttentionPlan,
  type AttentionShape,
  type AttentionStorage,
  type AttentionStrides,
  denseOperand,
  plainAttention,
} from "./attention_common.ts";
import { type AttentionFlops, attentionFlops } from "./attention_cost.ts";
import { attentionDecode, decodeRows, pickAttentionDecode, planAttentionDecode } from "./attention_decode.ts";
import { attentionForward, pickAttentionForward, planAttentionForward } from "./attention_forward.ts";
import { planAttentionMatrixBackward } from "./attention_matrix_backward.ts";
import { attentionMatrixBackwardKeys } from "./attention_matrix_backward_keys.ts";
import { attentionMatrixBackwardQueries } from "./attention_matrix_backward_queries.ts";
import { attentionMatrixForward, planAttentionMatrixForward } from "./attention_matrix_forward.ts";
import { attentionRangeOf, pickAttentionMatrixBackward, pickAttentionMatrixForward } from "./attention_matrix_plan.ts";
import { attentionRange, type AttentionRangeParams, planAttentionRange } from "./attention_matrix_range.ts";
import type { AttentionSettings, ScoreStrides } from "./attention_options.ts";
import { rangeWords } from "./attention_matrix_powers.ts";
import { attentionBackwardNorms, attentionBackwardRows, attentionBackwardSinks } from "./attention_rows.ts";
import { gridFor } from "./elementwise.ts";
import type { Kernel } from "./kernel.ts";
import { copy, type Lowering, type View } from "./lowering.ts";
import { fill } from "./movement.ts";
import { lowerReduce } from "./reduce_lowering.ts";
import { isPacked, storageBytes } from "./storage.ts";

/** A call without its parameters' type. */
export type AttentionCall = Lowering<unknown>;

/** The optional inputs of a call by name. */
export type Found = Partial<Record<OptionalInput, View>>;

/** The tensor from its buffer's first element on, dense. */
export function flat(call: AttentionCall, x: View): View {
  const whole = call.dense(x, 1);
  if (whole.offset === 0) return whole;
  const moved = call.temporary(x.shape, x.dtype);
  if (sizeOf(x.shape) > 0) copy(call, x, moved);
  return moved;
}

/** A tensor whose rows lie in one piece: the view itself, or a dense copy. */
export function inRows(call: AttentionCall, x: View): View {
  return x.strides.at(-1) === 1 || x.shape.at(-1) === 1 ? x : call.dense(x);
}

/** Strides of [B, S, H, D], or of packed [T, H, D]. */
export function stridesIn({ offset, strides }: View): AttentionStrides {
  const [batch, seq, head] = strides.length === 4 ? strides : [0, ...strides];
  return { offset, batch, seq, head };
}

/** Fills with words of 32 bits. */
function fillBits(call: AttentionCall, y: View, bits: number): void {
  const n = Math.ceil(sizeOf(y.shape) * storageBytes(y.dtype) / 16);
  call.dispatch(fill(y.dtype), [y], { n, bits }, gridFor(n, call.capabilities.maxWorkgroups));
}

/** Bits of the f32 −∞. */
const minusInfinity = 0xff800000;

/** The result itself, or an f32 stand-in where packed elements of two rows would share a word. */
function standIn(call: AttentionCall, y: View, rowSize: number): View {
  return isPacked(y.dtype) && rowSize % 2 === 1 ? call.temporary(y.shape, "f32") : y;
}

/** The dtype as kernels name it. f64 never comes here. */
export function storageOf(dtype: DType): AttentionStorage {
  return dtype as AttentionStorage;
}

function scoreStrides(x: View | undefined, full: Shape): ScoreStrides | undefined {
  if (x === undefined) return undefined;
  const { offset, strides: [batch, head, row, column] } = broadcastLayout(x, full);
  return { offset, batch, head, row, column };
}

/** What the options of a call put into a kernel's text, its uniforms and its bindings. */
export interface CallOptions {
  readonly features: AttentionFeatures;
  readonly settings: AttentionSettings;
  /** The bindings that `featureReads` names. */
  readonly bindings: Readonly<Record<string, View>>;
}

/** Reads a call's options. */
export function optionsOf(
  call: AttentionCall,
  params: AttentionParams,
  found: Found,
  { batch, heads, seqlenQ, seqlenK }: AttentionShape,
): CallOptions {
  const { scale, window, softcap, dropout } = params;
  const { alibiSlopes, bias, mask, sinks, key, cuSeqlensQ, cuSeqlensK } = found;
  const full = [batch, heads, seqlenQ, seqlenK];
  const flatOf = (name: string, x: View | undefined): Record<string, View> =>
    x === undefined ? {} : { [name]: flat(call, x) };
  return {
    features: {
      ...plainAttention,
      window: window.some((n) => n >= 0),
      softcap: softcap > 0,
      alibi: alibiSlopes !== undefined,
      bias: bias === undefined ? "none" : storageOf(bias.dtype),
      mask: mask !== undefined,
      sinks: sinks !== undefined,
      dropout: dropout > 0,
      lengths: cuSeqlensQ === undefined ? "dense" : "varlen",
    },
    settings: {
      softmaxScale: scale,
      window,
      softcap,
      alibiBatch: alibiSlopes?.shape.length === 2 ? heads : 0,
      bias: scoreStrides(bias, full),
      mask: scoreStrides(mask, full),
      dropout,
      maxSeqlenQ: seqlenQ,
    },
    bindings: {
      ...flatOf("alibi", alibiSlopes),
      ...(bias === undefined ? {} : { bias }),
      ...(mask === undefined ? {} : { mask }),
      ...flatOf("sinks", sinks),
      ...flatOf("dropoutKey", key),
      ...flatOf("cuQ", cuSeqlensQ),
      ...flatOf("cuK", cuSeqlensK),
    },
  };
}

/** Sizes of a call, whose shapes `infer` has checked. */
function shapeOf(
  q: View,
  k: View,
  v: View,
  { cuSeqlensQ }: Found,
  maxSeqlens: FlashParams["maxSeqlens"],
): AttentionShape {
  const [heads, headDim] = q.shape.slice(-2), [kvHeads] = k.shape.slice(-2), valueDim = v.shape.at(-1)!;
  const common = { heads, kvHeads, headDim, valueDim };
  if (maxSeqlens === null) return { ...common, batch: q.shape[0], seqlenQ: q.shape[1], seqlenK: k.shape[1] };
  const [seqlenQ, seqlenK] = maxSeqlens;
  return { ...common, batch: cuSeqlensQ!.shape[0] - 1, seqlenQ, seqlenK, totalQ: q.shape[0] };
}

function layoutOf(q: View, k: View, v: View): AttentionLayout {
  return { q: stridesIn(q), k: stridesIn(k), v: stridesIn(v) };
}

/** Runs a kernel with its bindings by name. */
export function dispatchNamed(
  call: AttentionCall,
  kernel: Kernel,
  views: Readonly<Record<string, View>>,
  { uniforms, workgroups }: {
    readonly uniforms: Readonly<Record<string, number>>;
    readonly workgroups: readonly [number, number, number];
  },
  flops?: number,
): void {
  const bound = [...kernel.reads, ...kernel.writes].map((name) => views[name]);
  call.dispatch(kernel, bound, uniforms, workgroups, { flops });
}

/** The ranges of a call's key heads, for its kernels on matrices and those that take what these leave. */
function rangesOf(
  call: AttentionCall,
  params: AttentionRangeParams,
  views: Readonly<Record<string, View>>,
  shape: AttentionShape,
  at: AttentionLayout,
  settings: AttentionSettings,
): View {
  const ranges = call.temporary([shape.batch, shape.kvHeads, rangeWords], "u32");
  fillBits(call, ranges, 0);
  dispatchNamed(call, attentionRange(params), { ...views, ranges }, planAttentionRange(params, shape, at, settings));
  return ranges;
}

/** out and lse of attention. */
export function lowerAttention(call: Lowering<FlashParams>): void {
  const [q, k, v] = call.inputs.slice(0, 3).map((x) => inRows(call, x));
  const found = named(call.params.optional, call.inputs, 3), shape = shapeOf(q, k, v, found, call.params.maxSeqlens);
  runForward(call, { q, k, v }, shape, optionsOf(call, call.params, found, shape), 0);
}

/**
 * Attention into the call's outputs, out and lse: by the decoding kernel when a key head has few rows.
 *
 * @param numSplits parts that the keys are split into; 0 chooses
 */
export function runForward(
  call: AttentionCall,
  { q, k, v }: { readonly q: View; readonly k: View; readonly v: View },
  shape: AttentionShape,
  { features, settings, bindings }: CallOptions,
  numSplits: number,
): void {
  const [out, lse] = call.outputs, at = layoutOf(q, k, v), { batch, seqlenQ, heads, kvHeads, valueDim } = shape;
  const target = standIn(call, out, valueDim), views: Record<string, View> = { q, k, v, ...bindings };
  const flops = attentionFlops(shape, settings.window).forward;
  const storage = { q: storageOf(q.dtype), k: storageOf(k.dtype), v: storageOf(v.dtype), out: storageOf(target.dtype) };
  if (features.lengths !== "varlen" && heads / kvHeads * seqlenQ <= decodeRows) {
    const { params, parts } = pickAttentionDecode(call.capabilities, shape, at, storage, features, numSplits);
    inParts(parts, attentionDecode(params), planAttentionDecode(params, parts, shape, at, settings), flops);
  } else {
    if (features.lengths === "varlen") { // rows of no sequence
      fillBits(call, target, 0);
      fillBits(call, lse, minusInfinity);
    }
    const scale = settings.softmaxScale, { capabilities } = call;
    const portable = (features: AttentionFeatures, flops?: number): void => {
      const params = pickAttentionForward(capabilities, shape, at, storage, features);
      inParts(params.parts, attentionForward(params), planAttentionForward(params, shape, at, settings), flops);
    };
    const matrix = pickAttentionMatrixForward(capabilities, shape, at, storage, features, scale);
    if (matrix === null) portable(features, flops);
    else {
      const range = attentionRangeOf(matrix);
      if (range !== null) views.ranges = rangesOf(call, range, views, shape, at, settings);
      inParts(1, attentionMatrixForward(matrix), planAttentionMatrixForward(matrix, shape, at, settings), flops);
      if (range !== null) portable({ ...features, range: "left" });
    }
  }
  if (target !== out) copy(call, target, out);

  /** Attention over all keys by one dispatch, or over parts of them and a second one that joins these. */
  function inParts(parts: number, kernel: Kernel, plan: AttentionPlan, flops?: number): void {
    if (parts === 1) return dispatchNamed(call, kernel, { ...views, out: target, lse }, plan, flops);
    const partOut = call.temporary([parts, batch, seqlenQ, heads, valueDim], "f32");
    const partLse = call.temporary([parts, batch, heads, seqlenQ], "f32");
    dispatchNamed(call, kernel, { ...views, out: partOut, lse: partLse }, plan, flops);
    const out = denseOperand(storage.out, valueDim);
    const combine = pickAttentionCombine(parts, { valueDim, out, sinks: features.sinks });
    const joined = planAttentionCombine(combine, batch, seqlenQ, heads, parts);
    dispatchNamed(call, attentionCombine(combine), { ...views, partOut, partLse, out: target, lse }, joined);
  }
}

/** dq, dk, dv, and the gradients of bias and sinks that are asked for. */
export function lowerAttentionBackward(call: Lowering<FlashBackwardParams>): void {
  const { optional, maxSeqlens, gradients } = call.params;
  const [dOut, dLse] = call.inputs.slice(0, 2).map((x) => flat(call, x));
  const [q, k, v] = call.inputs.slice(2, 5).map((x) => inRows(call, x));
  const [out, lse] = call.inputs.slice(5, 7).map((x) => flat(call, x));
  const found = named(optional, call.inputs, 7);
  const [dq, dk, dv] = call.outputs,
    wanted = (name: "bias" | "sinks"): View | undefined => {
      const i = gradients.indexOf(name);
      return i < 0 ? undefined : call.outputs[3 + i];
    };
  const dBias = wanted("bias"), dSinks = wanted("sinks");
  const shape = shapeOf(q, k, v, found, maxSeqlens), at = layoutOf(q, k, v);
  const { headDim, valueDim, batch, heads, seqlenQ, seqlenK } = shape;
  const { features, settings, bindings } = optionsOf(call, call.params, found, shape);
  const narrow = headDim % 2 === 1 ? headDim : valueDim;
  const targets = [dq, dk, dv].map((y) => standIn(call, y, narrow));
  const varlen = features.lengths === "varlen";
  if (varlen) { for (const y of targets) fillBits(call, y, 0); } // rows of no sequence
  const scores = dBias && call.temporary([batch, heads, seqlenQ, seqlenK], "f32");
  if (scores && (features.window || varlen)) fillBits(call, scores, 0);

  const storage = {
    q: storageOf(q.dtype),
    k: storageOf(k.dtype),
    v: storageOf(v.dtype),
    dOut: storageOf(dOut.dtype),
    grad: storageOf(targets[0].dtype),
  };
  const picked = pickAttentionBackward(call.capabilities, shape, at, storage, features, scores !== undefined);
  const plan = planAttentionBackward(picked, shape, at, settings);
  const rowStats = call.temporary([...lse.shape, 4], "f32");
  const views: Record<string, View> = { q, k, v, dOut, out, lse, dLse, rowStats, ...bindings };
  const rowsKernel = attentionBackwardRows({
    valueDim,
    out: denseOperand(storageOf(out.dtype), valueDim),
    dOut: denseOperand(storage.dOut, valueDim),
    sums: picked.queries.sums,
  });
  dispatchNamed(call, rowsKernel, views, plan.rows);
  if (picked.queries.sums === "careful") {
    const norms = { ...picked.queries, features: { ...picked.queries.features, sinks: found.sinks !== undefined } };
    dispatchNamed(call, attentionBackwardNorms(norms), views, plan.norms);
  }
  const flops = attentionFlops(shape, settings.window);
  const portable = (
    picked: ReturnType<typeof pickAttentionBackward>,
    flops?: AttentionFlops,
  ): void => {
    const plan = planAttentionBackward(picked, shape, at, settings);
    const part = (y: View, parts: number): View => parts === 1 ? y : call.temporary([parts, ...y.shape], "f32");
    const [dqs, dks, dvs] = targets.map((y, i) => part(y, i === 0 ? picked.queries.parts : picked.keys.parts));
    dispatchNamed(call, attentionBackwardKeys(picked.keys), { ...views, dk: dks, dv: dvs }, plan.keys, flops?.keys);
    const queries = { ...views, dq: dqs, ...(scores ? { dBias: scores } : {}) };
    dispatchNamed(call, attentionBackwardQueries(picked.queries), queries, plan.queries, flops?.queries);
    [dqs, dks, dvs].forEach((parts, i) => {
      if (parts !== targets[i]) lowerReduce(call, "sum", parts, [0], targets[i]);
    });
  };
  const matrix = scores || picked.queries.sums === "careful"
    ? null
    : pickAttentionMatrixBackward(call.capabilities, shape, at, storage, features, settings.softmaxScale);
  if (matrix === null) portable(picked, flops);
  else {
    const plan = planAttentionMatrixBackward(matrix, shape, at, settings), [dq, dk, dv] = targets;
    views.ranges = rangesOf(call, attentionRangeOf(matrix)!, views, shape, at, settings);
    dispatchNamed(call, attentionMatrixBackwardKeys(matrix), { ...views, dk, dv }, plan.keys, flops.keys);
    dispatchNamed(call, attentionMatrixBackwardQueries(matrix), { ...views, dq }, plan.queries, flops.queries);
    if (matrix.features.range === "scaled") {
      const left = { ...features, range: "left" } as const;
      portable(pickAttentionBackward(call.capabilities, shape, at, storage, left, false));
    }
  }
  targets.forEach((y, i) => {
    if (y !== call.outputs[i]) copy(call, y, call.outputs[i]);
  });
  if (dSinks) dispatchNamed(call, attentionBackwardSinks(), { ...views, dsinks: dSinks }, plan.sinks);
  if (dBias && scores) sumTo(call, scores, dBias);
}

/** y = x summed over the axes along which y is broadcast to x. */
function sumTo(call: AttentionCall, x: View, y: View): void {
  const missing = x.shape.length - y.shape.length;
  const axes = x.shape.map((_, i) => i).filter((i) => x.shape[i] !== (i < missing ? 1 : y.shape[i - missing]));
  const kept = x.shape.filter((_, i) => !axes.includes(i));
  const sum = { ...y, shape: kept, strides: stridesOf(kept) };
  if (axes.length === 0) copy(call, x, sum);
  else lowerReduce(call, "sum", x, axes, sum);
}
