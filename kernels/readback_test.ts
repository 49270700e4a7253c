import assert from "node:assert/strict";
import { tensor } from "../tensor/create.ts";
import { add } from "../tensor/elementwise.ts";
import { UnsupportedError } from "../tensor/errors.ts";
import { slice } from "../tensor/movement.ts";
import { needAdapter } from "../testing/laws/adapter.ts";
import { webgpu } from "./webgpu.ts";
import { open } from "./device.ts";
import { DispatchQueue } from "./queue.ts";
import { Readback } from "./readback.ts";

const values = Float32Array.from({ length: 5000 }, (_, i) => Math.fround(Math.sin(i)));

Deno.test("the shortcut and the awaited way read the same bytes", async () => {
  const [quick, awaited] = [await needAdapter(webgpu()), await webgpu({ fastReadback: false })];
  for (const backend of [quick, awaited]) {
    const x = tensor(values, { backend }), y = add(x, x);
    const [all, none, part] = [y, slice(y, [7], [7]), slice(y, [7], [4001])];
    const twice = values.map((v) => 2 * v);
    for (let turn = 0; turn < 3; turn++) { // staging buffers are used again
      assert.deepEqual(await all.data(), twice);
      assert.deepEqual(await none.data(), new Float32Array(0));
      assert.deepEqual(await part.data(), twice.slice(7, 4001));
    }
    // Reads that wait at once, of several sizes.
    assert.deepEqual(await Promise.all([part.data(), all.data(), part.data()]), [
      twice.slice(7, 4001),
      twice,
      twice.slice(7, 4001),
    ]);
    backend.dispose();
  }
});

Deno.test("dataSync() reads by the shortcut, and is refused by name without it", async () => {
  const [quick, awaited] = [await needAdapter(webgpu()), await webgpu({ fastReadback: false })];
  assert.deepEqual(tensor(values, { backend: quick }).dataSync(), values);
  assert.throws(() => tensor(values, { backend: awaited }).dataSync(), (error: Error) => {
    assert(error instanceof UnsupportedError);
    assert.match(error.message, /await data\(\)/);
    return true;
  });
  quick.dispose();
  awaited.dispose();
});

Deno.test("reads longer than a staging buffer arrive whole, by both ways", async () => {
  const { device } = await needAdapter(open());
  const readback = new Readback(device, new DispatchQueue(device));
  const bytes = 128 * 2 ** 20 + 4096;
  const usage = GPUBufferUsage.COPY_SRC | GPUBufferUsage.COPY_DST;
  const buffer = device.createBuffer({ size: bytes, usage });
  const marks = [0, 128 * 2 ** 20 - 4, 128 * 2 ** 20, bytes - 4];
  marks.forEach((at, i) => device.queue.writeBuffer(buffer, at, new Uint32Array([i + 1])));
  const marked = (got: Uint8Array<ArrayBuffer>) => {
    assert.equal(got.byteLength, bytes);
    const words = new Uint32Array(got.buffer);
    return [marks.map((at) => words[at / 4]), words[1], words[words.length - 2]];
  };
  assert.deepEqual(marked(await readback.read(buffer, 0, bytes)), [[1, 2, 3, 4], 0, 0]);
  await readback.probe();
  if (readback.immediate) assert.deepEqual(marked(readback.readSync(buffer, 0, bytes)), [[1, 2, 3, 4], 0, 0]);
  device.destroy();
});

Deno.test("a loop that reads at every turn lets timers and finalisers in", async () => {
  const gpu = await needAdapter(webgpu());
  try {
    const x = tensor([1, 2], { backend: gpu });
    let fired = false;
    setTimeout(() => fired = true, 5);
    const end = performance.now() + 2000;
    while (!fired && performance.now() < end) await x.data();
    assert.ok(fired);
  } finally {
    gpu.dispose();
  }
});
