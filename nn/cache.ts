/** The key/value cache of a decoder, as a value: a call takes one and returns the next. */
import { concat } from "../tensor/movement.ts";
import { dispose } from "../tensor/scope.ts";
import type { Tensor } from "../tensor/tensor.ts";

/** What one layer has seen. */
export interface LayerCache {
  /** `[B, length, Hk, D]` */
  readonly k: Tensor;
  /** `[B, length, Hk, D]` */
  readonly v: Tensor;
}

/** What every layer has seen. */
export interface KvCache {
  /** One for each layer; empty before the first call. */
  readonly layers: readonly LayerCache[];
  /** Positions held. */
  readonly length: number;
}

/** A cache that has seen nothing. */
export function emptyCache(): KvCache {
  return { layers: [], length: 0 };
}

/** One layer's cache with keys and values of further positions; the old one is consumed. */
export function appendToCache(layer: LayerCache | undefined, k: Tensor, v: Tensor): LayerCache {
  if (layer === undefined) return { k, v };
  const next = { k: concat([layer.k, k], { axis: 1 }), v: concat([layer.v, v], { axis: 1 }) };
  dispose(layer);
  return next;
}
