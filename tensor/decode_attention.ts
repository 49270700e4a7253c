/** A step of decoding, from projected queries, keys and values to attention: one op, so that it can be one dispatch. */
import { type AttentionCache, cacheAttentionOp, type CacheAttentionParams, expectRoom } from "./attention_cache.ts";
import { roundTo } from "./dtype.ts";
import { ShapeError, show } from "./errors.ts";
import { dense, expectDType, type NdArray, ndarray, type Op, runAll } from "./op.ts";
import {
  appendInputs,
  type AppendOptions,
  type RotaryAppendInputs,
  rotaryAppendInputs,
  rotaryAppendOp,
  type RotaryAppendParams,
} from "./rotary_append.ts";
import type { Tensor } from "./tensor.ts";

/** What the op has beside its inputs. */
export interface DecodeAttentionParams {
  /** Query heads. */
  readonly heads: number;
  /** Whether leftpad is among the inputs. */
  readonly padded: boolean;
  /** Whether a block table is among the inputs. */
  readonly paged: boolean;
}

/** The inputs by what they are. */
export function decodeAttentionInputs<T>(
  inputs: readonly T[],
  { padded, paged }: DecodeAttentionParams,
): Omit<RotaryAppendInputs<T>, "positions"> & { readonly leftpad: T | undefined } {
  const { positions: leftpad, ...given } = rotaryAppendInputs(inputs, { positioned: padded, paged });
  return { ...given, leftpad };
}

/** What `rotaryAppend` and `cacheAttention` are told. */
export function decodeAttentionParts(
  { heads, padded, paged }: DecodeAttentionParams,
  size: number,
): { append: RotaryAppendParams; attend: CacheAttentionParams } {
  const optional = [...(padded ? ["cacheLeftpad" as const] : []), ...(paged ? ["blockTable" as const] : [])];
  return {
    append: { heads, positioned: padded, paged },
    attend: {
      ...{ scale: 1 / Math.sqrt(size), window: [-1, 0] as const, softcap: 0, dropout: 0 },
      ...{ optional, added: 1, interleaved: false, numSplits: 0 },
    },
  };
}

/** max(0, lengths − leftpad): where the next token of each row stands, `[B, 1]`. */
function positionsOf(lengths: NdArray, leftpad: NdArray): NdArray {
  const positions = ndarray({ shape: [lengths.shape[0], 1], dtype: "i32" });
  const [n, pads] = [dense(lengths).data, dense(leftpad).data];
  positions.data.set(Array.from(n, (length, b) => Math.max(0, length - pads[b])));
  return positions;
}

/**
 * `rotaryAppend` of one token a row, at position lengths[b] − leftpad[b] where there is padding, then its causal attention
 * over the cache with the keys from leftpad[b] on.
 *
 * Inputs: kCache and vCache, consumed, qkv `[B, 1, (H + 2·Hk)·D]`, cos, sin, lengths as `rotaryAppend` has them; leftpad i32
 * `[B]` and blockTable i32 `[B, pages]` where there are such.
 * Outputs: kCache, vCache, and `[B, 1, H, D]` in the dtype of qkv.
 */
export const decodeAttentionOp: Op<DecodeAttentionParams> = {
  name: "decodeAttention",
  inPlace: [0, 1],
  infer: (inputs, params) => {
    const op = "decodeAttention";
    const { kCache, vCache, qkv, cos, sin, lengths, leftpad, blockTable } = decodeAttentionInputs(inputs, params);
    const append = [kCache, vCache, qkv, cos, sin, lengths, ...(blockTable ? [blockTable] : [])];
    const specs = rotaryAppendOp.infer(append, { heads: params.heads, positioned: false, paged: params.paged });
    if (qkv.shape[1] !== 1) {
      throw new ShapeError(op, `takes one token a row, got ${qkv.shape[1]}: qkv ${show(qkv.shape)}`);
    }
    if (params.heads % kCache.shape[2] !== 0) {
      throw new ShapeError(op, `${kCache.shape[2]} key/value heads do not divide ${params.heads} query heads`);
    }
    if (leftpad !== undefined) {
      expectDType(op, "leftpad", leftpad.dtype, ["i32"]);
      if (show(leftpad.shape) !== show(lengths.shape)) {
        throw new ShapeError(op, `leftpad ${show(leftpad.shape)} is not ${show(lengths.shape)}`);
      }
    }
    return specs;
  },
  reference: (inputs, params, kOut, vOut, out) => {
    const given = decodeAttentionInputs(inputs, params), { cos, sin, lengths, leftpad, blockTable } = given;
    const { append, attend } = decodeAttentionParts(params, kOut.shape[3]), table = blockTable ? [blockTable] : [];
    const positions = leftpad ? [positionsOf(lengths, leftpad)] : [];
    const q = ndarray({ dtype: "f64", shape: out.shape }), [batch, , heads] = out.shape;
    const turn = [given.kCache, given.vCache, given.qkv, cos, sin, lengths, ...positions, ...table];
    rotaryAppendOp.reference(turn, append, kOut, vOut, q);
    for (const cache of [kOut, vOut]) roundTo(cache.dtype, cache.data); // what is stored is what is attended to
    const lse = ndarray({ shape: [batch, heads, 1], dtype: "f64" });
    const seen = [q, kOut, vOut, lengths, ...(leftpad ? [leftpad] : []), ...table];
    cacheAttentionOp.reference(seen, attend, out, lse);
  },
};

/** Options of {@linkcode decodeAttention}. */
export interface DecodeAttentionOptions extends AppendOptions {
  /** Positions at the start of each row that are padding, i32 `[B]`. */
  readonly leftpad?: Tensor;
}

/**
 * Attention of one new token a row over a cache that it joins. Forward only; the cache is consumed.
 *
 * @param qkv f32 `[B, 1, (H + 2·Hk)·D]`, query heads first
 * @param cache dense `[B, S, Hk, D]` or pages `[blocks, page, Hk, D]`
 * @returns out `[B, 1, H, D]` and the cache
 * @throws {ShapeError} when shapes do not fit
 * @throws {IndexError} when the host knows that the cache is too short
 */
export function decodeAttention(
  qkv: Tensor,
  cache: AttentionCache,
  options: DecodeAttentionOptions,
): { out: Tensor; cache: AttentionCache } {
  const { heads, lengths, leftpad, blockTable } = options, inputs = appendInputs(qkv, cache, options, leftpad);
  const params = { heads, padded: leftpad !== undefined, paged: blockTable !== undefined };
  decodeAttentionOp.infer(inputs, params);
  expectRoom("decodeAttention", cache, lengths, 1, blockTable);
  const [k, v, out] = runAll(decodeAttentionOp, inputs, params);
  return { out, cache: { k, v } };
}
