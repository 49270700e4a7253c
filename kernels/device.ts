/** Adapters and devices: what one can do, probed rather than believed. */
import type { Capabilities } from "../tensor/backend.ts";
import { UnsupportedError } from "../tensor/errors.ts";

/** Which WGSL a compiler takes: some want `enable` lines for features, naga refuses one of them. */
export interface Dialect {
  /** Features that need an `enable` line, by the name on that line. */
  readonly enables: Readonly<Record<string, string>>;
}

/** An open device with what is known of it. */
export interface Device {
  readonly gpu: GPU;
  readonly device: GPUDevice;
  readonly description: string;
  readonly capabilities: Capabilities;
  readonly dialect: Dialect;
}

const limitNames = [
  "maxBufferSize",
  "maxStorageBufferBindingSize",
  "maxStorageBuffersPerShaderStage",
  "maxComputeWorkgroupStorageSize",
  "maxComputeInvocationsPerWorkgroup",
  "maxComputeWorkgroupSizeX",
  "maxComputeWorkgroupSizeY",
  "maxComputeWorkgroupSizeZ",
  "maxComputeWorkgroupsPerDimension",
] as const;

const wanted = ["timestamp-query", "shader-f16", "subgroups", "chromium-experimental-subgroup-matrix"];

/**
 * Asks for each feature by itself, since Deno's adapters hide some that they grant. A page's do not, and every question
 * is a way to the GPU's process and back.
 */
async function openDevice(gpu: GPU): Promise<{ adapter: GPUAdapter; device: GPUDevice; features: Set<string> } | null> {
  const granted = new Set<string>();
  const ask = async (all: readonly string[], listed = false) => {
    const adapter = await gpu.requestAdapter({ powerPreference: "high-performance" });
    if (adapter === null) return null;
    const offered: { has(feature: string): boolean } = adapter.features;
    const features = listed ? all.filter((feature) => offered.has(feature)) : all;
    const requiredLimits = Object.fromEntries(limitNames.map((name) => [name, adapter.limits[name]]));
    const device = await adapter.requestDevice({
      requiredFeatures: features as GPUFeatureName[],
      requiredLimits,
    });
    return { adapter, device, features: new Set(features) };
  };
  try {
    return await ask(wanted, !("Deno" in globalThis));
  } catch { /* one of them is refused: find out which */ }
  for (const feature of wanted) {
    try {
      (await ask([...granted, feature]))?.device.destroy();
      granted.add(feature);
    } catch { /* this adapter has it not */ }
  }
  return await ask([...granted]);
}

async function compiles(device: GPUDevice, code: string): Promise<boolean> {
  device.pushErrorScope("validation");
  try {
    const module = device.createShaderModule({ code });
    device.createComputePipeline({ layout: "auto", compute: { module, entryPoint: "main" } });
  } catch {
    await device.popErrorScope();
    return false;
  }
  return await device.popErrorScope() === null;
}

/** Runs a kernel that writes the subgroup size, rather than trusting the adapter's range. */
async function measureSubgroup(device: GPUDevice, enable: string): Promise<number> {
  const code = `${enable}
@group(0) @binding(0) var<storage, read_write> y: array<u32>;
@compute @workgroup_size(64) fn main(@builtin(subgroup_size) size: u32, @builtin(local_invocation_index) i: u32) {
  let lanes = subgroupAdd(1u);
  if (i == 0u) { y[0] = size; y[1] = lanes; }
}`;
  const module = device.createShaderModule({ code });
  const pipeline = device.createComputePipeline({ layout: "auto", compute: { module, entryPoint: "main" } });
  const buffer = device.createBuffer({ size: 8, usage: GPUBufferUsage.STORAGE | GPUBufferUsage.COPY_SRC });
  const staging = device.createBuffer({ size: 8, usage: GPUBufferUsage.MAP_READ | GPUBufferUsage.COPY_DST });
  const entries = [{ binding: 0, resource: { buffer } }];
  const encoder = device.createCommandEncoder();
  const pass = encoder.beginComputePass();
  pass.setPipeline(pipeline);
  pass.setBindGroup(0, device.createBindGroup({ layout: pipeline.getBindGroupLayout(0), entries }));
  pass.dispatchWorkgroups(1);
  pass.end();
  encoder.copyBufferToBuffer(buffer, 0, staging, 0, 8);
  device.queue.submit([encoder.finish()]);
  await staging.mapAsync(GPUMapMode.READ);
  const [size, lanes] = new Uint32Array(staging.getMappedRange().slice(0));
  staging.destroy();
  buffer.destroy();
  return size === lanes && (size & (size - 1)) === 0 ? size : 0;
}

