/**
 * Decoding on the device: what a text is between two tokens, its beginning from a prompt, and the step from one token to the
 * next, which is recorded once and replayed. How many keys there are is on the device, so one recording serves all lengths
 * that a cache has room for.
 */
import { compile, type Compiled } from "../../tensor/compile.ts";
import { tensor } from "../../tensor/create.ts";
import { reshape, slice } from "../../tensor/movement.ts";
import { type SampleParams, type SampleState, sampleTokens } from "../../tensor/sample.ts";
import { dispose, scope } from "../../tensor/scope.ts";
import type { Tensor } from "../../tensor/tensor.ts";
import type { AttentionAlgorithm } from "../attention.ts";
import { emptyCache, type KvCache } from "../cache.ts";
import type { LlamaConfig } from "./config.ts";
import { forward, type LlamaParams } from "./model.ts";

/** Everything on the device between two tokens. A step consumes it. */
export interface Decoding extends SampleState {
  /** The last tokens, i32 `[B, 1]`; the cache holds all before them, `places` of each row. */
  readonly tokens: Tensor;
  readonly cache: KvCache;
}

/** How tokens are chosen. */
export interface Choice extends SampleParams {
  /** u32 [2] */
  readonly key: Tensor;
  /** i32 `[E]` */
  readonly stops: Tensor;
}

/** The model that decodes. */
export interface Decoder {
  readonly params: LlamaParams;
  readonly config: LlamaConfig;
  readonly attention: AttentionAlgorithm;
}

/** Where the tokens and keys of a text go. */
export interface Room {
  /** Positions of the cache, and of the ids. */
  readonly capacity: number;
  /** Positions of a page; not paged when not given. */
  readonly pageSize?: number;
  readonly pad: number;
}

/** Tokens of a prompt that go through the model at a time: what they take between layers stays within one binding. */
const promptTokens = 4096;

/** A capacity that holds a length: few different ones, so that recordings and buffers are shared. */
export function roundedCapacity(length: number): number {
  const above = 2 ** Math.ceil(Math.log2(Math.max(128, length)));
  return length <= 0.75 * above && above > 128 ? 0.75 * above : above;
}

/** The first token after prompts, which may have different lengths. */
export function begin(model: Decoder, rows: readonly (readonly number[])[], room: Room, choice: Choice): Decoding {
  const { params, config, attention } = model, { capacity, pageSize, pad } = room;
  const { backend } = choice.key, batch = rows.length, length = Math.max(...rows.map((row) => row.length));
  const i32 = (values: Int32Array, shape: number[]) => tensor(values, { shape, backend });
  const filled = (fill: number, width: number) => {
    const data = new Int32Array(batch * width).fill(fill);
    rows.forEach((row, b) => data.set(row, b * width + length - row.length));
    return i32(data, [batch, width]);
  };
  return scope(() => {
    const pads = Int32Array.from(rows, (row) => length - row.length);
    const leftpad = pads.some((n) => n > 0) ? i32(pads, [batch]) : undefined;
    let cache = emptyCache({ capacity, pageSize, leftpad });
    const ids = filled(pad, length), count = Math.max(1, Math.floor(promptTokens / batch));
    let scores: Tensor | undefined;
    for (let from = 0; from < length; from += count) {
      const part = slice(ids, [0, from], [batch, Math.min(length, from + count)]);
      const next = forward(params, config, part, { cache, attention, logitsToKeep: 1 });
      scores?.dispose();
      scores = next.logits;
      cache = next.cache!;
    }
    const state = {
      ids: filled(-1, capacity),
      places: i32(new Int32Array(batch).fill(length - 1), [batch]),
      finished: i32(new Int32Array(batch), [batch]),
    };
    return { ...choose(scores!, state, choice), cache: { ...cache, length: 0 } };
  });
}

function choose(logits: Tensor, state: SampleState, choice: Choice): SampleState & { readonly tokens: Tensor } {
  return sampleTokens(reshape(logits, [logits.shape[0], logits.shape[2]]), state, choice);
}

type Step = (params: LlamaParams, state: Decoding, choice: Choice, attention: AttentionAlgorithm) => Decoding;

const steps = new WeakMap<LlamaParams, Map<string, Compiled<Parameters<Step>, Decoding>>>();

/** The recorded steps of a model: they are kept as long as its parameters object is, one for each config by what it says. */
export function stepOf({ params, config }: Pick<Decoder, "params" | "config">): Compiled<Parameters<Step>, Decoding> {
  let known = steps.get(params);
  if (known === undefined) steps.set(params, known = new Map());
  const said = JSON.stringify(config); // callers write their own beside a model's, and write it anew for each text
  let step = known.get(said);
  if (step === undefined) {
    step = compile((params, { tokens, cache, ...state }, choice, attention) => {
      const here = { ...cache, lengths: state.places };
      const next = forward(params, config, tokens, { cache: here, attention, logitsToKeep: 1 });
      return { ...choose(next.logits, state, choice), cache: { ...cache, layers: next.cache!.layers } };
    });
    known.set(said, step);
  }
  return step;
}

/** The next token of every row. Consumes the state. */
export function advance(model: Decoder, state: Decoding, choice: Choice): Decoding {
  const next = stepOf(model)(model.params, state, choice, model.attention);
  dispose(state.tokens);
  return next;
}
