/** Gradients of functions: `grad`, `valueAndGrad`, `vjp`, `checkpoint`, `stopGradient`. */
import { isFloat } from "../tensor/dtype.ts";
import { ones } from "../tensor/create.ts";
import { DTypeError, ShapeError, show, ValueError } from "../tensor/errors.ts";
import { listening, observeOnly, type Observer, type Op } from "../tensor/op.ts";
import { scope, track } from "../tensor/scope.ts";
import { alias, detach, Tensor } from "../tensor/tensor.ts";
import { forEachTensor, leaves, mapTree } from "../tensor/tree.ts";
import { knownAsOne } from "./absent.ts";
import { Tape } from "./tape.ts";

/** Which arguments to differentiate by: one place, or several. */
export type ArgNums = number | readonly number[];

/** The gradients' form: that of the one argument, or a list with one for each. */
export type GradientsOf<A extends readonly unknown[], N extends ArgNums> = N extends number ? A[N]
  : { [K in keyof N]: N[K] extends number ? A[N[K]] : never };

/** The gradients of arguments that are tensors: one, or a list with one for each. */
export type TensorsOf<N extends ArgNums> = N extends number ? Tensor : { [K in keyof N]: Tensor };

/** Options of {@linkcode valueAndGrad}. */
export interface GradOptions<Aux extends boolean = boolean> {
  /** `f` returns `[value, aux]`; aux comes back untouched. */
  readonly hasAux?: Aux;
}

function argumentsAt(op: string, args: readonly unknown[], argnums: ArgNums): Tensor[] {
  return [argnums].flat().flatMap((n) => {
    if (!Number.isInteger(n) || n < 0 || n >= args.length) {
      throw new ValueError(op, `argument ${n} does not exist: the function was called with ${args.length}`);
    }
    const found: Tensor[] = [];
    forEachTensor(args[n], (x, path) => {
      if (!isFloat(x.dtype)) {
        const where = `argument ${n}${path === "" ? "" : ` at ${path}`}`;
        throw new DTypeError(op, `${where} is ${x.dtype}: only floats have gradients`);
      }
      found.push(x);
    });
    return found;
  });
}

/** Trees of the form of the chosen arguments, with gradients where the tensors were. */
function arrange(args: readonly unknown[], argnums: ArgNums, gradients: readonly Tensor[]): unknown {
  let i = 0;
  const fill = (n: number) => mapTree(args[n], () => gradients[i++]);
  return typeof argnums === "number" ? fill(argnums) : argnums.map(fill);
}

function expectScalar(op: string, value: unknown): Tensor {
  if (!(value instanceof Tensor)) throw new ValueError(op, `the function must return a tensor, got ${typeof value}`);
  if (value.size !== 1) {
    throw new ShapeError(op, `the function must return one number, got ${show(value.shape)}: reduce it by sum or mean`);
  }
  if (!isFloat(value.dtype)) throw new DTypeError(op, `the function must return a float, got ${value.dtype}`);
  return value;
}

/**
 * The function's value and its gradients in one go.
 *
 * What `f` makes and does not return is freed when the call ends. Inside `f`, values needed for the way back are kept,
 * and freed as the walk passes them.
 *
 * @param f returns one number as a tensor of a float dtype, or `[value, aux]` with `hasAux`
 * @param argnums which arguments to differentiate by: plain nested objects and arrays of float tensors
 * @returns `(…args) → [value, gradients]`, the gradients in the form of the argument; with `hasAux`
 * `[[value, aux], gradients]`
 * @throws {ShapeError} when `f` returns more than one number
 * @throws {DTypeError} when an argument or the value is not of floats
 *
 * @example
 * ```ts
 * import { mul, sum, tensor, valueAndGrad } from "@flashtape/flashtape";
 * const [value, dx] = valueAndGrad((x) => sum(mul(x, x)))(tensor([1, 2, 3]));
 * console.log(await value.item(), await dx.array()); // 14 [2, 4, 6]
 * ```
 */
