/** How a call of `generate` chooses tokens: its options over what the model's `generation_config.json` says. */
import { ValueError } from "../../tensor/errors.ts";
import { checkSampling, type SampleParams } from "../../tensor/sample.ts";
import type { GenerationConfig, LlamaConfig } from "./config.ts";

/** Options that say how a token is chosen. They are applied in the order in which they stand here. */
export interface SamplingOptions {
  /** Above 1 makes tokens less likely that the text has already, prompt included (Keskar et al. 2019, arXiv:1909.05858). */
  readonly repetitionPenalty?: number;
  /** Divides the scores: below 1 for likelier text, above for wilder; 0 takes the likeliest token always. */
  readonly temperature?: number;
  /** Draws from so many of the likeliest tokens (Fan et al. 2018, arXiv:1805.04833). */
  readonly topK?: number;
  /** Draws from the likeliest tokens that hold this share of the probability (Holtzman et al. 2019, arXiv:1904.09751). */
  readonly topP?: number;
  /** Draws from tokens at least this often as likely as the likeliest (Nguyen et al. 2024, arXiv:2407.01082). */
  readonly minP?: number;
}

/**
 * The numbers that a call goes by. What neither it nor the config gives changes nothing; without `do_sample` in the config
 * and without an option that draws, the likeliest token is taken.
 * @throws {ValueError} when one is out of its range
 */
export function samplingOf(options: SamplingOptions, config: GenerationConfig): Omit<SampleParams, "pad"> {
  const draws = config.do_sample === true || [options.topK, options.topP, options.minP].some((x) => x !== undefined);
  const params = {
    repetitionPenalty: options.repetitionPenalty ?? config.repetition_penalty ?? 1,
    temperature: options.temperature ?? (draws ? config.temperature ?? 1 : 0),
    topK: options.topK ?? config.top_k ?? 0,
    topP: options.topP ?? config.top_p ?? 1,
    minP: options.minP ?? config.min_p ?? 0,
  };
  for (const [name, value] of Object.entries(params)) {
    if (typeof value !== "number") throw new ValueError("generate", `${name} is a number, got ${value}`);
  }
  checkSampling("generate", params);
  return params;
}

/** The ids that end a text and the one that fills finished rows, from both of a model's files. */
export function endsOf(
  config: LlamaConfig,
  generation: GenerationConfig,
): { readonly stops: readonly number[]; readonly pad: number } {
  const ends = generation.eos_token_id ?? config.eos_token_id ?? [];
  const stops = (Array.isArray(ends) ? ends : [ends]) as readonly number[];
  const pad = generation.pad_token_id ?? config.pad_token_id ?? stops[0] ?? 0;
  for (const id of [...stops, pad]) {
    if (!Number.isSafeInteger(id) || Math.abs(id as number) >= 2 ** 31) {
      throw new ValueError("generate", `eos_token_id and pad_token_id are whole numbers, got ${id}`);
    }
  }
  return { stops, pad: pad as number };
}
