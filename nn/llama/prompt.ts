/** Prompts in every form that `generate` takes, as rows of token ids. */
import { IndexError, ShapeError, show, UnsupportedError, ValueError } from "../../tensor/errors.ts";
import { Tensor } from "../../tensor/tensor.ts";
import type { Message, Tokenizer } from "./text.ts";

/** What to continue: one of these. */
export interface PromptOptions {
  /** Text, or several texts for a batch; the tokenizer adds the token that begins a text. */
  readonly prompt?: string | readonly string[];
  /** A conversation that the assistant continues, by the model's chat template; or several. */
  readonly messages?: readonly Message[] | readonly (readonly Message[])[];
  /** Token ids: one row, or rows of any lengths, or a tensor i32 `[B, S]`, left-padded by `attentionMask`. */
  readonly inputIds?: Tensor | readonly number[] | readonly (readonly number[])[];
  /** With `inputIds`: 1 for a token, 0 for padding before the first, `[B, S]`. */
  readonly attentionMask?: Tensor | readonly (readonly number[])[];
}

/**
 * The rows, without padding.
 * @throws {ValueError} when there is not exactly one prompt, or a row of it is empty
 * @throws {IndexError} when an id is outside the vocabulary
 * @throws {UnsupportedError} when text is given to a model without a tokenizer
 */
export async function promptRows(
  options: PromptOptions,
  tokenizer: Tokenizer | undefined,
  vocabulary: number,
): Promise<number[][]> {
  const { prompt, messages, inputIds, attentionMask } = options;
  const given = Object.entries({ prompt, messages, inputIds }).filter(([, x]) => x !== undefined).map(([name]) => name);
  if (given.length !== 1) {
    throw new ValueError("generate", `give one of prompt, messages and inputIds, got ${given.join(" and ") || "none"}`);
  }
  if (attentionMask !== undefined && inputIds === undefined) {
    throw new ValueError("generate", "attentionMask belongs to inputIds: texts and messages are padded here");
  }
  const rows = inputIds === undefined
    ? texts(options, tokenizer)
    : unpadded(await numbersOf("inputIds", inputIds), attentionMask && await numbersOf("attentionMask", attentionMask));
  if (rows.length === 0) throw new ValueError("generate", "the batch has no rows");
  rows.forEach((row, b) => {
    if (row.length === 0) throw new ValueError("generate", `the prompt of row ${b} has no tokens`);
    const wrong = row.find((id) => !Number.isInteger(id) || id < 0 || id >= vocabulary);
    if (wrong !== undefined) {
      throw new IndexError(
        "generate",
        `the prompt of row ${b} has id ${wrong}: the model has ids 0 to ${vocabulary - 1}`,
      );
    }
  });
  return rows;
}

function texts({ prompt, messages }: PromptOptions, tokenizer: Tokenizer | undefined): number[][] {
  if (tokenizer === undefined) {
    throw new UnsupportedError("generate", "the model has no tokenizer: give inputIds instead of text");
  }
  if (prompt !== undefined) return [prompt].flat().map((text) => tokenizer.encode(text));
  const [first] = messages as readonly unknown[];
  const several = (Array.isArray(first) ? messages : [messages]) as readonly (readonly Message[])[];
  if (first === undefined) throw new ValueError("generate", "messages are empty");
  return several.map((chat) => {
    const text = tokenizer.applyChatTemplate(chat, { addGenerationPrompt: true });
    return tokenizer.encode(text, { addSpecialTokens: false });
  });
}

/** Rows of numbers out of a tensor or arrays. */
async function numbersOf(name: string, x: Tensor | readonly unknown[]): Promise<readonly (readonly number[])[]> {
  if (!(x instanceof Tensor)) {
    if (!Array.isArray(x)) throw new ShapeError("generate", `${name} is a tensor or an array of rows`);
    const flat = !Array.isArray(x[0]) && !ArrayBuffer.isView(x[0]);
    const rows = (flat ? [x] : x) as readonly ArrayLike<number>[];
    return rows.map((row) => Array.from(row));
  }
  if (x.rank !== 2) throw new ShapeError("generate", `${name} is [B, S], got ${show(x.shape)}`);
  const data = await x.data(), length = x.shape[1];
  return Array.from({ length: x.shape[0] }, (_, b) => Array.from(data.subarray(b * length, (b + 1) * length)));
}

/** The tokens that a mask shows. */
function unpadded(
  rows: readonly (readonly number[])[],
  mask: readonly (readonly number[])[] | undefined,
): number[][] {
  if (mask === undefined) return rows.map((row) => [...row]);
  if (mask.length !== rows.length) {
    throw new ShapeError("generate", `attentionMask has ${mask.length} rows, inputIds ${rows.length}`);
  }
  return rows.map((row, b) => {
    if (mask[b].length !== row.length) {
      throw new ShapeError(
        "generate",
        `attentionMask has ${mask[b].length} places in row ${b}, inputIds ${row.length}`,
      );
    }
    const start = mask[b].findIndex((x) => x !== 0), hole = mask[b].indexOf(0, Math.max(0, start));
    if (start < 0) return [];
    if (hole >= 0) {
      throw new ValueError(
        "generate",
        `attentionMask hides place ${hole} of row ${b} behind place ${start}, which it shows: only padding on the left is left out`,
      );
    }
    return row.slice(start);
  });
}
