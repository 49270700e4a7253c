/**
 * From a product to the dispatches that compute it: which kernel with which tile (`pickMatmul`), with which uniforms
 * (`planMatmul`). The kernels themselves, and what was measured of them, are in `matmul.ts`.
 */
import type { Capabilities } from "../tensor/backend.ts";
import type { Kernel } from "./kernel.ts";
import {
  type Added,
  matmulColumns,
  type MatmulDType,
  type MatmulParts,
  matmulRows,
  type MatmulSide,
  type MatmulStream,
  matmulSum,
  type MatmulTile,
  matmulTile,
  tileMemory,
} from "./matmul.ts";
import type { Endable } from "./matmul_matrix_ending.ts";
import type { MatrixTile } from "./matmul_matrix.ts";
import { type PackStep, pickMatrix, planMatrix } from "./matmul_matrix_plan.ts";

/** Where an operand lies: matrices in one buffer, counted in elements. */
export interface MatmulView {
  readonly dtype: MatmulDType;
  /** First element. */
  readonly offset: number;
  /** false: columns are adjacent and `stride` leads from row to row; true: rows are, and `stride` leads from column to column. */
  readonly transposed: boolean;
  readonly stride: number;
  /** A stride for each batch dimension; 0 repeats the matrix. */
  readonly batchStrides: readonly number[];
  /**
   * Rows of a transposed b that lie in further buffers, and follow its own: how many, and where. Matrix units alone take
   * them, which pack b.
   */
  readonly below?: readonly { readonly rows: number; readonly offset: number; readonly stride: number }[];
  /**
   * The weight of the RMSNorm that rows of a go through while they are packed, at a multiple of 8. A plan that does not do
   * so, as no pack of it says, leaves it out.
   */
  readonly norm?: { readonly dtype: MatmulDType; readonly offset: number; readonly eps: number };
}

/** C[...batch, m, n] = A[...batch, m, k] · B[...batch, k, n], C dense in a buffer of its own. */
export interface MatmulProblem {
  readonly m: number;
  readonly n: number;
  readonly k: number;
  /** At most three dimensions remain when neighbours that step as one are merged. */
  readonly batch: readonly number[];
  readonly a: MatmulView;
  readonly b: MatmulView;
  /** Element type of C; 16 bits need an even n. */
  readonly out: MatmulDType;
  /** Where C starts in its buffer, in elements; a multiple of 4. */
  readonly offsetC?: number;
  /** Adds to what C holds. */
  readonly accumulate?: boolean;
  /** Where what is added to C begins in a buffer of its own, dense as C and of its type; in elements, a multiple of 4. */
  readonly offsetR?: number;
  /**
   * C has half of the columns: silu of the first half of the product's times the other half. Matrix units alone do that, for
   * a transposed b of which the second half of the rows lies `below`.
   */
  readonly gated?: boolean;
}

/** What a product adds to the sum of terms. */
export function addedOf({ accumulate, offsetR }: MatmulProblem): Added | undefined {
  return offsetR !== undefined ? "r" : accumulate ? "c" : undefined;
}

/** What the choice must know of a device. */
export interface MatmulCapabilities {
  /** Bytes of workgroup memory. */
  readonly maxWorkgroupMemory: number;
  readonly maxInvocations: number;
  /** Lanes of a subgroup; at most 8 tells a processor that plays a GPU. */
  readonly subgroupSize: number;
  readonly f16?: boolean;
  readonly roundsF16?: boolean;
  /** The shapes and types of matrix units; products of 16-bit numbers use those that sum in f32. */
  readonly subgroupMatrix?: Capabilities["subgroupMatrix"];
}

/** Which kernel, with which parameters. */
export type MatmulChoice = MatmulTile | MatmulStream | MatrixTile;

/** A kernel with its workgroups and uniforms. */
export interface MatmulStep {
  readonly kernel: Kernel;
  readonly workgroups: readonly [number, number, number];
  readonly uniforms: Readonly<Record<string, number>>;
}

/**
 * The first step binds a, b and what it writes: C, or `scratchBytes` of partial products, which `sum` adds into C. What is
 * added to C is bound before C. `packs` come before it, and replace operands; their exponents are bound after b.
 */
