/** Attention over a key/value cache: decoding, dense or paged, forward only. */
import {
  type AttentionOptions,
  type AttentionParams,
  type AttentionSizes,
  checkHeads,
  checkOptional,
  knownRange,
  named,
  numbersOf,
  type OptionalInput,
  tensorsOf,
} from "./attention_options.ts";
import { attend, type Problem, type Sequence } from "./attention_reference.ts";
import { tensor } from "./create.ts";
import { IndexError, ShapeError, show, ValueError } from "./errors.ts";
import { dense, expectDType, expectRank, type NdArray, type Op, runAll, type Spec } from "./op.ts";
import { rangeOf, type Tensor, valuesOf } from "./tensor.ts";

/** Keys and values of the past: dense `[B,S,Hk,D]`, or pages `[blocks,page,Hk,D]`. */
export interface AttentionCache {
  /** Keys, rotated already where rotary embedding is used. */
  readonly k: Tensor;
  /** Values; their head size may differ. */
  readonly v: Tensor;
}

/** What the append op has beside its inputs. */
export interface CacheAppendParams {
  /** Which of cacheBatchIdx, blockTable, cos and sin there are, in that order. */
  readonly optional: readonly OptionalInput[];
  /** Whether rotary embedding turns neighbours (2i, 2i+1) instead of halves (i, i + R/2). */
  readonly interleaved: boolean;
}

/** What the cached forward has beside its inputs. */
export interface CacheAttentionParams extends AttentionParams, CacheAppendParams {
  /** Keys of a row beyond cacheSeqlens, those just appended: a row has cacheSeqlens + added. */
  readonly added: number;
  /** Parts that the keys are split into; 0 chooses, 1 forbids. It changes speed and rounding only. */
  readonly numSplits: number;
}

const floats = ["f64", "f32", "f16", "bf16"] as const;

/** How many positions a batch row's cache can hold. */
function capacityOf(k: Spec, blockTable: Spec | undefined): number {
  return blockTable ? blockTable.shape[1] * k.shape[1] : k.shape[1];
}

/** Refuses lengths that the host knows and that, with what joins them, are beyond the cache. */
export function expectRoom(
  op: string,
  { k }: AttentionCache,
  lengths: Tensor,
  added: number,
  blockTable: Tensor | undefined,
): void {
  const range = rangeOf(lengths), capacity = capacityOf(k, blockTable);
  if (range === undefined || (range[0] >= 0 && range[1] + added <= capacity)) return;
  throw new IndexError(
    op,
    `the cache holds ${capacity} positions, lengths ${range[0]} to ${range[1]} with ${added} new do not fit`,
  );
}

/** Checks cache, lengths and tables. */
function checkCache(
  op: string,
  batch: number,
  k: Spec,
  v: Spec,
  cacheSeqlens: Spec,
  found: Partial<Record<OptionalInput, Spec>>,
): void {
  expectRank(op, "cache.k", k.shape, 4);
  expectRank(op, "cache.v", v.shape, 4);
  if (show(k.shape.slice(0, 3)) !== show(v.shape.slice(0, 3))) {
    throw new ShapeError(op, `cache.k ${show(k.shape)} and cache.v ${show(v.shape)} differ before the head size`);
  }
  const { cacheBatchIdx, cacheLeftpad, blockTable } = found;
  const rows = { cacheSeqlens, cacheBatchIdx, cacheLeftpad };
  for (const [name, x] of Object.entries(rows)) {
    if (x === undefined) continue;
    expectDType(op, name, x.dtype, ["i32"]);
    if (show(x.shape) !== show([batch])) throw new ShapeError(op, `${name} ${show(x.shape)} is not [B] = [${batch}]`);
  }
  if (blockTable) {
    expectDType(op, "blockTable", blockTable.dtype, ["i32"]);
    expectRank(op, "blockTable", blockTable.shape, 2);
    if (blockTable.shape[0] !== batch) {
      throw new ShapeError(op, `blockTable ${show(blockTable.shape)} has not one row for each of ${batch} batch rows`);
    }
    if (cacheBatchIdx) {
      throw new ValueError(op, "cacheBatchIdx belongs to a dense cache: with blockTable the table says it");
    }
  } else if (!cacheBatchIdx && k.shape[0] !== batch) {
    throw new ShapeError(
      op,
      `the cache ${show(k.shape)} has ${k.shape[0]} rows for ${batch} batch rows: give cacheBatchIdx`,
    );
  }
}

