/** The Llama family of models. */
export type { Folder } from "../files.ts";
export { CheckpointError } from "./checkpoint.ts";
export type { WrongTensor } from "./checkpoint.ts";
export type { GenerationConfig, LlamaConfig, RopeParameters } from "./config.ts";
export { generate } from "./generate.ts";
export type { GenerateOptions, GenerateStep } from "./generate.ts";
export { forward, init, loss, parameterShapes } from "./model.ts";
export type { ForwardOptions, LlamaParams, LossOptions } from "./model.ts";
export type { PromptOptions } from "./prompt.ts";
export type { SamplingOptions } from "./sample.ts";
export { streamDecoder } from "./text.ts";
export type {
  ChatOptions,
  DecodeOptions,
  EncodeOptions,
  Message,
  StreamDecoder,
  StreamOptions,
  Tokenizer,
} from "./text.ts";
export { load, save } from "./weights.ts";
export type { LlamaModel, LoadedLlama, LoadOptions, SaveOptions } from "./weights.ts";
