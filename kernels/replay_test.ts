import assert from "node:assert/strict";
import { grad, valueAndGrad } from "../mod.ts";
import { setBackend } from "../tensor/backend.ts";
import { compile } from "../tensor/compile.ts";
import { full, ones, tensor, zeros } from "../tensor/create.ts";
import { add, cast, exp, mul, relu, sub, tanh } from "../tensor/elementwise.ts";
import { DisposedError, IndexError, UnsupportedError } from "../tensor/errors.ts";
import { take } from "../tensor/gather.ts";
import { matmul } from "../tensor/matmul.ts";
import { reshape, slice, transpose } from "../tensor/movement.ts";
import { profile } from "../tensor/profile.ts";
import { foldIn, key, randn } from "../tensor/random.ts";
import { mean, sum } from "../tensor/reduce.ts";
import { dispose, scope } from "../tensor/scope.ts";
import type { Tensor } from "../tensor/tensor.ts";
import { adamwUpdate, sgdUpdate } from "../tensor/update.ts";
import { needAdapter } from "../testing/laws/adapter.ts";
import { webgpu } from "./webgpu.ts";

const shared = await needAdapter(webgpu()), gpu = shared;
setBackend(shared);

/** Counts what a device makes while `f` runs. */
async function made(f: () => Promise<void>): Promise<{ buffers: number; groups: number }> {
  const { createBuffer, createBindGroup } = GPUDevice.prototype;
  const count = { buffers: 0, groups: 0 };
  GPUDevice.prototype.createBuffer = function (...args) {
    count.buffers++;
    return createBuffer.apply(this, args);
  };
  GPUDevice.prototype.createBindGroup = function (...args) {
    count.groups++;
    return createBindGroup.apply(this, args);
  };
  try {
    await f();
  } finally {
    Object.assign(GPUDevice.prototype, { createBuffer, createBindGroup });
  }
  return count;
}

const bits = async (x: Tensor) => [...await x.bytes()];

interface Params {
  readonly first: Tensor;
  readonly second: Tensor;
}

type Moments = Record<keyof Params, { readonly m: Tensor; readonly v: Tensor }>;

interface State {
  readonly step: Tensor;
  readonly moments: Moments;
}

const network = ({ first, second }: Params, x: Tensor, y: Tensor) => {
  const error = sub(matmul(tanh(matmul(x, first)), second), y);
  return mean(mul(error, error));
};

/** A whole training step: loss, gradients, AdamW. */
function trainStep(params: Params, state: State, batch: { readonly x: Tensor; readonly y: Tensor }) {
  const [loss, grads] = valueAndGrad((p: Params) => network(p, batch.x, batch.y))(params);
  const step = add(state.step, 1), learningRate = full([], 0.05);
  const update = (name: keyof Params) =>
    adamwUpdate({ param: params[name], grad: grads[name], ...state.moments[name], step, learningRate });
  const first = update("first"), second = update("second");
  return {
    loss,
    params: { first: first.param, second: second.param },
    state: { step, moments: { first: { m: first.m, v: first.v }, second: { m: second.m, v: second.v } } },
  };
}

const start = () => {
  const params = { first: randn(key(1), [5, 16]), second: randn(key(2), [16, 3]) };
  const moments = (p: Tensor) => ({ m: zeros(p.shape), v: zeros(p.shape) });
  const state = {
    step: tensor(0, { dtype: "i32" }),
    moments: { first: moments(params.first), second: moments(params.second) },
  };
  return { params, state };
};

/** Losses and last parameters, bit by bit, of a training that makes a new batch for each step. */
async function train(step: typeof trainStep, steps: number): Promise<unknown[]> {
  let { params, state }: { params: Params; state: State } = start();
  const seen: unknown[] = [];
  for (let i = 0; i < steps; i++) {
    const batch = { x: randn(key(10 + i), [8, 5]), y: randn(key(50 + i), [8, 3]) };
    const before = state.step;
    let loss: Tensor;
    ({ loss, params, state } = step(params, state, batch));
    seen.push(await bits(loss));
    dispose([loss, batch, before]);
  }
  return [...seen, await bits(params.first), await bits(params.second), await bits(state.moments.second.v)];
}

