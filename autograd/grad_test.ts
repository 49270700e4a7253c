import assert from "node:assert/strict";
import { arbTensor, assertClose, checkGradients, property } from "../testing/mod.ts";
import { cpu } from "../tensor/cpu.ts";
import { full, ones, tensor } from "../tensor/create.ts";
import { add, cast, exp, mul, sin, square, sub, tanh } from "../tensor/elementwise.ts";
import { DTypeError, ShapeError, ValueError } from "../tensor/errors.ts";
import { matmul } from "../tensor/matmul.ts";
import { dropout, key, randn } from "../tensor/random.ts";
import { mean, sum } from "../tensor/reduce.ts";
import { scope } from "../tensor/scope.ts";
import type { Tensor } from "../tensor/tensor.ts";
import { sgdUpdate } from "../tensor/update.ts";
import { checkpoint, grad, stopGradient, valueAndGrad, vjp } from "./grad.ts";

const bytesHeld = () => cpu().memory().current;
const cube = (x: Tensor) => sum(mul(mul(x, x), x));

Deno.test("grad() nests: x³ has the derivatives 3x², 6x and 6", async () => {
  const first = grad(cube), second = grad((x: Tensor) => sum(first(x))), third = grad((x: Tensor) => sum(second(x)));
  const x = tensor([1, 2]);
  assert.deepEqual(await first(x).array(), [3, 12]);
  assert.deepEqual(await second(x).array(), [6, 12]);
  assert.deepEqual(await third(x).array(), [6, 6]);
});

Deno.test("an inner grad() sees what the outer one differentiates as a constant: d/dx (x · d/dy xy²) = 4xy", async () => {
  const f = (x: Tensor, y: Tensor) => mul(x, grad((y: Tensor) => mul(x, square(y)))(y));
  assert.equal(await grad(f)(tensor(3), tensor(5)).item(), 60);
});

Deno.test("gradients come in the form of the argument, and what is no tensor rides along", async () => {
  const params = { layers: [{ w: tensor([1, 2]), name: "first" }], scale: tensor(3) };
  const g = grad((p: typeof params) => mul(sum(square(p.layers[0].w)), p.scale))(params);
  assert.deepEqual(await g.layers[0].w.array(), [6, 12]);
  assert.deepEqual([g.layers[0].name, await g.scale.item()], ["first", 5]);
});

Deno.test("argnums picks one argument or lists several, in their order", async () => {
  const f = (a: Tensor, b: Tensor, c: Tensor) => sum(mul(mul(a, b), c));
  const args = [tensor(2), tensor(3), tensor(5)] as const;
  assert.equal(await grad(f, 1)(...args).item(), 10);
  const [dc, da] = grad(f, [2, 0])(...args);
  assert.deepEqual([await dc.item(), await da.item()], [6, 15]);
  for (const bad of [3, -1, 0.5]) assert.throws(() => grad(f, bad)(...args), ValueError);
});

Deno.test("valueAndGrad() gives both, and with hasAux what else the function returns", async () => {
  const x = tensor([1, 2]);
  const [value, dx] = valueAndGrad(cube)(x);
  assert.deepEqual([await value.item(), await dx.array()], [9, [3, 12]]);
  const withAux = (x: Tensor) => [cube(x), { doubled: mul(x, 2), note: "kept" }] as const;
  const [[again, aux], g] = valueAndGrad(withAux, 0, { hasAux: true })(x);
  assert.deepEqual([await again.item(), await aux.doubled.array(), aux.note], [9, [2, 4], "kept"]);
  assert.deepEqual(await g.array(), [3, 12]);
});

Deno.test("what the value does not depend on has zeros for a gradient, of its own type", async () => {
  const [da, db] = grad((a: Tensor, _: Tensor) => sum(a), [0, 1])(tensor([1]), tensor([[1, 2]], { dtype: "f64" }));
  assert.deepEqual([await da.array(), await db.array(), db.dtype], [[1], [[0, 0]], "f64"]);
  assert.deepEqual(await grad((_: Tensor) => tensor(1))(tensor([1, 2])).array(), [0, 0]);
});

