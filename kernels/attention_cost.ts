/** Floating-point operations of attention's kernels, for profiles. */
import type { AttentionShape } from "./attention_common.ts";

const clamp = (x: number, max: number) => Math.max(0, Math.min(x, max));

/** Σ over i < n of i + start, each held between 0 and max. */
function heldSum(n: number, start: number, max: number): number {
  const from = clamp(-start, n), to = clamp(max - start, n); // between them nothing is held
  return (to - from) * ((from + to - 1) / 2 + start) + (n - to) * max;
}

/** Pairs of a query and a key that it may see, over all heads; undefined for packed sequences, whose lengths a device knows. */
function visiblePairs(
  { batch, heads, seqlenQ, seqlenK, totalQ }: AttentionShape,
  [left, right]: readonly [left: number, right: number],
): number | undefined {
  if (totalQ !== undefined) return undefined;
  const shift = seqlenK - seqlenQ;
  const to = right < 0 ? seqlenQ * seqlenK : heldSum(seqlenQ, shift + right + 1, seqlenK);
  const from = left < 0 ? 0 : heldSum(seqlenQ, shift - left, seqlenK);
  return batch * heads * (to - from);
}

/** What each kernel of attention multiplies and adds for the pairs that are visible, masks aside. */
export interface AttentionFlops {
  /** q·k and p·v. */
  readonly forward?: number;
  /** q·k, dOut·v, pᵀ·dOut and dSᵀ·q. */
  readonly keys?: number;
  /** q·k, dOut·v and dS·k. */
  readonly queries?: number;
}

/** Counts the operations of one call. */
export function attentionFlops(
  shape: AttentionShape,
  window: readonly [left: number, right: number] = [-1, -1],
): AttentionFlops {
  const pairs = visiblePairs(shape, window), { headDim, valueDim } = shape;
  if (pairs === undefined) return {};
  return {
    forward: 2 * pairs * (headDim + valueDim),
    keys: 4 * pairs * (headDim + valueDim),
    queries: 2 * pairs * (2 * headDim + valueDim),
  };
}