/** Checks the tables of rotary embedding. */
function checkRotary(op: string, { cos, sin }: Partial<Record<OptionalInput, Spec>>, headDim: number): void {
  if (!cos && !sin) return;
  if (!cos || !sin) throw new ValueError(op, "rotary needs cos and sin");
  for (const [name, x] of [["rotary.cos", cos], ["rotary.sin", sin]] as const) {
    expectDType(op, name, x.dtype, ["f32", "f64"]);
    expectRank(op, name, x.shape, 2);
  }
  const fits = show(cos.shape) === show(sin.shape) && cos.dtype === sin.dtype && 2 * cos.shape[1] <= headDim;
  if (!fits) {
    throw new ShapeError(
      op,
      `rotary.cos ${cos.dtype} ${show(cos.shape)} and rotary.sin ${sin.dtype} ${show(sin.shape)} are not both ` +
        `[positions, R/2] with R up to the head size ${headDim}`,
    );
  }
}

/** The row of the cache that holds a batch row's position. */
function cacheRows(k: Spec, found: Partial<Record<OptionalInput, NdArray>>): (b: number, position: number) => number {
  const length = k.shape[1], { blockTable, cacheBatchIdx } = found;
  if (blockTable) {
    const pages = blockTable.shape[1];
    return (b, position) => blockTable.data[b * pages + Math.floor(position / length)] * length + position % length;
  }
  return (b, position) => (cacheBatchIdx ? cacheBatchIdx.data[b] : b) * length + position;
}

/** Turns `row`, heads of `size`, to a position: y1 = x1·c − x2·s, y2 = x2·c + x1·s. NaN beyond the tables. */
function rotate(
  row: Float64Array,
  size: number,
  position: number,
  cos: NdArray,
  sin: NdArray,
  interleaved: boolean,
): void {
  const [positions, half] = cos.shape, step = interleaved ? 2 : 1, other = interleaved ? 1 : half;
  for (let head = 0; head < row.length; head += size) {
    for (let i = 0; i < half; i++) {
      const inside = position >= 0 && position < positions, at = head + i * step;
      const c = inside ? cos.data[position * half + i] : NaN, s = inside ? sin.data[position * half + i] : NaN;
      const x1 = row[at], x2 = row[at + other];
      row[at] = x1 * c - x2 * s;
      row[at + other] = x2 * c + x1 * s;
    }
  }
}

/**
 * The cache with new keys and values written in place at positions cacheSeqlens[b] + t; keys are rotated to their
 * position first. What lies beyond the cache's end is not written.
 *
 * Inputs: kCache `[B,S,Hk,D]` or `[blocks,page,Hk,D]`, vCache `[…,Dv]`, both consumed; k `[B,T,Hk,D]` and v `[B,T,Hk,Dv]`
 * of any float dtype; cacheSeqlens i32 `[B]`; then those that `params.optional` names: cacheBatchIdx i32 `[B]` (the cache's
 * row for each batch row; a dense cache then has any number of rows) · blockTable i32 `[B,pages]` (position p of row b is
 * place p mod page of block blockTable[b, ⌊p/page⌋]) · cos and sin f32 (or f64)
 * `[positions,R/2]`, R ≤ D.
 * Outputs: kCache, vCache.
 */
export const cacheAppendOp: Op<CacheAppendParams> = {
  name: "cacheAppend",
  inPlace: [0, 1],
  infer: ([kCache, vCache, k, v, cacheSeqlens, ...rest], { optional }) => {
    const op = "cacheAppend", found = named(optional, rest, 0);
    checkAppend(op, kCache, vCache, k, v);
    checkCache(op, k.shape[0], kCache, vCache, cacheSeqlens, found);
    checkRotary(op, found, k.shape[3]);
    return [kCache, vCache].map(({ shape, dtype }) => ({ shape, dtype }));
  },
  reference: ([kCache, vCache, k, v, cacheSeqlens, ...rest], { optional, interleaved }, kOut, vOut) => {
    const found = named(optional, rest.map(dense), 0), rowOf = cacheRows(kCache, found), { cos, sin } = found;
    const capacity = capacityOf(kCache, found.blockTable), lengths = dense(cacheSeqlens).data;
    const [batch, count] = k.shape;
    for (const [from, to] of [[kCache, kOut], [vCache, vOut]]) if (from.data !== to.data) to.data.set(dense(from).data);
    for (const [x, to] of [[dense(k), kOut], [dense(v), vOut]]) {
      const size = x.shape[2] * x.shape[3];
      for (let b = 0; b < batch; b++) {
        for (let t = 0; t < count; t++) {
          const position = lengths[b] + t, at = (b * count + t) * size;
          if (position < 0 || position >= capacity) continue;
          const row = Float64Array.from(x.data.subarray(at, at + size));
          if (to === kOut && cos && sin) rotate(row, x.shape[3], position, cos, sin, interleaved);
          to.data.set(row, rowOf(b, position) * size);
        }
      }
    }
  },
};

