/** Normalisation layers: the fused functions over parameter objects. */
import {
  layerNorm as fusedLayerNorm,
  type ResidualNorm,
  rmsNorm as fusedRmsNorm,
  type RmsNormOptions,
} from "../tensor/norm.ts";
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

/**
 * y = x · rsqrt(mean x² + eps) · w over the last axis (Zhang and Sennrich 2019, arXiv:1910.07467).
 *
 * @param x `[…, size]`
 * @param options.eps 1e-6 when not given
 * @returns the shape of `x`; with a residual, that of x + residual and the sum itself
 *
 * @example
 * ```ts
 * import { ones, tensor } from "@flashtape/flashtape";
 * import { rmsNorm } from "@flashtape/flashtape/nn";
 * const params = { weight: ones([2]) };
 * const y = rmsNorm(params, tensor([[3, 3]]));
 * const { out, sum } = rmsNorm(params, tensor([[1, 1]]), { residual: tensor([[2, 2]]) }); // y again, and [[3, 3]]
 * ```
 */
export function rmsNorm(
  params: RmsNormParams,
  x: Tensor,
  options: RmsNormOptions & { readonly residual: Tensor },
): ResidualNorm;
/** Without a residual. */
export function rmsNorm(
  params: RmsNormParams,
  x: Tensor,
  options?: RmsNormOptions & { readonly residual?: undefined },
): Tensor;
export function rmsNorm(
  { weight }: RmsNormParams,
  x: Tensor,
  { eps, residual }: RmsNormOptions = {},
): Tensor | ResidualNorm {
  return residual === undefined ? fusedRmsNorm(x, weight, { eps }) : fusedRmsNorm(x, weight, { eps, residual });
}

/**
 * y = (x − mean x) · rsqrt(var x + eps) · w + b over the last axis (Ba et al. 2016, arXiv:1607.06450).
 *
 * @param x `[…, size]`
 * @param options.eps 1e-5 when not given
 */
export function layerNorm(
  { weight, bias }: LayerNormParams,
  x: Tensor,
  options: { readonly eps?: number } = {},
): Tensor {
  return fusedLayerNorm(x, weight, bias ?? null, options);
}
