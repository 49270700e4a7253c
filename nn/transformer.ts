/** The pre-norm transformer block. */
import type { AttentionCache } from "../tensor/attention_cache.ts";
import { add } from "../tensor/elementwise.ts";
import { scope } from "../tensor/scope.ts";
import type { Tensor } from "../tensor/tensor.ts";
import { type AttentionParams, multiHeadAttention, type MultiHeadAttentionOptions } from "./attention.ts";
import { swigluMlp, type SwigluMlpParams } from "./mlp.ts";
import { rmsNorm, type RmsNormParams } from "./norm.ts";

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

/** Options of {@linkcode transformerBlock}. */
export interface TransformerBlockOptions extends MultiHeadAttentionOptions {
  /** Of both norms; 1e-6 when not given. */
  readonly eps?: number;
}

/**
 * h = x + attention(norm x); y = h + mlp(norm h).
 *
 * @param x `[B, S, size]`
 * @returns y `[B, S, size]`, and with a cache the keys and values that the next call takes
 * @throws as {@linkcode multiHeadAttention} does
 */
export function transformerBlock(
  params: TransformerBlockParams,
  x: Tensor,
  options: TransformerBlockOptions,
): { out: Tensor; cache?: AttentionCache } {
  const { eps } = options;
  return scope(() => {
    const { out, cache } = multiHeadAttention(params.attention, rmsNorm(params.attentionNorm, x, { eps }), options);
    const h = rmsNorm(params.mlpNorm, out, { eps, residual: x }); // h.sum = x + out
    return { out: add(h.sum, swigluMlp(params.mlp, h.out)), cache };
  });
}
