import assert from "node:assert/strict";
import { flashAttentionWithLse, key, naiveAttentionWithLse, randn, type Tensor, vjp } from "../mod.ts";
import { needAdapter } from "../testing/laws/adapter.ts";
import { assertClose } from "../testing/mod.ts";
import { isSoftware, lanesTile } from "./attention_lanes.ts";
import { workgroupBytes } from "./attention_tiles.ts";
import { webgpu } from "./webgpu.ts";

Deno.test("attention whose rows belong to lanes is naive attention, forward and backward", async () => {
  const backend = await needAdapter(webgpu());
  if (!isSoftware(backend.capabilities.subgroupSize)) return;
  const normal = (seed: number, shape: number[]) => randn(key(seed, { backend }), shape);
  const q = normal(1, [1, 1101, 4, 12]), k = normal(2, [1, 1003, 2, 12]), v = normal(3, [1, 1003, 2, 6]);
  const weight = { out: normal(4, [1, 1101, 4, 6]), lse: normal(5, [1, 4, 1101]) };
  const run = (attend: typeof flashAttentionWithLse) => {
    const options = { window: [300, 100] as const, softcap: 4, alibiSlopes: normal(6, [4]) };
    const [{ out, lse }, pullback] = vjp((q: Tensor, k: Tensor, v: Tensor) => attend(q, k, v, options), q, k, v);
    return [out, lse, ...pullback(weight)];
  };
  const [flash, naive] = [run(flashAttentionWithLse), run(naiveAttentionWithLse)];
  for (const [i, x] of flash.entries()) await assertClose(x, naive[i], { rtol: 1e-4, atol: 2e-5 });
  backend.dispose();
});

Deno.test("rows that belong to lanes need no workgroup memory", () => {
  assert.equal(workgroupBytes(lanesTile(8), 16, false), 0);
  assert.deepEqual([0, 4, 8, 16, 32].map(isSoftware), [false, true, true, false, false]);
});
