import assert from "node:assert/strict";
import { cpu } from "../tensor/cpu.ts";
import { tensor, zeros } from "../tensor/create.ts";
import { DisposedError } from "../tensor/errors.ts";
import { dispose } from "../tensor/scope.ts";
import { array, float, property } from "../testing/mod.ts";
import { adamw, clipGradNorm, flatten, safetensors, sgd, unflatten } from "./mod.ts";
import type { Optimizer } from "./optimizer.ts";

property("clipGradNorm() leaves short gradients as they are and scales long ones to the length", [
  array(float({ min: -3, max: 3 }), { minLength: 1, maxLength: 6 }),
], async (values) => {
  const length = Math.hypot(...values);
  const { grads, norm } = clipGradNorm({
    a: tensor(values.slice(0, 2)),
    b: [tensor(values.slice(2), { dtype: "f32" })],
  }, 2);
  assert(Math.abs(await norm.item() - length) < 1e-5);
  const got = [...await grads.a.data(), ...await grads.b[0].data()], scale = Math.min(1, 2 / (length + 1e-6));
  got.forEach((g, i) => assert(Math.abs(g - values[i] * scale) < 1e-5));
});

Deno.test("an update spends the handles that it is given, and memory stays", () => {
  const optimizer = adamw({ learningRate: 0.1 });
  const first = { w: zeros([64]) }, start = optimizer.init(first);
  let params = first, state = start, level = 0;
  for (let i = 0; i < 10; i++) {
    const { grads, norm } = clipGradNorm({ w: tensor(new Float32Array(64).fill(i)) }, 1);
    norm.dispose();
    ({ params, state } = optimizer.update(params, grads, state));
    if (i === 0) level = cpu().memory().current;
  }
  assert.equal(cpu().memory().current, level);
  for (const spent of [first.w, start.step, start.m.w, start.v.w]) assert.throws(() => spent.dataSync(), DisposedError);
  dispose([params, state.step, state.m, state.v]);
});

Deno.test("an optimiser goes on from its saved state as if it had not stopped", async () => {
  const optimizer = adamw({ learningRate: 0.1 });
  const run = async (pause: boolean) => {
    let params = { w: tensor([1, 2]) }, state = optimizer.init(params);
    for (let i = 0; i < 4; i++) {
      if (pause && i === 2) {
        const saved = await safetensors.read(await safetensors.toBytes(flatten({ params, state: { ...state } })));
        ({ params, state } = unflatten(saved, { params, state: { ...state } }));
      }
      ({ params, state } = optimizer.update(params, { w: tensor([i, -1]) }, state));
    }
    return await params.w.data();
  };
  assert.deepEqual(await run(true), await run(false));
});

Deno.test("updates and clipGradNorm() refuse gradients of another form and lengths that are none", () => {
  assert.throws(() => clipGradNorm({ w: zeros([1]) }, 0), /max is a number above 0/);
  assert.throws(() => clipGradNorm({ w: tensor([1], { dtype: "i32" }) }, 1), /gradient "w" is i32/);
  const optimizer = adamw({ learningRate: 1 }), params = { w: zeros([2]) }, state = optimizer.init(params);
  const update = (grads: Record<string, ReturnType<typeof zeros>>) => () =>
    optimizer.update<typeof grads>(params, grads, state);
  assert.throws(update({}), /parameter "w" has no gradient/);
  assert.throws(update({ w: zeros([3]) }), /parameter "w" is \[2\], its gradient \[3\]/);
  assert.throws(update({ w: zeros([2]), x: zeros([2]) }), /gradient "x" belongs to no parameter/);
  assert.throws(() => optimizer.init({ n: tensor([1], { dtype: "i32" }) }), /"n" is i32/);
});

const optimizers: Record<string, Optimizer<unknown>> = {
  adamw: adamw({ learningRate: 0.1 }),
  sgd: sgd({ learningRate: 0.1, momentum: 0.9 }),
};

for (const [of, optimizer] of Object.entries(optimizers)) {
  Deno.test(`${of} refuses a state of other parameters, and a tensor twice, before it writes`, async () => {
    const params = { a: tensor([1, 2]), b: tensor([3, 4]) }, ones = () => tensor([1, 1]);
    const state = optimizer.init(params), short = optimizer.init({ a: params.a });
    const other = optimizer.init({ a: params.a, b: zeros([3]) });
    const cases: [state: unknown, params: typeof params, grads: typeof params, says: RegExp][] = [
      [short, params, { a: ones(), b: ones() }, /the state has no \w+ of parameter "b"/],
      [other, params, { a: ones(), b: ones() }, /parameter "b" is \[2\], its \w+ \[3\]/],
      [state, params, { a: ones(), b: params.a }, /gradient of parameter "b" is itself a parameter/],
      [state, params, { a: ones(), b: tensor([1, 1], { dtype: "i32" }) }, /gradient of parameter "b" is i32/],
      [state, { a: params.a, b: params.a }, { a: ones(), b: ones() }, /"a" and "b" are one tensor/],
    ];
    for (const [state, params, grads, says] of cases) {
      assert.throws(() => optimizer.update(params, grads, state), says);
    }
    assert.deepEqual(await params.a.array(), [1, 2]);
    assert.deepEqual(await params.b.array(), [3, 4]);
  });

  Deno.test(`${of} and clipGradNorm() take one tensor as the gradient of two parameters`, async () => {
    const run = async (shared: boolean) => {
      const params = { a: tensor([1, 2]), b: tensor([3, 4]) }, g = tensor([5, 12]);
      const { grads } = clipGradNorm({ a: g, b: shared ? g : tensor([5, 12]) }, 1);
      const next = optimizer.update(params, grads, optimizer.init(params)).params;
      assert.throws(() => g.dataSync(), DisposedError);
      return [await next.a.array(), await next.b.array()];
    };
    assert.deepEqual(await run(true), await run(false));
  });
}

Deno.test("what a person's function throws costs no parameter", async () => {
  const params = { a: tensor([1, 2]), b: tensor([3, 4]) };
  const fails = (name: string) => {
    if (name === "b") throw new Error("of a person");
    return true;
  };
  const optimizer = adamw({ learningRate: 0.1, decays: fails });
  const grads = { a: tensor([1, 1]), b: tensor([1, 1]) };
  assert.throws(() => optimizer.update(params, grads, optimizer.init(params)), /of a person/);
  assert.deepEqual(await params.a.array(), [1, 2]);
});
