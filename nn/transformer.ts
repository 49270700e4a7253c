/** The pre-norm transformer block. */
import type { AttentionCache } from "../tensor/attention_cache.ts";
import { add } from "../tensor/elementwise.ts";
import { foldIn } from "../tensor/random.ts";
import { scope } from "../tensor/scope.ts";
import type { Tensor } from "../tensor/tensor.ts";
import { type AttentionParams, multiHeadAttention, type MultiHeadAttentionOptions } from "./attention.ts";
import { dropout } from "./dropout.ts";
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
  /** Drops elements of what attention and mlp add to the residual stream, with this probability; none when not given. */
  readonly dropout?: { readonly p: number; readonly key: Tensor };
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
    const h = rmsNorm(params.mlpNorm, dropped(out, options, 0), { eps, residual: x }); // h.sum = x + attention
    return { out: add(h.sum, dropped(swigluMlp(params.mlp, h.out), options, 1)), cache };
  });
}

function dropped(x: Tensor, { dropout: drop }: TransformerBlockOptions, branch: number): Tensor {
  return drop === undefined ? x : dropout(x, { p: drop.p, key: foldIn(drop.key, branch) });
}
