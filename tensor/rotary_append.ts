/** What stands between a decoder's projection and its attention, in one op: queries turn, keys turn and join the cache. */
import { type AttentionCache, expectRoom } from "./attention_cache.ts";
import { ShapeError, show } from "./errors.ts";
import { dense, expectDType, expectRank, type Op, runAll } from "./op.ts";
import type { Tensor } from "./tensor.ts";

/** What the op has beside its inputs. */
export interface RotaryAppendParams {
  /** Query heads. */
  readonly heads: number;
  /** Whether positions are among the inputs. */
  readonly positioned: boolean;
  /** Whether a block table is among the inputs. */
  readonly paged: boolean;
}

/** The inputs by what they are. */
export interface RotaryAppendInputs<T> {
  readonly kCache: T;
  readonly vCache: T;
  readonly qkv: T;
  readonly cos: T;
  readonly sin: T;
  readonly lengths: T;
  readonly positions: T | undefined;
  readonly blockTable: T | undefined;
}

/** Names the inputs, which stand in the order of {@linkcode RotaryAppendInputs}. */
export function rotaryAppendInputs<T>(
  inputs: readonly T[],
  { positioned, paged }: Pick<RotaryAppendParams, "positioned" | "paged">,
): RotaryAppendInputs<T> {
  const [kCache, vCache, qkv, cos, sin, lengths, ...rest] = inputs;
  return {
    ...{ kCache, vCache, qkv, cos, sin, lengths },
    positions: positioned ? rest[0] : undefined,
    blockTable: paged ? rest[positioned ? 1 : 0] : undefined,
  };
}

/**
 * Token t of batch row b takes place lengths[b] + t of the row's cache. Its queries and keys are turned to that position, or
 * to positions[b, t]: y1 = x1·c − x2·s, y2 = x2·c + x1·s for a number and the one half a head further; NaN beyond the tables.
 * What would lie outside the cache is not written.
 *
 * Inputs: kCache and vCache `[B, S, Hk, D]` or pages `[blocks, page, Hk, D]`, consumed, of any float dtype; qkv f32 (or f64)
 * `[B, T, (H + 2·Hk)·D]`, query heads first; cos and sin `[P, D/2]` in its dtype; lengths i32 `[B]`; positions i32 `[B, T]`,
 * or `[T]` for all rows, and blockTable i32 `[B, pages]` where there are such. D is a multiple of 4.
 * Outputs: kCache, vCache, and q `[B, T, H, D]` in the dtype of qkv.
 */
