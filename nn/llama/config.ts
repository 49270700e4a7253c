/** What a Llama is: the fields of `config.json`, checked and brought to one form. */
import { roundTo } from "../../tensor/dtype.ts";
import { FormatError, UnsupportedError } from "../../tensor/errors.ts";
import { rotaryFrequencies, type RotaryScaling } from "../rotary.ts";

/**
 * A model's `config.json`. A parsed file is a config as it is; fields that are not listed ride along and are written
 * back.
 */
export interface LlamaConfig {
  /** Number of tokens. */
  readonly vocab_size: number;
  /** Width of the residual stream. */
  readonly hidden_size: number;
  /** Width inside the feed-forward part. */
  readonly intermediate_size: number;
  /** Number of blocks. */
  readonly num_hidden_layers: number;
  /** Query heads. */
  readonly num_attention_heads: number;
  /** Key/value heads; as many as query heads when not given. */
  readonly num_key_value_heads?: number;
  /** Size of a head; hidden_size / num_attention_heads when not given. */
  readonly head_dim?: number | null;
  /** Longest context; 2048 when not given. */
  readonly max_position_embeddings?: number;
  /** Added to mean squares; 1e-6 when not given. */
  readonly rms_norm_eps?: number;
  /** Whether the last layer is the embedding; false when not given. */
  readonly tie_word_embeddings?: boolean;
  /** Standard deviation of fresh weights; 0.02 when not given. */
  readonly initializer_range?: number;
  /** Base of the rotary wavelengths; 10,000 when not given. */
  readonly rope_theta?: number;
  /** How the rotary frequencies are stretched. */
  readonly rope_scaling?: RopeParameters | null;
  /** The newer place of both. */
  readonly rope_parameters?: RopeParameters | null;
  /** Other fields of the file. */
  readonly [field: string]: unknown;
}

/** Rotary settings as config files write them. */
export interface RopeParameters {
  /** `default`, `linear` or `llama3`. */
  readonly rope_type?: string;
  /** The older name of `rope_type`. */
  readonly type?: string;
  /** Base of the wavelengths. */
  readonly rope_theta?: number;
  /** How far the context is stretched. */
  readonly factor?: number;
  /** llama3: waves longer than the original length over this are stretched whole. */
  readonly low_freq_factor?: number;
  /** llama3: waves shorter than the original length over this stay. */
  readonly high_freq_factor?: number;
  /** llama3: the length that the model was first trained for. */
  readonly original_max_position_embeddings?: number;
  /** Radians a position for each pair of a head, in place of what theta and scaling give. */
  readonly inv_freq?: readonly number[];
}

/** A model's `generation_config.json`: how it likes to be sampled. */
export interface GenerationConfig {
  /** Whether to draw tokens, or else to take the likeliest. */
  readonly do_sample?: boolean;
  /** Divides the logits. */
  readonly temperature?: number;
  /** Draws from that many of the likeliest tokens. */
  readonly top_k?: number;
  /** Draws from the likeliest tokens that hold this share of the probability. */
  readonly top_p?: number;
  /** Draws from tokens at least this often as likely as the likeliest. */
  readonly min_p?: number;
  /** Above 1 makes tokens that have come less likely. */
  readonly repetition_penalty?: number;
  /** The token that begins a text. */
  readonly bos_token_id?: number | null;
  /** The tokens that end one. */
  readonly eos_token_id?: number | readonly number[] | null;
  /** The token that fills up finished rows. */
  readonly pad_token_id?: number | null;
  /** The most tokens to write. */
  readonly max_new_tokens?: number | null;
  /** Other fields of the file. */
  readonly [field: string]: unknown;
}

/** A config with every default filled in. */
export interface LlamaDimensions {
  readonly vocabulary: number;
  readonly size: number;
  readonly hidden: number;
  readonly layers: number;
  readonly heads: number;
  readonly kvHeads: number;
  readonly headDim: number;
  readonly maxPositions: number;
  readonly eps: number;
  readonly tied: boolean;
  readonly initStd: number;
  readonly frequencies: ArrayLike<number>;
}

/** Far more than any head has: what a config claims beyond it is not worth a table of frequencies. */
const maxHeadDim = 2 ** 16;

const known = new WeakMap<LlamaConfig, LlamaDimensions>();

/**
 * The dimensions that a config describes.
 * @throws {FormatError} when a field is missing or no such number
 * @throws {UnsupportedError} when the config asks for something that this model is not
 */