export interface MatmulPlan extends MatmulStep {
  readonly choice: MatmulChoice;
  readonly packs: readonly PackStep[];
  readonly splits: number;
  readonly scratchBytes: number;
  readonly sum: MatmulStep | undefined;
  /** The first step with more in its store, where it writes all of C by itself. */
  readonly end?: Endable["end"];
}

/** Sizes of a tile, the TFLOP/s that it reaches, and how many of its workgroups a multiprocessor needs for that. */
type Rated = Omit<MatmulTile, "kind" | "splits"> & { readonly rate: number; readonly wanted: number };

/** Measured on an H200; other GPUs rank them alike. */
const gpu: { readonly units: number; readonly tiles: readonly Rated[] } = {
  units: 132,
  tiles: [
    { bm: 128, bn: 128, bk: 16, tm: 8, tn: 8, rate: 43.4, wanted: 1.11 },
    { bm: 64, bn: 128, bk: 16, tm: 8, tn: 8, rate: 43, wanted: 1.6 },
    { bm: 128, bn: 64, bk: 16, tm: 8, tn: 8, rate: 41.5, wanted: 1.6 },
    { bm: 64, bn: 64, bk: 32, tm: 4, tn: 8, rate: 35.5, wanted: 1.6 },
    { bm: 32, bn: 64, bk: 32, tm: 4, tn: 4, rate: 27, wanted: 1.6 },
    { bm: 64, bn: 32, bk: 32, tm: 4, tn: 4, rate: 27, wanted: 1.6 },
    { bm: 32, bn: 32, bk: 32, tm: 4, tn: 4, rate: 29.5, wanted: 3.6 },
  ],
};

/** On a processor an unrolled step costs seconds to compile and gains nothing; measured on lavapipe, two cores. */
const processor: typeof gpu = {
  units: 2,
  tiles: [
    { bm: 128, bn: 128, bk: 8, tm: 8, tn: 8, rate: 0.0054, wanted: 1 },
    { bm: 128, bn: 64, bk: 8, tm: 8, tn: 8, rate: 0.0048, wanted: 1 },
    { bm: 64, bn: 64, bk: 8, tm: 4, tn: 8, rate: 0.0031, wanted: 1 },
    { bm: 32, bn: 32, bk: 8, tm: 4, tn: 4, rate: 0.0025, wanted: 1 },
  ],
};

/** Microseconds that a second dispatch costs, and bytes of partial products moved in one. */
const dispatchCost = 4, partialBytes = 5e6;

const count = (batch: readonly number[]) => batch.reduce((x, y) => x * y, 1);
const powerOfTwo = (x: number) => 2 ** Math.max(0, Math.ceil(Math.log2(x)));

/**
 * The kernel for a problem. At most eight rows, or one column, stream the matrix. Otherwise the tile and the split of k
 * for which a model of the time is shortest: the multiprocessor with most workgroups decides, too few of them leave it
 * waiting, and a split pays for its second dispatch.
 */
