/**
 * Ops of your own: `defineOp` takes what the library's tables hold for each of theirs: a shape rule, a reference, a
 * derivative and a kernel.
 */
import type { Call, Pullback } from "./autograd/tape.ts";
import { defineVjp } from "./autograd/vjps.ts";
import { defineLowering } from "./kernels/defined.ts";
import { type Kernel, kernel as make, type KernelInterface, madeKernel } from "./kernels/kernel.ts";
import type { Lower, View } from "./kernels/lowering.ts";
import type { Capabilities } from "./tensor/backend.ts";
import type { DType } from "./tensor/dtype.ts";
import { show, UnsupportedError, ValueError } from "./tensor/errors.ts";
import { type NdArray, type Op, runAll, type Spec } from "./tensor/op.ts";
import type { Layout, Shape } from "./tensor/shape.ts";
import type { Tensor } from "./tensor/tensor.ts";

/**
 * A tensor as a kernel sees it: where its elements lie in the buffer that is bound. f32, i32 and u32 take a word each,
 * bool is a u32 of 0 or 1, f16 and bf16 lie two to a word, the lower half first.
 */
export interface KernelTensor extends Layout {
  /** The element type. */
  readonly dtype: DType;
}

/** One call of an op on its way to the device. */
export interface KernelCall<Params> {
  /** What the op was given. Strides and offsets are those of views: see `dense`. */
  readonly inputs: readonly KernelTensor[];
  /** What it must write, dense and from offset 0; the bytes are undefined before. */
  readonly outputs: readonly KernelTensor[];
  /** The parameters of the call. */
  readonly params: Params;
  /** What the device can do. */
  readonly capabilities: Capabilities;
  /**
   * Runs a kernel, after those before it.
   * @param tensors in the order of the kernel's reads, then writes; each once
   * @param uniforms a number for each field of the kernel's uniform block
   * @param workgroups how many along x, y and z; nothing runs when one is 0
   * @param cost what profiles count: the least bytes to move and the floating-point operations
   */
  dispatch(
    kernel: Kernel,
    tensors: readonly KernelTensor[],
    uniforms: Readonly<Record<string, number>>,
    workgroups: readonly [x: number, y: number, z: number],
    cost?: { readonly bytes?: number; readonly flops?: number },
  ): void;
  /** The same elements, dense and from offset 0: the tensor itself when it is that, else a copy. */
  dense(x: KernelTensor): KernelTensor;
  /** Room that lives until the call ends, dense, its bytes undefined. */
  temporary(shape: Shape, dtype: DType): KernelTensor;
}

/** What {@linkcode defineOp} takes. */
export interface OpDefinition<Params, Specs extends Spec | readonly Spec[] = Spec> {
  /** An identifier, as errors and profiles show it; no op of the library has it. */
  readonly name: string;
  /**
   * Shape and dtype of the result, or of each in a list; throws what callers should see of input that is not valid.
   * Backends may hold f64 (the CPU does), and derivatives are checked in it: let it through.
   */
  infer(inputs: readonly Spec[], params: Params): Specs;
  /**
   * The specification, which the CPU backend runs: loops over `data` by each input's strides and offset. Floats are
   * exact in f64; outputs arrive dense, zeroed, and are rounded to their dtype afterwards.
   */
  reference(inputs: readonly NdArray[], params: Params, ...outputs: NdArray[]): void;
  /**
   * The derivative: takes what it needs of the call, and returns the way from the gradients of the results to those of
   * the inputs, null for an input without one. Written with tensor functions it differentiates again. `null` says that
   * no gradient goes through; without it, asking for one is an error.
   */
  readonly vjp?: ((call: Call<Params>) => Pullback) | null;
  /** The dispatches that compute it on a GPU; without them the op runs on the CPU alone. */
  kernel?(call: KernelCall<Params>): void;
}

/** An op as a function. */
export interface DefinedOp<Params, Result = Tensor> {
  /**
   * Runs it where its inputs live.
   * @param params left out only by an op that needs none
   * @returns a tensor, or a list of them where `infer` gives a list
   */
  (inputs: readonly Tensor[], ...params: Record<never, never> extends Params ? [Params?] : [Params]): Result;
  /** Its record. */
  readonly op: Op<Params>;
  /** Whether it was given a derivative. */
  readonly differentiable: boolean;
}

