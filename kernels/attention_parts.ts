/**
 * Which tile is whose: the order of the workgroups, and how many share one tile's walk. A device runs as many workgroups at once as its processors have room for,
 * and a last wave that fills a third of them takes as long as a full one:
 *
 *   B1 H12 S4096, forward tiles of 128 queries: 384 workgroups on an H200, where 264 run at once: 1.45 waves in the time
 *   of two, 25.4 TFLOP/s. The keys of each tile shared by two: 768, 2.9 waves, 30.2; by three: 4.4 waves, 28.0.
 *   Causal, the longest walks first: 26.9 alone, 31.1 in two parts, 32.3 in three.
 *   B1 H8 S2048, backward tiles of 64 keys, 396 at once: 27.1 alone, 23.3 in two parts, 29.8 in three; causal 15.9, 22.5,
 *   28.5.
 *
 * WebGPU does not tell how many processors there are, so parts are reckoned for 132 of them; on another device the
 * result is the same, its time a little off.
 */
import { type AttentionCapabilities, type AttentionTile, threads } from "./attention_common.ts";
import { isSoftware } from "./attention_lanes.ts";

const processors = 132;
/** What a part costs beside its share of the walk: its results are written and read once more. */
const costOfPart = 0.015;
/** Waves after which short walks fill what long ones leave, when the long ones start first. */
const enoughWaves = 1.9;
/** Tiles of a part below which another part is not worth its results. */
const longWalk = 16;
/** Most parts of a tile, and workgroups after which the last wave no longer matters. */
const most = 12, plenty = 2048;

/** Workgroups of a tile that run at once on a processor: as many as registers allow, 64 scores a thread needing most. */
function together(tile: AttentionTile): number {
  return Math.max(1, Math.floor((tile.rows * tile.columns > 32 ? 256 : 384) / threads(tile)));
}

/**
 * Into how many parts a walk is split.
 *
 * @param workgroups of the kernel without parts
 * @param walk tiles that the longest walk passes
 * @param even whether all walks are as long; otherwise, as with causal, the longest start first
 * @param long whether rows are so long that fewer workgroups run together, and the last ones to end weigh more
 */
export function pickParts(
  { subgroupSize }: AttentionCapabilities,
  tile: AttentionTile,
  workgroups: number,
  walk: number,
  even: boolean,
  long = false,
): number {
  if (isSoftware(subgroupSize)) return 1; // a software adapter has few processors
  const room = long ? Math.min(2, together(tile)) : together(tile), waves = workgroups / (processors * room);
  const limit = Math.min(most, Math.max(1, Math.floor(walk)));
  if (!even) {
    const parts = Math.max(1, Math.ceil((long ? 2 : 1) * enoughWaves / waves));
    // Once there are parts, walks of many tiles take one more: the results that it adds are few beside what it evens out.
    return Math.min(limit, parts > 1 && walk >= longWalk * (parts + 1) ? parts + 1 : parts);
  }
  let best = 1, least = Infinity;
  for (let parts = 1; parts <= limit && (parts === 1 || workgroups * parts <= plenty); parts++) {
    const time = Math.ceil(waves * parts) / parts * (1 + costOfPart * parts);
    if (time < least * 0.98) [best, least] = [parts, time];
  }
  return best;
}

/** The order of the workgroups. */
export interface AttentionOrder {
  /** Heads vary fastest and tiles with the most work start first, so that causal's long ones do not end the dispatch. */
  readonly longFirst: boolean;
  /** Workgroups that share a tile's walk, 1 where not given. */
  readonly parts?: number;
}

/** Workgroups for so many tiles of each head. */
export function gridOf(
  { longFirst, parts = 1 }: AttentionOrder,
  tiles: number,
  heads: number,
  batch: number,
): [x: number, y: number, z: number] {
  return longFirst ? [heads, batch * parts, tiles] : [tiles, heads, batch * parts];
}

/** Declares `b`, and `part` of it where the walk is split, from the grid's axis that holds both. */
function locatePart({ parts = 1 }: AttentionOrder, axis: string): string {
  return parts === 1 ? `let b = ${axis};` : `let b = ${axis} % u.batch; let part = ${axis} / u.batch;`;
}

/** Declares what a workgroup that owns `rows` queries from `q0` on is for: `b`, `part`, heads `h` and `g`. Last tiles are the longest. */
export function locateQueries(order: AttentionOrder, rows: number): string {
  const [tile, head, rest] = order.longFirst
    ? ["(u.tiles - 1u - group.z)", "group.x", "group.y"]
    : ["group.x", "group.y", "group.z"];
  return `${locatePart(order, rest)} let h = ${head}; let q0 = ${tile} * ${rows}u;
  let g = h / u.group;`;
}

/** Declares what a workgroup that owns `rows` keys from `k0` on is for: `b`, `part`, key head `g`. First tiles are the longest. */
export function locateOwnKeys(order: AttentionOrder, rows: number): string {
  const [tile, head, rest] = order.longFirst ? ["group.z", "group.x", "group.y"] : ["group.x", "group.y", "group.z"];
  return `${locatePart(order, rest)} let g = ${head}; let k0 = ${tile} * ${rows}u;`;
}

/**
 * Statements that say which part of the walk is the workgroup's: from `walkFrom` to below `walkTo`, of the whole from
 * `from` to below `end`, in steps of `step`.
 */
export function partOf({ parts = 1 }: AttentionOrder, from: string, end: string, step: number): string {
  if (parts === 1) return `let walkFrom = ${from}; let walkTo = ${end};`;
  return [
    `let share = (max(${end}, ${from}) - ${from} + u.parts * ${step}u - 1u) / (u.parts * ${step}u) * ${step}u;`,
    `let walkFrom = ${from} + part * share; let walkTo = min(${end}, walkFrom + share);`,
  ].join("\n");
}
