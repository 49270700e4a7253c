/** Linear layers and embeddings. */
import { add } from "../tensor/elementwise.ts";
import { take } from "../tensor/gather.ts";
import { matmul } from "../tensor/matmul.ts";
import { scope } from "../tensor/scope.ts";
import type { Tensor } from "../tensor/tensor.ts";

/** Parameters of {@linkcode linear}. */
export interface LinearParams {
  /** `[out, in]` */
  readonly weight: Tensor;
  /** `[out]`; none when not given. */
  readonly bias?: Tensor;
}

/** Parameters of {@linkcode embedding}. */
export interface EmbeddingParams {
  /** One row for each id, `[vocabulary, size]`. */
  readonly weight: Tensor;
}

/**
 * y = x·Wᵀ + b.
 *
 * @param x `[…, in]`
 * @returns `[…, out]`
 * @throws {ShapeError} when the last axis of `x` is not `in`
 *
 * @example
 * ```ts
 * import { tensor } from "@flashtape/flashtape";
 * import { linear } from "@flashtape/flashtape/nn";
 * const y = linear({ weight: tensor([[1, 2], [3, 4]]), bias: tensor([0, 1]) }, tensor([[1, 1]]));
 * console.log(await y.array()); // [[3, 8]]
 * ```
 */
export function linear({ weight, bias }: LinearParams, x: Tensor): Tensor {
  return scope(() => {
    const y = matmul(x, weight, { transposeB: true });
    return bias === undefined ? y : add(y, bias);
  });
}

/**
 * The rows of a table that ids name.
 *
 * @param ids i32 or u32, any shape
 * @returns `[…ids, size]`
 * @throws {IndexError} when an id made from host data is not below the vocabulary
 *
 * @example
 * ```ts
 * import { tensor } from "@flashtape/flashtape";
 * import { embedding } from "@flashtape/flashtape/nn";
 * const y = embedding({ weight: tensor([[0, 1], [2, 3]]) }, tensor([1, 0, 1], { dtype: "i32" }));
 * console.log(await y.array()); // [[2, 3], [0, 1], [2, 3]]
 * ```
 */
export function embedding({ weight }: EmbeddingParams, ids: Tensor): Tensor {
  return take(weight, ids);
}
