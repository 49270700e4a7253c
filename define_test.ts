import assert from "node:assert/strict";
import {
  add,
  compile,
  cpu,
  defineOp,
  dispose,
  grad,
  kernel,
  mul,
  profile,
  setBackend,
  ShapeError,
  sub,
  sum,
  type Tensor,
  tensor,
  ValueError,
  webgpu,
  wgsl,
} from "./mod.ts";
import { dense, type NdArray } from "./tensor/op.ts";
import { arbShape, arbTensorData, checkOp, compose, elementOf } from "./testing/mod.ts";
import { needAdapter } from "./testing/laws/adapter.ts";

const gpu = await needAdapter(webgpu());
setBackend(gpu);

interface Params {
  readonly scale: number;
}

/** (a + s·b, a − s·b): two inputs, two results, a parameter, room of its own. */
const butterfly = defineOp<Params>({
  name: "butterfly",
  infer: ([a, b], { scale }) => {
    if (!Number.isFinite(scale)) throw new ValueError("butterfly", `scale is a number, got ${scale}`);
    if (a.shape.length !== 1 || a.shape[0] !== b.shape[0]) throw new ShapeError("butterfly", "two vectors of a length");
    return [a, a];
  },
  reference: ([a, b], { scale }, up, down) => {
    for (let i = 0; i < up.data.length; i++) {
      const x = a.data[a.offset + i * a.strides[0]], y = scale * b.data[b.offset + i * b.strides[0]];
      up.data[i] = x + y;
      down.data[i] = x - y;
    }
  },
  vjp: ({ params: { scale } }) => (up, down) => [add(up, down), () => mul(sub(up, down), scale)],
  kernel(call) {
    const [a, b] = call.inputs.map((x) => call.dense(x)), [up, down] = call.outputs, n = up.shape[0];
    const scaled = call.temporary(up.shape, "f32"), groups = [Math.ceil(n / 64), 1, 1] as const;
    const entry = "@compute @workgroup_size(64) fn main(@builtin(global_invocation_id) id: vec3u)";
    const multiply = kernel("butterfly_scale", {
      reads: { x: "f32" },
      writes: { y: "f32" },
      uniforms: { n: "u32", scale: "f32" },
    }, () => wgsl`${entry} { if (id.x < u.n) { y[id.x] = u.scale * x[id.x]; } }`);
    call.dispatch(multiply, [b, scaled], { n, scale: call.params.scale }, groups);
    const cross = kernel("butterfly_cross", {
      reads: { x: "f32", y: "f32" },
      writes: { up: "f32", down: "f32" },
      uniforms: { n: "u32" },
    }, () =>
      wgsl`${entry} {
  let i = id.x;
  if (i < u.n) { up[i] = x[i] + y[i]; down[i] = x[i] - y[i]; }
}`);
    call.dispatch(cross, [a, scaled, up, down], { n }, groups);
  },
});

Deno.test("an op of one's own obeys the laws of the library's: several inputs and results, parameters, temporaries", () => {
  const calls = compose((draw) => {
    const shape = draw(arbShape({ minRank: 1, maxRank: 1 }));
    const input = arbTensorData({ shape, views: true });
    return { inputs: [draw(input), draw(input)], params: { scale: draw(elementOf(0, 1, -2.5)) } };
  });
  return checkOp(butterfly, calls, {
    runs: 12,
    refused: [
      () => butterfly([tensor([1]), tensor([1])], { scale: NaN }),
      () => butterfly([tensor([1, 2]), tensor([1])], { scale: 1 }),
    ],
  });
});

Deno.test("profile() and compile() show its kernels", async () => {
  const [a, b] = [tensor([1, 2, 3]), tensor([4, 5, 6])];
  dispose(butterfly([a, b], { scale: 2 }));
  const { kernels } = await profile(() => dispose(butterfly([a, b], { scale: 2 })));
  assert.deepEqual(kernels.map((k) => [k.op, k.kernel]).sort(), [
    ["butterfly", "butterfly_cross"],
    ["butterfly", "butterfly_scale"],
  ]);
  using step = compile((a: Tensor, b: Tensor) => butterfly([a, b], { scale: 2 }));
  assert.deepEqual(await step(a, b)[1].array(), [-7, -8, -9]);
  assert.equal(step.recordings[0].dispatches, 2);
});

const copy = (from: NdArray, to: NdArray) => to.data.set(dense(from).data);

Deno.test("without a derivative a gradient is refused; null lets none through; without a kernel it stays on the CPU", async () => {
  const none = defineOp({ name: "ownWithout", infer: ([x]) => x, reference: ([x], _, y) => copy(x, y) });
  const stopped = defineOp({ name: "ownStopped", infer: ([x]) => x, reference: ([x], _, y) => copy(x, y), vjp: null });
  const x = tensor([1, 2], { backend: cpu() });
  assert.throws(() => grad((x: Tensor) => sum(none([x])))(x), {
    name: "UnsupportedError",
    message: /^\[ownWithout\] has no derivative: give defineOp a vjp/,
  });
  assert.deepEqual(await grad((x: Tensor) => sum(mul(x, stopped([x]))))(x).array(), [1, 2]);
  assert.throws(() => none([tensor([1, 2])]), { name: "UnsupportedError", message: /^\[ownWithout\] has no kernel/ });
});

Deno.test("names that are taken are refused: an op's, a kernel's", () => {
  const define = (name: string) => defineOp({ name, infer: ([x]) => x, reference: ([x], _, y) => copy(x, y) });
  assert.throws(() => define("matmul"), { name: "ValueError", message: /the library has an op "matmul"/ });
  assert.throws(() => define("two words"), { name: "ValueError", message: /identifier, got "two words"/ });
  const shape = { writes: { y: "f32" } } as const;
  const fill = (value: string) => kernel("own_fill", shape, value === "1" ? () => "1" : () => "2");
  assert.equal(fill("1"), fill("1"));
  assert.throws(() => fill("2"), { name: "ValueError", message: /another kernel is named "own_fill"/ });
});

Deno.test("a dispatch that does not fit its kernel is refused before it reaches the device", async () => {
  const shape = { reads: { x: "f32" }, writes: { y: "f32" }, uniforms: { n: "u32" } } as const;
  const same = kernel(
    "own_same",
    shape,
    () =>
      "@compute @workgroup_size(64) fn main(@builtin(global_invocation_id) id: vec3u) {" +
      "if (id.x < u.n) { y[id.x] = x[id.x]; } }",
  );
  const own = defineOp<{ readonly fault: string }>({
    name: "ownDispatch",
    infer: ([x]) => x,
    reference: ([x], _, y) => copy(x, y),
    kernel({ inputs: [x], outputs: [y], params: { fault }, dispatch }) {
      const uniforms: Record<string, number> = fault === "uniforms" ? {} : { n: y.shape[0] };
      dispatch(same, fault === "tensors" ? [x] : [x, y], uniforms, [fault === "workgroups" ? 1e9 : 1, 1, 1]);
    },
  });
  const x = tensor([1, 2]);
  assert.deepEqual(await own([x], { fault: "" }).array(), [1, 2]);
  for (
    const [fault, message] of [
      ["tensors", /own_same binds 2 tensors \(x, y\), got 1/],
      ["uniforms", /own_same needs a number for its uniform n, got undefined/],
      ["workgroups", /own_same runs in 0 to \d+ workgroups along each axis, got \[1000000000,1,1\]/],
    ] as const
  ) assert.throws(() => own([x], { fault }), { name: "ValueError", message });
});
