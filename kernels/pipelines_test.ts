import assert from "node:assert/strict";
import { DeviceError, LimitError, UnsupportedError } from "../tensor/errors.ts";
import { needAdapter } from "../testing/laws/adapter.ts";
import { open } from "./device.ts";
import { type Kernel, kernel, type KernelInterface } from "./kernel.ts";
import { BufferPool } from "./memory.ts";
import { Pipelines, slotBytes } from "./pipelines.ts";
import { DispatchQueue } from "./queue.ts";

const opened = await needAdapter(open());

/** Everything of a device that a dispatch goes through, with the errors that it reports. */
function parts(device = opened) {
  const errors: Error[] = [];
  const fail = (error: Error) => void errors.push(error);
  const queue = new DispatchQueue(device.device);
  const pipelines = new Pipelines(device, queue.uniforms, fail);
  const pool = new BufferPool(device.device, 2 ** 20, ({ id }) => pipelines.forget(id), fail);
  return { errors, queue, pipelines, pool };
}

const io: KernelInterface = { reads: { x: "f32" }, writes: { y: "f32" }, uniforms: { by: "f32" } };
const body = "@compute @workgroup_size(1) fn main() { y[0] = u.by * x[0]; }";
const scale = (name: string, what = io): Kernel => kernel(`pipelines_test_${name}`, what, () => body);

Deno.test("a program that repeats itself makes no pipeline and no bind group", () => {
  const { queue, pipelines, pool } = parts();
  const program = () => {
    const [x, y, z] = [1, 2, 3].map(() => pool.take(4, "test"));
    queue.dispatch(pipelines, scale("a"), [x, y], { by: 2 }, [1, 1, 1]);
    queue.dispatch(pipelines, scale("a"), [y, z], { by: 3 }, [1, 1, 1]);
    for (const buffer of [z, x, y]) buffer.free(); // in another order than they were taken
  };
  program();
  const once = [pipelines.size, pipelines.bindGroups];
  assert.deepEqual(once, [1, 2]);
  program();
  queue.flush();
  program();
  assert.deepEqual([pipelines.size, pipelines.bindGroups], once);
  queue.flush();
});

Deno.test("kernels of one text share a pipeline, and of one interface their bind groups", () => {
  const { pipelines, pool } = parts();
  const [a, b] = [pipelines.get(scale("b")), pipelines.get(scale("c"))];
  assert.equal(a, b);
  const other = pipelines.get(kernel("pipelines_test_d", io, () => `${body} // other`));
  assert.notEqual(other, a);
  assert.equal(pipelines.size, 2);
  const buffers = [pool.take(4, "test"), pool.take(4, "test")];
  assert.equal(pipelines.bind(a, buffers), pipelines.bind(other, buffers));
  assert.notEqual(pipelines.bind(a, buffers), pipelines.bind(a, [...buffers].reverse()));
  assert.equal(pipelines.bindGroups, 2);
});

Deno.test("a destroyed buffer takes its bind groups along, and no others", () => {
  const { pipelines, pool } = parts();
  const pipeline = pipelines.get(scale("e"));
  const [x, y, z] = [4, 4, 1000].map((bytes) => pool.take(bytes, "test"));
  const kept = pipelines.bind(pipeline, [x, y]);
  pipelines.bind(pipeline, [x, z]);
  pipelines.bind(pipeline, [z, y]);
  z.free();
  assert.equal(pipelines.bindGroups, 3);
  pool.trim();
  assert.equal(pipelines.bindGroups, 1);
  assert.equal(pipelines.bind(pipeline, [x, y]), kept);
});

Deno.test("a kernel that does not compile is reported by its name", async () => {
  const { pipelines, errors } = parts();
  pipelines.get(kernel("pipelines_test_broken", { writes: { y: "f32" } }, () => "fn main() { y[0] = nothing; }"));
  for (let i = 0; i < 100 && errors.length === 0; i++) await new Promise((done) => setTimeout(done, 5));
  assert.equal(errors.length, 1);
  assert(errors[0] instanceof DeviceError);
  assert.match(errors[0].message, /^\[pipelines_test_broken\] the kernel does not compile: [^]+nothing/);
});

Deno.test("a kernel that needs what the device has not is refused before it is compiled", () => {
  const capabilities = { ...opened.capabilities, f16: false };
  const { pipelines } = parts({ ...opened, capabilities });
  assert.throws(() => pipelines.get(scale("f", { ...io, requires: ["f16"] })), (error: Error) => {
    assert(error instanceof UnsupportedError);
    assert.match(error.message, /^\[pipelines_test_f\] this device has no f16/);
    return true;
  });
  assert.equal(pipelines.size, 0);
});

Deno.test("a kernel of more buffers than the device binds is refused, naming both numbers", () => {
  const { pipelines } = parts(), most = opened.device.limits.maxStorageBuffersPerShaderStage;
  const reads = Object.fromEntries(Array.from({ length: most }, (_, i) => [`x${i}`, "f32"]));
  const wide = kernel(
    "pipelines_test_wide",
    { reads, writes: { y: "f32" } },
    () => "@compute @workgroup_size(1) fn main() {}",
  );
  assert.throws(() => pipelines.get(wide), (error: Error) => {
    assert(error instanceof LimitError);
    assert.ok(error.message.includes(`reads and writes ${most + 1} buffers, and this device binds ${most} at once`));
    return true;
  });
  assert.equal(pipelines.size, 0);
});

Deno.test("slotBytes() is the least multiple of 256 that holds a block", () => {
  assert.deepEqual([0, 4, 256, 257].map(slotBytes), [0, 256, 256, 512]);
});
