/** Elementwise ops: one number out of the numbers in the same place, with broadcasting. */
import type { Backend } from "./backend.ts";
import { full } from "./create.ts";
import { type DType, dtypes, hostArray, isDType, isFloat, promote } from "./dtype.ts";
import { DTypeError, ValueError } from "./errors.ts";
import { backendOf, expectDType, forEachOffset, type NdArray, type Op, run, runAll } from "./op.ts";
import { unscoped } from "./scope.ts";
import { broadcastLayout, broadcastShapes, isDense, type Shape } from "./shape.ts";
import { Tensor } from "./tensor.ts";

/** What elementwise functions take: a tensor, or a number that takes the other side's dtype. */
export type Operand = Tensor | number | boolean;

const numbers: readonly DType[] = ["f64", "f32", "f16", "bf16", "i32", "u32"];
const floats: readonly DType[] = ["f64", "f32", "f16", "bf16"];

/** y_i = f(a_i, b_i, …): dense inputs in one plain loop, views by walking each layout. */
function map(f: (...values: number[]) => number): (inputs: readonly NdArray[], params: unknown, y: NdArray) => void {
  return (inputs, _, y) => {
    const out = y.data;
    const [a, b, c] = inputs.map((x) => elements(x, y.shape));
    if (inputs.length === 1) { for (let i = 0; i < out.length; i++) out[i] = f(a[i]); }
    else if (inputs.length === 2) { for (let i = 0; i < out.length; i++) out[i] = f(a[i], b[i]); }
    else for (let i = 0; i < out.length; i++) out[i] = f(a[i], b[i], c[i]);
  };
}

/** The elements of `x` broadcast to a shape, in row-major order. */
function elements(x: NdArray, shape: Shape): ArrayLike<number> {
  const layout = broadcastLayout(x, shape);
  if (isDense(layout)) return layout.offset === 0 ? x.data : x.data.subarray(layout.offset);
  const out = hostArray(x.dtype, shape.reduce((n, m) => n * m, 1));
  let i = 0;
  forEachOffset(layout, (at) => {
    out[i++] = x.data[at];
  });
  return out;
}

function op1(name: string, f: (x: number) => number, allowed = floats, result?: DType): Op {
  return {
    name,
    infer: ([x]) => {
      expectDType(name, "input", x.dtype, allowed);
      return { shape: x.shape, dtype: result ?? x.dtype };
    },
    reference: map(f),
  };
}

function op2(name: string, f: (a: number, b: number) => number, allowed = floats, result?: DType): Op {
  return {
    name,
    infer: ([a, b]) => {
      expectDType(name, "left", a.dtype, allowed);
      expectDType(name, "right", b.dtype, [a.dtype]);
      return { shape: broadcastShapes(name, a.shape, b.shape), dtype: result ?? a.dtype };
    },
    // Products of integers wrap at 32 bits, which doubles alone would not do.
    reference: (inputs, params, y) =>
      map(name === "mul" && !isFloat(inputs[0].dtype) ? Math.imul : f)(inputs, params, y),
  };
}

/** erf x = 2/√π · e^(−x²) · Σ 2ⁿ x^(2n+1) / (2n+1)!!, all terms of one sign (Abramowitz and Stegun 7.1.6). */
export function erfOf(x: number): number {
  if (Math.abs(x) > 6) return Math.sign(x);
  let term = x, sum = x;
  for (let n = 1; Math.abs(term) > 1e-18 * Math.abs(sum); n++) sum += term *= 2 * x * x / (2 * n + 1);
  return 2 / Math.sqrt(Math.PI) * Math.exp(-x * x) * sum;
}

/** 1 − erf x; where that cancels, by the continued fraction of Laplace (Abramowitz and Stegun 7.1.14). */
export function erfcOf(x: number): number {
  if (x < 2) return 1 - erfOf(x);
  let tail = x;
  for (let n = 60; n > 0; n--) tail = x + n / 2 / tail;
  return Math.exp(-x * x) / (Math.sqrt(Math.PI) * tail);
}

/** Stable at both ends: never e to a large power. */
export function sigmoidOf(x: number): number {
  return x >= 0 ? 1 / (1 + Math.exp(-x)) : Math.exp(x) / (1 + Math.exp(x));
}

/** ½x (1 + tanh u) = x · sigmoid(2u), u = √(2/π) (x + 0.044715 x³): GELU's tanh form (Hendrycks and Gimpel 2016). */
export function geluTanh(x: number): number {
  return x * sigmoidOf(2 * Math.sqrt(2 / Math.PI) * (x + 0.044715 * x ** 3));
}

