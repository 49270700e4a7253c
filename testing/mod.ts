/**
 * Property tests for tensor code: arbitraries that make and shrink values, assertions with tolerances, and checks of
 * gradients. It depends on no test framework; {@link property} registers with the runtime's own.
 *
 * @example
 * ```ts
 * import { array, check, float } from "@flashtape/flashtape/testing";
 *
 * await check([array(float(), { minLength: 1 })], (list) => {
 *   const max = Math.max(...list);
 *   return list.every((x) => x <= max);
 * });
 * ```
 *
 * @module
 */
export {
  type Arbitrary,
  type Arbitrated,
  type ArbitratedAll,
  array,
  type ArrayOptions,
  assume,
  boolean,
  compose,
  constant,
  elementOf,
  float,
  type FloatOptions,
  integer,
  oneOf,
  record,
  tuple,
} from "./arbitrary.ts";
export type { Choices, Distribution, Random, Source } from "./choices.ts";
export type { Law } from "./explore.ts";
export { check, property, PropertyError, type PropertyOptions } from "./property.ts";
export { arbAttention, type AttentionBounds, type AttentionFeature, type AttentionProblem } from "./attention.ts";
export type { AttentionOptions } from "../tensor/attention_options.ts";
export {
  assertClose,
  AssertionError,
  type CloseOptions,
  type HostNumbers,
  type NumberArray,
  type Tolerance,
} from "./close.ts";
export { checkGradients, type GradientOptions } from "./gradients.ts";
export { type CheckedOp, checkOp, type CheckOpOptions, type OpCall } from "./op.ts";
export {
  arbAxis,
  arbBroadcastable,
  arbDType,
  arbShape,
  arbTensor,
  arbTensorData,
  type ShapeOptions,
  type TensorData,
  type TensorOptions,
} from "./tensors.ts";
