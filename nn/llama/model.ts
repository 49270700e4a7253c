/** The Llama family: pure functions over parameters under the names that checkpoints use. */
import { checkpoint as checkpointed } from "../../autograd/grad.ts";
import type { Backend } from "../../tensor/backend.ts";
import { ones, tensor } from "../../tensor/create.ts";
import type { DType } from "../../tensor/dtype.ts";
import { add, cast, maximum, sub } from "../../tensor/elementwise.ts";
import { LimitError, ShapeError, show, UnsupportedError, ValueError } from "../../tensor/errors.ts";
import { expandDims, slice } from "../../tensor/movement.ts";
import { listening } from "../../tensor/op.ts";
import { project } from "../../tensor/project.ts";
import { foldIn } from "../../tensor/random.ts";
import { cumsum } from "../../tensor/reduce.ts";
import { scope, unscoped } from "../../tensor/scope.ts";
import { sameShape, type Shape } from "../../tensor/shape.ts";
import { consume, rangeOf, type Tensor } from "../../tensor/tensor.ts";
import type { AttentionCache } from "../../tensor/attention_cache.ts";
import { type AttentionAlgorithm, fewTokens, multipliesStored, positionsIn, type Rotary } from "../attention.ts";
import { grownCapacity, grownTable, type KvCache, roomInCache } from "../cache.ts";
import { dropout } from "../dropout.ts";
import { normal } from "../init.ts";
import { embedding, linear } from "../linear.ts";
import { nextTokenLoss } from "../loss.ts";
import { rmsNorm } from "../norm.ts";
import { rotaryTables } from "../rotary.ts";
import { transformerBlock, type TransformerBlockParams } from "../transformer.ts";
import { dimensions, type LlamaConfig, type LlamaDimensions } from "./config.ts";

/** Parameters: tensors by the names that checkpoints use. */
export type LlamaParams = Readonly<Record<string, Tensor>>;

/** Options of {@linkcode forward}. */
export interface ForwardOptions {
  /** 1 for a token, 0 for padding, `[B, past + S]`; none but what the cache's `leftpad` says when not given. */
  readonly attentionMask?: Tensor;
  /** Where the tokens stand, i32 `[S]` or `[B, S]`; counted from the first token that is no padding when not given. */
  readonly positions?: Tensor;
  /** What came before, or `emptyCache()` to begin one. Consumed; the next one is in the result. */
  readonly cache?: KvCache;
  /** `"flash"` (the default) or `"naive"`: changes speed and memory only. */
  readonly attention?: AttentionAlgorithm;
  /** Gives the scores of so many places only, the last ones; of all when not given. */
  readonly logitsToKeep?: number;
}

/** Options of {@linkcode loss}. */
export interface LossOptions extends Omit<ForwardOptions, "cache" | "logitsToKeep"> {
  /** Keeps only what enters each block and computes the block again on the way back. */
  readonly checkpoint?: boolean;
  /** Drops elements of the embeddings and of what each layer adds to them; none when not given. */
  readonly dropout?: { readonly p: number; readonly key: Tensor };
}

const shapesOf = new WeakMap<LlamaConfig, Record<string, Shape>>();

/** Shapes by name: all parameters of a model, in the order of the computation. */
export function parameterShapes(config: LlamaConfig): Record<string, Shape> {
  let shapes = shapesOf.get(config);
  if (shapes === undefined) shapesOf.set(config, shapes = namedShapes(config));
  return { ...shapes };
}

function namedShapes(config: LlamaConfig): Record<string, Shape> {
  const { vocabulary, size, hidden, layers, heads, kvHeads, headDim, tied } = dimensions(config);
  const shapes: Record<string, Shape> = { "model.embed_tokens.weight": [vocabulary, size] };
  for (let i = 0; i < layers; i++) {
    const layer = `model.layers.${i}`;
    shapes[`${layer}.input_layernorm.weight`] = [size];
    shapes[`${layer}.self_attn.q_proj.weight`] = [heads * headDim, size];
    shapes[`${layer}.self_attn.k_proj.weight`] = [kvHeads * headDim, size];
    shapes[`${layer}.self_attn.v_proj.weight`] = [kvHeads * headDim, size];
    shapes[`${layer}.self_attn.o_proj.weight`] = [size, heads * headDim];
    shapes[`${layer}.post_attention_layernorm.weight`] = [size];
    shapes[`${layer}.mlp.gate_proj.weight`] = [hidden, size];
    shapes[`${layer}.mlp.up_proj.weight`] = [hidden, size];
    shapes[`${layer}.mlp.down_proj.weight`] = [size, hidden];
  }
  shapes["model.norm.weight"] = [size];
  if (!tied) shapes["lm_head.weight"] = [vocabulary, size];
  return shapes;
}

