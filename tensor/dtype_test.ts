import assert from "node:assert/strict";
import { elementOf, float, oneOf, property } from "../testing/mod.ts";
import {
  bf16Bits,
  bf16Value,
  decode,
  type DType,
  dtypes,
  encode,
  f16Bits,
  f16Value,
  hostArray,
  isDType,
  promote,
  roundTo,
} from "./dtype.ts";
import { DTypeError } from "./errors.ts";

const all = Object.keys(dtypes) as DType[];
const halves = [
  { name: "f16", bits: f16Bits, value: f16Value, infinity: 0x7c00 },
  { name: "bf16", bits: bf16Bits, value: bf16Value, infinity: 0x7f80 },
] as const;

for (const { name, bits, value, infinity } of halves) {
  Deno.test(`${name} bits come back from the numbers that they stand for, all 65,536 of them`, () => {
    for (let b = 0; b < 65536; b++) {
      const x = value(b), isNaN = (b & 0x7fff) > infinity;
      assert.equal(Number.isNaN(x), isNaN);
      if (isNaN) assert.ok(Number.isNaN(value(bits(x))));
      else assert.equal(bits(x), b);
    }
  });

  Deno.test(`${name} rounds what lies between two numbers to the nearer, and the middle to the even one`, () => {
    for (let b = 0; b + 1 < infinity; b++) {
      const low = value(b), high = value(b + 1), middle = (low + high) / 2;
      // The neighbours of the middle in f32, where inputs come from; f32 holds the middle itself.
      const even = b % 2 === 0 ? b : b + 1, step = Math.max(middle * 2 ** -23, 2 ** -149);
      assert.equal(bits(middle), even, `${middle}`);
      assert.equal(bits(middle - step), b, `below ${middle}`);
      assert.equal(bits(middle + step), b + 1, `above ${middle}`);
      assert.equal(bits(-middle), even | 0x8000);
    }
  });

  Deno.test(`${name} takes half a step beyond its largest number to infinity`, () => {
    const largest = value(infinity - 1), step = largest - value(infinity - 2);
    assert.equal(bits(largest + step / 2), infinity);
    assert.equal(bits(Math.fround((largest + step / 2) * (1 - 2 ** -24))), infinity - 1);
    assert.deepEqual([bits(Infinity), bits(-Infinity)], [infinity, infinity | 0x8000]);
  });
}

const types = elementOf(...all);
const attempt = (a: DType, b: DType): DType | "refused" => {
  try {
    return promote("add", a, b);
  } catch (error) {
    assert.ok(error instanceof DTypeError);
    return "refused";
  }
};

Deno.test("promote() commutes, leaves a type with itself alone, and refuses i32 with u32 alone", () => {
  for (const a of all) {
    assert.equal(promote("add", a, a), a);
    for (const b of all) {
      assert.equal(attempt(a, b), attempt(b, a));
      assert.equal(attempt(a, b) === "refused", [a, b].sort().join() === "i32,u32");
    }
  }
});

property("promote() gives a type that both already meet in", [types, types], (a, b) => {
  const both = attempt(a, b);
  if (both !== "refused") assert.deepEqual([promote("add", both, a), promote("add", b, both)], [both, both]);
});

Deno.test("promote() knows bool below integers below floats, and f32 above both 16-bit types", () => {
  assert.equal(promote("add", "bool", "u32"), "u32");
  assert.equal(promote("add", "i32", "f16"), "f16");
  assert.equal(promote("add", "f16", "bf16"), "f32");
  assert.equal(promote("add", "bf16", "f64"), "f64");
});

const anyFloat = oneOf(float(), elementOf(NaN, Infinity, -Infinity, -0));

property("decode() gives back what encode() was given, rounded to the type", [types, anyFloat], (dtype, x) => {
  const data = hostArray(dtype, 3);
  data[1] = x;
  const bytes = encode(dtype, data);
  assert.equal(bytes.byteLength, 3 * dtypes[dtype].bytes);
  const back = decode(dtype, bytes);
  roundTo(dtype, data);
  assert.deepEqual([...back], [...data]);
  assert.notEqual(back.buffer, bytes.buffer);
});

Deno.test("encode() writes little-endian bytes", () => {
  assert.deepEqual([...encode("f16", Float32Array.of(1, -2))], [0x00, 0x3c, 0x00, 0xc0]);
  assert.deepEqual([...encode("u32", Uint32Array.of(0x01020304))], [4, 3, 2, 1]);
});

Deno.test("isDType() knows the names of types and nothing that an object happens to have", () => {
  assert.ok(all.every(isDType));
  for (const other of ["f8", "toString", "", 32, null]) assert.equal(isDType(other), false);
});
