/**
 * Reading back. Awaiting `mapAsync` costs 11 ms in Deno, which polls and then sleeps; but Deno has waited for the GPU
 * by the time `mapAsync` returns its promise, so the mapped range is there at once. The shortcut is tried once on a known
 * buffer; where it fails, reads await as the standard says.
 *
 * With the shortcut nothing would ever wait: a loop that reads its loss at every step would keep timers, signals, the
 * ends of those maps and the finalisers of dropped tensors out for as long as it runs. So a read lets them in, which
 * takes 5 µs.
 */
import { UnsupportedError } from "../tensor/errors.ts";
import { sizeClass } from "./memory.ts";
import type { DispatchQueue } from "./queue.ts";

/** The most that one staging buffer holds; longer reads go in parts. */
const maxStaging = 128 * 2 ** 20;
/** Idle staging buffers kept. */
const maxIdle = 4;

/** Staging buffers of one device. */
export class Readback {
  readonly #device: GPUDevice;
  readonly #queue: DispatchQueue;
  readonly #idle: GPUBuffer[] = [];
  #immediate = false;
  /** Lets what waits for the event loop run. */
  #turn: () => Promise<void> = () => Promise.resolve();

  constructor(device: GPUDevice, queue: DispatchQueue) {
    this.#device = device;
    this.#queue = queue;
  }

  /** Whether a read needs no waiting for promises here. */
  get immediate(): boolean {
    return this.#immediate;
  }

  /** Tries the shortcut on known bytes, in Deno alone: elsewhere it cannot work. */
  async probe(): Promise<void> {
    if (!("Deno" in globalThis)) return;
    const known = new Uint32Array([0x464c4153, 0x48544150]);
    const source = this.#device.createBuffer({ size: 8, usage: GPUBufferUsage.COPY_SRC | GPUBufferUsage.COPY_DST });
    this.#device.queue.writeBuffer(source, 0, known);
    try {
      const got = new Uint32Array(this.#readNow(source, 0, 8).buffer);
      this.#immediate = got[0] === known[0] && got[1] === known[1];
    } catch {
      this.#immediate = false;
    }
    source.destroy();
    if (!this.#immediate) return;
    const { setImmediate } = await import("node:timers");
    this.#turn = () => new Promise((resolve) => void setImmediate(resolve));
  }

  /** Bytes of a buffer; offset and length are multiples of 4. */
  async read(buffer: GPUBuffer, offset: number, bytes: number): Promise<Uint8Array<ArrayBuffer>> {
    if (this.#immediate) {
      const out = this.readSync(buffer, offset, bytes);
      await this.#turn();
      return out;
    }
    const out = new Uint8Array(bytes);
    for (let at = 0; at < bytes; at += maxStaging) {
      const part = Math.min(maxStaging, bytes - at);
      const staging = this.#fill(buffer, offset + at, part);
      await staging.mapAsync(GPUMapMode.READ, 0, part);
      out.set(new Uint8Array(staging.getMappedRange(0, part)), at);
      this.#release(staging);
    }
    return out;
  }

  /**
   * The same at once.
   * @throws {UnsupportedError} where the runtime cannot wait for the GPU
   */
  readSync(buffer: GPUBuffer, offset: number, bytes: number): Uint8Array<ArrayBuffer> {
    if (!this.#immediate) {
      throw new UnsupportedError("dataSync", "this runtime cannot wait for a GPU: use await data()");
    }
    const out = new Uint8Array(bytes);
    for (let at = 0; at < bytes; at += maxStaging) {
      const part = Math.min(maxStaging, bytes - at);
      out.set(this.#readNow(buffer, offset + at, part), at);
    }
    return out;
  }

  #readNow(buffer: GPUBuffer, offset: number, bytes: number): Uint8Array<ArrayBuffer> {
    const staging = this.#fill(buffer, offset, bytes);
    staging.mapAsync(GPUMapMode.READ, 0, bytes).catch(() => {});
    const out = new Uint8Array(staging.getMappedRange(0, bytes).slice(0));
    this.#release(staging);
    return out;
  }

  #fill(buffer: GPUBuffer, offset: number, bytes: number): GPUBuffer {
    const fits = this.#idle.findIndex((b) => b.size >= bytes && b.size <= 4 * sizeClass(bytes));
    const staging = fits >= 0 ? this.#idle.splice(fits, 1)[0] : this.#create(sizeClass(bytes));
    this.#queue.copy(buffer, offset, staging, 0, bytes);
    this.#queue.flush();
    return staging;
  }

  /** A staging buffer that was mapped once: without that the shortcut ends the process. */
  #create(size: number): GPUBuffer {
    const usage = GPUBufferUsage.MAP_READ | GPUBufferUsage.COPY_DST;
    const staging = this.#device.createBuffer({ size, usage, mappedAtCreation: true });
    staging.unmap();
    return staging;
  }

  #release(staging: GPUBuffer): void {
    staging.unmap();
    if (this.#idle.length >= maxIdle) this.#idle.shift()!.destroy();
    this.#idle.push(staging);
  }
}
