/**
 * The twins of the fused functions: the same signatures, the same numbers up to rounding, written op by op. They are what
 * a fused function is compared with, they differentiate as often as one likes, and they read like the formulas.
 */
import { arange } from "./create.ts";
import { isFloat } from "./dtype.ts";
import {
  add,
  cast,
  div,
  equal,
  gelu,
  type GeluOptions,
  logicalNot,
  mul,
  rsqrt,
  silu,
  square,
  sub,
  tanh,
  where,
} from "./elementwise.ts";
import { oneHot, take } from "./gather.ts";
import type * as gated from "./gated.ts";
import type * as loss from "./loss.ts";
import { matmul } from "./matmul.ts";
import { concat, expandDims, reshape, slice, stack } from "./movement.ts";
import type * as norm from "./norm.ts";
import { accumulatorOf, type ResidualNorm, type RmsNormOptions } from "./norm.ts";
import { logsumexp, mean, sum } from "./reduce.ts";
import type * as rotary from "./rotary.ts";
import { Tensor } from "./tensor.ts";

/** In the type that sums are kept in. */
function exact(x: Tensor): Tensor {
  return cast(x, accumulatorOf(x.dtype));
}

const rowwise = { axis: -1, keepDims: true } as const;

function rmsNorm(x: Tensor, weight: Tensor, options: RmsNormOptions & { readonly residual: Tensor }): ResidualNorm;
function rmsNorm(x: Tensor, weight: Tensor, options?: RmsNormOptions & { readonly residual?: undefined }): Tensor;
function rmsNorm(x: Tensor, weight: Tensor, { eps = 1e-6, residual }: RmsNormOptions = {}): Tensor | ResidualNorm {
  const total = residual === undefined ? x : add(x, residual);
  const s = exact(total);
  const out = cast(mul(mul(s, rsqrt(add(mean(square(s), rowwise), eps))), weight), total.dtype);
  return residual === undefined ? out : { out, sum: total };
}

function layerNorm(
  x: Tensor,
  weight: Tensor,
  bias: Tensor | null = null,
  { eps = 1e-5 }: { readonly eps?: number } = {},
): Tensor {
  const s = exact(x), centred = sub(s, mean(s, rowwise));
  const scaled = mul(mul(centred, rsqrt(add(mean(square(centred), rowwise), eps))), weight);
  return cast(bias === null ? scaled : add(scaled, bias), x.dtype);
}

function rotaryEmbedding(x: Tensor, cos: Tensor, sin: Tensor, options?: rotary.RotaryOptions): Tensor;
function rotaryEmbedding<T extends readonly Tensor[]>(
  x: readonly [...T],
  cos: Tensor,
  sin: Tensor,
  options?: rotary.RotaryOptions,
): { [K in keyof T]: Tensor };
function rotaryEmbedding(
  x: Tensor | readonly Tensor[],
  cos: Tensor,
  sin: Tensor,
  { interleaved = false, positions }: rotary.RotaryOptions = {},
): Tensor | readonly Tensor[] {
  const turn = (x: Tensor): Tensor => {
    const [, S, , D] = x.shape, R = cos.shape[1];
    const at = positions ?? arange(0, S, { dtype: "i32", backend: x.backend });
    const [c, s] = [cos, sin].map((table) => cast(expandDims(take(table, at), -2), x.dtype)); // [S, 1, R] or [B, S, 1, R]
    const part = (begin: number, end: number, step = 1) =>
      slice(x, [0, 0, 0, begin], [...x.shape.slice(0, 3), end], { strides: [1, 1, 1, step] });
    const [x1, x2] = interleaved ? [part(0, 2 * R, 2), part(1, 2 * R, 2)] : [part(0, R), part(R, 2 * R)];
    const y1 = sub(mul(x1, c), mul(x2, s)), y2 = add(mul(x2, c), mul(x1, s));
    const turned = interleaved
      ? reshape(stack([y1, y2], { axis: -1 }), [...x.shape.slice(0, 3), 2 * R])
      : concat([y1, y2], { axis: -1 });
    return concat([turned, part(2 * R, D)], { axis: -1 });
  };
  return x instanceof Tensor ? turn(x) : x.map(turn);
}

function swiglu(gate: Tensor, up: Tensor): Tensor {
  return mul(silu(gate), up);
}

function geglu(gate: Tensor, up: Tensor, options: GeluOptions = {}): Tensor {
  return mul(gelu(gate, options), up);
}

function crossEntropy(logits: Tensor, labels: Tensor, options: loss.CrossEntropyOptions = {}): Tensor {
  const { ignoreIndex = -100, labelSmoothing = 0, zLoss = 0, softcap = 0, reduction = "mean" } = options;
  const x = exact(isFloat(logits.dtype) ? logits : cast(logits, "f32"));
  const z = softcap > 0 ? mul(tanh(div(x, softcap)), softcap) : x;
  const target = cast(labels, "i32"), counts = logicalNot(equal(target, ignoreIndex));
  const hit = oneHot(where(counts, target, 0), x.shape.at(-1)!, { dtype: "bool" });
  const lse = logsumexp(z, { axis: -1 });
  let value = sub(lse, mul(sum(where(hit, z, 0), { axis: -1 }), 1 - labelSmoothing));
  if (labelSmoothing > 0) value = sub(value, mul(mean(z, { axis: -1 }), labelSmoothing));
  if (zLoss > 0) value = add(value, mul(square(lse), zLoss));
  value = where(counts, value, 0);
  if (reduction === "none") return value;
  return reduction === "sum" ? sum(value) : div(sum(value), sum(cast(counts, value.dtype)));
}

function linearCrossEntropy(
  hidden: Tensor,
  weight: Tensor,
  labels: Tensor,
  options: loss.CrossEntropyOptions = {},
): Tensor {
  return crossEntropy(matmul(hidden, weight, { transposeB: true }), labels, options);
}

/**
 * The fused functions written op by op, each with the signature of its fused twin.
 *
 * @example
 * ```ts
 * import { eager, swiglu, tensor } from "@flashtape/flashtape";
 * const gate = tensor([1, 2]), up = tensor([3, 4]);
 * console.log(await swiglu(gate, up).array(), await eager.swiglu(gate, up).array());
 * ```
 */
export const eager: {
  /** {@linkcode rmsNorm}, op by op. */
  readonly rmsNorm: typeof norm.rmsNorm;
  /** {@linkcode layerNorm}, op by op. */
  readonly layerNorm: typeof norm.layerNorm;
  /** {@linkcode rotaryEmbedding}, op by op. */
  readonly rotaryEmbedding: typeof rotary.rotaryEmbedding;
  /** {@linkcode swiglu}, op by op. */
  readonly swiglu: typeof gated.swiglu;
  /** {@linkcode geglu}, op by op. */
  readonly geglu: typeof gated.geglu;
  /** {@linkcode crossEntropy}, op by op. */
  readonly crossEntropy: typeof loss.crossEntropy;
  /** {@linkcode linearCrossEntropy}, op by op: all the logits exist at once. */
  readonly linearCrossEntropy: typeof loss.linearCrossEntropy;
} = { rmsNorm, layerNorm, rotaryEmbedding, swiglu, geglu, crossEntropy, linearCrossEntropy };
