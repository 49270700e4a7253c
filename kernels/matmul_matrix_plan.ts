/** From a product to dispatches on matrix units: which tile, which operands are packed first, with which uniforms. */
import { matrixUnits } from "../tensor/backend.ts";
import type { Kernel } from "./kernel.ts";
import { matmulSum } from "./matmul.ts";
import {
  matmulMatrix,
  matrixMemory,
  type MatrixParts,
  type MatrixSizes,
  type MatrixTile,
  type MatrixUnit,
} from "./matmul_matrix.ts";
import { endingValues } from "./matmul_matrix_ending.ts";
import type { MatrixFold } from "./matmul_matrix_fold.ts";
import { mostOfRows, packMatrix, type PackParts, packSide, sideRows } from "./matmul_matrix_pack.ts";
import {
  addedOf,
  type MatmulCapabilities,
  type MatmulPlan,
  type MatmulProblem,
  type MatmulStep,
  type MatmulView,
} from "./matmul_plan.ts";

/** The dispatch that packs an operand, and what it writes. */
export interface PackStep extends MatmulStep {
  readonly operand: "a" | "b";
  /** The kernel that comes before it, with the same uniforms and workgroups, and writes so many words for it to read. */
  readonly most?: { readonly kernel: Kernel; readonly words: number };
  /** Bytes of the packed operand. */
  readonly bytes: number;
  /** How many exponents come with it; 0 where its numbers stay what they are. */
  readonly exponents: number;
  /** Whether rows go through the norm, whose weight is bound after the operand. */
  readonly normed?: boolean;
}

/** The shape of the units that multiply f16 and sum in f32; the largest where there are several. */
export function matrixUnit(capabilities: Parameters<typeof matrixUnits>[0]): MatrixUnit | undefined {
  return matrixUnits(capabilities)
    .filter(({ m, n, k }) => [m, n, k].every((x) => x % 8 === 0))
    .toSorted((x, y) => y.m * y.n * y.k - x.m * x.n * x.k)[0];
}

/** Sizes of a tile, the TFLOP/s that it reaches, and how many of its workgroups a multiprocessor needs for that. */
export interface RatedTile extends MatrixSizes {
  /** TFLOP/s of a product that fills the device. */
  readonly rate: number;
  /** Workgroups that a multiprocessor needs to reach the rate. */
  readonly wanted: number;
}

/** What was measured of a device. */
export interface MatrixTable {
  /** Multiprocessors. */
  readonly units: number;
  /** The tiles to choose from. */
  readonly tiles: readonly RatedTile[];
  /** Into how many parts k may be split; 32 when not given. */
  readonly maxSplits?: number;
}

const rated = ([bm, bn, bk, wm, wn, rate, wanted]: readonly number[]): RatedTile => ({
  ...{ bm, bn, bk, wm, wn, buffers: 1, rate, wanted },
});

/** Measured on an H200. */
const gpu: MatrixTable = {
  units: 132,
  tiles: [
    [128, 128, 32, 64, 64, 304, 1.44],
    [128, 64, 32, 64, 32, 211, 1.57],
    [64, 128, 64, 32, 32, 195, 1.22],
    [64, 64, 64, 32, 32, 187, 2.49],
    [32, 64, 64, 32, 32, 147, 5.49],
    [16, 64, 64, 16, 32, 99.8, 8],
  ].map(rated),
};

/** For a processor that plays a GPU: small tiles, which compile in less time. */
const processor: MatrixTable = {
  units: 2,
  tiles: [[32, 32, 16, 16, 16, 0.003, 1], [16, 32, 16, 8, 16, 0.002, 1]].map(rated),
};

const tables = new WeakMap<object, MatrixTable>();
let changes = 0;

/** How often a table was changed: what was planned before a change may not be what would be planned after it. */
export function tableChanges(): number {
  return changes;
}

/** Has products of a device choose from a table, or from the built-in one again; returns the table used before. */
export function useMatrixTable(
  capabilities: MatmulCapabilities,
  table: MatrixTable | undefined,
): MatrixTable | undefined {
  const before = tables.get(capabilities);
  changes++;
  if (table === undefined) tables.delete(capabilities);
  else tables.set(capabilities, table);
  return before;
}

/** The table of a device that nobody measured. */
export function builtInTable({ subgroupSize }: Pick<MatmulCapabilities, "subgroupSize">): MatrixTable {
  return subgroupSize <= 8 ? processor : gpu;
}

