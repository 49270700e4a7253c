import assert from "node:assert/strict";
import { plainAttention } from "./attention_common.ts";
import { attentionMatrixBackwardKeys } from "./attention_matrix_backward_keys.ts";

const f16 = { storage: "f16", unit: 8 } as const;

Deno.test("the keys kernel on matrices has one text for both sides: one product of scores a step, one of results", () => {
  const { source } = attentionMatrixBackwardKeys({
    tile: { m: 16, n: 8, k: 16, lanes: 32, down: 2, abreast: 2, high: 2, step: 16, pad: 1 },
    ...{ headDim: 64, valueDim: 48, q: f16, k: f16, v: f16, dOut: f16, grad: "f16", longFirst: false },
    features: { ...plainAttention, range: "slopes" },
  });
  // Scores: 2 × 2 matrices from 64 / 16 each; results: 2 × 8 from one. Values of 48 are as wide as keys of 64.
  assert.equal(source.match(/subgroupMatrixMultiplyAccumulate/g)!.length, 2 * 2 * 4 + 2 * 8);
  assert.match(source, /dv_put\(at \* 48u/);
  assert.match(source, /dk_put\(at \* 64u/);
});
