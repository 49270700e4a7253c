/** What the programs that run a model share: their flags, how a model is opened, and how Ctrl-C ends an answer. */
import { basename, resolve } from "node:path";
import process from "node:process";
import type { Backend } from "@flashtape/flashtape";
import { type GenerateOptions, llama } from "@flashtape/flashtape/nn";
import { deviceOf, type DeviceOptions, deviceUsage, openDevice } from "./device.ts";
import { choiceOf, type FlagValues, isCount, isSeed, numberOf, UsageError } from "./program.ts";
import { duration, ProgressLine, short } from "./progress.ts";

/** Flags that every one of the programs has, and those of them that draw tokens. */
export const modelFlags = {
  backend: { type: "string" },
  provider: { type: "string" },
  dtype: { type: "string" },
  help: { type: "boolean" },
  "no-setup": { type: "boolean" },
} as const;

/** Flags of the programs that write text. */
export const samplingFlags = {
  "max-new-tokens": { type: "string" },
  temperature: { type: "string" },
  "top-k": { type: "string" },
  "top-p": { type: "string" },
  "min-p": { type: "string" },
  "repetition-penalty": { type: "string" },
  seed: { type: "string" },
  stop: { type: "string", multiple: true },
  attention: { type: "string" },
} as const;

/** What {@linkcode modelFlags} do, for a program's help. */
export const modelUsage = `  --dtype T               f32, f16 or bf16; the checkpoint's own when not given
${deviceUsage(26)}  --no-setup              do not install a software adapter where there is none
  --help                  this text
`;

/** What {@linkcode samplingFlags} do. */
export const samplingUsage = `  --max-new-tokens N      the most tokens to write
  --temperature T         below 1 for likelier text, above for wilder, 0 for the likeliest tokens
  --top-k N               draw from so many of the likeliest tokens
  --top-p P               draw from the likeliest tokens that hold this share of the probability
  --min-p P               draw from tokens at least this often as likely as the likeliest
  --repetition-penalty R  above 1 makes tokens less likely that have come before
  --seed N                makes draws repeatable
  --stop TEXT             end where the text would contain this; may be given several times
  --attention A           flash or naive; flash when not given
`;

/** What {@linkcode samplingFlags} say, as `generate` takes it. */
export type Sampling = Pick<
  GenerateOptions,
  "maxNewTokens" | "temperature" | "topK" | "topP" | "minP" | "repetitionPenalty" | "seed" | "attention"
>;

/**
 * What {@linkcode samplingFlags} say.
 * @throws {UsageError} for a value that a flag cannot have
 */
export function samplingOf(values: FlagValues): Sampling {
  const isShare = (n: number) => n >= 0 && n <= 1;
  const given: Sampling = {
    maxNewTokens: numberOf(values, "max-new-tokens", isCount, "a whole number above 0"),
    temperature: numberOf(values, "temperature", (n) => n >= 0 && n < Infinity, "a number from 0"),
    topK: numberOf(values, "top-k", isCount, "a whole number above 0"),
    topP: numberOf(values, "top-p", (n) => n > 0 && isShare(n), "above 0 and at most 1"),
    minP: numberOf(values, "min-p", isShare, "from 0 to 1"),
    repetitionPenalty: numberOf(values, "repetition-penalty", (n) => n > 0 && n < Infinity, "a number above 0"),
    seed: numberOf(values, "seed", isSeed, "a whole number from 0"),
    attention: choiceOf(values, "attention", ["flash", "naive"]),
  };
  const said = Object.entries(given).filter(([, value]) => value !== undefined);
  return Object.fromEntries(said);
}

/** A model with the device that it runs on. */
export interface Opened {
  readonly model: llama.LoadedLlama;
  readonly backend: Backend;
  /** How long loading took. */
  readonly seconds: number;
}

/** Which model to open, and how. */
export interface OpenOptions extends DeviceOptions {
  readonly dir: string;
  readonly dtype: "f32" | "f16" | "bf16" | undefined;
}