/** Microseconds that a second dispatch costs, and bytes of partial products moved in one. */
const dispatchCost = 4, partialBytes = 5e6;

const count = (batch: readonly number[]) => batch.reduce((x, y) => x * y, 1);

/** Whether an operand lies in whole vectors of eight. */
function whole(v: MatmulView, adjacent: number): boolean {
  const places = [v.offset, v.stride, ...v.batchStrides, ...v.below?.flatMap((x) => [x.offset, x.stride]) ?? []];
  return adjacent % 8 === 0 && places.every((x) => x % 8 === 0);
}

/**
 * What happens to an operand first: nothing, where it is f16 in whole vectors, and in one buffer or gated; packing in its own
 * layout, where rows lie side by side in whole vectors; packing along k.
 */
type Packing = "none" | "side" | "along";

function packings({ m, n, k, a, b, gated }: MatmulProblem): { a: Packing; b: Packing } {
  const of = (v: MatmulView, alongK: boolean, rows: number): Packing => {
    if (!whole(v, alongK ? k : rows) || v.below !== undefined && !gated) return "along";
    return v.dtype === "f16" ? "none" : alongK ? "along" : "side";
  };
  return { a: of(a, !a.transposed, m), b: of(b, b.transposed, n) };
}

/**
 * The tile and the split of k for which a model of the time is shortest; undefined where the device has no units for the
 * types, or packing would cost more than they save.
 * @param most into how many parts k may be split
 */
export function pickMatrix(
  capabilities: MatmulCapabilities,
  problem: MatmulProblem,
  most = problem.gated ? 1 : 32,
): MatrixTile | undefined {
  const unit = matrixUnit(capabilities), lanes = capabilities.subgroupSize;
  const { m, n, k, a, b } = problem;
  if (unit === undefined || !capabilities.f16 || lanes < 4 || m < 2 || n < 2 || k < 8) return undefined;
  // Two f32 operands promise f32's digits. One beside 16 bits does not: its rounding to f16 is as fine as that of a model
  // which holds both in the 16 bits.
  if (a.dtype === "f32" && b.dtype === "f32") return undefined;
  const software = lanes <= 8;
  const pack = packings(problem);
  if (!software && (pack.a !== "none" || pack.b !== "none") && m * n * k * count(problem.batch) < 2 ** 26) {
    return undefined;
  }
  const { units, tiles, maxSplits = most } = tables.get(capabilities) ?? builtInTable(capabilities);
  const batches = count(problem.batch);
  const layout = {
    transposedA: pack.a !== "along" && a.transposed,
    transposedB: pack.b === "along" || b.transposed,
    gate: problem.gated ? gateOf(pack) : undefined,
  };
  let best: MatrixTile | undefined, shortest = Infinity;
  for (const { rate, wanted, ...sizes } of tiles) {
    const tile: MatrixTile = { kind: "matrix", ...sizes, splits: 1, unit, lanes };
    if (!possible(capabilities, tile, layout)) continue;
    const { bm, bn, bk } = tile;
    const workgroups = Math.ceil(m / bm) * Math.ceil(n / bn) * batches;
    for (
      let splits = 1;
      splits === 1 || (!software && k / splits >= 256 && splits <= Math.min(maxSplits, most));
      splits *= 2
    ) {
      const one = 2 * bm * bn * bk * Math.ceil(k / splits / bk) / (rate * 1e6 / units);
      const time = one * Math.max(Math.ceil(workgroups * splits / units), wanted) +
        (splits === 1 ? 0 : dispatchCost + 8 * splits * batches * m * n / partialBytes);
      if (time < shortest) [best, shortest] = [{ ...tile, splits }, time];
    }
  }
  return best;
}

const gateOf = ({ b }: { readonly b: Packing }): MatrixParts["gate"] => b === "none" ? "apart" : "joined";

