/** The pre-norm transformer block. */
import type { AttentionCache } from "../tensor/attention_cache.ts";
import { add } from "../tensor/elementwise.ts";
import { listening } from "../tensor/op.ts";
import { project } from "../tensor/project.ts";
import { foldIn } from "../tensor/random.ts";
import { scope } from "../tensor/scope.ts";
import type { Tensor } from "../tensor/tensor.ts";
import {
  type AttentionParams,
  multiHeadAttention,
  type MultiHeadAttentionOptions,
  normedAttention,
} from "./attention.ts";
import { dropout } from "./dropout.ts";
import { swigluMlp, type SwigluMlpParams } from "./mlp.ts";
import { rmsNorm, type RmsNormParams } from "./norm.ts";

/** Parameters of {@linkcode transformerBlock}. */
export interface TransformerBlockParams {
  /** Before attention. */
  readonly attentionNorm: RmsNormParams;
  /** The attention layers. */
  readonly attention: AttentionParams;
  /** Before the feed-forward part. */
  readonly mlpNorm: RmsNormParams;
  /** The feed-forward layers. */
  readonly mlp: SwigluMlpParams;
}

/** Options of {@linkcode transformerBlock}. */
export interface TransformerBlockOptions extends MultiHeadAttentionOptions {
  /** Of both norms; 1e-6 when not given. */
  readonly eps?: number;
  /** Drops elements of what attention and mlp add to the residual stream, with this probability; none when not given. */
  readonly dropout?: { readonly p: number; readonly key: Tensor };
  /** Whether to use ops that have no derivative, where they fit; when nobody asks for one, if not given. */
  readonly fused?: boolean;
}

/**
 * h = x + attention(norm x); y = h + mlp(norm h).
 *
 * @param x `[B, S, size]`
 * @returns y `[B, S, size]`, and with a cache the keys and values that the next call takes
 * @throws as {@linkcode multiHeadAttention} does
 */
export function transformerBlock(
  params: TransformerBlockParams,
  x: Tensor,
  options: TransformerBlockOptions,
): { out: Tensor; cache?: AttentionCache } {
  const { eps = 1e-6 } = options;
  if (runsFused(params, x, options)) return fusedBlock(params, x, eps, options);
  return scope(() => {
    const { out, cache } = multiHeadAttention(params.attention, rmsNorm(params.attentionNorm, x, { eps }), options);
    const h = rmsNorm(params.mlpNorm, dropped(out, options, 0), { eps, residual: x }); // h.sum = x + attention
    return { out: add(h.sum, dropped(swigluMlp(params.mlp, h.out), options, 1)), cache };
  });
}

function dropped(x: Tensor, { dropout: drop }: TransformerBlockOptions, branch: number): Tensor {
  return drop === undefined ? x : dropout(x, { p: drop.p, key: foldIn(drop.key, branch) });
}

/** Whether nobody asks for a derivative, and the fused ops have all that is needed. */
function runsFused(
  { attention, mlp }: TransformerBlockParams,
  x: Tensor,
  { dropout, heads, kvHeads = heads, attention: algorithm = "flash", fused = listening().length === 0 }:
    TransformerBlockOptions,
): boolean {
  const layers = [attention.q, attention.k, attention.v, attention.o, mlp.gate, mlp.up, mlp.down];
  const type = layers[0].weight.dtype;
  return fused && dropout === undefined && (x.dtype === "f32" || x.dtype === "f64") &&
    (algorithm === "flash" || algorithm === "naive") && x.rank === 3 && heads % kvHeads === 0 &&
    attention.q.weight.shape[0] % heads === 0 &&
    layers.every(({ weight, bias }) => bias === undefined && weight.rank === 2 && weight.dtype === type);
}

/** The same in ops that have no derivative: few tokens stream the weights, each once; a step of decoding is five dispatches. */
function fusedBlock(
  { attention, attentionNorm, mlp, mlpNorm }: TransformerBlockParams,
  x: Tensor,
  eps: number,
  options: TransformerBlockOptions,
): { out: Tensor; cache?: AttentionCache } {
  return scope(() => {
    const { out, cache } = normedAttention(attention, { ...attentionNorm, eps }, x, options);
    const h = project(out, [attention.o.weight], { residual: x });
    const norm = { ...mlpNorm, eps };
    const inner = project(h, [mlp.gate.weight, mlp.up.weight], { norm, gated: true });
    return { out: project(inner, [mlp.down.weight], { residual: h }), cache };
  });
}