/** How GELU's normal distribution is computed: exactly, or by tanh. */
export interface GeluOptions {
  /** `"none"` is x·Φ(x); `"tanh"` the approximation that GPT-2 uses. */
  readonly approximate?: "none" | "tanh";
}

const and = (a: number, b: number) => a && b ? 1 : 0;
const or = (a: number, b: number) => a || b ? 1 : 0;
const truth: readonly DType[] = ["bool"];
const any: readonly DType[] = [...numbers, "bool"];

export const addOp: Op = op2("add", (a, b) => a + b, numbers);
export const subOp: Op = op2("sub", (a, b) => a - b, numbers);
export const mulOp: Op = op2("mul", (a, b) => a * b, numbers);
export const divOp: Op = op2("div", (a, b) => a / b);
export const powOp: Op = op2("pow", (a, b) => Math.pow(a, b));
export const maximumOp: Op = op2("maximum", (a, b) => Math.max(a, b), numbers);
export const minimumOp: Op = op2("minimum", (a, b) => Math.min(a, b), numbers);
export const equalOp: Op = op2("equal", (a, b) => a === b ? 1 : 0, any, "bool");
export const lessOp: Op = op2("less", (a, b) => a < b ? 1 : 0, numbers, "bool");
export const lessEqualOp: Op = op2("lessEqual", (a, b) => a <= b ? 1 : 0, numbers, "bool");
export const logicalAndOp: Op = op2("logicalAnd", and, truth);
export const logicalOrOp: Op = op2("logicalOr", or, truth);
export const logicalNotOp: Op = op1("logicalNot", (x) => x ? 0 : 1, truth);
export const isFiniteOp: Op = op1("isFinite", (x) => Number.isFinite(x) ? 1 : 0, floats, "bool");
export const negOp: Op = op1("neg", (x) => -x, numbers);
export const absOp: Op = op1("abs", Math.abs, numbers);
export const signOp: Op = op1("sign", Math.sign, numbers);
export const squareOp: Op = op1("square", (x) => x * x);
export const reluOp: Op = op1("relu", (x) => x < 0 ? 0 : x, numbers);
export const expOp: Op = op1("exp", Math.exp);
export const exp2Op: Op = op1("exp2", (x) => Math.pow(2, x));
export const logOp: Op = op1("log", Math.log);
export const sqrtOp: Op = op1("sqrt", Math.sqrt);
export const rsqrtOp: Op = op1("rsqrt", (x) => 1 / Math.sqrt(x));
export const tanhOp: Op = op1("tanh", Math.tanh);
export const sigmoidOp: Op = op1("sigmoid", sigmoidOf);
export const siluOp: Op = op1("silu", (x) => x * sigmoidOf(x));
export const erfOp: Op = op1("erf", erfOf);
export const sinOp: Op = op1("sin", Math.sin);
export const cosOp: Op = op1("cos", Math.cos);

/** x·Φ(x), Φ the normal distribution (Hendrycks and Gimpel 2016). */
export const geluOp: Op<Required<GeluOptions>> = {
  ...op1("gelu", Math.abs),
  reference: (inputs, { approximate }, y) => {
    const exact = (x: number) => x === -Infinity ? 0 : 0.5 * x * erfcOf(-x / Math.SQRT2);
    map(approximate === "tanh" ? geluTanh : exact)(inputs, {}, y);
  },
};

/** y = condition ? a : b. */
export const whereOp: Op = {
  name: "where",
  infer: ([condition, a, b]) => {
    expectDType("where", "condition", condition.dtype, truth);
    expectDType("where", "third", b.dtype, [a.dtype]);
    const shape = broadcastShapes("where", condition.shape, broadcastShapes("where", a.shape, b.shape));
    return { shape, dtype: a.dtype };
  },
  reference: map((condition, a, b) => condition ? a : b),
};

/** The nearest value of another dtype; floats to integers towards zero, held at the ends; to bool by x ≠ 0. */
export const castOp: Op<{ dtype: DType }> = {
  name: "cast",
  infer: ([x], { dtype }) => ({ shape: x.shape, dtype }),
  reference: (inputs, { dtype }, y) => {
    const ends = dtype === "i32" ? [-(2 ** 31), 2 ** 31 - 1] : [0, 2 ** 32 - 1];
    const toInteger = (x: number) => Number.isNaN(x) ? 0 : Math.min(ends[1], Math.max(ends[0], Math.trunc(x)));
    const wraps = !isFloat(inputs[0].dtype); // between integers the bits stay
    if (dtype === "bool") map((x) => x !== 0 ? 1 : 0)(inputs, {}, y);
    else if (isFloat(dtype) || wraps) map((x) => x)(inputs, {}, y);
    else map(toInteger)(inputs, {}, y);
  },
};

