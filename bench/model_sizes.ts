/** Sizes of the random-weight models that `model` and `generate` measure. */
import type { llama } from "@flashtape/flashtape/nn";
import type { TransformerSizes } from "./flops.ts";

/** All that is needed to make and count a model. */
export interface ModelSizes extends TransformerSizes {
  readonly eps: number;
  readonly theta: number;
}

type Config = Parameters<typeof llama.init>[1];

const eps = 1e-5, theta = 500_000;

/** Models by name: their sizes as `config.json` would give them. */
export const modelPresets = {
  tiny: { vocabulary: 256, size: 64, hidden: 176, layers: 2, heads: 4, kvHeads: 2, headDim: 16, eps, theta },
  small: { vocabulary: 32_000, size: 512, hidden: 1408, layers: 8, heads: 8, kvHeads: 4, headDim: 64, eps, theta },
  medium: { vocabulary: 32_000, size: 1024, hidden: 2816, layers: 16, heads: 16, kvHeads: 4, headDim: 64, eps, theta },
  "llama-1b": {
    vocabulary: 128_256,
    size: 2048,
    hidden: 8192,
    layers: 16,
    heads: 32,
    kvHeads: 8,
    headDim: 64,
    eps,
    theta,
  },
} as const satisfies Record<string, ModelSizes>;

/** One of {@linkcode modelPresets}. */
export type ModelName = keyof typeof modelPresets;
/** Their names. */
export const modelNames = Object.keys(modelPresets) as ModelName[];

/** The sizes of a preset, with other layers or tokens where flags say so. */
export function sizesOf(
  name: ModelName,
  { layers, vocab }: { readonly layers?: number; readonly vocab?: number },
): ModelSizes {
  const preset = modelPresets[name];
  return { ...preset, layers: layers ?? preset.layers, vocabulary: vocab ?? preset.vocabulary };
}

/** The model's `config.json`. */
export function configOf(sizes: ModelSizes): Config {
  return {
    vocab_size: sizes.vocabulary,
    hidden_size: sizes.size,
    intermediate_size: sizes.hidden,
    num_hidden_layers: sizes.layers,
    num_attention_heads: sizes.heads,
    num_key_value_heads: sizes.kvHeads,
    head_dim: sizes.headDim,
    max_position_embeddings: 131_072,
    rms_norm_eps: sizes.eps,
    rope_theta: sizes.theta,
    tie_word_embeddings: true,
  };
}

/** How many numbers a model is made of. */
export function parameterCount({ layers, size, hidden, heads, kvHeads, headDim, vocabulary }: ModelSizes): number {
  const block = size * headDim * (2 * heads + 2 * kvHeads) + 3 * size * hidden + 2 * size;
  return layers * block + vocabulary * size + size;
}
