/** The laws of an op, tried on ops of one's own. */

import { grad } from "../autograd/grad.ts";
import { getBackend } from "../tensor/backend.ts";
import { compile } from "../tensor/compile.ts";
import { cpu } from "../tensor/cpu.ts";
import { type DType, dtypes, type HostArray, isFloat, roundTo } from "../tensor/dtype.ts";
import { FlashtapeError, show } from "../tensor/errors.ts";
import { add, square } from "../tensor/elementwise.ts";
import { ndarray, type Op, type Spec } from "../tensor/op.ts";
import { sum } from "../tensor/reduce.ts";
import { type Shape, sizeOf } from "../tensor/shape.ts";
import type { Tensor } from "../tensor/tensor.ts";
import type { Arbitrary } from "./arbitrary.ts";
import { assertClose, AssertionError, type Tolerance } from "./close.ts";
import { checkGradients } from "./gradients.ts";
import { check, type PropertyOptions } from "./property.ts";
import type { TensorData } from "./tensors.ts";

/** An op as `defineOp` makes one. */
export interface CheckedOp<Params> {
  /** Runs it. */
  (inputs: readonly Tensor[], params: Params): Tensor | Tensor[];
  /** Its record. */
  readonly op: Op<Params>;
  /** Whether it has a derivative. */
  readonly differentiable: boolean;
}

/** One call of an op, before its tensors are made. */
export interface OpCall<Params> {
  /** In the op's order; draw them by `arbTensorData({ views: true })`. */
  readonly inputs: readonly TensorData[];
  /** What else it is called with. */
  readonly params: Params;
}

/** How {@linkcode checkOp} tries an op. */
export interface CheckOpOptions extends PropertyOptions, Partial<Tolerance> {
  /** Calls that the op must refuse, each by an error of flashtape's. */
  readonly refused?: readonly (() => unknown)[];
  /** Whether the derivative has a derivative; true when not given. */
  readonly twice?: boolean;
}

/**
 * Tries the laws of an op: (1) the reference writes what `infer` says, the same from views as from copies; (2) the current
 * backend computes what the reference computes, the same bits each time, and compiled as plain; (3) the derivative is that of central differences in f64, and so is its own; (4) calls that are not
 * valid are refused by an error that names the op.
 *
 * @param op what `defineOp` returned
 * @param calls draws calls, away from places where the op has a kink
 * @param options `rtol` and `atol` bound the error of law 2, by default as {@linkcode assertClose} does; `runs` and `seed`
 * are those of a property
 * @throws {PropertyError} with the simplest call that breaks a law
 * @throws {AssertionError} when a call of `refused` is not
 *
 * @example
 * ```ts
 * import { defineOp, mul } from "@flashtape/flashtape";
 * import { arbShape, arbTensorData, checkOp } from "@flashtape/flashtape/testing";
 *
 * const double = defineOp({
 *   name: "double",
 *   infer: ([x]) => x,
 *   reference: ([x], _, y) => {
 *     for (let i = 0; i < y.data.length; i++) y.data[i] = 2 * x.data[x.offset + i * x.strides[0]];
 *   },
 *   vjp: () => (dy) => [mul(dy, 2)],
 * });
 * const vector = arbTensorData({ shape: arbShape({ minRank: 1, maxRank: 1 }), views: true });
 * await checkOp(double, vector.map((x) => ({ inputs: [x], params: {} })));
 * ```
 */
export async function checkOp<Params>(
  op: CheckedOp<Params>,
  calls: Arbitrary<OpCall<Params>>,
  { refused = [], twice = true, rtol, atol, ...options }: CheckOpOptions = {},
): Promise<void> {
  await check([calls], async ({ inputs, params }) => {
    const run = (inputs: readonly Tensor[]) => [op(inputs, params)].flat();
    const exact = expected(op.op, { inputs, params });
    const backend = getBackend();
    for (const at of new Set([cpu(), backend])) {
      const tensors = inputs.map((x) => x.tensor(at));
      const results = run(tensors);
      for (const [i, y] of results.entries()) {
        await assertClose(y, exact[i].data, { dtype: y.dtype, ...(at === cpu() ? {} : defined({ rtol, atol })) });
      }
      await assertSameBits(`${op.op.name} on ${at.name}, run twice`, run(tensors), results);
      if (at.record === undefined) continue;
      const compiled = compile(run);
      try {
        for (const call of ["recorded", "replayed"]) {
          await assertSameBits(`${op.op.name} compiled, ${call}`, compiled(tensors), results);
        }
      } finally {
        compiled[Symbol.dispose]();
      }
    }
    if (!op.differentiable || !inputs.some((x) => isFloat(x.dtype) && sizeOf(x.shape) > 0)) return;
    const wide = inputs.map((x) => x.tensor(cpu(), isFloat(x.dtype) ? "f64" : x.dtype));
    await checkGradients(floatsOf(run), [wide]);
    if (twice) await checkGradients(slopes(run), [wide]);
  }, options);
  refused.forEach((call, i) => expectRefusal(op.op.name, i, call));
}

