/**
 * Measuring which tiles suit a device's matrix units. The built-in table was measured on an H200 and ranks tiles alike on
 * other GPUs; a table of one's own device does better.
 *
 * Each tile makes a product that fills the device, which gives its rate, and one that does not, which gives how many of
 * its workgroups a multiprocessor needs to reach that rate.
 */
import type { Backend, Launch } from "../tensor/backend.ts";
import { tensor } from "../tensor/create.ts";
import { UnsupportedError, ValueError } from "../tensor/errors.ts";
import { matmul } from "../tensor/matmul.ts";
import type { Tensor } from "../tensor/tensor.ts";
import {
  builtInTable,
  type MatrixTable,
  matrixUnit,
  possible,
  type RatedTile,
  useMatrixTable,
} from "./matmul_matrix_plan.ts";
import type { MatrixTile } from "./matmul_matrix.ts";

/** The tiles that are tried, where a device has room for them: bm, bn, bk, and a subgroup's part. */
const candidates = [
  [128, 256, 32, 64, 64],
  [128, 128, 32, 64, 64],
  [128, 128, 32, 64, 32],
  [128, 64, 32, 64, 32],
  [64, 128, 64, 32, 64],
  [64, 128, 64, 32, 32],
  [64, 64, 64, 32, 32],
  [64, 64, 32, 32, 32],
  [32, 64, 64, 32, 32],
  [32, 64, 64, 16, 32],
  [16, 64, 64, 16, 32],
  [32, 32, 16, 16, 16],
  [16, 32, 16, 8, 16],
] as const;

/** What `tuneMatmul()` measured: plain data, to be kept as JSON beside the device's description. */
export interface MatmulTuning {
  /** The backend's description of the device. */
  readonly device: string;
  /** What products choose their tiles from. */
  readonly table: MatrixTable;
}

/** How much to measure. */
export interface TuneOptions {
  /** Rows, columns and terms of the product that fills the device; 4096 when not given. */
  readonly large?: number;
  /** Those of the one that does not; 1024 when not given. */
  readonly small?: number;
  /** Runs of each product, of which the median counts; 9 when not given. */
  readonly runs?: number;
  /**
   * Milliseconds of products before those that are timed, 200 when not given: a card lowers its clock while a tile is
   * compiled, and takes its time to raise it.
   */
  readonly ramp?: number;
  /** Told after each tile. */
  readonly onProgress?: (done: number, of: number, tile: string, tflops: number) => void;
}

/**
 * Measures tiles of f16 products on a device's matrix units, uses what it found from then on, and returns it.
 *
 * @param backend a WebGPU backend with matrix units, such as one opened with `init({ gpu: dawn() })`
 * @throws {UnsupportedError} when the device has no matrix units or no timestamps
 * @throws {ValueError} when a size or the number of runs is no whole number above 0
 *
 * @example
 * ```ts ignore
 * import { init } from "@flashtape/flashtape";
 * import { dawn, tuneMatmul } from "@flashtape/flashtape/dawn";
 * const backend = await init({ gpu: dawn() });
 * await Deno.writeTextFile("tuning.json", JSON.stringify(await tuneMatmul(backend)));
 * ```
 */
