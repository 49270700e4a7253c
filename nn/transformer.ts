/** The pre-norm transformer block. */
import { add } from "../tensor/elementwise.ts";
import { scope } from "../tensor/scope.ts";
import type { Tensor } from "../tensor/tensor.ts";
import { type AttentionParams, multiHeadAttention, type MultiHeadAttentionOptions } from "./attention.ts";
import type { LayerCache } from "./cache.ts";
import { swigluMlp, type SwigluMlpParams } from "./mlp.ts";
import { type NormOptions, rmsNorm, type RmsNormParams } from "./norm.ts";

/** Parameters of {@linkcode transformerBlock}. */
export interface TransformerBlockParams {
  /** Before attention. */
  readonly attentionNorm: RmsNormParams;
  /** The attention layers. */
  readonly attention: AttentionParams;
  /** Before the feed-forward part. */
  readonly mlpNorm: RmsNormParams;
  /** The feed-forward layers. */
  readonly mlp: SwigluMlpParams;
}

/**
 * h = x + attention(norm x); y = h + mlp(norm h).
 *
 * @param x `[B, S, size]`
 * @returns `[B, S, size]`, and the cache that a next call takes, if asked for
 */
export function transformerBlock(
  params: TransformerBlockParams,
  x: Tensor,
  options: MultiHeadAttentionOptions & NormOptions,
): { x: Tensor; cache?: LayerCache } {
  return scope(() => {
    const { out, cache } = multiHeadAttention(params.attention, rmsNorm(params.attentionNorm, x, options), options);
    const h = add(x, out);
    return { x: add(h, swigluMlp(params.mlp, rmsNorm(params.mlpNorm, h, options))), cache };
  });
}
