/** A call of an op on its way to the device, and what every lowering uses. */
import type { Capabilities } from "../tensor/backend.ts";
import type { DType } from "../tensor/dtype.ts";
import { broadcastLayout, type Layout, sameShape, type Shape, sizeOf } from "../tensor/shape.ts";
import { castExpression, type Expression, gridFor, planElementwise } from "./elementwise.ts";
import type { Kernel } from "./kernel.ts";
import type { PooledBuffer } from "./memory.ts";
import { turn, turnOf } from "./movement.ts";
import type { Cost } from "./profiler.ts";

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
  /** Runs a kernel on buffers in the order of its reads, then writes. Profiles show rates by its cost. */
  dispatch(
    kernel: Kernel,
    views: readonly View[],
    uniforms: Readonly<Record<string, number>>,
    workgroups: readonly [number, number, number],
    cost?: Cost,
  ): void;
  /** A dense tensor that lives until the call ends. */
  temporary(shape: Shape, dtype: DType): View;
  /** The view itself when it is dense with an offset that is a multiple of `align` elements, else a dense copy. */
  dense(view: View, align?: number): View;
}

/** How a call becomes dispatches. */
export type Lower<Params> = (call: Lowering<Params>) => void;

/** Runs one elementwise expression over views, broadcast to the output. */
export function elementwise(
  call: Pick<Lowering<unknown>, "dispatch" | "capabilities">,
  name: string,
  expression: Expression,
  inputs: readonly View[],
  y: View,
): void {
  const views = inputs.map((x) => sameShape(x.shape, y.shape) ? x : broadcastLayout(x, y.shape));
  const size = sizeOf(y.shape);
  const what = { name, inputs: inputs.map((x) => x.dtype), output: y.dtype, expression, layouts: views, size };
  const { kernel, uniforms, threads } = planElementwise(what, views, size);
  call.dispatch(kernel, [...inputs, y], uniforms, gridFor(threads, call.capabilities.maxWorkgroups), what);
}

/** y takes the elements that x sees, in y's dtype. */
export function copy(call: Pick<Lowering<unknown>, "dispatch" | "capabilities">, x: View, y: View): void {
  const turned = x.dtype === y.dtype ? turnOf(x, x.dtype, call.capabilities.maxWorkgroups) : null;
  if (turned !== null) return call.dispatch(turn(x.dtype), [x, y], turned.uniforms, turned.workgroups);
  elementwise(call, "cast", castExpression, [x], y);
}

/** A call of another op as a part of this one. */
export function partCall<P>(
  call: Lowering<unknown>,
  inputs: readonly View[],
  outputs: readonly View[],
  params: P,
): Lowering<P> {
  return {
    inputs,
    outputs,
    params,
    capabilities: call.capabilities,
    dispatch: (...args) => call.dispatch(...args),
    temporary: (...args) => call.temporary(...args),
    dense: (...args) => call.dense(...args),
  };
}
