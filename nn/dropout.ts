/** Dropout as a layer: on with a key, off without. */
import { dropout as drop } from "../tensor/random.ts";
import type { Tensor } from "../tensor/tensor.ts";

/** Options of {@linkcode dropout}. */
export interface DropoutOptions {
  /** The probability that an element becomes 0, at least 0 and below 1. */
  readonly p: number;
  /** u32 [2]; without a key, as when a model is used rather than trained, nothing is dropped. */
  readonly key?: Tensor;
}

/**
 * `x` with elements set to 0 at random and the others divided by 1 − p (Srivastava et al. 2014).
 * @throws {ValueError} when p is out of its range
 */
export function dropout(x: Tensor, { p, key }: DropoutOptions): Tensor {
  return key === undefined ? x : drop(x, { p, key });
}