/**
 * Fresh parameters: normal with the config's `initializer_range`, the layers that write to the residual stream scaled
 * down by √(2·layers) so that depth does not grow it (Radford et al. 2019), norms at 1.
 *
 * @param key u32 [2]
 * @param options.dtype f32 when not given
 *
 * @example
 * ```ts
 * import { key, tensor } from "@flashtape/flashtape";
 * import { llama } from "@flashtape/flashtape/nn";
 * const config = {
 *   vocab_size: 256, hidden_size: 32, intermediate_size: 64, num_hidden_layers: 2, num_attention_heads: 4,
 *   tie_word_embeddings: true,
 * };
 * const params = llama.init(key(0), config);
 * const { logits } = llama.forward(params, config, tensor([[1, 2, 3]], { dtype: "i32" }));
 * console.log(logits.shape); // [1, 3, 256]
 * ```
 */
export function init(
  key: Tensor,
  config: LlamaConfig,
  { dtype = "f32" }: { readonly dtype?: DType } = {},
): Record<string, Tensor> {
  const { initStd, layers } = dimensions(config);
  return scope(() => {
    const entries = Object.entries(parameterShapes(config)).map(([name, shape], i) => {
      if (shape.length === 1) return [name, ones(shape, { dtype, backend: key.backend })];
      const writes = name.endsWith("o_proj.weight") || name.endsWith("down_proj.weight");
      const std = writes ? initStd / Math.sqrt(2 * layers) : initStd;
      return [name, normal(foldIn(key, i), shape, { std, dtype })];
    });
    return Object.fromEntries(entries);
  });
}

/**
 * Scores of the next token at every place. Where no derivative is asked for, activations are f32 whatever the parameters'
 * type, and few tokens stream the parameters at the speed of memory. With 16-bit parameters, devices with matrix units take
 * eleven digits of the activations in products of many tokens, those of f16 in the range of f32, and keys and values in the
 * parameters' type, as a cache holds them.
 *
 * @param ids i32 `[B, S]`
 * @returns logits f32 `[B, S, V]`, and the cache for the next call when one was given
 * @throws {ShapeError} when ids, mask or positions do not fit each other
 * @throws {ValueError} when a parameter is missing or of another shape than the config says
 * @throws {LimitError} when the context is too long
 */
export function forward(
  params: LlamaParams,
  config: LlamaConfig,
  ids: Tensor,
  options: ForwardOptions = {},
): { logits: Tensor; cache?: KvCache } {
  return scope(() => {
    const plain = listening().length > 0, { eps } = dimensions(config);
    const { last: all, cache } = backbone(params, config, ids, options, plain);
    const [batch, length, size] = all.shape, keep = options.logitsToKeep ?? length;
    if (!Number.isSafeInteger(keep) || keep < 1) {
      throw new ValueError("llama", `logitsToKeep is a whole number above 0, got ${keep}`);
    }
    const x = keep < length ? slice(all, [0, length - keep, 0], [batch, length, size]) : all;
    const norm = { weight: params["model.norm.weight"] }, weight = headOf(params, config);
    const logits = plain
      ? cast(linear({ weight }, rmsNorm(norm, x, { eps })), weight.dtype === "f64" ? "f64" : "f32")
      : project(x, [weight], { norm: { ...norm, eps } });
    return { logits, cache };
  });
}

/**
 * The mean loss of predicting each next token, in nats.
 *
 * @param ids i32 `[B, S]`
 * @param labels i32 `[B, S]`, often the ids themselves: they are shifted here, so that place i predicts label i + 1.
 * −100 is ignored
 * @returns an f32 scalar
 * @throws as {@linkcode forward} does
 */
export function loss(
  params: LlamaParams,
  config: LlamaConfig,
  ids: Tensor,
  labels: Tensor,
  options: LossOptions = {},
): Tensor {
  if (!sameShape(ids.shape, labels.shape)) {
    throw new ShapeError("llama.loss", `ids are ${show(ids.shape)}, labels ${show(labels.shape)}`);
  }
  return scope(() => {
    const { last } = backbone(params, config, ids, options, true);
    const hidden = rmsNorm({ weight: params["model.norm.weight"] }, last, { eps: dimensions(config).eps });
    return nextTokenLoss({ weight: headOf(params, config) }, hidden, labels);
  });
}

