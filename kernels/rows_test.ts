import assert from "node:assert/strict";
import { pickRows, pickVec, rounded, rowOutput, rowType } from "./rows.ts";

Deno.test("pickRows() covers every row, whatever its length", () => {
  for (const dtype of ["f32", "f16", "bf16"] as const) {
    for (let n = 0; n < 20000; n += n < 300 ? 1 : 97) {
      const { lanes, vec, held } = pickRows(dtype, n);
      assert.equal(n % vec, 0);
      assert(held === 0 || lanes * held * vec >= n, `${n}: ${lanes} lanes, ${held} loads of ${vec}`);
      assert(256 % lanes === 0);
    }
  }
});

Deno.test("pickRows() gives rows of many lengths few tiles", () => {
  const tiles = new Set(Array.from({ length: 8192 }, (_, n) => JSON.stringify(pickRows("f32", n))));
  assert(tiles.size <= 16, `${tiles.size} tiles`);
});

Deno.test("pickVec() takes the widest load that fits, eight for packed types alone", () => {
  assert.equal(pickVec("bf16", [16, 8]), 8);
  assert.equal(pickVec("bf16", [16, 4]), 4);
  assert.equal(pickVec("f32", [16, 8]), 4);
  assert.equal(pickVec("f16", [16, 6]), 1);
});

Deno.test("rows of a packed type that share words are written as f32", () => {
  assert.equal(rowOutput("bf16", { vec: 1 }), "f32");
  assert.equal(rowOutput("bf16", { vec: 4 }), "bf16");
  assert.equal(rowOutput("f32", { vec: 1 }), "f32");
  assert.deepEqual([8, 4, 1].map((vec) => rowType("f16", { vec: vec as 1 | 4 | 8 })), ["vec4u", "vec2u", "u32"]);
  assert.equal(rounded("f32", "x"), "x");
});
