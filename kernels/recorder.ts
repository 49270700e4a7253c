/** Recording: ops are lowered as ever, but what they dispatch is noted down, on buffers that have no memory yet. */
import type { Recorder, Recording } from "../tensor/backend.ts";
import { UnsupportedError } from "../tensor/errors.ts";
import { type Detour, detour } from "../tensor/scope.ts";
import { type Storage, storageOf, type Tensor } from "../tensor/tensor.ts";
import type { ElementwiseCall } from "./elementwise.ts";
import type { Kernel } from "./kernel.ts";
import { PooledBuffer, sizeClass } from "./memory.ts";
import type { Endable } from "./matmul_matrix_ending.ts";
import type { Cost, LaunchLabel } from "./profiler.ts";

/** One dispatch as it was noted. */
export interface Noted {
  readonly kernel: Kernel;
  /** In the order of the kernel's reads, then writes. */
  readonly buffers: readonly PooledBuffer[];
  /** In the order of the kernel's uniforms. */
  readonly uniforms: readonly number[];
  readonly workgroups: readonly [number, number, number];
  readonly label: LaunchLabel;
  /** What it computes, when that is elementwise. */
  readonly elementwise?: ElementwiseCall;
  /** The product that it is, when its store can do more. */
  readonly product?: Endable;
}

/** The dispatches of one call, in order. It stands where a pool, a queue and a profiler stand. */
export class Tracing {
  readonly dispatches: Noted[] = [];
  /** What the buffers made here were made for. */
  readonly made = new Map<PooledBuffer, string>();
  /** Buffers that every replay is given. */
  readonly standIns: PooledBuffer[] = [];
  /** Host bytes that came up, in order: they are constants of the recording. */
  readonly uploads = new Map<PooledBuffer, Uint8Array>();
  /** Real buffers that the dispatches read. */
  readonly captured = new Set<PooledBuffer>();
  readonly #nowhere: GPUBuffer;
  #label: LaunchLabel | null = null;
  #elementwise: ElementwiseCall | undefined;
  #product: Endable | undefined;

  /** @param nowhere any buffer; nothing is bound while recording */
  constructor(nowhere: GPUBuffer) {
    this.#nowhere = nowhere;
  }

  take(bytes: number, op: string): PooledBuffer {
    const buffer = this.#create(bytes, this.made.size);
    this.made.set(buffer, op);
    return buffer;
  }

  /** Buffers made here need no memory of their own before the plan: the plan sees when each is last used. */
  give(): void {}

  standIn(bytes: number): PooledBuffer {
    const buffer = this.#create(bytes, this.standIns.length);
    this.standIns.push(buffer);
    return buffer;
  }

  /** Keeps host bytes that were uploaded while recording. */
  upload(buffer: PooledBuffer, bytes: Uint8Array): void {
    this.uploads.set(buffer, bytes.slice());
    this.#hold(buffer);
  }

  /** What the next dispatch is called. */
  launch(label: LaunchLabel, cost?: Cost): undefined {
    this.#label = label;
    this.#elementwise = cost?.expression === undefined ? undefined : cost as ElementwiseCall;
    this.#product = cost?.product;
  }

  dispatch(
    _: unknown,
    kernel: Kernel,
    buffers: readonly PooledBuffer[],
    uniforms: Readonly<Record<string, number>>,
    workgroups: readonly [number, number, number],
  ): void {
    buffers.forEach((buffer, i) => {
      if (buffer.pool === this) return;
      if (i >= kernel.reads.length) {
        throw new UnsupportedError(
          "compile",
          `${this.#label!.op} writes in place into a tensor that the function captured: make it an argument`,
        );
      }
      this.#hold(buffer);
    });
    this.dispatches.push({
      kernel,
      buffers,
      uniforms: kernel.uniforms.map(([name]) => uniforms[name]),
      workgroups: [...workgroups],
      label: this.#label!,
      elementwise: this.#elementwise,
      product: this.#product,
    });
  }

