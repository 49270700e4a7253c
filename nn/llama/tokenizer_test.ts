import assert from "node:assert/strict";
import { readFile } from "node:fs/promises";
import { FormatError, IndexError, UnsupportedError, ValueError } from "../../tensor/errors.ts";
import { array, elementOf, integer, property } from "../../testing/mod.ts";
import { type Message, streamDecoder } from "./text.ts";
import { tokenizer } from "./tokenizer.ts";

const folder = new URL("../fixtures/llama-a/", import.meta.url);
const read = (name: string): Promise<string> => readFile(new URL(name, folder), "utf8");
const files = {
  "tokenizer.json": await read("tokenizer.json"),
  "tokenizer_config.json": await read("tokenizer_config.json"),
  "chat_template.jinja": await read("chat_template.jinja"),
};
const { "chat_template.jinja": template, ...bare } = files;

interface Expected {
  readonly encodings: readonly { text: string; ids: number[]; ids_plain: number[]; decoded: string }[];
  readonly chat: readonly Message[];
  readonly chat_text: string;
  readonly chat_ids: readonly number[];
}

/** Python wrote it, whose JSON has NaN. */
const expected: Expected = JSON.parse((await read("expected.json")).replaceAll("NaN", "null"));
const llamaA = tokenizer(files, { name: "llama-a" });

/** The fixture's tokenizer with another template in its config. */
function withTemplate(chat_template: unknown): ReturnType<typeof tokenizer> {
  const config = { ...JSON.parse(bare["tokenizer_config.json"]), chat_template };
  return tokenizer({ ...bare, "tokenizer_config.json": JSON.stringify(config) }, { name: "model" });
}

Deno.test("encode() and decode() give what transformers gives", () => {
  assert.equal(llamaA.size, 700);
  for (const { text, ids, ids_plain, decoded } of expected.encodings) {
    assert.deepEqual(llamaA.encode(text), ids);
    assert.deepEqual(llamaA.encode(text, { addSpecialTokens: false }), ids_plain);
    assert.equal(llamaA.decode(ids_plain), decoded);
    assert.equal(llamaA.decode(ids), `<|begin_of_text|>${decoded}`);
    assert.equal(llamaA.decode(ids, { skipSpecialTokens: true }), decoded.replace("<|eot_id|>", ""));
  }
  assert.equal(llamaA.idOf("<|eot_id|>"), 698);
  assert.equal(llamaA.idOf("no such token"), undefined);
});

Deno.test("tokens that the config names are special too", () => {
  const config = { bos_token: { content: "whale" }, additional_special_tokens: [" the", { content: "ing" }] };
  const made = tokenizer({ ...bare, "tokenizer_config.json": JSON.stringify(config) });
  const ids = [made.idOf("ing"), made.idOf("Ġm")].filter((id) => id !== undefined);
  assert.equal(ids.length, 2);
  assert.equal(made.decode(ids), "ing m");
  assert.equal(made.decode(ids, { skipSpecialTokens: true }), " m");
});

property("what is encoded is decoded to the same text, at once and as a stream", [
  array(
    elementOf("a", " ", "\n", "\t", "é", "🐋", "中", "don't", " .", "12345", "\u0000", "ß", "\r\n", "<|eot_id", "  "),
    {
      maxLength: 12,
    },
  ),
], (parts) => {
  const text = parts.join(""), ids = llamaA.encode(text, { addSpecialTokens: false });
  assert.equal(llamaA.decode(ids), text);
  const stream = streamDecoder(llamaA);
  assert.equal(ids.map((id) => stream.push([id])).join("") + stream.end(), text);
});

property("a stream of any ids gives the text of them all", [
  array(integer(0, 699), { maxLength: 40 }),
], (ids) => {
  const stream = streamDecoder(llamaA);
  const text = ids.map((id) => stream.push([id])).join("") + stream.end();
  assert.equal(text, llamaA.decode(ids, { skipSpecialTokens: true }));
});

