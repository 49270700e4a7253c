import assert from "node:assert/strict";
import { arbDType, arbTensor, elementOf, integer, property } from "../testing/mod.ts";
import { arange, fromBytes, full, ones, tensor, zeros } from "./create.ts";
import { DTypeError, ShapeError, ValueError } from "./errors.ts";
import { rangeOf } from "./tensor.ts";

Deno.test("tensor() takes its shape from nesting and its dtype from the values", async () => {
  const x = tensor([[1, 2.5], [3, 4]]);
  assert.deepEqual([x.shape, x.dtype, await x.array()], [[2, 2], "f32", [[1, 2.5], [3, 4]]]);
  assert.deepEqual([tensor(true).dtype, tensor([[false]]).shape], ["bool", [1, 1]]);
  assert.deepEqual([tensor(new Uint32Array(2)).dtype, tensor(new Int8Array(2)).dtype], ["u32", "i32"]);
  assert.equal(tensor(new Float64Array(2)).dtype, "f32");
  assert.deepEqual([tensor([]).shape, tensor([[], []]).shape], [[0], [2, 0]]);
});

Deno.test("tensor() refuses uneven rows, wrong counts and unknown types by name", () => {
  assert.throws(
    () => tensor([[1, 2], [3]]),
    new ShapeError("tensor", "rows differ in shape: [2] at index 0, [1] at index 1"),
  );
  assert.throws(() => tensor([1, [2]]), ShapeError);
  assert.throws(() => tensor([1, 2, 3], { shape: [2, 2] }), /3 values do not fill \[2,2\] \(4 elements\)/);
  assert.throws(() => tensor([1], { shape: [-1] }), ShapeError);
  assert.throws(() => tensor([1], { dtype: "float" as "f32" }), DTypeError);
});

Deno.test("an integer type takes whole numbers in its range and no others", async () => {
  const ends = [-(2 ** 31), 2 ** 31 - 1];
  assert.deepEqual(await tensor(ends, { dtype: "i32" }).array(), ends);
  assert.deepEqual(await tensor([2 ** 32 - 1], { dtype: "u32" }).array(), [2 ** 32 - 1]);
  for (const bad of [2 ** 31, 0.5, NaN, Infinity]) {
    assert.throws(() => tensor([0, bad], { dtype: "i32" }), new ValueError("tensor", `${bad} at position 1 is no i32`));
  }
  assert.throws(() => tensor([-1], { dtype: "u32" }), ValueError);
  assert.throws(() => full([2], 1.5, { dtype: "i32" }), ValueError);
});

Deno.test("tensor() copies what it is given", async () => {
  const values = Float32Array.of(1, 2);
  const x = tensor(values);
  values[0] = 9;
  assert.deepEqual(await x.array(), [1, 2]);
});

property("fromBytes() reads what bytes() wrote, in every type", [
  arbDType("f32", "f16", "bf16", "i32", "u32", "bool", "f64").chain((dtype) => arbTensor({ dtype, views: true })),
], async (x) => {
  const y = fromBytes(await x.bytes(), { shape: x.shape, dtype: x.dtype });
  assert.deepEqual(await y.array(), await x.array());
});

Deno.test("fromBytes() refuses another count of bytes", () => {
  assert.throws(
    () => fromBytes(new Uint8Array(7), { shape: [2, 2], dtype: "f16" }),
    new ShapeError("fromBytes", "[2,2] of f16 needs 8 bytes, got 7"),
  );
});

Deno.test("zeros(), ones() and full() fill, and booleans make bool", async () => {
  assert.deepEqual(await zeros([2, 2]).array(), [[0, 0], [0, 0]]);
  assert.deepEqual(await ones([2], { dtype: "i32" }).array(), [1, 1]);
  assert.deepEqual([full([], true).dtype, await full([2], 0.1, { dtype: "bf16" }).array()], ["bool", [
    0.10009765625,
    0.10009765625,
  ]]);
});

Deno.test("arange() counts as NumPy's does", async () => {
  assert.deepEqual(await arange(3).array(), [0, 1, 2]);
  assert.deepEqual(await arange(2, 5).array(), [2, 3, 4]);
  assert.deepEqual(await arange(5, 0, { step: -2 }).array(), [5, 3, 1]);
  assert.deepEqual(await arange(0, 1, { step: 0.25 }).array(), [0, 0.25, 0.5, 0.75]);
  assert.deepEqual(await arange(5, 2).array(), []);
  assert.deepEqual([arange(3).dtype, arange(0, 1.5).dtype, arange(0.5, 3).dtype], ["i32", "i32", "f32"]);
  for (const bad of [NaN, Infinity]) assert.throws(() => arange(bad), ValueError);
  assert.throws(() => arange(0, 5, { step: 0 }), ValueError);
  assert.throws(() => arange(-1, 2, { dtype: "u32" }), ValueError);
});

property("arange() knows the range of what it makes", [
  integer(-20, 20),
  integer(-20, 20),
  elementOf(-3, -1, 1, 2, 7),
], async (start, stop, step) => {
  const x = arange(start, stop, { step }), values = await x.array() as number[];
  assert.ok(values.every((v) => step > 0 ? v < stop : v > stop));
  assert.deepEqual(rangeOf(x), values.length === 0 ? undefined : [Math.min(...values), Math.max(...values)]);
});