/** Checks new keys and values against the cache. */
function checkAppend(op: string, kCache: Spec, vCache: Spec, k: Spec, v: Spec): void {
  for (const [name, x, cache] of [["k", k, kCache], ["v", v, vCache]] as const) {
    expectDType(op, name, x.dtype, floats);
    expectRank(op, name, x.shape, 4);
    expectRank(op, `cache.${name}`, cache.shape, 4);
    if (show(x.shape.slice(2)) !== show(cache.shape.slice(2))) {
      throw new ShapeError(
        op,
        `${name} ${show(x.shape)} does not fit cache.${name} ${show(cache.shape)}: heads and head size`,
      );
    }
  }
  if (show(k.shape.slice(0, 2)) !== show(v.shape.slice(0, 2))) {
    throw new ShapeError(op, `k ${show(k.shape)} and v ${show(v.shape)} differ in batch or length`);
  }
}

function cacheSizes(
  op: string,
  [q, k, v, cacheSeqlens, ...rest]: readonly Spec[],
  optional: readonly OptionalInput[],
): AttentionSizes {
  const found = named(optional, rest, 0);
  expectRank(op, "q", q.shape, 4);
  const [batch, seqlenQ] = q.shape;
  checkCache(op, batch, k, v, cacheSeqlens, found);
  const sizes = { batch, seqlenQ, seqlenK: capacityOf(k, found.blockTable), ...checkHeads(op, q, k, v, true) };
  checkOptional(op, found, sizes);
  checkRotary(op, found, sizes.headDim);
  return sizes;
}

/**
 * Attention over a cache. Batch row b sees the keys at positions from cacheLeftpad[b] to below cacheSeqlens[b] + added;
 * Sk of the rules is that end. With cos and sin, query t is rotated to cacheSeqlens[b] + t when `window` is bounded on
 * either side, else every query to cacheSeqlens[b].
 *
 * Inputs: q `[B,Sq,H,D]`; kCache, vCache and cacheSeqlens as `cacheAppend` has them, of any float dtype; then those that
 * `params.optional` names: alibiSlopes, bias, mask, sinks, key as `attention` has them, bias and mask broadcasting to
 * `[B,H,Sq,S]`, S the positions that a row's cache can hold · cacheBatchIdx · cacheLeftpad i32 `[B]` · blockTable · cos, sin.
 * Outputs: out `[B,Sq,H,Dv]` in q's dtype, lse f32 (f64 when q is) `[B,H,Sq]`.
 */
export const cacheAttentionOp: Op<CacheAttentionParams> = {
  name: "cacheAttention",
  infer: (inputs, { optional }) => {
    const [q] = inputs, { batch, heads, seqlenQ, valueDim } = cacheSizes("cacheAttention", inputs, optional);
    return [
      { shape: [batch, seqlenQ, heads, valueDim], dtype: q.dtype },
      { shape: [batch, heads, seqlenQ], dtype: q.dtype === "f64" ? "f64" : "f32" },
    ];
  },
  reference: (inputs, params, out, lse) => {
    const sizes = cacheSizes("cacheAttention", inputs, params.optional), { heads, seqlenQ: sq, headDim } = sizes;
    const [queries, k, v, cacheSeqlens, ...rest] = inputs.map(dense), optional = named(params.optional, rest, 0);
    const { cos, sin, cacheLeftpad } = optional, rowOf = cacheRows(k, optional), lengths = cacheSeqlens.data;
    let q = queries;
    if (cos && sin) {
      const data = Float64Array.from(queries.data), turns = params.window.some((n) => n >= 0);
      for (let b = 0; b < sizes.batch; b++) {
        for (let t = 0; t < sq; t++) {
          const row = data.subarray((b * sq + t) * heads * headDim, (b * sq + t + 1) * heads * headDim);
          rotate(row, headDim, lengths[b] + (turns ? t : 0), cos, sin, params.interleaved);
        }
      }
      q = { ...queries, dtype: "f64", data };
    }
    const sequences = Array.from({ length: sizes.batch }, (_, b): Sequence => ({
      b,
      sq,
      sk: Math.max(0, Math.min(lengths[b] + params.added, sizes.seqlenK)),
      first: Math.max(0, cacheLeftpad?.data[b] ?? 0),
      qRow: b * sq,
      keyRow: (j) => rowOf(b, j),
      lseAt: (h) => (b * heads + h) * sq,
    }));
    const problem: Problem = { params, sizes, sequences, q, k, v, optional };
    attend(problem, out, lse);
  },
};

