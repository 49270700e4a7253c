import assert from "node:assert/strict";
import { plainAttention } from "./attention_common.ts";
import {
  attentionMatrixForward,
  attentionMatrixForwardMemory,
  type AttentionMatrixForwardParams,
} from "./attention_matrix_forward.ts";

const f16 = { storage: "f16", unit: 8 } as const;
const base: AttentionMatrixForwardParams = {
  tile: { m: 16, n: 8, k: 16, lanes: 32, down: 4, abreast: 1, high: 2, step: 16, pad: 1 },
  headDim: 64,
  valueDim: 48,
  q: f16,
  k: f16,
  v: f16,
  out: { storage: "f16", unit: 4 },
  features: plainAttention,
  longFirst: false,
  early: false,
};
const bf16 = { storage: "bf16", unit: 8 } as const;
const scaled = { q: bf16, k: bf16, v: bf16, features: { ...plainAttention, range: "scaled" } } as const;
const flags = ["window", "softcap", "alibi", "mask", "sinks", "dropout", "leftpad", "cacheIndex", "paged"] as const;
const variants: AttentionMatrixForwardParams[] = [
  base,
  ...flags.map((name) => ({ ...base, features: { ...plainAttention, [name]: true } })),
  { ...base, features: { ...plainAttention, bias: "f32" } },
  { ...base, features: { ...plainAttention, lengths: "varlen" } },
  { ...base, features: { ...plainAttention, lengths: "cache" } },
  { ...base, ...scaled },
  { ...base, ...scaled, q: { storage: "f32", unit: 4 } },
  { ...base, q: { ...f16, unit: 2 } },
  { ...base, k: { ...f16, unit: 2 } },
  { ...base, v: { ...f16, unit: 1 } },
  { ...base, out: { storage: "f32", unit: 4 } },
  { ...base, headDim: 80 },
  { ...base, valueDim: 80 },
  { ...base, longFirst: true },
  { ...base, early: true },
  { ...base, tile: { ...base.tile, down: 2 } },
  { ...base, tile: { ...base.tile, high: 1, pad: 2 } },
  { ...base, tile: { ...base.tile, n: 16 } },
  { ...base, tile: { ...base.tile, pad: 3 } },
];

Deno.test("a matrix forward kernel's name changes with everything that its text depends on", () => {
  const kernels = variants.map(attentionMatrixForward);
  assert.equal(new Set(kernels.map(({ name }) => name)).size, variants.length);
  assert.equal(new Set(kernels.map(({ source }) => source)).size, variants.length);
  for (const { source } of kernels) assert.doesNotMatch(source, /undefined|NaN|enable |\[object|\d\.\d+u/);
});

Deno.test("attentionMatrixForwardMemory() is what the kernel declares", () => {
  const bytes: Record<string, number> = { vec4u: 16, vec4f: 16, f32: 4 };
  for (const params of variants) {
    let sum = 4; // the flag
    for (
      const [, type, inner, outer] of attentionMatrixForward(params).source.matchAll(
        /var<workgroup> \w+: array<(?:array<)?(\w+), (\d+)>(?:, (\d+)>)?;/g,
      )
    ) sum += bytes[type] * Number(inner) * Number(outer ?? 1);
    assert.equal(attentionMatrixForwardMemory(params), sum);
  }
});
