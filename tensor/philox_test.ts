import assert from "node:assert/strict";
import { integer, oneOf, property } from "../testing/mod.ts";
import { mulHigh, philox4x32 } from "./philox.ts";

const hex = (words: Uint32Array) => [...words].map((w) => w.toString(16).padStart(8, "0")).join(" ");

Deno.test("philox4x32() gives the known answers of its authors", () => {
  const f = 0xffffffff;
  assert.equal(hex(philox4x32(0, 0, 0, 0, 0, 0)), "6627e8d5 e169c58d bc57ac4c 9b00dbd8");
  assert.equal(hex(philox4x32(f, f, f, f, f, f)), "408f276d 41c83b0e a20bc7c6 6d5451fd");
  assert.equal(
    hex(philox4x32(0x243f6a88, 0x85a308d3, 0x13198a2e, 0x03707344, 0xa4093822, 0x299f31d0)),
    "d16cfe09 94fdcceb 5001e420 24126ea1",
  );
});

const word = oneOf(integer(0, 2 ** 32 - 1), integer(2 ** 32 - 99, 2 ** 32 - 1));

property("mulHigh() is the high half of the product", [word, word], (a, b) => {
  assert.equal(mulHigh(a, b) >>> 0, Number((BigInt(a) * BigInt(b)) >> 32n));
});

property("philox4x32() takes signed words as the bits that they are, and fills what it is given", [
  word,
  word,
], (a, b) => {
  const out = new Uint32Array(4);
  assert.equal(philox4x32(a, b, a, b, a, b, out), out);
  assert.deepEqual(philox4x32(a | 0, b | 0, a | 0, b | 0, a | 0, b | 0), out);
});

Deno.test("one bit of the counter or the key changes half of the output's bits", () => {
  const words = [1, 2, 3, 4, 5, 6] as const, base = philox4x32(...words);
  let flipped = 0;
  for (let bit = 0; bit < 192; bit++) {
    const [c0, c1, c2, c3, k0, k1] = words.map((w, i) => i === bit >> 5 ? w ^ (1 << (bit & 31)) : w);
    const other = philox4x32(c0, c1, c2, c3, k0, k1);
    base.forEach((w, i) => flipped += ((w ^ other[i]) >>> 0).toString(2).replaceAll("0", "").length);
  }
  const expected = 192 * 64;
  assert.ok(Math.abs(flipped - expected) < 500, `${flipped} bits, ${expected} expected`); // σ = 78
});
