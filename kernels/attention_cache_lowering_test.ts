import { type Backend, cpu, flashAttentionWithKvCache, key, permute, randn, reshape, take, tensor } from "../mod.ts";
import { needAdapter } from "../testing/laws/adapter.ts";
import { assertClose } from "../testing/mod.ts";
import { webgpu } from "./webgpu.ts";

/** Attention over a cache of 12 places a row, dense or cut into pages that lie in some order. */
function attend(backend: Backend, page: number | null) {
  const normal = (seed: number, shape: number[]) => randn(key(seed, { backend }), shape);
  const q = normal(1, [2, 1, 4, 8]), k = normal(2, [2, 12, 2, 8]), v = normal(3, [2, 12, 2, 8]);
  const cacheSeqlens = tensor([12, 5], { dtype: "i32", backend });
  if (page === null) return flashAttentionWithKvCache(q, { k, v }, { cacheSeqlens });
  const pages = 12 / page, order = Array.from({ length: 2 * pages }, (_, i) => (i * 5 + 1) % (2 * pages));
  const places = tensor(order.map((_, p) => order.indexOf(p)), { dtype: "i32", backend });
  const cut = (x: typeof k) => take(reshape(x, [2 * pages, page, 2, 8]), places);
  const blockTable = tensor(order, { shape: [2, pages], dtype: "i32", backend });
  return flashAttentionWithKvCache(q, { k: cut(k), v: cut(v) }, { cacheSeqlens, blockTable });
}

Deno.test("pages of any size give what a dense cache gives, on both backends", async () => {
  const device = await needAdapter(webgpu());
  const dense = attend(cpu(), null);
  for (const backend of [device, cpu()]) {
    for (const page of [null, 2, 3, 4, 6]) {
      await assertClose(tensor(await attend(backend, page).out.data(), { backend: cpu() }), reshape(dense.out, [64]), {
        rtol: 1e-5,
        atol: 1e-6,
      });
    }
  }
  device.dispose();
});

Deno.test("a cache seen through a permuted view is read where it lies", async () => {
  const backend = await needAdapter(webgpu());
  const q = randn(key(1, { backend }), [1, 1, 2, 8]), flat = randn(key(2, { backend }), [1, 2, 20, 8]);
  const view = permute(flat, [0, 2, 1, 3]); // [1, 20, 2, 8]
  const copied = () => tensor(view.dataSync(), { shape: [1, 20, 2, 8], backend });
  const seen = flashAttentionWithKvCache(q, { k: view, v: copied() }, {});
  const plain = flashAttentionWithKvCache(q, { k: copied(), v: copied() }, {});
  await assertClose(seen.out, plain.out, { rtol: 1e-5, atol: 1e-6 });
  backend.dispose();
});
