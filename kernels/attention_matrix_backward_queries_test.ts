import assert from "node:assert/strict";
import { plainAttention } from "./attention_common.ts";
import { attentionMatrixBackwardQueries } from "./attention_matrix_backward_queries.ts";

const f16 = { storage: "f16", unit: 8 } as const;

Deno.test("each side of the queries kernel on matrices makes half of the columns, whole matrices of them", () => {
  for (const [headDim, half] of [[64, 32], [40, 32], [72, 48], [128, 64]]) {
    const { source } = attentionMatrixBackwardQueries({
      tile: { m: 16, n: 8, k: 16, lanes: 32, down: 2, abreast: 2, high: 2, step: 16, pad: 1 },
      ...{ headDim, valueDim: headDim, q: f16, k: f16, v: f16, dOut: f16, grad: "f16", longFirst: false },
      features: { ...plainAttention, range: "slopes" },
    });
    assert.equal(source.match(/subgroupMatrixMultiplyAccumulate/g)!.length, 2 * 2 * (2 * half / 16) + 2 * half / 8);
    assert.match(source, new RegExp(`side \\* ${half / 4}u \\+`));
  }
});
