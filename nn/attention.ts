/** Multi-head attention with grouped heads. */
import { flashAttention } from "../tensor/attention.ts";
import { type AttentionCache, cacheAttentionOp } from "../tensor/attention_cache.ts";
import { naiveAttention } from "../tensor/attention_eager.ts";
import { tensorsOf } from "../tensor/attention_options.ts";
import { type Backend, matrixUnits } from "../tensor/backend.ts";
import { arange, tensor } from "../tensor/create.ts";
import type { DType } from "../tensor/dtype.ts";
import { add, cast, greaterEqual, lessEqual, logicalAnd, maximum, sub } from "../tensor/elementwise.ts";
import { decodeAttention } from "../tensor/decode_attention.ts";
import { ShapeError, show, ValueError } from "../tensor/errors.ts";
import { take } from "../tensor/gather.ts";
import { pad, reshape, slice } from "../tensor/movement.ts";
import { runAll } from "../tensor/op.ts";
import { project } from "../tensor/project.ts";
import { rotaryEmbedding } from "../tensor/rotary.ts";
import { rotaryAppend } from "../tensor/rotary_append.ts";
import { scope } from "../tensor/scope.ts";
import type { Tensor } from "../tensor/tensor.ts";
import { appendToCache, expectRoom, grownCapacity, roomInCache } from "./cache.ts";
import { linear, type LinearParams } from "./linear.ts";
import { rmsNorm, type RmsNormParams } from "./norm.ts";

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
  /** Where the tokens stand, i32 `[S]` or `[B, S]`; where the cache has them when not given. */
  readonly positions?: Tensor;
}

/** One layer's part of a cache. */
export interface LayerCache {
  /** Keys and values; none before the first call. */
  readonly seen?: AttentionCache;
  /** Positions that it holds: a number, or i32 `[B]`, and then `seen` has room for what comes. */
  readonly past: number | Tensor;
  /** `past` for the device, i32 `[B]`: made once, it serves all layers. */
  readonly lengths?: Tensor;
  /** Positions that there is room for; more is found when they are full. */
  readonly capacity: number;
  /** Positions at the start of each row that are padding, i32 `[B]`. */
  readonly leftpad?: Tensor;
  /** The pages of each row, i32 `[B, pages]`: `seen` is then pages `[blocks, page, Hk, D]`. */
  readonly table?: Tensor;
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
    const q = project(params.q, heads); // [B, S, H, D]
    const k = project(params.k, kvHeads); // [B, S, Hk, D]
    const v = project(params.v, kvHeads);
    const { out, seen } = attend(...turned(q, k, rotary, cache), v, cache, options);
    return { out: linear(params.o, reshape(out, [batch, length, params.o.weight.shape[1]])), cache: seen };
  });
}

/**
 * Whether keys and values of a type are multiplied as they are by a backend's matrix units, with queries of f32, while those
 * of f32 are not.
 */
export function multipliesStored({ capabilities }: Backend, dtype: DType): boolean {
  return (dtype === "f16" || dtype === "bf16") && capabilities.f16 && matrixUnits(capabilities).length > 0;
}

/** Tokens in a call up to which it is a step of decoding. */
export const fewTokens = 32;

/**
 * What stands before the last layer of attention over norm(x), in ops that have no derivative.
 *
 * @param x f32 `[B, S, size]`
 * @returns out `[B, S, H·D]`, and the cache
 */
