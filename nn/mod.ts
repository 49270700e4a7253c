/**
 * Neural networks as pure functions over plain parameter objects.
 *
 * @module
 */
export * as safetensors from "./safetensors.ts";
