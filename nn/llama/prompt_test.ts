import assert from "node:assert/strict";
import "../../tensor/cpu.ts";
import { tensor } from "../../tensor/create.ts";
import { IndexError, ShapeError, UnsupportedError, ValueError } from "../../tensor/errors.ts";
import { type PromptOptions, promptRows } from "./prompt.ts";
import type { Tokenizer } from "./text.ts";

/** Ids are character codes; 1 begins a text; a chat is its texts behind bars. */
const letters: Tokenizer = {
  size: 128,
  files: {},
  hasChatTemplate: true,
  encode: (text, { addSpecialTokens = true } = {}) => [
    ...(addSpecialTokens ? [1] : []),
    ...Array.from(text, (c) => c.charCodeAt(0)),
  ],
  decode: (ids) => String.fromCharCode(...ids),
  applyChatTemplate: (messages, { addGenerationPrompt = false } = {}) =>
    messages.map(({ content }) => `|${content}`).join("") + (addGenerationPrompt ? ">" : ""),
  idOf: () => undefined,
};
const rows = (options: PromptOptions, tokenizer: Tokenizer | undefined = letters) =>
  promptRows(options, tokenizer, 128);
const codes = (text: string) => Array.from(text, (c) => c.charCodeAt(0));

Deno.test("a prompt is one text or several, with the token that begins a text", async () => {
  assert.deepEqual(await rows({ prompt: "ab" }), [[1, 97, 98]]);
  assert.deepEqual(await rows({ prompt: ["a", ""] }), [[1, 97], [1]]);
});

Deno.test("messages go through the template, which writes its own special tokens", async () => {
  const chat = [{ role: "system", content: "a" }, { role: "user", content: "b" }];
  assert.deepEqual(await rows({ messages: chat }), [codes("|a|b>")]);
  assert.deepEqual(await rows({ messages: [chat, chat.slice(1)] }), [codes("|a|b>"), codes("|b>")]);
});

Deno.test("ids come as a row, as rows, or as a tensor with a mask", async () => {
  const none = undefined;
  assert.deepEqual(await promptRows({ inputIds: [3, 4] }, none, 9), [[3, 4]]);
  assert.deepEqual(await promptRows({ inputIds: [[3, 4], [5]] }, none, 9), [[3, 4], [5]]);
  const inputIds = tensor([[3, 4], [0, 5]], { dtype: "i32" });
  assert.deepEqual(await promptRows({ inputIds }, none, 9), [[3, 4], [0, 5]]);
  for (const attentionMask of [[[1, 1], [0, 1]], tensor([[1, 1], [0, 1]], { dtype: "i32" })]) {
    assert.deepEqual(await promptRows({ inputIds, attentionMask }, none, 9), [[3, 4], [5]]);
  }
});

Deno.test("what is no prompt is refused by its numbers", async () => {
  const refused = (options: PromptOptions, error: typeof ValueError, message: RegExp) =>
    assert.rejects(() => promptRows(options, undefined, 9), (e) => e instanceof error && message.test(e.message));
  await refused({}, ValueError, /give one of prompt, messages and inputIds, got none/);
  await refused({ prompt: "a", inputIds: [1] }, ValueError, /got prompt and inputIds/);
  await refused({ prompt: "a" }, UnsupportedError, /no tokenizer: give inputIds/);
  await refused({ inputIds: [] }, ValueError, /row 0 has no tokens/);
  await refused({ inputIds: [[1], []] }, ValueError, /row 1 has no tokens/);
  await refused({ inputIds: [[1], [9]] }, IndexError, /row 1 has id 9: the model has ids 0 to 8/);
  await refused({ inputIds: [-1] }, IndexError, /has id -1/);
  await refused({ inputIds: [0.5] }, IndexError, /has id 0\.5/);
  await refused({ inputIds: tensor([1], { dtype: "i32" }) }, ShapeError, /inputIds is \[B, S\], got \[1\]/);
  await refused({ inputIds: [[1, 2]], attentionMask: [[0, 0]] }, ValueError, /row 0 has no tokens/);
  await refused({ inputIds: [[1, 2]], attentionMask: [[1, 0]] }, ValueError, /hides place 1 of row 0 behind place 0/);
  await refused({ inputIds: [[1, 2]], attentionMask: [[1]] }, ShapeError, /has 1 places in row 0, inputIds 2/);
  await refused(
    { inputIds: [[1, 2]], attentionMask: [[1, 1], [1, 1]] },
    ShapeError,
    /attentionMask has 2 rows, inputIds 1/,
  );
  await refused({ prompt: "a", attentionMask: [[1]] }, ValueError, /attentionMask belongs to inputIds/);
  await assert.rejects(() => rows({ messages: [] }), /messages are empty/);
});
