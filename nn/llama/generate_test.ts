import assert from "node:assert/strict";
import { readFile } from "node:fs/promises";
import { webgpu } from "../../mod.ts";
import { getBackend, memory, setBackend } from "../../tensor/backend.ts";
import { cpu } from "../../tensor/cpu.ts";
import { tensor } from "../../tensor/create.ts";
import { FlashtapeError } from "../../tensor/errors.ts";
import { key } from "../../tensor/random.ts";
import { dispose } from "../../tensor/scope.ts";
import { needAdapter } from "../../testing/laws/adapter.ts";
import { safetensors } from "../mod.ts";
import { generate, type GenerateOptions } from "./generate.ts";
import { init } from "./model.ts";
import type { Tokenizer } from "./text.ts";
import type { LlamaModel } from "./weights.ts";

const backends = [cpu(), await needAdapter(webgpu())];

/** A test that runs on every backend. */
function test(name: string, body: () => Promise<void>): void {
  for (const backend of backends) {
    Deno.test(`${name}, on ${backend.name}`, async () => {
      setBackend(backend);
      try {
        await body();
      } finally {
        setBackend(backends[0]);
      }
    });
  }
}

const folder = new URL("../fixtures/llama-a/", import.meta.url);
const json = async (name: string) => JSON.parse(await readFile(new URL(name, folder), "utf8"));
const config = await json("config.json"), generationConfig = await json("generation_config.json");
const expected = await safetensors.read(new URL("expected.safetensors", folder), { backend: backends[0] });
const generated = await expected.generated.array() as number[][];
const prompt = generated[0].slice(0, 17);

/** Every id below 128 is the letter of that code, the others are numbers in brackets. */
const letters: Tokenizer = {
  size: 700,
  files: {},
  hasChatTemplate: false,
  encode: (text) => Array.from(text, (c) => c.charCodeAt(0)),
  decode: (ids) => Array.from(ids, (id) => id < 128 ? String.fromCharCode(id) : `[${id}]`).join(""),
  applyChatTemplate: () => assert.fail("no template"),
  idOf: () => undefined,
};

const open = async (): Promise<LlamaModel> => ({
  config,
  generationConfig,
  tokenizer: letters,
  params: await safetensors.read(new URL("model.safetensors", folder), { dtype: "f32", backend: getBackend() }),
});

const small = {
  vocab_size: 61,
  hidden_size: 32,
  intermediate_size: 48,
  num_hidden_layers: 2,
  num_attention_heads: 4,
  num_key_value_heads: 2,
  max_position_embeddings: 64,
  initializer_range: 0.4,
  tie_word_embeddings: true,
};
/** A model that says many different things. */
function made(more: Partial<LlamaModel> = {}): LlamaModel {
  using seed = key(5);
  return { config: small, params: init(seed, small), ...more };
}

async function all(model: LlamaModel, options: GenerateOptions): Promise<{ tokens: number[][]; text: string[] }> {
  const tokens: number[][] = [], text: string[] = [];
  for await (const step of generate(model, options)) {
    step.tokens.forEach((id, b) => (tokens[b] ??= []).push(id));
    step.text.forEach((piece, b) => text[b] = (text[b] ?? "") + piece);
  }
  return { tokens, text };
}

test("the likeliest tokens are those of the fixture", async () => {
  const model = await open();
  const { tokens, text } = await all(model, { inputIds: [prompt], maxNewTokens: 24 });
  assert.deepEqual(tokens, [generated[0].slice(17)]);
  assert.equal(text[0], letters.decode(generated[0].slice(17)));
  dispose(model.params);
});

test("each row of a batch is what it is alone, however it is padded", async () => {
  const model = made(), rows = [[3, 9, 27, 20], [7], [1, 2]];
  const together = await all(model, { inputIds: rows, maxNewTokens: 9 });
  for (const [b, row] of rows.entries()) {
    assert.deepEqual((await all(model, { inputIds: [row], maxNewTokens: 9 })).tokens[0], together.tokens[b]);
  }
  const inputIds = tensor([[3, 9, 27, 20], [0, 0, 0, 7], [50, 60, 1, 2]], { dtype: "i32" });
  const attentionMask = tensor([[1, 1, 1, 1], [0, 0, 0, 1], [0, 0, 1, 1]], { dtype: "i32" });
  assert.deepEqual(await all(model, { inputIds, attentionMask, maxNewTokens: 9 }), together);
  assert.ok(new Set(together.tokens.flat()).size > 6, `${together.tokens}`);
  const many = Array.from({ length: 12 }, (_, b) => rows[b % 3]);
  const wide = await all(model, { inputIds: many, maxNewTokens: 5 });
  assert.deepEqual(wide.tokens, many.map((_, b) => together.tokens[b % 3].slice(0, 5)));
});

test("the same seed gives the same tokens, another one others", async () => {
  const model = made();
  const at = async (seed?: number) =>
    (await all(model, { inputIds: [1, 2, 3], temperature: 1.2, topP: 0.95, maxNewTokens: 12, seed })).tokens[0];
  assert.deepEqual(await at(4), await at(4));
  assert.notDeepEqual(await at(4), await at(5));
  assert.notDeepEqual(await at(), await at());
});