Deno.test("compile() gives a training step's plain trajectory to the bit", async () => {
  assert.deepEqual(await train(compile(trainStep), 12), await train(trainStep, 12));
});

Deno.test("a replayed training step makes no buffer and no bind group", async () => {
  const gpu = await webgpu(); // a pool of its own, into which no other test's tensors come back
  setBackend(gpu);
  using step = compile(trainStep);
  let { params, state }: { params: Params; state: State } = start();
  const batches = [1, 2].map((i) => ({ x: randn(key(i), [8, 5]), y: randn(key(i + 9), [8, 3]) }));
  const run = async (steps: number) => {
    for (let i = 0; i < steps; i++) {
      const before = state.step;
      let loss: Tensor;
      ({ loss, params, state } = step(params, state, batches[i % 2]));
      dispose([loss, before]);
    }
    await gpu.synchronize();
  };
  await run(8);
  const held = gpu.memory().current;
  assert.deepEqual(await made(() => run(20)), { buffers: 0, groups: 0 });
  assert.equal(gpu.memory().current, held);
  const [{ dispatches }] = step.recordings;
  assert(dispatches > 10 && dispatches < 60, `${dispatches} dispatches`);
  setBackend(shared);
  gpu.dispose();
});

Deno.test("results of one call outlive the next, and free their bytes when they are disposed", async () => {
  using twice = compile((x: Tensor) => ({ y: mul(x, 2), z: add(x, 1) }));
  const inputs = [1, 2, 3, 4].map((v) => full([100], v));
  const results = inputs.map((x) => twice(x));
  for (const [i, { y, z }] of results.entries()) {
    assert.equal((await y.data())[99], 2 * (i + 1));
    assert.equal((await z.data())[0], i + 2);
  }
  const { current } = gpu.memory();
  dispose(results);
  assert.equal(gpu.memory().current, current - 8 * 400);
});

Deno.test("a result comes back in a buffer that it had before, whatever else was freed", async () => {
  using f = compile((x: Tensor) => mul(x, x));
  const others = Array.from({ length: 8 }, (_, i) => full([300], i)), x = full([300], 2);
  for (let i = 0; i < 3; i++) f(x).dispose();
  dispose(others); // which a pool hands out first
  const found = await made(async () => {
    const y = f(x);
    assert.equal((await y.data())[299], 4);
    y.dispose();
  });
  assert.equal(found.groups, 0);
});

Deno.test("every signature has a recording of its own: shapes, dtypes, views, host values, form", async () => {
  using f = compile((tree: { x: Tensor; scale: number }) => mul(sum(tree.x, { axis: 0 }), tree.scale));
  const x = tensor([[1, 2], [3, 4]]);
  for (let i = 0; i < 3; i++) {
    assert.deepEqual([...await f({ x, scale: 1 }).data()], [4, 6]);
    assert.deepEqual([...await f({ x, scale: 10 }).data()], [40, 60]);
    assert.deepEqual([...await f({ x: transpose(x), scale: 1 }).data()], [3, 7]);
    assert.deepEqual([...await f({ x: slice(x, [1, 0], [2, 2]), scale: 1 }).data()], [3, 4]);
  }
  assert.equal(f.recordings.length, 4);
});

Deno.test("the least used recordings go when there are more than sixteen", () => {
  using f = compile((x: Tensor, n: number) => add(x, n));
  const x = ones([2]), { current } = gpu.memory();
  for (let n = 0; n < 40; n++) f(x, n % 20).dispose();
  assert.equal(f.recordings.length, 16);
  f[Symbol.dispose]();
  assert.equal(f.recordings.length, 0);
  assert(gpu.memory().current <= current + 20 * 4); // the scalars are constants of the library
});

Deno.test("values between dispatches share buffers", async () => {
  using f = compile((x: Tensor) => {
    let y = x;
    for (let i = 0; i < 20; i++) y = mul(add(y, x), x);
    return sum(y);
  });
  const x = full([1024], 0.5);
  const plain = scope(() => {
    let y = x;
    for (let i = 0; i < 20; i++) y = mul(add(y, x), x);
    return sum(y);
  });
  for (let i = 0; i < 3; i++) assert.deepEqual(await bits(f(x)), await bits(plain));
  assert(f.recordings[0].bytes <= 3 * 4096, `${f.recordings[0].bytes} bytes`);
});

