import assert from "node:assert/strict";
import { plainAttention } from "./attention_common.ts";
import { attentionMatrixBackwardMemory, type AttentionMatrixBackwardParams } from "./attention_matrix_backward.ts";
import { attentionMatrixBackwardKeys } from "./attention_matrix_backward_keys.ts";
import { attentionMatrixBackwardQueries } from "./attention_matrix_backward_queries.ts";

const f16 = { storage: "f16", unit: 8 } as const;
const features = { ...plainAttention, range: "slopes" } as const;
const bf16 = { storage: "bf16", unit: 8 } as const;
const base: AttentionMatrixBackwardParams = {
  tile: { m: 16, n: 8, k: 16, lanes: 32, down: 2, abreast: 2, high: 2, step: 16, pad: 1 },
  headDim: 64,
  valueDim: 48,
  q: f16,
  k: f16,
  v: f16,
  dOut: f16,
  grad: "f16",
  features,
  longFirst: false,
};
const variants: AttentionMatrixBackwardParams[] = [
  base,
  ...(["window", "softcap", "alibi", "mask"] as const).map((name) => ({
    ...base,
    features: { ...features, [name]: true },
  })),
  { ...base, features: { ...features, bias: "f16" } },
  { ...base, features: { ...features, lengths: "varlen" } },
  { ...base, q: bf16, k: bf16, v: bf16, dOut: bf16, features: { ...features, range: "scaled" } },
  { ...base, q: { ...f16, unit: 2 } },
  { ...base, dOut: { ...f16, unit: 2 } },
  { ...base, grad: "f32" },
  { ...base, headDim: 80 },
  { ...base, longFirst: true },
  { ...base, tile: { ...base.tile, down: 1, pad: 3 } },
];

for (
  const [kind, make] of [["keys", attentionMatrixBackwardKeys], ["queries", attentionMatrixBackwardQueries]] as const
) {
  Deno.test(`a matrix ${kind} kernel's name changes with everything that its text depends on`, () => {
    const kernels = variants.map(make);
    assert.equal(new Set(kernels.map(({ name }) => name)).size, variants.length);
    assert.equal(new Set(kernels.map(({ source }) => source)).size, variants.length);
    for (const { source } of kernels) assert.doesNotMatch(source, /undefined|NaN|enable |\[object|\d\.\d+u/);
  });
}

Deno.test("attentionMatrixBackwardMemory() is what the larger kernel declares", () => {
  for (const params of variants) {
    const sizes = [attentionMatrixBackwardKeys, attentionMatrixBackwardQueries].map((make) => {
      let sum = 0;
      for (const [, type] of make(params).source.matchAll(/var<workgroup> \w+: ([^;]+);/g)) {
        sum += 16 * [...type.matchAll(/, (\d+)>/g)].reduce((product, [, n]) => product * Number(n), 1);
      }
      return sum;
    });
    assert.equal(attentionMatrixBackwardMemory(params), Math.max(...sizes));
  }
});