/** Options of attention over a cache. */
export interface CacheAttentionOptions extends AttentionOptions {
  /** New keys `[B,T,Hk,D]`, written to the cache before attention. */
  readonly k?: Tensor;
  /** New values `[B,T,Hk,Dv]`. */
  readonly v?: Tensor;
  /** Rotary embedding of q and the new keys: tables f32 `[positions, R/2]`; halves turn, or neighbours when interleaved. */
  readonly rotary?: { readonly cos: Tensor; readonly sin: Tensor; readonly interleaved?: boolean };
  /** Positions that each row holds before this call: a number, or i32 `[B]`. All of the cache when not given. */
  readonly cacheSeqlens?: number | Tensor;
  /** The cache row of each batch row, i32 `[B]`. */
  readonly cacheBatchIdx?: Tensor;
  /** Positions at the start of each row that are padding, i32 `[B]`. */
  readonly cacheLeftpad?: Tensor;
  /** The pages of each row, i32 `[B, pages]`: makes the cache one of pages `[blocks,page,Hk,D]`. */
  readonly blockTable?: Tensor;
  /** Parts that the keys are split into, to fill a GPU with few rows: 0 chooses, 1 forbids. */
  readonly numSplits?: number;
}

/** What attention over a cache gives. */
export interface CacheAttentionResult {
  /** `[B, Sq, H, Dv]` */
  readonly out: Tensor;
  /** f32 `[B, H, Sq]` */
  readonly lse: Tensor;
  /** The cache with the new keys and values. The one that was given is spent. */
  readonly cache: AttentionCache;
}

/** Refuses what the host can see of lengths and tables. */
function checkPlaces(
  op: string,
  cache: AttentionCache,
  cacheSeqlens: Tensor,
  added: number,
  { cacheBatchIdx, cacheLeftpad, blockTable, rotary }: CacheAttentionOptions,
  queries: number,
): void {
  const capacity = capacityOf(cache.k, blockTable), lengths = knownRange(cacheSeqlens);
  if (lengths !== undefined) {
    const [least, most] = lengths;
    if (least < 0) throw new IndexError(op, `cacheSeqlens is at least 0, got ${least}`);
    if (most + added > capacity) {
      throw new IndexError(
        op,
        `the cache is too short: it holds ${capacity} positions, cacheSeqlens ${most} + ${added} new is ${
          most + added
        }`,
      );
    }
    const end = most + Math.max(added, queries);
    if (rotary !== undefined && end > rotary.cos.shape[0]) {
      throw new IndexError(op, `rotary has ${rotary.cos.shape[0]} positions, the call reaches ${end}`);
    }
  }
  const bounds = [
    ["cacheBatchIdx", cacheBatchIdx, cache.k.shape[0]],
    ["cacheLeftpad", cacheLeftpad, capacity + 1],
  ] as const;
  for (const [name, x, bound] of bounds) {
    const range = x && knownRange(x);
    const bad = range?.find((n) => n < 0 || n >= bound);
    if (bad !== undefined) throw new IndexError(op, `${name} goes from 0 to ${bound - 1}, got ${bad}`);
  }
  const rows = added > 0 && cacheBatchIdx ? Array.from(valuesOf(cacheBatchIdx) ?? []) : [];
  const twice = rows.find((row, i) => rows.indexOf(row) !== i);
  if (twice !== undefined) {
    throw new ValueError(op, `two batch rows would write to cache row ${twice}: see cacheBatchIdx`);
  }
  if (blockTable !== undefined) checkPages(op, cache, cacheSeqlens, added, blockTable);
}

/** Entries of the table that a row uses name a block; the others may hold anything. */
function checkPages(op: string, { k }: AttentionCache, cacheSeqlens: Tensor, added: number, blockTable: Tensor): void {
  const [blocks, page] = k.shape, pages = blockTable.shape[1];
  const table = valuesOf(blockTable), lengths = valuesOf(cacheSeqlens);
  if (table === undefined || lengths === undefined) return;
  for (let b = 0; b < lengths.length; b++) {
    for (let n = 0; n * page < lengths[b] + added; n++) {
      const block = table[b * pages + n];
      if (block >= 0 && block < blocks) continue;
      throw new IndexError(op, `blockTable[${b},${n}] is ${block}, the cache has blocks 0 to ${blocks - 1}`);
    }
  }
}

