import assert from "node:assert/strict";
import { array, elementOf, property } from "../../testing/mod.ts";
import { RowText } from "./stream.ts";

/** Ids are bytes. */
const bytes = {
  decode: (ids: Iterable<number>) => new TextDecoder().decode(Uint8Array.from(ids)),
};

/** The pieces that a row gives out for a text, a byte at a time, and whether it was stopped. */
function pieces(text: string, stops: readonly string[]): { pieces: string[]; stopped: boolean } {
  const row = new RowText(bytes, stops), out: string[] = [];
  for (const id of new TextEncoder().encode(text)) {
    const { text, stopped } = row.push(id);
    out.push(text);
    if (stopped) return { pieces: out, stopped };
  }
  return { pieces: [...out, row.end()], stopped: false };
}

Deno.test("a row gives out whole characters, each with its last byte", () => {
  assert.deepEqual(pieces("aé🐋", []).pieces, ["a", "", "é", "", "", "", "🐋", ""]);
});

Deno.test("a row holds back what may be the beginning of a stop text, and no more", () => {
  assert.deepEqual(pieces("a<b<|x", ["<|end|>"]).pieces, ["a", "", "<b", "", "", "<|x", ""]);
  assert.deepEqual(pieces("ab<|end|>c", ["<|end|>"]), {
    pieces: ["a", "b", "", "", "", "", "", "", ""],
    stopped: true,
  });
  assert.deepEqual(pieces("say <|en", ["<|end|>"]).pieces.join(""), "say <|en");
});

property("a row ends at the first stop text that its text has", [
  array(elementOf("a", "b", "ab", "é", "🐋"), { maxLength: 12 }),
  array(elementOf("a", "ba", "bb", "aab", "é", "b🐋"), { maxLength: 3 }),
], (parts, stops) => {
  const text = parts.join(""), { pieces: given, stopped } = pieces(text, stops);
  const places = stops.map((stop) => text.indexOf(stop)).filter((at) => at >= 0);
  // The first that is complete, not the first that begins.
  const ends = stops.flatMap((stop) => text.includes(stop) ? [text.indexOf(stop) + stop.length] : []);
  const seen = ends.length === 0 ? text : text.slice(0, Math.min(...ends));
  const cut = Math.min(...stops.map((stop) => seen.indexOf(stop)).filter((at) => at >= 0), seen.length);
  assert.equal(stopped, places.length > 0);
  assert.equal(given.join(""), seen.slice(0, cut));
});

Deno.test("without a tokenizer there is no text", () => {
  const row = new RowText(undefined, []);
  assert.deepEqual([row.push(3), row.end()], [{ text: "", stopped: false }, ""]);
});
