/**
 * One step of an optimiser for one parameter, in place. What changes from step to step (the count, the learning rate)
 * comes as tensors, so that a recorded step can be replayed.
 */
import type { DType } from "./dtype.ts";
import { ShapeError, show, ValueError } from "./errors.ts";
import { dense, expectDType, type Op, run, runAll, type Spec } from "./op.ts";
import { sameShape } from "./shape.ts";
import type { Tensor } from "./tensor.ts";

const floats: readonly DType[] = ["f64", "f32", "f16", "bf16"];

/** The dtype of an optimiser's state: moments of 16-bit parameters need the range and the digits of f32. */
export function stateDType(param: DType): DType {
  return param === "f64" ? "f64" : "f32";
}

/** Refuses a gradient or state that does not belong to its parameter, and scalars that are none. */
function checkUpdate(
  op: string,
  param: Spec,
  grad: Spec,
  state: Readonly<Record<string, Spec>>,
  learningRate: Spec,
): void {
  expectDType(op, "param", param.dtype, floats);
  expectDType(op, "grad", grad.dtype, floats);
  for (const [name, spec] of Object.entries(state)) expectDType(op, name, spec.dtype, [stateDType(param.dtype)]);
  for (const [name, { shape }] of Object.entries({ grad, ...state })) {
    if (!sameShape(shape, param.shape)) {
      throw new ShapeError(
        op,
        `${name} is not of its parameter's shape: param ${show(param.shape)}, ${name} ${show(shape)}`,
      );
    }
  }
  expectDType(op, "learningRate", learningRate.dtype, ["f32", "f64"]);
  expectScalar(op, "learningRate", learningRate);
}

function expectScalar(op: string, what: string, { shape }: Spec): void {
  if (shape.length !== 0) throw new ShapeError(op, `${what} is one number, got ${show(shape)}`);
}

function checkOption(op: string, name: string, value: number, end = Infinity): void {
  if (!(value >= 0 && value < end)) {
    throw new ValueError(op, `${name} is at least 0 and ${end === Infinity ? "finite" : `below ${end}`}, got ${value}`);
  }
}

/** The constants of {@linkcode adamwUpdate}. */
export interface AdamwOptions {
  /** How much of the mean gradient is kept; 0.9 when not given. */
  readonly beta1?: number;
  /** How much of the mean square is kept; 0.999 when not given. */
  readonly beta2?: number;
  /** Keeps the divisor from 0; 1e-8 when not given. */
  readonly eps?: number;
  /** The part of a parameter, times the learning rate, that is taken from it; 0.01 when not given. */
  readonly weightDecay?: number;
}

/**
 * m = β1·m + (1 − β1)·g,  v = β2·v + (1 − β2)·g²,
 * p = p − lr·(decay·p + m/(1 − β1ᵗ) / (√(v/(1 − β2ᵗ)) + eps)).
 */
export const adamwUpdateOp: Op<Required<AdamwOptions>> = {
  name: "adamwUpdate",
  inPlace: [0, 2, 3],
  infer: ([param, grad, m, v, step, learningRate]) => {
    checkUpdate("adamwUpdate", param, grad, { m, v }, learningRate);
    expectDType("adamwUpdate", "step", step.dtype, ["i32"]);
    expectScalar("adamwUpdate", "step", step);
    return [param, m, v].map(({ shape, dtype }) => ({ shape, dtype }));
  },
  reference: (inputs, { beta1, beta2, eps, weightDecay }, newParam, newM, newV) => {
    const [p, g, m, v, [step], [rate]] = inputs.map((x) => dense(x).data);
    const unbias1 = 1 / (1 - beta1 ** step), unbias2 = 1 / (1 - beta2 ** step);
    for (let i = 0; i < newParam.data.length; i++) {
      const mean = beta1 * m[i] + (1 - beta1) * g[i];
      const square = beta2 * v[i] + (1 - beta2) * g[i] * g[i];
      const direction = mean * unbias1 / (Math.sqrt(square * unbias2) + eps);
      newParam.data[i] = p[i] - rate * (weightDecay * p[i] + direction);
      newM.data[i] = mean;
      newV.data[i] = square;
    }
  },
};

/** What {@linkcode adamwUpdate} works on. `param`, `m` and `v` are consumed. */
export interface AdamwInputs {
  /** Any shape, a float type. */
  readonly param: Tensor;
  /** Its gradient, of its shape. */
  readonly grad: Tensor;
  /** The running mean of gradients: the parameter's shape, f32 (f64 for an f64 parameter), 0 before the first step. */
  readonly m: Tensor;
  /** The running mean of their squares, as `m`. */
  readonly v: Tensor;
  /** The step's number, i32 scalar, 1 for the first. */
  readonly step: Tensor;
  /** f32 scalar. */
  readonly learningRate: Tensor;
}

