/** Gated units: the two halves of a feed-forward layer, an activation of one times the other. */
import { type DType, promote } from "./dtype.ts";
import { erfcOf, type GeluOptions, geluTanh, runAs, sigmoidOf } from "./elementwise.ts";
import { ShapeError, show, ValueError } from "./errors.ts";
import { dense, expectDType, type Op } from "./op.ts";
import { sameShape } from "./shape.ts";
import type { Tensor } from "./tensor.ts";

const floats: readonly DType[] = ["f64", "f32", "f16", "bf16"];

/** f(gate) and f′(gate). */
interface Activation {
  readonly value: (a: number) => number;
  readonly slope: (a: number) => number;
}

/** y = f(gate) · up. */
function gated<P>(name: string, of: (params: P) => Activation): Op<P> {
  return {
    name,
    infer: ([gate, up]) => {
      expectDType(name, "gate", gate.dtype, floats);
      expectDType(name, "up", up.dtype, [gate.dtype]);
      if (!sameShape(gate.shape, up.shape)) {
        throw new ShapeError(name, `gate and up differ in shape: gate ${show(gate.shape)}, up ${show(up.shape)}`);
      }
      return gate;
    },
    reference: ([gate, up], params, y) => {
      const a = dense(gate).data, b = dense(up).data, { value } = of(params);
      for (let i = 0; i < a.length; i++) y.data[i] = value(a[i]) * b[i];
    },
  };
}

/** dgate = dy·up·f′(gate), dup = dy·f(gate). Inputs dy, gate, up. */
function gatedBackward<P>(name: string, of: (params: P) => Activation): Op<P> {
  return {
    name,
    infer: ([, gate, up]) => [gate, up],
    reference: ([dy, gate, up], params, dgate, dup) => {
      const g = dense(dy).data, a = dense(gate).data, b = dense(up).data, { value, slope } = of(params);
      for (let i = 0; i < a.length; i++) {
        dgate.data[i] = g[i] * b[i] * slope(a[i]);
        dup.data[i] = g[i] * value(a[i]);
      }
    },
  };
}

const silu = (): Activation => ({
  value: (a) => a * sigmoidOf(a),
  slope: (a) => {
    const s = sigmoidOf(a);
    return s * (1 + a * (1 - s));
  },
});

const gelu = ({ approximate }: Required<GeluOptions>): Activation => approximate === "tanh" ? geluByTanh : geluExact;

const geluExact: Activation = {
  value: (a) => a === -Infinity ? 0 : 0.5 * a * erfcOf(-a / Math.SQRT2),
  slope: (a) => 0.5 * erfcOf(-a / Math.SQRT2) + a * Math.exp(-0.5 * a * a) / Math.sqrt(2 * Math.PI),
};

const geluByTanh: Activation = {
  value: geluTanh,
  slope: (a) => { // of a·sigmoid(w), w = 2c (a + 0.044715 a³)
    const c = 2 * Math.sqrt(2 / Math.PI), w = c * (a + 0.044715 * a ** 3), s = sigmoidOf(w);
    return s + a * s * sigmoidOf(-w) * c * (1 + 3 * 0.044715 * a * a);
  },
};

/** silu(gate) · up. */
export const swigluOp: Op = gated("swiglu", silu);
/** Both gradients of swiglu. */
export const swigluBackwardOp: Op = gatedBackward("swigluBackward", silu);
/** gelu(gate) · up. */
export const gegluOp: Op<Required<GeluOptions>> = gated("geglu", gelu);
/** Both gradients of geglu. */
export const gegluBackwardOp: Op<Required<GeluOptions>> = gatedBackward("gegluBackward", gelu);

/**
 * silu(gate) · up in one pass (Shazeer 2020, arXiv:2002.05202).
 *
 * @param gate floats, any shape
 * @param up the same shape
 * @returns their shape, in the wider dtype of the two
 * @throws {ShapeError} when the shapes differ
 */
export function swiglu(gate: Tensor, up: Tensor): Tensor {
  return runAs(swigluOp, [gate, up], promote("swiglu", gate.dtype, up.dtype), {})[0];
}

/**
 * gelu(gate) · up in one pass (Shazeer 2020, arXiv:2002.05202).
 *
 * @param gate floats, any shape
 * @param up the same shape
 * @param options.approximate `"none"` for the exact normal distribution, the default; `"tanh"` for GPT-2's form
 * @returns their shape, in the wider dtype of the two
 * @throws {ShapeError} when the shapes differ
 */
export function geglu(gate: Tensor, up: Tensor, { approximate = "none" }: GeluOptions = {}): Tensor {
  if (approximate !== "none" && approximate !== "tanh") {
    throw new ValueError("geglu", `approximate is "none" or "tanh", got "${approximate}"`);
  }
  return runAs(gegluOp, [gate, up], promote("geglu", gate.dtype, up.dtype), { approximate })[0];
}
