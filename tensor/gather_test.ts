import assert from "node:assert/strict";
import { arbTensor, array, assertClose, compose, elementOf, integer, property } from "../testing/mod.ts";
import { grad, randint } from "../mod.ts";
import { arange, tensor, zeros } from "./create.ts";
import { add, mul } from "./elementwise.ts";
import { DTypeError, IndexError, ShapeError, ValueError } from "./errors.ts";
import { eye, oneHot, scatterAdd, take } from "./gather.ts";
import { matmul } from "./matmul.ts";
import { reshape } from "./movement.ts";
import { key } from "./random.ts";
import { sum } from "./reduce.ts";
import type { Tensor } from "./tensor.ts";

const ids = (values: number[] | number[][]) => tensor(values, { dtype: "i32" });
/** The same indices, of which the host knows nothing. */
const computed = (values: number[]) => add(ids(values), 0);

Deno.test("take() reads rows by index, and the indices' shape takes the place of the axis", async () => {
  const x = tensor([[1, 2], [3, 4], [5, 6]]);
  assert.deepEqual(await take(x, ids([2, 0, 2])).array(), [[5, 6], [1, 2], [5, 6]]);
  assert.deepEqual(await take(x, ids([[1], [0]]), { axis: -1 }).array(), [[[2], [1]], [[4], [3]], [[6], [5]]]);
  assert.deepEqual(take(x, ids([])).shape, [0, 2]);
});

Deno.test("an index that the host knows to be outside is refused by its value", () => {
  const x = zeros([3, 2]);
  assert.throws(() => take(x, ids([0, 3])), new IndexError("take", "index 3 is outside an axis of length 3"));
  assert.throws(() => take(x, ids([-1])), new IndexError("take", "index -1 is outside an axis of length 3"));
  assert.throws(() => take(x, reshape(ids([0, 5]), [2, 1])), IndexError);
  assert.throws(() => take(x, randint(key(1), [2], { min: 3, max: 4 })), IndexError);
  assert.throws(() => scatterAdd(x, arange(4), zeros([4, 2])), IndexError);
  assert.throws(() => oneHot(ids([2]), 2), IndexError);
});

Deno.test("an index computed on the device that is outside reads NaN, 0 for integers, and writes nothing", async () => {
  const at = computed([-1, 1, 2, 2 ** 31 - 1]);
  assert.deepEqual(await take(tensor([5, 6]), at).array(), [NaN, 6, NaN, NaN]);
  assert.deepEqual(await take(ids([5, 6]), at).array(), [0, 6, 0, 0]);
  assert.deepEqual(await scatterAdd(tensor([5, 6]), at, tensor([1, 10, 100, 1000])).array(), [5, 16]);
  assert.deepEqual(await oneHot(computed([-1, 1]), 2).array(), [[0, 0], [0, 1]]);
});

Deno.test("scatterAdd() adds equal places up in the order of the updates", async () => {
  const large = 2 ** 54; // in f64, 2^54 + 1 is 2^54: the order of adding shows
  const into = (updates: number[]) =>
    scatterAdd(zeros([2], { dtype: "f64" }), ids([1, 1, 1]), tensor(updates, { dtype: "f64" })).array();
  assert.deepEqual(await into([large, 1, -large]), [0, 0]);
  assert.deepEqual(await into([large, -large, 1]), [0, 1]);
});

Deno.test("scatterAdd() leaves its input alone and wants updates of the right shape and type", async () => {
  const x = tensor([1, 2]);
  assert.deepEqual(await scatterAdd(x, ids([0]), tensor([5])).array(), [6, 2]);
  assert.deepEqual(await x.array(), [1, 2]);
  assert.throws(() => scatterAdd(x, ids([0]), zeros([2])), /updates are \[2\], expected \[1\]/);
  assert.throws(() => scatterAdd(x, ids([0]), zeros([1], { dtype: "f64" })), DTypeError);
  assert.throws(() => take(x, tensor([0])), new DTypeError("take", "indices is f32, expected i32 or u32"));
  assert.throws(() => take(x, ids([0]), { axis: 1 }), ShapeError);
});

const picks = compose((draw) => {
  const axis = draw(elementOf(0, 1)), x = draw(arbTensor({ shape: [3, 4], dtype: "f64", views: true }));
  return { x, axis, at: draw(array(integer(0, x.shape[axis] - 1), { minLength: 1, maxLength: 6 })) };
});

property("take() is a product with one-hot rows", [picks], async ({ x, at }) => {
  const rows = at.map((i) => i % 3);
  await assertClose(take(x, ids(rows)), matmul(oneHot(ids(rows), 3, { dtype: "f64" }), x));
});

property("scatterAdd() is the transpose of take(): ⟨take x, u⟩ = ⟨x, scatterAdd u⟩", [picks], async (p) => {
  const { x, axis, at } = p;
  const shape = x.shape.with(axis, at.length);
  const u = reshape(add(mul(arange(0, 1e3, { dtype: "f64" }), 0.25), -3), [-1]);
  const updates = reshape(take(u, arange(shape[0] * shape[1])), shape);
  const scattered = scatterAdd(zeros(x.shape, { dtype: "f64" }), ids(at), updates, { axis });
  await assertClose(sum(mul(take(x, ids(at), { axis }), updates)), sum(mul(x, scattered)));
  await assertClose(grad((x: Tensor) => sum(mul(take(x, ids(at), { axis }), updates)))(x), scattered);
});

Deno.test("oneHot() and eye() hold ones in the right places", async () => {
  assert.deepEqual(await oneHot(ids([[1], [0]]), 2, { dtype: "i32" }).array(), [[[0, 1]], [[1, 0]]]);
  assert.deepEqual(await eye(2, 3).array(), [[1, 0, 0], [0, 1, 0]]);
  assert.deepEqual([oneHot(ids([]), 3).shape, eye(0).shape], [[0, 3], [0, 0]]);
  assert.throws(() => oneHot(tensor([0]), 2), DTypeError);
  assert.throws(() => oneHot(ids([0]), 1.5), ValueError);
});
