/** Text from a model, token by token: nothing of a token's way through the model waits for the host. */
import { tensor } from "../../tensor/create.ts";
import type { HostArray } from "../../tensor/dtype.ts";
import { LimitError, UnsupportedError, ValueError } from "../../tensor/errors.ts";
import { slice } from "../../tensor/movement.ts";
import { key as keyOf } from "../../tensor/random.ts";
import { dispose, scope } from "../../tensor/scope.ts";
import type { Tensor } from "../../tensor/tensor.ts";
import type { AttentionAlgorithm } from "../attention.ts";
import { dimensions } from "./config.ts";
import { advance, begin, type Decoding, roundedCapacity } from "./decode.ts";
import type { LlamaParams } from "./model.ts";
import { type PromptOptions, promptRows } from "./prompt.ts";
import { endsOf, samplingOf, type SamplingOptions } from "./sample.ts";
import { RowText } from "./stream.ts";
import type { LlamaModel } from "./weights.ts";

/** Options of {@linkcode generate}. */
export interface GenerateOptions extends PromptOptions, SamplingOptions {
  /** The most tokens to write; the model's own number, else 256. Fewer come where the context ends. */
  readonly maxNewTokens?: number;
  /** Makes draws repeatable; another text at each call when not given. */
  readonly seed?: number;
  /** Ends a row besides the model's own end tokens: texts, which are left out of the text, or ids. */
  readonly stop?: string | number | readonly (string | number)[];
  /** Ends the text early, without an error. */
  readonly signal?: AbortSignal;
  /** `"flash"` when not given. */
  readonly attention?: AttentionAlgorithm;
  /** Room in the key/value cache, prompt and new tokens; as much as they need when not given. */
  readonly capacity?: number;
  /** Makes the cache one of pages of so many positions. */
  readonly pageSize?: number;
}

/** One token of every row. */
export interface GenerateStep {
  /** The tokens, `[B]`. A row that is finished goes on with the pad token. */
  readonly tokens: Int32Array;
  /** What each row's text grows by: whole characters; nothing while a character or a stop string may be under way. */
  readonly text: string[];
}

/** How long the device should be busy between two reads, in milliseconds, and the most tokens of that. */
const busy = 33, mostTokens = 32;

/** Milliseconds that a step of a model took lately, so that its next text need not find out anew. */
const paces = new WeakMap<LlamaParams, number>();

/** Tokens that keep the device busy for a while. */
function paceOf(params: LlamaParams): number {
  const pace = paces.get(params);
  return pace === undefined ? 1 : Math.max(1, Math.min(mostTokens, Math.round(busy / pace)));
}

/**
 * Continues a prompt.
 *
 * @param model from `llama.load`, or parts of your own
 * @returns one step a token; all tensors are freed when it ends, or when its loop is left
 * @throws {ValueError} when an option is out of its range, a prompt is empty or there are several
 * @throws {LimitError} when a prompt leaves no room for a token in the model's context
 * @throws {IndexError} when an id is outside the vocabulary
 *
 * @example
 * ```ts ignore
 * const model = await llama.load("Llama-3.2-1B-Instruct");
 * const messages = [{ role: "user", content: "Why is the whale white?" }];
 * for await (const { text } of generate(model, { messages })) write(text[0]);
 * ```
 */
