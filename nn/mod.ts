/**
 * Neural networks as pure functions over plain parameter objects: layers, optimisers, the Llama family of models, and
 * the safetensors format.
 *
 * @example
 * ```ts
 * import { key, tensor, valueAndGrad } from "@flashtape/flashtape";
 * import { adamw, clipGradNorm, llama } from "@flashtape/flashtape/nn";
 *
 * const config = {
 *   vocab_size: 256,
 *   hidden_size: 32,
 *   intermediate_size: 64,
 *   num_hidden_layers: 2,
 *   num_attention_heads: 4,
 *   tie_word_embeddings: true,
 * };
 * const ids = tensor([[...new TextEncoder().encode("Call me Ishmael.")]], { dtype: "i32" });
 * const optimizer = adamw({ learningRate: 3e-3 });
 * let params = llama.init(key(0), config);
 * let state = optimizer.init(params);
 * for (let step = 0; step < 3; step++) {
 *   const [loss, grads] = valueAndGrad((p: typeof params) => llama.loss(p, config, ids, ids))(params);
 *   const clipped = clipGradNorm(grads, 1);
 *   ({ params, state } = optimizer.update(params, clipped.grads, state));
 *   console.log(await loss.item());
 * }
 * ```
 *
 * @module
 */
import "../tensor/cpu.ts"; // the backend that creators use until one is opened
export { adamw } from "./adamw.ts";
export type { AdamwOptions, AdamwState } from "./adamw.ts";
export { multiHeadAttention } from "./attention.ts";
export type {
  AttentionAlgorithm,
  AttentionParams,
  LayerCache,
  MultiHeadAttentionOptions,
  Rotary,
} from "./attention.ts";
export { emptyCache } from "./cache.ts";
export type { CacheOptions, CachePages, KvCache } from "./cache.ts";
export { dropout } from "./dropout.ts";
export type { DropoutOptions } from "./dropout.ts";
export { kaimingNormal, kaimingUniform, normal, truncatedNormal, xavierNormal, xavierUniform } from "./init.ts";
export type { InitOptions, KaimingOptions } from "./init.ts";
export { embedding, linear } from "./linear.ts";
export type { EmbeddingParams, LinearParams } from "./linear.ts";
export type { GenerationConfig, LlamaConfig, RopeParameters } from "./llama/config.ts";
export { generate } from "./llama/generate.ts";
export type { GenerateOptions, GenerateStep } from "./llama/generate.ts";
export type { LlamaParams } from "./llama/model.ts";
export type { PromptOptions } from "./llama/prompt.ts";
export type { SamplingOptions } from "./llama/sample.ts";
export type { ChatOptions, DecodeOptions, EncodeOptions, Message, Tokenizer } from "./llama/text.ts";
export type { LlamaModel } from "./llama/weights.ts";
/** The Llama family of models. */
export * as llama from "./llama/mod.ts";
export { nextTokenLoss } from "./loss.ts";
export { swigluMlp } from "./mlp.ts";
export type { SwigluMlpParams } from "./mlp.ts";
export { layerNorm, rmsNorm } from "./norm.ts";
export type { LayerNormParams, RmsNormParams } from "./norm.ts";
export { clipGradNorm } from "./optimizer.ts";
export type { Optimizer } from "./optimizer.ts";
export { rotaryFrequencies, rotaryTables } from "./rotary.ts";
export type { RotaryFrequencyOptions, RotaryScaling } from "./rotary.ts";
/** The safetensors format. */
export * as safetensors from "./safetensors.ts";
export { cosineSchedule } from "./schedule.ts";
export type { CosineOptions, Schedule } from "./schedule.ts";
export { sgd } from "./sgd.ts";
export type { SgdOptions, SgdState } from "./sgd.ts";
export { transformerBlock } from "./transformer.ts";
export type { TransformerBlockOptions, TransformerBlockParams } from "./transformer.ts";
export { flatten, unflatten } from "./tree.ts";
export type { Tree } from "../tensor/tree.ts";
