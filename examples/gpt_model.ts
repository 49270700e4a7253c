/** A GPT over bytes: the model, its training, and checkpoints from which training goes on as if it had never stopped. */
import {
  add,
  arange,
  argmax,
  cast,
  checkpoint,
  compile,
  type Compiled,
  dispose,
  div,
  type DType,
  foldIn,
  gelu,
  key,
  log,
  matmul,
  neg,
  ones,
  randint,
  reshape,
  scope,
  slice,
  split,
  sub,
  take,
  type Tensor,
  tensor,
  uniform,
  valueAndGrad,
  zeros,
} from "@flashtape/flashtape";
import {
  adamw,
  type AdamwState,
  clipGradNorm,
  cosineSchedule,
  dropout,
  embedding,
  flatten,
  layerNorm,
  linear,
  multiHeadAttention,
  nextTokenLoss,
  normal,
  safetensors,
  unflatten,
} from "@flashtape/flashtape/nn";

/** Parameters by name. */
export type Params = Record<string, Tensor>;

/** The model, and how it is trained. A checkpoint holds it. */
export interface GptConfig {
  readonly layers: number;
  readonly heads: number;
  readonly width: number;
  /** Bytes that it sees. */
  readonly context: number;
  readonly batch: number;
  readonly dropout: number;
  readonly learningRate: number;
  /** Over which the learning rate comes down. */
  readonly steps: number;
  readonly seed: number;
  /** What activations are stored in; parameters and optimiser state are f32. */
  readonly dtype: DType;
  /** Keeps only what enters each block, and computes the block again on the way back. */
  readonly checkpoint: boolean;
}

const vocabulary = 256;

/** Fresh parameters (Radford et al. 2019): normal by 0.02, less for layers that write to the residual stream. */
export function init(seed: Tensor, { layers, width, context }: GptConfig): Params {
  const params: Params = {};
  const weight = (name: string, shape: number[], std = 0.02) => {
    params[name] = normal(foldIn(seed, Object.keys(params).length), shape, { std });
  };
  const norm = (name: string) => {
    params[`${name}.weight`] = ones([width]);
    params[`${name}.bias`] = zeros([width]);
  };
  weight("bytes.weight", [vocabulary, width]);
  weight("places.weight", [context, width]);
  for (let i = 0; i < layers; i++) {
    norm(`blocks.${i}.norm1`);
    for (const part of ["q", "k", "v"]) weight(`blocks.${i}.${part}.weight`, [width, width]);
    weight(`blocks.${i}.o.weight`, [width, width], 0.02 / Math.sqrt(2 * layers));
    norm(`blocks.${i}.norm2`);
    weight(`blocks.${i}.up.weight`, [4 * width, width]);
    weight(`blocks.${i}.down.weight`, [width, 4 * width], 0.02 / Math.sqrt(2 * layers));
  }
  norm("norm");
  return params;
}

/** What the last layer sees: [B, S] ids → [B, S, width]. With a key some of it is dropped. */
export function hidden(params: Params, config: GptConfig, ids: Tensor, key?: Tensor): Tensor {
  const { layers, heads, dropout: p, dtype } = config;
  const drop = (x: Tensor, place: number) =>
    p === 0 || key === undefined ? x : dropout(x, { p, key: foldIn(key, place) });
  const at = (name: string) => ({ weight: params[`${name}.weight`], bias: params[`${name}.bias`] });
  const block = (x: Tensor, i: number) => {
    const part = (name: string) => at(`blocks.${i}.${name}`);
    const attended = layerNorm(part("norm1"), x); // [B, S, width]
    const { out } = multiHeadAttention({ q: part("q"), k: part("k"), v: part("v"), o: part("o") }, attended, { heads });
    x = add(x, drop(out, 2 * i));
    const wide = gelu(linear(part("up"), layerNorm(part("norm2"), x)), { approximate: "tanh" }); // [B, S, 4·width]
    return add(x, drop(linear(part("down"), wide), 2 * i + 1));
  };
  const places = slice(params["places.weight"], [0, 0], [ids.shape[1], config.width]); // [S, width]
  let x = cast(drop(add(embedding(at("bytes"), ids), places), 2 * layers), dtype);
  for (let i = 0; i < layers; i++) x = config.checkpoint ? checkpoint((x: Tensor) => block(x, i))(x) : block(x, i);
  return layerNorm(at("norm"), x);
}

/** Parameters as the model computes with them. */
function stored(params: Params, { dtype }: GptConfig): Params {
  return Object.fromEntries(Object.entries(params).map(([name, x]) => [name, cast(x, dtype)]));
}

/** Mean nats that the next byte costs, for ids [B, S]. */
export function loss(params: Params, config: GptConfig, ids: Tensor, key?: Tensor): Tensor {
  const own = stored(params, config);
  return nextTokenLoss({ weight: own["bytes.weight"] }, hidden(own, config, ids, key), ids);
}

/** All that training goes on from; the step count is in the optimiser's state. */
type State = {
  readonly params: Params;
  readonly optimizer: AdamwState;
  /** What batches and dropped elements are drawn from. */
  readonly key: Tensor;
};

/** A GPT in training. */
export class Training implements Disposable {
  readonly config: GptConfig;
  /** Steps done. */
  steps: number;
  #state: State;
  readonly #step: Compiled<[params: Params, optimizer: AdamwState, key: Tensor], Omit<State, "key"> & { loss: Tensor }>;
  readonly #loss: Compiled<[params: Params, ids: Tensor], Tensor>;
  readonly #next: Compiled<[params: Params, ids: Tensor, last: Tensor, key: Tensor, heat: Tensor], Tensor>;

