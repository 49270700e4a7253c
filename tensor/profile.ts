/** Where the time goes: `profile(f)` kernel by kernel, `measure(f)` as a whole. */
import { getBackend, type Launch } from "./backend.ts";
import { UnsupportedError } from "./errors.ts";

/** All launches of one kernel. */
export interface KernelTime {
  /** The op that asked for it. */
  readonly op: string;
  /** The kernel's name, with its parameters; the op's own on the CPU. */
  readonly kernel: string;
  /** How often it ran. */
  readonly calls: number;
  /** Time of all its runs, in milliseconds. */
  readonly ms: number;
  /** Its part of the time of all kernels, from 0 to 1. */
  readonly share: number;
  /** The least bytes that its runs had to move; null where unknown. */
  readonly bytes: number | null;
  /** Floating-point operations of its runs; null where the op has no count of them. */
  readonly flops: number | null;
}

/** What `profile()` found. */
export class Profile<T = unknown> {
  /** What the function returned. */
  readonly value: T;
  /** Every launch, in order. */
  readonly launches: readonly Launch[];
  /** Kernels by falling time. */
  readonly kernels: readonly KernelTime[];
  /** Time of all launches together, in milliseconds. */
  readonly ms: number;
  readonly #device: string;

  /**
   * Groups launches by kernel.
   * @param device what ran it, as it stands in tables and traces
   */
  constructor(value: T, launches: readonly Launch[], device: string) {
    this.value = value;
    this.launches = launches;
    this.#device = device;
    this.ms = launches.reduce((sum, { ms }) => sum + ms, 0);
    this.kernels = group(launches, this.ms);
  }

  /** The kernels as lines of text, the longest time first, with the rates that they reached. */
  table(): string {
    const head = ["kernel", "op", "calls", "ms", "share", "µs/call", "GB/s", "TFLOP/s"];
    const rows = this.kernels.map(({ kernel, op, calls, ms, share, bytes, flops }) => [
      kernel,
      op,
      String(calls),
      ms.toFixed(3),
      `${(100 * share).toFixed(1)} %`,
      (1000 * ms / calls).toFixed(1),
      rate(bytes, ms, 1e9),
      rate(flops, ms, 1e12),
    ]);
    const total = [
      "total",
      "",
      String(this.launches.length),
      this.ms.toFixed(3),
      "",
      this.launches.length === 0 ? "" : (1000 * this.ms / this.launches.length).toFixed(1),
      rate(sumOf(this.kernels.map(({ bytes }) => bytes)), this.ms, 1e9),
      rate(sumOf(this.kernels.map(({ flops }) => flops)), this.ms, 1e12),
    ];
    const lines = [head, ...rows, total];
    const widths = head.map((_, i) => Math.max(...lines.map((line) => line[i].length)));
    const text = lines.map((line) =>
      line.map((cell, i) => i < 2 ? cell.padEnd(widths[i]) : cell.padStart(widths[i])).join("  ").trimEnd()
    );
    return [this.#device, ...text].join("\n");
  }

  /** JSON in the Trace Event Format, which ui.perfetto.dev and chrome://tracing open. */
  chromeTrace(): string {
    const name = { name: "process_name", ph: "M", pid: 1, args: { name: this.#device } };
    const events = this.launches.map(({ op, kernel, start, ms, bytes, flops }) => ({
      name: kernel,
      cat: op,
      ph: "X",
      pid: 1,
      tid: 1,
      ts: 1000 * start,
      dur: 1000 * ms,
      args: { op, bytes, flops },
    }));
    return JSON.stringify({ displayTimeUnit: "ms", traceEvents: [name, ...events] });
  }
}

function rate(amount: number | null, ms: number, unit: number): string {
  if (amount === null || ms === 0) return "";
  const value = amount / (ms / 1000) / unit;
  return value >= 10 ? value.toFixed(0) : value >= 0.1 ? value.toFixed(2) : value.toPrecision(2);
}

function sumOf(amounts: readonly (number | null)[]): number | null {
  const known = amounts.filter((x) => x !== null);
  return known.length === 0 ? null : known.reduce((a, b) => a + b, 0);
}

function group(launches: readonly Launch[], total: number): KernelTime[] {
  const groups = new Map<string, Launch[]>();
  for (const launch of launches) {
    const id = `${launch.kernel} ${launch.op}`;
    const known = groups.get(id);
    if (known === undefined) groups.set(id, [launch]);
    else known.push(launch);
  }
  const kernels = [...groups.values()].map((same) => {
    const ms = same.reduce((sum, launch) => sum + launch.ms, 0);
    return {
      op: same[0].op,
      kernel: same[0].kernel,
      calls: same.length,
      ms,
      share: total === 0 ? 0 : ms / total,
      bytes: sumOf(same.map(({ bytes }) => bytes ?? null)),
      flops: sumOf(same.map(({ flops }) => flops ?? null)),
    };
  });
  return kernels.sort((a, b) => b.ms - a.ms);
}

/**
 * Runs `f` and times every kernel on the GPU's own clock; on the CPU, every op.
 *
 * Each kernel runs by itself while it is timed, and the first run of a kernel may compile it: run `f` once before. With
 * an async `f`, what other code runs meanwhile is counted too.
 *
 * @param f uses tensors of the current backend
 * @throws {UnsupportedError} when the device has no timestamps
 *
 * @example
 * ```ts
 * import { matmul, profile, tensor } from "@flashtape/flashtape";
 * const x = tensor([[1, 2], [3, 4]]);
 * const found = await profile(() => matmul(x, x));
 * console.log(found.value.shape, found.table());
 * ```
 */
export async function profile<T>(f: () => T | Promise<T>): Promise<Profile<T>> {
  const backend = getBackend();
  if (backend.profile === undefined) throw new UnsupportedError("profile", `${backend.name} keeps no times`);
  await backend.synchronize();
  const log = backend.profile();
  let value: T;
  try {
    value = await f();
  } catch (error) {
    await log.stop();
    throw error;
  }
  return new Profile(value, await log.stop(), backend.description);
}

/** What `measure()` found. */
export interface Measurement<T> {
  /** What the function returned. */
  readonly value: T;
  /** From its start until the device had done all of it, in milliseconds. */
  readonly ms: number;
  /** The most bytes that tensors held meanwhile, on top of those held at the start. */
  readonly peakBytes: number;
}

/**
 * Runs `f` and waits for the device: the time, and the most memory that it took.
 *
 * @param f uses tensors of the current backend
 *
 * @example
 * ```ts
 * import { exp, measure, sum, tensor } from "@flashtape/flashtape";
 * const x = tensor(new Float32Array(1024));
 * const { ms, peakBytes } = await measure(() => sum(exp(x)));
 * ```
 */
export async function measure<T>(f: () => T | Promise<T>): Promise<Measurement<T>> {
  const backend = getBackend();
  await backend.synchronize();
  const { current } = backend.memory();
  backend.resetPeak();
  const start = performance.now();
  const value = await f();
  await backend.synchronize();
  return { value, ms: performance.now() - start, peakBytes: backend.memory().peak - current };
}