export async function tuneMatmul(
  backend: Backend,
  { large = 4096, small = 1024, runs = 9, ramp = 200, onProgress }: TuneOptions = {},
): Promise<MatmulTuning> {
  for (const [name, value] of Object.entries({ large, small, runs })) {
    if (!Number.isInteger(value) || value < 1) {
      throw new ValueError("tuneMatmul", `${name} is a whole number above 0, got ${value}`);
    }
  }
  if (!(ramp >= 0)) throw new ValueError("tuneMatmul", `ramp is a number of milliseconds, got ${ramp}`);
  const { capabilities } = backend, unit = matrixUnit(capabilities);
  if (unit === undefined) {
    throw new UnsupportedError("tuneMatmul", `${backend.description} has no matrix units for f16`);
  }
  if (!capabilities.timestamps) throw new UnsupportedError("tuneMatmul", `${backend.description} has no timestamps`);
  const { units } = builtInTable(capabilities), before = useMatrixTable(capabilities, undefined);
  const tiles = candidates.map(([bm, bn, bk, wm, wn]): MatrixTile => ({
    ...{ kind: "matrix", bm, bn, bk, wm, wn, buffers: 1, splits: 1, unit, lanes: capabilities.subgroupSize },
  })).filter((tile) => possible(capabilities, tile, { transposedA: false, transposedB: false }))
    // A processor that plays a GPU compiles large tiles for minutes.
    .filter(({ bm, bn }) => capabilities.subgroupSize > 8 || bm * bn <= 1024);
  const found: RatedTile[] = [];
  try {
    const [big, little] = [large, small].map((n) => square(backend, n));
    for (const { bm, bn, bk, wm, wn, buffers } of tiles) {
      const sizes = { bm, bn, bk, wm, wn, buffers };
      useMatrixTable(capabilities, { units, tiles: [{ ...sizes, rate: 1, wanted: 1 }], maxSplits: 1 });
      const rate = 2 * large ** 3 / await time(backend, big, runs, ramp) / 1e9;
      // Microseconds of one workgroup of the small product at that rate.
      const one = 2 * bm * bn * small / (rate * 1e6 / units);
      const wanted = 1000 * await time(backend, little, runs, ramp) / one;
      const most = Math.ceil(Math.ceil(small / bm) * Math.ceil(small / bn) / units);
      found.push({
        ...sizes,
        rate: round(rate),
        wanted: round(Math.max(1, most === 1 ? wanted : Math.min(wanted, 8))),
      });
      onProgress?.(found.length, tiles.length, `${bm}x${bn}x${bk}`, rate);
    }
    [...big, ...little].forEach((x) => x.dispose());
  } catch (error) {
    useMatrixTable(capabilities, before);
    throw error;
  }
  const table = { units, tiles: found };
  useMatrixTable(capabilities, table);
  return { device: backend.description, table };
}

/**
 * Uses a table that was measured before, on the same kind of device.
 * @throws {ValueError} when it was measured on another device, or is no such table
 */
export function useMatmulTuning(backend: Backend, { device, table }: MatmulTuning): void {
  if (device !== backend.description) {
    throw new ValueError(
      "useMatmulTuning",
      `measured on ${device}, this is ${backend.description}: run tuneMatmul() here`,
    );
  }
  const numbers = table?.tiles?.flatMap((
    tile,
  ) => [tile.bm, tile.bn, tile.bk, tile.wm, tile.wn, tile.rate, tile.wanted]);
  if (!numbers?.length || ![...numbers, table.units].every((x) => Number.isFinite(x) && x > 0)) {
    throw new ValueError(
      "useMatmulTuning",
      "the table needs tiles with sizes, rates and numbers of workgroups above 0",
    );
  }
  useMatrixTable(backend.capabilities, table);
}

/**
 * The table that products on a device choose from where nobody measured one.
 * @param backend only its capabilities are looked at
 */
export function builtInMatmulTable({ capabilities }: Pick<Backend, "capabilities">): MatrixTable {
  return builtInTable(capabilities);
}

/** Three digits, which is more than two runs agree in. */
const round = (x: number) => Number(x.toPrecision(3));

/** Numbers that are not all alike: products of zeros run faster than others. */
function square(backend: Backend, n: number): Tensor[] {
  const values = Float32Array.from({ length: n * n }, () => Math.random() * 2 - 1);
  return [1, 2].map(() => tensor(values, { shape: [n, n], dtype: "f16", backend }));
}

/** How often a product is timed, the best of which counts: what else a device does only slows it. */
const rounds = 3;

/** Milliseconds of a product on the device, after a first run that compiles and others that wake it. */
async function time(backend: Backend, [a, b]: readonly Tensor[], runs: number, ramp: number): Promise<number> {
  matmul(a, b).dispose();
  await backend.synchronize();
  let least = Infinity;
  for (let round = 0; round < rounds; round++) {
    const start = performance.now();
    for (let calls = 1; performance.now() - start < ramp; calls = Math.min(64, 2 * calls)) {
      for (let i = 0; i < calls; i++) matmul(a, b).dispose();
      await backend.synchronize();
    }
    const log = backend.profile!();
    for (let i = 0; i < runs; i++) matmul(a, b).dispose();
    const times = (await log.stop()).map(({ ms }: Launch) => ms).sort((x, y) => x - y);
    least = Math.min(least, times[Math.floor(times.length / 2)]);
  }
  return least;
}
