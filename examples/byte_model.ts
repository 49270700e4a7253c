/** A byte-level Llama: its sizes, its training step, its score on held-out text, and how it writes. */
import {
  add,
  arange,
  argmax,
  compile,
  type Compiled,
  dispose,
  div,
  foldIn,
  getBackend,
  greaterEqual,
  key,
  log,
  memory,
  neg,
  randint,
  resetPeak,
  scope,
  slice,
  split,
  take,
  type Tensor,
  tensor,
  topK,
  uniform,
  valueAndGrad,
  where,
} from "@flashtape/flashtape";
import {
  adamw,
  type AdamwState,
  type AttentionAlgorithm,
  clipGradNorm,
  cosineSchedule,
  emptyCache,
  type KvCache,
  llama,
} from "@flashtape/flashtape/nn";

/** Parameters by name. */
export type Params = Record<string, Tensor>;

/** A model, the batches that it is trained with, and how fast. */
export interface Size {
  readonly name: string;
  readonly layers: number;
  readonly hidden: number;
  readonly heads: number;
  readonly kvHeads: number;
  readonly context: number;
  readonly batch: number;
  readonly learningRate: number;
  /** The larger the model and the more often it will read the book, the more it would learn by heart. */
  readonly dropout: number;
  /** A device that cannot train on so many bytes in the time is better off with a smaller model. */
  readonly worth: number;
}

/** The models that the demo chooses from, smallest first. */
export const sizes: readonly Size[] = [
  {
    name: "tiny",
    layers: 2,
    hidden: 64,
    heads: 4,
    kvHeads: 2,
    context: 128,
    batch: 4,
    learningRate: 1e-2,
    dropout: 0,
    worth: 0,
  },
  {
    name: "small",
    layers: 4,
    hidden: 128,
    heads: 4,
    kvHeads: 2,
    context: 256,
    batch: 8,
    learningRate: 4e-3,
    dropout: 0,
    worth: 1e6,
  },
  {
    name: "medium",
    layers: 6,
    hidden: 256,
    heads: 8,
    kvHeads: 4,
    context: 256,
    batch: 32,
    learningRate: 2e-3,
    dropout: 0.2,
    worth: 4e6,
  },
  {
    name: "large",
    layers: 8,
    hidden: 512,
    heads: 8,
    kvHeads: 4,
    context: 512,
    batch: 32,
    learningRate: 1e-3,
    dropout: 0.3,
    worth: 2e7,
  },
];

/** The model's `config.json`. */
export function configOf(size: Size): llama.LlamaConfig {
  return {
    architectures: ["LlamaForCausalLM"],
    model_type: "llama",
    vocab_size: 256,
    hidden_size: size.hidden,
    intermediate_size: Math.round(size.hidden * 8 / 3 / 32) * 32,
    num_hidden_layers: size.layers,
    num_attention_heads: size.heads,
    num_key_value_heads: size.kvHeads,
    head_dim: size.hidden / size.heads,
    max_position_embeddings: size.context,
    rms_norm_eps: 1e-5,
    rope_theta: 10_000,
    hidden_act: "silu",
    attention_bias: false,
    mlp_bias: false,
    tie_word_embeddings: true,
    initializer_range: 0.02,
    dtype: "float32",
  };
}

/** The number of parameters of a config. */
export function countParameters(config: llama.LlamaConfig): number {
  return Object.values(llama.parameterShapes(config)).reduce((sum, shape) => sum + shape.reduce((a, b) => a * b, 1), 0);
}

/** Multiplications and additions for forward and backward over sequences of a length. */
export function trainingFlops(config: llama.LlamaConfig, batch: number, length: number): number {
  const perToken = 6 * countParameters(config) + 12 * config.num_hidden_layers * config.hidden_size * length;
  return batch * length * perToken;
}

/** What a step takes over and gives back. */
interface Training {
  readonly params: Params;
  readonly state: AdamwState;
}

