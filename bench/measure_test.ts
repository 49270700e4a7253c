import assert from "node:assert/strict";
import { add, defineOp, exp, init, kernel, memory, sum, type Tensor, wgsl } from "@flashtape/flashtape";
import { PoisonedError, summary, tensorsOf, timed, timedByWall } from "./measure.ts";
import { normal } from "./plan.ts";

const backend = await init({ backend: "webgpu" });
const options = { warmup: 1, ramp: 0, repeats: 3, budget: 1000 };

/** Writes every element of y but the last, which keeps what was in the buffer before. */
const unwrittenKernel = kernel("bench_unwritten", {
  reads: { x: "f32" },
  writes: { y: "f32" },
  uniforms: { n: "u32" },
}, () =>
  wgsl`@compute @workgroup_size(64) fn main(@builtin(global_invocation_id) id: vec3u) {
  if (id.x + 1u < u.n) { y[id.x] = x[id.x]; }
}`);
const unwritten = defineOp({
  name: "benchUnwritten",
  infer: ([x]) => x,
  reference: ([x], _, y) => y.data.set(x.data),
  vjp: () => (dy: Tensor) => [dy],
  kernel(call) {
    const n = call.inputs[0].shape[0];
    call.dispatch(unwrittenKernel, [call.inputs[0], call.outputs[0]], { n }, [Math.ceil(n / 64), 1, 1]);
  },
});

Deno.test("an element that nobody writes is seen by both clocks", async () => {
  using x = normal(0, [100]);
  // Without the poison, the buffer would still hold the right number of an earlier call.
  await assert.rejects(timed(backend, () => unwritten([x]), options), PoisonedError);
  await assert.rejects(timedByWall(backend, () => unwritten([x]), options), PoisonedError);
});

Deno.test("timed() takes GPU timestamps where there are some, and as many samples as it says", async () => {
  using x = normal(0, [1000]);
  const { clock, ms, launches } = await timed(backend, () => {
    using e = exp(x);
    return add(e, x);
  }, options);
  assert.equal(clock, backend.capabilities.timestamps ? "gpu timestamps" : "wall clock");
  assert.equal(ms.each.length, 3);
  assert(ms.min > 0 && ms.min <= ms.median && ms.median <= ms.max && ms.avg <= ms.max);
  if (backend.capabilities.timestamps) assert.equal(launches, 2);
});

Deno.test("timing keeps no tensor", async () => {
  using x = normal(0, [1000]);
  const before = memory().current;
  await timed(backend, () => ({ total: sum(x), parts: [exp(x)] }), options);
  await timedByWall(backend, () => exp(x), options);
  assert.equal(memory().current, before);
});

Deno.test("summary() is the median, least, mean and greatest, whatever the order", () => {
  assert.deepEqual(summary([3, 1, 2]), { median: 2, min: 1, avg: 2, max: 3, each: [3, 1, 2] });
  assert.equal(summary([4, 1, 2, 3]).median, 2.5);
});

Deno.test("tensorsOf() finds the tensors of nested results", () => {
  using x = normal(0, [1]);
  assert.deepEqual(tensorsOf({ a: x, b: [x, { c: x }] }), [x, x, x]);
});
