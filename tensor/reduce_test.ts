import assert from "node:assert/strict";
import { arbShape, arbTensor, assertClose, checkGradients, elementOf, property } from "../testing/mod.ts";
import { grad } from "../mod.ts";
import { tensor, zeros } from "./create.ts";
import { exp, log, mul } from "./elementwise.ts";
import { DTypeError, ShapeError, ValueError } from "./errors.ts";
import { expandDims, transpose } from "./movement.ts";
import { argmax, argmin, cumsum, logSumExp, logsumexp, max, mean, min, sum, topK } from "./reduce.ts";
import { rangeOf, type Tensor } from "./tensor.ts";

const x = () => tensor([[1, 5, 3], [4, 2, 6]]);

Deno.test("a reduction runs over the axes that are named, all when none is, and keeps them on request", async () => {
  assert.deepEqual(await sum(x()).array(), 21);
  assert.deepEqual(await sum(x(), { axis: 0 }).array(), [5, 7, 9]);
  assert.deepEqual(await max(x(), { axis: -1, keepDims: true }).array(), [[5], [6]]);
  assert.deepEqual(await min(x(), { axis: [0, 1], keepDims: true }).array(), [[1]]);
  assert.deepEqual(await mean(transpose(x()), { axis: 0 }).array(), [3, 4]);
  assert.deepEqual(await sum(x(), { axis: [] }).array(), await x().array());
});

Deno.test("over no elements, sum is 0, mean NaN, logsumexp −∞, and the rest are refused", async () => {
  const none = zeros([2, 0]);
  assert.deepEqual(await sum(none, { axis: 1 }).array(), [0, 0]);
  assert.deepEqual(await mean(none, { axis: 1 }).array(), [NaN, NaN]);
  assert.deepEqual(await logsumexp(none, { axis: 1 }).array(), [-Infinity, -Infinity]);
  assert.deepEqual(await max(none, { axis: 0 }).array(), []);
  const because = "axis 1 of [2,0] is empty and max of nothing is undefined";
  assert.throws(() => max(none, { axis: 1 }), new ShapeError("max", because));
  for (const f of [min, argmax, argmin]) assert.throws(() => f(none), ShapeError);
});

Deno.test("sum() counts bool as integers, and integers wrap at 32 bits", async () => {
  const counted = sum(tensor([true, false, true]));
  assert.deepEqual([counted.dtype, await counted.item()], ["i32", 2]);
  assert.equal(await sum(tensor([2 ** 31 - 1, 1], { dtype: "i32" })).item(), -(2 ** 31));
  assert.equal(mean(tensor([1, 2], { dtype: "i32" })).dtype, "f32");
  assert.throws(() => max(tensor([true])), DTypeError);
});

Deno.test("NaN wins max, min and both searches", async () => {
  const y = tensor([1, NaN, 9, NaN]);
  assert.deepEqual([await max(y).item(), await min(y).item()], [NaN, NaN]);
  assert.deepEqual([await argmax(y).item(), await argmin(y).item()], [1, 1]);
});

Deno.test("argmax() and argmin() give the first of equals, and a range that take() may trust", async () => {
  const y = tensor([[2, 7, 7], [1, 1, 0]]);
  assert.deepEqual(await argmax(y, { axis: 1 }).array(), [1, 0]);
  assert.deepEqual(await argmin(y, { axis: 0, keepDims: true }).array(), [[1, 1, 1]]);
  assert.equal(await argmax(y).item(), 1);
  assert.deepEqual(rangeOf(argmax(y, { axis: 1 })), [0, 2]);
  assert.deepEqual(argmax(y, { keepDims: true }).shape, [1, 1]);
});

Deno.test("logsumexp() neither overflows nor loses −∞", async () => {
  await assertClose(logsumexp(tensor([1000, 1000])), 1000 + Math.LN2);
  await assertClose(logsumexp(tensor([-1000, -1000])), -1000 + Math.LN2);
  assert.equal(await logsumexp(tensor([-Infinity, -Infinity])).item(), -Infinity);
  assert.equal(await logsumexp(tensor([-Infinity, 3])).item(), 3);
  assert.equal(logSumExp([1, Infinity]), Infinity);
  assert.ok(Number.isNaN(logSumExp([NaN, 1])));
});

const filled = arbTensor({ shape: arbShape({ minRank: 1, zeros: false }), dtype: "f64", views: true });

property("logsumexp() is the logarithm of the sum of exponentials", [filled], async (x) => {
  await assertClose(logsumexp(x, { axis: 0 }), log(sum(exp(x), { axis: 0 })));
});

property("reducing axes one by one is reducing them at once", [
  arbTensor({ shape: [2, 3, 4], dtype: "f64", views: true }),
  elementOf(sum, mean, max, min, logsumexp),
], async (x, reduce) => {
  await assertClose(reduce(x, { axis: [0, -1] }), reduce(reduce(x, { axis: 2 }), { axis: 0 }));
});

property("cumsum() ends in the sum, and its steps are the elements", [filled], async (x) => {
  const rows = cumsum(x), length = x.shape.at(-1)!, data = await rows.data(), elements = await x.data();
  await assertClose(data.filter((_, i) => i % length === length - 1), await sum(x, { axis: -1 }).data());
  await assertClose(data.map((v, i) => i % length === 0 ? v : v - data[i - 1]), elements);
});

Deno.test("cumsum()'s gradient adds up from the other end", async () => {
  const weights = tensor([1, 10, 100]);
  assert.deepEqual(await grad((x: Tensor) => sum(mul(cumsum(x), weights)))(tensor([1, 2, 3])).array(), [111, 110, 100]);
  await checkGradients((x) => cumsum(x, { axis: 0 }), [tensor([[1, 2], [3, 4], [5, 6]])]);
});

Deno.test("topK() gives the largest in falling order, the first of equals first, NaN before all", async () => {
  const { values, indices } = topK(tensor([[3, 9, 9, 1], [0, -1, NaN, 5]]), 3);
  assert.deepEqual(await values.array(), [[9, 9, 3], [NaN, 5, 0]]);
  assert.deepEqual(await indices.array(), [[1, 2, 0], [2, 3, 0]]);
  assert.deepEqual([indices.dtype, rangeOf(indices)], ["i32", [0, 3]]);
  assert.deepEqual(topK(zeros([2, 3]), 0).values.shape, [2, 0]);
  for (const k of [-1, 5, 1.5, NaN]) assert.throws(() => topK(zeros([2, 4]), k), ValueError);
  assert.throws(() => topK(zeros([]), 1), ShapeError);
});

property("topK() with all is a sort, and its first is max", [filled], async (x) => {
  const length = x.shape.at(-1)!, { values } = topK(x, length);
  await assertClose(topK(x, 1).values, expandDims(max(x, { axis: -1 }), -1), { atol: 0, rtol: 0 });
  const rows = await values.data(), data = await x.data();
  for (let at = 0; at < data.length; at += length) {
    assertClose(rows.slice(at, at + length), data.slice(at, at + length).sort().reverse(), { atol: 0, rtol: 0 });
  }
});

Deno.test("max()'s gradient is shared by equal elements", async () => {
  assert.deepEqual(await grad((x: Tensor) => max(x))(tensor([1, 4, 4, 0])).array(), [0, 0.5, 0.5, 0]);
});
