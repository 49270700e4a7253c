/** What peers are asked to do, and how their times are taken: the same for each, flashtape among them. */

/** Element types of the inputs. */
export type PeerDType = "f32" | "f16";

/** One piece of work. */
export type Work =
  | { readonly kind: "matmul"; readonly n: number; readonly dtype: PeerDType }
  | {
    /** `gradients` is the forward pass and the gradients of Σ out∘weights by q, k and v. */
    readonly kind: "forward" | "gradients";
    readonly batch: number;
    readonly seqlen: number;
    readonly heads: number;
    readonly headDim: number;
    readonly causal: boolean;
    readonly dtype: PeerDType;
  };

/** Attention, forward or with gradients. */
export type AttentionWork = Exclude<Work, { kind: "matmul" }>;

/** What a process is started with. */
export interface Job {
  readonly works: readonly Work[];
  readonly seed: number;
  readonly repeats: number;
  /** Milliseconds for the timing of one piece of work, about. */
  readonly budget: number;
  /** Where results go, to be checked. */
  readonly directory: string;
  /** Whose WebGPU; of PyTorch, which of its attention kernels. */
  readonly provider: "deno" | "dawn" | "fused" | "math";
  /** Of flashtape on Dawn, as the flags of these names. */
  readonly robustness: "on" | "off";
  readonly cache?: string | boolean;
}

/** What a process tells, one line each. */
export type Report =
  | { readonly adapter: string }
  /** A result is in its files. */
  | { readonly work: number; readonly files: readonly string[]; readonly how: string }
  | { readonly work: number; readonly each: readonly number[]; readonly chain: number }
  | { readonly work: number; readonly cannot: string };

/** Starts each line that is a report: libraries print lines of their own. */
export const mark = "@flashtape-bench ";

/** Numbers between −√3 and √3: mean 0, variance 1, the same wherever they are made. */
export function numbers(seed: number, length: number, scale = 1): Float32Array<ArrayBuffer> {
  const out = new Float32Array(length);
  let state = Math.imul(seed + 1, 0x9e3779b1) >>> 0;
  for (let i = 0; i < length; i++) {
    state = (Math.imul(state, 1664525) + 1013904223) >>> 0;
    let x = state;
    x = Math.imul(x ^ (x >>> 16), 0x7feb352d);
    x = Math.imul(x ^ (x >>> 15), 0x846ca68b);
    out[i] = scale * Math.sqrt(12) * (((x ^ (x >>> 16)) >>> 0) / 2 ** 32 - 0.5);
  }
  return out;
}

/** Rounded to what the type holds. */
export function rounded(values: Float32Array<ArrayBuffer>, dtype: PeerDType): Float32Array<ArrayBuffer> {
  return dtype === "f32" ? values : new Float32Array(new Float16Array(values));
}

/** Inputs: two matrices, the second scaled so that products stay near 1; or q, k, v and the weights of Σ out∘weights. */
export function inputsOf(work: Work, seed: number): Float32Array<ArrayBuffer>[] {
  if (work.kind === "matmul") {
    const { n, dtype } = work;
    return [numbers(seed, n * n), numbers(seed + 1, n * n, n ** -0.5)].map((x) => rounded(x, dtype));
  }
  const { batch, seqlen, heads, headDim, dtype } = work;
  const count = work.kind === "forward" ? 3 : 4;
  return Array.from({ length: count }, (_, i) => rounded(numbers(seed + i, batch * seqlen * heads * headDim), dtype));
}

/** A piece of work, ready to run. */
export interface Prepared {
  /** How it is done, in a few words. */
  readonly how: string;
  /** The results of one run: of `matmul` and `forward` one, of `gradients` dq, dk and dv. */
  readonly results: () => Promise<Float32Array[]>;
  /** Does the work `n` times, each on what the one before gave, and waits for the last. */
  readonly chain: (n: number) => Promise<unknown>;
  readonly end?: () => void | Promise<void>;
}

/** A library. */
export interface Peer {
  /** The device that it runs on. */
  readonly adapter: string;
  /** Makes a piece of work ready, or says why it cannot do it. */
  readonly prepare: (
    work: Work,
    inputs: Float32Array<ArrayBuffer>[],
  ) => Promise<Prepared | { readonly cannot: string }>;
}

function tell(report: Report): void {
  Deno.stdout.writeSync(new TextEncoder().encode(`${mark}${JSON.stringify(report)}\n`));
}

const clock = async (f: () => Promise<unknown>) => {
  const start = performance.now();
  await f();
  return performance.now() - start;
};

/**
 * Times of one piece of work: chains of two lengths, whose difference leaves out what every chain costs once.
 * @returns milliseconds of each sample, and how many pieces of work lie between the two lengths
 */
export async function chainTimes(
  chain: (n: number) => Promise<unknown>,
  { repeats, budget }: Pick<Job, "repeats" | "budget">,
): Promise<{ each: number[]; chain: number }> {
  await chain(1); // compiles
  await chain(2);
  const short = await clock(() => chain(1)), long = await clock(() => chain(5));
  const one = Math.max((long - short) / 4, 1e-3);
  // Long enough that reading a result once, some milliseconds in some of them, hardly counts; not more than is affordable.
  const links = Math.max(2, Math.min(200, Math.ceil(150 / one), Math.floor(budget / one / 2)));
  await chain(1 + links);
  const few: number[] = [], many: number[] = [];
  const begin = performance.now();
  while (few.length < repeats && (few.length < 5 || performance.now() - begin < budget)) {
    few.push(await clock(() => chain(1)));
    many.push(await clock(() => chain(1 + links)));
  }
  // One short chain that was held up must not make a long one look fast.
  const once = few.toSorted((a, b) => a - b)[few.length >> 1];
  return { each: many.map((ms) => Math.max(0, (ms - once) / links)), chain: links };
}

/** Does a job: each piece of work's results first, to be checked, then its times. */
export async function serve(open: (job: Job) => Promise<Peer>): Promise<void> {
  const job: Job = JSON.parse(Deno.args[0]);
  const peer = await open(job);
  tell({ adapter: peer.adapter });
  for (const [work, it] of job.works.entries()) {
    try {
      const prepared = await peer.prepare(it, inputsOf(it, job.seed));
      if ("cannot" in prepared) {
        tell({ work, cannot: prepared.cannot });
        continue;
      }
      try {
        const results = await prepared.results();
        const files = results.map((_, i) => `${job.directory}/${work}-${i}.f32`);
        results.forEach((x, i) => Deno.writeFileSync(files[i], new Uint8Array(x.buffer, x.byteOffset, x.byteLength)));
        tell({ work, files, how: prepared.how });
        tell({ work, ...await chainTimes(prepared.chain, job) });
      } finally {
        await prepared.end?.();
      }
    } catch (error) {
      tell({ work, cannot: String(error instanceof Error ? error.message : error).split("\n")[0].slice(0, 300) });
    }
  }
  Deno.exit(0); // native modules would keep the process
}
