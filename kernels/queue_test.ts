import assert from "node:assert/strict";
import { needAdapter } from "../testing/laws/adapter.ts";
import { open } from "./device.ts";
import { each, kernel } from "./kernel.ts";
import { BufferPool, type PooledBuffer } from "./memory.ts";
import { Pipelines } from "./pipelines.ts";
import { DispatchQueue } from "./queue.ts";
import { Readback } from "./readback.ts";

const opened = await needAdapter(open());
const { device } = opened;
const fail = (error: Error) => {
  throw error;
};
const queue = new DispatchQueue(device);
const pipelines = new Pipelines(opened, queue.uniforms, fail);
const pool = new BufferPool(device, 2 ** 20, () => {}, fail);
const readback = new Readback(device, queue);

/** y = a · y + b: dispatches of it do not commute. */
const step = kernel(
  "queue_test_step",
  { writes: { y: "u32" }, uniforms: { a: "u32", b: "u32" } },
  () => "@compute @workgroup_size(1) fn main() { y[0] = u.a * y[0] + u.b; }",
);
const copy = kernel(
  "queue_test_copy",
  { reads: { x: "u32" }, writes: { y: "u32" } },
  () => "@compute @workgroup_size(1) fn main() { y[0] = x[0]; }",
);

const word = (value: number) => new Uint8Array(new Uint32Array([value]).buffer);
const read = async (
  buffer: PooledBuffer,
  count = 1,
) => [...new Uint32Array((await readback.read(buffer.buffer, 0, 4 * count)).buffer)];
const one = [1, 1, 1] as const;

Deno.test("dispatches run in the order of the calls, over many batches, each with its own uniforms", async () => {
  const y = pool.take(4, "test"), first = queue.batch;
  queue.write(y, word(1));
  let expected = 1;
  for (let i = 0; i < 300; i++) {
    const a = i % 3 + 1, b = i % 7;
    queue.dispatch(pipelines, step, [y], { a, b }, one);
    expected = (Math.imul(a, expected) + b) >>> 0;
  }
  assert(queue.batch > first + 1, "300 dispatches are more than one batch");
  assert.deepEqual(await read(y), [expected]);
});

Deno.test("a host write waits for the dispatches that read its buffer before", async () => {
  const [x, y, z] = [1, 2, 3].map(() => pool.take(4, "test"));
  queue.write(x, word(5));
  queue.dispatch(pipelines, copy, [x, y], {}, one);
  queue.write(x, word(6));
  queue.dispatch(pipelines, copy, [x, z], {}, one);
  assert.deepEqual([await read(x), await read(y), await read(z)], [[6], [5], [6]]);
});

Deno.test("a host write into a buffer that no waiting dispatch uses sends nothing", () => {
  const [x, y] = [pool.take(4, "test"), pool.take(4, "test")];
  queue.flush();
  queue.dispatch(pipelines, step, [x], { a: 1, b: 0 }, one);
  const { batch } = queue;
  queue.write(y, word(1));
  assert.equal(queue.batch, batch);
  queue.write(x, word(1));
  assert.equal(queue.batch, batch + 1);
  queue.flush();
  assert.equal(queue.batch, batch + 1); // nothing waits
});

Deno.test("a batch goes out before its uniforms have no room", async () => {
  const names = each(4000, (i) => `f${i}`); // 16 kB a block: sixteen fill the buffer
  const big = kernel("queue_test_big", {
    writes: { y: "u32" },
    uniforms: Object.fromEntries(names.map((name) => [name, "u32" as const])),
  }, () => "@compute @workgroup_size(1) fn main() { y[0] = 3u * y[0] + u.f0 + u.f3999; }");
  const y = pool.take(4, "test");
  queue.write(y, word(0));
  queue.flush();
  const first = queue.batch;
  let expected = 0;
  for (let i = 0; i < 40; i++) {
    queue.dispatch(pipelines, big, [y], Object.fromEntries(names.map((name, j) => [name, i * j])), one);
    expected = (3 * expected + 3999 * i) % 2 ** 32;
  }
  assert.equal(queue.batch, first + 2);
  assert.deepEqual(await read(y), [expected]);
});

Deno.test("copies between buffers keep their place among dispatches", async () => {
  const [x, y] = [pool.take(4, "test"), pool.take(4, "test")];
  queue.write(x, word(1));
  queue.dispatch(pipelines, step, [x], { a: 1, b: 1 }, one);
  queue.copy(x.buffer, 0, y.buffer, 0, 4);
  queue.dispatch(pipelines, step, [x], { a: 1, b: 1 }, one);
  assert.deepEqual([await read(x), await read(y)], [[3], [2]]);
});

Deno.test("a dispatch without a value for one of its uniforms is refused by name", () => {
  const y = pool.take(4, "test");
  assert.throws(() => queue.dispatch(pipelines, step, [y], { a: 1 }, one), /queue_test_step: no value for uniform b/);
});