/** A tokenizer as Llama 1 and 2 have it: spaces as ▁, one before the text, and bytes for characters that it lacks. */
function sentencePiece(): ReturnType<typeof tokenizer> {
  const bytes = Array.from({ length: 256 }, (_, i) => `<0x${i.toString(16).toUpperCase().padStart(2, "0")}>`);
  const pieces = ["<unk>", "<s>", "</s>", ...bytes, "▁", ..."abcdehilmrstw.", "▁w", "ha", "le", "▁wha", "▁whale"];
  const special = ["<unk>", "<s>", "</s>"].map((content, id) => ({ id, content, special: true, normalized: false }));
  return tokenizer({
    "tokenizer.json": JSON.stringify({
      added_tokens: special,
      normalizer: {
        type: "Sequence",
        normalizers: [
          { type: "Prepend", prepend: "▁" },
          { type: "Replace", pattern: { String: " " }, content: "▁" },
        ],
      },
      post_processor: {
        type: "TemplateProcessing",
        single: [{ SpecialToken: { id: "<s>", type_id: 0 } }, { Sequence: { id: "A", type_id: 0 } }],
        pair: [],
        special_tokens: { "<s>": { id: "<s>", ids: [1], tokens: ["<s>"] } },
      },
      decoder: {
        type: "Sequence",
        decoders: [
          { type: "Replace", pattern: { String: "▁" }, content: " " },
          { type: "ByteFallback" },
          { type: "Fuse" },
          { type: "Strip", content: " ", start: 1, stop: 0 },
        ],
      },
      model: {
        type: "BPE",
        unk_token: "<unk>",
        fuse_unk: true,
        byte_fallback: true,
        vocab: Object.fromEntries(pieces.map((piece, i) => [piece, i])),
        merges: [["▁", "w"], ["h", "a"], ["l", "e"], ["▁w", "ha"], ["▁wha", "le"]],
      },
    }),
  });
}

property("tokenizers of the first Llamas: text comes back, at once and as a stream", [
  array(elementOf("a", " ", "whale", " whale", "é", "🐋", "中文", ".", "the "), { maxLength: 10 }),
], (parts) => {
  const made = sentencePiece(), text = parts.join(""), ids = made.encode(text);
  assert.equal(ids[0], 1);
  assert.equal(made.decode(ids, { skipSpecialTokens: true }), text);
  for (let at = 1; at <= ids.length; at++) {
    const stream = streamDecoder(made, { after: ids.slice(0, at) });
    const before = made.decode(ids.slice(0, at), { skipSpecialTokens: true }).replace(/\uFFFD+$/, "");
    assert.equal(before + ids.slice(at).map((id) => stream.push([id])).join("") + stream.end(), text);
  }
});

Deno.test("decode() refuses what is no id, and gives no text for ids that only the model has", () => {
  assert.equal(llamaA.decode([]), "");
  assert.equal(llamaA.decode(Int32Array.of(34, 275, 75)), "Call");
  const wide = tokenizer(files, { vocabulary: 704 });
  assert.equal(wide.decode([34, 703, 275, 75]), "Call");
  assert.equal(wide.decode([703]), "");
  for (const [bad, limit] of [[700, 700], [-1, 700], [1.5, 700], [NaN, 700]]) {
    assert.throws(
      () => llamaA.decode([34, bad]),
      (error) => error instanceof IndexError && error.message.includes(`${bad} is no id: there are ${limit}`),
    );
  }
  assert.throws(() => llamaA.encode(5 as unknown as string), ValueError);
});

Deno.test("applyChatTemplate() renders what transformers renders, with the same ids", () => {
  const text = llamaA.applyChatTemplate(expected.chat, { addGenerationPrompt: true });
  assert.equal(text, expected.chat_text);
  assert.deepEqual(llamaA.encode(text, { addSpecialTokens: false }), expected.chat_ids);
  const ended = llamaA.applyChatTemplate(expected.chat);
  assert.equal(`${ended}<|start_header_id|>assistant<|end_header_id|>\n\n`, text);
});

Deno.test("a template stands in the config or in a file of its own, which goes first", () => {
  const chat = [{ role: "user", content: "hello" }];
  assert.equal(withTemplate("{{ messages[0].content }}!").applyChatTemplate(chat), "hello!");
  const named = withTemplate([
    { name: "default", template: "plain" },
    { name: "tool_use", template: "{{ tools | length }} tools" },
  ]);
  assert.equal(named.applyChatTemplate(chat), "plain");
  assert.equal(named.applyChatTemplate(chat, { tools: [{}, {}] }), "2 tools");
  const config = JSON.stringify({ chat_template: "config", bos_token: { content: "<b>" } });
  const both = tokenizer({ ...bare, "tokenizer_config.json": config, "chat_template.jinja": "file {{ bos_token }}" });
  assert.equal(both.applyChatTemplate(chat), "file <b>");
  assert.deepEqual([llamaA.hasChatTemplate, tokenizer(bare).hasChatTemplate], [true, false]);
});

