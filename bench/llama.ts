/**
 * A Llama checkpoint beside PyTorch: `deno run -A bench/llama.ts DIR` makes one of Llama-3.2-1B's shape with random weights
 * where torch and transformers are, times both on it, compares tokens and scores, and prints one table.
 */
import { type Backend, init, type Tensor, tensor } from "@flashtape/flashtape";
import { generate, llama, safetensors } from "@flashtape/flashtape/nn";
import { existsSync, readFileSync } from "node:fs";
import { parseArgs } from "node:util";

const script = new URL("./baselines/llama.py", import.meta.url);

/** Greedy tokens, and by how much each was ahead of the next best. */
interface Greedy {
  readonly tokens: readonly number[];
  readonly margins: readonly number[];
}

/** What `baselines/llama.py` leaves. */
interface Baseline {
  readonly torch: string;
  readonly device: string;
  /** New tokens of a timed text. */
  readonly new: number;
  readonly prompts: readonly (readonly number[])[];
  readonly long: readonly number[];
  readonly load_seconds: number;
  readonly bf16: Greedy;
  readonly f32: Greedy;
  readonly speed: Readonly<Record<string, Readonly<Record<string, number>>>>;
}

/** What was found of one checkpoint. */
export interface LlamaFigures {
  readonly loadSeconds: number;
  /** Tokens a second, first token and prompt included, of a text after a short prompt; by rows. */
  readonly tokensPerSecond: Readonly<Record<1 | 2, number>>;
  readonly firstTokenMs: number;
  readonly prefillMs: number;
  /** Milliseconds a token with so many tokens before it. */
  readonly contexts: Readonly<Record<number, number>>;
  /** The first token that differs from one whose margin is above 0.01, or null. */
  readonly differs: Readonly<Record<"f32" | "bf16", { readonly place: number; readonly margin: number } | null>>;
  /** The largest distance of a score from that of the same weights in f32, after the short prompt and the long one. */
  readonly scores: Readonly<Record<"short" | "long", number>>;
}

const median = (times: readonly number[]): number => times.toSorted((a, b) => a - b)[times.length >> 1];

/** The first token that is another one, up to where the baseline itself was undecided. */
function difference(got: readonly number[], { tokens, margins }: Greedy): { place: number; margin: number } | null {
  const place = tokens.findIndex((id, i) => id !== got[i]);
  return place < 0 || margins[place] <= 1e-2 ? null : { place, margin: margins[place] };
}

/**
 * Measures a checkpoint that `baselines/llama.py` has measured before.
 * @param options.contexts tokens before those that are timed
 */
export async function benchLlama(
  backend: Backend,
  directory: string,
  { repeats = 5, contexts = [1024, 32768] }: { readonly repeats?: number; readonly contexts?: readonly number[] } = {},
): Promise<LlamaFigures> {
  const baseline: Baseline = JSON.parse(readFileSync(`${directory}/baseline.json`, "utf8"));
  const start = performance.now();
  const model = await llama.load(directory);
  await backend.synchronize();
  const loadSeconds = (performance.now() - start) / 1e3;
  const greedy = { temperature: 0, stop: [] } as const;
  const plain = { ...model, generationConfig: {}, config: { ...model.config, eos_token_id: null } };

  /** One text: its tokens, and when each came. */
  const write = async (inputIds: readonly (readonly number[])[], maxNewTokens: number) => {
    const begun = performance.now(), tokens: number[] = [], times: number[] = [];
    for await (const step of generate(plain, { ...greedy, inputIds, maxNewTokens })) {
      tokens.push(step.tokens[0]);
      times.push(performance.now() - begun);
    }
    return { tokens, times };
  };
  const timed = async (prompts: readonly (readonly number[])[], count: number) => {
    await write(prompts, count); // compiles
    const runs: Awaited<ReturnType<typeof write>>[] = [];
    for (let i = 0; i < repeats; i++) runs.push(await write(prompts, count));
    return {
      tokens: runs[0].tokens,
      ms: median(runs.map(({ times }) => times.at(-1)!)),
      first: median(runs.map((r) => r.times[0])),
    };
  };
  const one = await timed(baseline.prompts.slice(0, 1), baseline.new),
    two = await timed(baseline.prompts, baseline.new);

  const lastScores = (ids: readonly number[]): Tensor =>
    llama.forward(model.params, model.config, tensor([...ids], { shape: [1, ids.length], dtype: "i32", backend }), {
      logitsToKeep: 1,
    }).logits;
  const prefill: number[] = [];
  for (let i = 0; i <= repeats; i++) {
    const begun = performance.now();
    using scores = lastScores(baseline.long);
    await backend.synchronize();
    if (i > 0) prefill.push(performance.now() - begun);
    scores.dispose();
  }
  const wanted = await safetensors.read(`${directory}/logits.safetensors`, { backend });
  const away = async (name: "short" | "long", ids: readonly number[]) => {
    using scores = lastScores(ids);
    const [got, want] = [await scores.data(), await wanted[name].data()];
    return Array.from(got).reduce((worst, x, i) => Math.max(worst, Math.abs(x - want[i])), 0);
  };
  const scores = { short: await away("short", baseline.prompts[0]), long: await away("long", baseline.long) };

  const found: Record<number, number> = {};
  for (const length of contexts) {
    const ids = Array.from({ length }, (_, i) => baseline.long[i % baseline.long.length]);
    const { times } = await write([ids], 161);
    found[length] = (times[160] - times[32]) / 128;
  }
  for (const x of [...Object.values(model.params), ...Object.values(wanted)]) x.dispose();
  return {
    loadSeconds,
    tokensPerSecond: { 1: baseline.new / one.ms * 1e3, 2: 2 * baseline.new / two.ms * 1e3 },
    firstTokenMs: one.first,
    prefillMs: median(prefill),
    contexts: found,
    differs: { f32: difference(one.tokens, baseline.f32), bf16: difference(one.tokens, baseline.bf16) },
    scores,
  };
}

