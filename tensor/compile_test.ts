import assert from "node:assert/strict";
import { compile } from "./compile.ts";
import { cpu } from "./cpu.ts";
import { ones, tensor } from "./create.ts";
import { add, exp, mul } from "./elementwise.ts";
import { DisposedError, UnsupportedError } from "./errors.ts";
import type { Tensor } from "./tensor.ts";
import { sgdUpdate } from "./update.ts";

const backend = cpu();

Deno.test("compile() on the CPU runs the function at each call and frees what it does not return", async () => {
  let calls = 0;
  using f = compile(({ x }: { x: Tensor }, n: number) => {
    calls++;
    return { y: mul(exp(x), x), n };
  });
  const x = ones([100], { backend });
  for (let i = 1; i <= 3; i++) {
    const { current } = backend.memory();
    const { y } = f({ x }, 2);
    assert.equal(backend.memory().current, current + 400);
    assert.equal((await y.data())[99], Math.fround(Math.E));
    y.dispose();
    assert.equal(calls, i);
  }
  assert.deepEqual(f.recordings, []);
});

Deno.test("compile() consumes what the function consumes", async () => {
  using step = compile((param: Tensor, grad: Tensor) => {
    return sgdUpdate({ param, grad, learningRate: tensor(1, { backend }) }).param;
  });
  const param = tensor([1, 2], { backend }), grad = tensor([1, 1], { backend });
  const next = step(param, grad);
  assert.deepEqual([...await next.data()], [0, 1]);
  assert.throws(() => add(param, 1), DisposedError);
});

Deno.test("compile() refuses arguments that cannot be part of a signature", () => {
  using f = compile((_: unknown) => ones([1], { backend }));
  for (const argument of [new Map(), () => 1, { at: [new Date()] }, Symbol("x")]) {
    assert.throws(() => f(argument), (e) => e instanceof UnsupportedError && /\[compile\] argument 0/.test(e.message));
  }
});
