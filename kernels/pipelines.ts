/** Pipelines and bind groups, made once. */
import { DeviceError, LimitError, UnsupportedError } from "../tensor/errors.ts";
import type { Device } from "./device.ts";
import type { Kernel } from "./kernel.ts";
import type { PooledBuffer } from "./memory.ts";

/** A kernel as the device runs it. */
export interface Pipeline {
  readonly pipeline: GPUComputePipeline;
  /** How many storage buffers it binds. */
  readonly storage: number;
  readonly layout: GPUBindGroupLayout;
  /** Bytes of the uniform block; 0 without one. */
  readonly uniformBytes: number;
  /** Distinguishes layouts in bind group keys. */
  readonly signature: string;
}

/** Bind groups kept before all are dropped: more would be a program that never repeats itself. */
const maxBindGroups = 1 << 15;

/** Makes and keeps pipelines, layouts and bind groups of one device. */
export class Pipelines {
  readonly #device: Device;
  readonly #uniforms: GPUBuffer;
  readonly #onError: (error: Error) => void;
  readonly #byKernel = new Map<Kernel, Pipeline>();
  readonly #bySource = new Map<string, Pipeline>();
  readonly #layouts = new Map<string, GPUBindGroupLayout>();
  #groups = new Map<string, GPUBindGroup>();
  /** Keys of the bind groups that hold a buffer. */
  #keysOf = new Map<number, string[]>();

  constructor(device: Device, uniforms: GPUBuffer, onError: (error: Error) => void) {
    this.#device = device;
    this.#uniforms = uniforms;
    this.#onError = onError;
  }

  /** How many pipelines were compiled. */
  get size(): number {
    return this.#bySource.size;
  }

  /** How many bind groups are kept. */
  get bindGroups(): number {
    return this.#groups.size;
  }

  /** The pipeline of a kernel. */
  get(kernel: Kernel): Pipeline {
    const known = this.#byKernel.get(kernel);
    if (known !== undefined) return known;
    const pipeline = this.#bySource.get(kernel.source) ?? this.#compile(kernel);
    this.#byKernel.set(kernel, pipeline);
    this.#bySource.set(kernel.source, pipeline);
    return pipeline;
  }

  /** The bind group of a pipeline over these buffers. */
  bind(pipeline: Pipeline, buffers: readonly PooledBuffer[]): GPUBindGroup {
    let key = pipeline.signature;
    for (let i = 0; i < buffers.length; i++) key += "," + buffers[i].id;
    const known = this.#groups.get(key);
    if (known !== undefined) return known;
    if (this.#groups.size >= maxBindGroups) {
      this.#groups = new Map();
      this.#keysOf = new Map();
    }
    const group = this.createGroup(pipeline, buffers, this.#uniforms);
    this.#groups.set(key, group);
    for (const { id } of buffers) {
      const keys = this.#keysOf.get(id);
      if (keys === undefined) this.#keysOf.set(id, [key]);
      else keys.push(key);
    }
    return group;
  }

  /** A bind group that the caller keeps, its uniform block at a dynamic offset in a buffer. */
  createGroup(
    { layout, uniformBytes }: Pipeline,
    buffers: readonly PooledBuffer[],
    uniforms: GPUBuffer,
  ): GPUBindGroup {
    const entries: GPUBindGroupEntry[] = buffers.map(({ buffer }, binding) => ({ binding, resource: { buffer } }));
    if (uniformBytes > 0) {
      entries.push({ binding: buffers.length, resource: { buffer: uniforms, size: slotBytes(uniformBytes) } });
    }
    return this.#device.device.createBindGroup({ layout, entries });
  }

  /** Drops the bind groups that hold a destroyed buffer. */
  forget(id: number): void {
    for (const key of this.#keysOf.get(id) ?? []) this.#groups.delete(key);
    this.#keysOf.delete(id);
  }

  #compile(kernel: Kernel): Pipeline {
    const { device, dialect, capabilities } = this.#device;
    const has = {
      subgroups: capabilities.subgroups,
      f16: capabilities.f16,
      "subgroup-matrix": capabilities.subgroupMatrix.length > 0,
    };
    const missing = kernel.requires.find((feature) => !has[feature]);
    if (missing !== undefined) throw new UnsupportedError(kernel.name, `this device has no ${missing}`);
    const bound = kernel.reads.length + kernel.writes.length, most = device.limits.maxStorageBuffersPerShaderStage;
    if (bound > most) {
      throw new LimitError(kernel.name, `reads and writes ${bound} buffers, and this device binds ${most} at once`);
    }
    const enables = kernel.requires.flatMap((f) =>
      dialect.enables[f] === undefined ? [] : [`enable ${dialect.enables[f]};`]
    );
    const off = kernel.requires.includes("subgroup-matrix")
      ? ["diagnostic(off, chromium.subgroup_matrix_uniformity);"]
      : [];
    const uniformBytes = kernel.uniforms.length * 4;
    const signature = `${kernel.reads.length}r${kernel.writes.length}w${slotBytes(uniformBytes)}u`;
    const layout = this.#layout(signature, kernel, uniformBytes);
    device.pushErrorScope("validation");
    const module = device.createShaderModule({
      label: kernel.name,
      code: [...enables, ...off, kernel.source].join("\n"),
    });
    const pipeline = device.createComputePipeline({
      label: kernel.name,
      layout: device.createPipelineLayout({ bindGroupLayouts: [layout] }),
      compute: { module, entryPoint: "main" },
    });
    device.popErrorScope().then((error) => {
      if (error !== null) this.#onError(new DeviceError(kernel.name, `the kernel does not compile: ${error.message}`));
    }, () => {});
    return { pipeline, layout, storage: kernel.reads.length + kernel.writes.length, uniformBytes, signature };
  }

  #layout(signature: string, kernel: Kernel, uniformBytes: number): GPUBindGroupLayout {
    const known = this.#layouts.get(signature);
    if (known !== undefined) return known;
    const types: GPUBufferBindingLayout[] = [
      ...kernel.reads.map(() => ({ type: "read-only-storage" as const })),
      ...kernel.writes.map(() => ({ type: "storage" as const })),
      ...(uniformBytes > 0 ? [{ type: "uniform" as const, hasDynamicOffset: true }] : []),
    ];
    const entries = types.map((buffer, binding) => ({ binding, visibility: GPUShaderStage.COMPUTE, buffer }));
    const layout = this.#device.device.createBindGroupLayout({ entries });
    this.#layouts.set(signature, layout);
    return layout;
  }
}

/** Uniform blocks start at multiples of 256 bytes. */
export function slotBytes(bytes: number): number {
  return Math.ceil(bytes / 256) * 256;
}
