import { flashAttentionWithKvCache, key, randn } from "../mod.ts";
import { needAdapter } from "../testing/laws/adapter.ts";
import { assertClose } from "../testing/mod.ts";
import { webgpu } from "./webgpu.ts";

Deno.test("attention over few parts and over many is attention over the whole", async () => {
  const backend = await needAdapter(webgpu());
  const normal = (seed: number, shape: number[]) => randn(key(seed, { backend }), shape);
  const q = normal(1, [2, 2, 4, 20]), k = normal(2, [2, 900, 2, 20]), v = normal(3, [2, 900, 2, 10]);
  const sinks = normal(4, [4]);
  const [whole, ...parts] = [1, 3, 12].map((numSplits) =>
    flashAttentionWithKvCache(q, { k, v }, { cacheSeqlens: 850, numSplits, sinks })
  );
  for (const { out, lse } of parts) {
    await assertClose(out, whole.out, { rtol: 1e-5, atol: 1e-6 });
    await assertClose(lse, whole.lse, { rtol: 1e-6, atol: 1e-6 });
  }
  backend.dispose();
});