const constants = new WeakMap<Backend, Map<string, Tensor>>();

/** A scalar that is made once for each backend, dtype and value, and never freed. */
function constant(backend: Backend, value: number, dtype: DType): Tensor {
  const known = constants.get(backend) ?? new Map<string, Tensor>();
  constants.set(backend, known);
  const id = `${dtype} ${Object.is(value, -0) ? "-0" : value}`;
  const hit = known.get(id);
  if (hit !== undefined) return hit;
  if (known.size >= 256) return full([], value, { dtype, backend });
  const made = unscoped(() => full([], value, { dtype, backend }));
  known.set(id, made);
  return made;
}

/** Operands, and the dtype to cast them to. */
interface Met {
  readonly inputs: readonly Tensor[];
  readonly dtype: DType;
}

/** Finds operands one dtype: the widest of the tensors', or a float where a number or the op needs one. */
function meet(op: string, operands: readonly Operand[], need: "number" | "float" | "any"): Met {
  const tensors = operands.filter((x) => x instanceof Tensor);
  if (tensors.length === 0) throw new ValueError(op, "needs at least one tensor");
  const backend = backendOf(op, tensors)!;
  let dtype = tensors.map((x) => x.dtype).reduce((a, b) => promote(op, a, b));
  if (dtype === "bool" && need === "number") throw new DTypeError(op, "takes numbers, got bool: cast first");
  const fractions = operands.some((x) => typeof x === "number" && !Number.isInteger(x));
  const numeric = operands.some((x) => typeof x === "number");
  if (!isFloat(dtype) && (fractions || need === "float")) dtype = "f32";
  else if (dtype === "bool" && numeric) dtype = "i32";
  return { inputs: operands.map((x) => x instanceof Tensor ? x : constant(backend, Number(x), dtype)), dtype };
}

/**
 * Runs an op on tensors cast to the dtypes that it wants of them. What does not fit is refused before anything is cast,
 * and the casts are freed.
 * @param dtypes one for all inputs, or one for each
 */
export function runAs<P>(
  op: Op<P>,
  inputs: readonly Tensor[],
  dtypes: DType | readonly DType[],
  params: P,
): Tensor[] {
  const wanted = (i: number) => typeof dtypes === "string" ? dtypes : dtypes[i];
  if (inputs.every((x, i) => x.dtype === wanted(i))) return runAll(op, inputs, params);
  backendOf(op.name, inputs);
  op.infer(inputs.map(({ shape }, i) => ({ shape, dtype: wanted(i) })), params);
  const given = inputs.map((x, i) => cast(x, wanted(i)));
  try {
    return runAll(op, given, params);
  } finally {
    given.forEach((x, i) => {
      if (x !== inputs[i]) x.dispose();
    });
  }
}

/** The type in which functions of floats take a dtype. */
export function floatOf(dtype: DType): DType {
  return isFloat(dtype) ? dtype : "f32";
}

function runMet<P>(op: Op<P>, { inputs, dtype }: Met, params: P): Tensor {
  return runAs(op, inputs, dtype, params)[0];
}

const arithmetic = (op: Op) => (a: Operand, b: Operand): Tensor => runMet(op, meet(op.name, [a, b], "number"), {});
const floating2 = (op: Op) => (a: Operand, b: Operand): Tensor => runMet(op, meet(op.name, [a, b], "float"), {});
const floating = (op: Op) => (x: Tensor): Tensor => runAs(op, [x], floatOf(x.dtype), {})[0];

function logical(op: Op, operands: readonly Operand[]): Tensor {
  const like = operands.find((x) => x instanceof Tensor);
  if (like === undefined) throw new ValueError(op.name, "needs at least one tensor");
  const truths = operands.map((x) => x instanceof Tensor ? x : constant(like.backend, x ? 1 : 0, "bool"));
  return runAs(op, truths, "bool", {})[0];
}

/** An elementwise function of two operands, which broadcast. */
export type BinaryFunction = (a: Operand, b: Operand) => Tensor;
/** An elementwise function of one tensor. */
export type UnaryFunction = (x: Tensor) => Tensor;

