/** A conversation that keeps within a model's context. */
import type { llama } from "@flashtape/flashtape/nn";

/** What dropping the oldest turns would leave. */
export interface Cut {
  /** Turns to drop, a question with its answer each. */
  readonly turns: number;
  /** Tokens of what is left. */
  readonly tokens: number;
}

/** How a new message stands to the context. */
export interface Fit {
  /** Tokens of the whole conversation, up to where the answer begins. */
  readonly tokens: number;
  /** Whether it leaves room for an answer. */
  readonly fits: boolean;
  /** The least to drop; null when it fits, or when the message is too long even alone. */
  readonly cut: Cut | null;
}

/** Turns, and how many tokens they are. */
export class Conversation {
  /** What was said. */
  readonly messages: llama.Message[] = [];
  readonly #tokenizer: llama.Tokenizer;
  readonly #context: number;
  readonly #room: number;
  readonly #system: readonly llama.Message[];

  /**
   * An empty conversation.
   * @param context tokens that the model can see
   * @param room tokens that an answer should have
   * @param system what the model is told before
   */
  constructor(tokenizer: llama.Tokenizer, context: number, room: number, system?: string) {
    this.#tokenizer = tokenizer;
    this.#context = context;
    this.#room = room;
    this.#system = system === undefined ? [] : [{ role: "system", content: system }];
  }

  /** All that the model is given. */
  prompt(question: string): llama.Message[] {
    return [...this.#system, ...this.messages, { role: "user", content: question }];
  }

  /** How a question would stand to the context. */
  fit(question: string): Fit {
    const tokens = this.#count(this.prompt(question));
    if (this.#leavesRoom(tokens)) return { tokens, fits: true, cut: null };
    for (let turns = 1; 2 * turns <= this.messages.length; turns++) {
      const rest = [...this.#system, ...this.messages.slice(2 * turns), { role: "user", content: question }];
      const left = this.#count(rest);
      if (this.#leavesRoom(left)) return { tokens, fits: false, cut: { turns, tokens: left } };
    }
    return { tokens, fits: false, cut: null };
  }

  /** Forgets the oldest turns. */
  drop(turns: number): void {
    this.messages.splice(0, 2 * turns);
  }

  /** Keeps a question with its answer. */
  add(question: string, answer: string): void {
    this.messages.push({ role: "user", content: question }, { role: "assistant", content: answer });
  }

  /** Forgets all of it. */
  reset(): void {
    this.messages.length = 0;
  }

  #leavesRoom(tokens: number): boolean {
    return tokens + this.#room <= this.#context;
  }

  #count(messages: readonly llama.Message[]): number {
    const text = this.#tokenizer.applyChatTemplate(messages, { addGenerationPrompt: true });
    return this.#tokenizer.encode(text, { addSpecialTokens: false }).length;
  }
}