/** Whether a device has room for a tile, and the tile's threads share its slices and strips evenly. */
export function possible(
  { maxInvocations, maxWorkgroupMemory }: MatmulCapabilities,
  tile: MatrixTile,
  layout: Pick<MatrixParts, "transposedA" | "transposedB" | "gate">,
): boolean {
  const { bm, bn, bk, wm, wn, unit, lanes } = tile;
  const threads = bm / wm * (bn / wn) * lanes;
  return wm % unit.m === 0 && wn % unit.n === 0 && bk % unit.k === 0 && threads <= maxInvocations &&
    bm * bk % (8 * threads) === 0 && bn * bk % (8 * threads) === 0 &&
    (layout.gate === undefined || wn % 16 === 0 && bn * bk % (16 * threads) === 0) &&
    matrixMemory(tile, { ...layout, ...plain }) <= maxWorkgroupMemory;
}

const plain = {
  out: "f32",
  outVec: 1,
  exactK: true,
  inner: 1,
  scaledA: false,
  scaledB: false,
  deviceRounds: false,
} as const;

/** Workgroups in a line, folded where a dispatch dimension ends. */
function line(workgroups: number): [number, number, number] {
  return workgroups <= 65535 ? [workgroups, 1, 1] : [65535, Math.ceil(workgroups / 65535), 1];
}

const three = (v: readonly number[], fill: number) => [...Array<number>(3 - v.length).fill(fill), ...v];

/** Parts of k in which rows side by side are packed: enough workgroups for a large device, few enough to be read again. */
const enoughGroups = 1024, mostChunks = 32, leastChunk = 32;

/** Packs an operand over the batch axes that it does not repeat. */
function planPack(
  operand: "a" | "b",
  { batch, ...p }: MatmulProblem,
  packing: Packing,
  software: boolean,
): { step: PackStep; view: MatmulView } {
  const v = p[operand], rows = operand === "a" ? p.m : p.n, { k } = p, { dtype } = v;
  const alongK = v.transposed === (operand === "b");
  const words = Math.ceil(k / 8), kept = batch.map((_, i) => v.batchStrides[i] !== 0);
  const sizes = batch.map((size, i) => kept[i] ? size : 1);
  const batches = count(sizes), elements = packing === "side" ? rows * k : rows * words * 8;
  const [s0, s1, s2] = three(v.batchStrides, 0), [, batch1, batch2] = three(sizes, 1);
  let step = elements;
  const batchStrides = sizes.toReversed().map((size, i) => kept[sizes.length - 1 - i] ? (step *= size) / size : 0)
    .reverse();
  const common = { rows, k, offset: v.offset, stride: v.stride, batch1, batch2, s0, s1, s2 };
  const made = { operand, bytes: 2 * batches * elements, exponents: dtype === "f16" ? 0 : batches * rows };
  const view: MatmulView = { dtype: "f16", offset: 0, transposed: operand === "b", stride: words * 8, batchStrides };
  if (packing === "side") {
    const across = Math.ceil(rows / sideRows), wanted = Math.ceil(enoughGroups / across / batches);
    const chunk = Math.max(leastChunk, Math.ceil(k / Math.min(wanted, mostChunks))), chunks = Math.ceil(k / chunk);
    const workgroups = across * chunks * batches;
    return {
      step: {
        ...made,
        kernel: packSide(dtype),
        most: { kernel: mostOfRows(dtype), words: batches * chunks * rows },
        workgroups: line(workgroups),
        uniforms: { ...common, across, chunks, chunk, workgroups },
      },
      view: { ...view, transposed: v.transposed, stride: rows },
    };
  }
  const lanes = software ? 4 : alongK ? 2 ** Math.min(8, Math.max(3, Math.floor(Math.log2(words)) - 1)) : 16;
  const at = software ? 8 : alongK ? 256 / lanes : 32;
  const { below = [] } = v, operands = 1 + below.length, vec = alongK && whole(v, k) ? 8 : 1;
  const norm = vec === 8 && dtype === "f32" ? v.norm : undefined;
  const parts: PackParts = { dtype, alongK, vec, lanes, rows: at, operands, norm: norm?.dtype };
  let first = rows - below.reduce((sum, more) => sum + more.rows, 0);
  const further = below.flatMap((more, i) => {
    const fields = { first, offset: more.offset, stride: more.stride };
    first += more.rows;
    return Object.entries(fields).map(([name, value]) => [`${name}${i + 1}`, value]);
  });
  const groups = Math.ceil(rows / at), workgroups = groups * batches;
  return {
    step: {
      ...made,
      kernel: packMatrix(parts),
      workgroups: line(workgroups),
      uniforms: {
        ...{ ...common, words, groups, workgroups, ...Object.fromEntries(further) },
        ...norm ? { norm: norm.offset / (norm.dtype === "f32" ? 4 : 8), eps: norm.eps, inverse: 1 / k } : {},
      },
      normed: norm !== undefined,
    },
    view,
  };
}

