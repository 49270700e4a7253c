/** What optimisers have in common. */
import { full, tensor, zeros } from "../tensor/create.ts";
import { isFloat } from "../tensor/dtype.ts";
import { add, cast, div, minimum, mul, sqrt, square } from "../tensor/elementwise.ts";
import { DTypeError, ShapeError, show, ValueError } from "../tensor/errors.ts";
import { sum } from "../tensor/reduce.ts";
import { scope } from "../tensor/scope.ts";
import { sameShape } from "../tensor/shape.ts";
import { consume, Tensor } from "../tensor/tensor.ts";
import { forEachTensor, leaves, mapTree, type Tree } from "../tensor/tree.ts";
import { stateDType } from "../tensor/update.ts";
import type { Schedule } from "./schedule.ts";

/** A rule that turns gradients into better parameters. It is a value: what it remembers is in the state. */
export interface Optimizer<State> {
  /** The state before the first update, of tensors alone: a checkpoint can hold it. */
  init<P extends Tree>(params: P): State;
  /**
   * One step. Takes over parameters, gradients and state and writes in place: the handles that were given are spent.
   * @returns the new parameters and state, in the form of the old
   * @throws {ValueError} when parameters, gradients and state are not of one form, before any of them is touched
   */
  update<P extends Tree>(params: P, grads: P, state: State): { params: P; state: State };
}

/** A parameter with its gradient. */
export interface Pair {
  readonly name: string;
  readonly param: Tensor;
  readonly grad: Tensor;
}

/** Parameters with their gradients by name, which must be of one form; none is there twice, since each is written in place. */
function pairsOf(op: string, params: Tree, grads: Tree): Pair[] {
  const byName = new Map<string, Tensor>();
  forEachTensor(grads, (x, name) => byName.set(name, x));
  const pairs: Pair[] = [], names = new Map<Tensor, string>();
  forEachTensor(params, (param, name) => {
    const twin = names.get(param);
    if (twin !== undefined) {
      throw new ValueError(op, `parameters "${twin}" and "${name}" are one tensor: name it once, and use it twice`);
    }
    names.set(param, name);
    const grad = byName.get(name);
    if (grad === undefined) throw new ValueError(op, `parameter "${name}" has no gradient`);
    if (!sameShape(grad.shape, param.shape)) {
      throw new ShapeError(op, `parameter "${name}" is ${show(param.shape)}, its gradient ${show(grad.shape)}`);
    }
    if (!isFloat(param.dtype)) throw new DTypeError(op, `parameter "${name}" is ${param.dtype}, which has no gradient`);
    if (!isFloat(grad.dtype)) throw new DTypeError(op, `the gradient of parameter "${name}" is ${grad.dtype}`);
    byName.delete(name);
    pairs.push({ name, param, grad });
  });
  for (const name of byName.keys()) throw new ValueError(op, `gradient "${name}" belongs to no parameter`);
  return pairs;
}

/** Refuses gradients that are parameters: these are written while those are read. */
function expectApart(op: string, pairs: readonly Pair[]): void {
  const params = new Set(pairs.map(({ param }) => param)), found = pairs.find(({ grad }) => params.has(grad));
  if (found !== undefined) throw new ValueError(op, `the gradient of parameter "${found.name}" is itself a parameter`);
}

/**
 * Refuses a state that is of other parameters.
 * @param what its part that is looked at, which has a tensor for each parameter
 */
export function expectState(
  op: string,
  what: string,
  pairs: Iterable<Pair>,
  kept: Readonly<Record<string, Tensor>>,
): void {
  for (const { name, param } of pairs) {
    const own = Object.hasOwn(kept, name) ? kept[name] : undefined;
    if (own === undefined) throw new ValueError(op, `the state has no ${what} of parameter "${name}"`);
    if (!sameShape(own.shape, param.shape)) {
      throw new ShapeError(op, `parameter "${name}" is ${show(param.shape)}, its ${what} ${show(own.shape)}`);
    }
    const dtype = stateDType(param.dtype);
    if (own.dtype !== dtype) {
      throw new DTypeError(op, `the ${what} of parameter "${name}" is ${own.dtype}, not ${dtype}`);
    }
  }
}

