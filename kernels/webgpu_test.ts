import assert from "node:assert/strict";
import { arange, full, tensor, zeros } from "../tensor/create.ts";
import { add, cast, exp } from "../tensor/elementwise.ts";
import { DeviceError, DeviceLostError, LimitError } from "../tensor/errors.ts";
import { matmul } from "../tensor/matmul.ts";
import { broadcastTo, reshape } from "../tensor/movement.ts";
import { scope } from "../tensor/scope.ts";
import { sum } from "../tensor/reduce.ts";
import { makeTensor } from "../tensor/tensor.ts";
import { needAdapter } from "../testing/laws/adapter.ts";
import { webgpu } from "./webgpu.ts";

const gpu = await needAdapter(webgpu());

/** The runtime's GPU, whose devices are handed over as they are opened. */
function watched(opened: (device: GPUDevice) => void): GPU {
  const requestAdapter = async (options?: GPURequestAdapterOptions): Promise<GPUAdapter | null> => {
    const adapter = await navigator.gpu.requestAdapter(options);
    if (adapter === null) return null;
    const requestDevice = async (descriptor?: GPUDeviceDescriptor): Promise<GPUDevice> => {
      const device = await adapter.requestDevice(descriptor);
      opened(device);
      return device;
    };
    return { limits: adapter.limits, info: adapter.info, requestDevice } as Partial<GPUAdapter> as GPUAdapter;
  };
  return { requestAdapter } as Partial<GPU> as GPU;
}

Deno.test("memory() counts the bytes that live tensors ask for, and returns to where it was", async () => {
  const before = gpu.memory().current;
  const x = full([1000], 1, { backend: gpu }), y = full([999], 1, { dtype: "bf16", backend: gpu });
  assert.equal(gpu.memory().current - before, 4000 + 1998);
  const again = reshape(x, [10, 100]); // another handle of the same bytes
  x.dispose();
  assert.equal(gpu.memory().current - before, 4000 + 1998);
  again.dispose();
  y.dispose();
  assert.equal(gpu.memory().current, before);
  gpu.resetPeak();
  const total = scope(() => sum(exp(exp(full([1000], 1, { backend: gpu })))));
  assert.equal(gpu.memory().current - before, 4);
  const peak = gpu.memory().peak - before;
  assert(peak >= 8000 && peak <= 12_100, `${peak}`);
  await total.data();
  total.dispose();
  assert.equal(gpu.memory().current, before);
});

Deno.test("bytes that were freed are used again, and not before what was queued on them has run", async () => {
  const sums = [];
  for (let i = 0; i < 20; i++) {
    const x = tensor(Float32Array.from({ length: 64 }, () => i), { backend: gpu });
    sums.push(sum(x));
    x.dispose();
  }
  const { pooled } = gpu.memory();
  assert.deepEqual(await Promise.all(sums.map((y) => y.item())), sums.map((_, i) => 64 * i));
  const x = tensor(new Float32Array(64), { backend: gpu });
  assert(gpu.memory().pooled < pooled, "x took a buffer that was there");
  x.dispose();
});

Deno.test("f64 is refused by name", () => {
  assert.throws(() => zeros([2], { dtype: "f64", backend: gpu }), /f64/);
  assert.throws(() => tensor([1, 2], { dtype: "f64", backend: gpu }), /f64/);
});

Deno.test("a tensor larger than one binding is refused with both sizes, and nothing is held", () => {
  const { maxBinding } = gpu.capabilities, before = gpu.memory().current;
  const row = full([1, 1024], 1, { backend: gpu }), rows = Math.floor(maxBinding / 4096) + 1;
  const wide = broadcastTo(row, [rows, 1024]);
  assert.throws(() => add(wide, wide), (error: Error) => {
    assert(error instanceof LimitError);
    assert.match(error.message, new RegExp(`^\\[add\\] .*${rows * 4096} bytes.*${maxBinding} bytes`));
    return true;
  });
  row.dispose();
  wide.dispose();
  assert.equal(gpu.memory().current, before);
});

