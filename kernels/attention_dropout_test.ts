import assert from "node:assert/strict";
import { type Backend, cpu, dropoutMask, key } from "../mod.ts";
import { needAdapter } from "../testing/laws/adapter.ts";
import { webgpu } from "./webgpu.ts";

Deno.test("dropoutMask() on the device is the host's to the bit, whatever the row length", async () => {
  const device = await needAdapter(webgpu());
  for (const [seed, keys] of [[1, 1], [2, 6], [3, 64], [4, 131]]) {
    const mask = (backend: Backend) => dropoutMask(key(seed, { backend }), 0.17, [2, 3, 5, keys]).data();
    assert.deepEqual(await mask(device), await mask(cpu()));
  }
  device.dispose();
});

Deno.test("dropoutMask() keeps about 1 − p", async () => {
  const device = await needAdapter(webgpu());
  const data = await dropoutMask(key(7, { backend: device }), 0.3, [4, 4, 64, 64]).data();
  const kept = data.filter((x) => x === 1).length / data.length;
  assert.ok(Math.abs(kept - 0.7) < 4 * Math.sqrt(0.21 / data.length), `kept ${kept}`);
  device.dispose();
});