/**
 * The dispatches of a product by a tile; `problem` has its batch merged to at most three axes.
 * @param fold folds C where a tile does not split k; its uniforms are the caller's
 */
export function planMatrix(
  capabilities: MatmulCapabilities,
  problem: MatmulProblem,
  tile: MatrixTile,
  fold?: MatrixFold,
): MatmulPlan & { readonly parts: MatrixParts } {
  const { m, k, batch, out, offsetC = 0, offsetR = 0, gated = false } = problem, adds = addedOf(problem);
  const n = gated ? problem.n / 2 : problem.n;
  const software = capabilities.subgroupSize <= 8;
  const packing = packings(problem), packs: PackStep[] = [];
  const operand = (x: "a" | "b"): MatmulView => {
    if (packing[x] === "none") return problem[x];
    const { step, view } = planPack(x, problem, packing[x], software);
    packs.push(step);
    return view;
  };
  const a = operand("a"), b = operand("b");
  const { bm, bn, bk } = tile;
  const chunk = Math.max(1, Math.ceil(k / tile.splits / bk)) * bk, splits = Math.max(1, Math.ceil(k / chunk));
  const exactK = k % bk === 0, steps = chunk / bk;
  const parts: MatrixParts = {
    ...{ transposedA: a.transposed, transposedB: b.transposed, exactK },
    // Steps of a loop whose length the compiler knows; it must come out even for every split.
    inner: exactK && k % chunk === 0 ? Math.min(64, steps & -steps) : 1,
    out: splits > 1 ? "f32" : out,
    outVec: n % 8 === 0 ? 8 : n % 4 === 0 ? 4 : n % 2 === 0 ? 2 : 1,
    ...splits === 1 ? { adds } : {},
    scaledA: problem.a.dtype !== "f16",
    scaledB: problem.b.dtype !== "f16",
    deviceRounds: splits === 1 && out === "f16" && fold === undefined && (capabilities.roundsF16 ?? false),
    ...gated ? { gate: gateOf(packing) } : {},
    ...fold ? { fold } : {},
  };
  const tilesM = Math.ceil(m / bm), tilesN = Math.ceil(problem.n / bn), batches = count(batch);
  const workgroups = m * n === 0 ? 0 : tilesM * tilesN * splits * batches;
  const partial = Math.ceil(batches * m * n / 4) * 4;
  const [a0, a1, a2] = three(a.batchStrides, 0), [b0, b1, b2] = three(b.batchStrides, 0);
  const [, batch1, batch2] = three(batch, 1);
  const uniforms = {
    ...{
      m,
      n,
      k,
      offset_a: a.offset,
      offset_b: b.offset,
      stride_a: a.stride,
      stride_b: b.stride,
    },
    ...{ offset_c: splits > 1 ? 0 : offsetC, offset_r: offsetR },
    offset_up: gated ? packing.b === "none" ? b.below![0].offset : n * b.stride : 0,
    ...{ batch1, batch2, a0, a1, a2, b0, b1, b2, tilesM, tilesN, splits, chunk, partial, workgroups },
  };
  const ends = splits === 1 && offsetC === 0 && !gated && adds === undefined && fold === undefined;
  const end: MatmulPlan["end"] = (ending, offsets) => ({
    // Where f16 becomes f32 again at once, as steps have it, drivers leave out both ways if the device rounds by itself.
    kernel: matmulMatrix(tile, { ...parts, deviceRounds: false, ending }),
    uniforms: { ...uniforms, ...endingValues(offsets) },
  });
  return {
    parts,
    choice: tile,
    splits,
    packs,
    kernel: matmulMatrix(tile, parts),
    workgroups: line(workgroups),
    uniforms,
    end: ends ? end : undefined,
    scratchBytes: splits > 1 ? partial * splits * 4 : 0,
    sum: splits > 1
      ? {
        kernel: matmulSum(out, adds),
        workgroups: line(Math.ceil(partial / 1024)),
        uniforms: { count: partial / 4, splits, offset: offsetC / 4, offset_r: offsetR / 4 },
      }
      : undefined,
  };
}
