/** A Llama out of eager layers, over the same parameters as the library's: what its fused one is compared with. */
import {
  add,
  arange,
  eager,
  matmul,
  naiveAttention,
  reshape,
  scope,
  slice,
  take,
  type Tensor,
} from "@flashtape/flashtape";
import type { ModelSizes } from "./model_sizes.ts";

type Params = Readonly<Record<string, Tensor>>;

/** Tables of angles, `[positions, D / 2]`. */
export interface Angles {
  readonly cos: Tensor;
  readonly sin: Tensor;
}

function linear(weight: Tensor, x: Tensor): Tensor {
  return matmul(x, weight, { transposeB: true });
}

/** The residual stream after the last norm: `[B, S, size]`. */
function backbone(
  params: Params,
  { layers, heads, kvHeads, headDim, eps }: ModelSizes,
  ids: Tensor,
  angles: Angles,
): Tensor {
  return scope(() => {
    const [batch, length] = ids.shape;
    const positions = arange(0, length, { dtype: "i32" });
    let x = take(params["model.embed_tokens.weight"], ids); // [B, S, size]
    for (let i = 0; i < layers; i++) {
      const weight = (name: string) => params[`model.layers.${i}.${name}.weight`];
      const normed = eager.rmsNorm(x, weight("input_layernorm"), { eps });
      const project = (name: string, count: number) =>
        reshape(linear(weight(`self_attn.${name}_proj`), normed), [batch, length, count, headDim]);
      const turned = (x: Tensor) => eager.rotaryEmbedding(x, angles.cos, angles.sin, { positions });
      const q = turned(project("q", heads)), k = turned(project("k", kvHeads)), v = project("v", kvHeads);
      const mixed = reshape(naiveAttention(q, k, v, { causal: true }), [batch, length, heads * headDim]);
      x = add(x, linear(weight("self_attn.o_proj"), mixed));
      const inner = eager.rmsNorm(x, weight("post_attention_layernorm"), { eps });
      const act = eager.swiglu(linear(weight("mlp.gate_proj"), inner), linear(weight("mlp.up_proj"), inner));
      x = add(x, linear(weight("mlp.down_proj"), act));
    }
    return eager.rmsNorm(x, params["model.norm.weight"], { eps });
  });
}

function headOf(params: Params): Tensor {
  return params["lm_head.weight"] ?? params["model.embed_tokens.weight"];
}

/** Scores of the next token at every place: `[B, S, V]`. */
export function eagerForward(params: Params, sizes: ModelSizes, ids: Tensor, angles: Angles): Tensor {
  return scope(() => linear(headOf(params), backbone(params, sizes, ids, angles)));
}

/** The mean loss of predicting each next token. */
export function eagerLoss(params: Params, sizes: ModelSizes, ids: Tensor, angles: Angles): Tensor {
  return scope(() => {
    const [batch, length] = ids.shape, hidden = backbone(params, sizes, ids, angles);
    const before = slice(hidden, [0, 0, 0], [batch, length - 1, hidden.shape[2]]);
    return eager.linearCrossEntropy(before, headOf(params), slice(ids, [0, 1], [batch, length]));
  });
}
