import assert from "node:assert/strict";
import { cpu } from "./cpu.ts";
import { full, tensor, zeros } from "./create.ts";
import { add, cast, div, mul, sqrt, square, sub } from "./elementwise.ts";
import { DisposedError, DTypeError, ShapeError, ValueError } from "./errors.ts";
import { transpose } from "./movement.ts";
import { key, randn } from "./random.ts";
import type { Tensor } from "./tensor.ts";
import { adamwUpdate, sgdUpdate } from "./update.ts";

const backend = cpu();
const f64 = (values: number[]) => tensor(values, { dtype: "f64", backend });
const count = (step: number) => tensor(step, { dtype: "i32", backend });
const rate = (value: number) => tensor(value, { dtype: "f64", backend });

async function close(actual: Tensor, expected: Tensor, tolerance = 1e-14): Promise<void> {
  const a = await actual.data(), b = await expected.data();
  assert.deepEqual(actual.shape, expected.shape);
  a.forEach((v, i) => assert(Math.abs(v - b[i]) <= tolerance * Math.max(1, Math.abs(b[i])), `${i}: ${v}, ${b[i]}`));
}

Deno.test("adamwUpdate() equals its formula written op by op, over several steps", async () => {
  const options = { beta1: 0.8, beta2: 0.95, eps: 1e-6, weightDecay: 0.1 };
  let param = randn(key(1), [3, 4], { dtype: "f64" }),
    m = zeros([3, 4], { dtype: "f64" }),
    v = zeros([3, 4], { dtype: "f64" });
  let eagerP = add(param, 0), eagerM = add(m, 0), eagerV = add(v, 0);
  for (let step = 1; step <= 4; step++) {
    const grad = randn(key(step + 1), [3, 4], { dtype: "f64" }), lr = 0.1 / step;
    ({ param, m, v } = adamwUpdate({ param, grad, m, v, step: count(step), learningRate: rate(lr) }, options));
    eagerM = add(mul(eagerM, 0.8), mul(grad, 0.2));
    eagerV = add(mul(eagerV, 0.95), mul(square(grad), 0.05));
    const decayed = mul(eagerP, 1 - lr * 0.1);
    const direction = div(
      div(eagerM, 1 - 0.8 ** step),
      add(sqrt(div(eagerV, 1 - 0.95 ** step)), 1e-6),
    );
    eagerP = sub(decayed, mul(direction, lr));
    await close(param, eagerP);
    await close(m, eagerM);
    await close(v, eagerV);
  }
});

Deno.test("adamwUpdate() takes a first step of the learning rate against the gradient's sign", async () => {
  const inputs = {
    param: f64([1, 1, 1]),
    grad: f64([3, -0.01, 0]),
    m: zeros([3], { dtype: "f64" }),
    v: zeros([3], { dtype: "f64" }),
  };
  const { param } = adamwUpdate({ ...inputs, step: count(1), learningRate: rate(0.1) }, { weightDecay: 0, eps: 0 });
  const [a, b, c] = await param.data();
  assert(Math.abs(a - 0.9) < 1e-12 && Math.abs(b - 1.1) < 1e-12);
  assert(Number.isNaN(c)); // 0/0 without eps
});

Deno.test("adamwUpdate() writes in place, spends its handles, and leaves other views of them alone", async () => {
  const p = f64([1, 2, 3, 4, 5, 6]), m = zeros([6], { dtype: "f64" }), v = zeros([6], { dtype: "f64" });
  const before = backend.memory().current;
  const inputs = { param: p, grad: full([6], 1, { dtype: "f64" }), m, v, step: count(1), learningRate: rate(1) };
  const made = backend.memory().current;
  const next = adamwUpdate(inputs);
  assert.equal(backend.memory().current, made);
  assert(made > before);
  assert(p.disposed && m.disposed && v.disposed && !inputs.grad.disposed);
  assert.throws(() => add(p, 1), DisposedError);

  const base = randn(key(1), [2, 3], { dtype: "f64" }), kept = await base.data();
  const view = transpose(base);
  const state = { m: zeros([3, 2], { dtype: "f64" }), v: zeros([3, 2], { dtype: "f64" }) };
  adamwUpdate({ param: view, grad: transpose(base), ...state, step: count(1), learningRate: rate(1) });
  assert.deepEqual(await base.data(), kept);
  assert.deepEqual(next.param.shape, [6]);
});