  private constructor(config: GptConfig, text: Tensor, state: State, steps: number) {
    const { batch, context } = config;
    this.config = config;
    this.steps = steps;
    this.#state = state;
    const optimizer = optimizerOf(config);
    this.#step = compile((params, state, key) => {
      const [places, drops] = split(foldIn(key, state.step)); // so that a step is the same whenever it is done
      const starts = randint(places, [batch, 1], { max: text.size - context + 1 });
      const ids = take(text, add(starts, arange(context))); // [batch, context]
      const [value, grads] = valueAndGrad((p: Params) => loss(p, config, ids, drops))(params);
      const next = optimizer.update(params, clipGradNorm(grads, 1).grads, state);
      return { loss: value, params: next.params, optimizer: next.state };
    });
    this.#loss = compile((params, ids) => loss(params, config, ids));
    this.#next = compile((params, ids, last, key, heat) => {
      const own = stored(params, config);
      const here = take(reshape(hidden(own, config, ids), [context, config.width]), last); // [1, width]
      const scores = div(cast(matmul(here, own["bytes.weight"], { transposeB: true }), "f32"), heat); // [1, 256]
      // The largest of scores plus Gumbel noise is a draw from their softmax (Gumbel 1954).
      return argmax(sub(scores, log(neg(log(uniform(key, [1, vocabulary]))))), { axis: -1 });
    });
  }

  /** A fresh model. */
  static start(config: GptConfig, text: Tensor): Training {
    return new Training(config, text, fresh(config), 0);
  }

  /**
   * Training as a checkpoint left it.
   * @param changes what is to be otherwise from now on: more steps, a smaller batch
   */
  static async resume(
    path: string,
    text: Tensor,
    changes: Partial<Pick<GptConfig, "steps" | "batch" | "learningRate" | "dropout">> = {},
  ): Promise<Training> {
    const { metadata } = await safetensors.readHeader(path);
    const known = Object.fromEntries(Object.entries(changes).filter(([, value]) => value !== undefined));
    const config: GptConfig = { ...JSON.parse(metadata.config), ...known };
    const like = fresh(config), state = unflatten(await safetensors.read(path), like);
    dispose(like);
    return new Training(config, text, state, await state.optimizer.step.item());
  }

  /** Writes all that training goes on from. */
  async save(path: string): Promise<void> {
    const metadata = { config: JSON.stringify(this.config) };
    await safetensors.write(path, flatten(this.#state), { metadata });
  }

  /** The parameters now; a step consumes them. */
  get params(): Params {
    return this.#state.params;
  }

  /**
   * One step.
   * @returns the loss in nats
   */
  step(): Tensor {
    const { params, optimizer, key } = this.#state;
    const { loss, ...next } = this.#step(params, optimizer, key);
    this.#state = { ...next, key };
    this.steps++;
    return loss;
  }

  /** Mean nats a byte over windows [N, context] that training never saw. */
  async evaluate(windows: Tensor): Promise<number> {
    const { batch, context } = this.config, [rows] = windows.shape;
    let sum = 0;
    for (let from = 0; from < rows; from += batch) {
      const to = Math.min(rows, from + batch);
      using value = scope(() => this.#loss(this.params, slice(windows, [from, 0], [to, context])));
      sum += (to - from) * await value.item();
    }
    return sum / rows;
  }

  /** Bytes that the model writes after a prompt. */
  async *write(prompt: string, length: number, temperature = 0.8): AsyncGenerator<number> {
    const { context } = this.config;
    const bytes = [...new TextEncoder().encode(prompt)];
    for (let i = 0; i < length; i++) {
      const seen = bytes.slice(-context), padded = Int32Array.from({ length: context }, (_, j) => seen[j] ?? 0);
      using next = scope(() => {
        const ids = tensor(padded, { shape: [1, context] }), last = tensor([seen.length - 1], { dtype: "i32" });
        return this.#next(this.params, ids, last, foldIn(this.#state.key, this.steps + i), tensor(temperature));
      });
      const byte = await next.item();
      bytes.push(byte);
      yield byte;
    }
  }

  [Symbol.dispose](): void {
    dispose([this.#state.params, this.#state.optimizer, this.#state.key]);
    for (const compiled of [this.#step, this.#loss, this.#next]) compiled[Symbol.dispose]();
  }
}

function optimizerOf({ learningRate, steps }: GptConfig) {
  const schedule = { learningRate, minLearningRate: learningRate / 10, totalSteps: steps, warmupSteps: 0.05 * steps };
  return adamw({
    learningRate: cosineSchedule(schedule),
    betas: [0.9, 0.95],
    weightDecay: 0.1,
    decays: (_, x) => x.rank > 1, // matrices alone, neither norms nor biases
  });
}

function fresh(config: GptConfig): State {
  return scope(() => {
    const seed = key(config.seed), params = init(foldIn(seed, 0), config);
    return { params, optimizer: optimizerOf(config).init(params), key: foldIn(seed, 1) };
  });
}

/** Text as windows [N, context], at most `most` of them. */
export function windowsOf(bytes: Uint8Array, context: number, most: number): Tensor {
  const rows = Math.min(most, Math.floor(bytes.length / context));
  return tensor(bytes.subarray(0, rows * context), { shape: [rows, context], dtype: "i32" });
}