/**
 * All of the model but its last norm and layer: `[B, S, size]`.
 * @param plain computes in the parameters' type, as training does
 */
function backbone(
  params: LlamaParams,
  config: LlamaConfig,
  ids: Tensor,
  { attentionMask, positions, cache, attention, checkpoint = false, dropout: drop }: LossOptions & ForwardOptions,
  plain: boolean,
): { last: Tensor; cache?: KvCache } {
  const model = dimensions(config);
  if (ids.rank !== 2 || ids.dtype !== "i32") {
    throw new ShapeError("llama", `ids are i32 [B, S], got ${ids.dtype} ${show(ids.shape)}`);
  }
  if (ids.size === 0) throw new ShapeError("llama", `ids have no token: [B, S] is ${show(ids.shape)}`);
  expectParams(params, config);
  const [batch, count] = ids.shape, past = cache?.lengths ?? cache?.length ?? 0;
  const length = typeof past === "number" ? past + count : cache!.capacity;
  if (typeof past === "number" && length > model.maxPositions) {
    throw new LimitError("llama", `${length} tokens are more than the model's ${model.maxPositions} positions`);
  }
  const weights = params["model.embed_tokens.weight"];
  const room = cache && withRoom(cache, model, batch, typeof past === "number" ? length : 0, weights);
  const fused = attention !== "naive" && !plain, { backend } = ids;
  // Matrix units want keys and values in the parameters' type. What turns them and rounds them to it writes to a cache:
  // without one, to a layer's worth of it that all layers use in turn.
  const stored = fused && multipliesStored(backend, weights.dtype) &&
    (room?.layers[0].k.dtype ?? weights.dtype) === weights.dtype;
  let lent = stored && cache === undefined && ids.size > 0
    ? roomInCache(undefined, {
      batch,
      capacity: count,
      heads: [model.kvHeads, model.headDim],
      dtype: weights.dtype,
      backend,
    })
    : undefined;
  // A step of decoding finds its own way; for more, positions and lengths are made once for all layers.
  const isStep = fused && (batch * count <= fewTokens && past !== 0 || stored && cache?.leftpad === undefined);
  const counted = attentionMask === undefined && !isStep
    ? positionsIn({ past, leftpad: cache?.leftpad }, batch, count, ids)
    : undefined;
  const lengths = (cache ?? lent) && typeof past === "number"
    ? tensor(new Int32Array(batch).fill(past), { backend: ids.backend })
    : undefined;
  const places = placesOf(ids, past, cache?.leftpad, attentionMask, positions ?? counted);
  const options = {
    heads: model.heads,
    kvHeads: model.kvHeads,
    eps: model.eps,
    mask: places.mask,
    rotary: rotaryOf(model, places.positions, length, ids.backend),
    attention,
    fused: !plain,
  };
  let x = embedding({ weight: weights }, ids); // [B, S, size]
  if (!plain && x.dtype !== "f64") x = cast(x, "f32");
  if (drop !== undefined) x = dropout(x, { p: drop.p, key: foldIn(drop.key, model.layers) });
  const layers: AttentionCache[] = [];
  for (let i = 0; i < model.layers; i++) {
    const { capacity, leftpad, pages } = room ?? {};
    const here = room?.layers[i] ?? lent;
    const seen = here && { seen: here, past, lengths, capacity: capacity ?? count, leftpad, table: pages?.table };
    const dropHere = drop && { p: drop.p, key: foldIn(drop.key, i) };
    const run = (block: TransformerBlockParams, x: Tensor) =>
      transformerBlock(block, x, { ...options, cache: seen, dropout: dropHere });
    const next = (checkpoint ? checkpointed(run) : run)(blockOf(params, i), x);
    x.dispose();
    x = next.out;
    if (lent !== undefined) lent = next.cache;
    else if (next.cache !== undefined) layers.push(next.cache);
  }
  const next = cache?.lengths && add(cache.lengths, count);
  return {
    last: x,
    cache: room && { ...room, layers, length: next ? room.length : length, ...(next && { lengths: next }) },
  };
}

