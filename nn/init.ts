/** First values of parameters. */
import { abs, greater, maximum, minimum, mul, where } from "../tensor/elementwise.ts";
import { ShapeError, show, ValueError } from "../tensor/errors.ts";
import type { DType } from "../tensor/dtype.ts";
import { randn, split, uniform } from "../tensor/random.ts";
import { scope } from "../tensor/scope.ts";
import { type Shape, sizeOf } from "../tensor/shape.ts";
import type { Tensor } from "../tensor/tensor.ts";

/** Options of every initialiser. */
export interface InitOptions {
  /** A float type; f32 when not given. */
  readonly dtype?: DType;
}

/** What flows through a layer, for {@linkcode kaimingUniform} and {@linkcode kaimingNormal}. */
export interface KaimingOptions extends InitOptions {
  /** What follows the layer: √2 after `"relu"`, the default; 1 after `"linear"`. */
  readonly nonlinearity?: "relu" | "linear";
  /** Keeps the variance going forward (`"in"`, the default) or back (`"out"`). */
  readonly fan?: "in" | "out";
}

/**
 * Normal numbers with mean 0.
 * @param key u32 [2]
 * @param options.std the standard deviation, 1 when not given
 */
export function normal(
  key: Tensor,
  shape: Shape,
  { std = 1, dtype }: InitOptions & { readonly std?: number } = {},
): Tensor {
  expectPositive("normal", "std", std);
  return scope(() => mul(randn(key, shape, { dtype }), std));
}

/**
 * Normal numbers none of which is further than `bound` standard deviations from 0: one outside is drawn again, up to
 * seven times, and then held at the bound.
 *
 * @param key u32 [2]
 * @param options.std the standard deviation before the tails are cut, 1 when not given
 * @param options.bound in standard deviations, 2 when not given
 */
export function truncatedNormal(
  key: Tensor,
  shape: Shape,
  { std = 1, bound = 2, dtype }: InitOptions & { readonly std?: number; readonly bound?: number } = {},
): Tensor {
  expectPositive("truncatedNormal", "std", std);
  expectPositive("truncatedNormal", "bound", bound);
  return scope(() => {
    const draws = split(key, 8).map((k) => randn(k, shape, { dtype }));
    const z = draws.reduce((kept, again) => where(greater(abs(kept), bound), again, kept));
    return mul(maximum(minimum(z, bound), -bound), std);
  });
}

/**
 * Evenly spread so that variance is kept both ways: ±√(6 / (in + out)) (Glorot and Bengio 2010).
 * @param shape `[out, in, …]`
 * @param options.gain a factor, 1 when not given
 */
export function xavierUniform(
  key: Tensor,
  shape: Shape,
  { gain = 1, dtype }: InitOptions & { readonly gain?: number } = {},
): Tensor {
  const { fanIn, fanOut } = fans("xavierUniform", shape);
  return symmetric(key, shape, gain * Math.sqrt(6 / (fanIn + fanOut)), dtype);
}

/**
 * Normal so that variance is kept both ways: √(2 / (in + out)) (Glorot and Bengio 2010).
 * @param shape `[out, in, …]`
 * @param options.gain a factor, 1 when not given
 */
export function xavierNormal(
  key: Tensor,
  shape: Shape,
  { gain = 1, dtype }: InitOptions & { readonly gain?: number } = {},
): Tensor {
  const { fanIn, fanOut } = fans("xavierNormal", shape);
  return normal(key, shape, { std: gain * Math.sqrt(2 / (fanIn + fanOut)), dtype });
}

/**
 * Evenly spread for layers before a ReLU: ±√(3)·gain/√fan (He et al. 2015).
 * @param shape `[out, in, …]`
 */
export function kaimingUniform(key: Tensor, shape: Shape, options: KaimingOptions = {}): Tensor {
  return symmetric(key, shape, Math.sqrt(3) * kaimingStd("kaimingUniform", shape, options), options.dtype);
}

/**
 * Normal for layers before a ReLU: gain/√fan (He et al. 2015).
 * @param shape `[out, in, …]`
 */
export function kaimingNormal(key: Tensor, shape: Shape, options: KaimingOptions = {}): Tensor {
  return normal(key, shape, { std: kaimingStd("kaimingNormal", shape, options), dtype: options.dtype });
}

function kaimingStd(op: string, shape: Shape, { nonlinearity = "relu", fan = "in" }: KaimingOptions): number {
  const { fanIn, fanOut } = fans(op, shape);
  return (nonlinearity === "relu" ? Math.SQRT2 : 1) / Math.sqrt(fan === "in" ? fanIn : fanOut);
}

function symmetric(key: Tensor, shape: Shape, limit: number, dtype?: DType): Tensor {
  return uniform(key, shape, { min: -limit, max: limit, dtype });
}

function fans(op: string, shape: Shape): { fanIn: number; fanOut: number } {
  if (shape.length < 2 || sizeOf(shape) === 0) {
    throw new ShapeError(op, `needs a weight of at least two axes, none of them empty: ${show(shape)}`);
  }
  const field = sizeOf(shape.slice(2));
  return { fanIn: shape[1] * field, fanOut: shape[0] * field };
}

function expectPositive(op: string, what: string, value: number): void {
  if (!(value > 0 && value < Infinity)) throw new ValueError(op, `${what} is a number above 0, got ${value}`);
}