Deno.test("adamwUpdate() keeps f32 moments for 16-bit parameters", () => {
  for (const dtype of ["f16", "bf16"] as const) {
    const make = () => ({
      param: cast(tensor([1, 2]), dtype),
      grad: cast(tensor([1, 2]), dtype),
      m: zeros([2]),
      v: zeros([2]),
      step: count(1),
      learningRate: tensor(0.1),
    });
    const next = adamwUpdate(make());
    assert.deepEqual([next.param.dtype, next.m.dtype, next.v.dtype], [dtype, "f32", "f32"]);
    assert.equal(adamwUpdate({ ...make(), grad: tensor([1, 2]) }).param.dtype, dtype);
    assert.throws(() => adamwUpdate({ ...make(), m: zeros([2], { dtype }) }), DTypeError);
  }
});

Deno.test("sgdUpdate() equals its formula, plain, with momentum and with Nesterov's", async () => {
  for (const nesterov of [false, true]) {
    let param = f64([1, -2, 3]), velocity: Tensor | undefined = zeros([3], { dtype: "f64" });
    const p = [1, -2, 3], v = [0, 0, 0], g = [0.5, 1, -1];
    for (let step = 0; step < 3; step++) {
      const inputs = { param, grad: f64(g), velocity, learningRate: rate(0.1) };
      ({ param, velocity } = sgdUpdate(inputs, { momentum: 0.9, nesterov, weightDecay: 0.01 }));
      p.forEach((_, i) => {
        const slope = g[i] + 0.01 * p[i];
        v[i] = 0.9 * v[i] + slope;
        p[i] -= 0.1 * (nesterov ? slope + 0.9 * v[i] : v[i]);
      });
      await close(param, f64(p));
      await close(velocity!, f64(v));
    }
  }
  const plain = sgdUpdate({ param: f64([1, 2]), grad: f64([10, 20]), learningRate: rate(0.1) }, { weightDecay: 1 });
  await close(plain.param, f64([-0.1, -0.2]));
  assert.equal(plain.velocity, undefined);
});

Deno.test("updates refuse shapes, dtypes and options that do not fit, and consume nothing then", () => {
  const param = tensor([1, 2]), m = zeros([2]), v = zeros([2]);
  const inputs = { param, grad: tensor([1, 2]), m, v, step: count(1), learningRate: tensor(0.1) };
  assert.throws(() => adamwUpdate({ ...inputs, grad: tensor([1, 2, 3]) }), ShapeError);
  assert.throws(() => adamwUpdate({ ...inputs, m: zeros([1]) }), ShapeError);
  assert.throws(() => adamwUpdate({ ...inputs, step: tensor(1) }), DTypeError);
  assert.throws(() => adamwUpdate({ ...inputs, step: tensor([1], { dtype: "i32" }) }), ShapeError);
  assert.throws(() => adamwUpdate({ ...inputs, learningRate: tensor([0.1]) }), ShapeError);
  assert.throws(() => adamwUpdate({ ...inputs, param: tensor([1, 2], { dtype: "i32" }) }), DTypeError);
  for (const bad of [{ beta1: 1 }, { beta2: -0.1 }, { eps: NaN }, { weightDecay: -1 }, { weightDecay: Infinity }]) {
    assert.throws(() => adamwUpdate(inputs, bad), ValueError);
  }
  assert.throws(() => sgdUpdate(inputs, { momentum: 0.9 }), ValueError);
  assert.throws(() => sgdUpdate({ ...inputs, velocity: zeros([3]) }, { momentum: 0.9 }), ShapeError);
  assert(!param.disposed && !m.disposed && !v.disposed);
});