Deno.test("an argument that is the value survives, and its gradient is 1", async () => {
  const x = tensor(3);
  const [value, dx] = valueAndGrad((x: Tensor) => x)(x);
  assert.deepEqual([await value.item(), await dx.item(), await x.item()], [3, 1, 3]);
});

Deno.test("a tensor that stands in two places of an argument has its whole gradient in both", async () => {
  const x = tensor(3);
  const [a, b] = grad(([a, b]: readonly Tensor[]) => mul(a, b))([x, x]);
  assert.deepEqual([await a.item(), await b.item()], [6, 6]);
});

Deno.test("what has no gradient is refused by its path, and what is no one number by its shape", () => {
  const params = { ids: tensor([1], { dtype: "i32" }), w: tensor(1) };
  assert.throws(
    () => grad((p: typeof params) => p.w)(params),
    new DTypeError("grad", "argument 0 at ids is i32: only floats have gradients"),
  );
  assert.throws(
    () => valueAndGrad((x: Tensor) => mul(x, x))(tensor([1, 2])),
    new ShapeError("valueAndGrad", "the function must return one number, got [2]: reduce it by sum or mean"),
  );
  assert.throws(() => grad((x: Tensor) => cast(sum(x), "i32"))(tensor([1])), DTypeError);
  assert.throws(() => grad((_: Tensor) => 3 as unknown as Tensor)(tensor([1])), ValueError);
});

Deno.test("grad() frees what its function made, and what a function made that threw", () => {
  const x = tensor([1, 2, 3]), gradient = grad((x: Tensor) => sum(exp(sin(tanh(x)))));
  gradient(x).dispose(); // numbers in formulas become tensors once, and stay
  const before = bytesHeld();
  const dx = gradient(x);
  assert.equal(bytesHeld(), before + 12);
  dx.dispose();
  const failing = (x: Tensor): Tensor => {
    exp(sin(x));
    throw new RangeError("no");
  };
  assert.throws(() => grad(failing)(x), RangeError);
  assert.equal(bytesHeld(), before);
});

Deno.test("a training loop that disposes of its gradients holds the same memory at every step, and learns", () => {
  const x = randn(key(1), [16, 3]), target = matmul(x, tensor([[1], [-2], [3]]));
  const loss = (w: Tensor) => mean(square(sub(matmul(x, w), target)));
  const learningRate = tensor(0.2);
  let param = full([3, 1], 0);
  const held: number[] = [];
  for (let step = 0; step < 50; step++) {
    const gradient = grad(loss)(param);
    ({ param } = sgdUpdate({ param, grad: gradient, learningRate }));
    held.push(bytesHeld());
    gradient.dispose();
  }
  assert.deepEqual([...new Set(held)], [held[0]]);
  [1, -2, 3].forEach((w, i) => assert.ok(Math.abs(param.dataSync()[i] - w) < 1e-3, `${param.dataSync()}`));
});

const matrices = arbTensor({ shape: [3, 3], dtype: "f64", min: -1, max: 1 });

property("checkpoint() changes neither values nor gradients, with what it captures and nested", [
  matrices,
  matrices,
], async (x, w) => {
  const model = (wrap: typeof checkpoint) => (x: Tensor, w: Tensor) => {
    const captured = sin(w); // made outside, used inside
    const inner = wrap((x: Tensor) => tanh(matmul(x, captured)));
    const block = wrap((x: Tensor, w: Tensor) => mul(inner(matmul(x, w)), captured));
    return sum(square(block(block(x, w), w)));
  };
  const plain = model(<F>(f: F) => f), saved = model(checkpoint);
  const [value, gradients] = valueAndGrad(saved, [0, 1])(x, w);
  const [expected, wanted] = valueAndGrad(plain, [0, 1])(x, w);
  await assertClose(value, expected, { atol: 0, rtol: 0 });
  for (const i of [0, 1]) await assertClose(gradients[i], wanted[i]);
  const twice = (f: typeof plain) => grad((x: Tensor) => sum(square(grad(f)(x, w))))(x);
  await assertClose(twice(saved), twice(plain), { rtol: 1e-8, atol: 1e-8 });
}, { runs: 20 });

