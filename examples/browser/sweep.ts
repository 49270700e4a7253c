/** Flash against naive attention over sequence lengths: time and memory, measured. */
import {
  type Backend,
  dispose,
  flashAttention,
  FlashtapeError,
  grad,
  key,
  measure,
  naiveAttention,
  randn,
  scope,
  split,
  sum,
  type Tensor,
} from "@flashtape/flashtape";

/** Which attention. */
export type Algorithm = "flash" | "naive";

/** What is measured. */
export interface SweepOptions {
  readonly causal: boolean;
  /** Gradients by q, k and v too. */
  readonly backward: boolean;
  /** Lengths go by powers of two from the first to the last. */
  readonly lengths: readonly [from: number, to: number];
  readonly heads: number;
  readonly headSize: number;
  /** An algorithm whose call takes longer than this is not tried on greater lengths. */
  readonly patience: number;
}

/** What was found for one algorithm at one length. */
export interface Point {
  readonly algorithm: Algorithm;
  readonly length: number;
  /** Median of a call; null where it was not possible. */
  readonly ms: number | null;
  /** The most bytes held at once, on top of the inputs; null where it was not possible. */
  readonly bytes: number | null;
  /** Why there is no number. */
  readonly reason?: string;
}

/** Sizes that suit a backend: the CPU's plain loops take seconds where a GPU takes microseconds. */
export function sizesFor({ name, capabilities }: Backend): Pick<SweepOptions, "lengths" | "heads" | "headSize"> {
  if (name === "cpu") return { lengths: [16, 256], heads: 2, headSize: 16 };
  // The scores of all heads are one tensor, which naive attention must bind.
  let to = 128;
  while (to < 8192 && 8 * (2 * to) ** 2 * 4 <= Math.min(capabilities.maxBinding, 2 ** 30)) to *= 2;
  return { lengths: [128, to], heads: 8, headSize: 64 };
}

const algorithms = { flash: flashAttention, naive: naiveAttention };

async function time(f: () => unknown, patience: number): Promise<{ ms: number; bytes: number }> {
  const run = (times: number) =>
    measure(() => {
      for (let i = 0; i < times; i++) dispose(scope(f));
    });
  await run(1); // compiles
  const { ms: first, peakBytes } = await run(1);
  if (first > patience / 4) return { ms: first, bytes: peakBytes };
  // Short calls in a row, so that the cost of waiting for the device is shared.
  const times = Math.max(1, Math.min(100, Math.round(20 / first)));
  const found: number[] = [];
  for (let i = 0; i < 5; i++) found.push((await run(times)).ms / times);
  return { ms: found.sort((a, b) => a - b)[2], bytes: peakBytes };
}

/** Measures both algorithms at each length, shortest first. */
export async function* sweep(options: SweepOptions): AsyncGenerator<Point> {
  const { causal, backward, lengths: [from, to], heads, headSize, patience } = options;
  const given: Partial<Record<Algorithm, string>> = {};
  for (let length = from; length <= to; length *= 2) {
    const inputs = scope(() => split(key(length), 3).map((k) => randn(k, [1, length, heads, headSize])));
    const [q, k, v] = inputs;
    try {
      for (const algorithm of ["flash", "naive"] as const) {
        let reason = given[algorithm];
        if (reason === undefined) {
          const forward = (q: Tensor, k: Tensor, v: Tensor) => algorithms[algorithm](q, k, v, { causal });
          const gradients = grad((q: Tensor, k: Tensor, v: Tensor) => sum(forward(q, k, v)), [0, 1, 2]);
          try {
            const { ms, bytes } = await time(() => backward ? gradients(q, k, v) : forward(q, k, v), patience);
            if (ms > patience) given[algorithm] = `a call of ${length} took ${Math.round(ms)} ms`;
            yield { algorithm, length, ms, bytes };
            continue;
          } catch (error) {
            if (!(error instanceof FlashtapeError) || error.name === "DeviceLostError") throw error;
            reason = given[algorithm] = error.message;
          }
        }
        yield { algorithm, length, ms: null, bytes: null, reason };
      }
    } finally {
      dispose(inputs);
    }
    if (given.flash !== undefined && given.naive !== undefined) return;
  }
}

/** The largest difference between the two, over random inputs: they are the same function. */
export async function difference(length: number, heads: number, headSize: number, causal: boolean): Promise<number> {
  const [a, b] = scope(() => {
    const [q, k, v] = split(key(0), 3).map((k) => randn(k, [1, length, heads, headSize]));
    return [flashAttention(q, k, v, { causal }), naiveAttention(q, k, v, { causal })];
  });
  const [x, y] = [await a.data(), await b.data()];
  dispose([a, b]);
  return Array.from(x).reduce((most, value, i) => Math.max(most, Math.abs(value - y[i])), 0);
}
