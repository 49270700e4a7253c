import assert from "node:assert/strict";
import { kernel } from "./kernel.ts";
import { uniformWords, writeUniform, writeUniforms } from "./uniforms.ts";

const fields = { n: "u32", scale: "f32", shift: "i32" } as const;
const tried = kernel("uniforms_test", { writes: { y: "u32" }, uniforms: fields }, () => "");
const values = { shift: -3, n: 2 ** 32 - 1, scale: -0.5, other: 7 };

Deno.test("uniforms lie in the order of the fields, as bits of their types", () => {
  const words = uniformWords(tried, values);
  assert.deepEqual([...words], [2 ** 32 - 1, 0xbf000000, 2 ** 32 - 3]);
  const block = new Uint32Array(6).fill(9);
  writeUniforms(tried, values, block, 2);
  assert.deepEqual([...block], [9, 9, ...words, 9]);
});

Deno.test("a field without a value is refused by its name", () => {
  assert.throws(() => uniformWords(tried, { n: 1, scale: 2 }), /uniforms_test: no value for uniform shift/);
  assert.throws(() => writeUniform(tried, 0, undefined, new Uint32Array(1), 0), /no value for uniform n$/);
});
