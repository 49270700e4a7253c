/**
 * Which calls of attention run on subgroup matrices, and in which tiles.
 *
 * k and v must be f16 or bf16, and q as they are, except that a cache's queries come as f32 when they were turned. bf16 takes the
 * ranges of attention_matrix_range.ts, and so does dS in every backward. What remains is on the portable kernels: other
 * storage, a scale that is not between 10⁻⁶ and 1, fewer rows than 16, and in the backward dropout, the gradient of a bias,
 * and head sizes over 128, whose matrices do not fit the registers.
 */
import { type Capabilities, matrixUnits } from "../tensor/backend.ts";
import {
  type AttentionFeatures,
  type AttentionLayout,
  type AttentionShape,
  type AttentionStorage,
  denseOperand,
  operandsOf,
} from "./attention_common.ts";
import { attentionMatrixBackwardMemory, type AttentionMatrixBackwardParams } from "./attention_matrix_backward.ts";
import { attentionMatrixForwardMemory, type AttentionMatrixForwardParams } from "./attention_matrix_forward.ts";
import { matrixOperandOf } from "./attention_matrix_operands.ts";
import type { AttentionRangeParams } from "./attention_matrix_range.ts";
import { isMatrixTile, matrixThreads, type MatrixTile } from "./attention_matrix_tiles.ts";
import { denseStrides } from "./attention_options.ts";

/** What the choice wants to know of a device. */
export type MatrixCapabilities = Pick<
  Capabilities,
  "f16" | "subgroupSize" | "subgroupMatrix" | "maxWorkgroupMemory" | "maxInvocations"
>;

type Storage = Readonly<Record<"q" | "k" | "v", AttentionStorage>>;

/** The adapter's matrices: the deepest of f16 that are summed in f32, and of these the narrowest. */
function unitOf(capabilities: MatrixCapabilities): { m: number; n: number; k: number } | null {
  if (!capabilities.f16 || capabilities.subgroupSize === 0) return null;
  const found = matrixUnits(capabilities).filter(({ n, k }) => n % 8 === 0 && k % 8 === 0);
  return found.sort((a, b) => b.m * b.k - a.m * a.k || a.n - b.n)[0] ?? null;
}

/** A tile in rows instead of matrices. */
interface Spread {
  /** Subgroups. */
  readonly down: number;
  /** Rows of a subgroup. */
  readonly rows: number;
  readonly step: number;
  /** Vec4f between rows of scratch; 1 when not given. */
  readonly pad?: number;
  /** The next step is loaded before this one's products instead of after them. */
  readonly early?: boolean;
}

/** The tile in the adapter's matrices. */
function tileOf(
  { m, n, k }: { m: number; n: number; k: number },
  lanes: number,
  { down, rows, step, pad = 1 }: Spread,
  abreast: 1 | 2,
): MatrixTile {
  return { m, n, k, lanes, down, abreast, high: rows / m, step, pad };
}

/** True when a call's operands and sizes are what the matrix kernels take. */
function takes(
  { headDim, valueDim, seqlenQ, seqlenK }: AttentionShape,
  { q, k, v }: Storage,
  scale: number,
  largest: number,
): boolean {
  return k !== "f32" && v === k && (q === k || q === "f32") && Math.max(headDim, valueDim) <= largest &&
    scale >= 1e-6 && scale <= 1 && Math.min(seqlenQ, seqlenK) >= 16;
}

/**
 * Floating-point operations, masked ones too, below which a forward call that needs ranges is quicker by the portable kernel,
 * one dispatch instead of four: half of them at 30 TFLOP/s instead of 150 take as long as three dispatches on a GPU and on
 * the host. Reckoned for an H200 by its rates and those of Dawn, not timed.
 */
const fewFlops = 2 ** 31;

/**
 * Chooses the matrix kernel of a forward call; null when the call is for the portable one.
 *
 * @param storage of q, k, v and of out
 */
