/**
 * Timing. On a GPU with timestamps each kernel is timed by the GPU's own clock and a call is the sum of its kernels; else a
 * wall clock goes around many calls that end in one wait. The call that compiles is never counted, and before each timed
 * call the buffers that its results will be given are filled with NaN, so that an element nobody wrote is seen.
 */
import { type Backend, dispose, full, memory, profile, scope, sum, Tensor } from "@flashtape/flashtape";
import type { Clock, Times } from "./record.ts";

/** What a call may return. */
export type Outputs = Tensor | readonly Outputs[] | { readonly [name: string]: Outputs };

/** What a measurement found, in milliseconds for one call. */
export interface Timing extends Times {
  /** Calls that each sample is the mean of. */
  readonly repeats: number;
}

/**
 * Times one call of `f` by the wall clock; its results are freed. The first calls compile and warm up and are not counted.
 * @param options.budget about how many milliseconds to spend
 */
export async function time(backend: Backend, f: () => unknown, { budget = 1000, samples = 7 } = {}): Promise<Timing> {
  const once = () => scope(() => void f());
  const many = async (n: number) => {
    const start = performance.now();
    for (let i = 0; i < n; i++) once();
    await backend.synchronize();
    return performance.now() - start;
  };
  await many(1);
  const first = await many(2) / 2;
  const repeats = Math.max(1, Math.min(1000, Math.round(budget / samples / Math.max(first, 1e-3))));
  await many(repeats);
  const times: number[] = [];
  for (let i = 0; i < samples; i++) times.push(await many(repeats) / repeats);
  return { ...summary(times), repeats };
}

/** Median, least, mean and greatest of some samples. */
export function summary(each: readonly number[]): Times {
  const sorted = [...each].sort((a, b) => a - b), n = sorted.length, half = n >> 1;
  const median = n % 2 === 1 ? sorted[half] : (sorted[half - 1] + sorted[half]) / 2;
  const avg = sorted.reduce((a, b) => a + b, 0) / n;
  return { median, min: sorted[0], avg, max: sorted[n - 1], each: [...each] };
}

/** The tensors in what a call returned. */
export function tensorsOf(outputs: Outputs): Tensor[] {
  if (outputs instanceof Tensor) return [outputs];
  return Object.values(outputs as Record<string, Outputs>).flatMap(tensorsOf);
}

const floats = new Set<string>(["f32", "f16", "bf16", "f64"]);

/** Free buffers of one size are looked for at most this often. */
const mostBuffers = 32;

/** Fills with NaN every free buffer that the results of a call can be given. */
export class Poison {
  readonly #specs: { shape: readonly number[]; dtype: Tensor["dtype"]; count: number }[];
  /** How many fills the last `spread()` ran. */
  fills = 0;

  constructor(outputs: Outputs) {
    const results = tensorsOf(outputs).filter((x) => floats.has(x.dtype) && x.size > 0);
    const kinds = new Map(results.map((x) => [`${x.dtype} ${x.size}`, x]));
    this.#specs = [...kinds.values()].map(({ shape, dtype }) => ({ shape: [...shape], dtype, count: 0 }));
  }

  /** The first time it fills buffers until a fresh one had to be made; then as many as that were. */
  spread(): void {
    this.fills = 0;
    const held: Tensor[] = [];
    for (const spec of this.#specs) {
      const known = spec.count;
      for (let i = 0; known === 0 ? i < mostBuffers : i < known; i++) {
        const { pooled } = memory();
        held.push(full(spec.shape, NaN, { dtype: spec.dtype }));
        spec.count = Math.max(spec.count, i + 1);
        if (known === 0 && memory().pooled >= pooled) break;
      }
    }
    this.fills = held.length;
    for (const x of held) x.dispose();
  }
}

/** One number for each result, NaN when any of its elements is. */
function digestOf(outputs: Outputs): Tensor[] {
  return tensorsOf(outputs).filter((x) => floats.has(x.dtype) && x.size > 0).map((x) => sum(x));
}

/** Thrown when a timed call left something unwritten, or computed NaN. */
export class PoisonedError extends Error {
  override readonly name = "PoisonedError";
}

/** Looks at the digests of some calls, and frees them. */
async function expectWritten(digests: readonly (readonly Tensor[])[]): Promise<void> {
  try {
    for (const [run, found] of digests.entries()) {
      for (const [i, x] of found.entries()) {
        if (Number.isNaN(await x.item())) {
          throw new PoisonedError(`result ${i} of timed call ${run} has NaN: elements were left unwritten`);
        }
      }
    }
  } finally {
    dispose(digests);
  }
}

/** How a call is to be timed. */
export interface TimingOptions {
  readonly warmup: number;
  /** Milliseconds of calls before the timed ones: a card lowers its clock when it idles, and takes its time to raise it. */
  readonly ramp: number;
  /** Timed calls at most. */
  readonly repeats: number;
  /** Milliseconds for all of it, about. */
  readonly budget: number;
  /** What one call holds at its peak, where that is known. */
  readonly peakBytes?: number;
  /** Whether the wall clock is taken whatever clocks there are. */
  readonly byWall?: boolean;
}