export async function* generate(
  model: LlamaModel,
  options: GenerateOptions,
): AsyncGenerator<GenerateStep, void, undefined> {
  const { config, params, generationConfig = {} } = model;
  const { vocabulary, maxPositions } = dimensions(config);
  const tokenizer = model.tokenizer?.size === 0 ? undefined : model.tokenizer;
  const sampling = samplingOf(options, generationConfig), ends = endsOf(config, generationConfig);
  const { signal, attention = "flash", seed = crypto.getRandomValues(new Uint32Array(1))[0] } = options;
  const given = [options.stop ?? []].flat();
  const stopTexts = given.filter((x) => typeof x === "string"), stops = [...ends.stops, ...idsOf(given)];
  if (stopTexts.includes("")) throw new ValueError("generate", "a stop text is empty");
  if (stopTexts.length > 0 && tokenizer === undefined) {
    throw new UnsupportedError("generate", "the model has no tokenizer: stop by ids instead of texts");
  }
  const wanted = options.maxNewTokens ?? generationConfig.max_new_tokens ?? 256;
  if (!Number.isSafeInteger(wanted) || wanted < 1) {
    throw new ValueError("generate", `maxNewTokens is a whole number above 0, got ${wanted}`);
  }
  if (!Number.isSafeInteger(seed)) throw new ValueError("generate", `seed is a whole number, got ${seed}`);
  const rows = await promptRows(options, tokenizer, vocabulary);
  const batch = rows.length, length = Math.max(...rows.map((row) => row.length));
  if (length >= maxPositions) {
    throw new LimitError(
      "generate",
      `the prompt has ${length} tokens, the model's context ${maxPositions}: shorten it`,
    );
  }
  const limit = Math.min(wanted, maxPositions - length),
    { capacity = roundedCapacity(length + limit), pageSize } = options;
  if (!Number.isSafeInteger(capacity) || capacity < length + limit) {
    throw new LimitError(
      "generate",
      `the cache has room for ${capacity} tokens, the prompt's ${length} and ${limit} new ones do not fit`,
    );
  }
  if (signal?.aborted) return;

  const texts = rows.map((row) => new RowText(tokenizer, stopTexts, row));
  const finished = rows.map(() => false);
  /** The step that the tokens at one place make. */
  const stepOf = (drawn: (b: number) => number, last: boolean): GenerateStep => {
    const tokens = new Int32Array(batch).fill(ends.pad);
    const text = texts.map((row, b) => {
      if (finished[b]) return "";
      const id = tokens[b] = drawn(b), more = row.push(id);
      finished[b] = more.stopped || stops.includes(id);
      return (last || finished[b]) && !more.stopped ? more.text + row.end() : more.text;
    });
    return { tokens, text };
  };

  const { backend } = params["model.embed_tokens.weight"];
  const decoder = { params, config, attention };
  const choice = scope(() => ({
    ...{ ...sampling, pad: ends.pad, key: keyOf(seed, { backend }) },
    stops: tensor(Int32Array.from(stops), { backend }),
  }));
  let state: Decoding | undefined;
  let queued = 0, taken = 0, chunk = paceOf(params), since = performance.now(), turn = since;
  /** Queues the next tokens, as many as keep the device busy for a while. */
  const queueMore = (count: number) => {
    for (const end = Math.min(limit, queued + count); queued < end; queued++) {
      state = state === undefined
        ? begin(decoder, rows, { capacity, pageSize, pad: ends.pad }, choice)
        : advance(decoder, state, choice);
    }
  };
  try {
    queueMore(1); // the first token comes at once
    while (taken < limit) {
      const count = queued - taken;
      const reading = readNow(state!.ids, length + taken, length + queued);
      const waits = reading instanceof Promise;
      // The host sees what it waits for after it has queued what comes behind: little behind the first token, then ever more,
      // so that the device has more to do than the host has waited for.
      if (waits) queueMore(Math.min(chunk, 2 * count));
      const drawn = await reading, now = performance.now();
      // The first tokens tell nothing: kernels are being compiled.
      if (taken > 1) paces.set(params, (now - since) / count);
      chunk = paceOf(params);
      since = now;
      const steps: GenerateStep[] = [];
      for (let i = 0; i < count && !(i > 0 && finished.every((x) => x)); i++) {
        steps.push(stepOf((b) => drawn[b * count + i], taken + i === limit - 1));
      }
      taken += count;
      const over = taken >= limit || finished.every((x) => x);
      if (!waits && !over && !signal?.aborted) queueMore(chunk);
      for (const step of steps) {
        yield step;
        if (signal?.aborted) return;
      }
      if (over) return;
      if (!waits && performance.now() - turn > 10) { // signals and other work take their turn
        await new Promise((resolve) => setTimeout(resolve, 0));
        turn = performance.now();
      }
      if (signal?.aborted) return;
    }
  } finally {
    dispose([state, choice]);
  }
}

/** The ids from one place to another: at once where the runtime can wait for a device, else with a promise. */
function readNow(ids: Tensor, from: number, to: number): HostArray | Promise<HostArray> {
  const part = slice(ids, [0, from], [ids.shape[0], to]);
  try {
    return part.dataSync();
  } catch (error) {
    if (!(error instanceof UnsupportedError)) throw error;
    return part.data();
  } finally {
    part.dispose();
  }
}

function idsOf(stop: readonly (string | number)[]): number[] {
  const ids = stop.filter((x) => typeof x === "number");
  const wrong = ids.find((id) => !Number.isSafeInteger(id) || id < 0 || id >= 2 ** 31);
  if (wrong !== undefined) throw new ValueError("generate", `a stop id is a whole number of at least 0, got ${wrong}`);
  return ids;
}
