import assert from "node:assert/strict";
import { mulHigh, philox4x32 } from "./philox.ts";

const hex = (words: Uint32Array) => [...words].map((w) => w.toString(16).padStart(8, "0")).join(" ");

Deno.test("philox4x32() gives the known answers of Random123", () => {
  const ones = 0xffffffff;
  assert.equal(hex(philox4x32(0, 0, 0, 0, 0, 0)), "6627e8d5 e169c58d bc57ac4c 9b00dbd8");
  assert.equal(hex(philox4x32(ones, ones, ones, ones, ones, ones)), "408f276d 41c83b0e a20bc7c6 6d5451fd");
  const pi = philox4x32(0x243f6a88, 0x85a308d3, 0x13198a2e, 0x03707344, 0xa4093822, 0x299f31d0);
  assert.equal(hex(pi), "d16cfe09 94fdcceb 5001e420 24126ea1");
});

Deno.test("philox4x32() takes counters and keys as u32 or as the i32 of the same bits", () => {
  assert.deepEqual(
    philox4x32(-1, -2, -3, -4, -5, -6),
    philox4x32(2 ** 32 - 1, 2 ** 32 - 2, 2 ** 32 - 3, 2 ** 32 - 4, 2 ** 32 - 5, 2 ** 32 - 6),
  );
});

Deno.test("mulHigh() is the high half of the exact product", () => {
  for (const a of [0, 1, 0xffff, 0x10000, 0x7fffffff, 0x80000000, 0xdeadbeef, 0xffffffff]) {
    for (const b of [0, 1, 0xffff, 0x10001, 0x12345678, 0xffffffff]) {
      assert.equal(mulHigh(a, b), Number(BigInt(a) * BigInt(b) >> 32n));
    }
  }
});