/** Samples in milliseconds, and whose clock they are of. */
export interface Timed {
  readonly clock: Clock;
  readonly ms: Times;
  /** Kernels of one call; null where there are none. */
  readonly launches: number | null;
}

/** Launches that one profile may hold: each has two timestamps, and a pass of its own that the host has to send. */
const mostLaunches = 20_000;

/**
 * Times a call, by the GPU's clock where it has one.
 * @param call makes the same results at every call, and frees what else it makes; the results are freed here
 */
export async function timed(backend: Backend, call: () => Outputs, options: TimingOptions): Promise<Timed> {
  const poison = await prepared(backend, call);
  const start = performance.now();
  dispose(call());
  await backend.synchronize();
  const fits = Math.floor(options.budget / Math.max(performance.now() - start, 1e-3));
  const repeats = Math.max(Math.min(3, options.repeats), Math.min(options.repeats, fits));
  if (backend.name === "webgpu" && backend.capabilities.timestamps && !options.byWall) {
    const launches = (await profile(() => dispose(call()))).launches.length;
    if (launches > 0 && launches * repeats <= mostLaunches) {
      const each = await gpuTimes(backend, call, poison, { ...options, repeats }, launches);
      return { clock: "gpu timestamps", ms: summary(each), launches };
    }
  }
  await busy(backend, call, options.ramp);
  return { clock: "wall clock", ms: summary(await wallTimes(backend, call, poison, repeats)), launches: null };
}

/** Times a call by the wall clock, whatever clocks there are: what a program sees that calls again and again. */
export async function timedByWall(backend: Backend, call: () => Outputs, options: TimingOptions): Promise<Times> {
  const poison = await prepared(backend, call);
  return summary(await wallTimes(backend, call, poison, options.repeats, options.budget));
}

/** Compiles, runs once more, and learns what results look like. */
async function prepared(backend: Backend, call: () => Outputs): Promise<Poison> {
  const first = call();
  const poison = new Poison(first);
  dispose(first);
  dispose(call());
  await backend.synchronize();
  return poison;
}

/** Keeps the device busy with calls for so many milliseconds. */
async function busy(backend: Backend, call: () => Outputs, ms: number): Promise<void> {
  const start = performance.now();
  for (let calls = 1; performance.now() - start < ms; calls = Math.min(64, 2 * calls)) {
    for (let i = 0; i < calls; i++) dispose(call());
    await backend.synchronize();
  }
}

/** Bytes that calls may hold in turn before the device is waited for: what they freed is given back only then. */
const mostBytes = 4 * 2 ** 30;

async function gpuTimes(
  backend: Backend,
  call: () => Outputs,
  poison: Poison,
  { repeats, warmup, ramp, peakBytes = 0 }: TimingOptions,
  launches: number,
): Promise<number[]> {
  const run = () => {
    poison.spread();
    const outputs = call(), digest = digestOf(outputs);
    dispose(outputs);
    return { fills: poison.fills, digest };
  };
  const { digest } = run(); // compiles what poisons and checks
  const cycles = warmup + repeats,
    atOnce = Math.max(1, Math.min(cycles, Math.floor(mostBytes / Math.max(1, peakBytes))));
  // Room for the digests: a buffer that is made between two calls would let the pool give up what the next one needs.
  const room = Array.from({ length: atOnce * digest.length }, () => full([], 0));
  dispose([digest, room]);
  const each: number[] = [];
  for (let done = 0; done < cycles; done += atOnce) {
    await busy(backend, call, done === 0 ? ramp : ramp / 2);
    const now = Math.min(atOnce, cycles - done);
    const { launches: found, value: runs } = await profile(() => Array.from({ length: now }, run));
    const checks = (found.length - runs.reduce((sum, { fills }) => sum + fills, 0)) / now - launches;
    if (!Number.isInteger(checks) || checks < 0) {
      throw new Error(`calls differ: ${found.length} launches are not ${now} times ${launches} and the same checks`);
    }
    await expectWritten(runs.map(({ digest }) => digest));
    let at = 0;
    for (const { fills } of runs) {
      const from = at + fills;
      at = from + launches + checks;
      each.push(found.slice(from, from + launches).reduce((ms, launch) => ms + launch.ms, 0));
    }
  }
  return each.slice(warmup);
}

/** Calls are grouped until a sample takes about this long, in milliseconds: waiting for the device costs a part of one. */
const sampleTime = 30;

async function wallTimes(
  backend: Backend,
  call: () => Outputs,
  poison: Poison,
  repeats: number,
  budget = Infinity,
): Promise<number[]> {
  const sample = async (calls: number) => {
    poison.spread();
    await backend.synchronize();
    const start = performance.now();
    for (let i = 1; i < calls; i++) dispose(call());
    const last = call();
    await backend.synchronize();
    const ms = (performance.now() - start) / calls;
    const digest = digestOf(last);
    dispose(last);
    await expectWritten([digest]);
    return ms;
  };
  const first = await sample(1);
  const calls = first > sampleTime
    ? 1
    : Math.max(1, Math.min(1000, Math.round(sampleTime / Math.max(await sample(3), 1e-3))));
  const each: number[] = [];
  const begin = performance.now();
  for (let i = 0; i < repeats; i++) {
    each.push(await sample(calls));
    if (i >= 2 && performance.now() - begin > budget) break;
  }
  return each;
}
