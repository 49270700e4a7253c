import assert from "node:assert/strict";
import { UnsupportedError } from "../tensor/errors.ts";
import { needAdapter } from "../testing/laws/adapter.ts";
import { open } from "./device.ts";

/** The runtime's GPU, whose adapters refuse any of some features; what they are asked for is noted. */
function refusing(refused: readonly string[], asked: string[][]): GPU {
  const { gpu } = navigator;
  const requestAdapter = async (options?: GPURequestAdapterOptions): Promise<GPUAdapter | null> => {
    const adapter = await gpu.requestAdapter(options);
    if (adapter === null) return null;
    const requestDevice = (descriptor: GPUDeviceDescriptor = {}): Promise<GPUDevice> => {
      const features = [...descriptor.requiredFeatures ?? []];
      asked.push(features);
      return features.some((f) => refused.includes(f))
        ? Promise.reject(new TypeError(`no ${features}`))
        : adapter.requestDevice(descriptor);
    };
    return { limits: adapter.limits, info: adapter.info, requestDevice } as Partial<GPUAdapter> as GPUAdapter;
  };
  return { requestAdapter } as Partial<GPU> as GPU;
}

Deno.test("open() measures what a device can do, and asks for all of its limits", async () => {
  const { device, description, capabilities } = await needAdapter(open());
  const { subgroups, subgroupSize, maxBinding, maxWorkgroupMemory, maxInvocations, maxWorkgroups } = capabilities;
  assert.equal(subgroups, subgroupSize > 0);
  if (subgroups) assert.equal(2 ** Math.round(Math.log2(subgroupSize)), subgroupSize);
  const limits = (await navigator.gpu.requestAdapter({ powerPreference: "high-performance" }))!.limits;
  assert.equal(maxBinding, Math.min(limits.maxStorageBufferBindingSize, limits.maxBufferSize));
  assert.equal(maxWorkgroupMemory, limits.maxComputeWorkgroupStorageSize);
  assert.equal(maxInvocations, limits.maxComputeInvocationsPerWorkgroup);
  assert.equal(maxWorkgroups, limits.maxComputeWorkgroupsPerDimension);
  for (const { m, n, k, ab, acc } of capabilities.subgroupMatrix) assert(m * n * k > 0 && ab.length * acc.length > 0);
  assert(capabilities.f16 && capabilities.subgroupMatrix.length > 0 || !capabilities.roundsF16);
  assert.notEqual(description.trim(), "");
  device.destroy();
});

Deno.test("open() takes a device without the features that it would like, and says so", async () => {
  const all = ["timestamp-query", "shader-f16", "subgroups", "chromium-experimental-subgroup-matrix"];
  const asked: string[][] = [];
  const { device, capabilities } = await needAdapter(open(refusing(all, asked)));
  assert.deepEqual(asked, [all, ...all.map((f) => [f]), []]);
  const { f16, subgroups, subgroupSize, subgroupMatrix, timestamps } = capabilities;
  assert.deepEqual([f16, subgroups, subgroupSize, subgroupMatrix, timestamps], [false, false, 0, [], false]);
  device.destroy();
});

Deno.test("open() asks for features one by one where they are refused together", async () => {
  const whole = await needAdapter(open());
  const asked: string[][] = [];
  const { device, capabilities } = await open(refusing(["shader-f16"], asked));
  assert.equal(capabilities.f16, false);
  assert.equal(capabilities.timestamps, whole.capabilities.timestamps);
  assert.equal(capabilities.subgroupSize, whole.capabilities.subgroupSize);
  assert(asked.length === 6 && !asked.at(-1)!.includes("shader-f16"), JSON.stringify(asked));
  device.destroy();
  whole.device.destroy();
});

Deno.test("open() refuses a GPU without an adapter, naming the way out", async () => {
  const none = { requestAdapter: () => Promise.resolve(null) } as Partial<GPU> as GPU;
  await assert.rejects(open(none), (error: Error) => {
    assert(error instanceof UnsupportedError);
    assert.match(error.message, /^\[init\] no WebGPU adapter: .*backend: "cpu"/);
    return true;
  });
});
