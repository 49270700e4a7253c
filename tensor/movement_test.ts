import assert from "node:assert/strict";
import { arbTensor, assertClose, elementOf, integer, property } from "../testing/mod.ts";
import { cpu } from "./cpu.ts";
import { arange, tensor, zeros } from "./create.ts";
import { DTypeError, ShapeError, ValueError } from "./errors.ts";
import {
  broadcastTo,
  concat,
  expandDims,
  pad,
  permute,
  reshape,
  slice,
  squeeze,
  stack,
  transpose,
} from "./movement.ts";

const bytesHeld = () => cpu().memory().current;

Deno.test("reshape() of a permuted view copies, in row-major order of what it sees", async () => {
  const x = transpose(tensor([[1, 2, 3], [4, 5, 6]]));
  const before = bytesHeld();
  const flat = reshape(x, [-1]);
  assert.equal(bytesHeld(), before + 24);
  assert.deepEqual(await flat.array(), [1, 4, 2, 5, 3, 6]);
});

property("reshape() keeps the elements in order, from views as from copies", [
  arbTensor({ views: true }),
], async (x) => {
  assert.deepEqual(await reshape(x, [x.size]).data(), await x.data());
  assert.deepEqual(await reshape(reshape(x, [1, x.size]), x.shape).array(), await x.array());
});

Deno.test("reshape() works out one axis and refuses sizes that differ", () => {
  assert.deepEqual(reshape(zeros([2, 6]), [3, -1]).shape, [3, 4]);
  assert.deepEqual(reshape(zeros([0, 3]), [-1, 3]).shape, [0, 3]);
  assert.throws(() => reshape(zeros([2, 3]), [4]), new ShapeError("reshape", "[2,3] has 6 elements, [4] has 4"));
  for (const bad of [[4, -1], [-1, -1], [-2, -3]]) assert.throws(() => reshape(zeros([2, 3]), bad), ShapeError);
});

Deno.test("permute() orders axes, negative ones too, and wants each once", async () => {
  const x = reshape(arange(6), [1, 2, 3]);
  assert.deepEqual(await permute(x, [-1, 0, 1]).array(), [[[0, 3]], [[1, 4]], [[2, 5]]]);
  for (const bad of [[0, 1], [0, 0, 1], [0, 1, 3]]) assert.throws(() => permute(x, bad), ShapeError);
  assert.deepEqual(transpose(x, 0, 2).shape, [3, 2, 1]);
  assert.throws(() => transpose(zeros([3])), ShapeError);
});

Deno.test("broadcastTo() repeats without a copy, and never shrinks", async () => {
  const x = tensor([[1], [2]]), before = bytesHeld();
  const y = broadcastTo(x, [2, 2, 3]);
  assert.equal(bytesHeld(), before);
  assert.deepEqual(await y.array(), [[[1, 1, 1], [2, 2, 2]], [[1, 1, 1], [2, 2, 2]]]);
  assert.throws(() => broadcastTo(zeros([2, 3]), [1, 3]), ShapeError);
  assert.throws(() => broadcastTo(zeros([2, 3]), [2]), ShapeError);
});

const places = integer(-7, 7);

property("slice() takes the places that an array's slice takes, and every n-th of them", [
  places,
  places,
  elementOf(1, 2, 3, 9),
], async (begin, end, stride) => {
  const host = [0, 1, 2, 3, 4], wanted = host.slice(begin, end).filter((_, i) => i % stride === 0);
  const x = slice(tensor(host), [begin], [end], { strides: [stride] });
  assert.deepEqual([x.shape, await x.array()], [[wanted.length], wanted]);
});

Deno.test("slice() leaves axes whole that are not named, and refuses what is no place", async () => {
  const x = reshape(arange(12), [3, 4]);
  assert.deepEqual(await slice(x, [-1]).array(), [[8, 9, 10, 11]]);
  assert.deepEqual(await slice(x, [], [2], { strides: [1, 3] }).array(), [[0, 3], [4, 7]]);
  assert.throws(() => slice(x, [0, 0, 0]), ShapeError);
  assert.throws(() => slice(x, [0.5]), ValueError);
  assert.throws(() => slice(x, [0], [1], { strides: [0] }), ValueError);
  assert.throws(() => slice(x, [0], [1], { strides: [-1] }), ValueError);
});

Deno.test("pad() puts a border around, of any value that the type holds", async () => {
  const x = tensor([[1, 2]]);
  assert.deepEqual(await pad(x, [[1, 0], [0, 2]]).array(), [[0, 0, 0, 0], [1, 2, 0, 0]]);
  assert.deepEqual(await pad(x, [[0, 0], [1, 0]], { value: -Infinity }).array(), [[-Infinity, 1, 2]]);
  assert.deepEqual(await pad(zeros([0]), [[1, 1]], { value: 3 }).array(), [3, 3]);
  assert.throws(() => pad(x, [[1, 1]]), ShapeError);
  assert.throws(() => pad(x, [[0, 0], [-1, 0]]), ValueError);
  assert.throws(() => pad(arange(2), [[1, 0]], { value: 0.5 }), ValueError);
});

Deno.test("concat() puts tensors one after another, in the widest of their types", async () => {
  const x = tensor([[1, 2], [3, 4]]), y = transpose(tensor([[5, 6]]));
  assert.deepEqual(await concat([x, y], { axis: -1 }).array(), [[1, 2, 5], [3, 4, 6]]);
  assert.deepEqual(await concat([x, zeros([0, 2]), x]).array(), [[1, 2], [3, 4], [1, 2], [3, 4]]);
  assert.equal(concat([zeros([1], { dtype: "f16" }), arange(2)]).dtype, "f16");
  assert.throws(() => concat([]), ShapeError);
  assert.throws(() => concat([x, y]), ShapeError);
  assert.throws(() => concat([arange(2), zeros([2], { dtype: "u32" })]), DTypeError);
});

Deno.test("stack() gives tensors an axis of their own", async () => {
  const x = tensor([1, 2]), y = tensor([3, 4]);
  assert.deepEqual(await stack([x, y]).array(), [[1, 2], [3, 4]]);
  assert.deepEqual(await stack([x, y], { axis: -1 }).array(), [[1, 3], [2, 4]]);
  assert.throws(() => stack([x, zeros([3])]), ShapeError);
});

property("concat() puts back what slice() cut", [
  arbTensor({ shape: [5, 3], views: true }),
  integer(0, 5),
], async (x, at) => {
  await assertClose(concat([slice(x, [0], [at]), slice(x, [at])]), x, { atol: 0, rtol: 0 });
});

Deno.test("squeeze() drops axes of length 1 and no others, expandDims() brings one back", () => {
  const x = zeros([1, 2, 1]);
  assert.deepEqual([squeeze(x).shape, squeeze(x, { axis: -1 }).shape], [[2], [1, 2]]);
  assert.throws(() => squeeze(x, { axis: 1 }), new ShapeError("squeeze", "axis 1 of [1,2,1] has length 2, not 1"));
  assert.deepEqual([expandDims(zeros([2]), -1).shape, expandDims(zeros([2]), 0).shape], [[2, 1], [1, 2]]);
  assert.throws(() => expandDims(zeros([2]), 2), ShapeError);
});
