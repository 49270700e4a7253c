/** A Llama checkpoint part by part: how long each takes, and how far its tokens and scores are from PyTorch's. */
import { type Backend, dispose, memory, resetPeak, scope, type Tensor, tensor } from "@flashtape/flashtape";
import { generate, llama, safetensors } from "@flashtape/flashtape/nn";
import { existsSync, readFileSync } from "node:fs";
import { join } from "node:path";
import type { TimingOptions } from "./measure.ts";
import { step } from "./model.ts";

/** Parts by the names that `--only` takes; `static` is PyTorch's alone. */
export const llamaParts = [
  "load",
  "decode",
  "prefill",
  "prefill8",
  "contexts",
  "agreement",
  "train",
  "static",
] as const;
/** One of {@linkcode llamaParts}. */
export type LlamaPart = typeof llamaParts[number];

/** A call whose time is taken. */
export interface TimedWork {
  /** What `baselines/llama.py` calls it, where it has it too. */
  readonly key: string;
  readonly part: LlamaPart;
  readonly title: string;
  /** Tokens read or written by one call. */
  readonly tokens: number;
  /** Whether the table shows tokens a second; else the time. */
  readonly rate?: boolean;
}

/** How large the parts are. */
export interface LlamaSizes {
  /** Tokens of a prompt that is read at once. */
  readonly long: number;
  /** New tokens of a text. */
  readonly new: number;
  /** Tokens before those whose time is taken. */
  readonly contexts: readonly number[];
}

const count = (n: number) => n.toLocaleString("en-US");

/** The calls of some parts. */
export function worksOf(parts: readonly LlamaPart[], { long, new: fresh, contexts }: LlamaSizes): TimedWork[] {
  const works: TimedWork[] = [
    { key: "load", part: "load", title: "load", tokens: 0 },
    { key: "first", part: "decode", title: "first token", tokens: 1 },
    { key: "decode1", part: "decode", title: "decode, batch 1", tokens: fresh, rate: true },
    { key: "decode2", part: "decode", title: "decode, batch 2", tokens: 2 * fresh, rate: true },
    { key: "prefill", part: "prefill", title: `prefill 1 × ${count(long)}`, tokens: long },
    { key: "prefill8", part: "prefill8", title: `prefill 8 × ${count(long)}`, tokens: 8 * long },
    ...contexts.map((n): TimedWork => ({
      ...{ key: `context${n}`, part: "contexts", title: `decode with ${count(n)} before`, tokens: 1, rate: true },
    })),
    { key: "train", part: "train", title: `train step 4 × ${count(long)}`, tokens: 4 * long },
  ];
  return works.filter(({ part }) => parts.includes(part));
}

/** Greedy tokens, and by how much each was ahead of the next best. */
interface Greedy {
  readonly tokens: readonly number[];
  readonly margins: readonly number[];
}

/** Milliseconds of each call, by a work's key. */
type Samples = Readonly<Record<string, readonly number[] | number>>;

/** What `baselines/llama.py` leaves. */
export interface Baseline {
  readonly torch: string;
  readonly device: string;
  /** New tokens of a timed text. */
  readonly new: number;
  /** Two short prompts. */
  readonly prompts: readonly (readonly number[])[];
  /** Long prompts, the first for scores. */
  readonly long: readonly (readonly number[])[];
  readonly ways: Readonly<Record<string, Samples>>;
  readonly agreement?: { readonly bf16: Greedy; readonly f32: Greedy };
  /** Why something is not there, by part and way. */
  readonly failed: Readonly<Record<string, string>>;
}

/** Reads what PyTorch left in a checkpoint's directory, if it did. */
export function baselineOf(directory: string): Baseline | null {
  const file = join(directory, "baseline.json");
  if (!existsSync(file)) return null;
  const found = JSON.parse(readFileSync(file, "utf8"));
  return "ways" in found ? found : null; // an older form has none, and is measured anew
}

/** How far tokens and scores are from PyTorch's with the same weights. */
export interface Agreement {
  /** The first token that differs from one whose margin is above 0.01, in words. */
  readonly f32: string;
  readonly bf16: string;
  /** The largest distance of a score from that in f32, after the short prompt and the long one. */
  readonly short: number;
  readonly long: number;
}

/** Up to where the baseline itself was undecided. */
function difference(got: readonly number[], { tokens, margins }: Greedy): string {
  const place = tokens.findIndex((id, i) => id !== got[i]);
  if (place < 0 || margins[place] <= 1e-2) return "equal";
  return `token ${place} differs, margin ${margins[place].toFixed(3)}`;
}

/** One checkpoint on one backend, which is the default one. */
export class LlamaRun {
  readonly #backend: Backend;
  readonly #directory: string;
  readonly #sizes: LlamaSizes;
  readonly #options: Pick<TimingOptions, "repeats" | "budget" | "warmup" | "ramp">;
  #model: Awaited<ReturnType<typeof llama.load>> | null = null;

  /** @param options.budget milliseconds for one work's timed calls, about, once there are three */
  constructor(
    backend: Backend,
    directory: string,
    sizes: LlamaSizes,
    options: Pick<TimingOptions, "repeats" | "budget" | "warmup" | "ramp">,
  ) {
    this.#backend = backend;
    this.#directory = directory;
    this.#sizes = sizes;
    this.#options = options;
  }

  /** Reads the checkpoint; milliseconds. */
  async load(): Promise<number> {
    this.end();
    const begun = performance.now();
    this.#model = await llama.load(this.#directory);
    await this.#backend.synchronize();
    return performance.now() - begun;
  }

