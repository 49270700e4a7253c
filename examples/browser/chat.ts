/** A conversation with a model from files that a person picked. */
import { dispose, memory } from "@flashtape/flashtape";
import { generate, llama } from "@flashtape/flashtape/nn";
import { countParameters } from "../byte_model.ts";
import { short, size } from "./dom.ts";
import type { ChatOptions } from "./protocol.ts";

/** A loaded model and what was said so far. */
export class ChatRun implements Disposable {
  readonly #model: llama.LoadedLlama;
  readonly #messages: llama.Message[] = [];
  #abort: AbortController | null = null;

  private constructor(model: llama.LoadedLlama) {
    this.#model = model;
  }

  /** Loads a model, telling what it is at. */
  static async load(files: readonly File[], tell: (what: string) => void): Promise<ChatRun> {
    let told = 0;
    const model = await llama.load(files, {
      onProgress({ name, bytes, totalBytes }) {
        if (performance.now() - told < 100) return;
        told = performance.now();
        tell(`${size(bytes)} of ${size(totalBytes)}: ${name}`);
      },
    });
    return new ChatRun(model);
  }

  /** Whether the model has a template for conversations; without one it continues texts. */
  get talks(): boolean {
    return this.#model.tokenizer.hasChatTemplate;
  }

  /** What was loaded, for people. */
  get summary(): string {
    const { config, tokenizer } = this.#model;
    return [
      `${short(countParameters(config))} parameters`,
      `${config.num_hidden_layers} layers of ${config.hidden_size}`,
      `${size(memory().current)} on the device`,
      tokenizer.size === 0 ? "no tokenizer, so it reads and writes token ids" : `${short(tokenizer.size)} tokens`,
      this.talks ? "" : "no chat template: it continues your text",
    ].filter((part) => part !== "").join(" · ");
  }

  /** The model's answer, piece by piece. */
  async *say(text: string, { maxNewTokens, temperature }: ChatOptions): AsyncGenerator<string> {
    const { tokenizer } = this.#model;
    const abort = this.#abort = new AbortController();
    const how = { maxNewTokens, temperature, signal: abort.signal };
    if (tokenizer.size === 0) {
      const ids = text.split(/[\s,]+/).filter((word) => word !== "").map(Number);
      for await (const { tokens } of generate(this.#model, { ...how, inputIds: ids })) yield `${tokens[0]} `;
    } else if (!this.talks) {
      for await (const step of generate(this.#model, { ...how, prompt: text })) yield step.text[0];
    } else {
      this.#messages.push({ role: "user", content: text });
      let answer = "";
      for await (const step of generate(this.#model, { ...how, messages: this.#messages })) {
        answer += step.text[0];
        yield step.text[0];
      }
      this.#messages.push({ role: "assistant", content: answer });
    }
  }

  /** Ends an answer early. */
  stop(): void {
    this.#abort?.abort();
  }

  /** Begins a new conversation. */
  forget(): void {
    this.#messages.length = 0;
  }

  [Symbol.dispose](): void {
    dispose(this.#model.params);
  }
}