/** a + b, with broadcasting. Integers wrap at 32 bits. */
export const add: BinaryFunction = arithmetic(addOp);
/** a − b, with broadcasting. */
export const sub: BinaryFunction = arithmetic(subOp);
/** a · b element by element, with broadcasting. */
export const mul: BinaryFunction = arithmetic(mulOp);
/** a / b; integers are divided as f32. */
export const div: BinaryFunction = floating2(divOp);
/** a to the power b; integers as f32. */
export const pow: BinaryFunction = floating2(powOp);
/** The larger of each pair; NaN when either is. */
export const maximum: BinaryFunction = arithmetic(maximumOp);
/** The smaller of each pair; NaN when either is. */
export const minimum: BinaryFunction = arithmetic(minimumOp);
/** −x. */
export const neg: UnaryFunction = (x): Tensor => run(negOp, [x], {});
/** |x|. */
export const abs: UnaryFunction = (x): Tensor => run(absOp, [x], {});
/** −1, 0 or 1. */
export const sign: UnaryFunction = (x): Tensor => run(signOp, [x], {});
/** e^x. */
export const exp: UnaryFunction = floating(expOp);
/** 2^x. */
export const exp2: UnaryFunction = floating(exp2Op);
/** The natural logarithm. */
export const log: UnaryFunction = floating(logOp);
/** √x. */
export const sqrt: UnaryFunction = floating(sqrtOp);
/** 1/√x. */
export const rsqrt: UnaryFunction = floating(rsqrtOp);
/** x². Integers as f32. */
export const square: UnaryFunction = floating(squareOp);
/** The hyperbolic tangent. */
export const tanh: UnaryFunction = floating(tanhOp);
/** 1 / (1 + e^−x). */
export const sigmoid: UnaryFunction = floating(sigmoidOp);
/** max(x, 0). */
export const relu: UnaryFunction = (x): Tensor => run(reluOp, [x], {});
/** x · sigmoid(x), also called swish. */
export const silu: UnaryFunction = floating(siluOp);
/** The error function. */
export const erf: UnaryFunction = floating(erfOp);
/** sin x, x in radians. */
export const sin: UnaryFunction = floating(sinOp);
/** cos x, x in radians. */
export const cos: UnaryFunction = floating(cosOp);
/** Whether an element is neither infinite nor NaN. */
export const isFinite: UnaryFunction = (x): Tensor => run(isFiniteOp, [x], {});

/**
 * GELU, x·Φ(x).
 * @throws {ValueError} when `approximate` is neither `"none"` nor `"tanh"`
 */
export function gelu(x: Tensor, { approximate = "none" }: GeluOptions = {}): Tensor {
  if (approximate !== "none" && approximate !== "tanh") {
    throw new ValueError("gelu", `approximate is "none" or "tanh", got "${approximate}"`);
  }
  return runAs(geluOp, [x], floatOf(x.dtype), { approximate })[0];
}

/** a = b, as bool. */
export const equal: BinaryFunction = (a, b): Tensor => runMet(equalOp, meet("equal", [a, b], "any"), {});
/** a < b, as bool. */
export const less: BinaryFunction = (a, b): Tensor => runMet(lessOp, meet("less", [a, b], "number"), {});
/** a ≤ b, as bool. */
export const lessEqual: BinaryFunction = (a, b): Tensor => runMet(lessEqualOp, meet("lessEqual", [a, b], "number"), {});
/** a > b, as bool. */
export const greater: BinaryFunction = (a, b): Tensor => less(b, a);
/** a ≥ b, as bool. */
export const greaterEqual: BinaryFunction = (a, b): Tensor => lessEqual(b, a);
/** Both; numbers count as true when they are not 0. */
export const logicalAnd: BinaryFunction = (a, b): Tensor => logical(logicalAndOp, [a, b]);
/** Either or both. */
export const logicalOr: BinaryFunction = (a, b): Tensor => logical(logicalOrOp, [a, b]);
/** The opposite. */
export const logicalNot: UnaryFunction = (x): Tensor => logical(logicalNotOp, [x]);

/**
 * Elements of `a` where the condition holds, else of `b`, with broadcasting.
 * @param condition bool, or numbers that count as true when they are not 0
 */
export function where(condition: Tensor, a: Operand, b: Operand): Tensor {
  const { inputs, dtype } = a instanceof Tensor || b instanceof Tensor ? meet("where", [a, b], "any") : {
    inputs: [a, b].map((x) => constant(condition.backend, Number(x), typeof x === "boolean" ? "bool" : "f32")),
    dtype: typeof a === "boolean" && typeof b === "boolean" ? "bool" : "f32",
  } as const;
  return runAs(whereOp, [condition, ...inputs], ["bool", dtype, dtype], {})[0];
}

/**
 * The same numbers in another dtype, rounded to nearest; floats become integers towards zero, held at the ends of the
 * range, NaN as 0; anything not 0 is true. A tensor that has the dtype already is returned as it is.
 * @throws {DTypeError} when there is no such dtype
 */
export function cast(x: Tensor, dtype: DType): Tensor {
  if (!isDType(dtype)) throw new DTypeError("cast", `"${dtype}" is no dtype: ${Object.keys(dtypes).join(" ")}`);
  return x.dtype === dtype ? x : run(castOp, [x], { dtype });
}