/**
 * One step of AdamW (Loshchilov and Hutter 2019, arXiv:1711.05101) in place: weight decay acts on the parameter itself
 * and not through its gradient.
 *
 * @returns the new parameter and state; the handles given for them are spent
 * @throws {ShapeError} when gradient or state are not of the parameter's shape
 * @throws {DTypeError} when the state is not f32
 * @throws {ValueError} when an option is out of its range
 */
export function adamwUpdate(
  { param, grad, m, v, step, learningRate }: AdamwInputs,
  { beta1 = 0.9, beta2 = 0.999, eps = 1e-8, weightDecay = 0.01 }: AdamwOptions = {},
): { param: Tensor; m: Tensor; v: Tensor } {
  checkOption("adamwUpdate", "beta1", beta1, 1);
  checkOption("adamwUpdate", "beta2", beta2, 1);
  checkOption("adamwUpdate", "eps", eps);
  checkOption("adamwUpdate", "weightDecay", weightDecay);
  const params = { beta1, beta2, eps, weightDecay };
  const [newParam, newM, newV] = runAll(adamwUpdateOp, [param, grad, m, v, step, learningRate], params);
  return { param: newParam, m: newM, v: newV };
}

/** p = p − lr·(g + decay·p). */
export const sgdUpdateOp: Op<{ weightDecay: number }> = {
  name: "sgdUpdate",
  inPlace: [0],
  infer: ([param, grad, learningRate]) => {
    checkUpdate("sgdUpdate", param, grad, {}, learningRate);
    return { shape: param.shape, dtype: param.dtype };
  },
  reference: (inputs, { weightDecay }, newParam) => {
    const [p, g, [rate]] = inputs.map((x) => dense(x).data);
    for (let i = 0; i < newParam.data.length; i++) newParam.data[i] = p[i] - rate * (g[i] + weightDecay * p[i]);
  },
};

/** u = g + decay·p,  v = μ·v + u,  p = p − lr·v; with nesterov p = p − lr·(u + μ·v). */
export const momentumUpdateOp: Op<{ momentum: number; nesterov: boolean; weightDecay: number }> = {
  name: "momentumUpdate",
  inPlace: [0, 2],
  infer: ([param, grad, velocity, learningRate]) => {
    checkUpdate("sgdUpdate", param, grad, { velocity }, learningRate);
    return [param, velocity].map(({ shape, dtype }) => ({ shape, dtype }));
  },
  reference: (inputs, { momentum, nesterov, weightDecay }, newParam, newVelocity) => {
    const [p, g, v, [rate]] = inputs.map((x) => dense(x).data);
    for (let i = 0; i < newParam.data.length; i++) {
      const slope = g[i] + weightDecay * p[i], speed = momentum * v[i] + slope;
      newParam.data[i] = p[i] - rate * (nesterov ? slope + momentum * speed : speed);
      newVelocity.data[i] = speed;
    }
  },
};

/** The constants of {@linkcode sgdUpdate}. */
export interface SgdOptions {
  /** How much of the velocity is kept; 0 when not given. */
  readonly momentum?: number;
  /** Looks ahead along the velocity (Nesterov 1983); false when not given. */
  readonly nesterov?: boolean;
  /** The part of a parameter that is added to its gradient; 0 when not given. */
  readonly weightDecay?: number;
}

/** What {@linkcode sgdUpdate} works on. `param` and `velocity` are consumed. */
export interface SgdInputs {
  /** Any shape, a float type. */
  readonly param: Tensor;
  /** Its gradient, of its shape. */
  readonly grad: Tensor;
  /** With momentum: the parameter's shape, f32 (f64 for an f64 parameter), 0 before the first step. */
  readonly velocity?: Tensor;
  /** f32 scalar. */
  readonly learningRate: Tensor;
}

/**
 * One step down the gradient, in place.
 *
 * @returns the new parameter, and the velocity when one was given; the handles given for them are spent
 * @throws {ShapeError} when gradient or velocity are not of the parameter's shape
 * @throws {ValueError} when an option is out of its range, or momentum has no velocity
 */
export function sgdUpdate(
  { param, grad, velocity, learningRate }: SgdInputs,
  { momentum = 0, nesterov = false, weightDecay = 0 }: SgdOptions = {},
): { param: Tensor; velocity?: Tensor } {
  checkOption("sgdUpdate", "momentum", momentum, 1);
  checkOption("sgdUpdate", "weightDecay", weightDecay);
  if (velocity === undefined) {
    if (momentum !== 0 || nesterov) throw new ValueError("sgdUpdate", "momentum needs a velocity, zeros at the start");
    return { param: run(sgdUpdateOp, [param, grad, learningRate], { weightDecay }) };
  }
  const params = { momentum, nesterov, weightDecay };
  const [newParam, newVelocity] = runAll(momentumUpdateOp, [param, grad, velocity, learningRate], params);
  return { param: newParam, velocity: newVelocity };
}