export function dimensions(config: LlamaConfig): LlamaDimensions {
  const hit = known.get(config);
  if (hit !== undefined) return hit;
  const count = (field: string, otherwise?: number) => {
    const value = config[field] ?? otherwise;
    if (!Number.isSafeInteger(value) || (value as number) < 1) {
      throw new FormatError("llama", `config: ${field} is ${show(value)}, expected a whole number above 0`);
    }
    return value as number;
  };
  const size = count("hidden_size"), heads = count("num_attention_heads");
  const kvHeads = count("num_key_value_heads", heads), headDim = count("head_dim", size / heads);
  if (heads % kvHeads !== 0) {
    throw new FormatError("llama", `config: ${kvHeads} key/value heads do not divide ${heads} heads`);
  }
  if (headDim % 2 !== 0) {
    throw new FormatError("llama", `config: head_dim ${headDim} is odd, which rotary halves cannot be`);
  }
  if (headDim > maxHeadDim) {
    throw new FormatError("llama", `config: head_dim is ${headDim}, no head has more than ${maxHeadDim}`);
  }
  if ((config.quantization_config ?? null) !== null) {
    throw new UnsupportedError("llama", "config: has a quantization_config: this model reads plain weights");
  }
  const tied = config.tie_word_embeddings ?? false;
  if (typeof tied !== "boolean") {
    throw new FormatError("llama", `config: tie_word_embeddings is ${show(tied)}, expected true or false`);
  }
  const allowed = { model_type: ["llama"], hidden_act: ["silu"], attention_bias: [false], mlp_bias: [false] };
  for (const [field, values] of Object.entries(allowed)) {
    const value = config[field];
    if (value !== undefined && !(values as unknown[]).includes(value)) {
      throw new UnsupportedError("llama", `config: ${field} is ${show(value)}, this model has ${show(values[0])}`);
    }
  }
  const made: LlamaDimensions = {
    vocabulary: count("vocab_size"),
    size,
    hidden: count("intermediate_size"),
    layers: count("num_hidden_layers"),
    heads,
    kvHeads,
    headDim,
    maxPositions: count("max_position_embeddings", 2048),
    eps: positive("rms_norm_eps", config.rms_norm_eps ?? 1e-6),
    tied,
    initStd: positive("initializer_range", config.initializer_range ?? 0.02),
    frequencies: frequenciesOf(config, headDim),
  };
  known.set(config, made);
  return made;
}

function frequenciesOf(config: LlamaConfig, headDim: number): ArrayLike<number> {
  const rope = config.rope_parameters ?? config.rope_scaling ?? {};
  if (typeof rope !== "object" || Array.isArray(rope)) {
    throw new FormatError("llama", `config: the rotary settings are ${show(rope)}, expected an object`);
  }
  if (rope.inv_freq === undefined) {
    const theta = positive("rope_theta", config.rope_parameters?.rope_theta ?? config.rope_theta ?? 10_000);
    return rotaryFrequencies({ headDim, theta, scaling: scalingOf(rope) });
  }
  if (!Array.isArray(rope.inv_freq) || rope.inv_freq.length !== headDim / 2) {
    throw new FormatError(
      "llama",
      `config: inv_freq has ${rope.inv_freq.length} numbers, a head of ${headDim} needs ${headDim / 2}`,
    );
  }
  return rope.inv_freq.map((f) => positive("inv_freq", f));
}

/**
 * A config whose rotary frequencies are rounded to a 16-bit type and written out as `inv_freq`: what a model computes
 * that was cast whole, its buffers too (`model.half()`, `model.to(torch.bfloat16)`).
 */
export function roundRotary(config: LlamaConfig, dtype: "f16" | "bf16"): LlamaConfig {
  const rounded = Float32Array.from(dimensions(config).frequencies);
  roundTo(dtype, rounded);
  const rope = config.rope_parameters ?? { ...config.rope_scaling, rope_theta: config.rope_theta };
  return { ...config, rope_parameters: { ...rope, inv_freq: [...rounded] } };
}

/**
 * A parsed `generation_config.json`, checked.
 * @throws {FormatError} naming the field that has no such value
 */
export function checkGenerationConfig(json: Readonly<Record<string, unknown>>): GenerationConfig {
  const refuse = (field: string, expected: string): never => {
    throw new FormatError("llama", `generation_config: ${field} is ${show(json[field])}, expected ${expected}`);
  };
  const isId = (id: unknown) => Number.isSafeInteger(id);
  for (const field of ["temperature", "top_k", "top_p", "min_p", "repetition_penalty", "max_new_tokens"]) {
    const value = json[field] ?? 0;
    if (typeof value !== "number" || !(value >= 0 && value < Infinity)) refuse(field, "a number from 0");
  }
  for (const field of ["bos_token_id", "pad_token_id"]) if (!isId(json[field] ?? 0)) refuse(field, "an id");
  const eos = json.eos_token_id ?? 0;
  if (!isId(eos) && !(Array.isArray(eos) && eos.every(isId))) refuse("eos_token_id", "an id or a list of ids");
  if (typeof (json.do_sample ?? false) !== "boolean") refuse("do_sample", "true or false");
  return json;
}

function scalingOf(rope: RopeParameters): RotaryScaling | undefined {
  const type = rope.rope_type ?? rope.type ?? "default";
  const field = (name: keyof RopeParameters) => positive(name, rope[name]);
  if (type === "default") return undefined;
  if (type === "linear") return { type, factor: field("factor") };
  if (type === "llama3") {
    return {
      type,
      factor: field("factor"),
      lowFreqFactor: field("low_freq_factor"),
      highFreqFactor: field("high_freq_factor"),
      originalMaxPositions: field("original_max_position_embeddings"),
    };
  }
  throw new UnsupportedError("llama", `config: rope_type is ${show(type)}, this model has default, linear and llama3`);
}

function positive(field: string, value: unknown): number {
  if (typeof value !== "number" || !(value > 0 && value < Infinity)) {
    throw new FormatError("llama", `config: ${field} is ${show(value)}, expected a number above 0`);
  }
  return value;
}

function show(value: unknown): string {
  return typeof value === "number" ? String(value) : JSON.stringify(value) ?? String(value);
}
