/** The table of all ops. Kernels and derivatives stand in tables over the same names. */
import * as attention from "./attention.ts";
import * as cache from "./attention_cache.ts";
import { dropoutMaskOp } from "./attention_dropout.ts";
import * as create from "./create.ts";
import { decodeAttentionOp } from "./decode_attention.ts";
import * as e from "./elementwise.ts";
import * as gated from "./gated.ts";
import * as gather from "./gather.ts";
import * as loss from "./loss.ts";
import * as matmul from "./matmul.ts";
import * as move from "./movement.ts";
import * as norm from "./norm.ts";
import type { Op } from "./op.ts";
import { projectOp } from "./project.ts";
import * as random from "./random.ts";
import * as reduce from "./reduce.ts";
import * as rotary from "./rotary.ts";
import { rotaryAppendOp } from "./rotary_append.ts";
import { sampleOp } from "./sample.ts";
import * as update from "./update.ts";

/** Every op by its name. */
export const ops = {
  // create
  full: create.fullOp,
  arange: create.arangeOp,
  // elementwise
  add: e.addOp,
  sub: e.subOp,
  mul: e.mulOp,
  div: e.divOp,
  pow: e.powOp,
  maximum: e.maximumOp,
  minimum: e.minimumOp,
  equal: e.equalOp,
  less: e.lessOp,
  lessEqual: e.lessEqualOp,
  logicalAnd: e.logicalAndOp,
  logicalOr: e.logicalOrOp,
  logicalNot: e.logicalNotOp,
  isFinite: e.isFiniteOp,
  neg: e.negOp,
  abs: e.absOp,
  sign: e.signOp,
  square: e.squareOp,
  relu: e.reluOp,
  exp: e.expOp,
  exp2: e.exp2Op,
  log: e.logOp,
  sqrt: e.sqrtOp,
  rsqrt: e.rsqrtOp,
  tanh: e.tanhOp,
  sigmoid: e.sigmoidOp,
  silu: e.siluOp,
  gelu: e.geluOp,
  erf: e.erfOp,
  sin: e.sinOp,
  cos: e.cosOp,
  where: e.whereOp,
  cast: e.castOp,
  // movement
  reshape: move.reshapeOp,
  permute: move.permuteOp,
  broadcastTo: move.broadcastToOp,
  slice: move.sliceOp,
  pad: move.padOp,
  concat: move.concatOp,
  // reduce
  sum: reduce.sumOp,
  mean: reduce.meanOp,
  max: reduce.maxOp,
  min: reduce.minOp,
  logsumexp: reduce.logsumexpOp,
  argmax: reduce.argmaxOp,
  argmin: reduce.argminOp,
  cumsum: reduce.cumsumOp,
  topK: reduce.topKOp,
  // gather
  take: gather.takeOp,
  scatterAdd: gather.scatterAddOp,
  // norm
  softmax: norm.softmaxOp,
  logSoftmax: norm.logSoftmaxOp,
  rmsNorm: norm.rmsNormOp,
  rmsNormBackward: norm.rmsNormBackwardOp,
  layerNorm: norm.layerNormOp,
  layerNormBackward: norm.layerNormBackwardOp,
  // rotary
  rotaryEmbedding: rotary.rotaryEmbeddingOp,
  // gated
  swiglu: gated.swigluOp,
  swigluBackward: gated.swigluBackwardOp,
  geglu: gated.gegluOp,
  gegluBackward: gated.gegluBackwardOp,
  // loss
  crossEntropy: loss.crossEntropyOp,
  crossEntropyBackward: loss.crossEntropyBackwardOp,
  linearCrossEntropy: loss.linearCrossEntropyOp,
  linearCrossEntropyBackward: loss.linearCrossEntropyBackwardOp,
  linearCrossEntropySum: loss.linearCrossEntropySumOp,
  linearCrossEntropySumBackward: loss.linearCrossEntropySumBackwardOp,
  // random
  split: random.splitOp,
  foldIn: random.foldInOp,
  uniform: random.uniformOp,
  randn: random.randnOp,
  randint: random.randintOp,
  bernoulli: random.bernoulliOp,
  dropout: random.dropoutOp,
  sample: sampleOp,
  // update
  adamwUpdate: update.adamwUpdateOp,
  sgdUpdate: update.sgdUpdateOp,
  momentumUpdate: update.momentumUpdateOp,
  // matmul
  matmul: matmul.matmulOp,
  project: projectOp,
  // attention
  attention: attention.attentionOp,
  attentionBackward: attention.attentionBackwardOp,
  cacheAppend: cache.cacheAppendOp,
  cacheAttention: cache.cacheAttentionOp,
  rotaryAppend: rotaryAppendOp,
  decodeAttention: decodeAttentionOp,
  dropoutMask: dropoutMaskOp,
} as const;

/** The name of an op. */
export type OpName = keyof typeof ops;

/** The parameters of the op of that name. */
export type ParamsOfName<N extends OpName> = typeof ops[N] extends Op<infer P> ? P : never;