/** What an update goes by. */
export interface Updating {
  /** Parameters with their gradients, by name. */
  readonly pairs: ReadonlyMap<string, Pair>;
  /** Spends a gradient as soon as nothing needs it: several parameters may have one tensor for theirs. */
  spend(pair: Pair): void;
}

/** Looks at parameters and gradients before any is written. */
export function updating(op: string, params: Tree, grads: Tree): Updating {
  const all = pairsOf(op, params, grads), last = new Map(all.map(({ grad, name }) => [grad, name]));
  expectApart(op, all);
  return {
    pairs: new Map(all.map((pair) => [pair.name, pair])),
    spend: ({ grad, name }) => {
      if (last.get(grad) === name) consume(grad, op);
    },
  };
}

/** A state's part before the first update: zeros for each parameter, by name. */
export function zerosFor(op: string, params: Tree): Record<string, Tensor> {
  return Object.fromEntries(
    pairsOf(op, params, params).map(({ name, param }) => [
      name,
      zeros(param.shape, { dtype: stateDType(param.dtype), backend: param.backend }),
    ]),
  );
}

/** A learning rate, which may follow the step count, as an f32 scalar. */
export function rateAt(learningRate: number | Schedule, step: Tensor): Tensor {
  if (typeof learningRate === "number") return full([], learningRate, { backend: step.backend });
  const rate = learningRate(cast(step, "f32"));
  if (!(rate instanceof Tensor) || rate.size !== 1) {
    throw new ValueError("learningRate", `a schedule returns one number as a tensor, got ${rate}`);
  }
  return rate;
}

/** Refuses a learning rate that is no schedule and no finite number from 0. */
export function expectRate(op: string, learningRate: number | Schedule): void {
  if (typeof learningRate !== "function") expectRange(op, "learningRate", learningRate, 0, Infinity);
}

/** Refuses a number outside [min, max). */
export function expectRange(op: string, what: string, value: number, min: number, max: number): void {
  if (!(value >= min && value < max)) {
    throw new ValueError(op, `${what} is at least ${min} and below ${max}, got ${value}`);
  }
}

/** The step count before the first update. */
export function firstStep(params: Tree): Tensor {
  return tensor(0, { dtype: "i32", backend: leaves(params)[0]?.backend });
}

/**
 * Gradients scaled down together so that their common length is at most `max`. Consumes the gradients.
 *
 * @param grads a tree of float tensors
 * @param max the greatest length √Σg²
 * @returns the gradients in the same form, and `norm`: their length before, an f32 scalar
 * @throws {ValueError} when `max` is not above 0
 * @throws {DTypeError} when a gradient is not of floats
 *
 * @example
 * ```ts
 * import { tensor } from "@flashtape/flashtape";
 * import { clipGradNorm } from "@flashtape/flashtape/nn";
 * const { grads, norm } = clipGradNorm({ w: tensor([3, 4]) }, 1);
 * console.log(await norm.item(), await grads.w.array()); // 5, and [0.6, 0.8]
 * ```
 */
export function clipGradNorm<G extends Tree>(grads: G, max: number): { grads: G; norm: Tensor } {
  if (!(max > 0)) throw new ValueError("clipGradNorm", `max is a number above 0, got ${max}`);
  forEachTensor(grads, (g, name) => {
    if (!isFloat(g.dtype)) throw new DTypeError("clipGradNorm", `gradient "${name}" is ${g.dtype}`);
  });
  return scope(() => {
    const wide = (x: Tensor) => x.dtype === "f64" ? x : cast(x, "f32");
    const squares = leaves(grads).map((g) => scope(() => sum(square(wide(g)))));
    if (squares.length === 0) return { grads, norm: full([], 0) };
    const norm = sqrt(squares.reduce((a, b) => add(a, b)));
    const scale = minimum(div(max, add(norm, 1e-6)), 1);
    const clipped = new Map<Tensor, Tensor>(); // one tensor may stand at several places
    const of = (g: Tensor) => {
      const y = clipped.get(g) ?? scope(() => cast(mul(g, scale), g.dtype));
      if (!clipped.has(g)) consume(g, "clipGradNorm");
      clipped.set(g, y);
      return y;
    };
    return { grads: mapTree(grads, of), norm };
  });
}