Deno.test("a template has the variables that transformers gives it", () => {
  const render = (text: string, options?: Parameters<typeof llamaA.applyChatTemplate>[1]) =>
    withTemplate(text).applyChatTemplate([{ role: "user", content: " hi " }], options);
  assert.equal(
    render("{{ bos_token }}{{ eos_token }}{{ pad_token }}"),
    "<|begin_of_text|><|eot_id|><|finetune_right_pad_id|>",
  );
  assert.equal(render("{% if tools is none and documents is none %}none{% endif %}"), "none");
  assert.equal(render("{{ messages[0]['content'] | trim + '.' }}"), "hi.");
  assert.equal(render("{{ date_string }}", { variables: { date_string: "26 Jul 2024" } }), "26 Jul 2024");
  assert.match(render("{{ strftime_now('%d %b %Y') }}"), /^\d\d [A-Z][a-z]{2} \d{4}$/);
  assert.equal(render("{% if not date_string is defined %}{{ messages | length }}{% endif %}"), "1");
  assert.equal(render("{{ {'a': 1} | tojson }}"), '{"a": 1}');
  assert.equal(
    render("{%- for m in messages %}\n  {%- if m.role == 'user' %}\n  u\n  {%- endif %}\n{% endfor %}"),
    "  u",
  );
  assert.throws(
    () => render("{{ raise_exception('roles must alternate') }}"),
    (error) => error instanceof ValueError && /model\/tokenizer_config\.json: roles must alternate/.test(error.message),
  );
});

Deno.test("a tokenizer without a template, and messages that are none, are refused", () => {
  const plain = tokenizer(bare, { name: "some/model" }), chat = [{ role: "user", content: "x" }];
  assert.throws(
    () => plain.applyChatTemplate(chat),
    (error) => error instanceof UnsupportedError && /some\/model: there is no chat template/.test(error.message),
  );
  assert.throws(
    () => withTemplate([{ name: "rag", template: "" }]).applyChatTemplate(chat),
    /no template "default" among "rag"/,
  );
  const bad = (messages: unknown) => () => llamaA.applyChatTemplate(messages as Message[]);
  assert.throws(bad("hello"), /messages are a list of/);
  assert.throws(bad([chat[0], { content: "x" }]), /message 1 has no role/);
  assert.throws(bad([{ role: "user" }]), /message 0 has no content/);
  assert.throws(bad([{ role: "user", content: 5 }]), ValueError);
});

Deno.test("files that are no tokenizer are refused by name", () => {
  const refused = (changed: Record<string, string>, form: RegExp) =>
    assert.throws(
      () => tokenizer({ ...files, ...changed }, { name: "model" }).applyChatTemplate(expected.chat),
      (error) => error instanceof FormatError && form.test(error.message),
    );
  refused({ "tokenizer.json": "{" }, /model\/tokenizer\.json: is not JSON/);
  refused({ "tokenizer.json": "[]" }, /is JSON, but not an object/);
  refused({ "tokenizer.json": "{}" }, /has no "model"/);
  refused({ "tokenizer.json": '{"model":{"type":"none of them"}}' }, /tokenizer\.json: .*none of them/);
  refused({ "tokenizer.json": '{"model":{"type":"BPE"}}' }, /model\/tokenizer\.json: /);
  refused({ "tokenizer.json": '{"model":{},"added_tokens":5}' }, /"added_tokens" is not a list/);
  refused({ "tokenizer_config.json": "no" }, /tokenizer_config\.json: is not JSON/);
  refused({ "tokenizer_config.json": '{"chat_template":5}' }, /chat_template is neither/);
  refused({ "tokenizer_config.json": '{"chat_template":["x"]}' }, /is not \{ name, template \}/);
  refused({ "chat_template.jinja": "{% for %}" }, /model\/chat_template\.jinja: is no template/);
  assert.throws(() => tokenizer({}), /there is no tokenizer\.json/);
  assert(template.length > 0);
});
