/** How each op becomes dispatches: one entry an op, so that an op without a kernel does not compile. */
import type { Capabilities } from "../tensor/backend.ts";
import { type DType, encode, hostArray, type HostArray } from "../tensor/dtype.ts";
import type { Op } from "../tensor/op.ts";
import { type OpName, ops, type ParamsOfName } from "../tensor/ops.ts";
import { broadcastLayout, type Layout, type Shape, sizeOf } from "../tensor/shape.ts";
import {
  castExpression,
  type Expression,
  expressions,
  geluExpression,
  gridFor,
  locateValues,
  planElementwise,
} from "./elementwise.ts";
import type { Kernel } from "./kernel.ts";
import type { PooledBuffer } from "./memory.ts";
import { arange, fill, place } from "./movement.ts";
import { isPacked, storageBytes } from "./storage.ts";

/** A tensor as a kernel sees it: a buffer and the layout of its elements there. */
export interface View extends Layout {
  readonly buffer: PooledBuffer;
  readonly dtype: DType;
}

/** One call of an op on its way to the device. */
export interface Lowering<Params> {
  readonly inputs: readonly View[];
  /** Dense, at offset 0. For in-place ops they hold the inputs' elements. */
  readonly outputs: readonly View[];
  readonly params: Params;
  readonly capabilities: Capabilities;
  /** Runs a kernel on buffers in the order of its reads, then writes. */
  dispatch(
    kernel: Kernel,
    views: readonly View[],
    uniforms: Readonly<Record<string, number>>,
    workgroups: readonly [number, number, number],
  ): void;
  /** A dense tensor that lives until the call ends. */
  temporary(shape: Shape, dtype: DType): View;
  /** The view itself when it is dense with an offset that is a multiple of `align` elements, else a dense copy. */
  dense(view: View, align?: number): View;
}

/** Runs one elementwise expression over views, broadcast to the output. */
export function elementwise(
  call: Pick<Lowering<unknown>, "dispatch" | "capabilities">,
  name: string,
  expression: Expression,
  inputs: readonly View[],
  y: View,
): void {
  const views = inputs.map((x) => broadcastLayout(x, y.shape));
  const shape = { name, inputs: inputs.map((x) => x.dtype), output: y.dtype, expression };
  const size = sizeOf(y.shape);
  const { kernel, uniforms, threads } = planElementwise(shape, views, size);
  call.dispatch(kernel, [...inputs, y], uniforms, gridFor(threads, call.capabilities.maxWorkgroups));
}

/** y takes the elements that x sees, in y's dtype. */
export function copy(call: Pick<Lowering<unknown>, "dispatch" | "capabilities">, x: View, y: View): void {
  elementwise(call, "cast", castExpression, [x], y);
}

const map = (name: keyof typeof expressions) => (call: Lowering<unknown>): void =>
  elementwise(call, name, expressions[name], call.inputs, call.outputs[0]);

/** For ops that are views: the copy that the view stands for. */
const viewed = <P>(op: Op<P>) => (call: Lowering<P>): void => {
  const [x] = call.inputs, [y] = call.outputs;
  const layout = op.view!(x, call.params);
  if (layout) return copy(call, { ...x, ...layout }, y);
  const whole = call.dense(x);
  copy(call, { ...whole, ...op.view!(whole, call.params)! }, y);
};

/** Every element is one value: its bits, twice in a word for packed types. */
function fillWith(call: Pick<Lowering<unknown>, "dispatch" | "capabilities">, y: View, value: number): void {
  const bytes = encode(y.dtype === "bool" ? "u32" : y.dtype, hostArray(y.dtype === "bool" ? "u32" : y.dtype, 1).fill(value) as HostArray);
  const bits = bytes.byteLength === 2 ? (bytes[0] | (bytes[1] << 8)) * 0x10001 : new Uint32Array(bytes.buffer)[0];
  const n = Math.ceil(sizeOf(y.shape) * storageBytes(y.dtype) / 16);
  call.dispatch(fill(y.dtype), [y], { n, bits }, gridFor(n, call.capabilities.maxWorkgroups));
}

/** Writes views into strided parts of y. Packed types go by way of f32, since two parts may share a word. */
function placeAll(call: Lowering<unknown>, parts: readonly (readonly [x: View, at: Layout])[], y: View, border?: number): void {
  const target = isPacked(y.dtype) ? call.temporary(y.shape, "f32") : y;
  if (border !== undefined) fillWith(call, target, border);
  for (const [x, at] of parts) {
    const n = sizeOf(x.shape);
    if (n === 0) continue;
    let from = x;
    if (isPacked(x.dtype)) copy(call, x, from = call.temporary(x.shape, "f32"));
    const { rank, values } = locateValues(x.shape, [from, at]);
    call.dispatch(place(target.dtype, rank), [from, target], { n, ...values }, gridFor(n, call.capabilities.maxWorkgroups));
  }
  if (target !== y) copy(call, target, y);
}

/** The dispatches of every op. */
export const lowerings: { readonly [N in OpName]: (call: Lowering<ParamsOfName<N>>) => void } = {
  // create
  full: (call) => fillWith(call, call.outputs[0], call.params.value),
  arange: (call) => {
    const [y] = call.outputs, n = Math.ceil(sizeOf(y.shape) / 4);
    const { start, step } = call.params;
    call.dispatch(arange(y.dtype), [y], { n, start, step }, gridFor(n, call.capabilities.maxWorkgroups));
  },
  // elementwise
  add: map("add"),
  sub: map("sub"),
  mul: map("mul"),
  div: map("div"),
  pow: map("pow"),
  maximum: map("maximum"),
  minimum: map("minimum"),
  equal: map("equal"),
  less: map("less"),
  lessEqual: map("lessEqual"),
  logicalAnd: map("logicalAnd"),
  logicalOr: map("logicalOr"),
  logicalNot: map("logicalNot"),
  isFinite: map("isFinite"),
  neg: map("neg"),
  abs: map("abs"),
  sign: map("sign"),
  square: map("square"),
  relu: map("relu"),
  exp: map("exp"),
  exp2: map("exp2"),
  log: map("log"),
  sqrt: map("sqrt"),
  rsqrt: map("rsqrt"),
  tanh: map("tanh"),
  sigmoid: map("sigmoid"),
  silu: map("silu"),
  gelu: (call) =>
    elementwise(call, `gelu_${call.params.approximate}`, geluExpression(call.params.approximate), call.inputs, call.outputs[0]),
  erf: map("erf"),
  sin: map("sin"),
  cos: map("cos"),
  where: map("where"),
  cast: (call) => copy(call, call.inputs[0], call.outputs[0]),
  // movement
  reshape: viewed(ops.reshape),
  permute: viewed(ops.permute),
  broadcastTo: viewed(ops.broadcastTo),
  slice: viewed(ops.slice),
  pad: (call) => {
    const [x] = call.inputs, [y] = call.outputs;
    const { before, interior, value } = call.params;
    const at = {
      shape: x.shape,
      strides: y.strides.map((s, i) => s * (interior[i] + 1)),
      offset: before.reduce((offset, b, i) => offset + b * y.strides[i], 0),
    };
    placeAll(call, [[x, at]], y, value);
  },
  concat: (call) => {
    const [y] = call.outputs, { axis } = call.params;
    let start = 0;
    const parts = call.inputs.map((x) => {
      const at = { shape: x.shape, strides: y.strides, offset: start * y.strides[axis] };
      start += x.shape[axis];
      return [x, at] as const;
    });
    placeAll(call, parts, y);
  },
};
