import { valueAndGrad } from "../autograd/grad.ts";
import { ones, tensor } from "../tensor/create.ts";
import { add, mul } from "../tensor/elementwise.ts";
import { eager } from "../tensor/eager.ts";
import { naiveAttention } from "../tensor/attention_eager.ts";
import { matmul } from "../tensor/matmul.ts";
import { reshape } from "../tensor/movement.ts";
import { foldIn, key, randn } from "../tensor/random.ts";
import { sum } from "../tensor/reduce.ts";
import type { Tensor } from "../tensor/tensor.ts";
import { leaves } from "../tensor/tree.ts";
import { assertClose, boolean, elementOf, integer, property, tuple } from "../testing/mod.ts";
import { rotaryFrequencies, rotaryTables, transformerBlock } from "./mod.ts";
import type { Rotary, TransformerBlockParams } from "./mod.ts";

function blockParams(
  size: number,
  hidden: number,
  heads: number,
  kvHeads: number,
  headDim: number,
): TransformerBlockParams {
  let i = 0;
  const weight = (out: number, from: number) => ({ weight: mul(randn(foldIn(key(1), i++), [out, from]), 0.3) });
  return {
    attentionNorm: { weight: add(mul(randn(foldIn(key(1), i++), [size]), 0.2), 1) },
    attention: {
      q: weight(heads * headDim, size),
      k: weight(kvHeads * headDim, size),
      v: weight(kvHeads * headDim, size),
      o: weight(size, heads * headDim),
    },
    mlpNorm: { weight: ones([size]) },
    mlp: { gate: weight(hidden, size), up: weight(hidden, size), down: weight(size, hidden) },
  };
}

/** The block written out, op by op. */
function plainBlock(
  p: TransformerBlockParams,
  x: Tensor,
  heads: number,
  kvHeads: number,
  causal: boolean,
  rotary: Rotary,
): Tensor {
  const [B, S] = x.shape;
  const by = (layer: { weight: Tensor }, x: Tensor) => matmul(x, layer.weight, { transposeB: true });
  const split = (y: Tensor, count: number) => reshape(y, [B, S, count, y.shape[2] / count]);
  const turn = (y: Tensor) => eager.rotaryEmbedding(y, rotary.cos, rotary.sin, { positions: rotary.positions });
  const n = eager.rmsNorm(x, p.attentionNorm.weight, { eps: 1e-5 });
  const [q, k, v] = [
    turn(split(by(p.attention.q, n), heads)),
    turn(split(by(p.attention.k, n), kvHeads)),
    split(by(p.attention.v, n), kvHeads),
  ];
  const a = naiveAttention(q, k, v, { causal });
  const h = add(x, by(p.attention.o, reshape(a, [B, S, a.shape[2] * a.shape[3]])));
  const m = eager.rmsNorm(h, p.mlpNorm.weight, { eps: 1e-5 });
  return add(h, by(p.mlp.down, eager.swiglu(by(p.mlp.gate, m), by(p.mlp.up, m))));
}

property("transformerBlock() and its gradients are those of the formulas", [
  tuple(integer(1, 2), integer(1, 6)),
  elementOf([1, 1], [2, 1], [4, 2], [3, 3]),
  elementOf(2, 4, 6),
  boolean(),
  elementOf("flash", "naive"),
], async ([batch, length], [heads, kvHeads], headDim, causal, attention) => {
  const size = 10, params = blockParams(size, 14, heads, kvHeads, headDim);
  const x = randn(key(2), [batch, length, size]), by = randn(key(3), [batch, length, size]);
  const rotary = {
    ...rotaryTables(rotaryFrequencies({ headDim }), 9),
    positions: tensor(new Int32Array(length).map((_, i) => i + 2)),
  };
  const options = { heads, kvHeads, causal, attention, rotary, eps: 1e-5 } as const;
  const [value, grads] = valueAndGrad(
    (p: TransformerBlockParams, x: Tensor) => sum(mul(transformerBlock(p, x, options).out, by)),
    [0, 1],
  )(params, x);
  const [want, wanted] = valueAndGrad(
    (p: TransformerBlockParams, x: Tensor) => sum(mul(plainBlock(p, x, heads, kvHeads, causal, rotary), by)),
    [0, 1],
  )(params, x);
  await assertClose(value, want, { rtol: 1e-3, atol: 1e-3 });
  const [got, expected] = [leaves(grads), leaves(wanted)];
  for (let i = 0; i < got.length; i++) await assertClose(got[i], expected[i], { rtol: 1e-3, atol: 1e-3 });
}, { runs: 40 });