export const rotaryAppendOp: Op<RotaryAppendParams> = {
  name: "rotaryAppend",
  inPlace: [0, 1],
  infer: (inputs, params) => {
    const op = "rotaryAppend",
      { kCache, vCache, qkv, cos, sin, lengths, positions, blockTable } = rotaryAppendInputs(
        inputs,
        params,
      );
    const { heads } = params;
    expectDType(op, "qkv", qkv.dtype, ["f64", "f32"]);
    expectRank(op, "qkv", qkv.shape, 3);
    expectRank(op, "cache.k", kCache.shape, 4);
    for (const [name, x] of [["cache.k", kCache], ["cache.v", vCache]] as const) {
      expectDType(op, name, x.dtype, ["f64", "f32", "f16", "bf16"]);
    }
    if (show(kCache.shape) !== show(vCache.shape) || kCache.dtype !== vCache.dtype) {
      throw new ShapeError(
        op,
        `cache.k ${kCache.dtype} ${show(kCache.shape)} and cache.v ${vCache.dtype} ${show(vCache.shape)} differ`,
      );
    }
    const [batch, count, width] = qkv.shape, [rows, , kvHeads, size] = kCache.shape;
    if (size % 4 !== 0) throw new ShapeError(op, `a head size is a multiple of 4 here, got ${size}`);
    if (width !== (heads + 2 * kvHeads) * size) {
      throw new ShapeError(
        op,
        `qkv ${show(qkv.shape)} is not ${heads} + 2·${kvHeads} heads of ${size} (${width} ≠ ${
          (heads + 2 * kvHeads) * size
        })`,
      );
    }
    for (const [name, x] of [["cos", cos], ["sin", sin]] as const) {
      expectDType(op, name, x.dtype, [qkv.dtype]);
      if (x.shape.length !== 2 || x.shape[1] !== size / 2 || x.shape[0] !== cos.shape[0]) {
        throw new ShapeError(op, `${name} is [positions, D/2 = ${size / 2}] as cos is, got ${show(x.shape)}`);
      }
    }
    const integers = [
      ["lengths", lengths, [batch]],
      ["positions", positions, positions?.shape.length === 1 ? [count] : [batch, count]],
      ["blockTable", blockTable, [batch, blockTable?.shape[1] ?? 0]],
    ] as const;
    for (const [name, x, shape] of integers) {
      if (x === undefined) continue;
      expectDType(op, name, x.dtype, ["i32"]);
      if (show(x.shape) !== show(shape)) throw new ShapeError(op, `${name} ${show(x.shape)} is not ${show(shape)}`);
    }
    if (blockTable === undefined && rows !== batch) {
      throw new ShapeError(op, `the cache ${show(kCache.shape)} has ${rows} rows for ${batch} batch rows`);
    }
    const same = { shape: kCache.shape, dtype: kCache.dtype };
    return [same, same, { shape: [batch, count, heads, size], dtype: qkv.dtype }];
  },
  reference: (inputs, params, kOut, vOut, q) => {
    const given = rotaryAppendInputs(inputs, params), { heads } = params;
    for (const [from, to] of [[given.kCache, kOut], [given.vCache, vOut]]) {
      if (from.data !== to.data) to.data.set(dense(from).data);
    }
    const [qkv, cos, sin, lengths] = [given.qkv, given.cos, given.sin, given.lengths].map((x) => dense(x).data);
    const positions = given.positions && dense(given.positions).data,
      table = given.blockTable && dense(given.blockTable);
    const [batch, count, width] = given.qkv.shape, [, page, kvHeads, size] = kOut.shape, half = size / 2;
    const pages = table?.shape[1] ?? 1, capacity = table ? pages * page : page;
    for (let token = 0; token < batch * count; token++) {
      const b = Math.floor(token / count), place = lengths[b] + token % count;
      const position = positions === undefined ? place : positions[token % positions.length];
      const known = position >= 0 && position < given.cos.shape[0], inside = place >= 0 && place < capacity;
      const block = inside && table ? table.data[b * pages + Math.floor(place / page)] : b;
      for (let h = 0; h < heads + 2 * kvHeads; h++) {
        const from = token * width + h * size, kv = (h - heads) % kvHeads;
        const to = h < heads ? q : h < heads + kvHeads ? kOut : vOut;
        if (to !== q && !inside) continue;
        const at = to === q ? (token * heads + h) * size : ((block * page + place % page) * kvHeads + kv) * size;
        for (let i = 0; i < half; i++) {
          const x1 = qkv[from + i], x2 = qkv[from + half + i];
          const c = to === vOut ? 1 : known ? cos[position * half + i] : NaN;
          const s = to === vOut ? 0 : known ? sin[position * half + i] : NaN;
          to.data[at + i] = to === vOut ? x1 : x1 * c - x2 * s;
          to.data[at + half + i] = to === vOut ? x2 : x2 * c + x1 * s;
        }
      }
    }
  },
};

/** What is known of new tokens and of the cache that they join. */
export interface AppendOptions {
  /** Query heads. */
  readonly heads: number;
  /** `[P, D/2]` */
  readonly cos: Tensor;
  /** `[P, D/2]` */
  readonly sin: Tensor;
  /** Positions that each row's cache holds, i32 `[B]`. */
  readonly lengths: Tensor;
  /** The pages of each row, i32 `[B, pages]`. */
  readonly blockTable?: Tensor;
}

/** Options of {@linkcode rotaryAppend}. */
export interface RotaryAppendOptions extends AppendOptions {
  /** Where the tokens stand in the text, i32 `[T]` or `[B, T]`; where they stand in the cache when not given. */
  readonly positions?: Tensor;
}

/** The inputs that options and tensors make, in the order of {@linkcode RotaryAppendInputs}. */
export function appendInputs(
  qkv: Tensor,
  cache: AttentionCache,
  { cos, sin, lengths, blockTable }: AppendOptions,
  positions: Tensor | undefined,
): Tensor[] {
  const inputs = [cache.k, cache.v, qkv, cos, sin, lengths];
  if (positions !== undefined) inputs.push(positions);
  if (blockTable !== undefined) inputs.push(blockTable);
  return inputs;
}

/**
 * Turns queries and keys and puts keys and values into the cache. Forward only; the cache is consumed.
 *
 * @param qkv f32 `[B, T, (H + 2·Hk)·D]`
 * @param cache dense `[B, S, Hk, D]` or pages `[blocks, page, Hk, D]`
 * @returns q `[B, T, H, D]` and the cache
 * @throws {ShapeError} when shapes do not fit
 * @throws {IndexError} when the host knows that the cache is too short
 */
export function rotaryAppend(
  qkv: Tensor,
  cache: AttentionCache,
  options: RotaryAppendOptions,
): { q: Tensor; cache: AttentionCache } {
  const { heads, lengths, positions, blockTable } = options, inputs = appendInputs(qkv, cache, options, positions);
  const params = { heads, positioned: positions !== undefined, paged: blockTable !== undefined };
  rotaryAppendOp.infer(inputs, params);
  expectRoom("rotaryAppend", cache, lengths, qkv.shape[1], blockTable);
  const [k, v, q] = runAll(rotaryAppendOp, inputs, params);
  return { q, cache: { k, v } };
}
