/** Adapters and devices: what one can do, probed rather than believed. */
import type { Capabilities } from "../tensor/backend.ts";
import { encode } from "../tensor/dtype.ts";
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

/** What a kernel of one workgroup writes to `y`, u32, from `x`; without bindings of its own. */
async function probe(
  device: GPUDevice,
  code: string,
  x: Uint32Array<ArrayBuffer>,
  length: number,
): Promise<Uint32Array> {
  const module = device.createShaderModule({
    code: `${code}
@group(0) @binding(0) var<storage, read> x: array<u32>;
@group(0) @binding(1) var<storage, read_write> y: array<u32>;`,
  });
  const pipeline = device.createComputePipeline({ layout: "auto", compute: { module, entryPoint: "main" } });
  const { STORAGE, COPY_SRC, COPY_DST, MAP_READ } = GPUBufferUsage;
  const input = device.createBuffer({ size: x.byteLength, usage: STORAGE | COPY_DST });
  const output = device.createBuffer({ size: 4 * length, usage: STORAGE | COPY_SRC });
  const staging = device.createBuffer({ size: 4 * length, usage: MAP_READ | COPY_DST });
  device.queue.writeBuffer(input, 0, x);
  const entries = [input, output].map((buffer, binding) => ({ binding, resource: { buffer } }));
  const encoder = device.createCommandEncoder();
  const pass = encoder.beginComputePass();
  pass.setPipeline(pipeline);
  pass.setBindGroup(0, device.createBindGroup({ layout: pipeline.getBindGroupLayout(0), entries }));
  pass.dispatchWorkgroups(1);
  pass.end();
  encoder.copyBufferToBuffer(output, 0, staging, 0, 4 * length);
  device.queue.submit([encoder.finish()]);
  await staging.mapAsync(GPUMapMode.READ);
  const found = new Uint32Array(staging.getMappedRange().slice(0));
  for (const buffer of [input, output, staging]) buffer.destroy();
  return found;
}

/** The subgroup size as a kernel sees it, rather than the adapter's range. */
async function measureSubgroup(device: GPUDevice, enable: string): Promise<number> {
  const code = `${enable}
@compute @workgroup_size(64) fn main(@builtin(subgroup_size) size: u32, @builtin(local_invocation_index) i: u32) {
  let lanes = subgroupAdd(1u);
  if (i == x[0]) { y[0] = size; y[1] = lanes; }
}`;
  const [size, lanes] = await probe(device, code, new Uint32Array(1), 2);
  return size === lanes && (size & (size - 1)) === 0 ? size : 0;
}

/** Whether conversions to f16 do what `roundingFunctions` does: ties, steps between them, both ends of the range, NaN. */
async function roundsF16(device: GPUDevice): Promise<boolean> {
  const values = [NaN, Infinity, 0, 65504, 65519.996, 65520, 1e30];
  for (const e of [-26, -25, -24, -20, -15, -14, -1, 0, 9, 15]) {
    for (const n of [0.5, 1.5, 2.5, 511.5, 1022.5]) {
      for (const off of [-(2 ** -20), 0, 2 ** -20]) values.push((1 + n * 2 ** -10) * (1 + off) * 2 ** e);
    }
  }
  const x = Float32Array.from(values.flatMap((v) => [v, -v]));
  const want = new Uint16Array(encode("f16", x).buffer);
  const code = `enable f16;
@compute @workgroup_size(64) fn main(@builtin(local_invocation_index) li: u32) {
  for (var i = li; i < ${values.length}u; i += 64u) {
    y[i] = bitcast<u32>(vec2<f16>(bitcast<vec2f>(vec2u(x[2u * i], x[2u * i + 1u]))));
  }
}`;
  const got = new Uint16Array((await probe(device, code, new Uint32Array(x.buffer), values.length)).buffer);
  return want.every((bits, i) => bits === got[i] || (Number.isNaN(x[i]) && (got[i] & 0x7fff) > 0x7c00));
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
  const configs = [...matrices], { limits } = device;
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
      roundsF16: f16 && configs.length > 0 && await roundsF16(device),
      subgroups: subgroupSize > 0,
      subgroupSize,
      subgroupMatrix: configs.map(({ M, N, K, componentType, resultComponentType }) => ({
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