export function valueAndGrad<const N extends ArgNums = 0>(
  f: (...args: Tensor[]) => Tensor,
  argnums?: N,
  options?: GradOptions<false>,
): (...args: Tensor[]) => [value: Tensor, gradients: TensorsOf<N>];
/** Arguments are plain nested objects and arrays of tensors, or anything that is not differentiated by. */
export function valueAndGrad<A extends readonly unknown[], const N extends ArgNums = 0>(
  f: (...args: A) => Tensor,
  argnums?: N,
  options?: GradOptions<false>,
): (...args: A) => [value: Tensor, gradients: GradientsOf<A, N>];
/** With `hasAux`: `f` returns `[value, aux]`. */
export function valueAndGrad<A extends readonly unknown[], Aux, const N extends ArgNums = 0>(
  f: (...args: A) => readonly [Tensor, Aux],
  argnums: N | undefined,
  options: GradOptions<true>,
): (...args: A) => [result: [value: Tensor, aux: Aux], gradients: GradientsOf<A, N>];
export function valueAndGrad<A extends readonly unknown[]>(
  f: (...args: A) => unknown,
  argnums: ArgNums = 0,
  { hasAux = false }: GradOptions = {},
): (...args: A) => [unknown, unknown] {
  return (...args) => differentiate("valueAndGrad", f, args, argnums, hasAux);
}

function differentiate<A extends readonly unknown[]>(
  op: string,
  f: (...args: A) => unknown,
  args: A,
  argnums: ArgNums,
  hasAux: boolean,
): [unknown, unknown] {
  const wanted = argumentsAt(op, args, argnums);
  const tape = new Tape(wanted);
  try {
    return scope(() => {
      const result = scope(() => {
        const out = tape.during(() => f(...args));
        expectScalar(op, hasAux ? (out as readonly unknown[])?.[0] : out);
        return out;
      });
      const value = (hasAux ? (result as readonly unknown[])[0] : result) as Tensor;
      const seed = ones(value.shape, { dtype: value.dtype, backend: value.backend });
      const gradients = knownAsOne(seed, () => tape.walk([[value, seed]], wanted));
      return [result, arrange(args, argnums, gradients)];
    });
  } finally {
    tape.free();
  }
}

/**
 * The gradient of a function that returns one number.
 * @param argnums which arguments to differentiate by; the first when not given
 * @returns `(…args) → gradients`, in the form of the argument
 * @throws as {@linkcode valueAndGrad} does
 *
 * @example
 * ```ts
 * import { grad, mul, sum, tensor } from "@flashtape/flashtape";
 * const cube = grad((x) => sum(mul(mul(x, x), x)));
 * console.log(await cube(tensor([1, 2])).array()); // [3, 12]
 * ```
 */
export function grad<const N extends ArgNums = 0>(
  f: (...args: Tensor[]) => Tensor,
  argnums?: N,
): (...args: Tensor[]) => TensorsOf<N>;
/** Arguments are plain nested objects and arrays of tensors, or anything that is not differentiated by. */
export function grad<A extends readonly unknown[], const N extends ArgNums = 0>(
  f: (...args: A) => Tensor,
  argnums?: N,
): (...args: A) => GradientsOf<A, N>;
export function grad<A extends readonly unknown[]>(
  f: (...args: A) => Tensor,
  argnums?: ArgNums,
): (...args: A) => unknown {
  return (...args) => scope(() => differentiate("grad", f, args, argnums ?? 0, false)[1]);
}

/** Frees what a pullback saved when nobody calls or disposes it. */
const forgotten = new FinalizationRegistry<() => void>((end) => end());

/** From a gradient of the result to those of the primals. */
export interface VjpFunction<A extends readonly unknown[]> extends Disposable {
  /**
   * @param cotangent the gradient of the result, in its form
   * @param options.retain keeps what was saved, so that the pullback can be called again
   * @throws {ValueError} when it was called before without `retain`
   */
  (cotangent: unknown, options?: { readonly retain?: boolean }): A;
}

/**
 * The value of a function, and the pullback that takes a gradient of it back to its arguments (a vector-Jacobian
 * product).
 *
 * @param f takes and returns tensors, or plain nested objects and arrays of them
 * @param primals the arguments, of float tensors
 * @returns `[value, pullback]`
 *
 * @example
 * ```ts
 * import { mul, tensor, vjp } from "@flashtape/flashtape";
 * const [y, pullback] = vjp((x) => mul(x, x), tensor([1, 2]));
 * const [dx] = pullback(tensor([1, 10]));
 * console.log(await dx.array()); // [2, 40]
 * ```
 */
