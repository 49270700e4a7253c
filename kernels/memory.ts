/** The buffer pool: freed buffers are kept by size and handed out again, always the oldest first. */
import { LimitError, OutOfMemoryError } from "../tensor/errors.ts";
import type { MemoryInfo } from "../tensor/backend.ts";
import type { Storage } from "../tensor/tensor.ts";

/** A buffer of the pool while someone uses it. */
export class PooledBuffer implements Storage {
  refs = 0;
  /** Bytes asked for. */
  bytes = 0;
  /** The batch that used it last, so that a host write knows whether to send that batch first. */
  usedIn = -1;
  constructor(
    readonly pool: Pick<BufferPool, "give">,
    readonly id: number,
    readonly buffer: GPUBuffer,
    readonly capacity: number,
  ) {}
  free(): void {
    this.pool.give(this);
  }
}

/**
 * The size that is allocated for a request: eight steps to each power of two, so that at most an eighth is wasted and
 * near sizes share buffers.
 */
export function sizeClass(bytes: number): number {
  if (bytes <= 2048) return Math.max(1, Math.ceil(bytes / 256)) * 256;
  const step = 2 ** (Math.floor(Math.log2(bytes - 1)) - 3);
  return Math.ceil(bytes / step) * step;
}

/** Keeps freed buffers of at least this many bytes in all before it destroys any. */
const keepAtLeast = 64 * 2 ** 20;
/** Allocations from this size on are watched for running out of memory. */
const watchFrom = 16 * 2 ** 20;

/** GPU buffers by size class. */
export class BufferPool {
  readonly #device: GPUDevice;
  readonly #limit: number;
  readonly #onDestroy: (buffer: PooledBuffer) => void;
  readonly #onError: (error: Error) => void;
  /** Free buffers of each capacity, in rising order of id: equal programs then get equal buffers, and bind groups hit. */
  readonly #free = new Map<number, PooledBuffer[]>();
  #nextId = 0;
  #current = 0;
  #peak = 0;
  #pooled = 0;
  #closed = false;

  constructor(
    device: GPUDevice,
    limit: number,
    onDestroy: (buffer: PooledBuffer) => void,
    onError: (error: Error) => void,
  ) {
    this.#device = device;
    this.#limit = limit;
    this.#onDestroy = onDestroy;
    this.#onError = onError;
  }

  /**
   * A buffer of at least so many bytes, contents undefined, padded at least to a multiple of 256.
   * @throws {LimitError} when one binding cannot hold it
   */
  take(bytes: number, op: string): PooledBuffer {
    const capacity = Math.min(sizeClass(bytes), Math.floor(this.#limit / 4) * 4);
    if (bytes > capacity) {
      throw new LimitError(
        op,
        `a tensor of ${bytes} bytes is larger than one binding of this device holds (${this.#limit} bytes): split it`,
      );
    }
    const free = this.#free.get(capacity);
    let taken = free?.shift();
    if (taken !== undefined) this.#pooled -= capacity;
    else taken = this.#create(capacity, op);
    this.#count(taken, bytes);
    return taken;
  }

  /** Takes one certain buffer, if it is free: what is bound to it stays bound. */
  retake(buffer: PooledBuffer, bytes: number): boolean {
    const free = this.#free.get(buffer.capacity), at = free?.indexOf(buffer) ?? -1;
    if (at < 0) return false;
    free!.splice(at, 1);
    this.#pooled -= buffer.capacity;
    this.#count(buffer, bytes);
    return true;
  }

  /** Takes a buffer back. */
  give(buffer: PooledBuffer): void {
    if (this.#closed) return;
    this.#current -= buffer.bytes;
    this.#pooled += buffer.capacity;
    const free = this.#free.get(buffer.capacity);
    if (free === undefined) return void this.#free.set(buffer.capacity, [buffer]);
    let at = free.length;
    while (at > 0 && free[at - 1].id > buffer.id) at--;
    free.splice(at, 0, buffer);
  }

  memory(): MemoryInfo {
    return { current: this.#current, peak: this.#peak, pooled: this.#pooled };
  }

  resetPeak(): void {
    this.#peak = this.#current;
  }

  /** Destroys free buffers until at most `keep` bytes of them are left, largest first. */
  trim(keep = 0): void {
    for (const capacity of [...this.#free.keys()].sort((a, b) => b - a)) {
      const free = this.#free.get(capacity)!;
      while (this.#pooled > keep && free.length > 0) {
        const gone = free.pop()!;
        this.#pooled -= capacity;
        this.#onDestroy(gone);
        gone.buffer.destroy();
      }
      if (free.length === 0) this.#free.delete(capacity);
    }
  }

  close(): void {
    this.trim();
    this.#closed = true;
  }

  #count(taken: PooledBuffer, bytes: number): void {
    taken.bytes = bytes;
    this.#current += bytes;
    this.#peak = Math.max(this.#peak, this.#current);
  }

  #create(capacity: number, op: string): PooledBuffer {
    // A program whose shapes change would fill the pool with sizes that it no longer asks for.
    this.trim(Math.max(keepAtLeast, this.#current));
    const watched = capacity >= watchFrom;
    if (watched) this.#device.pushErrorScope("out-of-memory");
    const usage = GPUBufferUsage.STORAGE | GPUBufferUsage.COPY_SRC | GPUBufferUsage.COPY_DST;
    const buffer = this.#device.createBuffer({ size: capacity, usage });
    if (watched) {
      const held = this.#current + this.#pooled;
      this.#device.popErrorScope().then((error) => {
        if (error === null) return;
        this.#onError(
          new OutOfMemoryError(op, `no room for ${capacity} bytes beside the ${held} bytes held: ${error.message}`),
        );
      }, () => {});
    }
    return new PooledBuffer(this, this.#nextId++, buffer, capacity);
  }
}
