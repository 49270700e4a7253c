import assert from "node:assert/strict";
import { arbTensor, assertClose, checkGradients, compose, elementOf, integer, property } from "../testing/mod.ts";
import { checkpoint, grad, valueAndGrad, vjp } from "../mod.ts";
import { full, tensor, zeros } from "./create.ts";
import { eager } from "./eager.ts";
import { add, mul } from "./elementwise.ts";
import { DTypeError, IndexError, ShapeError, UnsupportedError, ValueError } from "./errors.ts";
import { crossEntropy, type CrossEntropyOptions, linearCrossEntropy } from "./loss.ts";
import { key, randint, randn } from "./random.ts";
import { sum } from "./reduce.ts";
import type { Tensor } from "./tensor.ts";

const i32 = (values: number[] | number[][]) => tensor(values, { dtype: "i32" });

const arbOptions = compose((draw): CrossEntropyOptions => ({
  ignoreIndex: draw(elementOf(-100, 0, 2)),
  labelSmoothing: draw(elementOf(0, 0.1)),
  zLoss: draw(elementOf(0, 0.01)),
  softcap: draw(elementOf(0, 3)),
  reduction: draw(elementOf("mean", "sum", "none")),
}));

const arbProblem = compose((draw) => {
  const [B, S, D, V] = [integer(0, 3), integer(1, 4), integer(0, 5), integer(3, 9)].map((n) => draw(n));
  const real = (shape: number[]) => draw(arbTensor({ shape, dtype: "f64" }));
  const labels = randint(key(draw(integer(0, 999))), [B, S], { max: V });
  return { logits: real([B, S, V]), hidden: real([B, S, D]), weight: real([V, D]), labels, options: draw(arbOptions) };
});

property("crossEntropy() equals its eager twin", [arbProblem], async ({ logits, labels, options }) => {
  await assertClose(crossEntropy(logits, labels, options), eager.crossEntropy(logits, labels, options));
});

property("linearCrossEntropy() equals its eager twin, whether gradients are made or not", [arbProblem], async (p) => {
  const { hidden, weight, labels, options } = p;
  const expected = eager.linearCrossEntropy(hidden, weight, labels, options);
  await assertClose(linearCrossEntropy(hidden, weight, labels, options), expected);
  const [value, pullback] = vjp((h: Tensor, w: Tensor) => linearCrossEntropy(h, w, labels, options), hidden, weight);
  await assertClose(value, expected);
  pullback[Symbol.dispose]();
});

property("both losses have the gradients of their eager twins", [arbProblem], async (p) => {
  const { logits, hidden, weight, labels, options } = p;
  const total = (loss: Tensor) => sum(mul(loss, add(loss, 1)));
  const pairs = [
    [crossEntropy, eager.crossEntropy].map((f) => [grad((x: Tensor) => total(f(x, labels, options)))(logits)]),
    [linearCrossEntropy, eager.linearCrossEntropy].map((f) =>
      grad((h: Tensor, w: Tensor) => total(f(h, w, labels, options)), [0, 1])(hidden, weight)
    ),
  ];
  for (const [fused, plain] of pairs) {
    for (const [i, d] of fused.entries()) await assertClose(d, plain[i], { rtol: 1e-7, atol: 1e-7 });
  }
});

Deno.test("both losses have the gradients of central differences", async () => {
  const draw = (i: number, shape: number[]) => randn(key(i), shape, { dtype: "f64" });
  const logits = draw(1, [5, 4]), hidden = draw(2, [5, 3]), weight = draw(3, [4, 3]), labels = i32([0, 3, -100, 1, 2]);
  for (const reduction of ["mean", "sum", "none"] as const) {
    for (const extra of [{}, { labelSmoothing: 0.2, zLoss: 0.1, softcap: 2 }]) {
      const options = { reduction, ...extra };
      await checkGradients((x) => crossEntropy(x, labels, options), [logits]);
      await checkGradients((h, w) => linearCrossEntropy(h, w, labels, options), [hidden, weight]);
      await checkGradients((h) => linearCrossEntropy(h, weight, labels, options), [hidden]);
      await checkGradients((w) => linearCrossEntropy(hidden, w, labels, options), [weight]);
    }
  }
});

Deno.test("linearCrossEntropy() differentiates inside checkpoint as outside", async () => {
  const hidden = randn(key(1), [6, 3], { dtype: "f64" }), weight = randn(key(2), [5, 3], { dtype: "f64" });
  const labels = i32([0, 1, 2, 3, 4, -100]), loss = (h: Tensor, w: Tensor) => linearCrossEntropy(h, w, labels);
  const [value, plain] = valueAndGrad(loss, [0, 1])(hidden, weight);
  const [again, checked] = valueAndGrad(checkpoint(loss), [0, 1])(hidden, weight);
  await assertClose(value, again);
  for (const i of [0, 1]) await assertClose(plain[i], checked[i]);
});

Deno.test("crossEntropy() of even logits is log V, and of certain ones 0", async () => {
  await assertClose(crossEntropy(zeros([3, 7]), i32([0, 6, 3])), Math.log(7));
  await assertClose(crossEntropy(tensor([[0, 1000], [-1000, -3000]]), i32([1, 0])), 0);
  await assertClose(crossEntropy(tensor([[-Infinity, 0, 0]]), i32([2])), Math.log(2));
});

