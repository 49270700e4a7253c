/**
 * What stands before attention over a cache: new keys and values go to their places, rotated on the way; queries are
 * rotated into f32. One thread two numbers of a row, each read and written once.
 */
import type { AttentionPlan, AttentionStorage, AttentionStrides } from "./attention_common.ts";
import { type Kernel, kernel } from "./kernel.ts";
import { mathFunctions } from "./math.ts";
import { load, pack2, roundingFunctions, storageType } from "./storage.ts";

/** Rotary embedding: tables `cos` and `sin` [positions, width/2], y1 = x1·c − x2·s, y2 = x2·c + x1·s. */
export interface RotaryTables {
  readonly storage: AttentionStorage;
  /** How many numbers of a row turn. */
  readonly width: number;
  /** Neighbours turn with each other instead of halves. */
  readonly interleaved: boolean;
}

/** Everything that the text of the kernel depends on. */
export interface CacheRowsParams {
  readonly from: AttentionStorage;
  readonly to: AttentionStorage;
  /** Numbers of a row. */
  readonly size: number;
  readonly rotary: RotaryTables | null;
  /** Where row t of batch row b goes: to its position in the cache, by index or table, or to [b, t]. */
  readonly place: "cache" | "index" | "pages" | "dense";
}

/**
 * The kernel. Reads x [B, T, H, size], lengths i32 [B], cos and sin, and index [B] or pages [B, pages]; writes y.
 * Positions outside the cache are left out; a rotation beyond the tables is NaN.
 */
export function cacheRows(params: CacheRowsParams): Kernel {
  const { from, to, size, rotary, place } = params;
  // Rows of an odd size share words: their halves are put in by atomics.
  const shared = to !== "f32" && size % 2 === 1;
  const name = `cache_rows_${place}_d${size}_${from}_${to}` +
    (rotary === null ? "" : `_rotary${rotary.width}_${rotary.storage}${rotary.interleaved ? "_interleaved" : ""}`);
  return kernel(name, {
    reads: {
      x: storageType(from),
      lengths: "i32",
      ...(rotary === null ? {} : { cos: storageType(rotary.storage), sin: storageType(rotary.storage) }),
      ...(place === "index" ? { index: "i32" } : {}),
      ...(place === "pages" ? { pages: "i32" } : {}),
    },
    writes: { y: shared ? "atomic<u32>" : storageType(to) },
    uniforms: {
      rows: "u32",
      groups: "u32",
      count: "u32",
      heads: "u32",
      capacity: "u32",
      page: "u32",
      pagesRow: "u32",
      advance: "u32",
      positions: "u32",
      offset: "u32",
      batchStride: "u32",
      seqStride: "u32",
      headStride: "u32",
    },
  }, () => body(params, shared));
}

function body({ from, to, size, rotary, place }: CacheRowsParams, shared: boolean): string {
  const pairs = Math.ceil(size / 2);
  const value = rotary === null
    ? `fn value(row: u32, d: u32, position: u32) -> f32 { return ${load(from, "x", "row + d")}; }`
    : turned(from, rotary);
  const row = {
    cache: "b * u.capacity + position",
    index: "u32(index[b]) * u.capacity + position",
    pages: "u32(pages[b * u.pagesRow + position / u.page]) * u.page + position % u.page",
    dense: "b * u.count + t",
  }[place];
  const put = (d: string, v: string): string =>
    shared
      ? `{ let at = start + ${d}; let shift = (at & 1u) << 4u;
      atomicAnd(&y[at >> 1u], ~(0xffffu << shift)); atomicOr(&y[at >> 1u], (${
        pack2(to, v, "0.0")
      } & 0xffffu) << shift); }`
      : `y[start + ${d}] = ${v};`;
  const both = to !== "f32" && !shared
    ? `y[(start + d) >> 1u] = ${pack2(to, "value(from_row, d, position)", "value(from_row, d + 1u, position)")};`
    : `${put("d", "value(from_row, d, position)")}
  ${size % 2 === 0 ? "" : `if (d + 1u < ${size}u)`} { ${put("d + 1u", "value(from_row, d + 1u, position)")} }`;
  return `${mathFunctions(value)}
${roundingFunctions(to)}
${value}
@compute @workgroup_size(64)
fn main(@builtin(workgroup_id) group: vec3u, @builtin(local_invocation_index) li: u32) {
  let thread = (group.y * u.groups + group.x) * 64u + li;
  if (thread >= u.rows * ${pairs}u) { return; }
  let d = thread % ${pairs}u * 2u; let h = (thread / ${pairs}u) % u.heads;
  let t = (thread / ${pairs}u / u.heads) % u.count; let b = thread / ${pairs}u / u.heads / u.count;
  let place = lengths[b] + i32(t * u.advance);
  ${place === "dense" ? "" : "if (place < 0 || place >= i32(u.capacity)) { return; }"}
  let position = u32(place);
  let from_row = u.offset + b * u.batchStride + t * u.seqStride + h * u.headStride;
  let start = ((${row}) * u.heads + h) * ${size}u;
  ${both}
}`;
}

/** A number of a row after its rotation. */
function turned(from: AttentionStorage, { storage, width, interleaved }: RotaryTables): string {
  const half = width / 2;
  const [pair, first, a, b] = interleaved
    ? ["d >> 1u", "(d & 1u) == 0u", "d & ~1u", "d | 1u"]
    : [`d % ${half}u`, `d < ${half}u`, "pair", `pair + ${half}u`];
  return `fn value(row: u32, d: u32, position: u32) -> f32 {
  if (d >= ${width}u) { return ${load(from, "x", "row + d")}; }
  if (position >= u.positions) { return ft_nan(); }
  let pair = ${pair}; let at = position * ${half}u + pair;
  let a = ${load(from, "x", `row + (${a})`)}; let b = ${load(from, "x", `row + (${b})`)};
  let c = ${load(storage, "cos", "at")}; let s = ${load(storage, "sin", "at")};
  return select(b * c + a * s, a * c - b * s, ${first});
}`;
}

/** Sizes of one call of the kernel. */
export interface CacheRowsShape {
  readonly batch: number;
  /** Rows of a batch row: T. */
  readonly count: number;
  readonly heads: number;
  /** Positions of a batch row's cache. */
  readonly capacity: number;
  /** Positions of a page, and pages of a batch row's table. */
  readonly page: number;
  readonly pagesRow: number;
  /** Whether row t is at position lengths + t, or all are at lengths. */
  readonly advance: boolean;
  /** Rows of the rotary tables. */
  readonly positions: number;
}

/** Workgroups and uniforms of a call. */
export function planCacheRows({ size }: CacheRowsParams, shape: CacheRowsShape, at: AttentionStrides): AttentionPlan {
  const { batch, count, heads, advance, ...rest } = shape, rows = batch * count * heads;
  const all = Math.ceil(rows * Math.ceil(size / 2) / 64), groups = Math.min(65535, all);
  return {
    workgroups: [groups, groups === 0 ? 0 : Math.ceil(all / groups), 1],
    uniforms: {
      rows,
      groups,
      count,
      heads,
      advance: advance ? 1 : 0,
      ...rest,
      offset: at.offset,
      batchStride: at.batch,
      seqStride: at.seq,
      headStride: at.head,
    },
  };
}
