import assert from "node:assert/strict";
import { flashAttention, grad, key, randn, sum, type Tensor } from "../mod.ts";
import { needAdapter } from "../testing/laws/adapter.ts";
import { webgpu } from "./webgpu.ts";

const backend = await needAdapter(webgpu());
const normal = (seed: number, shape: number[]) => randn(key(seed, { backend }), shape);

Deno.test("attention's gradients of keys that no query sees are 0", async () => {
  const q = normal(5, [1, 3, 1, 8]), k = normal(6, [1, 40, 1, 8]), v = normal(7, [1, 40, 1, 8]);
  const attend = (q: Tensor, k: Tensor, v: Tensor) => sum(flashAttention(q, k, v, { window: [2, 0] }));
  const [, dk, dv] = grad(attend, [0, 1, 2])(q, k, v);
  for (const d of [dk, dv]) assert.ok((await d.data()).subarray(0, 35 * 8).every((x) => x === 0));
  assert.ok((await dv.data()).subarray(35 * 8).every((x) => x !== 0));
});
