import assert from "node:assert/strict";
import { UnsupportedError } from "../../tensor/errors.ts";
import { array, elementOf, integer, property } from "../../testing/mod.ts";
import { missingTokenizer, streamDecoder } from "./text.ts";

/** A tokenizer of bytes: id 256 is a special token without text. */
const bytes = {
  decode: (ids: Iterable<number>): string =>
    new TextDecoder("utf-8", { ignoreBOM: true }).decode(Uint8Array.from([...ids].filter((id) => id < 256))),
};

/** A tokenizer that, like SentencePiece's, gives one U+FFFD for each byte of a run of bytes that is not whole. */
const runs = {
  decode(ids: Iterable<number>): string {
    const run = Uint8Array.from(ids);
    try {
      return new TextDecoder("utf-8", { fatal: true, ignoreBOM: true }).decode(run);
    } catch {
      return "\uFFFD".repeat(run.length);
    }
  },
};

function pieces(tokenizer: typeof bytes, ids: readonly number[], step = 1): string[] {
  const stream = streamDecoder(tokenizer), out: string[] = [];
  for (let at = 0; at < ids.length; at += step) out.push(stream.push(ids.slice(at, at + step)));
  return [...out, stream.end()];
}

const text = "naïve café, Привет мир, こんにちは, 🐋🚢\u{10FFFF}, \uFFFD and \uFFFD\uFFFD!";

Deno.test("a stream of bytes comes as whole characters, each with its last byte", () => {
  for (const tokenizer of [bytes, runs]) {
    const ids = [...new TextEncoder().encode(text)];
    const out = pieces(tokenizer, ids);
    assert.equal(out.join(""), text);
    // A true U+FFFD waits for what follows it.
    for (const piece of out) assert(piece.replaceAll("\uFFFD", "").length <= 2 && piece.isWellFormed(), piece);
    assert.equal(out.findIndex((piece) => piece === "🐋"), new TextEncoder().encode(text.split("🐋")[0]).length + 3);
    for (const step of [2, 3, 7, 1000]) assert.equal(pieces(tokenizer, ids, step).join(""), text);
  }
});

const anyByte = elementOf(0x41, 0x80, 0x9f, 0xbf, 0xc3, 0xe0, 0xe3, 0xed, 0xf0, 0xf4, 0xff, 0xef, 0xbb, 0xbd, 256);

property("whatever the bytes are, the pieces put together are the whole decoded at once", [
  array(anyByte, { maxLength: 80 }),
  integer(1, 4),
], (ids, step) => {
  const out = pieces(bytes, ids, step);
  assert.equal(out.join(""), bytes.decode(ids));
});

Deno.test("bytes that will never be text do not hold back what follows for ever", () => {
  const ids = Array<number>(1000).fill(0xf0), out = pieces(bytes, ids);
  assert.equal(out.join(""), "\uFFFD".repeat(1000));
  let longest = 0, silent = 0;
  for (const piece of out.slice(0, -1)) longest = Math.max(longest, silent = piece === "" ? silent + 1 : 0);
  assert(longest < 20, `nothing for ${longest} tokens`);
});

Deno.test("a stream can begin again after its end", () => {
  const stream = streamDecoder(bytes), ids = [...new TextEncoder().encode("é")];
  assert.deepEqual([stream.push(ids.slice(0, 1)), stream.end()], ["", "\uFFFD"]);
  assert.deepEqual([stream.push(ids), stream.end()], ["é", ""]);
});

Deno.test("a stream goes on from a prompt, whose text it does not give again", () => {
  const ids = [...new TextEncoder().encode("🐋 whale")];
  for (let at = 0; at < ids.length; at++) {
    const stream = streamDecoder(bytes, { after: ids.slice(0, at) });
    const out = ids.slice(at).map((id) => stream.push([id])).join("") + stream.end();
    assert.equal(out, at < 4 ? "🐋 whale" : " whale".slice(at - 4)); // half a character in the prompt comes whole
  }
});

Deno.test("missingTokenizer() refuses every call with the reason", () => {
  const none = missingTokenizer("model has no tokenizer.json");
  for (const f of [() => none.encode("a"), () => none.decode([1]), () => none.applyChatTemplate([])]) {
    assert.throws(
      f,
      (error) => error instanceof UnsupportedError && /model has no tokenizer\.json/.test(error.message),
    );
  }
  assert.deepEqual([none.size, none.hasChatTemplate, none.idOf("a")], [0, false, undefined]);
});