export function pickMatmul(capabilities: MatmulCapabilities, problem: MatmulProblem): MatmulChoice {
  const { m, n, k, a, b } = problem;
  const { maxWorkgroupMemory, maxInvocations, subgroupSize } = capabilities;
  const software = subgroupSize > 1 && subgroupSize <= 8;
  const { units, tiles } = software ? processor : gpu;
  const threads = 2 ** Math.floor(Math.log2(maxInvocations));
  const batches = count(problem.batch);
  const column = n === 1 && m !== 1;
  if (m <= 8 || column) {
    const vectors = powerOfTwo(column ? 1 : m);
    const results = (column ? m : n) * batches;
    const matrix = column ? a : b;
    const width = matrix.dtype === "f32" ? 4 : 8;
    // Lanes that would run through many steps share them with further workgroups where there is room for those.
    const split = (workgroups: number, step: number) =>
      software
        ? 1
        : Math.max(1, Math.min(Math.round((vectors > 2 ? 1 : 2) * units / workgroups), Math.floor(k / (8 * step))));
    if (matrix.transposed !== column) {
      const [rows, unroll] = software ? [4, 1] : vectors === 1 ? [1, 4] : vectors * width === 64 ? [4, 1] : [2, 2];
      const lanes = software ? 4 : Math.min(32, Math.max(4, powerOfTwo(k / width / unroll)));
      const groups = Math.min(
        (software ? 64 : Math.min(256, threads)) / lanes,
        Math.max(4, powerOfTwo(results / rows / units / 2)),
      );
      const splits = split(Math.ceil(results / groups / rows), lanes * width * unroll);
      return { kind: "rows", m: vectors, lanes, groups, rows, unroll, splits };
    }
    const groups = Math.min(software ? 8 : 64, threads / 8, powerOfTwo(k / 4));
    const splits = split(Math.ceil(results / 8 / width), groups * 4);
    return { kind: "columns", m: vectors, lanes: 8, groups, rows: 1, unroll: 4, splits };
  }
  const matrix = pickMatrix(capabilities, problem);
  if (matrix !== undefined) return matrix;
  let best: MatmulTile | undefined, shortest = Infinity;
  for (const { rate, wanted, ...tile } of tiles) {
    const { bm, bn, bk, tm, tn } = tile;
    if (tileMemory(tile) > maxWorkgroupMemory || bm * bn / tm / tn > maxInvocations) continue;
    const workgroups = Math.ceil(m / bm) * Math.ceil(n / bn) * batches;
    for (let splits = 1; splits === 1 || (!software && k / splits >= 128 && splits <= 64); splits *= 2) {
      const one = 2 * bm * bn * bk * Math.ceil(k / splits / bk) / (rate * 1e6 / units);
      const time = one * Math.max(Math.ceil(workgroups * splits / units), wanted) +
        (splits === 1 ? 0 : dispatchCost + 8 * splits * batches * m * n / partialBytes);
      if (time < shortest) [best, shortest] = [{ kind: "tile", ...tile, splits }, time];
    }
  }
  if (best === undefined) {
    throw new RangeError(
      `[matmul] no tile fits: ${maxWorkgroupMemory} bytes of workgroup memory, ${maxInvocations} invocations`,
    );
  }
  return best;
}

/**
 * Batch dimensions of size 1 dropped, neighbours that step as one merged, a batch that only continues A's rows made rows,
 * vectors said to be adjacent along k, and strides that nothing follows set to 0, so that they align.
 */
function collapse(problem: MatmulProblem): MatmulProblem {
  const { n, k, a, b } = problem;
  let { m } = problem;
  let rowStride = a.stride;
  const dims: { size: number; a: number; b: number }[] = [];
  problem.batch.forEach((size, i) => {
    if (size === 1) return;
    const step = { size, a: a.batchStrides[i], b: b.batchStrides[i] };
    const last = dims.at(-1);
    if (last?.a === step.a * size && last.b === step.b * size) dims.pop(), step.size *= last.size;
    dims.push(step);
  });
  const last = dims.at(-1);
  if (last?.b === 0 && !a.transposed && (m === 1 || last.a === m * a.stride)) {
    if (m === 1) rowStride = last.a;
    m *= last.size;
    dims.pop();
  }
  if (dims.length > 3) throw new RangeError(`[matmul] ${dims.length} batch dimensions, at most 3 that do not merge`);
  const settle = (v: MatmulView, stride: number, rows: number, cols: number, along: boolean, steps: number[]) =>
    (along ? rows : cols) === 1 && v.transposed === along && stride === 1
      ? { ...v, transposed: !along, stride: 0, batchStrides: steps }
      : { ...v, stride: (v.transposed ? cols : rows) === 1 ? 0 : stride, batchStrides: steps };
  return {
    ...problem,
    m,
    batch: dims.map((d) => d.size),
    a: settle(a, rowStride, m, k, true, dims.map((d) => d.a)),
    b: settle(b, b.stride, k, n, false, dims.map((d) => d.b)),
  };
}

/** Workgroups in a line, folded where a dispatch dimension ends. */
function line(workgroups: number): [number, number, number] {
  return workgroups <= 65535 ? [workgroups, 1, 1] : [65535, Math.ceil(workgroups / 65535), 1];
}