/** The cache with room for `length` positions in every layer. */
function withRoom(cache: KvCache, model: LlamaDimensions, batch: number, length: number, like: Tensor): KvCache {
  const { layers, pages, dtype = like.dtype } = cache, { backend } = like;
  const capacity = grownCapacity(cache.capacity, length);
  if (layers.length > 0 && layers.length !== model.layers) {
    throw new ValueError("llama", `the cache has ${layers.length} layers, the model ${model.layers}`);
  }
  const table = pages && grownTable(pages, batch, capacity, backend);
  if (pages?.table !== undefined && table !== pages.table) consume(pages.table, "llama.forward");
  const fits = layers.length > 0 && capacity === cache.capacity;
  const heads = [model.kvHeads, model.headDim] as const;
  const room = { batch, capacity, pageSize: pages?.size, heads, dtype, backend };
  return {
    ...cache,
    ...(pages && { pages: { ...pages, table } }),
    capacity,
    layers: fits ? layers : Array.from({ length: model.layers }, (_, i) => roomInCache(layers[i], room)),
  };
}

function blockOf(params: LlamaParams, i: number): TransformerBlockParams {
  const weight = (name: string) => ({ weight: params[`model.layers.${i}.${name}.weight`] });
  return {
    attentionNorm: weight("input_layernorm"),
    attention: {
      q: weight("self_attn.q_proj"),
      k: weight("self_attn.k_proj"),
      v: weight("self_attn.v_proj"),
      o: weight("self_attn.o_proj"),
    },
    mlpNorm: weight("post_attention_layernorm"),
    mlp: { gate: weight("mlp.gate_proj"), up: weight("mlp.up_proj"), down: weight("mlp.down_proj") },
  };
}

function headOf(params: LlamaParams, config: LlamaConfig): Tensor {
  return params[dimensions(config).tied ? "model.embed_tokens.weight" : "lm_head.weight"];
}

function expectParams(params: LlamaParams, config: LlamaConfig): void {
  for (const [name, shape] of Object.entries(parameterShapes(config))) {
    if (!Object.hasOwn(params, name)) throw new ValueError("llama", `the parameter "${name}" is missing`);
    if (!sameShape(params[name].shape, shape)) {
      throw new ValueError("llama", `"${name}" is ${show(params[name].shape)}, the config says ${show(shape)}`);
    }
  }
}

/** Where tokens stand, where that is not where the cache has them, and which keys a mask lets them see. */
function placesOf(
  ids: Tensor,
  past: number | Tensor,
  leftpad: Tensor | undefined,
  attentionMask: Tensor | undefined,
  positions: Tensor | undefined,
): { positions: Tensor | undefined; mask: Tensor | undefined } {
  const [batch, length] = ids.shape;
  if (attentionMask === undefined) return { positions, mask: undefined };
  if (typeof past !== "number" || leftpad !== undefined) {
    throw new UnsupportedError(
      "llama",
      "attentionMask goes with a cache whose length the host knows: give leftpad to the cache",
    );
  }
  const total = past + length;
  if (!sameShape(attentionMask.shape, [batch, total])) {
    throw new ShapeError(
      "llama",
      `attentionMask is ${show(attentionMask.shape)}, expected [B, past + S] = ${show([batch, total])}`,
    );
  }
  const seen = cast(attentionMask, "bool");
  const mask = expandDims(expandDims(seen, 1), 1); // [B, 1, 1, past + S]
  if (positions !== undefined) return { positions, mask };
  const counted = maximum(sub(cumsum(cast(seen, "i32"), { axis: 1 }), 1), 0);
  return { positions: slice(counted, [0, past], [batch, total]), mask };
}

const tables = new WeakMap<Backend, Map<string, { readonly cos: Tensor; readonly sin: Tensor }>>();

/** Tables of angles are made once for each kind of model and backend, longer when a longer context comes. */
function rotaryOf(model: LlamaDimensions, positions: Tensor | undefined, length: number, backend: Backend): Rotary {
  const { frequencies, maxPositions } = model;
  const id = Array.from(frequencies).join();
  const kinds = tables.get(backend) ?? new Map();
  tables.set(backend, kinds);
  const need = Math.max(length, ((positions && rangeOf(positions)?.[1]) ?? length - 1) + 1);
  let table = kinds.get(id);
  if (table === undefined || table.cos.shape[0] < need) {
    const rows = Math.max(need, Math.min(maxPositions, 2 ** Math.ceil(Math.log2(Math.max(need, 256)))));
    table = unscoped(() => rotaryTables(frequencies, rows, { backend }));
    kinds.set(id, table);
  }
  return { ...table, positions };
}