Deno.test("a disposed backend says so, whatever is asked of it", async () => {
  const backend = await webgpu(), x = arange(3, undefined, { backend });
  backend.dispose();
  for (const f of [() => add(x, 1), () => tensor([1], { backend }), () => x.dataSync()]) {
    assert.throws(f, (error: Error) => error instanceof DeviceLostError && /disposed/.test(error.message));
  }
  await assert.rejects(x.data(), DeviceLostError);
  await assert.rejects(backend.synchronize(), DeviceLostError);
  x.dispose();
});

Deno.test("a device that is lost is reported by the next call, and by every one after", async () => {
  const devices: GPUDevice[] = [];
  const backend = await webgpu({ gpu: watched((device) => devices.push(device)) });
  const x = arange(3, undefined, { backend });
  assert.deepEqual([...await x.data()], [0, 1, 2]);
  const device = devices.at(-1)!;
  device.destroy();
  await device.lost;
  await Promise.resolve();
  for (let i = 0; i < 2; i++) {
    assert.throws(() => add(x, 1), (error: Error) => error instanceof DeviceLostError && /lost/.test(error.message));
    await assert.rejects(x.data(), DeviceLostError);
  }
});

Deno.test("an error that the device reports is thrown once, by the next call, and the backend goes on", async () => {
  const devices: GPUDevice[] = [];
  const backend = await webgpu({ gpu: watched((device) => devices.push(device)) });
  const device = devices.at(-1)!;
  device.createBuffer({ size: 4, usage: GPUBufferUsage.MAP_READ | GPUBufferUsage.STORAGE }); // not allowed
  await new Promise((done) => setTimeout(done, 20));
  assert.throws(() => full([2], 1, { backend }), DeviceError);
  assert.deepEqual([...await full([2], 1, { backend }).data()], [1, 1]);
  backend.dispose();
});

Deno.test("synchronize() sends what waits, and throws what it meets", async () => {
  const devices: GPUDevice[] = [];
  const backend = await webgpu({ gpu: watched((device) => devices.push(device)) }), device = devices.at(-1)!;
  const submit = device.queue.submit.bind(device.queue);
  let submits = 0;
  device.queue.submit = (buffers) => {
    submits++;
    return submit(buffers);
  };
  const x = full([128, 128], 0.01, { backend });
  matmul(matmul(x, x), x);
  assert.equal(submits, 0);
  await backend.synchronize();
  assert(submits > 0);
  device.createBuffer({ size: 4, usage: GPUBufferUsage.MAP_READ | GPUBufferUsage.STORAGE }); // not allowed
  await new Promise((done) => setTimeout(done, 20));
  await assert.rejects(backend.synchronize(), DeviceError);
  await backend.synchronize();
  backend.dispose();
});

Deno.test("allocate() and write() fill a tensor piece by piece, whatever the type, after what was queued before", async () => {
  for (const dtype of ["f32", "bf16", "bool"] as const) {
    const whole = tensor([1, 0, 1, 1, 0, 0, 1, 0, 1], { dtype, backend: gpu }), bytes = await whole.bytes();
    const storage = gpu.allocate(dtype, 9), width = bytes.byteLength / 9;
    const x = makeTensor(gpu, storage, { shape: [9], strides: [1], offset: 0 }, dtype, "test");
    const piece = new Uint8Array(4 * width);
    for (let at = 0; at < 9; at += 4) {
      const part = bytes.subarray(at * width, (at + 4) * width);
      piece.set(part);
      gpu.write(storage, dtype, at, piece.subarray(0, part.byteLength));
      piece.fill(255); // the bytes may be reused at once
    }
    assert.deepEqual(await x.data(), await whole.data());
    const before = cast(x, "i32");
    gpu.write(storage, dtype, 4, new Uint8Array(4 * width));
    assert.deepEqual(await before.data(), await cast(whole, "i32").data());
    assert.deepEqual([...await x.data()], [1, 0, 1, 1, 0, 0, 0, 0, 1]);
  }
});