/** The results of floats alone: what a gradient goes through. */
function floatsOf(run: (inputs: readonly Tensor[]) => Tensor[]): (inputs: readonly Tensor[]) => Tensor[] {
  return (inputs) => run(inputs).filter((y) => isFloat(y.dtype));
}

/** The gradients of Σ y² by the float inputs, which have a slope even where the op is linear. */
function slopes(run: (inputs: readonly Tensor[]) => Tensor[]): (inputs: readonly Tensor[]) => readonly Tensor[] {
  return (inputs) => {
    const floats = inputs.filter((x) => isFloat(x.dtype));
    const value = (xs: readonly Tensor[]) => {
      let next = 0;
      const mixed = inputs.map((x) => isFloat(x.dtype) ? xs[next++] : x);
      return floatsOf(run)(mixed).map((y) => sum(square(y))).reduce((a, b) => add(a, b));
    };
    return grad(value)(floats);
  };
}

interface Expected extends Spec {
  readonly data: HostArray;
}

/** The reference's results from dense inputs, floats in f64 until they are rounded to the dtype of the result. */
function expected<Params>(op: Op<Params>, { inputs, params }: OpCall<Params>): Expected[] {
  const inferred = op.infer(inputs, params);
  const specs = Array.isArray(inferred) ? inferred as readonly Spec[] : [inferred as Spec];
  const wide = (dtype: DType) => isFloat(dtype) ? "f64" : dtype;
  const outputs = specs.map(({ shape, dtype }) => ndarray({ shape, dtype: wide(dtype) }));
  const dense = inputs.map(({ shape, dtype, data }) => {
    const copy = ndarray({ shape, dtype: wide(dtype) });
    copy.data.set(data);
    return copy;
  });
  const targets = outputs.map((y) => ({ ...y, data: guarded(op.name, y.data, y.shape) }));
  if (outputs.some(({ data }) => data.length > 0)) op.reference(dense, params, ...targets);
  return specs.map(({ shape, dtype }, i) => {
    roundTo(dtype, outputs[i].data);
    return { shape, dtype, data: outputs[i].data };
  });
}

/** Elements of which none can be written but those that there are. */
function guarded(name: string, data: HostArray, shape: Shape): HostArray {
  return new Proxy(data, {
    get: (_, key) => {
      const value: unknown = Reflect.get(data, key, data);
      return typeof value === "function" ? value.bind(data) : value;
    },
    set: (_, key, value: number) => {
      if (!Object.hasOwn(data, key)) {
        throw new AssertionError(
          `[checkOp] the reference of ${name} writes element ${String(key)} of a result that infer calls ${
            show(shape)
          }`,
        );
      }
      data[Number(key)] = value;
      return true;
    },
  });
}

async function assertSameBits(what: string, actual: readonly Tensor[], expected: readonly Tensor[]): Promise<void> {
  for (const [i, y] of actual.entries()) {
    const [a, e] = await Promise.all([y.bytes(), expected[i].bytes()]);
    const at = a.findIndex((byte, j) => byte !== e[j]);
    if (at < 0) continue;
    const element = Math.floor(at / dtypes[y.dtype].bytes);
    throw new AssertionError(`[checkOp] ${what}: other bits, from element ${element} of result ${i} on`);
  }
}

function expectRefusal(name: string, i: number, call: () => unknown): void {
  try {
    call();
  } catch (error) {
    if (error instanceof FlashtapeError && error.op === name) return;
    throw new AssertionError(`[checkOp] call ${i} of refused throws "${error}", not an error of ${name}'s`);
  }
  throw new AssertionError(`[checkOp] call ${i} of refused is not refused`);
}

function defined<T extends object>(options: T): Partial<T> {
  return Object.fromEntries(Object.entries(options).filter(([, value]) => value !== undefined)) as Partial<T>;
}