Deno.test("what never changes is computed once, and what nobody uses never", () => {
  using f = compile((x: Tensor) => {
    exp(x); // not returned
    return mul(x, exp(full([4], 0.25)));
  });
  f(ones([4]));
  assert.equal(f.recordings[0].dispatches, 1);
});

Deno.test("an argument that is consumed is written in place, and its handle is spent", async () => {
  using step = compile((param: Tensor, grad: Tensor) => sgdUpdate({ param, grad, learningRate: full([], 0.5) }).param);
  const grad = tensor([2, 4]);
  let param = tensor([1, 1]);
  for (let i = 1; i <= 4; i++) {
    const before = param, { current } = gpu.memory();
    param = step(param, grad);
    assert.throws(() => before.dataSync(), DisposedError);
    assert.deepEqual([...await param.data()], [1 - i, 1 - 2 * i]);
    if (i > 1) assert.equal(gpu.memory().current, current);
  }
  assert.deepEqual([...await grad.data()], [2, 4]);
});

Deno.test("an argument that others see is copied before it is written", async () => {
  using step = compile((param: Tensor, grad: Tensor) => sgdUpdate({ param, grad, learningRate: full([], 1) }).param);
  const grad = tensor([2, 4]);
  for (let i = 0; i < 3; i++) {
    const param = tensor([1, 1]), kept = reshape(param, [1, 2]);
    assert.deepEqual([...await step(param, grad).data()], [-1, -3]);
    assert.deepEqual([...await kept.data()], [1, 1]);
  }
});

Deno.test("results may be arguments, views of them, captured tensors, and host values", async () => {
  const captured = tensor([7, 8]);
  using f = compile((x: Tensor) => ({ x, row: slice(x, [1, 0], [2, 2]), captured, n: x.shape[0], none: null }));
  const x = tensor([[1, 2], [3, 4]]);
  for (let i = 0; i < 3; i++) {
    const found = f(x);
    assert.equal(found.x, x);
    assert.deepEqual([...await found.row.data()], [3, 4]);
    assert.deepEqual([...await found.captured.data()], [7, 8]);
    assert.deepEqual([found.n, found.none], [2, null]);
    dispose([found.row, found.captured]);
  }
  assert.deepEqual([...await captured.data()], [7, 8]);
});

