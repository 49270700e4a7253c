import assert from "node:assert/strict";
import { arbTensor, assertClose, compose, elementOf, integer, property } from "../testing/mod.ts";
import { arange, tensor, zeros } from "./create.ts";
import { add, cast, mul } from "./elementwise.ts";
import { DTypeError, ShapeError } from "./errors.ts";
import { matmul, matmulSizes } from "./matmul.ts";
import { eye } from "./gather.ts";
import { expandDims, permute, reshape, transpose } from "./movement.ts";
import { sum } from "./reduce.ts";
import type { Tensor } from "./tensor.ts";

Deno.test("matmul() multiplies matrices, and vectors as a row on the left and a column on the right", async () => {
  const a = tensor([[1, 2], [3, 4]]), v = tensor([1, 10]);
  assert.deepEqual(await matmul(a, a).array(), [[7, 10], [15, 22]]);
  assert.deepEqual(await matmul(a, v).array(), [21, 43]);
  assert.deepEqual(await matmul(v, a).array(), [31, 42]);
  assert.deepEqual(await matmul(v, v).array(), 101);
  assert.deepEqual(await matmul(a, v, { transposeB: true }).array(), [21, 43]);
  assert.deepEqual(await matmul(v, a, { transposeA: true }).array(), [31, 42]);
  assert.deepEqual(matmul(zeros([5, 3, 2]), v).shape, [5, 3]);
  assert.deepEqual(matmul(v, zeros([5, 2, 3])).shape, [5, 3]);
});

Deno.test("matmul() over K = 0 is zeros, and over empty matrices is empty", async () => {
  assert.deepEqual(await matmul(zeros([2, 0]), zeros([0, 3])).array(), [[0, 0, 0], [0, 0, 0]]);
  assert.deepEqual(matmul(zeros([0, 4]), zeros([4, 3])).shape, [0, 3]);
  assert.deepEqual(await matmul(zeros([0]), zeros([0])).array(), 0);
  assert.deepEqual(matmul(zeros([0, 2, 4]), zeros([4, 3])).shape, [0, 2, 3]);
});

Deno.test("matmul() keeps 16-bit sums wide and promotes what differs", async () => {
  const row = tensor([[2048, 1, 1, 1, 1]], { dtype: "f16" }), one = tensor([1, 1, 1, 1, 1], { dtype: "f16" });
  assert.deepEqual(await matmul(row, one).array(), [2052]);
  assert.equal(matmul(row, cast(one, "f32")).dtype, "f32");
  assert.throws(() => matmul(arange(2), arange(2)), DTypeError);
});

Deno.test("matmul() refuses what does not fit by both shapes, as they are read", () => {
  assert.throws(
    () => matmul(zeros([2, 3]), zeros([2, 3])),
    new ShapeError("matmul", "inner sizes differ: left [2,3], right [2,3] (3 ≠ 2)"),
  );
  assert.throws(() => matmul(zeros([2, 3]), zeros([3, 4]), { transposeB: true }), /right \[3,4\] transposed \(3 ≠ 4\)/);
  assert.throws(() => matmul(zeros([2, 2, 3]), zeros([3, 3, 4])), /\[2\], right \[3\]/);
  assert.throws(() => matmul(zeros([]), zeros([3])), ShapeError);
  assert.deepEqual(
    matmulSizes([5, 1, 3, 2], [4, 3, 7], { transposeA: true, transposeB: false }),
    { batch: [5, 4], m: 2, n: 7, k: 3 },
  );
});

/** Batch axes of both sides. */
const batches: [left: number[], right: number[]][] = [[[], []], [[2], []], [[], [3]], [[2, 1], [3]], [[2], [1]]];

const products = compose((draw) => {
  const [m, n, k] = [0, 1, 2].map(() => draw(integer(0, 4)));
  const [left, right] = draw(elementOf(...batches));
  const [transposeA, transposeB] = [draw(elementOf(false, true)), draw(elementOf(false, true))];
  const real = (shape: number[]) => draw(arbTensor({ shape, dtype: "f64", views: true }));
  const a = real([...left, ...(transposeA ? [k, m] : [m, k])]), b = real([...right, ...(transposeB ? [n, k] : [k, n])]);
  return { a, b, options: { transposeA, transposeB } };
});

/** Σ_k a[…, i, k, 1] · b[…, 1, k, j], as a product that broadcasts and a sum. */
function bySums(a: Tensor, b: Tensor): Tensor {
  return sum(mul(expandDims(a, -1), expandDims(b, -3)), { axis: -2 });
}

property("matmul() is sums of products over broadcast batches, either side transposed", [products], async (p) => {
  const { a, b, options: { transposeA, transposeB } } = p;
  const expected = bySums(transposeA ? transpose(a) : a, transposeB ? transpose(b) : b);
  await assertClose(matmul(a, b, p.options), expected);
});

const matrix = (...shape: number[]) => arbTensor({ shape, dtype: "f64" });

property("matmul() is associative, distributes, and has the identity", [
  matrix(2, 3),
  matrix(3, 4),
  matrix(3, 4),
  matrix(4, 2),
], async (a, b, c, d) => {
  await assertClose(matmul(matmul(a, b), d), matmul(a, matmul(b, d)));
  await assertClose(matmul(a, add(b, c)), add(matmul(a, b), matmul(a, c)));
  await assertClose(matmul(a, eye(3, 3, { dtype: "f64" })), a, { atol: 0, rtol: 0 });
});

Deno.test("matmul() of a batch with one matrix is one tall product, also from a view of the batch", async () => {
  const x = permute(reshape(cast(arange(12), "f32"), [3, 2, 2]), [1, 0, 2]), w = tensor([[1, 0], [10, 1]]);
  await assertClose(matmul(x, w), bySums(x, w));
});