export function normedAttention(
  params: Omit<AttentionParams, "o">,
  norm: RmsNormParams & { readonly eps: number },
  x: Tensor,
  options: MultiHeadAttentionOptions,
): { out: Tensor; cache?: AttentionCache } {
  const { heads, kvHeads = heads, rotary, cache, attention, mask } = options;
  const [batch, length] = x.shape, weights = [params.q.weight, params.k.weight, params.v.weight];
  const size = weights[0].shape[0] / heads;
  return scope(() => {
    const whole = rotary !== undefined && 2 * rotary.cos.shape[1] === size && size % 4 === 0;
    const few = batch * length <= fewTokens, positions = rotary?.positions, type = weights[0].dtype;
    // What is in the cache is seen as it is there, also by those that came with it, where that costs nothing or saves much.
    const stored = few && cache?.past !== 0 || cache?.seen?.k.dtype === type && multipliesStored(x.backend, type);
    if (stored && whole && cache?.seen !== undefined && attention !== "naive") {
      const { past, table } = cache, total = typeof past === "number" ? past + length : undefined;
      const seen = total === undefined || total <= cache.capacity ? cache.seen : grown(cache, total, batch);
      const lengths = lengthsOf(cache, batch, x);
      const qkv = project(x, weights, { norm }), { cos, sin } = rotary!;
      const where = { heads, cos, sin, lengths, blockTable: table }, { leftpad } = cache;
      if (few && length === 1 && positions === undefined && mask === undefined && options.causal !== false) {
        const { out, cache: next } = decodeAttention(qkv, seen, { ...where, leftpad });
        return { out: reshape(out, [batch, 1, heads * size]), cache: next };
      }
      const places = positions ?? (leftpad && positionsIn(cache, batch, length, x));
      const { q, cache: next } = rotaryAppend(qkv, seen, { ...where, positions: places });
      const out = overCache(q, next, lengths, length, options, mask);
      return { out: reshape(out, [batch, length, heads * size]), cache: next };
    }
    const widths = [heads, kvHeads, kvHeads].map((count) => count * size);
    const apart = () => {
      const n = rmsNorm(norm, x, norm);
      return weights.map((w) => project(n, [w]));
    };
    // Few rows are one dispatch, whose columns are read where they lie.
    const columns = () => {
      const qkv = project(x, weights, { norm });
      return widths.map((width, i) => {
        const begin = widths.slice(0, i).reduce((a, b) => a + b, 0);
        return slice(qkv, [0, 0, begin], [batch, length, begin + width]);
      });
    };
    const [q, k, v] = (few ? columns() : apart()).map((y) => reshape(y, [batch, length, y.shape[2] / size, size]));
    const { out, seen } = attend(...turned(q, k, rotary, cache), v, cache, options);
    return { out: reshape(out, [batch, length, heads * size]), cache: seen };
  });
}

/** Queries and keys at their positions. */
function turned(q: Tensor, k: Tensor, rotary: Rotary | undefined, cache: LayerCache | undefined): [Tensor, Tensor] {
  if (rotary === undefined) return [q, k];
  const positions = rotary.positions ?? positionsIn(cache, q.shape[0], q.shape[1], q);
  const [a, b] = rotaryEmbedding([q, k], rotary.cos, rotary.sin, { positions });
  return [a, b];
}

/** Where new tokens stand behind what a cache has, padding not counted: i32 `[S]` or `[B, S]`. */
export function positionsIn(
  cache: Pick<LayerCache, "past" | "leftpad"> | undefined,
  batch: number,
  length: number,
  { backend }: Tensor,
): Tensor {
  const { past = 0, leftpad } = cache ?? {},
    row = (from: number) => arange(from, from + length, { dtype: "i32", backend });
  if (typeof past === "number" && leftpad === undefined) return row(past);
  const own = typeof past === "number" ? row(past) : add(reshape(past, [batch, 1]), row(0)); // [S] or [B, S]
  return leftpad === undefined ? own : maximum(sub(own, reshape(leftpad, [batch, 1])), 0);
}

/** How much each row's cache holds, for the device. */
function lengthsOf({ past, lengths }: LayerCache, batch: number, { backend }: Tensor): Tensor {
  if (typeof past !== "number") return past;
  return lengths ?? tensor(new Int32Array(batch).fill(past), { backend });
}

/** A layer's cache with more room. */
function grown({ seen, capacity }: LayerCache, total: number, batch: number): AttentionCache {
  const { k } = seen!, [, , ...heads] = k.shape;
  return roomInCache(seen, {
    ...{ batch, heads: heads as [number, number], dtype: k.dtype, backend: k.backend },
    capacity: grownCapacity(capacity, total),
  });
}