Deno.test("host data inside the function is a constant; data that changes is refused by name", async () => {
  using good = compile((x: Tensor) => mul(x, tensor([1, 2])));
  for (let i = 0; i < 3; i++) assert.deepEqual([...await good(tensor([i, i])).data()], [i, 2 * i]);
  let n = 0;
  using data = compile((x: Tensor) => mul(x, tensor([1, n++])));
  data(ones([2]));
  assert.throws(
    () => data(ones([2])),
    (e) => e instanceof UnsupportedError && /\[compile\].*host data/.test(e.message),
  );
  using number = compile((x: Tensor) => mul(x, full([2], n++)));
  number(ones([2]));
  assert.throws(() => number(ones([2])), /\[compile\] the function is not the same at every call: dispatch 1 \(full/);
  using random = compile((x: Tensor) => add(x, randn(key(n++), [2])));
  random(ones([2]));
  assert.throws(() => random(ones([2])), UnsupportedError);
  using result = compile((x: Tensor) => ({ x, n: n++ }));
  result(ones([2]));
  assert.throws(() => result(ones([2])), /its result had \d+, now \d+/);
});

Deno.test("a random key is an argument", async () => {
  using f = compile((k: Tensor, i: Tensor) => randn(foldIn(k, i), [3]));
  const k = key(3);
  for (let i = 0; i < 4; i++) {
    const n = tensor(i, { dtype: "u32" });
    assert.deepEqual(await bits(f(k, n)), await bits(randn(foldIn(k, n), [3])));
  }
});

Deno.test("reading a tensor inside is refused by name", () => {
  const reads: [name: string, f: (x: Tensor) => unknown][] = [
    ["data", (x) => add(x, 1).dataSync()],
    ["data", (x) => x.dataSync()],
  ];
  for (const [name, read] of reads) {
    using f = compile((x: Tensor) => (read(x), x));
    assert.throws(() => f(ones([2])), (e) => e instanceof UnsupportedError && e.op === name);
  }
  assert.deepEqual([...add(ones([2]), 1).dataSync()], [2, 2]); // the backend is as it was
});

Deno.test("asynchronous functions and results that are no trees are refused by name", async () => {
  const results = [Promise.resolve(1), () => 1, new Map(), { deep: [new Date()] }];
  for (const result of results) {
    using f = compile((_: Tensor) => result);
    assert.throws(() => f(ones([1])), UnsupportedError);
  }
  using g = compile((_: unknown) => ones([1]));
  for (const argument of [new Map(), () => 1, { at: [new Date()] }]) {
    assert.throws(() => g(argument), /\[compile\] argument 0/);
  }
  using h = compile(async (x: Tensor) => await x.data());
  assert.throws(() => void h(ones([1])), /promise/);
  await Promise.resolve();
});

Deno.test("writing in place into a captured tensor is refused by name", () => {
  const param = ones([2]);
  using f = compile((grad: Tensor) => sgdUpdate({ param, grad, learningRate: full([], 1) }).param);
  assert.throws(() => f(ones([2])), /\[compile\] sgdUpdate .* captured: make it an argument/);
});

Deno.test("indices that the host knows are checked at every call", async () => {
  using f = compile((x: Tensor, i: Tensor) => take(x, i));
  const x = tensor([10, 20, 30]);
  const at = (i: number) => tensor([i], { dtype: "i32" });
  for (const i of [0, 1, 0, 2, 1]) assert.deepEqual([...await f(x, at(i)).data()], [10 * (i + 1)]);
  assert.throws(() => f(x, at(3)), IndexError);
  assert.deepEqual([...await f(x, at(2)).data()], [30]);
});

Deno.test("a count that grows with every call is not looked at every time", () => {
  let calls = 0;
  using f = compile((x: Tensor, count: Tensor) => {
    calls++;
    return add(x, cast(count, "f32"));
  });
  const x = ones([2]);
  for (let i = 0; i < 20; i++) assert.deepEqual([...f(x, tensor([i], { dtype: "i32" })).dataSync()], [i + 1, i + 1]);
  assert(calls <= 3, `${calls} calls`);
});

Deno.test("a compiled function is differentiated as the plain one, and may be called by a compiled one", async () => {
  using square = compile((x: Tensor) => sum(mul(x, x)));
  const x = tensor([1, 2]);
  for (let i = 0; i < 3; i++) assert.deepEqual([...await grad(square)(x).data()], [2, 4]);
  using outer = compile((x: Tensor) => relu(sub(square(x), 1)));
  for (let i = 0; i < 3; i++) assert.equal(await outer(x).item(), 4);
});

Deno.test("the same tensor may be given twice", async () => {
  using f = compile((a: Tensor, b: Tensor) => sub(mul(a, 2), b));
  const x = tensor([1, 2]), y = tensor([5, 5]);
  for (let i = 0; i < 3; i++) {
    assert.deepEqual([...await f(x, x).data()], [1, 2]);
    assert.deepEqual([...await f(x, y).data()], [-3, -1]);
    assert.deepEqual([...await f(x, reshape(x, [2])).data()], [1, 2]);
  }
});

Deno.test("an error inside the function leaves nothing behind", () => {
  const x = ones([2, 3]);
  using f = compile((x: Tensor) => matmul(exp(x), x));
  const { current } = gpu.memory();
  assert.throws(() => f(x), /\[matmul\]/);
  assert.equal(gpu.memory().current, current);
});

Deno.test("profile() sees each dispatch of a replay", async () => {
  using f = compile((x: Tensor) => exp(matmul(x, x)));
  const x = ones([16, 16]);
  for (let i = 0; i < 2; i++) f(x);
  const { launches, value } = await profile(() => f(x));
  assert.deepEqual(launches.map(({ op }) => op), ["matmul", "exp"]);
  assert.equal(launches[0].flops, 2 * 16 ** 3);
  assert.deepEqual(await bits(value), await bits(exp(matmul(x, x))));
});