Deno.test("checkpoint() draws the same mask on its second run when the key goes in", async () => {
  const f = (x: Tensor, k: Tensor) => square(dropout(x, { p: 0.5, key: k }));
  const x = ones([64]), k = key(3);
  const g = (f: (x: Tensor, k: Tensor) => Tensor) => grad((x: Tensor) => sum(f(x, k)))(x).array();
  assert.deepEqual(await g(checkpoint(f)), await g(f));
});

Deno.test("checkpoint() keeps less on the way", () => {
  const block = (x: Tensor) => Array.from({ length: 6 }).reduce<Tensor>((y) => sin(y), x);
  const peak = (f: (x: Tensor) => Tensor) =>
    scope(() => {
      const x = full([1000], 0.5), before = bytesHeld();
      cpu().resetPeak();
      grad((x: Tensor) => sum(f(f(f(f(x))))))(x);
      return (cpu().memory().peak - before) / 4000;
    });
  const [kept, recomputed] = [peak(block), peak(checkpoint(block))];
  assert.ok(kept >= 24, `${kept} tensors`);
  assert.ok(recomputed <= 4 + 6 + 5, `${recomputed} tensors`);
});

Deno.test("stopGradient() keeps values and lets no gradient through, in a tree too", async () => {
  const x = tensor([2, 3]);
  const dx = grad((x: Tensor) => {
    const { a } = stopGradient({ a: square(x) });
    return sum(mul(a, x));
  })(x);
  assert.deepEqual(await dx.array(), [4, 9]);
});

Deno.test("vjp() pulls a gradient of any form back, once, or again with retain", async () => {
  const f = (x: Tensor, p: { w: Tensor }) => ({ product: mul(x, p.w), both: add(x, p.w) });
  const before = bytesHeld();
  scope(() => {
    const x = tensor([1, 2]), w = tensor([3, 4]), cotangent = { product: tensor([1, 10]), both: tensor([100, 0]) };
    const [y, pullback] = vjp(f, x, { w });
    assert.deepEqual([...y.product.dataSync()], [3, 8]);
    y.product.dispose(); // the caller's own
    for (const retain of [true, false]) {
      const [dx, { w: dw }] = pullback(cotangent, { retain });
      assert.deepEqual([[...dx.dataSync()], [...dw.dataSync()]], [[103, 40], [101, 20]]);
    }
    assert.throws(() => pullback(cotangent), /saved tensors are freed; call it with \{ retain: true \}/);
  });
  assert.equal(bytesHeld(), before);
  const [, pullback] = vjp(cube, tensor([1, 2]));
  assert.throws(() => pullback(tensor([1])), new ShapeError("vjp", "the result is f32 [], its cotangent f32 [1]"));
  assert.throws(() => pullback([tensor(1), tensor(1)]), ValueError);
  pullback[Symbol.dispose]();
  assert.throws(() => pullback(tensor(1)), ValueError);
  await assertClose(vjp(sin, tensor([0]))[1](tensor([2]))[0], [2]);
});

property("a vjp is linear in its cotangent", [matrices, matrices, matrices], async (x, u, v) => {
  const [, pullback] = vjp((x: Tensor) => tanh(matmul(x, x)), x);
  const [du] = pullback(u, { retain: true }), [dv] = pullback(v, { retain: true });
  await assertClose(pullback(add(mul(u, 2), v))[0], add(mul(du, 2), dv));
}, { runs: 20 });

Deno.test("a function of many shared parts has the gradient of central differences", async () => {
  await checkGradients((x: Tensor) => {
    const a = sin(x), b = mul(a, x), c = add(mul(b, a), b);
    return mul(c, add(c, a));
  }, [tensor([0.3, -1, 2])]);
});