  get #loaded(): Awaited<ReturnType<typeof llama.load>> {
    if (this.#model === null) throw new Error("the checkpoint's weights are not there any more");
    return this.#model;
  }

  /** Ids as PyTorch's, or others: nothing but agreement depends on which. */
  #ids(batch: number, length: number, known: readonly (readonly number[])[] = []): number[][] {
    const { vocab_size: vocabulary } = this.#loaded.config;
    return Array.from({ length: batch }, (_, row) => {
      const from = known[row];
      if (from?.length === length) return [...from];
      return Array.from({ length }, (_, i) => (7919 * (row * length + i) + 1000) % vocabulary);
    });
  }

  /** Milliseconds of each call, the device waited for. The first ones compile, the next raise the card's clock. */
  async #times(f: () => unknown, compiling = 1): Promise<number[]> {
    const each: number[] = [], { repeats, budget, warmup, ramp } = this.#options;
    const once = async () => {
      const begun = performance.now();
      await f();
      await this.#backend.synchronize();
      return performance.now() - begun;
    };
    for (let i = 0; i < compiling; i++) await once();
    const compiled = performance.now();
    while (performance.now() - compiled < ramp) await once();
    for (let i = 0; i < warmup; i++) await once();
    const begun = performance.now();
    while (each.length < repeats && (each.length < 3 || performance.now() - begun < budget)) each.push(await once());
    return each;
  }

  /** A text: its first row's tokens, and when each came. */
  async #write(inputIds: readonly (readonly number[])[], maxNewTokens: number) {
    const { params, config } = this.#loaded;
    const plain = { params, config: { ...config, eos_token_id: null } };
    const begun = performance.now(), tokens: number[] = [], times: number[] = [];
    for await (const { tokens: [id] } of generate(plain, { temperature: 0, stop: [], inputIds, maxNewTokens })) {
      tokens.push(id);
      times.push(performance.now() - begun);
    }
    return { tokens, times };
  }

  #lastScores(ids: readonly (readonly number[])[]): Tensor {
    const { params, config } = this.#loaded;
    return scope(() => {
      const input = tensor(ids.flat(), { shape: [ids.length, ids[0].length], dtype: "i32", backend: this.#backend });
      return llama.forward(params, config, input, { logitsToKeep: 1 }).logits;
    });
  }

  /** Milliseconds of each call of a work, and the most bytes held meanwhile where that is told. */
  async times({ key }: TimedWork, baseline: Baseline | null): Promise<{ each: number[]; peakBytes?: number }> {
    const { long, new: fresh } = this.#sizes;
    const short = (batch: number) => this.#ids(batch, baseline?.prompts[0].length ?? 24, baseline?.prompts);
    const reads = (batch: number) => {
      const ids = this.#ids(batch, long, baseline?.long);
      return this.#times(() => this.#lastScores(ids).dispose());
    };
    if (key === "load") return { each: [await this.load()] };
    if (key === "first") return { each: await this.#times(() => this.#write(short(1), 1)) };
    if (key === "decode1") return { each: await this.#times(() => this.#write(short(1), fresh)) };
    if (key === "decode2") return { each: await this.#times(() => this.#write(short(2), fresh)) };
    if (key === "prefill") return { each: await reads(1) };
    if (key === "prefill8") return { each: await reads(8) };
    if (key === "train") return await this.#train();
    const length = Number(key.replace("context", ""));
    const { times } = await this.#write(this.#ids(1, length), 161);
    return { each: [(times[160] - times[32]) / 128] };
  }

  /** Steps of AdamW, compiled; the weights are others afterwards, so that those of the checkpoint are gone. */
  async #train(): Promise<{ each: number[]; peakBytes: number }> {
    const { params, config } = this.#loaded;
    const ids = this.#ids(4, this.#sizes.long);
    const input = tensor(ids.flat(), { shape: [4, this.#sizes.long], dtype: "i32", backend: this.#backend });
    this.#model = null;
    const { call, end } = step({ ...params }, input, (params, ids) => llama.loss(params, config, ids, ids), true);
    try {
      resetPeak();
      const each = await this.#times(() => dispose(call()), 3);
      return { each, peakBytes: memory().peak };
    } finally {
      end!();
      input.dispose();
    }
  }

  /** Compares with what PyTorch left. */
  async agreement({ agreement, prompts, long }: Baseline): Promise<Agreement> {
    if (agreement === undefined) throw new Error("PyTorch left no tokens to compare with");
    const { tokens } = await this.#write([prompts[0]], agreement.f32.tokens.length);
    const wanted = await safetensors.read(join(this.#directory, "logits.safetensors"), { backend: this.#backend });
    try {
      const away = async (name: "short" | "long", ids: readonly number[]) => {
        using scores = this.#lastScores([ids]);
        const [got, want] = [await scores.data(), await wanted[name].data()];
        return Array.from(got).reduce((worst, x, i) => Math.max(worst, Math.abs(x - want[i])), 0);
      };
      return {
        ...{ f32: difference(tokens, agreement.f32), bf16: difference(tokens, agreement.bf16) },
        ...{ short: await away("short", prompts[0]), long: await away("long", long[0]) },
      };
    } finally {
      dispose(wanted);
    }
  }

  /** Frees the weights. */
  end(): void {
    if (this.#model !== null) dispose(this.#model.params);
    this.#model = null;
  }
}
