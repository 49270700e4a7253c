import assert from "node:assert/strict";
import { compile } from "../tensor/compile.ts";
import { tensor, zeros } from "../tensor/create.ts";
import { add } from "../tensor/elementwise.ts";
import { key, randn } from "../tensor/random.ts";
import { rotaryAppend } from "../tensor/rotary_append.ts";
import type { Tensor } from "../tensor/tensor.ts";
import { needAdapter } from "../testing/laws/adapter.ts";
import { webgpu } from "./webgpu.ts";

const backend = await needAdapter(webgpu());

Deno.test("a recorded append goes on where the device's lengths say", async () => {
  const draw = (seed: number, shape: number[]) => randn(key(seed, { backend }), shape);
  const [cos, sin] = [draw(1, [9, 2]), draw(2, [9, 2])];
  using step = compile((k: Tensor, v: Tensor, qkv: Tensor, lengths: Tensor) =>
    rotaryAppend(qkv, { k, v }, { heads: 2, cos, sin, lengths }).cache
  );
  let cache = {
    k: zeros([1, 5, 1, 4], { backend, dtype: "bf16" }),
    v: zeros([1, 5, 1, 4], { backend, dtype: "bf16" }),
  };
  for (let n = 0; n < 7; n++) { // two of them find the cache full
    const qkv = tensor(Array.from({ length: 16 }, (_, i) => i < 12 ? 0 : n + 1), { shape: [1, 1, 16], backend });
    const lengths = add(tensor([n - 1], { dtype: "i32", backend }), 1); // which the host does not follow
    cache = step(cache.k, cache.v, qkv, lengths);
  }
  assert.equal(step.recordings.length, 1);
  assert.equal(step.recordings[0].dispatches, 1);
  assert.deepEqual([...await cache.v.data()], [1, 2, 3, 4, 5].flatMap((n) => [n, n, n, n]));
  assert.ok((await cache.k.data()).every((x) => x === 0));
});
