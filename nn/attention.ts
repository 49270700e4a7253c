/** Multi-head attention with grouped heads. */
import { add, cast, mul, sub, where } from "../tensor/elementwise.ts";
import { arange } from "../tensor/create.ts";
import { lessEqual } from "../tensor/elementwise.ts";
import { ShapeError, show, ValueError } from "../tensor/errors.ts";
import { take } from "../tensor/gather.ts";
import { matmul } from "../tensor/matmul.ts";
import { broadcastTo, concat, expandDims, permute, reshape, slice } from "../tensor/movement.ts";
import { softmax } from "../tensor/norm.ts";
import { scope } from "../tensor/scope.ts";
import type { Tensor } from "../tensor/tensor.ts";
import { appendToCache, type LayerCache } from "./cache.ts";
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
  /** What came before; consumed. */
  readonly cache?: LayerCache;
  /** Whether to return the keys and values for a next call. */
  readonly keepCache?: boolean;
  /** `"flash"` when not given. */
  readonly attention?: AttentionAlgorithm;
}

/**
 * softmax(Q·Kᵀ/√D)·V over heads, between linear layers (Vaswani et al. 2017; grouped heads: Ainslie et al. 2023).
 *
 * @param x `[B, S, size]`
 * @returns out `[B, S, size]`, and the cache that a next call takes, if asked for
 */
export function multiHeadAttention(
  params: AttentionParams,
  x: Tensor,
  options: MultiHeadAttentionOptions,
): { out: Tensor; cache?: LayerCache } {
  const { heads, kvHeads = heads, causal = true, mask, rotary, cache, keepCache = cache !== undefined } = options;
  if (x.rank !== 3) throw new ShapeError("multiHeadAttention", `x is [B, S, size], got ${show(x.shape)}`);
  if (!Number.isInteger(heads / kvHeads) || params.q.weight.shape[0] % heads !== 0) {
    throw new ValueError(
      "multiHeadAttention",
      `${kvHeads} key/value heads divide ${heads} query heads, which divide ${params.q.weight.shape[0]}`,
    );
  }
  return scope(() => {
    const [batch, length] = x.shape;
    const split = (y: Tensor, count: number) => reshape(y, [batch, length, count, -1]);
    const turn = (y: Tensor) => rotary === undefined ? y : rotate(y, rotary);
    const q = turn(split(linear(params.q, x), heads)); // [B, S, H, D]
    const k = turn(split(linear(params.k, x), kvHeads)); // [B, S, Hk, D]
    const v = split(linear(params.v, x), kvHeads);
    const seen = keepCache ? appendToCache(cache, k, v) : { k, v };
    const out = attend(q, seen.k, seen.v, causal, mask); // [B, S, H, D]
    return { out: linear(params.o, reshape(out, [batch, length, -1])), cache: keepCache ? seen : undefined };
  });
}

function rotate(x: Tensor, { cos, sin, positions }: Rotary): Tensor {
  const half = x.shape[3] / 2, to = [...x.shape.slice(0, 3), half];
  const c = cast(expandDims(take(cos, positions), -2), x.dtype),
    s = cast(expandDims(take(sin, positions), -2), x.dtype);
  const x1 = slice(x, [0, 0, 0, 0], to), x2 = slice(x, [0, 0, 0, half], x.shape);
  return concat([sub(mul(x1, c), mul(x2, s)), add(mul(x2, c), mul(x1, s))], { axis: -1 });
}

function attend(q: Tensor, k: Tensor, v: Tensor, causal: boolean, mask: Tensor | undefined): Tensor {
  const [B, Sq, H, D] = q.shape, [, Sk, Hk] = k.shape, G = H / Hk;
  const heads = (x: Tensor) => {
    const t = expandDims(permute(x, [0, 2, 1, 3]), 2); // [B, Hk, 1, Sk, D]
    return reshape(broadcastTo(t, [B, Hk, G, Sk, D]), [B, H, Sk, D]);
  };
  let s = mul(matmul(permute(q, [0, 2, 1, 3]), heads(k), { transposeB: true }), 1 / Math.sqrt(D));
  if (causal) {
    const i = expandDims(arange(Sk - Sq, Sk, { dtype: "i32", backend: q.backend }), 1),
      j = arange(0, Sk, { dtype: "i32", backend: q.backend });
    s = where(lessEqual(j, i), s, -1e30);
  }
  if (mask !== undefined) s = where(mask, s, -1e30);
  return permute(matmul(softmax(s), heads(v)), [0, 2, 1, 3]);
}