interface MatrixConfig {
  readonly M: number;
  readonly N: number;
  readonly K: number;
  readonly componentType: string;
  readonly resultComponentType: string;
}

function describe(info: GPUAdapterInfo): string {
  const known: Record<string, string> = { "4318": "NVIDIA", "4098": "AMD", "32902": "Intel", "65541": "Mesa" };
  const vendor = known[info.vendor] ?? info.vendor;
  const name = info.description || [info.architecture, info.device].filter(Boolean).join(" ") || "unnamed adapter";
  return name.toLowerCase().includes(vendor.toLowerCase()) ? name : `${vendor} ${name}`.trim();
}

/**
 * Opens the fastest adapter of a GPU with all its limits.
 * @param gpu where adapters come from; the runtime's own when not given
 * @throws {UnsupportedError} when there is no WebGPU or no adapter
 */
export async function open(gpu: GPU | undefined = globalThis.navigator?.gpu): Promise<Device> {
  if (gpu === undefined) {
    throw new UnsupportedError("init", 'this runtime has no WebGPU (navigator.gpu): use init({ backend: "cpu" })');
  }
  const opened = await openDevice(gpu);
  if (opened === null) {
    throw new UnsupportedError("init", 'no WebGPU adapter: install a Vulkan driver, or use init({ backend: "cpu" })');
  }
  const { adapter, device, features } = opened;
  const body = "@compute @workgroup_size(32) fn main() { _ = subgroupAdd(1u); }";
  let subgroups = features.has("subgroups");
  let enable = "";
  if (subgroups && await compiles(device, `enable subgroups;\n${body}`)) enable = "enable subgroups;";
  else if (subgroups) subgroups = await compiles(device, body);
  const f16 = features.has("shader-f16") &&
    await compiles(device, "enable f16;\n@compute @workgroup_size(1) fn main() { _ = f16(1); }");
  const subgroupSize = subgroups ? await measureSubgroup(device, enable) : 0;
  const matrices = features.has("chromium-experimental-subgroup-matrix")
    ? (adapter.info as { subgroupMatrixConfigs?: Iterable<MatrixConfig> }).subgroupMatrixConfigs ?? []
    : [];
  const { limits } = device;
  return {
    gpu,
    device,
    description: describe(adapter.info),
    dialect: {
      enables: {
        ...(enable ? { subgroups: "subgroups" } : {}),
        f16: "f16",
        "subgroup-matrix": "chromium_experimental_subgroup_matrix",
      },
    },
    capabilities: {
      f16,
      subgroups: subgroupSize > 0,
      subgroupSize,
      subgroupMatrix: [...matrices].map(({ M, N, K, componentType, resultComponentType }) => ({
        m: M,
        n: N,
        k: K,
        ab: componentType,
        acc: resultComponentType,
      })),
      timestamps: features.has("timestamp-query"),
      maxBinding: Math.min(limits.maxStorageBufferBindingSize, limits.maxBufferSize),
      maxWorkgroupMemory: limits.maxComputeWorkgroupStorageSize,
      maxInvocations: limits.maxComputeInvocationsPerWorkgroup,
      maxWorkgroups: limits.maxComputeWorkgroupsPerDimension,
    },
  };
}