/** A model in training, on random places of a text. */
export class Trainer implements Disposable {
  readonly config: llama.LlamaConfig;
  /** Steps done. */
  steps = 0;
  #now: Training;
  readonly #key: Tensor;
  readonly #step: Compiled<[now: Training, done: Tensor], Training & { readonly loss: Tensor }>;

  /** @param text bytes as i32 `[n]` */
  constructor(readonly size: Size, text: Tensor, seed: number) {
    const { batch, context, learningRate, dropout } = size;
    const config = this.config = configOf(size);
    this.#key = key(seed);
    // The rate follows the share of the work that is done, since the number of steps is not known.
    const rate = cosineSchedule({ learningRate, minLearningRate: learningRate / 20, warmupSteps: 0.02, totalSteps: 1 });
    const optimizer = (done: Tensor) =>
      adamw({
        learningRate: () => rate(done),
        betas: [0.9, 0.95],
        weightDecay: 0.1,
        decays: (_, x) => x.rank > 1,
      });
    this.#now = scope(() => {
      const params = llama.init(foldIn(this.#key, 0), config);
      return { params, state: optimizer(this.#key).init(params) };
    });
    // Recorded at the first call and replayed from then on: what changes comes in as tensors.
    this.#step = compile(({ params, state }, done) => {
      const [places, drops] = split(foldIn(this.#key, state.step));
      const starts = randint(places, [batch, 1], { max: text.size - context + 1 });
      const ids = take(text, add(starts, arange(context))); // [batch, context]
      const drop = dropout === 0 ? undefined : { p: dropout, key: drops };
      const [loss, grads] = valueAndGrad((p: Params) => llama.loss(p, config, ids, ids, { dropout: drop }))(params);
      return { loss, ...optimizer(done).update(params, clipGradNorm(grads, 1).grads, state) };
    });
  }

  /** The parameters now; a step consumes them and puts new ones in their place. */
  get params(): Params {
    return this.#now.params;
  }

  /** Bytes that one step reads. */
  get bytesPerStep(): number {
    return this.size.batch * this.size.context;
  }

  /**
   * One step.
   * @param done the share of the training that is over, 0 to 1
   * @returns the loss in nats
   */
  step(done: number): Tensor {
    using at = tensor(done);
    const { loss, ...next } = this.#step(this.#now, at);
    this.#now = next;
    this.steps++;
    return loss;
  }

  [Symbol.dispose](): void {
    dispose([this.#now, this.#key]);
    this.#step[Symbol.dispose]();
  }
}

/** Held-out text as windows of the model's context, eight batches at most. */
export function windowsOf(bytes: Uint8Array, { context, batch }: Size): Tensor {
  const rows = Math.min(8 * batch, Math.floor(bytes.length / context));
  return tensor(bytes.subarray(0, rows * context), { shape: [rows, context], dtype: "i32" });
}

/** Bits that the model needs for a byte of the windows. */
export async function bitsPerByte(
  params: Params,
  config: llama.LlamaConfig,
  windows: Tensor,
  batch: number,
): Promise<number> {
  const [rows, context] = windows.shape;
  let nats = 0;
  for (let at = 0; at < rows; at += batch) {
    const end = Math.min(rows, at + batch);
    using loss = scope(() => {
      const ids = slice(windows, [at, 0], [end, context]);
      return llama.loss(params, config, ids, ids);
    });
    nats += (end - at) * await loss.item();
  }
  return nats / rows / Math.LN2;
}

/** What {@linkcode write} is told. */
export interface WriteOptions {
  readonly prompt: string;
  /** Bytes to write. */
  readonly length: number;
  readonly seed: number;
  /** Below 1 bolder guesses lose, above 1 they win. */
  readonly temperature?: number;
  /** Only so many of the likeliest bytes are drawn from. */
  readonly candidates?: number;
}

/** Bytes that the model writes after a prompt, one by one, through a key/value cache. */
export async function* write(
  params: Params,
  config: llama.LlamaConfig,
  { prompt, length, seed, temperature = 0.8, candidates = 40 }: WriteOptions,
): AsyncGenerator<number> {
  const context = config.max_position_embeddings!;
  const text = [...new TextEncoder().encode(prompt)];
  using start = key(seed);
  let cache: KvCache = emptyCache();
  let ids = tensor([text.slice(-context)], { dtype: "i32" });
  try {
    for (let i = 0; i < length; i++) {
      const next = scope(() => {
        const { logits, cache: grown } = llama.forward(params, config, ids, { cache });
        const scores = div(slice(logits, [0, logits.shape[1] - 1, 0], [1, logits.shape[1], 256]), temperature); // [1, 1, 256]
        const { values } = topK(scores, candidates);
        const least = slice(values, [0, 0, candidates - 1], [1, 1, candidates]);
        // The largest of scores plus Gumbel noise is a draw from their softmax (Gumbel 1954).
        const noise = neg(log(neg(log(uniform(foldIn(start, i), [1, 1, 256])))));
        const byte = argmax(where(greaterEqual(scores, least), add(scores, noise), -Infinity), { axis: -1 });
        return { byte, cache: grown! };
      });
      cache = next.cache;
      ids.dispose();
      ids = next.byte; // [1, 1]
      const byte = await ids.item();
      text.push(byte);
      yield byte;
      if (cache.length === context) { // full: begin again from the last half of it
        dispose([ids, cache.layers]);
        cache = emptyCache();
        ids = tensor([text.slice(-context / 2)], { dtype: "i32" });
      }
    }
  } finally {
    dispose([ids, cache.layers]);
  }
}

/** What one training step took. */
export interface StepCost {
  readonly attention: AttentionAlgorithm;
  /** In nats. */
  readonly loss: number;
  /** Median of the runs. */
  readonly seconds: number;
  /** Bytes beyond those that were held before. */
  readonly peakBytes: number;
}

/** The cost of forward and backward over one sequence. */
export async function costOf(
  params: Params,
  config: llama.LlamaConfig,
  bytes: Uint8Array,
  attention: AttentionAlgorithm,
): Promise<StepCost> {
  using ids = tensor(bytes, { shape: [1, bytes.length], dtype: "i32" });
  const stretched = { ...config, max_position_embeddings: bytes.length };
  using step = compile((params: Params) =>
    valueAndGrad((p: Params) => llama.loss(p, stretched, ids, ids, { attention }))(params)
  );
  const run = async () => {
    const begin = performance.now();
    const [loss, grads] = step(params);
    dispose(grads);
    const value = await loss.item(); // waits for what was queued before, the gradients too
    loss.dispose();
    return { value, seconds: (performance.now() - begin) / 1e3 };
  };
  const before = memory().current;
  resetPeak();
  const { value } = await run(); // the first run also records and compiles
  const peakBytes = memory().peak - before;
  const times = [await run(), await run(), await run()].map((r) => r.seconds).sort((a, b) => a - b);
  return { attention, loss: value, seconds: times[1], peakBytes };
}

/**
 * A length at which attention matters, and at which a naive step still fits: it holds the scores, and what becomes of them,
 * for every head of every layer. How much memory there is cannot be asked; a fast device is taken to have more.
 */
export function longLength(config: llama.LlamaConfig, flopsPerSecond: number, most: number): number {
  const { num_attention_heads: heads, num_hidden_layers: layers, max_position_embeddings: context = 128 } = config;
  const room = flopsPerSecond > 5e12 ? 8e9 : 1.5e9;
  let length = context;
  for (;;) {
    const next = 2 * length;
    const scores = heads * next ** 2 * 4;
    const fits = scores <= getBackend().capabilities.maxBinding && 1.7 * layers * scores <= room;
    if (next > most || next > 8192 || !fits || trainingFlops(config, 1, next) / flopsPerSecond > 2) return length;
    length = next;
  }
}