/** The table of both, as lines. */
export function llamaTable(
  figures: LlamaFigures,
  { speed, load_seconds: load }: Pick<Baseline, "speed" | "load_seconds">,
): string[] {
  const ways = Object.keys(speed);
  const line = (name: string, own: string, key: string, digits: number) =>
    name.padEnd(44) + own.padStart(12) +
    ways.map((way) => (speed[way][key]?.toFixed(digits) ?? "").padStart(12)).join("");
  const { tokensPerSecond: rate, contexts, differs } = figures;
  const agrees = (name: "f32" | "bf16") =>
    differs[name] === null
      ? "equal"
      : `token ${differs[name].place} differs, margin ${differs[name].margin.toFixed(3)}`;
  return [
    "".padEnd(44) + "flashtape".padStart(12) + ways.map((way) => way.padStart(12)).join(""),
    line("tokens/s, batch 1", rate[1].toFixed(0), "tokens_per_second_batch_1", 0),
    line("tokens/s, batch 2", rate[2].toFixed(0), "tokens_per_second_batch_2", 0),
    line("first token, ms", figures.firstTokenMs.toFixed(1), "first_token_ms", 1),
    line("prompt of 1,024 tokens, ms", figures.prefillMs.toFixed(1), "prefill_1024_ms", 1),
    "load, s".padEnd(44) + figures.loadSeconds.toFixed(1).padStart(12) + load.toFixed(1).padStart(12),
    ...Object.entries(contexts).map(([length, ms]) =>
      `tokens/s with ${Number(length).toLocaleString("en")} before`.padEnd(44) + (1e3 / ms).toFixed(0).padStart(12)
    ),
    `greedy tokens where the margin is above 0.01: ${agrees("f32")} (f32), ${agrees("bf16")} (bf16)`,
    `scores: at most ${figures.scores.short.toExponential(1)} from f32 after the short prompt, ${
      figures.scores.long.toExponential(1)
    } after the long one`,
  ];
}

if (import.meta.main) {
  const { values, positionals } = parseArgs({
    allowPositionals: true,
    options: { python: { type: "string", default: "python3" }, static: { type: "boolean", default: false } },
  });
  if (positionals.length !== 1) {
    console.error("Usage: deno run -A bench/llama.ts DIR [--python python3] [--static]");
    Deno.exit(2);
  }
  const [directory] = positionals;
  if (!existsSync(`${directory}/baseline.json`)) {
    const args = [script.pathname, directory, ...(values.static ? ["--static"] : [])];
    const { success } = await new Deno.Command(values.python, { args, stdout: "inherit", stderr: "inherit" }).output();
    if (!success) Deno.exit(1);
  }
  const backend = await init({ backend: "webgpu" });
  const figures = await benchLlama(backend, directory);
  const baseline: Baseline = JSON.parse(readFileSync(`${directory}/baseline.json`, "utf8"));
  console.log(`${backend.description}, Deno ${Deno.version.deno}; ${baseline.device}, PyTorch ${baseline.torch}\n`);
  console.log(llamaTable(figures, baseline).join("\n"));
  Deno.exit();
}
