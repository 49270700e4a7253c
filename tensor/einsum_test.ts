import assert from "node:assert/strict";
import { assertClose } from "../testing/mod.ts";
import {
  einsum,
  grad,
  matmul,
  mul,
  permute,
  ShapeError,
  square,
  sum,
  type Tensor,
  tensor,
  ValueError,
} from "../mod.ts";

const f64 = (shape: number[]) =>
  tensor(Float64Array.from({ length: shape.reduce((a, b) => a * b, 1) }, (_, i) => Math.sin(i + shape.length)), {
    shape,
    dtype: "f64",
  });

Deno.test("einsum() of a batch of matrices is matmul()", async () => {
  const a = f64([3, 2, 4]), b = f64([3, 4, 5]);
  await assertClose(einsum("bij,bjk->bik", a, b), matmul(a, b));
});

Deno.test("einsum() permutes, sums, and multiplies outer products", async () => {
  const a = f64([2, 3, 4]), x = f64([3]), y = f64([5]);
  await assertClose(einsum("abc->cab", a), permute(a, [2, 0, 1]));
  await assertClose(einsum("abc->b", a), sum(a, { axis: [0, 2] }));
  await assertClose(einsum("abc->", a), sum(a));
  const [xs, ys] = [await x.data(), await y.data()];
  assert.deepEqual(await einsum("i,j->ij", x, y).array(), Array.from(xs, (p) => Array.from(ys, (q) => p * q)));
});

Deno.test("einsum() without a result takes the letters that stand once, in alphabetical order", async () => {
  const a = f64([2, 3]), b = f64([3, 4]);
  await assertClose(einsum("zj,ja", a, b), permute(matmul(a, b), [1, 0]));
});

Deno.test("einsum() of three tensors equals two products in a row", async () => {
  const a = f64([2, 3]), b = f64([3, 4]), c = f64([4, 5]);
  await assertClose(einsum("ij,jk,kl->il", a, b, c), matmul(matmul(a, b), c));
  await assertClose(einsum("ij,ij,ij->j", a, a, a), sum(mul(mul(a, a), a), { axis: 0 }));
});

Deno.test("einsum() has a gradient", async () => {
  const a = f64([2, 3]), b = f64([3, 4]);
  const by = (f: (a: Tensor) => Tensor) => grad((a: Tensor) => sum(square(f(a))))(a);
  await assertClose(by((a) => einsum("ij,jk->ik", a, b)), by((a) => matmul(a, b)));
});

Deno.test("einsum() refuses what it cannot read, by name", () => {
  const a = tensor([[1, 2]]);
  assert.throws(() => einsum("ij,jk->ik", a), ValueError);
  assert.throws(() => einsum("i…->i", a), ValueError);
  assert.throws(() => einsum("ij->ik", a), ValueError);
  assert.throws(() => einsum("ii->i", a), ValueError);
  assert.throws(() => einsum("ijk->i", a), ShapeError);
  assert.throws(() => einsum("ij,jk->ik", a, tensor([[1], [2], [3]])), /axis j is 2 long, and 3 in input 1 \[3,1\]/);
});
