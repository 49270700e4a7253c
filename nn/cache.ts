/**
 * The key/value cache of a decoder, as a value: a call takes one and returns the next. Its buffers have room to spare and
 * are written in place, so a call consumes the cache that it is given.
 */
import { type AttentionCache, cacheAppendOp } from "../tensor/attention_cache.ts";
import { tensor } from "../tensor/create.ts";
import { ValueError } from "../tensor/errors.ts";
import { pad } from "../tensor/movement.ts";
import { runAll } from "../tensor/op.ts";
import { scope } from "../tensor/scope.ts";
import { consume, type Tensor } from "../tensor/tensor.ts";

/** What every layer has seen. */
export interface KvCache {
  /** Keys and values of each layer, `[B, capacity, Hk, D]`; empty before the first call. */
  readonly layers: readonly AttentionCache[];
  /** Positions that hold something. */
  readonly length: number;
  /** Positions that there is room for; more is found when they are full. */
  readonly capacity: number;
}

/**
 * A cache that has seen nothing.
 * @param options.capacity positions to make room for at the start; 256 when not given
 * @throws {ValueError} when the capacity is no whole number above 0
 */
export function emptyCache({ capacity = 256 }: { readonly capacity?: number } = {}): KvCache {
  if (!Number.isSafeInteger(capacity) || capacity < 1) {
    throw new ValueError("emptyCache", `capacity is a whole number above 0, got ${capacity}`);
  }
  return { layers: [], length: 0, capacity };
}

/** A capacity that holds `length` positions: doubled until it does. */
export function grownCapacity(capacity: number, length: number): number {
  return length <= capacity ? capacity : 2 ** Math.ceil(Math.log2(length / capacity)) * capacity;
}

/**
 * One layer's cache with the keys and values of further positions. Consumes the old one.
 *
 * @param past positions that it holds
 * @param k `[B, S, Hk, D]`
 * @param v `[B, S, Hk, Dv]`
 */
export function appendToCache(
  layer: AttentionCache | undefined,
  past: number,
  capacity: number,
  k: Tensor,
  v: Tensor,
): AttentionCache {
  const room = (x: Tensor) => {
    const more = capacity - x.shape[1];
    return more === 0 ? x : pad(x, [[0, 0], [0, more], [0, 0], [0, 0]]);
  };
  if (layer === undefined) return { k: room(k), v: room(v) };
  return scope(() => {
    const [kOld, vOld] = [layer.k, layer.v].map((x) => {
      const grown = room(x);
      if (grown !== x) consume(x, "appendToCache");
      return grown;
    });
    const lengths = tensor(new Int32Array(k.shape[0]).fill(past), { backend: k.backend });
    const [kNew, vNew] = runAll(cacheAppendOp, [kOld, vOld, k, v, lengths], { optional: [], interleaved: false });
    return { k: kNew, v: vNew };
  });
}
