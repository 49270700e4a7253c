import assert from "node:assert/strict";
import { flashAttentionWithKvCache, key, randn, rotaryEmbedding, slice, tensor, zeros } from "../mod.ts";
import { needAdapter } from "../testing/laws/adapter.ts";
import { assertClose } from "../testing/mod.ts";
import { webgpu } from "./webgpu.ts";

Deno.test("new keys are rotated at their position and written there; what stood before stays", async () => {
  const backend = await needAdapter(webgpu());
  const normal = (seed: number, shape: number[]) => randn(key(seed, { backend }), shape);
  const q = normal(1, [2, 2, 2, 8]), k = normal(2, [2, 2, 2, 8]), v = normal(3, [2, 2, 2, 8]);
  const cos = normal(4, [16, 4]), sin = normal(5, [16, 4]);
  const empty = () => zeros([2, 16, 2, 8], { backend });
  const cacheSeqlens = tensor([3, 9], { dtype: "i32", backend });
  const rotary = { cos, sin };
  const { cache } = flashAttentionWithKvCache(q, { k: empty(), v: empty() }, {
    k,
    v,
    rotary,
    cacheSeqlens,
    causal: true,
  });
  const positions = tensor([[3, 4], [9, 10]], { dtype: "i32", backend });
  const rotated = rotaryEmbedding(k, cos, sin, { positions });
  for (const [row, at] of [[0, 3], [1, 9]]) {
    const written = slice(cache.k, [row, at], [row + 1, at + 2]);
    await assertClose(written, slice(rotated, [row], [row + 1]), { rtol: 1e-6, atol: 1e-6 });
    assert.deepEqual(
      await slice(cache.v, [row, at], [row + 1, at + 2]).data(),
      await slice(v, [row], [row + 1]).data(),
    );
    assert.ok((await slice(cache.k, [row, at + 2], [row + 1]).data()).every((x) => x === 0));
  }
  backend.dispose();
});
