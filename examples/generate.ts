/**
 * Continues a prompt once, for scripts: text to standard output as it comes, or one JSON object at the end.
 *
 *     deno task generate Llama-3.2-1B --prompt "Call me" --max-new-tokens 40
 *     echo "Why is the whale white?" | deno task generate Llama-3.2-1B-Instruct --chat --json
 */
import process from "node:process";
import { text as readAll } from "node:stream/consumers";
import { generate } from "@flashtape/flashtape/nn";
import {
  contextOf,
  endsOf,
  hearInterrupts,
  interruptible,
  modelFlags,
  modelUsage,
  openModel,
  type OpenOptions,
  openOptionsOf,
  printable,
  type Sampling,
  samplingFlags,
  samplingOf,
  samplingUsage,
} from "./model_options.ts";
import { breathe, parseFlags, runProgram, UsageError } from "./program.ts";

const usage = `deno task generate DIR [options]

  --prompt TEXT           what to continue; - or nothing reads it from standard input
  --chat                  the prompt is a message, which the model answers
  --system TEXT           with --chat: what the model is told before
  --json                  one JSON object at the end, in place of text as it comes
${samplingUsage}${modelUsage}`;

/** What was asked for. */
export interface Options extends OpenOptions {
  /** Undefined for standard input. */
  readonly prompt: string | undefined;
  readonly chat: boolean;
  readonly system: string | undefined;
  readonly json: boolean;
  readonly stop: readonly string[];
  readonly sampling: Sampling;
}

/** What `--json` prints. Fields are added, never renamed. */
export interface Result {
  readonly model: string;
  /** What the model read: with `--chat` the whole of it, as its template writes it. */
  readonly prompt: string;
  readonly prompt_tokens: number;
  /** What it wrote. */
  readonly text: string;
  readonly tokens: readonly number[];
  readonly new_tokens: number;
  /** `stop` at an end token or stop text, `length` at the most tokens or the end of the context, else `interrupted`. */
  readonly finish_reason: "stop" | "length" | "interrupted";
  /** The seed to give for the same text again. */
  readonly seed: number;
  readonly backend: string;
  readonly seconds: { readonly load: number; readonly first_token: number; readonly total: number };
  /** From the first token on; 0 when there is but one. */
  readonly tokens_per_second: number;
}

/**
 * The options of a command line.
 * @throws {UsageError} for one that does not exist, or a value that it cannot have
 */
export function readOptions(args: readonly string[]): Options | "help" {
  const text = { type: "string" } as const, flag = { type: "boolean" } as const;
  const own = { prompt: text, chat: flag, system: text, json: flag };
  const { values, positionals } = parseFlags(args, { ...own, ...samplingFlags, ...modelFlags });
  if (values.help) return "help";
  const { prompt, chat = false, system, json = false, stop = [] } = values;
  if (system !== undefined && !chat) throw new UsageError("--system belongs to --chat");
  if (stop.includes("")) throw new UsageError("--stop is a text, got nothing");
  return {
    ...openOptionsOf(values, positionals),
    prompt: prompt === "-" ? undefined : prompt,
    chat,
    system,
    json,
    stop,
    sampling: samplingOf(values),
  };
}

async function main(options: Options): Promise<number> {
  hearInterrupts();
  const { dir, chat, system, json, stop, sampling } = options;
  if (options.prompt === undefined && process.stdin.isTTY) throw new UsageError("give a --prompt, or pipe one in");
  const given = options.prompt ?? (await readAll(process.stdin)).replace(/\r?\n$/, "");
  const opened = await openModel(options), { model, backend } = opened;
  const messages = [...(system === undefined ? [] : [{ role: "system", content: system }]), {
    role: "user",
    content: given,
  }];
  const prompt = chat ? model.tokenizer.applyChatTemplate(messages, { addGenerationPrompt: true }) : given;
  const inputIds = model.tokenizer.encode(prompt, { addSpecialTokens: !chat });
  const seed = sampling.seed ?? crypto.getRandomValues(new Uint32Array(1))[0];
  const ends = endsOf(model);
  const begin = performance.now(), tokens: number[] = [];
  let text = "", first = 0;
  const aborted = await interruptible(async (signal) => {
    const stops = [...stop, ...(chat ? ends : [])];
    for await (const step of generate(model, { ...sampling, seed, inputIds, stop: stops, signal })) {
      first ||= performance.now() - begin;
      tokens.push(step.tokens[0]);
      text += step.text[0];
      if (!json) process.stdout.write(process.stdout.isTTY ? printable(step.text[0]) : step.text[0]);
      await breathe();
    }
    return signal.aborted;
  });
  const total = performance.now() - begin;
  const full = inputIds.length + tokens.length >= contextOf(model);
  const ended = ends.includes(tokens.at(-1) ?? -1) ||
    stop.some((s) => model.tokenizer.decode(tokens, { skipSpecialTokens: true }).includes(s));
  const result: Result = {
    model: dir,
    prompt,
    prompt_tokens: inputIds.length,
    text,
    tokens,
    new_tokens: tokens.length,
    finish_reason: ended ? "stop" : aborted && !full ? "interrupted" : "length",
    seed,
    backend: backend.name,
    seconds: { load: opened.seconds, first_token: first / 1e3, total: total / 1e3 },
    tokens_per_second: tokens.length > 1 ? (tokens.length - 1) / ((total - first) / 1e3) : 0,
  };
  console.log(json ? JSON.stringify(result, null, 2) : "");
  return aborted ? 130 : 0;
}

if (import.meta.main) await runProgram(readOptions, main, usage);
