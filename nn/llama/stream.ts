/** What a row of text gives out while it grows: whole characters, and nothing of a stop string. */
import { streamDecoder, type Tokenizer } from "./text.ts";

/** The text of one row. */
export class RowText {
  readonly #stops: readonly string[];
  readonly #decoder: ReturnType<typeof streamDecoder> | null;
  /** Text that may be the beginning of a stop string. */
  #held = "";

  /**
   * The text after a prompt.
   * @param tokenizer none gives no text
   */
  constructor(tokenizer: Pick<Tokenizer, "decode"> | undefined, stops: readonly string[], prompt?: readonly number[]) {
    this.#decoder = tokenizer === undefined ? null : streamDecoder(tokenizer, { after: prompt });
    this.#stops = stops;
  }

  /**
   * Takes a token.
   * @returns the text that is certain now, and whether it ended at a stop string, which is left out
   */
  push(id: number): { text: string; stopped: boolean } {
    return this.#decoder === null ? { text: "", stopped: false } : this.#give(this.#decoder.push([id]), false);
  }

  /** What is still held back when no more tokens come. */
  end(): string {
    return this.#decoder === null ? "" : this.#give(this.#decoder.end(), true).text;
  }

  #give(more: string, last: boolean): { text: string; stopped: boolean } {
    const text = this.#held + more;
    const found = this.#stops.map((stop) => text.indexOf(stop)).filter((at) => at >= 0);
    const keep = found.length > 0 ? Math.min(...found) : last ? text.length : text.length - unsure(text, this.#stops);
    this.#held = found.length > 0 ? "" : text.slice(keep);
    return { text: text.slice(0, keep), stopped: found.length > 0 };
  }
}

/** How many characters at the end of a text are the beginning of a stop string. */
function unsure(text: string, stops: readonly string[]): number {
  let most = 0;
  for (const stop of stops) {
    for (let n = Math.min(stop.length - 1, text.length); n > most; n--) {
      if (text.endsWith(stop.slice(0, n))) most = n;
    }
  }
  return most;
}
