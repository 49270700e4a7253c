/**
 * The key/value cache of a decoder, as a value: a call takes one and returns the next. Its buffers have room to spare and
 * are written in place, so a call consumes the cache that it is given.
 */
import { type AttentionCache, cacheAppendOp } from "../tensor/attention_cache.ts";
import type { Backend } from "../tensor/backend.ts";
import { tensor, zeros } from "../tensor/create.ts";
import type { DType } from "../tensor/dtype.ts";
import { LimitError, ShapeError, show, ValueError } from "../tensor/errors.ts";
import { concat, pad } from "../tensor/movement.ts";
import { runAll } from "../tensor/op.ts";
import { scope } from "../tensor/scope.ts";
import { consume, type Tensor } from "../tensor/tensor.ts";

/** What every layer has seen. */
export interface KvCache {
  /** Keys and values of each layer, `[B, capacity, Hk, D]`, or pages `[blocks, page, Hk, D]`; empty before the first call. */
  readonly layers: readonly AttentionCache[];
  /** Positions that hold something. */
  readonly length: number;
  /** Positions that there is room for; more is found when they are full. */
  readonly capacity: number;
  /**
   * Positions that hold something as the device counts them, i32 `[B]`, so that a compiled call serves all lengths. It goes
   * before `length`, stays the caller's, and is not counted on: no more room is found then, and what lies beyond the
   * capacity is lost.
   */
  readonly lengths?: Tensor;
  /** Positions at the start of each row that are padding, i32 `[B]`; it stays the caller's. */
  readonly leftpad?: Tensor;
  /** Where a paged cache has its pages. */
  readonly pages?: CachePages;
  /** What keys and values are stored in; the parameters' type when not given. */
  readonly dtype?: DType;
}

/** How a paged cache is laid out. */
export interface CachePages {
  /** Positions of a page. */
  readonly size: number;
  /** The block of each page of each row, i32 `[B, pages]`; made at the first call when not given. */
  readonly table?: Tensor;
}

/** Options of {@linkcode emptyCache}. */
export interface CacheOptions {
  /** Positions to make room for at the start; 256 when not given. Rounded up to whole pages. */
  readonly capacity?: number;
  /** Positions of a page; not paged when not given. */
  readonly pageSize?: number;
  /** Positions at the start of each row that are padding, i32 `[B]`. */
  readonly leftpad?: Tensor;
  /** What keys and values are stored in; the parameters' type when not given. */
  readonly dtype?: DType;
}

/**
 * A cache that has seen nothing.
 * @throws {ValueError} when the capacity or the page size is no whole number above 0
 */
export function emptyCache({ capacity = 256, pageSize, leftpad, dtype }: CacheOptions = {}): KvCache {
  for (const [name, n] of [["capacity", capacity], ["pageSize", pageSize ?? 1]] as const) {
    if (!Number.isSafeInteger(n) || n < 1) {
      throw new ValueError("emptyCache", `${name} is a whole number above 0, got ${n}`);
    }
  }
  return {
    layers: [],
    length: 0,
    capacity: pageSize === undefined ? capacity : Math.ceil(capacity / pageSize) * pageSize,
    ...(leftpad === undefined ? {} : { leftpad }),
    ...(pageSize === undefined ? {} : { pages: { size: pageSize } }),
    ...(dtype === undefined ? {} : { dtype }),
  };
}

/** A capacity that holds `length` positions: doubled until it does. */
export function grownCapacity(capacity: number, length: number): number {
  return length <= capacity ? capacity : 2 ** Math.ceil(Math.log2(length / capacity)) * capacity;
}

/**
 * The table of a paged cache with room for `capacity` positions a row. Pages that are added come after the blocks that
 * there are.
 */
export function grownTable(
  { size, table }: CachePages,
  batch: number,
  capacity: number,
  backend: Backend,
): Tensor {
  const had = table?.shape[1] ?? 0, more = Math.ceil(capacity / size) - had;
  if (table !== undefined && table.shape[0] !== batch) {
    throw new ShapeError(
      "KvCache",
      `the table ${show(table.shape)} has ${table.shape[0]} rows for a batch of ${batch}`,
    );
  }
  if (table !== undefined && more <= 0) return table;
  const added = Int32Array.from({ length: batch * more }, (_, i) => batch * had + i);
  return scope(() => {
    const next = tensor(added, { shape: [batch, more], backend });
    return table === undefined ? next : concat([table, next], { axis: 1 });
  });
}

/** What {@linkcode roomInCache} makes room for. */
export interface CacheRoom {
  readonly batch: number;
  readonly capacity: number;
  /** Positions of a page, or none. */
  readonly pageSize?: number;
  /** Key/value heads, and the size of one. */
  readonly heads: readonly [count: number, size: number];
  readonly dtype: DType;
  readonly backend: Backend;
}

/** One layer's cache with that much room. Consumes the old one when it has less. */
export function roomInCache(
  layer: AttentionCache | undefined,
  { batch, capacity, pageSize, heads, dtype, backend }: CacheRoom,
): AttentionCache {
  const [rows, length] = pageSize === undefined
    ? [batch, capacity]
    : [batch * Math.ceil(capacity / pageSize), pageSize];
  if (layer === undefined) {
    const make = () => zeros([rows, length, ...heads], { dtype, backend });
    return { k: make(), v: make() };
  }
  const room = (x: Tensor) => {
    const more = [rows - x.shape[0], length - x.shape[1]];
    if (pageSize === undefined && more[0] !== 0) {
      throw new ShapeError(
        "KvCache",
        `the cache has ${x.shape[0]} rows, the call ${batch}: a cache belongs to one batch`,
      );
    }
    if (more[0] <= 0 && more[1] <= 0) return x;
    const grown = pad(x, [[0, Math.max(0, more[0])], [0, Math.max(0, more[1])], [0, 0], [0, 0]]);
    consume(x, "KvCache");
    return grown;
  };
  return { k: room(layer.k), v: room(layer.v) };
}

/**
 * One layer's cache with the keys and values of further positions. Consumes the old one.
 *
 * @param past positions that it holds: a number, or i32 `[B]`
 * @param k `[B, S, Hk, D]`
 * @param v `[B, S, Hk, D]`
 * @param table the pages of each row, i32 `[B, pages]`
 * @throws {LimitError} when the host knows that it is too short
 */
export function appendToCache(
  layer: AttentionCache,
  past: number | Tensor,
  k: Tensor,
  v: Tensor,
  table?: Tensor,
): AttentionCache {
  if (typeof past === "number") expectRoom(layer, past, k.shape[1], table);
  return scope(() => {
    const lengths = typeof past === "number"
      ? tensor(new Int32Array(k.shape[0]).fill(past), { backend: k.backend })
      : past;
    const inputs = [layer.k, layer.v, k, v, lengths, ...(table ? [table] : [])];
    const optional = table ? ["blockTable"] as const : [];
    const [kNew, vNew] = runAll(cacheAppendOp, inputs, { optional, interleaved: false });
    return { k: kNew, v: vNew };
  });
}

/** Refuses new positions that do not fit. */
export function expectRoom({ k }: AttentionCache, past: number, added: number, table?: Tensor): void {
  const capacity = table === undefined ? k.shape[1] : table.shape[1] * k.shape[1];
  if (past + added <= capacity) return;
  throw new LimitError("KvCache", `the cache holds ${capacity} positions: ${past} and ${added} new do not fit`);
}
