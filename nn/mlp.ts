/** The feed-forward part of a transformer block. */
import { swiglu } from "../tensor/gated.ts";
import { scope } from "../tensor/scope.ts";
import type { Tensor } from "../tensor/tensor.ts";
import { linear, type LinearParams } from "./linear.ts";

/** Parameters of {@linkcode swigluMlp}. */
export interface SwigluMlpParams {
  /** `[hidden, size]` */
  readonly gate: LinearParams;
  /** `[hidden, size]` */
  readonly up: LinearParams;
  /** `[size, hidden]` */
  readonly down: LinearParams;
}

/**
 * down(silu(gate x) · up x) (Shazeer 2020, arXiv:2002.05202).
 * @param x `[…, size]`
 * @returns `[…, size]`
 */
export function swigluMlp({ gate, up, down }: SwigluMlpParams, x: Tensor): Tensor {
  return scope(() => linear(down, swiglu(linear(gate, x), linear(up, x))));
}
