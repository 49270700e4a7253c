import assert from "node:assert/strict";
import { boolean, elementOf, integer, property } from "@flashtape/flashtape/testing";
import * as flops from "./flops.ts";

property("visiblePairs() counts the pairs that see each other", [
  integer(1, 20),
  integer(1, 20),
  boolean(),
  elementOf([-1, -1], [3, -1], [-1, 2], [0, 0], [4, 1]),
], (seqlenQ, seqlenK, causal, [left, right]) => {
  let pairs = 0;
  for (let i = 0; i < seqlenQ; i++) {
    for (let j = 0; j < seqlenK; j++) {
      const distance = i + seqlenK - seqlenQ - j; // how far the key lies to the left
      pairs += Number(
        (left < 0 || distance <= left) && (right < 0 || -distance <= right) && (!causal || distance >= 0),
      );
    }
  }
  const sizes = { batch: 1, heads: 1, headDim: 1, seqlenQ, seqlenK, causal, window: [left, right] as const };
  assert.equal(flops.visiblePairs(sizes), pairs);
});

Deno.test("counts are those of the papers", () => {
  const sizes = { batch: 2, heads: 3, headDim: 64, seqlenQ: 128, seqlenK: 128 };
  assert.equal(flops.attentionForward(sizes), 4 * 2 * 3 * 128 * 128 * 64);
  assert.equal(flops.attentionBackward(sizes), 2.5 * flops.attentionForward(sizes));
  assert.equal(flops.attentionForward({ ...sizes, causal: true }), 4 * 2 * 3 * (128 * 129 / 2) * 64);
  assert.equal(flops.matmul(2, 3, 5), 60);
});

Deno.test("a train step is about six operations for each parameter and token", () => {
  const model = { layers: 4, size: 256, hidden: 704, heads: 4, kvHeads: 4, headDim: 64, vocabulary: 1000 };
  const weights = 4 * (4 * 256 * 256 + 3 * 256 * 704) + 1000 * 256, tokens = 64;
  const ratio = flops.transformerStep(model, 1, tokens) / (6 * weights * tokens);
  assert(ratio > 1 && ratio < 1.05, `${ratio}`);
});