export function pickAttentionMatrixForward(
  capabilities: MatrixCapabilities,
  shape: AttentionShape,
  at: AttentionLayout,
  storage: Storage & { readonly out: AttentionStorage },
  features: AttentionFeatures,
  scale: number,
): AttentionMatrixForwardParams | null {
  const unit = unitOf(capabilities), { headDim, valueDim } = shape, { subgroupSize } = capabilities;
  if (unit === null || !takes(shape, storage, scale, 256)) return null;
  const ranges = storage.k === "bf16", { batch, heads, seqlenQ, seqlenK } = shape;
  const software = subgroupSize <= 8; // there for its tests, which are small
  if (ranges && !software && 2 * batch * heads * seqlenQ * seqlenK * (headDim + valueDim) < fewFlops) return null;
  const common = {
    ...operandsOf(shape, at, storage, matrixOperandOf),
    out: denseOperand(storage.out, valueDim),
    features: { ...features, range: ranges ? "scaled" as const : "none" as const },
    longFirst: features.window,
  };
  for (const spread of forwardTiles(subgroupSize, Math.max(headDim, valueDim))) {
    const params = { ...common, early: spread.early ?? false, tile: tileOf(unit, subgroupSize, spread, 1) };
    if (isMatrixTile(params.tile) && fits(capabilities, params.tile, attentionMatrixForwardMemory(params))) {
      return params;
    }
  }
  return null;
}

function fits({ maxInvocations, maxWorkgroupMemory }: MatrixCapabilities, tile: MatrixTile, bytes: number): boolean {
  return matrixThreads(tile) <= maxInvocations && bytes <= maxWorkgroupMemory;
}

/** Tiles to try, best first. */
function forwardTiles(lanes: number, size: number): Spread[] {
  const last = [{ down: 2, rows: 16, step: 16 }, { down: 2, rows: 8, step: 8 }, { down: 1, rows: 8, step: 8 }];
  if (lanes < 16) return last.slice(1); // a software adapter: large texts take seconds to compile
  if (size > 128) return [{ down: 4, rows: 16, step: 16 }, ...last];
  const wide = size > 80 ? { early: true, pad: 3 } : {};
  return [{ down: 4, rows: 32, step: 16, ...wide }, { down: 4, rows: 16, step: 16 }, ...last];
}

/** Chooses the matrix kernels of a backward call, two of the same parameters; null when the call is for the portable ones. */
export function pickAttentionMatrixBackward(
  capabilities: MatrixCapabilities,
  shape: AttentionShape,
  at: AttentionLayout,
  storage: Storage & { readonly dOut: AttentionStorage; readonly grad: AttentionStorage },
  features: AttentionFeatures,
  scale: number,
): AttentionMatrixBackwardParams | null {
  const unit = unitOf(capabilities), { valueDim, seqlenQ, heads } = shape, { subgroupSize } = capabilities;
  if (
    unit === null || !takes(shape, storage, scale, 128) || storage.q !== storage.k || storage.dOut !== storage.k ||
    features.dropout
  ) return null;
  const common = {
    ...operandsOf(shape, at, storage, matrixOperandOf),
    dOut: matrixOperandOf(storage.dOut, valueDim, denseStrides(seqlenQ, heads, valueDim)),
    grad: storage.grad,
    features: { ...features, sinks: false, range: storage.k === "bf16" ? "scaled" as const : "slopes" as const },
    longFirst: features.window,
  };
  for (const spread of backwardTiles(subgroupSize)) {
    const params = { ...common, tile: tileOf(unit, subgroupSize, spread, 2) };
    if (isMatrixTile(params.tile) && fits(capabilities, params.tile, attentionMatrixBackwardMemory(params))) {
      return params;
    }
  }
  return null;
}

/** Tiles of both kernels to try, best first. */
function backwardTiles(lanes: number): Spread[] {
  const last = [{ down: 1, rows: 16, step: 8 }, { down: 1, rows: 8, step: 16 }];
  if (lanes < 16) return last; // a software adapter: large texts take seconds to compile
  return [{ down: 2, rows: 32, step: 16 }, { down: 1, rows: 32, step: 16 }, ...last];
}

/** The ranges that a call on matrices needs before it; null when it needs none. */
export function attentionRangeOf(
  { tile, headDim, valueDim, q, k, v, features, dOut }:
    | AttentionMatrixForwardParams & { readonly dOut?: undefined }
    | AttentionMatrixBackwardParams,
): AttentionRangeParams | null {
  if (features.range === "none") return null;
  const common = { headDim, valueDim, features, lanes: tile.lanes, dLse: dOut !== undefined };
  const values = dOut === undefined ? { v } : { v, dOut };
  return { ...common, operands: features.range === "slopes" ? values : { q, k, ...values } };
}
