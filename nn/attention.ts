/** Multi-head attention with grouped heads. */
import { flashAttention } from "../tensor/attention.ts";
import { type AttentionCache, flashAttentionWithKvCache } from "../tensor/attention_cache.ts";
import { naiveAttention } from "../tensor/attention_eager.ts";
import { ShapeError, show, ValueError } from "../tensor/errors.ts";
import { pad, reshape, slice } from "../tensor/movement.ts";
import { rotaryEmbedding } from "../tensor/rotary.ts";
import { scope } from "../tensor/scope.ts";
import type { Tensor } from "../tensor/tensor.ts";
import { appendToCache, grownCapacity } from "./cache.ts";
import { linear, type LinearParams } from "./linear.ts";

/** `"flash"` keeps nothing of size Sq × Sk, `"naive"` all of it; the result is the same. */
export type AttentionAlgorithm = "flash" | "naive";

/** Parameters of {@linkcode multiHeadAttention}: four linear layers. */
export interface AttentionParams {
  /** `[H·D, size]` */
  readonly q: LinearParams;
  /** `[Hk·D, size]` */
  readonly k: LinearParams;
  /** `[Hk·D, size]` */
  readonly v: LinearParams;
  /** `[size, H·D]` */
  readonly o: LinearParams;
}

/** Angles for queries and keys. */
export interface Rotary {
  /** `[positions, D / 2]` */
  readonly cos: Tensor;
  /** `[positions, D / 2]` */
  readonly sin: Tensor;
  /** Where the tokens stand, i32 `[S]` or `[B, S]`. */
  readonly positions: Tensor;
}

/** One layer's part of a cache. */
export interface LayerCache {
  /** Keys and values; none before the first call. */
  readonly seen?: AttentionCache;
  /** Positions that it holds. */
  readonly past: number;
  /** Positions that there is room for. */
  readonly capacity: number;
}

/** Options of {@linkcode multiHeadAttention}. */
export interface MultiHeadAttentionOptions {
  /** Query heads. */
  readonly heads: number;
  /** Key/value heads, which divide the query heads; as many when not given. */
  readonly kvHeads?: number;
  /** Whether a token sees only itself and what came before; true when not given. */
  readonly causal?: boolean;
  /** True where a query may see a key, broadcastable to `[B, H, Sq, Sk]`. */
  readonly mask?: Tensor;
  /** No positions when not given. */
  readonly rotary?: Rotary;
  /** What this layer has seen, and how much; consumed. */
  readonly cache?: LayerCache;
  /** `"flash"` when not given. */
  readonly attention?: AttentionAlgorithm;
}

/**
 * softmax(Q·Kᵀ/√D)·V over heads, between linear layers (Vaswani et al. 2017; grouped heads: Ainslie et al. 2023).
 *
 * @param x `[B, S, size]`
 * @returns out `[B, S, size]`, and with a cache the keys and values that the next call takes
 * @throws {ShapeError} when `x` or the mask have another shape
 * @throws {ValueError} when heads do not divide each other or the layers
 *
 * @example
 * ```ts
 * import { key, randn, split } from "@flashtape/flashtape";
 * import { multiHeadAttention, xavierUniform } from "@flashtape/flashtape/nn";
 * const [a, b, c, d, e] = split(key(0), 5);
 * const params = {
 *   q: { weight: xavierUniform(a, [64, 64]) },
 *   k: { weight: xavierUniform(b, [16, 64]) },
 *   v: { weight: xavierUniform(c, [16, 64]) },
 *   o: { weight: xavierUniform(d, [64, 64]) },
 * };
 * const { out } = multiHeadAttention(params, randn(e, [2, 10, 64]), { heads: 8, kvHeads: 2 });
 * console.log(out.shape); // [2, 10, 64]
 * ```
 */
export function multiHeadAttention(
  params: AttentionParams,
  x: Tensor,
  options: MultiHeadAttentionOptions,
): { out: Tensor; cache?: AttentionCache } {
  const { heads, kvHeads = heads, rotary, cache, attention = "flash" } = options;
  if (x.rank !== 3) throw new ShapeError("multiHeadAttention", `x is [B, S, size], got ${show(x.shape)}`);
  if (attention !== "flash" && attention !== "naive") {
    throw new ValueError("multiHeadAttention", `attention is "flash" or "naive", got "${attention}"`);
  }
  if (!Number.isInteger(heads / kvHeads) || params.q.weight.shape[0] % heads !== 0) {
    throw new ValueError(
      "multiHeadAttention",
      `${kvHeads} key/value heads divide ${heads} query heads, which divide ${params.q.weight.shape[0]}`,
    );
  }
  return scope(() => {
    const [batch, length] = x.shape;
    const project = (layer: LinearParams, count: number) => {
      const y = linear(layer, x);
      return reshape(y, [batch, length, count, y.shape[2] / count]);
    };
    let q = project(params.q, heads); // [B, S, H, D]
    let k = project(params.k, kvHeads); // [B, S, Hk, D]
    const v = project(params.v, kvHeads);
    if (rotary !== undefined) [q, k] = rotaryEmbedding([q, k], rotary.cos, rotary.sin, { positions: rotary.positions });
    const { out, seen } = attend(q, k, v, cache, options);
    return { out: linear(params.o, reshape(out, [batch, length, params.o.weight.shape[1]])), cache: seen };
  });
}

/** Attention over these keys and those of the cache: out `[B, S, H, D]`. */
function attend(
  q: Tensor,
  k: Tensor,
  v: Tensor,
  cache: LayerCache | undefined,
  { causal = true, mask, attention }: MultiHeadAttentionOptions,
): { out: Tensor; seen?: AttentionCache } {
  const direct = attention === "naive" ? naiveAttention : flashAttention;
  if (cache === undefined) return { out: direct(q, k, v, { causal, mask }) };
  const { past } = cache, total = past + k.shape[1], capacity = grownCapacity(cache.capacity, total);
  const seen = appendToCache(cache.seen, past, capacity, k, v);
  if (past === 0) return { out: direct(q, k, v, { causal, mask }), seen };
  if (attention === "naive") {
    const [keys, values] = [seen.k, seen.v].map((x) =>
      slice(x, [0, 0, 0, 0], [x.shape[0], total, x.shape[2], x.shape[3]])
    );
    return { out: naiveAttention(q, keys, values, { causal, mask }), seen };
  }
  const spare = [...Array<[number, number]>((mask?.rank ?? 1) - 1).fill([0, 0]), [0, capacity - total] as const];
  const wide = mask === undefined || mask.shape.at(-1) === 1 ? mask : pad(mask, spare);
  const { out } = flashAttentionWithKvCache(q, seen, { cacheSeqlens: total, causal, mask: wide });
  return { out, seen };
}
