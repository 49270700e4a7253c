import assert from "node:assert/strict";
import { pickAttentionBackward } from "./attention_backward.ts";
import { attentionBackwardQueries } from "./attention_backward_queries.ts";
import { plainAttention } from "./attention_common.ts";
import { denseStrides } from "./attention_options.ts";

const device = { subgroupSize: 32, maxWorkgroupMemory: 49152, maxInvocations: 1024 };
const storage = { q: "f16", k: "f16", v: "f16", dOut: "f16", grad: "f16" } as const;

function queries(batch: number, dBias: boolean, features = plainAttention) {
  const shape = { batch, seqlenQ: 512, seqlenK: 512, heads: 8, kvHeads: 8, headDim: 64, valueDim: 64 };
  const strides = denseStrides(512, 8, 64), at = { q: strides, k: strides, v: strides };
  return pickAttentionBackward(device, shape, at, storage, features, dBias).queries;
}

Deno.test("the queries kernel writes the scores' gradient only when a bias asks for it", () => {
  assert.deepEqual(attentionBackwardQueries(queries(32, false)).writes, ["dq"]);
  assert.deepEqual(attentionBackwardQueries(queries(32, true)).writes, ["dq", "dBias"]);
});

Deno.test("parts of dq are f32, whatever its own dtype is", () => {
  const [few, many] = [queries(1, false), queries(32, false)];
  assert.deepEqual([few.parts > 1, few.grad], [true, "f32"]);
  assert.deepEqual([many.parts, many.grad], [1, "f16"]);
  assert.notEqual(attentionBackwardQueries(few).name, attentionBackwardQueries({ ...few, parts: 1 }).name);
});

Deno.test("what matrices leave is not split, so that it writes nothing over what they made", () => {
  const left = queries(1, false, { ...plainAttention, range: "left" });
  assert.deepEqual([left.parts, left.grad], [1, "f16"]);
  assert.match(attentionBackwardQueries(left).source, /if \(range_held\(.*\) \{ return; \}/);
});

Deno.test("with careful scores a product with dropout is rounded before D is taken from it, on devices that would fuse the two", () => {
  const params = queries(32, false, { ...plainAttention, dropout: true });
  const texts = (["plain", "careful"] as const).map((sums) => attentionBackwardQueries({ ...params, sums }).source);
  assert.deepEqual(texts.map((text) => /max\(dp\.x \* kept\.x \* u\.keepScale, -3\.4e38f\) - /.test(text)), [
    false,
    true,
  ]);
});
