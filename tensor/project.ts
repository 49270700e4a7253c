/** Linear layers with what stands around them in a transformer: a norm before, a gate or the residual stream after. */
import type { DType } from "./dtype.ts";
import { sigmoidOf } from "./elementwise.ts";
import { ShapeError, show, ValueError } from "./errors.ts";
import { dense, expectDType, type Op, run, type Spec } from "./op.ts";
import { sameShape, sizeOf } from "./shape.ts";
import type { Tensor } from "./tensor.ts";

/** What a projection has around it. */
export interface ProjectParams {
  /** The norm's, added to mean squares; null without a norm. */
  readonly eps: number | null;
  /** How many weights there are. */
  readonly count: number;
  /** The first of two products goes through silu and is multiplied by the second. */
  readonly gated: boolean;
  /** Something is added to the result. */
  readonly residual: boolean;
}

const wide: readonly DType[] = ["f64", "f32"], floats: readonly DType[] = ["f64", "f32", "f16", "bf16"];

/** The inputs by what they are. */
export function projectInputs<T>(inputs: readonly T[], { eps, count, residual }: ProjectParams): {
  readonly x: T;
  readonly norm: T | undefined;
  readonly weights: readonly T[];
  readonly residual: T | undefined;
} {
  const first = eps === null ? 1 : 2;
  return {
    x: inputs[0],
    norm: eps === null ? undefined : inputs[1],
    weights: inputs.slice(first, first + count),
    residual: residual ? inputs[first + count] : undefined,
  };
}

/**
 * y = n·Wᵀ, products with several weights side by side, with n = x or n = x·r·w, r = 1/√(mean x² + eps); or
 * y = silu(n·W₁ᵀ)·(n·W₂ᵀ); then plus the residual. Nothing between is rounded to a narrower type than that of x.
 *
 * Inputs: x f32 (or f64) `[…, K]`; w `[K]` with a norm; `count` weights `[N, K]`, of any float dtype, two of one shape when
 * gated; with a residual, that, of the shape and dtype of y.
 * Output: y `[…, ΣN]` in the dtype of x; `[…, N]` when gated.
 */
export const projectOp: Op<ProjectParams> = {
  name: "project",
  infer: (inputs, params): Spec => {
    const op = "project", { x, norm, weights, residual } = projectInputs(inputs, params);
    expectDType(op, "x", x.dtype, wide);
    if (x.shape.length === 0) throw new ShapeError(op, "x needs at least one axis, got a scalar");
    const length = x.shape.at(-1)!;
    if (norm !== undefined) {
      expectDType(op, "norm", norm.dtype, floats);
      if (show(norm.shape) !== show([length])) {
        throw new ShapeError(op, `the norm has one number a column: x ${show(x.shape)}, norm ${show(norm.shape)}`);
      }
    }
    for (const w of weights) {
      expectDType(op, "weight", w.dtype, floats);
      expectDType(op, "weight", w.dtype, [weights[0].dtype]);
      if (w.shape.length !== 2 || w.shape[1] !== length) {
        throw new ShapeError(op, `a weight is [N, K] with the K of x ${show(x.shape)}, got ${show(w.shape)}`);
      }
    }
    if (params.gated && (weights.length !== 2 || !sameShape(weights[0].shape, weights[1].shape))) {
      const shapes = weights.map((w) => show(w.shape)).join(", ");
      throw new ShapeError(op, `a gate takes two weights of one shape, got ${shapes}`);
    }
    const columns = params.gated ? weights[0].shape[0] : weights.reduce((sum, w) => sum + w.shape[0], 0);
    const shape = [...x.shape.slice(0, -1), columns];
    if (residual !== undefined) {
      expectDType(op, "residual", residual.dtype, [x.dtype]);
      if (!sameShape(residual.shape, shape)) {
        throw new ShapeError(op, `the residual ${show(residual.shape)} has not the result's shape ${show(shape)}`);
      }
    }
    return { shape, dtype: x.dtype };
  },
  reference: (inputs, params, y) => {
    const { x, norm, weights, residual } = projectInputs(inputs.map(dense), params);
    const length = x.shape.at(-1)!, rows = sizeOf(x.shape.slice(0, -1)), columns = y.shape.at(-1)!;
    const n = new Float64Array(length);
    for (let row = 0; row < rows; row++) {
      let square = 0;
      for (let i = 0; i < length; i++) square += (n[i] = x.data[row * length + i]) ** 2;
      if (norm !== undefined) {
        const scale = 1 / Math.sqrt(square / length + params.eps!);
        for (let i = 0; i < length; i++) n[i] *= scale * norm.data[i];
      }
      const dot = ({ data }: typeof x, j: number): number => {
        let sum = 0;
        for (let i = 0, at = j * length; i < length; i++, at++) sum += n[i] * data[at];
        return sum;
      };
      let at = row * columns;
      const put = (value: number) => {
        y.data[at] = residual === undefined ? value : value + residual.data[at];
        at++;
      };
      if (params.gated) {
        for (let j = 0; j < columns; j++) {
          const gate = dot(weights[0], j);
          put(gate * sigmoidOf(gate) * dot(weights[1], j));
        }
      } else for (const w of weights) for (let j = 0; j < w.shape[0]; j++) put(dot(w, j));
    }
  },
};

/** What stands around a projection. */
export interface ProjectOptions {
  /** RMSNorm of x first. */
  readonly norm?: { readonly weight: Tensor; readonly eps: number };
  /** Gates the second of two products by the first. */
  readonly gated?: boolean;
  /** Added to the result. */
  readonly residual?: Tensor;
}

/**
 * Linear layers without a derivative, for running models: 16-bit weights are read as they are by f32 inputs, and few rows
 * stream them at the speed of memory. More than 32 rows go through matrix units where a device has some, which take
 * eleven digits of what 16-bit weights multiply: those of f16, in a range of its own for each row.
 *
 * @param x f32 `[…, K]`
 * @param weights `[N, K]`, one or several
 * @returns `[…, N]`, products with several weights side by side
 * @throws {ShapeError} when shapes do not fit
 */
export function project(x: Tensor, weights: readonly Tensor[], options: ProjectOptions = {}): Tensor {
  const { norm, gated = false, residual } = options;
  if (weights.length === 0) throw new ShapeError("project", "needs at least one weight");
  if (norm !== undefined && !(norm.eps >= 0)) {
    throw new ValueError("project", `eps is at least 0, got ${norm.eps}`);
  }
  const inputs = [x, ...(norm ? [norm.weight] : []), ...weights, ...(residual ? [residual] : [])];
  const params = { eps: norm?.eps ?? null, count: weights.length, gated, residual: residual !== undefined };
  return run(projectOp, inputs, params);
}
