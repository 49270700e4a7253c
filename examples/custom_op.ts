/**
 * An op of your own: what it means, its derivative, and the kernel that computes it. `deno run examples/custom_op.ts`
 *
 * Squared ReLU, y = max(x, 0)² (So et al. 2021, arXiv:2109.08668): two kernels when written with relu and square, one
 * here. The test beside this file holds it to the laws of the library's own ops.
 */
import {
  compile,
  defineOp,
  DTypeError,
  getBackend,
  grad,
  init,
  kernel,
  key,
  mul,
  profile,
  randn,
  relu,
  square,
  sum,
  type Tensor,
  tensor,
  wgsl,
} from "@flashtape/flashtape";

/** y = max(x, 0)². */
const squaredReluOp = defineOp({
  name: "squaredRelu",
  // The shape rule: any shape; types that the kernel reads as they are, and f64 for the CPU.
  infer: ([x]) => {
    if (x.dtype !== "f32" && x.dtype !== "f64") throw new DTypeError("squaredRelu", `x is ${x.dtype}, expected f32`);
    return x;
  },
  // The specification. Inputs may be views: element i of the result is wherever the strides of x say.
  reference: ([x], _, y) => {
    const index = x.shape.map(() => 0);
    for (let i = 0; i < y.data.length; i++) {
      const at = index.reduce((at, n, axis) => at + n * x.strides[axis], x.offset);
      y.data[i] = Math.max(x.data[at], 0) ** 2;
      for (let axis = index.length - 1; axis >= 0 && ++index[axis] === x.shape[axis]; axis--) index[axis] = 0;
    }
  },
  // The derivative, 2·max(x, 0)·dy, in tensor functions: so it has a derivative too.
  vjp: ({ inputs: [x] }) => (dy) => [mul(dy, mul(relu(x), 2))],
  // On a GPU: one thread an element, in rows of 256 threads.
  kernel(call) {
    const x = call.dense(call.inputs[0]), [y] = call.outputs;
    const n = y.shape.reduce((a, b) => a * b, 1), groups = Math.ceil(n / 256);
    const rows = Math.ceil(groups / call.capabilities.maxWorkgroups);
    call.dispatch(squaredRelu32, [x, y], { n }, [Math.ceil(groups / rows), rows, 1], { flops: 2 * n });
  },
});

const squaredRelu32 = kernel("squaredRelu_f32", {
  reads: { x: "f32" },
  writes: { y: "f32" },
  uniforms: { n: "u32" },
}, () =>
  wgsl`@compute @workgroup_size(256) fn main(
  @builtin(workgroup_id) group: vec3u, @builtin(num_workgroups) groups: vec3u, @builtin(local_invocation_index) lane: u32,
) {
  let i = (group.y * groups.x + group.x) * 256u + lane;
  if (i >= u.n) { return; }
  let positive = max(x[i], 0.0);
  y[i] = positive * positive;
}`);

/**
 * Squared ReLU.
 * @param x any shape, f32
 * @returns the same shape
 */
export function squaredRelu(x: Tensor): Tensor {
  return squaredReluOp([x]);
}

/** The op itself, for the test. */
export { squaredReluOp };

if (import.meta.main) {
  await init();
  const x = tensor([-1, 0.5, 3]);
  console.log("y ", await squaredRelu(x).array());
  console.log("dx", await grad((x: Tensor) => sum(squaredRelu(x)))(x).array());
  const step = compile(grad((x: Tensor) => sum(squaredRelu(x))));
  console.log("dx", await step(x).array(), "compiled");
  if (getBackend().capabilities.timestamps) {
    const big = randn(key(0), [1024, 4096]);
    for (let i = 0; i < 2; i++) square(relu(squaredRelu(big))).dispose(); // compiles the kernels
    console.log((await profile(() => [squaredRelu(big), square(relu(big))])).table());
  }
}
