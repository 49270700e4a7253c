/**
 * Kernel times by the GPU's own clock: each dispatch in a pass of its own, a timestamp before and one after. A pass of
 * its own takes some microseconds longer than a dispatch among others, which the same device tells of a kernel that does
 * nothing; that much is taken off, so that the times of a step add up to the time of the step.
 */
import type { Launch } from "../tensor/backend.ts";
import type { DType } from "../tensor/dtype.ts";
import { type Layout, sizeOf } from "../tensor/shape.ts";
import type { ElementwiseCall } from "./elementwise.ts";
import type { Kernel } from "./kernel.ts";
import type { Endable } from "./matmul_matrix_ending.ts";
import type { View } from "./lowering.ts";
import { storageBytes } from "./storage.ts";

/**
 * What a dispatch costs by the op's own count, where the default would be wrong or says too little; of an elementwise
 * one, all that it computes.
 */
export interface Cost extends Partial<ElementwiseCall> {
  /** That it is a product whose store can do more. */
  readonly product?: Endable;
  /** Floating-point operations. */
  readonly flops?: number;
  /** The least bytes to move; by default each buffer's elements once, twice where they are replaced in place. */
  readonly bytes?: number;
}

/** A dispatch as a profile shows it. */
export type LaunchLabel = Omit<Launch, "start" | "ms">;

/** Bytes of the elements that a layout sees, each counted once however often it repeats. */
export function distinctBytes({ shape, strides }: Layout, dtype: DType): number {
  return storageBytes(dtype) * sizeOf(shape.map((n, i) => strides[i] === 0 ? Math.min(n, 1) : n));
}

/** Names a dispatch and counts its bytes. */
export function labelOf(
  op: string,
  kernel: Kernel,
  inputs: readonly View[],
  views: readonly View[],
  { flops, bytes }: Cost = {},
): LaunchLabel {
  let moved = 0;
  views.forEach((view, i) => {
    const replaced = i >= kernel.reads.length && inputs.some((x) => x.buffer === view.buffer);
    moved += (replaced ? 2 : 1) * distinctBytes(view, view.dtype);
  });
  return { op, kernel: kernel.name, bytes: bytes ?? moved, flops };
}

/** The bytes of a buffer. */
type Read = (buffer: GPUBuffer, offset: number, bytes: number) => Promise<Uint8Array>;

/** Timestamps in one query set; WebGPU allows no more. */
const queries = 4096;

/** The dispatches of one profile with their timestamps. */
export class Profiler {
  readonly #device: GPUDevice;
  readonly #labels: LaunchLabel[] = [];
  readonly #sets: GPUQuerySet[] = [];
  #zero: bigint | null = null;

  constructor(device: GPUDevice) {
    this.#device = device;
  }

  /** Notes a dispatch; returns the timestamps that its pass writes. */
  launch(label: LaunchLabel): GPUComputePassTimestampWrites {
    const at = 2 * this.#labels.length % queries;
    if (at === 0) this.#sets.push(this.#device.createQuerySet({ type: "timestamp", count: queries }));
    this.#labels.push(label);
    return { querySet: this.#sets.at(-1)!, beginningOfPassWriteIndex: at, endOfPassWriteIndex: at + 1 };
  }

  /** The times of all dispatches, which were submitted before. */
  async finish(read: Read): Promise<Launch[]> {
    if (this.#labels.length === 0) return [];
    const times: number[] = [];
    for (const [i, set] of this.#sets.entries()) {
      times.push(...await this.#resolve(set, Math.min(queries, 2 * this.#labels.length - i * queries), read));
    }
    const own = await this.#ownPass(read);
    return this.#labels.map((label, i) => {
      const ms = Math.max(0, times[2 * i + 1] - times[2 * i]);
      return { ...label, start: times[2 * i] - times[0], ms: Math.max(ms - own, ms / 20) };
    });
  }

  /** How much longer a dispatch takes in a pass of its own than among others, in milliseconds. */
  async #ownPass(read: Read): Promise<number> {
    const device = this.#device, alone = 31, among = 64;
    const module = device.createShaderModule({
      code: `@group(0) @binding(0) var<storage, read_write> y: array<u32>;
@compute @workgroup_size(1) fn main() { y[0] += 1u; }`,
    });
    const pipeline = device.createComputePipeline({ layout: "auto", compute: { module, entryPoint: "main" } });
    const buffer = device.createBuffer({ size: 256, usage: GPUBufferUsage.STORAGE });
    const entries = [{ binding: 0, resource: { buffer } }];
    const group = device.createBindGroup({ layout: pipeline.getBindGroupLayout(0), entries });
    const querySet = device.createQuerySet({ type: "timestamp", count: 2 * (alone + 1) });
    const encoder = device.createCommandEncoder();
    for (let i = 0; i <= alone; i++) {
      const pass = encoder.beginComputePass({
        timestampWrites: { querySet, beginningOfPassWriteIndex: 2 * i, endOfPassWriteIndex: 2 * i + 1 },
      });
      pass.setPipeline(pipeline);
      pass.setBindGroup(0, group);
      for (let n = i < alone ? 1 : among; n > 0; n--) pass.dispatchWorkgroups(1);
      pass.end();
    }
    device.queue.submit([encoder.finish()]);
    const times = await this.#resolve(querySet, 2 * (alone + 1), read);
    buffer.destroy();
    const spans = Array.from({ length: alone + 1 }, (_, i) => times[2 * i + 1] - times[2 * i]);
    const all = spans.pop()!, one = spans.sort((a, b) => a - b)[(alone - 1) / 2];
    return Math.max(0, one - (all - one) / (among - 1));
  }

  /** The timestamps of a set, in milliseconds since the first of the profile. */
  async #resolve(set: GPUQuerySet, count: number, read: Read): Promise<number[]> {
    const usage = GPUBufferUsage.QUERY_RESOLVE | GPUBufferUsage.COPY_SRC;
    const buffer = this.#device.createBuffer({ size: 8 * count, usage });
    const encoder = this.#device.createCommandEncoder();
    encoder.resolveQuerySet(set, 0, count, buffer, 0);
    this.#device.queue.submit([encoder.finish()]);
    const times = new BigUint64Array((await read(buffer, 0, 8 * count)).slice().buffer);
    buffer.destroy();
    set.destroy();
    this.#zero ??= times[0];
    return Array.from(times, (time) => Number(time - this.#zero!) / 1e6);
  }
}
