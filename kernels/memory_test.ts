import assert from "node:assert/strict";
import { full } from "../tensor/create.ts";
import { add } from "../tensor/elementwise.ts";
import { needAdapter } from "../testing/laws/adapter.ts";
import { sizeClass } from "./memory.ts";
import { webgpu } from "./webgpu.ts";

const gpu = await needAdapter(webgpu());

Deno.test("a size class holds what is asked for and wastes at most an eighth, or 255 bytes", () => {
  for (const bytes of [0, 1, 255, 256, 257, 2047, 2049, 4097, 10_000, 2 ** 20 + 1, 3 * 2 ** 27 + 5]) {
    const size = sizeClass(bytes);
    assert(size >= bytes && size % 256 === 0, `${bytes}: ${size}`);
    assert(size - bytes <= Math.max(256, bytes / 8), `${bytes}: ${size}`);
  }
});

Deno.test("buffers that waiting dispatches use outlive a pool that must shrink", async () => {
  const results = [];
  for (let i = 1; i <= 12; i++) {
    const x = full([(8 + i) * 2 ** 18], i, { backend: gpu }); // each of another size class: none is used again
    const y = add(x, x);
    results.push(add(y, 0));
    x.dispose();
    y.dispose();
    results.at(-1)!.dispose();
  }
  const x = full([5], 1, { backend: gpu });
  assert.deepEqual([...await add(x, x).data()], [2, 2, 2, 2, 2]);
  assert(gpu.memory().pooled <= 2 ** 27);
});
