import assert from "node:assert/strict";
import {
  add,
  cpu,
  defineOp,
  kernel,
  type KernelCall,
  mul,
  setBackend,
  type Spec,
  stopGradient,
  type Tensor,
  tensor,
  ValueError,
  webgpu,
} from "../mod.ts";
import { forEachOffset, type NdArray } from "../tensor/op.ts";
import { needAdapter } from "./laws/adapter.ts";
import { arbShape } from "./tensors.ts";
import { arbTensorData, checkOp, PropertyError } from "./mod.ts";

const gpu = await needAdapter(webgpu());
const vectors = arbTensorData({ shape: arbShape({ minRank: 1, maxRank: 1 }), views: true, max: 4 });
const calls = vectors.map((x) => ({ inputs: [x], params: {} }));

const shape = { reads: { x: "f32" }, writes: { y: "f32" }, uniforms: { n: "u32" } } as const;
const body = "@compute @workgroup_size(64) fn main(@builtin(global_invocation_id) id: vec3u)";
const triple = kernel("checked_triple", shape, () => `${body} { if (id.x < u.n) { y[id.x] = 3.0 * x[id.x]; } }`);
const shortened = kernel("checked_short", shape, () => `${body} { if (id.x < u.n) { y[id.x] = 2.9999 * x[id.x]; } }`);

/** y = 3x, with what a test wants to be wrong in it. */
function tripled(faults: {
  readonly infer?: (x: Spec) => Spec;
  readonly reference?: (x: NdArray, y: NdArray) => void;
  readonly vjp?: (dy: Tensor) => Tensor;
  readonly kernel?: (call: KernelCall<unknown>) => void;
}) {
  return defineOp({
    name: "tripled",
    infer: ([x]) => faults.infer?.(x) ?? x,
    reference: ([x], _, y) => {
      let i = 0;
      if (faults.reference === undefined) forEachOffset(x, (at) => y.data[i++] = 3 * x.data[at]);
      else faults.reference(x, y);
    },
    vjp: () => (dy) => [faults.vjp?.(dy) ?? mul(dy, 3)],
    kernel(call) {
      if (faults.kernel !== undefined) return faults.kernel(call);
      const n = call.outputs[0].shape[0];
      call.dispatch(triple, [call.dense(call.inputs[0]), call.outputs[0]], { n }, [Math.ceil(n / 64), 1, 1]);
    },
  });
}

const options = { seed: 1, runs: 20 };
const breaks = (op: ReturnType<typeof tripled>, message: RegExp) =>
  assert.rejects(checkOp(op, calls, options), (error) => {
    assert.ok(error instanceof PropertyError, `${error}`);
    assert.match(String(error.cause), message);
    return true;
  });

Deno.test("checkOp() passes an op that obeys the laws, on either backend", async () => {
  for (const backend of [gpu, cpu()]) {
    setBackend(backend);
    await checkOp(tripled({}), calls, options);
  }
});

Deno.test("checkOp() finds a kernel that is not the reference", async () => {
  setBackend(gpu);
  const n = (call: KernelCall<unknown>) => call.outputs[0].shape[0];
  await breaks(
    tripled({
      kernel: (call) =>
        call.dispatch(shortened, [call.dense(call.inputs[0]), ...call.outputs], { n: n(call) }, [1, 1, 1]),
    }),
    /too far off/,
  );
  // Reads a view as if it were dense.
  await breaks(
    tripled({ kernel: (call) => call.dispatch(triple, [call.inputs[0], ...call.outputs], { n: n(call) }, [1, 1, 1]) }),
    /too far off/,
  );
});

Deno.test("checkOp() finds a reference that does not look at strides, and a shape rule that is wrong", async () => {
  setBackend(cpu());
  await breaks(
    tripled({
      reference: (x, y) => {
        for (let i = 0; i < y.data.length; i++) y.data[i] = 3 * x.data[i];
      },
    }),
    /too far off/,
  );
  const infer = ({ shape, dtype }: Spec) => ({ shape: [Math.max(1, shape[0] - 1)], dtype });
  await breaks(tripled({ infer }), /writes element \d+ of a result that infer calls/);
});

Deno.test("checkOp() finds a derivative that is wrong, and one that has none of its own", async () => {
  setBackend(cpu());
  await breaks(tripled({ vjp: (dy) => mul(dy, 2) }), /derivatives are off|derivative is off/);
  const once = tripled({ vjp: (dy) => add(mul(stopGradient(dy), 3), 0) });
  await breaks(once, /derivatives are off|derivative is off/);
  await checkOp(once, calls, { ...options, twice: false });
});

Deno.test("checkOp() wants the calls of refused to be refused by the op", async () => {
  setBackend(cpu());
  const refusing = (call: () => unknown) => checkOp(tripled({}), calls, { ...options, runs: 1, refused: [call] });
  await refusing(() => {
    throw new ValueError("tripled", "no");
  });
  await assert.rejects(refusing(() => tensor([1])), /call 0 of refused is not refused/);
  await assert.rejects(
    refusing(() => {
      throw new ValueError("other", "no");
    }),
    /not an error of tripled's/,
  );
});
