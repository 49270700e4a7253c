import assert from "node:assert/strict";
import { plainAttention } from "./attention_common.ts";
import {
  attentionMatrixBackwardKeys,
  attentionMatrixBackwardMemory,
  type AttentionMatrixBackwardParams,
  attentionMatrixBackwardQueries,
} from "./attention_matrix_backward.ts";

const f16 = { storage: "f16", unit: 8 } as const;
const features = { ...plainAttention, range: "slopes" } as const;
const bf16 = { storage: "bf16", unit: 8 } as const;
const base: AttentionMatrixBackwardParams = {
  tile: { m: 16, n: 8, k: 16, lanes: 32, down: 4, high: 1, step: 16, pad: 2, inPlace: true },
  headDim: 64,
  valueDim: 48,
  q: f16,
  k: f16,
  v: f16,
  dOut: f16,
  grad: "f16",
  features,
  longFirst: false,
  early: false,
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
  { ...base, early: true },
  { ...base, tile: { ...base.tile, down: 2, high: 2, pad: 1 } },
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

Deno.test("attentionMatrixBackwardMemory() is what the keys kernel declares", () => {
  for (const params of variants) {
    let sum = 0;
    for (
      const [, inner, outer] of attentionMatrixBackwardKeys(params).source.matchAll(
        /var<workgroup> \w+: array<(?:array<)?\w+, (\d+)>(?:, (\d+)>)?;/g,
      )
    ) sum += 16 * Number(inner) * Number(outer ?? 1);
    assert.equal(attentionMatrixBackwardMemory(params), sum);
  }
});
