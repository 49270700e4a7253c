/** A model as a directory: Hugging Face's layout in, the same layout out. */
import type { Tensor } from "../../tensor/tensor.ts";
import type { GenerationConfig, LlamaConfig } from "./config.ts";
import type { LlamaParams } from "./model.ts";
import type { Tokenizer } from "./text.ts";

/** A model: what `generate` runs and `save` writes. */
export interface LlamaModel {
  /** What it is. */
  readonly config: LlamaConfig;
  /** Its parameters by the names that checkpoints use. */
  readonly params: LlamaParams;
  /** Between text and ids. */
  readonly tokenizer?: Tokenizer;
  /** How it likes to be sampled. */
  readonly generationConfig?: GenerationConfig;
}

/** A model that came from a directory. */
export interface LoadedLlama extends LlamaModel {
  /** Its parameters by the names that checkpoints use. */
  readonly params: Record<string, Tensor>;
  /** Between text and ids; where the directory has no tokenizer, one of `size` 0 whose calls say so. */
  readonly tokenizer: Tokenizer;
  /** How it likes to be sampled; empty when the directory does not say. */
  readonly generationConfig: GenerationConfig;
}