/**
 * The dispatches of a product; none are needed where C is empty.
 *
 * @param pick how a kernel is chosen; tests and benchmarks force their own
 * @throws {RangeError} when more than three batch dimensions do not merge, or nothing fits the device
 */
export function planMatmul(
  capabilities: MatmulCapabilities,
  problem: MatmulProblem,
  pick: (capabilities: MatmulCapabilities, problem: MatmulProblem) => MatmulChoice = pickMatmul,
): MatmulPlan {
  const p = collapse(problem);
  const { offsetC = 0, offsetR = 0 } = problem, adds = addedOf(problem);
  const choice = pick(capabilities, p);
  if (choice.kind === "matrix") return planMatrix(capabilities, p, choice);
  const step = choice.kind === "tile" ? choice.bk : 8;
  const chunk = Math.max(1, Math.ceil(p.k / choice.splits / step)) * step;
  const splits = Math.max(1, Math.ceil(p.k / chunk));
  // A column of results is a row of results with the operands in each other's place.
  const side: MatmulSide = choice.kind !== "tile" && p.n === 1 && p.m !== 1 ? "b" : "a";
  const [m, n] = side === "b" ? [p.n, p.m] : [p.m, p.n];
  const matrix = side === "a" ? p.b : p.a;
  const aligned = (v: MatmulView, to: number) => [v.offset, v.stride, ...v.batchStrides].every((x) => x % to === 0);
  const eight = (v: MatmulView) => v.dtype !== "f32" && aligned(v, 8);
  const vec = (v: MatmulView): 1 | 4 | 8 => {
    if (choice.kind !== "tile") {
      // Vectors come one element at a time, unless they follow the matrix along k.
      if (v !== matrix && (choice.kind === "columns" || v.transposed !== (side === "b"))) return 1;
      if (eight(v) && eight(matrix)) return 8;
    }
    return aligned(v, 4) ? 4 : 1;
  };
  const parts: MatmulParts = {
    a: { dtype: p.a.dtype, transposed: p.a.transposed, vec: vec(p.a) },
    b: { dtype: p.b.dtype, transposed: p.b.transposed, vec: vec(p.b) },
    out: splits > 1 ? "f32" : p.out,
    outVec: n % 4 === 0 ? 4 : 1,
    exactK: choice.kind === "tile" && p.k % choice.bk === 0,
    ...splits === 1 ? { adds } : {},
  };
  const [kernel, tm, tn] = choice.kind === "tile"
    ? [matmulTile(choice, parts), choice.bm, choice.bn]
    : choice.kind === "rows"
    ? [matmulRows(choice, parts, side), m, choice.groups * choice.rows]
    : [matmulColumns(choice, parts, side), m, choice.lanes * (eight(matrix) ? 8 : 4)];
  const tilesM = Math.ceil(m / tm), tilesN = Math.ceil(n / tn);
  const batches = count(p.batch);
  const workgroups = m === 0 ? 0 : tilesM * tilesN * splits * batches;
  const partial = Math.ceil(batches * m * n / 4) * 4;
  const three = (v: readonly number[], fill: number) => [...Array<number>(3 - v.length).fill(fill), ...v];
  const [a0, a1, a2] = three(p.a.batchStrides, 0), [b0, b1, b2] = three(p.b.batchStrides, 0);
  const [, batch1, batch2] = three(p.batch, 1);
  return {
    choice,
    packs: [],
    splits,
    kernel,
    workgroups: line(workgroups),
    uniforms: {
      ...{ m, n, k: p.k, offset_a: p.a.offset, offset_b: p.b.offset, stride_a: p.a.stride, stride_b: p.b.stride },
      ...{ offset_c: splits > 1 ? 0 : offsetC, offset_r: offsetR },
      ...{ batch1, batch2, a0, a1, a2, b0, b1, b2, tilesM, tilesN, splits, chunk, partial, workgroups },
    },
    scratchBytes: splits > 1 ? partial * splits * 4 : 0,
    sum: splits > 1
      ? {
        kernel: matmulSum(p.out, adds),
        workgroups: line(Math.ceil(partial / 1024)),
        uniforms: { count: partial / 4, splits, offset: offsetC / 4, offset_r: offsetR / 4 },
      }
      : undefined,
  };
}
