/**
 * How many workgroups share one tile's walk. A device runs as many workgroups at once as its processors have room for,
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
