/** How each op becomes dispatches: one entry an op, so that an op without a kernel does not compile. */
import { encode, type HostArray, hostArray } from "../tensor/dtype.ts";
import { broadcastToOp, permuteOp, sliceOp } from "../tensor/movement.ts";
import type { Op } from "../tensor/op.ts";
import type { OpName, ParamsOfName } from "../tensor/ops.ts";
import type { ReduceParams } from "../tensor/reduce.ts";
import { type Layout, sizeOf, stridesOf } from "../tensor/shape.ts";
import { lowerCacheAppend, lowerCacheAttention } from "./attention_cache_lowering.ts";
import { lowerDecodeAttention } from "./decode_attention.ts";
import { lowerDropoutMask } from "./attention_dropout.ts";
import { lowerAttention, lowerAttentionBackward } from "./attention_lowering.ts";
import { definedLowering } from "./defined.ts";
import { expressions, geluExpression, gridFor, locateValues } from "./elementwise.ts";
import { copy, elementwise, type Lower, type Lowering, type View } from "./lowering.ts";
import { lowerGeglu, lowerGegluBackward, lowerSwiglu, lowerSwigluBackward } from "./gated.ts";
import { lowerScatterAdd, lowerTake } from "./gather.ts";
import {
  lowerCrossEntropy,
  lowerCrossEntropyBackward,
  lowerLinearCrossEntropy,
  lowerLinearCrossEntropyBackward,
  lowerLinearCrossEntropySum,
  lowerLinearCrossEntropySumBackward,
} from "./loss_lowering.ts";
import { lowerLayerNorm, lowerLayerNormBackward, lowerRmsNorm, lowerRmsNormBackward } from "./norm.ts";
import { lowerRotary } from "./rotary.ts";
import { lowerRotaryAppend } from "./rotary_append.ts";
import { lowerMatmul } from "./matmul_lowering.ts";
import { arange, fill, place } from "./movement.ts";
import {
  lowerBernoulli,
  lowerDropout,
  lowerFoldIn,
  lowerRandint,
  lowerRandn,
  lowerSplit,
  lowerUniform,
} from "./random.ts";
import { lowerCumsum, lowerReduce, lowerSoftmax, lowerTopK } from "./reduce_lowering.ts";
import type { ReduceName } from "./reduce.ts";
import { lowerProject } from "./project_lowering.ts";
import { lowerSample } from "./sample.ts";
import { isPacked, storageBytes } from "./storage.ts";
import { lowerAdamw, lowerMomentum, lowerSgd } from "./update.ts";

const map = (name: keyof typeof expressions) => (call: Lowering<unknown>): void =>
  elementwise(call, name, expressions[name], call.inputs, call.outputs[0]);

/** For ops that are views: the copy that the view stands for. */
const viewed = <P>(op: Op<P>) => (call: Lowering<P>): void => {
  const [x] = call.inputs, [y] = call.outputs;
  copy(call, { ...x, ...op.view!(x, call.params)! }, y);
};

/** Every element is one value: its bits, twice in a word for packed types. */
function fillWith(call: Pick<Lowering<unknown>, "dispatch" | "capabilities">, y: View, value: number): void {
  const bytes = encode(
    y.dtype === "bool" ? "u32" : y.dtype,
    hostArray(y.dtype === "bool" ? "u32" : y.dtype, 1).fill(value) as HostArray,
  );
  const bits = bytes.byteLength === 2 ? (bytes[0] | (bytes[1] << 8)) * 0x10001 : new Uint32Array(bytes.buffer)[0];
  const n = Math.ceil(sizeOf(y.shape) * storageBytes(y.dtype) / 16);
  call.dispatch(fill(y.dtype), [y], { n, bits }, gridFor(n, call.capabilities.maxWorkgroups));
}

/** Writes views into strided parts of y. Packed types go by way of f32, since two parts may share a word. */
function placeAll(
  call: Lowering<unknown>,
  parts: readonly (readonly [x: View, at: Layout])[],
  y: View,
  border?: number,
): void {
  const target = isPacked(y.dtype) ? call.temporary(y.shape, "f32") : y;
  if (border !== undefined) fillWith(call, target, border);
  for (const [x, at] of parts) {
    const n = sizeOf(x.shape);
    if (n === 0) continue;
    let from = x;
    if (isPacked(x.dtype)) copy(call, x, from = call.temporary(x.shape, "f32"));
    const { rank, values } = locateValues(x.shape, [from, at]);
    call.dispatch(
      place(target.dtype, rank),
      [from, target],
      { n, ...values },
      gridFor(n, call.capabilities.maxWorkgroups),
    );
  }
  if (target !== y) copy(call, target, y);
}

const reduction = (name: ReduceName) => (call: Lowering<ReduceParams>): void =>
  lowerReduce(call, name, call.inputs[0], call.params.axes, call.outputs[0]);

