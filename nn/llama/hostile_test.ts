/** Files that someone has damaged: a model comes of them, or an error that flashtape means. */
import assert from "node:assert/strict";
import { readFile } from "node:fs/promises";
import { cpu } from "../../tensor/cpu.ts";
import { FlashtapeError } from "../../tensor/errors.ts";
import { dispose } from "../../tensor/scope.ts";
import { array, compose, elementOf, integer, property, tuple } from "../../testing/mod.ts";
import { load } from "./mod.ts";

const folder = new URL("../fixtures/llama-f16-sharded/", import.meta.url);
const other = new URL("../fixtures/llama-a/", import.meta.url);
const shards = [1, 2, 3, 4, 5].map((n) => `model-0000${n}-of-00005.safetensors`);
const own = ["config.json", "generation_config.json", "model.safetensors.index.json"];
const texts = ["tokenizer.json", "tokenizer_config.json", "chat_template.jinja"];
const bytes = new Map<string, Uint8Array<ArrayBuffer>>();
for (const file of [...own, ...shards]) bytes.set(file, new Uint8Array(await readFile(new URL(file, folder))));
for (const file of texts) bytes.set(file, new Uint8Array(await readFile(new URL(file, other))));

type Json = null | boolean | number | string | Json[] | { [key: string]: Json };

const strange: readonly Json[] = [
  ...[null, true, false, 0, -1, 0.5, 7, 1e9, 2 ** 31, 1e308, "", "x", "../../etc/passwd", "__proto__"],
  ...[[], {}, [null], [[1]], { x: 1 }, "model-00001-of-00005.safetensors", "{{", "<|eot_id|>"],
];

/** Puts a strange value somewhere into JSON; `way` chooses at each branching. */
function spoil(value: Json, way: readonly number[], to: Json): Json {
  const [turn, ...rest] = way;
  if (turn === undefined || typeof value !== "object" || value === null) return to;
  const keys = Object.keys(value);
  if (keys.length === 0) return to;
  const key = keys[turn % keys.length];
  if (Array.isArray(value)) return value.map((each, i) => String(i) === key ? spoil(each, rest, to) : each);
  return { ...value, [key]: spoil(value[key], rest, to) };
}

const damage = compose((draw) => ({
  file: draw(elementOf(...own, ...texts.slice(0, 2))),
  way: draw(array(elementOf(0, 1, 2, 3, 4, 5, 6, 7, 500), { minLength: 1, maxLength: 6 })),
  to: strange[draw(integer(0, strange.length - 1))],
}));

/** A directory in memory, some files of it replaced. */
function directory(replaced: Readonly<Record<string, Uint8Array<ArrayBuffer>>>): File[] {
  return [...bytes].map(([name, whole]) => new File([replaced[name] ?? whole], name));
}

/** Loads and uses what came, or checks that the error is one of ours. */
async function tryLoading(files: readonly File[]): Promise<void> {
  const before = cpu().memory().current;
  try {
    const { params, tokenizer } = await load(files, { backend: cpu() });
    dispose(params);
    tokenizer.decode(tokenizer.encode("Call me <|eot_id|> 🐋"));
    tokenizer.applyChatTemplate([{ role: "user", content: "x" }]);
  } catch (error) {
    assert(error instanceof FlashtapeError, String(error instanceof Error ? error.stack : error));
    assert(error.message.length < 4000, `a message of ${error.message.length} characters`);
  }
  assert(cpu().memory().current <= before, "left tensors behind");
}

Deno.test("the directory as it is loads", async () => {
  const { params, tokenizer } = await load(directory({}), { backend: cpu() });
  assert.deepEqual([Object.keys(params).length, tokenizer.size], [21, 700]);
  dispose(params);
});

property(
  "a strange value anywhere in a model's JSON gives a model or an error of ours",
  [damage],
  async ({ file, way, to }) => {
    const json = JSON.parse(new TextDecoder().decode(bytes.get(file)));
    await tryLoading(directory({ [file]: new TextEncoder().encode(JSON.stringify(spoil(json, way, to))) }));
  },
  { runs: 400 },
);

property("damaged bytes of any file give a model or an error of ours", [
  elementOf(...bytes.keys()),
  array(tuple(integer(0, 300), integer(0, 255)), { minLength: 1, maxLength: 3 }),
], async (file, hits) => {
  const spoilt = bytes.get(file)!.slice();
  for (const [at, value] of hits) spoilt[at % spoilt.length] = value;
  await tryLoading(directory({ [file]: spoilt }));
}, { runs: 200 });