Deno.test("ignored rows have loss and gradient 0, and a mean over no rows is NaN", async () => {
  const logits = randn(key(1), [3, 4]), labels = i32([1, -100, 2]);
  const rows = await crossEntropy(logits, labels, { reduction: "none" }).data();
  assert(rows[0] > 0 && rows[1] === 0 && rows[2] > 0);
  await assertClose(crossEntropy(logits, labels), (rows[0] + rows[2]) / 2);
  const d = await grad((x: Tensor) => crossEntropy(x, labels))(logits).data();
  assert(d.slice(4, 8).every((v) => v === 0) && d.slice(0, 4).some((v) => v !== 0));
  const none = i32([-100, -100, -100]), hidden = randn(key(1), [3, 2]), weight = randn(key(2), [4, 2]);
  await assertClose(crossEntropy(logits, none), NaN);
  await assertClose(linearCrossEntropy(hidden, weight, none), NaN);
  await assertClose(valueAndGrad((h: Tensor) => linearCrossEntropy(h, weight, none))(hidden)[0], NaN);
  await assertClose(crossEntropy(zeros([0, 4]), zeros([0], { dtype: "i32" })), NaN);
  await assertClose(crossEntropy(logits, none, { reduction: "sum" }), 0);
});

Deno.test("losses are f32 for 16-bit inputs, and gradients come in the inputs' dtype", () => {
  for (const dtype of ["f16", "bf16"] as const) {
    const hidden = randn(key(1), [4, 3], { dtype }),
      weight = randn(key(2), [5, 3], { dtype }),
      labels = i32([0, 1, 2, 3]);
    assert.equal(crossEntropy(randn(key(1), [4, 5], { dtype }), labels).dtype, "f32");
    const [value, [dh, dw]] = valueAndGrad((h: Tensor, w: Tensor) => linearCrossEntropy(h, w, labels), [0, 1])(
      hidden,
      weight,
    );
    assert.deepEqual([value.dtype, dh.dtype, dw.dtype], ["f32", dtype, dtype]);
  }
});

Deno.test("labels are checked where the host knows them, and make NaN where it does not", async () => {
  const logits = randn(key(1), [2, 4]), hidden = randn(key(1), [2, 3]), weight = randn(key(2), [4, 3]);
  for (const bad of [[0, 4], [-1, 0], [-100, 4]]) {
    assert.throws(() => crossEntropy(logits, i32(bad)), IndexError);
    assert.throws(() => linearCrossEntropy(hidden, weight, i32(bad)), IndexError);
  }
  assert.throws(() => crossEntropy(logits, i32([-100, 0]), { ignoreIndex: -1 }), IndexError);
  const device = add(i32([3, 1]), 1);
  const rows = await crossEntropy(logits, device, { reduction: "none" }).data();
  assert(Number.isNaN(rows[0]) && rows[1] > 0);
  const d = await grad((x: Tensor) => crossEntropy(x, device, { reduction: "sum" }))(logits).data();
  assert(d.slice(0, 4).every(Number.isNaN) && !d.slice(4).some(Number.isNaN));
});

Deno.test("losses refuse shapes, dtypes and options that do not fit", () => {
  const logits = randn(key(1), [2, 4]), labels = i32([0, 1]);
  const hidden = randn(key(1), [2, 3]), weight = randn(key(2), [4, 3]);
  assert.throws(() => crossEntropy(logits, i32([0, 1, 2])), ShapeError);
  assert.throws(() => crossEntropy(logits, i32([[0, 1]])), ShapeError);
  assert.throws(() => crossEntropy(tensor(1), i32([0])), ShapeError);
  assert.throws(() => linearCrossEntropy(hidden, randn(key(1), [4, 2]), labels), ShapeError);
  assert.throws(() => linearCrossEntropy(hidden, randn(key(1), [4]), labels), ShapeError);
  assert.throws(() => linearCrossEntropy(hidden, full([4, 3], 1, { dtype: "bool" }), i32([0])), ShapeError);
  assert.throws(() => crossEntropy(logits, tensor([0, 1])), DTypeError);
  const wrong: CrossEntropyOptions[] = [
    { labelSmoothing: 1 },
    { labelSmoothing: -0.1 },
    { zLoss: NaN },
    { softcap: -1 },
    { softcap: Infinity },
    { ignoreIndex: 0.5 },
    { reduction: "average" as "mean" },
  ];
  for (const options of wrong) {
    assert.throws(() => crossEntropy(logits, labels, options), ValueError);
    assert.throws(() => linearCrossEntropy(hidden, weight, labels, options), ValueError);
  }
});

Deno.test("linearCrossEntropy() refuses a second derivative, which its eager twin has", async () => {
  const hidden = randn(key(1), [2, 3], { dtype: "f64" }),
    weight = randn(key(2), [4, 3], { dtype: "f64" }),
    labels = i32([0, 3]);
  for (const reduction of ["mean", "none"] as const) {
    const twice = (f: typeof linearCrossEntropy) =>
      grad((h: Tensor) => sum(mul(grad((h: Tensor) => sum(f(h, weight, labels, { reduction })))(h), h)));
    assert.throws(() => twice(linearCrossEntropy)(hidden), UnsupportedError);
    await checkGradients(
      (h) => grad((h: Tensor) => sum(eager.linearCrossEntropy(h, weight, labels, { reduction })))(h),
      [hidden],
    );
  }
});