  /** What another tracing does otherwise, in words; null when both do the same. */
  difference(other: Tracing): string | null {
    const names = this.#names(), others = other.#names();
    const uploads = [...this.uploads.values()], otherUploads = [...other.uploads.values()];
    for (const [i, bytes] of uploads.entries()) {
      const same = otherUploads[i];
      if (same === undefined || bytes.length !== same.length || bytes.some((byte, j) => byte !== same[j])) {
        return `host data number ${i + 1} that it uploads has changed`;
      }
    }
    for (const [i, a] of this.dispatches.entries()) {
      const b = other.dispatches[i];
      const at = `dispatch ${i + 1} (${a.label.op}: ${a.kernel.name})`;
      if (b === undefined) return `${at} is not there any more`;
      if (a.kernel !== b.kernel) return `${at} has become ${b.label.op}: ${b.kernel.name}`;
      const u = a.uniforms.findIndex((value, j) => !Object.is(value, b.uniforms[j]));
      if (u >= 0) return `${at} had ${a.kernel.uniforms[u][0]} = ${a.uniforms[u]}, now ${b.uniforms[u]}`;
      if (a.workgroups.some((n, j) => n !== b.workgroups[j])) return `${at} has another size`;
      if (a.buffers.some((buffer, j) => names(buffer) !== others(b.buffers[j]))) return `${at} works on other tensors`;
    }
    const more = other.dispatches[this.dispatches.length];
    return more === undefined ? null : `${more.label.op} has been added`;
  }

  /** Lets go of the real buffers that were kept. */
  free(): void {
    for (const buffer of this.captured) if (--buffer.refs === 0) buffer.free();
    this.captured.clear();
    this.uploads.clear();
  }

  #create(bytes: number, id: number): PooledBuffer {
    const buffer = new PooledBuffer(this, id, this.#nowhere, sizeClass(bytes));
    buffer.bytes = bytes;
    return buffer;
  }

  #hold(buffer: PooledBuffer): void {
    if (this.captured.has(buffer)) return;
    this.captured.add(buffer);
    buffer.refs++;
  }

  /** Names that are the same for the same buffers of two tracings of one function. */
  #names(): (buffer: PooledBuffer) => string {
    const uploads = new Map([...this.uploads.keys()].map((buffer, i) => [buffer, `upload ${i}`]));
    return (buffer) => {
      if (buffer.pool !== this) return uploads.get(buffer) ?? `captured ${buffer.id}`;
      return this.made.has(buffer) ? `made ${buffer.id}` : `given ${buffer.id}`;
    };
  }
}

/** A recorder of one device's calls. */
export class DeviceRecorder implements Recorder {
  readonly #tracing: Tracing;
  readonly #by: Detour;
  readonly #plan: (results: readonly PooledBuffer[]) => Recording;

  /**
   * @param by puts the tracing in the device's place
   * @param plan makes the recording
   */
  constructor(tracing: Tracing, by: Detour, plan: (results: readonly PooledBuffer[]) => Recording) {
    this.#tracing = tracing;
    this.#by = by;
    this.#plan = plan;
  }

  standIn(x: Tensor): Storage {
    return this.#tracing.standIn((storageOf(x, "compile") as PooledBuffer).bytes);
  }

  during<T>(f: () => T): T {
    return detour(this.#by, f);
  }

  made(storage: Storage): boolean {
    return this.#tracing.made.has(storage as PooledBuffer);
  }

  replaced(standIn: Storage): boolean {
    return this.#tracing.dispatches.some(({ kernel, buffers }) =>
      buffers.indexOf(standIn as PooledBuffer, kernel.reads.length) >= 0
    );
  }

  difference(other: Recorder): string | null {
    return this.#tracing.difference((other as DeviceRecorder).#tracing);
  }

  plan(results: readonly Storage[]): Recording {
    return this.#plan(results as readonly PooledBuffer[]);
  }

  free(): void {
    this.#tracing.free();
  }
}
