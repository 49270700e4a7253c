/** Kernel times by the GPU's own clock: each dispatch in a pass of its own, a timestamp before and one after. */
import type { Launch } from "../tensor/backend.ts";
import { sizeOf } from "../tensor/shape.ts";
import type { Kernel } from "./kernel.ts";
import type { View } from "./lowering.ts";
import { storageBytes } from "./storage.ts";

/** What a dispatch costs by the op's own count, where the default would be wrong or says too little. */
export interface Cost {
  /** Floating-point operations. */
  readonly flops?: number;
  /** The least bytes to move; by default each buffer's elements once, twice where they are replaced in place. */
  readonly bytes?: number;
}

/** A dispatch as a profile shows it. */
export type LaunchLabel = Omit<Launch, "start" | "ms">;

/** Elements that a view sees, each counted once however often it repeats. */
function distinct({ shape, strides }: View): number {
  return sizeOf(shape.map((n, i) => strides[i] === 0 ? Math.min(n, 1) : n));
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
    moved += (replaced ? 2 : 1) * distinct(view) * storageBytes(view.dtype);
  });
  return { op, kernel: kernel.name, bytes: bytes ?? moved, flops };
}

/** Timestamps in one query set; WebGPU allows no more. */
const queries = 4096;

/** The dispatches of one profile with their timestamps. */
export class Profiler {
  readonly #device: GPUDevice;
  readonly #labels: LaunchLabel[] = [];
  readonly #sets: GPUQuerySet[] = [];

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

  /**
   * The times of all dispatches, which were submitted before.
   * @param read the bytes of a buffer
   */
  async finish(read: (buffer: GPUBuffer, offset: number, bytes: number) => Promise<Uint8Array>): Promise<Launch[]> {
    const times: bigint[] = [];
    for (const [i, set] of this.#sets.entries()) {
      const count = Math.min(queries, 2 * this.#labels.length - i * queries);
      const usage = GPUBufferUsage.QUERY_RESOLVE | GPUBufferUsage.COPY_SRC;
      const buffer = this.#device.createBuffer({ size: 8 * count, usage });
      const encoder = this.#device.createCommandEncoder();
      encoder.resolveQuerySet(set, 0, count, buffer, 0);
      this.#device.queue.submit([encoder.finish()]);
      const bytes = await read(buffer, 0, 8 * count);
      times.push(...new BigUint64Array(bytes.slice().buffer));
      buffer.destroy();
      set.destroy();
    }
    const ms = (from: bigint, to: bigint) => Math.max(0, Number(to - from) / 1e6);
    return this.#labels.map((label, i) => ({
      ...label,
      start: ms(times[0], times[2 * i]),
      ms: ms(times[2 * i], times[2 * i + 1]),
    }));
  }
}
