/**
 * A pure-functional tensor library with tape autograd, whose heavy operations are WebGPU kernels.
 *
 * @example
 * ```ts
 * import { grad, init, matmul, sum, tensor } from "@flashtape/flashtape";
 * await init();
 * const w = tensor([[1, 2], [3, 4]]);
 * const dw = grad((w) => sum(matmul(w, w)))(w);
 * console.log(await dw.array());
 * ```
 *
 * @module
 */
export { checkpoint, grad, stopGradient, valueAndGrad, vjp } from "./autograd/grad.ts";
export type { ArgNums, GradientsOf, GradOptions, TensorsOf, VjpFunction } from "./autograd/grad.ts";
export type { Call, Gradients, Pullback } from "./autograd/tape.ts";
export { defineOp, kernel } from "./define.ts";
export type { DefinedOp, KernelCall, KernelTensor, OpDefinition } from "./define.ts";
export { init, webgpu } from "./kernels/init.ts";
export type { InitOptions } from "./kernels/init.ts";
export { each, wgsl } from "./kernels/kernel.ts";
export type { Feature, Kernel, KernelInterface, UniformType } from "./kernels/kernel.ts";
export type { WebGpuOptions } from "./kernels/webgpu.ts";
export {
  flashAttention,
  flashAttentionKvPacked,
  flashAttentionQkvPacked,
  flashAttentionVarlen,
  flashAttentionVarlenWithLse,
  flashAttentionWithLse,
} from "./tensor/attention.ts";
export type { AttentionResult, VarlenOptions } from "./tensor/attention.ts";
export { flashAttentionWithKvCache } from "./tensor/attention_cache.ts";
export type { AttentionCache, CacheAttentionOptions, CacheAttentionResult } from "./tensor/attention_cache.ts";
export { dropoutMask } from "./tensor/attention_dropout.ts";
export {
  combineAttention,
  flashAttentionV1,
  flashAttentionV2,
  naiveAttention,
  naiveAttentionWithLse,
} from "./tensor/attention_eager.ts";
export type { BlockAttentionOptions } from "./tensor/attention_eager.ts";
export { attentionMemory } from "./tensor/attention_memory.ts";
export type { AttentionMemory, AttentionMemoryOptions } from "./tensor/attention_memory.ts";
export type { AttentionOptions } from "./tensor/attention_options.ts";
export { cuSeqlensFromMask, cuSeqlensFromPositionIds, padInput, unpadInput } from "./tensor/attention_packing.ts";
export type { Packing, Unpadded } from "./tensor/attention_packing.ts";
export { getBackend, memory, resetPeak, setBackend } from "./tensor/backend.ts";
export type {
  Backend,
  Capabilities,
  Launch,
  LaunchLog,
  MemoryInfo,
  RecordedKernel,
  Recorder,
  Recording,
} from "./tensor/backend.ts";
export { compile } from "./tensor/compile.ts";
export type { Compiled, RecordingInfo } from "./tensor/compile.ts";
export { cpu } from "./tensor/cpu.ts";
export { arange, fromBytes, full, ones, tensor, zeros } from "./tensor/create.ts";
export type { CreateOptions, HostValues } from "./tensor/create.ts";
export type { DType, HostArray } from "./tensor/dtype.ts";
export {
  abs,
  add,
  cast,
  cos,
  div,
  equal,
  erf,
  exp,
  exp2,
  gelu,
  greater,
  greaterEqual,
  isFinite,
  less,
  lessEqual,
  log,
  logicalAnd,
  logicalNot,
  logicalOr,
  maximum,
  minimum,
  mul,
  neg,
  pow,
  relu,
  rsqrt,
  sigmoid,
  sign,
  silu,
  sin,
  sqrt,
  square,
  sub,
  tanh,
  where,
} from "./tensor/elementwise.ts";
export type { BinaryFunction, GeluOptions, Operand, UnaryFunction } from "./tensor/elementwise.ts";
export { eager } from "./tensor/eager.ts";
export { einsum } from "./tensor/einsum.ts";
export * from "./tensor/errors.ts";
export { geglu, swiglu } from "./tensor/gated.ts";
export { crossEntropy, linearCrossEntropy } from "./tensor/loss.ts";
export type { CrossEntropyOptions, RowLossOptions } from "./tensor/loss.ts";
export { eye, oneHot, scatterAdd, take } from "./tensor/gather.ts";
export { matmul } from "./tensor/matmul.ts";
export type { MatmulOptions } from "./tensor/matmul.ts";
export {
  broadcastTo,
  concat,
  expandDims,
  pad,
  permute,
  reshape,
  slice,
  squeeze,
  stack,
  transpose,
} from "./tensor/movement.ts";
export { layerNorm, logSoftmax, rmsNorm, softmax } from "./tensor/norm.ts";
export type { ResidualNorm, RmsNormOptions } from "./tensor/norm.ts";
export { measure, profile } from "./tensor/profile.ts";
export type { KernelTime, Measurement, Profile } from "./tensor/profile.ts";
export { bernoulli, dropout, foldIn, key, randint, randn, split, uniform } from "./tensor/random.ts";
export type { RandomOptions, UniformOptions } from "./tensor/random.ts";
export { argmax, argmin, cumsum, logsumexp, max, mean, min, sum, topK } from "./tensor/reduce.ts";
export type { ArgOptions, ReduceOptions } from "./tensor/reduce.ts";
export { rotaryEmbedding } from "./tensor/rotary.ts";
export type { RotaryOptions } from "./tensor/rotary.ts";
export type { NdArray, Op, Spec } from "./tensor/op.ts";
export { dispose, scope } from "./tensor/scope.ts";
export type { Layout, Shape } from "./tensor/shape.ts";
export { Tensor } from "./tensor/tensor.ts";
export type { NestedArray, Storage } from "./tensor/tensor.ts";
