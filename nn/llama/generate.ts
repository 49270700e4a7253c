/** Text from a model, token by token: nothing of a token's way through the model waits for the host. */
import { tensor } from "../../tensor/create.ts";
import { LimitError, UnsupportedError, ValueError } from "../../tensor/errors.ts";
import { reshape, slice } from "../../tensor/movement.ts";
import { key as keyOf } from "../../tensor/random.ts";
import { type SampleState, sampleTokens } from "../../tensor/sample.ts";
import { dispose, scope } from "../../tensor/scope.ts";
import type { Tensor } from "../../tensor/tensor.ts";
import type { AttentionAlgorithm } from "../attention.ts";
import { emptyCache, type KvCache } from "../cache.ts";
import { dimensions } from "./config.ts";
import { forward } from "./model.ts";
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
}

/** One token of every row. */
export interface GenerateStep {
  /** The tokens, `[B]`. A row that is finished goes on with the pad token. */
  readonly tokens: Int32Array;
  /** What each row's text grows by: whole characters; nothing while a character or a stop string may be under way. */
  readonly text: string[];
}

/** Everything on the device between two tokens. */
interface Decoding extends SampleState {
  readonly tokens: Tensor;
  readonly cache: KvCache;
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
  const { signal, attention, seed = crypto.getRandomValues(new Uint32Array(1))[0] } = options;
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
  const limit = Math.min(wanted, maxPositions - length);
  if (signal?.aborted) return;

  const texts = rows.map(() => new RowText(tokenizer, stopTexts));
  const finished = rows.map(() => false);
  /** The step that the tokens at one place make. */
  const stepOf = (drawn: ArrayLike<number>, last: boolean): GenerateStep => {
    const tokens = new Int32Array(batch).fill(ends.pad);
    const text = texts.map((row, b) => {
      if (finished[b]) return "";
      const id = tokens[b] = drawn[b], more = row.push(id);
      finished[b] = more.stopped || stops.includes(id);
      return finished[b] && !more.stopped || (last && !finished[b]) ? more.text + row.end() : more.text;
    });
    return { tokens, text };
  };

  let state: Decoding | undefined;
  const backend = params["model.embed_tokens.weight"].backend;
  const fixed = scope(() => ({
    key: keyOf(seed, { backend }),
    stops: tensor(Int32Array.from(stops), { backend }),
  }));
  const choose = { ...sampling, pad: ends.pad, ...fixed };
  try {
    for (let n = 0; n < limit; n++) {
      state = n === 0 ? begin() : advance(state!, n);
      const drawn = await readTokens(state.tokens);
      const step = stepOf(drawn, n === limit - 1);
      yield step;
      if (signal?.aborted || finished.every((x) => x)) return;
    }
  } finally {
    dispose([state, fixed]);
  }

  function begin(): Decoding {
    return scope(() => {
      const padded = rows.flatMap((row) => [...Array<number>(length - row.length).fill(ends.pad), ...row]);
      const ids = tensor(Int32Array.from(padded), { shape: [batch, length], backend });
      const from = { attentionMask: maskAt(0), cache: emptyCache({ capacity: length + limit }), attention };
      const { logits, cache } = forward(params, config, ids, from);
      const known = rows.flatMap((row) => [
        ...Array<number>(length - row.length).fill(-1),
        ...row,
        ...Array<number>(limit).fill(-1),
      ]);
      const start: SampleState = {
        ids: tensor(Int32Array.from(known), { shape: [batch, length + limit], backend }),
        places: tensor(new Int32Array(batch).fill(length - 1), { backend }),
        finished: tensor(new Int32Array(batch), { backend }),
      };
      return { ...sampleTokens(lastOf(logits), start, choose), cache: cache! };
    });
  }

  function advance({ tokens, cache, ...row }: Decoding, n: number): Decoding {
    return scope(() => {
      const next = forward(params, config, tokens, { attentionMask: maskAt(n), cache, attention });
      tokens.dispose();
      return { ...sampleTokens(lastOf(next.logits), row, choose), cache: next.cache! };
    });
  }

  /** The mask of the prompt and n tokens more, where rows are padded. */
  function maskAt(n: number): Tensor | undefined {
    if (rows.every((row) => row.length === length)) return undefined;
    const seen = rows.flatMap((row) => [
      ...Array<number>(length - row.length).fill(0),
      ...Array<number>(row.length + n).fill(1),
    ]);
    return tensor(Int32Array.from(seen), { shape: [batch, length + n], backend });
  }
}

function idsOf(stop: readonly (string | number)[]): number[] {
  const ids = stop.filter((x) => typeof x === "number");
  const wrong = ids.find((id) => !Number.isSafeInteger(id) || id < 0 || id >= 2 ** 31);
  if (wrong !== undefined) throw new ValueError("generate", `a stop id is a whole number of at least 0, got ${wrong}`);
  return ids;
}

/** The scores after the last place: `[B, V]`. */
function lastOf(logits: Tensor): Tensor {
  const [batch, length, size] = logits.shape;
  return reshape(slice(logits, [0, length - 1, 0], [batch, length, size]), [batch, size]);
}

async function readTokens(tokens: Tensor): Promise<ArrayLike<number>> {
  return await tokens.data();
}