/** Attention over these keys and those of the cache: out `[B, S, H, D]`. */
function attend(
  q: Tensor,
  k: Tensor,
  v: Tensor,
  cache: LayerCache | undefined,
  options: MultiHeadAttentionOptions,
): { out: Tensor; seen?: AttentionCache } {
  const { causal = true, mask, attention } = options;
  const direct = attention === "naive" ? naiveAttention : flashAttention;
  if (cache === undefined) return { out: direct(q, k, v, { causal, mask }) };
  const { past, capacity, table } = cache, [batch, length, ...heads] = k.shape;
  const room = typeof past !== "number" ? capacity : grownCapacity(capacity, past + length);
  const fits = cache.seen !== undefined && (table !== undefined || cache.seen.k.shape[1] === room);
  const target = fits ? cache.seen! : roomInCache(cache.seen, {
    ...{ batch, capacity: room, heads: heads as [number, number], dtype: k.dtype, backend: k.backend },
  });
  const lengths = lengthsOf(cache, batch, k);
  if (typeof past === "number") expectRoom(target, past, length, table);
  const seen = appendToCache(target, lengths, k, v, table);
  if (past === 0) return { out: direct(q, k, v, { causal, mask: mask ?? padding(cache, length) }), seen };
  if (attention !== "naive") return { out: overCache(q, seen, lengths, length, options, mask), seen };
  const [keys, values] = [seen.k, seen.v].map((x) => {
    const all = table === undefined ? x : take(x, reshape(table, [table.size])); // [B·pages, page, Hk, D]
    const rows = reshape(all, [batch, all.size / batch / heads[0] / heads[1], ...heads]);
    return cast(typeof past === "number" ? slice(rows, [0, 0, 0, 0], [batch, past + length, ...heads]) : rows, q.dtype);
  });
  if (typeof past === "number") {
    const hidden = padding(cache, past + length);
    return { out: naiveAttention(q, keys, values, { causal, mask: mask ?? hidden }), seen };
  }
  return { out: naiveAttention(q, keys, values, { mask: visible(cache, length, keys.shape[1], causal) }), seen };
}

/** Attention over a cache that holds the new keys already. */
function overCache(
  q: Tensor,
  seen: AttentionCache,
  lengths: Tensor,
  added: number,
  { causal = true, cache }: MultiHeadAttentionOptions,
  mask: Tensor | undefined,
): Tensor {
  const { table, leftpad } = cache!, room = (table?.shape[1] ?? 1) * seen.k.shape[1];
  const spare = mask === undefined ? 0 : room - mask.shape.at(-1)!;
  const wide = mask === undefined || mask.shape.at(-1) === 1 || spare === 0
    ? mask
    : pad(mask, [...Array<[number, number]>(mask.rank - 1).fill([0, 0]), [0, spare]]);
  const { tensors, optional } = tensorsOf({ mask: wide, cacheLeftpad: leftpad, blockTable: table });
  const [out] = runAll(cacheAttentionOp, [q, seen.k, seen.v, lengths, ...tensors], {
    ...{ scale: 1 / Math.sqrt(q.shape[3]), window: causal ? [-1, 0] : [-1, -1], softcap: 0, dropout: 0 },
    ...{ optional, added, interleaved: false, numSplits: 0 },
  });
  return out;
}

/** Which keys are no padding, bool `[B, 1, 1, length]`. */
function padding({ leftpad }: LayerCache, length: number): Tensor | undefined {
  if (leftpad === undefined) return undefined;
  const places = arange(0, length, { dtype: "i32", backend: leftpad.backend });
  return greaterEqual(reshape(places, [1, 1, 1, length]), reshape(leftpad, [leftpad.size, 1, 1, 1]));
}

/** Which of all the keys a cache has room for are seen by each new token, bool `[B, 1, S, keys]`. */
function visible(cache: LayerCache, length: number, keys: number, causal: boolean): Tensor {
  const past = cache.past as Tensor, at = { dtype: "i32", backend: past.backend } as const;
  const own = causal ? arange(0, length, at) : tensor(new Int32Array(length).fill(length - 1), at);
  const last = add(reshape(past, [past.size, 1, 1, 1]), reshape(own, [1, 1, length, 1]));
  const seen = lessEqual(reshape(arange(0, keys, at), [1, 1, 1, keys]), last), shown = padding(cache, keys);
  return shown === undefined ? seen : logicalAnd(seen, shown);
}
