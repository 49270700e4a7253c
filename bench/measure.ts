/** Timing: wall clock around many repeats that end in one wait, so that its cost is shared; the median of several. */
import { type Backend, dispose, scope } from "@flashtape/flashtape";

/** What a measurement found, in milliseconds for one call. */
export interface Timing {
  readonly median: number;
  readonly min: number;
  readonly max: number;
  readonly samples: number;
  readonly repeats: number;
}

/**
 * Times one call of `f`, whose results are freed. The first calls compile and warm up and are not counted.
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
  times.sort((a, b) => a - b);
  return { median: times[samples >> 1], min: times[0], max: times[samples - 1], samples, repeats };
}

/** Runs `f` on inputs that are freed afterwards. */
export async function using<T>(inputs: T, f: (inputs: T) => Promise<void>): Promise<void> {
  try {
    await f(inputs);
  } finally {
    dispose(inputs);
  }
}