/**
 * An op of your own, which works like those of the library: on every backend that it has a kernel for, under `grad`,
 * `compile`, `checkpoint` and `profile`. `checkOp` of `./testing` tries the laws that the library's ops are held to.
 *
 * @param definition what the op means, its derivative, and how a GPU computes it
 * @throws {ValueError} when the name is no identifier or one of the library's
 *
 * @example
 * ```ts
 * import { defineOp, div, kernel, square, type Tensor, tensor, wgsl } from "@flashtape/flashtape";
 *
 * const inverse = defineOp({
 *   name: "inverse",
 *   infer: ([x]) => x,
 *   reference: ([x], _, y) => {
 *     for (let i = 0; i < y.data.length; i++) y.data[i] = 1 / x.data[x.offset + i * x.strides[0]];
 *   },
 *   vjp: ({ output: y }) => (dy) => [div(dy, div(-1, square(y)))],
 *   kernel(call) {
 *     const x = call.dense(call.inputs[0]), [y] = call.outputs, n = y.shape[0];
 *     const shape = { reads: { x: "f32" }, writes: { y: "f32" }, uniforms: { n: "u32" } } as const;
 *     const text = () => wgsl`@compute @workgroup_size(64) fn main(@builtin(global_invocation_id) id: vec3u) {
 *       if (id.x < u.n) { y[id.x] = 1.0 / x[id.x]; }
 *     }`;
 *     call.dispatch(kernel("inverse_f32", shape, text), [x, y], { n }, [Math.ceil(n / 64), 1, 1]);
 *   },
 * });
 * console.log(await inverse([tensor([1, 2, 4])]).array()); // [1, 0.5, 0.25]
 * ```
 */
export function defineOp<Params = Record<never, never>>(definition: OpDefinition<Params>): DefinedOp<Params>;
/** With several results. */
export function defineOp<Params = Record<never, never>>(
  definition: OpDefinition<Params, readonly Spec[]>,
): DefinedOp<Params, Tensor[]>;
export function defineOp<Params>(definition: OpDefinition<Params, Spec | readonly Spec[]>): unknown {
  const { name, vjp, kernel } = definition;
  if (!/^[A-Za-z_]\w*$/.test(name)) throw new ValueError("defineOp", `an op's name is an identifier, got "${name}"`);
  let isList = false; // whether the latest call has a list of results
  const op: Op<Params> = {
    name,
    infer: (inputs, params) => {
      const specs = definition.infer(inputs, params);
      isList = Array.isArray(specs);
      return specs;
    },
    reference: (inputs, params, ...outputs) => definition.reference(inputs, params, ...outputs),
  };
  const none = () => () => {
    throw new UnsupportedError(name, "has no derivative: give defineOp a vjp, or null where no gradient goes through");
  };
  defineVjp(op, vjp === undefined ? none : vjp);
  if (kernel !== undefined) defineLowering(op, lowerBy(name, kernel.bind(definition)));
  const call = (inputs: readonly Tensor[], params: unknown = {}) => {
    const results = runAll(op, inputs, params as Params);
    return isList ? results : results[0];
  };
  return Object.assign(call, { op, differentiable: vjp !== undefined && vjp !== null });
}

/** The user's dispatches in the form of the library's, with what can go wrong named. */
function lowerBy<Params>(name: string, kernel: (call: KernelCall<Params>) => void): Lower<Params> {
  return (call) => {
    const { inputs, outputs, params, capabilities } = call;
    const refuse = (message: string): never => {
      throw new ValueError(name, message);
    };
    kernel({
      inputs,
      outputs,
      params,
      capabilities,
      dispatch: (kernel, tensors, uniforms, workgroups, cost) => {
        const bindings = [...kernel.reads, ...kernel.writes];
        if (tensors.length !== bindings.length) {
          refuse(`${kernel.name} binds ${bindings.length} tensors (${bindings.join(", ")}), got ${tensors.length}`);
        }
        const missing = kernel.uniforms.find(([field]) => !Number.isFinite(uniforms[field]));
        if (missing !== undefined) {
          refuse(`${kernel.name} needs a number for its uniform ${missing[0]}, got ${uniforms[missing[0]]}`);
        }
        const most = capabilities.maxWorkgroups;
        if (workgroups.some((n) => !Number.isInteger(n) || n < 0 || n > most)) {
          refuse(`${kernel.name} runs in 0 to ${most} workgroups along each axis, got ${show(workgroups)}`);
        }
        call.dispatch(kernel, tensors as readonly View[], uniforms, workgroups, cost);
      },
      dense: (x) => call.dense(x as View, Infinity),
      temporary: (shape, dtype) => call.temporary(shape, dtype),
    });
  };
}

const texts = new Map<string, string>();

/**
 * A kernel: WGSL with the storage and uniforms that it binds, or the kernel of that name made before. A name therefore
 * says everything that the text depends on: `scale_f32`, not `scale`.
 *
 * The body has an entry point `main`, and names its storage bindings and its uniform block `u` as plain variables:
 * their declarations are written for it. Lines like `enable subgroups;` are too, from `requires`.
 *
 * @param shape what it binds: `reads` and `writes` by name and element type, `uniforms` by name and type
 * @param body WGSL; called once a name
 * @throws {ValueError} when another kernel has the name
 */
export function kernel(name: string, shape: KernelInterface, body: () => string): Kernel {
  const text = `${JSON.stringify(shape)}${body}`, known = texts.get(name);
  if (known === undefined ? madeKernel(name) !== undefined : known !== text) {
    throw new ValueError("kernel", `another kernel is named "${name}": a name says all that its text depends on`);
  }
  texts.set(name, text);
  return make(name, shape, body);
}
