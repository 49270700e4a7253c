/** The Llama family of models. */
export type { LlamaConfig, RopeParameters } from "./config.ts";
export { forward, init, loss, parameterShapes } from "./model.ts";
export type { ForwardOptions, LlamaParams, LossOptions } from "./model.ts";
