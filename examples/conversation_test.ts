import assert from "node:assert/strict";
import { readFileSync } from "node:fs";
import { tokenizer } from "@flashtape/flashtape/tokenizer";
import { Conversation } from "./conversation.ts";

const read = (name: string) => readFileSync(new URL(`../nn/fixtures/llama-a/${name}`, import.meta.url), "utf8");
const llamaA = tokenizer({
  "tokenizer.json": read("tokenizer.json"),
  "tokenizer_config.json": read("tokenizer_config.json"),
  "chat_template.jinja": read("chat_template.jinja"),
});

Deno.test("a conversation says what it would have to forget, and fits when it has", () => {
  const talk = new Conversation(llamaA, 512, 100, "You are terse.");
  assert.deepEqual(talk.prompt("hi").map((m) => m.role), ["system", "user"]);
  for (let i = 0; talk.fit(`question ${i}`).fits; i++) {
    talk.add(`question ${i}`, `an answer of some length, number ${i}`);
  }
  const turns = talk.messages.length / 2, { tokens, cut } = talk.fit("question x");
  assert(turns > 3 && tokens > 412);
  assert.equal(cut?.turns, 1);
  assert(cut.tokens <= 412);
  talk.drop(cut.turns);
  assert.deepEqual(talk.fit("question x"), { tokens: cut.tokens, fits: true, cut: null });
  assert.equal(talk.messages[0].content, "question 1");
  const long = talk.fit("long ".repeat(60)).cut!;
  assert(long.turns > 1 && long.tokens <= 412);
  assert.deepEqual(talk.fit("long ".repeat(600)).cut, null, "no forgetting makes room for it");
  talk.reset();
  assert.deepEqual(talk.prompt("x").length, 2);
});
