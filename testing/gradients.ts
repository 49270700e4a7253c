/** Gradients against central differences. */

import { grad } from "../autograd/grad.ts";
import { getBackend, setBackend } from "../tensor/backend.ts";
import { cpu } from "../tensor/cpu.ts";
import { tensor } from "../tensor/create.ts";
import { isFloat } from "../tensor/dtype.ts";
import { add, mul } from "../tensor/elementwise.ts";
import { DTypeError, show, ValueError } from "../tensor/errors.ts";
import { sum } from "../tensor/reduce.ts";
import { scope } from "../tensor/scope.ts";
import type { Shape } from "../tensor/shape.ts";
import type { Tensor } from "../tensor/tensor.ts";
import { forEachTensor, leaves, mapTree } from "../tensor/tree.ts";
import { Random } from "./choices.ts";
import { AssertionError, indexOf, short } from "./close.ts";

/** How {@link checkGradients} compares. */
export interface GradientOptions {
  /** The step of a difference at values up to 1, in proportion at larger ones; 1e-5 by default. */
  readonly eps?: number;
  /** The part of the bound that grows with the difference quotient, 1e-6 by default. */
  readonly rtol?: number;
  /** The part of the bound that grows with the size of the terms in the output, 1e-8 by default. */
  readonly atol?: number;
}

/**
 * Checks the gradients of a function against central differences, element by element, in f64 on the CPU backend.
 *
 * The inputs are copied there whatever their backend and type, and the function runs with the CPU as current backend.
 * Outputs of any shape are allowed: they are summed up with fixed random weights first. Integer and bool inputs, and what
 * is no tensor, are passed through.
 *
 * Differences know nothing of kinks. Keep inputs away from them: relu at 0, the maximum of equal numbers, and the like;
 * where the slopes on the two sides differ, the error says so.
 *
 * @param f takes and returns tensors, or plain nested objects and arrays of them
 * @param inputs the arguments of `f`
 * @throws {AssertionError} naming the argument, the path in it and the element with the largest error
 * @throws {ValueError} when the inputs hold no float tensor, the outputs hold none, or the value is not finite
 *
 * @example
 * ```ts
 * import { checkGradients } from "@flashtape/flashtape/testing";
 * import { add, matmul, tanh, tensor } from "@flashtape/flashtape";
 *
 * const params = { weight: tensor([[0.5, -1], [2, 0.3]]), bias: tensor([0.1, 0.2]) };
 * await checkGradients(
 *   (x, { weight, bias }) => tanh(add(matmul(x, weight), bias)),
 *   [tensor([[1, 2]]), params],
 * );
 * ```
 */
export async function checkGradients<A extends readonly unknown[]>(
  f: (...inputs: A) => unknown,
  inputs: readonly [...A],
  { eps = 1e-5, rtol = 1e-6, atol = 1e-8 }: GradientOptions = {},
): Promise<void> {
  for (const [name, value] of Object.entries({ eps, rtol, atol })) {
    if (!Number.isFinite(value) || value < 0 || (name === "eps" && value === 0)) {
      throw new ValueError("checkGradients", `${name} must be positive: got ${value}`);
    }
  }
  const values = await readInputs(inputs);
  const onCpu = new OnCpu((args) => f(...(args as unknown as A)), inputs, values);
  const gradients = onCpu.gradients();
  const { value: start, scale } = onCpu.evaluate();
  if (!Number.isFinite(start)) throw new ValueError("checkGradients", `the function is not finite here: ${start}`);

  const faults: Fault[] = [];
  let checked = 0;
  for (const [leaf, { data, isInput }] of values.entries()) {
    for (let i = 0; isInput && i < data.length; i++) {
      const kept = data[i];
      const step = eps * Math.max(1, Math.abs(kept));
      data[i] = kept + step;
      const above = { at: data[i], ...onCpu.evaluate() };
      data[i] = kept - step;
      const below = { at: data[i], ...onCpu.evaluate() };
      data[i] = kept;
      const expected = (above.value - below.value) / (above.at - below.at);
      const actual = gradients[leaf][i];
      const bound = rtol * Math.abs(expected) + atol * Math.max(1, scale);
      const error = Math.abs(actual - expected);
      checked++;
      if (error <= bound) continue;
      const sides = [(above.value - start) / (above.at - kept), (start - below.value) / (kept - below.at)] as const;
      faults.push({ leaf, element: i, actual, expected, bound, error: Number.isNaN(error) ? Infinity : error, sides });
    }
  }
  if (faults.length > 0) throw new AssertionError(describe(faults, checked, values));
}

/** One tensor of the inputs, on the host. */
interface Leaf {
  readonly data: Float64Array;
  readonly shape: Shape;
  /** Whether it has a gradient. */
  readonly isInput: boolean;
  readonly dtype: Tensor["dtype"];
  readonly where: string;
}

interface Fault {
  readonly leaf: number;
  readonly element: number;
  readonly actual: number;
  readonly expected: number;
  readonly error: number;
  readonly bound: number;
  readonly sides: readonly [right: number, left: number];
}

