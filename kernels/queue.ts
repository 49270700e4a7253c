/**
 * Batching: dispatches collect in one compute pass and go out together, since a submit costs as much as twenty
 * dispatches. Their uniforms collect on the host and are written at once, ahead of the batch, into one buffer.
 */
import type { Kernel } from "./kernel.ts";
import type { PooledBuffer } from "./memory.ts";
import { type Pipeline, type Pipelines, slotBytes } from "./pipelines.ts";
import { writeUniforms } from "./uniforms.ts";

/** Dispatches in a batch before it goes out by itself. */
const maxBatch = 64;
/** Room for the uniforms of a batch. */
const uniformCapacity = 256 * 1024;

/** A dispatch with all that it needs, its uniforms too. */
export interface BoundDispatch {
  readonly pipeline: GPUComputePipeline;
  /** Null until it is bound, which must be before it goes out. */
  readonly group: GPUBindGroup | null;
  /** Which of the offsets is that of its uniform block; negative without one. */
  readonly offset: number;
  readonly x: number;
  readonly y: number;
  readonly z: number;
}

/** The dispatches that wait, and the way out. */
export class DispatchQueue {
  /** The batch that is being collected. */
  batch = 0;
  readonly #device: GPUDevice;
  readonly #uniforms: GPUBuffer;
  readonly #staging = new ArrayBuffer(uniformCapacity);
  readonly #words = new Uint32Array(this.#staging);
  readonly #offset = new Uint32Array(1);
  #used = 0;
  #count = 0;
  #encoder: GPUCommandEncoder | null = null;
  #pass: GPUComputePassEncoder | null = null;
  #pipeline: GPUComputePipeline | null = null;

  constructor(device: GPUDevice) {
    this.#device = device;
    this.#uniforms = device.createBuffer({
      size: uniformCapacity,
      usage: GPUBufferUsage.UNIFORM | GPUBufferUsage.COPY_DST | GPUBufferUsage.COPY_SRC,
    });
  }

  /** The buffer that every kernel's uniform block lies in. */
  get uniforms(): GPUBuffer {
    return this.#uniforms;
  }

  /**
   * Adds a dispatch to the batch. Buffers stand in the order of the kernel's reads, then writes. With timestamps it has
   * a pass of its own.
   */
  dispatch(
    pipelines: Pipelines,
    kernel: Kernel,
    buffers: readonly PooledBuffer[],
    uniforms: Readonly<Record<string, number>>,
    workgroups: readonly [number, number, number],
    timestampWrites?: GPUComputePassTimestampWrites,
  ): void {
    const pipeline = pipelines.get(kernel), slot = this.#room(pipeline);
    if (slot > 0) writeUniforms(kernel, uniforms, this.#words, this.#used / 4);
    this.#launch(pipelines, pipeline, slot, buffers, workgroups, timestampWrites);
  }

  /** Adds a dispatch whose uniform block is made already. */
  send(
    pipelines: Pipelines,
    pipeline: Pipeline,
    buffers: readonly PooledBuffer[],
    uniforms: Uint32Array,
    workgroups: readonly [number, number, number],
  ): void {
    const slot = this.#room(pipeline);
    if (slot > 0) this.#words.set(uniforms, this.#used / 4);
    this.#launch(pipelines, pipeline, slot, buffers, workgroups);
  }

  /** Bytes of a pipeline's uniform block, for which there is room then. */
  #room({ uniformBytes }: Pipeline): number {
    const slot = slotBytes(uniformBytes);
    if (this.#count >= maxBatch || this.#used + slot > uniformCapacity) this.flush();
    return slot;
  }

  #launch(
    pipelines: Pipelines,
    pipeline: Pipeline,
    slot: number,
    buffers: readonly PooledBuffer[],
    [x, y, z]: readonly [number, number, number],
    timestampWrites?: GPUComputePassTimestampWrites,
  ): void {
    this.#encoder ??= this.#device.createCommandEncoder();
    if (timestampWrites !== undefined) this.#endPass();
    this.#pass ??= this.#encoder.beginComputePass(timestampWrites && { timestampWrites });
    if (this.#pipeline !== pipeline.pipeline) this.#pass.setPipeline(this.#pipeline = pipeline.pipeline);
    const group = pipelines.bind(pipeline, buffers);
    if (slot > 0) {
      this.#offset[0] = this.#used;
      this.#pass.setBindGroup(0, group, this.#offset, 0, 1);
      this.#used += slot;
    } else this.#pass.setBindGroup(0, group);
    this.#pass.dispatchWorkgroups(x, y, z);
    if (timestampWrites !== undefined) this.#endPass();
    this.#count++;
    for (const buffer of buffers) buffer.usedIn = this.batch;
  }

  /**
   * Adds recorded dispatches to the batch, which goes out when it is full now.
   * @param offsets where their uniform blocks lie
   * @param timestamps for each dispatch, which then has a pass of its own
   */
  replay(
    dispatches: readonly BoundDispatch[],
    offsets: Uint32Array,
    timestamps?: (dispatch: BoundDispatch) => GPUComputePassTimestampWrites,
  ): void {
    this.#encoder ??= this.#device.createCommandEncoder();
    let pass = this.#pass ??= this.#encoder.beginComputePass();
    let last = this.#pipeline;
    for (let i = 0; i < dispatches.length; i++) {
      const dispatch = dispatches[i];
      if (timestamps !== undefined) {
        this.#endPass();
        pass = this.#pass = this.#encoder.beginComputePass({ timestampWrites: timestamps(dispatch) });
        last = null;
      }
      if (last !== dispatch.pipeline) pass.setPipeline(last = dispatch.pipeline);
      if (dispatch.offset >= 0) pass.setBindGroup(0, dispatch.group, offsets, dispatch.offset, 1);
      else pass.setBindGroup(0, dispatch.group);
      pass.dispatchWorkgroups(dispatch.x, dispatch.y, dispatch.z);
    }
    this.#pipeline = last;
    if (timestamps !== undefined) this.#endPass();
    this.#count += dispatches.length;
    if (this.#count >= maxBatch) this.flush();
  }

  /** Adds a copy between buffers to the batch. */
  copy(from: GPUBuffer, fromOffset: number, to: GPUBuffer, toOffset: number, bytes: number): void {
    this.#endPass();
    this.#encoder ??= this.#device.createCommandEncoder();
    this.#encoder.copyBufferToBuffer(from, fromOffset, to, toOffset, bytes);
  }

  /** Writes host bytes into a buffer, after all that was queued on it before. */
  write(target: PooledBuffer, bytes: Uint8Array<ArrayBuffer>, offset = 0): void {
    if (target.usedIn === this.batch) this.flush();
    this.#device.queue.writeBuffer(target.buffer, offset, bytes);
  }

  /** Sends what has collected. */
  flush(): void {
    if (this.#encoder === null) return;
    this.#endPass();
    // The write is queued after earlier batches, so they have read their uniforms before these replace them.
    if (this.#used > 0) this.#device.queue.writeBuffer(this.#uniforms, 0, this.#staging, 0, this.#used);
    this.#device.queue.submit([this.#encoder.finish()]);
    this.#encoder = null;
    this.#used = this.#count = 0;
    this.batch++;
  }

  #endPass(): void {
    this.#pass?.end();
    this.#pass = this.#pipeline = null;
  }
}