/**
 * Attention over a cache of keys and values, for decoding: writes the new ones into it, then attends. Forward only.
 *
 * The cache is consumed: its buffers are written in place, the result holds the new handles, and touching the old ones is
 * an error. Without new keys and values nothing is written and the same handles come back.
 *
 * @param q `[B, Sq, H, D]`
 * @param cache k and v, dense `[B, S, Hk, D]` or pages `[blocks, page, Hk, D]`; f16 or bf16 under f32 queries, if you like
 * @param options the options of {@linkcode flashAttention}, and those of the cache; new keys go to position cacheSeqlens,
 * rotated to it; queries are rotated to cacheSeqlens + t when causal or windowed, else all to cacheSeqlens
 * @returns out, lse and the cache
 * @throws {IndexError} when the new keys do not fit, before anything is written; both lengths are named
 * @throws as {@linkcode flashAttention} does
 *
 * @example
 * ```ts
 * import { flashAttentionWithKvCache, key, randn, split, zeros } from "@flashtape/flashtape";
 * let cache = { k: zeros([1, 64, 2, 16]), v: zeros([1, 64, 2, 16]) };
 * for (const [step, seed] of split(key(0), 4).entries()) {
 *   const [q, k, v] = split(seed, 3).map((s, i) => randn(s, [1, 1, i === 0 ? 8 : 2, 16]));
 *   ({ cache } = flashAttentionWithKvCache(q, cache, { k, v, cacheSeqlens: step, causal: true }));
 * }
 * ```
 */
export function flashAttentionWithKvCache(
  q: Tensor,
  cache: AttentionCache,
  options: CacheAttentionOptions = {},
): CacheAttentionResult {
  const op = "flashAttentionWithKvCache";
  const { k, v, rotary, cacheBatchIdx, cacheLeftpad, blockTable, numSplits = 0 } = options;
  expectRank(op, "q", q.shape, 4);
  expectRank(op, "cache.k", cache.k.shape, 4);
  if ((k === undefined) !== (v === undefined)) {
    throw new ValueError(op, "new keys and values come together: give k and v");
  }
  if (!Number.isSafeInteger(numSplits) || numSplits < 0) {
    throw new ValueError(op, `numSplits is a whole number of at least 0, got ${numSplits}`);
  }
  const given = options.cacheSeqlens ?? capacityOf(cache.k, blockTable), added = k?.shape[1] ?? 0;
  if (k !== undefined && options.cacheSeqlens === undefined) {
    throw new ValueError(op, "new keys and values need cacheSeqlens, the positions that the cache holds already");
  }
  if (typeof given === "number" && (!Number.isSafeInteger(given) || given < 0 || given >= 2 ** 31)) {
    throw new ValueError(op, `cacheSeqlens is a whole number of at least 0, got ${given}`);
  }
  const numbers = numbersOf(op, options, q.shape[3]), interleaved = rotary?.interleaved ?? false;
  const key = numbers.dropout > 0 ? options.dropout!.key : undefined;
  const places = { cacheBatchIdx, blockTable, cos: rotary?.cos, sin: rotary?.sin };
  const { alibiSlopes, bias, mask, sinks } = options;
  const attention = tensorsOf({ alibiSlopes, bias, mask, sinks, key, cacheLeftpad, ...places });
  const batch = q.shape[0];
  const cacheSeqlens = typeof given === "number"
    ? tensor(new Int32Array(batch).fill(given), { dtype: "i32", backend: q.backend })
    : given;
  try {
    cacheSizes(op, [q, cache.k, cache.v, cacheSeqlens, ...attention.tensors], attention.optional);
    if (k !== undefined && v !== undefined) {
      checkAppend(op, cache.k, cache.v, k, v);
      if (k.shape[0] !== batch) {
        throw new ShapeError(
          op,
          `batch sizes differ: q ${show(q.shape)}, k ${show(k.shape)} (${batch} ≠ ${k.shape[0]})`,
        );
      }
    }
    checkPlaces(op, cache, cacheSeqlens, added, options, q.shape[1]);
    let next = cache;
    if (k !== undefined && v !== undefined) {
      const append = tensorsOf(places);
      const inputs = [cache.k, cache.v, k, v, cacheSeqlens, ...append.tensors];
      const [kNext, vNext] = runAll(cacheAppendOp, inputs, { optional: append.optional, interleaved });
      next = { k: kNext, v: vNext };
    }
    const params = { ...numbers, optional: attention.optional, added, interleaved, numSplits };
    const [out, lse] = runAll(cacheAttentionOp, [q, next.k, next.v, cacheSeqlens, ...attention.tensors], params);
    return { out, lse, cache: next };
  } finally {
    if (cacheSeqlens !== given) cacheSeqlens.dispose();
  }
}