/** Every tensor of the inputs, in the order of {@link leaves}. */
async function readInputs(inputs: readonly unknown[]): Promise<Leaf[]> {
  const found: { x: Tensor; where: string }[] = [];
  inputs.forEach((input, n) =>
    forEachTensor(input, (x, path) => found.push({ x, where: `argument ${n}${path === "" ? "" : ` at ${path}`}` }))
  );
  const values = await Promise.all(found.map(async ({ x, where }): Promise<Leaf> => ({
    data: Float64Array.from(await x.data()),
    shape: x.shape,
    dtype: x.dtype,
    isInput: isFloat(x.dtype),
    where,
  })));
  if (values.some((leaf) => leaf.isInput)) return values;
  throw new ValueError("checkGradients", `needs a float tensor among the inputs: found ${values.length} others`);
}

/** A function of nested inputs as one of the numbers in them, with one number as result. */
class OnCpu {
  readonly #f: (args: readonly unknown[]) => unknown;
  readonly #inputs: readonly unknown[];
  readonly #values: readonly Leaf[];

  constructor(f: (args: readonly unknown[]) => unknown, inputs: readonly unknown[], values: readonly Leaf[]) {
    this.#f = f;
    this.#inputs = inputs;
    this.#values = values;
  }

  /** The value at the numbers as they are now, and the largest size of its terms' sum. */
  evaluate(): { value: number; scale: number } {
    return this.#run(() => {
      let [value, scale] = [0, 0];
      this.#outputs(this.#tensors()).forEach((y, n) => {
        const [data, weights] = [y.dataSync(), weightsOf(n, y.size)];
        for (let i = 0; i < y.size; i++) {
          value += data[i] * weights[i];
          scale += Math.abs(data[i] * weights[i]);
        }
      });
      return { value, scale };
    });
  }

  /** The gradients that are to be checked, one array a leaf; those of leaves without one are empty. */
  gradients(): ArrayLike<number>[] {
    return this.#run(() => {
      const all = this.#tensors();
      const wanted = all.filter((_, i) => this.#values[i].isInput);
      const loss = (xs: readonly Tensor[]) => {
        const rest = xs[Symbol.iterator]();
        const mixed = all.map((x, i) => this.#values[i].isInput ? next(rest) : x);
        const terms = this.#outputs(mixed).map((y, n) =>
          sum(mul(y, tensor(weightsOf(n, y.size), { shape: y.shape, dtype: "f64" })))
        );
        return terms.reduce(add);
      };
      const found = grad(loss)(wanted);
      const rest = found[Symbol.iterator]();
      return all.map((x, i) => {
        if (!this.#values[i].isInput) return [];
        const dx = next(rest);
        if (show(dx.shape) === show(x.shape)) return dx.dataSync();
        const { where } = this.#values[i];
        throw new AssertionError(
          `[checkGradients] the gradient of ${where} has shape ${show(dx.shape)}, the input ${show(x.shape)}`,
        );
      });
    });
  }

  #tensors(): Tensor[] {
    return this.#values.map(({ data, shape, dtype, isInput }) =>
      tensor(data, { shape, dtype: isInput ? "f64" : dtype })
    );
  }

  /** The float tensors of the result. */
  #outputs(xs: readonly Tensor[]): Tensor[] {
    const rest = xs[Symbol.iterator]();
    const outputs = leaves(this.#f(this.#inputs.map((input) => mapTree(input, () => next(rest)))));
    const floats = outputs.filter((y) => isFloat(y.dtype));
    if (floats.length === 0) {
      throw new ValueError(
        "checkGradients",
        `the function must return a float tensor: it returned ${outputs.length} others`,
      );
    }
    const narrow = floats.find((y) => y.dtype !== "f64");
    if (narrow !== undefined) {
      throw new DTypeError(
        "checkGradients",
        `the function must compute in the type of its inputs, f64, to be compared: it returned ${narrow.dtype}`,
      );
    }
    return floats;
  }

  /** Runs with the CPU as current backend, and frees what was made. */
  #run<T>(body: () => T): T {
    const before = getBackend();
    setBackend(cpu());
    try {
      return scope(body);
    } finally {
      setBackend(before);
    }
  }
}

function next<T>(values: Iterator<T>): T {
  const { done, value } = values.next();
  if (done) throw new Error("a tensor went missing from the inputs");
  return value;
}

/** Weights of either sign and of size ½ to 1, the same each time. */
function weightsOf(output: number, size: number): Float64Array {
  const random = new Random(1, output);
  return Float64Array.from({ length: size }, () => {
    const unit = random.unit();
    return unit < 0.5 ? unit - 1 : unit;
  });
}

function describe(faults: readonly Fault[], checked: number, values: readonly Leaf[]): string {
  const worst = faults.reduce((a, b) => b.error / b.bound > a.error / a.bound ? b : a);
  const { where, shape } = values[worst.leaf];
  const [right, left] = worst.sides;
  // A kink leaves the two slopes apart by far more than curvature does over one step.
  const kink = Math.abs(right - left) > 0.01 * (Math.abs(right) + Math.abs(left))
    ? `; the slope is ${short(right)} to the right and ${short(left)} to the left: is there a kink?`
    : "";
  const element = shape.length === 0 ? "" : `, element ${show(indexOf(worst.element, shape))}`;
  const count = checked === 1 ? "the one derivative is" : `${faults.length} of ${checked} derivatives are`;
  return `[checkGradients] ${count} off; the worst is ${where}${element}: grad gives ${worst.actual}, ` +
    `central differences ${worst.expected}, error ${short(worst.error)}, bound ${short(worst.bound)}${kink}`;
}