/**
 * What {@linkcode modelFlags} and the one word beside the flags say.
 * @throws {UsageError} when there is no such word, or several
 */
export function openOptionsOf(values: FlagValues, positionals: readonly string[]): OpenOptions {
  if (positionals.length === 0) throw new UsageError("name the directory of a model");
  if (positionals.length > 1) {
    throw new UsageError(`one directory, got ${positionals.length}: ${positionals.join(" ")}`);
  }
  return {
    dir: positionals[0],
    ...deviceOf(values),
    dtype: choiceOf(values, "dtype", ["f32", "f16", "bf16"]),
  };
}

/** Opens the device and the model, with a progress line on standard error. */
export async function openModel({ dir, dtype, ...device }: OpenOptions): Promise<Opened> {
  const backend = await openDevice(device);
  const begin = performance.now(), bar = new ProgressLine(process.stderr);
  const model = await llama.load(dir, {
    dtype,
    onProgress: ({ bytes, totalBytes }) => {
      const elapsed = (performance.now() - begin) / 1e3;
      if (elapsed < 0.5) return; // a small model is there before anyone has read the line
      const left = duration(elapsed * (totalBytes - bytes) / bytes);
      const done = bytes / totalBytes;
      bar.update({ done, fields: [`${short(bytes)}B of ${short(totalBytes)}B`, `${left} left`, `loading ${dir}`] });
    },
  });
  bar.clear();
  return { model, backend, seconds: (performance.now() - begin) / 1e3 };
}

/** `llama-a: 131k parameters, bf16, context 512, on webgpu (NVIDIA H200)`. */
export function describe(dir: string, { model, backend }: Opened): string {
  const tensors = Object.values(model.params), count = tensors.reduce((sum, x) => sum + x.size, 0);
  const types = [...new Set(tensors.map((x) => x.dtype))].join(" and ");
  return `${basename(resolve(dir))}: ${short(count)} parameters, ${types}, context ${contextOf(model)}, ` +
    `on ${backend.name} (${backend.description})`;
}

/** How many tokens the model can see. */
export function contextOf({ config }: llama.LlamaModel): number {
  return config.max_position_embeddings ?? 2048;
}

/** The ids that end a text: the model's own, and those that end a turn of a Llama 3 chat. */
export function endsOf({ config, generationConfig, tokenizer }: llama.LoadedLlama): number[] {
  const own = [generationConfig.eos_token_id ?? config.eos_token_id ?? []].flat() as number[];
  const turns = ["<|eot_id|>", "<|eom_id|>"].map((token) => tokenizer.idOf(token)).filter((id) => id !== undefined);
  return [...new Set([...own, ...turns])];
}

/** Text for a terminal: control characters, which could do more than be read, are shown as signs. */
export function printable(text: string): string {
  return text.replace(/(?![\n\t])\p{Cc}/gu, (c) => {
    const code = c.charCodeAt(0);
    return code < 0x20 ? String.fromCharCode(0x2400 + code) : code === 0x7f ? "\u2421" : "\uFFFD";
  });
}

let working: AbortController | null = null, interruptedAt = -Infinity;

/** Runs `f`, which Ctrl-C ends early. Where nothing runs, or what runs does not end, Ctrl-C ends the program. */
export async function interruptible<T>(f: (signal: AbortSignal) => Promise<T>): Promise<T> {
  const controller = working = new AbortController();
  try {
    return await f(controller.signal);
  } finally {
    working = null;
  }
}

/** Ends what {@linkcode interruptible} runs at Ctrl-C. */
export function hearInterrupts(): void {
  process.on("SIGINT", () => {
    const now = performance.now(), again = now - interruptedAt < 500;
    interruptedAt = now;
    if (again) return; // a terminal and the task runner may both pass one Ctrl-C on
    if (working === null || working.signal.aborted) process.exit(130);
    working.abort();
  });
}