export function vjp<A extends readonly unknown[], R>(
  f: (...args: A) => R,
  ...primals: A
): [value: R, pullback: VjpFunction<A>] {
  const all = primals.map((_, i) => i);
  const wanted = argumentsAt("vjp", primals, all);
  const tape = new Tape(wanted);
  const value = scope(() => tape.during(() => f(...primals)));
  const outputs = leaves(value).map(alias); // the caller may dispose the value first
  let used = false;
  const end = () => {
    used = true;
    tape.free();
    for (const y of outputs) y.dispose();
  };
  const pullback = (cotangent: unknown, { retain = false }: { readonly retain?: boolean } = {}): A => {
    if (used) {
      throw new ValueError(
        "vjp",
        "the pullback was used and its saved tensors are freed; call it with { retain: true }",
      );
    }
    const seeds = leaves(cotangent);
    if (seeds.length !== outputs.length) {
      throw new ValueError("vjp", `the result has ${outputs.length} tensors, the cotangent ${seeds.length}`);
    }
    outputs.forEach((y, i) => {
      if (show(y.shape) !== show(seeds[i].shape) || y.dtype !== seeds[i].dtype) {
        const [a, b] = [y, seeds[i]].map((x) => `${x.dtype} ${show(x.shape)}`);
        throw new ShapeError("vjp", `the result is ${a}, its cotangent ${b}`);
      }
    });
    const gradients = tape.walk(outputs.map((y, i) => [y, seeds[i]] as const), wanted, { keep: retain });
    if (!retain) end();
    return arrange(primals, all, gradients) as A;
  };
  const owner = Object.assign(pullback, { [Symbol.dispose]: end });
  forgotten.register(owner, end);
  return [value, owner];
}

/** Notes every tensor that comes into a function from outside it. */
class Entrances implements Observer {
  readonly found = new Map<number, Tensor>();
  readonly #made = new Set<number>();
  note<P>(_: Op<P>, inputs: readonly Tensor[], __: P, outputs: readonly Tensor[]): void {
    for (const x of inputs) if (!this.#made.has(x.id)) this.found.set(x.id, x);
    for (const y of outputs) this.#made.add(y.id);
  }
}

/**
 * A function that keeps nothing for the way back but what enters it, and runs again when the walk reaches it: less
 * memory for more time (Chen et al. 2016, arXiv:1604.06174).
 *
 * @param f a pure function: run twice, it must give the same result; random keys go in as arguments or are captured
 *
 * @example
 * ```ts
 * import { checkpoint, exp, grad, sum, tensor } from "@flashtape/flashtape";
 * const block = checkpoint((x) => exp(exp(x)));
 * const dx = grad((x) => sum(block(x)))(tensor([0, 1]));
 * ```
 */
export function checkpoint<R>(f: (...args: Tensor[]) => R): (...args: Tensor[]) => R;
/** Arguments are plain nested objects and arrays of tensors, or anything else that `f` takes. */
export function checkpoint<A extends readonly unknown[], R>(f: (...args: A) => R): (...args: A) => R;
export function checkpoint<A extends readonly unknown[], R>(f: (...args: A) => R): (...args: A) => R {
  return (...args) => {
    const tapes = listening().filter((o) => o instanceof Tape);
    if (tapes.length === 0) return f(...args);
    const others = listening().filter((o) => !(o instanceof Tape));
    const entrances = new Entrances();
    const result = scope(() => observeOnly([...others, entrances], () => f(...args)));
    const given = new Set(args.flatMap(leaves));
    const outputs = leaves(result);
    // The function runs again with the handles that it captured, so they outlive the scope that made them.
    for (const x of entrances.found.values()) if (!given.has(x)) tapes[0].pin(x);
    for (const tape of tapes) {
      const inputs = [...entrances.found.values()].filter((x) => tape.tracks(x));
      if (inputs.length === 0) continue;
      const saved = inputs.map(alias);
      const again = mapTree(args, (x) => {
        const kept = alias(x);
        saved.push(kept);
        return kept;
      });
      tape.record("checkpoint", inputs, outputs, (...gradients) => {
        const inner = new Tape(inputs);
        try {
          return scope(() => {
            const ys = scope(() => leaves(inner.during(() => f(...again))));
            return inner.walk(ys.map((y, i) => [y, gradients[i]] as const), saved.slice(0, inputs.length));
          });
        } finally {
          inner.free();
        }
      }, saved);
    }
    return result;
  };
}

/** The same values, through which no gradient flows. */
export function stopGradient<T>(tree: T): T {
  return mapTree(tree, (x) => track(detach(x)));
}