/** The dispatches of every op. */
export const lowerings: { readonly [N in OpName]: Lower<ParamsOfName<N>> } = {
  // create
  full: (call) => fillWith(call, call.outputs[0], call.params.value),
  arange: (call) => {
    const [y] = call.outputs, n = Math.ceil(sizeOf(y.shape) / 4);
    const { start, step } = call.params;
    call.dispatch(arange(y.dtype), [y], { n, start, step }, gridFor(n, call.capabilities.maxWorkgroups));
  },
  // elementwise
  add: map("add"),
  sub: map("sub"),
  mul: map("mul"),
  div: map("div"),
  pow: map("pow"),
  maximum: map("maximum"),
  minimum: map("minimum"),
  equal: map("equal"),
  less: map("less"),
  lessEqual: map("lessEqual"),
  logicalAnd: map("logicalAnd"),
  logicalOr: map("logicalOr"),
  logicalNot: map("logicalNot"),
  isFinite: map("isFinite"),
  neg: map("neg"),
  abs: map("abs"),
  sign: map("sign"),
  square: map("square"),
  relu: map("relu"),
  exp: map("exp"),
  exp2: map("exp2"),
  log: map("log"),
  sqrt: map("sqrt"),
  rsqrt: map("rsqrt"),
  tanh: map("tanh"),
  sigmoid: map("sigmoid"),
  silu: map("silu"),
  gelu: (call) =>
    elementwise(
      call,
      `gelu_${call.params.approximate}`,
      geluExpression(call.params.approximate),
      call.inputs,
      call.outputs[0],
    ),
  erf: map("erf"),
  sin: map("sin"),
  cos: map("cos"),
  where: map("where"),
  cast: (call) => copy(call, call.inputs[0], call.outputs[0]),
  // movement
  reshape: (call) => {
    const [x] = call.inputs, [y] = call.outputs;
    copy(call, x, { ...y, shape: x.shape, strides: stridesOf(x.shape) }); // equal row-major order is all that it is
  },
  permute: viewed(permuteOp),
  broadcastTo: viewed(broadcastToOp),
  slice: viewed(sliceOp),
  pad: (call) => {
    const [x] = call.inputs, [y] = call.outputs;
    const { before, interior, value } = call.params;
    const at = {
      shape: x.shape,
      strides: y.strides.map((s, i) => s * (interior[i] + 1)),
      offset: before.reduce((offset, b, i) => offset + b * y.strides[i], 0),
    };
    placeAll(call, [[x, at]], y, value);
  },
  concat: (call) => {
    const [y] = call.outputs, { axis } = call.params;
    let start = 0;
    const parts = call.inputs.map((x) => {
      const at = { shape: x.shape, strides: y.strides, offset: start * y.strides[axis] };
      start += x.shape[axis];
      return [x, at] as const;
    });
    placeAll(call, parts, y);
  },
  // reduce
  sum: reduction("sum"),
  mean: reduction("mean"),
  max: reduction("max"),
  min: reduction("min"),
  logsumexp: reduction("logsumexp"),
  argmax: (call) => lowerReduce(call, "argmax", call.inputs[0], [call.params.axis], call.outputs[0]),
  argmin: (call) => lowerReduce(call, "argmin", call.inputs[0], [call.params.axis], call.outputs[0]),
  cumsum: (call) => lowerCumsum(call, call.inputs[0], call.params.axis, call.params.reverse, call.outputs[0]),
  topK: (call) => lowerTopK(call, call.inputs[0], call.params.k, call.outputs[0], call.outputs[1]),
  // gather
  take: lowerTake,
  scatterAdd: lowerScatterAdd,
  // norm
  softmax: (call) => lowerSoftmax(call, "softmax", call.inputs[0], call.params.axis, call.outputs[0]),
  logSoftmax: (call) => lowerSoftmax(call, "logSoftmax", call.inputs[0], call.params.axis, call.outputs[0]),
  rmsNorm: lowerRmsNorm,
  rmsNormBackward: lowerRmsNormBackward,
  layerNorm: lowerLayerNorm,
  layerNormBackward: lowerLayerNormBackward,
  // rotary
  rotaryEmbedding: lowerRotary,
  // gated
  swiglu: lowerSwiglu,
  swigluBackward: lowerSwigluBackward,
  geglu: lowerGeglu,
  gegluBackward: lowerGegluBackward,
  // loss
  crossEntropy: lowerCrossEntropy,
  crossEntropyBackward: lowerCrossEntropyBackward,
  linearCrossEntropy: lowerLinearCrossEntropy,
  linearCrossEntropyBackward: lowerLinearCrossEntropyBackward,
  linearCrossEntropySum: lowerLinearCrossEntropySum,
  linearCrossEntropySumBackward: lowerLinearCrossEntropySumBackward,
  // random
  split: lowerSplit,
  foldIn: lowerFoldIn,
  uniform: lowerUniform,
  randn: lowerRandn,
  randint: lowerRandint,
  bernoulli: lowerBernoulli,
  dropout: lowerDropout,
  sample: lowerSample,
  // update
  adamwUpdate: lowerAdamw,
  sgdUpdate: lowerSgd,
  momentumUpdate: lowerMomentum,
  // attention
  attention: lowerAttention,
  attentionBackward: lowerAttentionBackward,
  cacheAppend: lowerCacheAppend,
  cacheAttention: lowerCacheAttention,
  rotaryAppend: lowerRotaryAppend,
  decodeAttention: lowerDecodeAttention,
  dropoutMask: lowerDropoutMask,
  // matmul
  matmul: lowerMatmul,
  project: lowerProject,
};

/** The dispatches of an op, in the table or not; undefined when it has none. */
export function loweringOf<P>(op: Op<P>): Lower<P> | undefined {
  return definedLowering(op) ?? lowerings[op.name as OpName] as Lower<P> | undefined;
}
