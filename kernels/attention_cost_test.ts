import assert from "node:assert/strict";
import { attentionFlops } from "./attention_cost.ts";

const shape = { batch: 2, heads: 3, kvHeads: 1, seqlenQ: 4, seqlenK: 4, headDim: 8, valueDim: 16 };

Deno.test("attentionFlops() counts two operations for each pair and feature", () => {
  const pairs = 2 * 3 * 4 * 4;
  assert.deepEqual(attentionFlops(shape, [-1, -1]), {
    forward: 2 * pairs * (8 + 16),
    keys: 2 * pairs * (8 + 16 + 16 + 8),
    queries: 2 * pairs * (8 + 16 + 8),
  });
});

Deno.test("attentionFlops() counts the pairs that a window leaves, aligned at the last query and key", () => {
  const forward = (window: [number, number], more = {}) =>
    attentionFlops({ ...shape, batch: 1, heads: 1, ...more }, window).forward! / (2 * (8 + 16));
  assert.equal(forward([-1, 0]), 1 + 2 + 3 + 4);
  assert.equal(forward([1, 0]), 1 + 2 + 2 + 2);
  assert.equal(forward([0, 0]), 4);
  assert.equal(forward([-1, 0], { seqlenQ: 2 }), 3 + 4);
  assert.equal(forward([-1, 0], { seqlenQ: 6 }), 0 + 0 + 1 + 2 + 3 + 4);
});

Deno.test("attentionFlops() does not guess the lengths of packed sequences", () => {
  assert.deepEqual(attentionFlops({ ...shape, totalQ: 7 }, [-1, -1]), {});
});