test("a row ends at its stop ids and goes on as padding until all rows have ended", async () => {
  const free = await all(made(), { inputIds: [[3, 9, 27, 20], [7]], maxNewTokens: 8 });
  const stop = free.tokens[0][2], at = free.tokens[1].indexOf(stop);
  const model = made({ generationConfig: { eos_token_id: [stop], pad_token_id: 60 } });
  const { tokens } = await all(model, { inputIds: [[3, 9, 27, 20], [7]], maxNewTokens: 8 });
  const ended = (row: number[], at: number) => row.map((id, i) => i <= at ? id : 60);
  const first = free.tokens[0].indexOf(stop), length = at < 0 ? 8 : Math.max(first, at) + 1;
  assert.deepEqual(tokens, [
    ended(free.tokens[0], first).slice(0, length),
    ended(free.tokens[1], at < 0 ? 8 : at).slice(0, length),
  ]);
  const alone = await all(made(), { inputIds: [3, 9, 27, 20], maxNewTokens: 8, stop });
  assert.deepEqual(alone.tokens[0], free.tokens[0].slice(0, first + 1));
});

test("a row ends before its stop text", async () => {
  const model = made({ tokenizer: letters });
  const { text: [whole], tokens: [ids] } = await all(model, { inputIds: [3, 9, 27, 20], maxNewTokens: 10 });
  const stop = whole.slice(3, 5),
    { text, tokens } = await all(model, {
      inputIds: [3, 9, 27, 20],
      maxNewTokens: 10,
      stop: ["never", stop],
    });
  assert.equal(text[0], whole.slice(0, whole.indexOf(stop)));
  assert.deepEqual(tokens[0], ids.slice(0, whole.indexOf(stop) + 2));
  const held = await all(model, { inputIds: [3, 9, 27, 20], maxNewTokens: 10, stop: whole.slice(-1) + "no" });
  assert.equal(held.text[0], whole); // what was held back comes at the end
});

test("generating ends where the context does", async () => {
  const { tokens } = await all(made(), { inputIds: Array(60).fill(1), maxNewTokens: 100 });
  assert.equal(tokens[0].length, 4);
});

test("a signal ends the text, and everything is freed, as often as one likes", async () => {
  const model = made();
  let level = 0;
  for (let turn = 0; turn < 6; turn++) {
    const stopping = new AbortController();
    let steps = 0;
    for await (const _ of generate(model, { inputIds: [1, 2, 3], maxNewTokens: 40, signal: stopping.signal })) {
      if (++steps === 3) stopping.abort();
    }
    assert.equal(steps, 3);
    for await (const _ of generate(model, { inputIds: [[1, 2, 3], [4]], maxNewTokens: 40 })) break;
    if (turn === 1) level = memory().current;
    if (turn > 1) assert.equal(memory().current, level);
  }
  for await (const _ of generate(model, { inputIds: [1], signal: AbortSignal.abort() })) assert.fail("was aborted");
  dispose(model.params);
});

Deno.test("what generate() cannot do is refused by its numbers", async () => {
  const model = made({ tokenizer: letters });
  const refused = (options: GenerateOptions, message: RegExp) =>
    assert.rejects(() => all(model, options), (e) => e instanceof FlashtapeError && message.test(e.message));
  const inputIds: number[] = [1, 2];
  await refused({ inputIds: Array(64).fill(1) }, /the prompt has 64 tokens, the model's context 64/);
  await refused({ inputIds: [61] }, /has id 61: the model has ids 0 to 60/);
  await refused({ inputIds: [] }, /row 0 has no tokens/);
  await refused({}, /give one of prompt, messages and inputIds/);
  await refused({ inputIds, temperature: NaN }, /temperature .* got NaN/);
  await refused({ inputIds, topP: 1.1 }, /topP .* got 1\.1/);
  await refused({ inputIds, maxNewTokens: 0 }, /maxNewTokens is a whole number above 0, got 0/);
  await refused({ inputIds, maxNewTokens: 2.5 }, /got 2\.5/);
  await refused(
    { inputIds, maxNewTokens: 9, capacity: 10 },
    /room for 10 tokens, the prompt's 2 and 9 new ones do not/,
  );
  await refused({ inputIds, seed: 0.5 }, /seed is a whole number, got 0\.5/);
  await refused({ inputIds, stop: "" }, /a stop text is empty/);
  await refused({ inputIds, stop: -3 }, /a stop id is .* got -3/);
  await assert.rejects(() => all(made(), { inputIds, stop: "a" }), /no tokenizer: stop by ids/);
  await assert.rejects(() => all(made(), { prompt: "a" }), /no tokenizer: give inputIds/);
});

Deno.test("where no runtime can wait for the device, reads go on beside the steps and give the same", async () => {
  const slow = await needAdapter(webgpu({ fastReadback: false })), inputIds = [[3, 9, 27, 20], [7]];
  const options = { inputIds, maxNewTokens: 12, temperature: 0.9, seed: 2 };
  setBackend(backends[1]);
  const want = await all(made(), options);
  setBackend(slow);
  try {
    const model = made();
    assert.deepEqual(await all(model, options), want);
    const [row] = want.tokens, end = row.indexOf(row[4]) + 1;
    const stopped = await all(model, { ...options, stop: row[4] });
    assert.deepEqual(stopped.tokens[0].slice(0, end), row.slice(0, end));
    assert.ok(stopped.tokens[0].slice(end).every((id) => id === 0));
    // Nothing but a few tokens is queued behind the first one before it is waited for, then more and more.
    const counts: number[] = [], read = slow.read;
    slow.read = (storage, layout, dtype) => {
      counts.push(layout.shape[1]);
      return read.call(slow, storage, layout, dtype);
    };
    assert.deepEqual(await all(model, options), want);
    assert.equal(counts.reduce((a, b) => a + b), 12);
    assert.deepEqual(counts.slice(0, 1), [1]);
    counts.reduce((before, count) => (assert.ok(count <= 2 * before, `${counts}`), count));
    dispose(model.params);
  } finally {
    setBackend(backends[0]);
    slow.dispose();
  }
});
