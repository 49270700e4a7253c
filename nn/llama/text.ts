/** Between text and token ids: what a model asks of its tokenizer, and text that is streamed in whole characters. */
import { UnsupportedError } from "../../tensor/errors.ts";

/** One turn of a conversation. */
export interface Message {
  /** Who speaks: `system`, `user` or `assistant`, or what else the template knows. */
  readonly role: string;
  /** What is said. Some templates take more than text. */
  readonly content: unknown;
  /** Other fields that the template reads. */
  readonly [field: string]: unknown;
}

/** Options of {@linkcode Tokenizer.encode}. */
export interface EncodeOptions {
  /** Whether the tokenizer's own tokens are added, such as the one that begins a text; true when not given. */
  readonly addSpecialTokens?: boolean;
}

/** Options of {@linkcode Tokenizer.decode}. */
export interface DecodeOptions {
  /** Whether special tokens are left out; false when not given. */
  readonly skipSpecialTokens?: boolean;
}

/** Options of {@linkcode Tokenizer.applyChatTemplate}. */
export interface ChatOptions {
  /** Whether the text ends where the assistant's next turn begins; false when not given. */
  readonly addGenerationPrompt?: boolean;
  /** Tools that the template describes to the model. */
  readonly tools?: readonly unknown[];
  /** Other variables of the template, such as `date_string`. */
  readonly variables?: Readonly<Record<string, unknown>>;
}

/** Text to ids and back. */
export interface Tokenizer {
  /** How many ids it knows; 0 when the model came without a tokenizer. */
  readonly size: number;
  /** The files that it was made of, by their names: what `save` writes. */
  readonly files: Readonly<Record<string, string>>;
  /** Whether there is a chat template. */
  readonly hasChatTemplate: boolean;
  /**
   * The ids of a text. Special tokens that are written in the text become their ids.
   * @throws {ValueError} when `text` is not a string
   */
  encode(text: string, options?: EncodeOptions): number[];
  /**
   * The text of ids. Bytes that are no UTF-8 become U+FFFD.
   * @throws {IndexError} for an id that the model cannot have
   */
  decode(ids: Iterable<number>, options?: DecodeOptions): string;
  /**
   * A conversation as the model was trained to read it. Its ids are `encode(text, { addSpecialTokens: false })`: the
   * template writes the special tokens itself.
   * @throws {UnsupportedError} when there is no template
   * @throws {ValueError} when the template refuses the messages
   */
  applyChatTemplate(messages: readonly Message[], options?: ChatOptions): string;
  /** The id of a token by its exact text. */
  idOf(token: string): number | undefined;
}

/** The tokenizer of a model that has none: every call says why. */
export function missingTokenizer(reason: string): Tokenizer {
  const refuse = (): never => {
    throw new UnsupportedError("tokenizer", reason);
  };
  return {
    size: 0,
    files: {},
    hasChatTemplate: false,
    encode: refuse,
    decode: refuse,
    applyChatTemplate: refuse,
    idOf: () => undefined,
  };
}

/** Text from ids that come one after another. */
export interface StreamDecoder {
  /** Takes ids and gives the text that is certain now: whole characters only. */
  push(ids: Iterable<number>): string;
  /** What is still held back, at the end of the ids. */
  end(): string;
}

/** Options of {@linkcode streamDecoder}. */
export interface StreamOptions extends DecodeOptions {
  /** Ids that the stream goes on from, whose text is not given again: some tokenizers drop a space before the first. */
  readonly after?: readonly number[];
}

/** Tokens that may wait for the end of a character: more than any character has. */
const longestWait = 16;

/**
 * Decodes ids as they come. The pieces put together are `decode` of all the ids; a character of several tokens comes
 * with its last one.
 *
 * @example
 * ```ts ignore
 * const stream = streamDecoder(model.tokenizer);
 * for (const id of ids) write(stream.push([id]));
 * write(stream.end());
 * ```
 */
export function streamDecoder(
  tokenizer: Pick<Tokenizer, "decode">,
  { skipSpecialTokens = true, after = [] }: StreamOptions = {},
): StreamDecoder {
  // The tokens given out last and those after them: a decoder may treat the first token otherwise than the rest.
  let window = after.slice(-longestWait), context = window.length;
  const text = () => window.length === 0 ? "" : tokenizer.decode(window, { skipSpecialTokens });
  let given = text().replace(/\uFFFD+$/, "");
  const next = (id: number): string => {
    window.push(id);
    const now = text(), sure = now.replace(/\uFFFD+$/, ""); // a U+FFFD at the end may be a character's beginning
    if (sure.length === now.length) {
      const piece = now.slice(given.length);
      window = window.slice(context);
      context = window.length;
      given = text();
      return piece;
    }
    if (window.length - context > longestWait) { // bytes that are no text: only the last of them can still become any
      const piece = now.slice(given.length, -1);
      window = window.slice(-longestWait / 2);
      context = window.length;
      given = text().slice(0, -1);
      return piece;
    }
    if (sure.length <= given.length) return "";
    const piece = sure.slice(given.length);
    given = sure;
    return piece;
  };
  return {
    push: (ids) => Array.from(ids, next).join(""),
    end() {
      const piece = text().slice(given.length);
      window = [];
      context = 0;
      given = "";
      return piece;
    },
  };
}
