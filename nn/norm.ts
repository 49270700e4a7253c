/** Normalisation layers. */
import type { DType } from "../tensor/dtype.ts";
import { add, cast, mul, rsqrt, square, sub } from "../tensor/elementwise.ts";
import { mean } from "../tensor/reduce.ts";
import { scope } from "../tensor/scope.ts";
import type { Tensor } from "../tensor/tensor.ts";

/** Parameters of {@linkcode rmsNorm}. */
export interface RmsNormParams {
  /** `[size]` */
  readonly weight: Tensor;
}

/** Parameters of {@linkcode layerNorm}. */
export interface LayerNormParams {
  /** `[size]` */
  readonly weight: Tensor;
  /** `[size]`; none when not given. */
  readonly bias?: Tensor;
}

/** Options of the normalisation layers. */
export interface NormOptions {
  /** Added to the mean square or variance; 1e-5 when not given. */
  readonly eps?: number;
}

function wide(dtype: DType): DType {
  return dtype === "f64" ? "f64" : "f32";
}

/**
 * y = x · rsqrt(mean x² + eps) · w over the last axis (Zhang and Sennrich 2019, arXiv:1910.07467).
 * @param x `[…, size]`
 */
export function rmsNorm({ weight }: RmsNormParams, x: Tensor, { eps = 1e-5 }: NormOptions = {}): Tensor {
  return scope(() => {
    const xf = cast(x, wide(x.dtype));
    const r = rsqrt(add(mean(square(xf), { axis: -1, keepDims: true }), eps));
    return mul(cast(mul(xf, r), x.dtype), weight);
  });
}

/**
 * y = (x − mean x) · rsqrt(var x + eps) · w + b over the last axis (Ba et al. 2016, arXiv:1607.06450).
 * @param x `[…, size]`
 */
export function layerNorm({ weight, bias }: LayerNormParams, x: Tensor, { eps = 1e-5 }: NormOptions = {}): Tensor {
  return scope(() => {
    const xf = cast(x, wide(x.dtype));
    const centred = sub(xf, mean(xf, { axis: -1, keepDims: true }));
    const r = rsqrt(add(mean(square(centred), { axis: -1, keepDims: true }), eps));
    const y = mul(cast(mul(centred, r), x.dtype), weight);
    return bias === undefined ? y : add(y, bias);
  });
}
