/** The immutable handle: shape, dtype, the backend that owns the bytes, and a view of them. */
import type { Backend } from "./backend.ts";
import { decode, type DType, type HostArray } from "./dtype.ts";
import { DisposedError, ShapeError, show } from "./errors.ts";
import { type Layout, type Shape, sizeOf } from "./shape.ts";

/** Bytes on a backend, alive while a handle sees them. Each backend has its own kind. */
export interface Storage {
  /** Handles and saved values that see these bytes. */
  refs: number;
  /** Gives the bytes back to the backend. */
  free(): void;
}

/** Nested arrays of numbers, as `array()` gives them and `tensor()` takes them. */
export type NestedArray = number | boolean | readonly NestedArray[];

let nextId = 1;

/** Storage whose handles were collected without `dispose()` is freed here: the net, not the rule. */
const net = new FinalizationRegistry<Storage>((storage) => {
  if (--storage.refs === 0) storage.free();
});

let create: (backend: Backend, storage: Storage, layout: Layout, dtype: DType, origin: string, id: number) => Tensor;
let open: (x: Tensor, op: string) => Storage;
let spend: (x: Tensor, by: string) => void;

/**
 * An immutable array of numbers on a backend.
 *
 * Functions such as {@linkcode tensor}, {@linkcode add} or {@linkcode matmul} make tensors; there is no public
 * constructor. Reading is explicit (`data`, `array`, `item`), and so is the end of a lifetime (`using`, `dispose`,
 * `scope`); a finaliser catches what was forgotten.
 */
export class Tensor implements Layout {
  /** Axis lengths, outermost first. */
  readonly shape: Shape;
  /** Element type. */
  readonly dtype: DType;
  /** The backend that owns the bytes. */
  readonly backend: Backend;
  /** Elements to step over along each axis; 0 where a value repeats. */
  readonly strides: readonly number[];
  /** The first element's place in the storage, in elements. */
  readonly offset: number;
  /** The op that made this tensor. */
  readonly origin: string;
  /** The value's identity: handles of the same value share it. */
  readonly id: number;
  #storage: Storage | null;
  #spentBy: string | null = null;

  private constructor(backend: Backend, storage: Storage, layout: Layout, dtype: DType, origin: string, id: number) {
    this.backend = backend;
    this.shape = layout.shape;
    this.strides = layout.strides;
    this.offset = layout.offset;
    this.dtype = dtype;
    this.origin = origin;
    this.id = id;
    this.#storage = storage;
    storage.refs++;
  }

  static {
    create = (backend, storage, layout, dtype, origin, id) => new Tensor(backend, storage, layout, dtype, origin, id);
    open = (x, op) => {
      if (x.#storage === null) {
        const what = `tensor ${x.dtype} ${show(x.shape)} made by ${x.origin}`;
        throw new DisposedError(
          op,
          x.#spentBy === null
            ? `${what} was disposed`
            : `${what} was consumed by ${x.#spentBy}: use the value that call returned`,
        );
      }
      return x.#storage;
    };
    spend = (x, by) => {
      x.dispose();
      x.#spentBy = by;
    };
  }

  /** The number of axes. */
  get rank(): number {
    return this.shape.length;
  }

  /** The number of elements. */
  get size(): number {
    return sizeOf(this.shape);
  }

  /** Whether the handle was disposed or consumed. */
  get disposed(): boolean {
    return this.#storage === null;
  }

  /**
   * The elements in row-major order: f16 and bf16 as f32, bool as 0 and 1.
   * @throws {DisposedError} when the handle was disposed or consumed
   */
  async data(): Promise<HostArray> {
    return decode(this.dtype, await this.bytes());
  }

  /**
   * The elements now, where the runtime can wait for a device (Deno, and the CPU backend anywhere).
   * @throws {UnsupportedError} where it cannot: use `await data()` there
   */
  dataSync(): HostArray {
    return decode(this.dtype, this.backend.readSync(open(this, "dataSync"), this, this.dtype));
  }

  /** The elements as little-endian bytes of the dtype, bool as one byte each. */
  bytes(): Promise<Uint8Array> {
    return Promise.resolve(this.backend.read(open(this, "data"), this, this.dtype));
  }

  /** The elements as nested arrays; a scalar as a number. */
  async array(): Promise<NestedArray> {
    return nest(await this.data(), this.shape);
  }

  /**
   * The one element.
   * @throws {ShapeError} when there is not exactly one
   */
  async item(): Promise<number> {
    if (this.size !== 1) throw new ShapeError("item", `needs one element: ${show(this.shape)} has ${this.size}`);
    return (await this.data())[0];
  }

  /** Ends this handle's lifetime; the bytes go when no handle sees them any more. Disposing twice is harmless. */
  dispose(): void {
    const storage = this.#storage;
    if (storage === null) return;
    this.#storage = null;
    net.unregister(this);
    if (--storage.refs === 0) storage.free();
  }

  /** `using x = …` disposes at the end of the block. */
  [Symbol.dispose](): void {
    this.dispose();
  }

  /** `Tensor f32 [2,3] on cpu`. */
  toString(): string {
    return `Tensor ${this.dtype} ${show(this.shape)} on ${this.backend.name}${this.disposed ? " (disposed)" : ""}`;
  }

  /** What `console.log` prints in Deno and Node. */
  [Symbol.for("Deno.customInspect")](): string {
    return this.toString();
  }

  /** What `console.log` prints in Node. */
  [Symbol.for("nodejs.util.inspect.custom")](): string {
    return this.toString();
  }
}

/** A new value: a handle on storage. */
export function makeTensor(backend: Backend, storage: Storage, layout: Layout, dtype: DType, origin: string): Tensor {
  return create(backend, storage, layout, dtype, origin, nextId++);
}

/** Lets the finaliser free a handle that nobody disposes. Handles that a scope or a tape will free need no such net. */
export function guard(x: Tensor): void {
  net.register(x, open(x, x.origin), x);
}

/** A second handle of the same value, with a lifetime of its own, which whoever asks for it ends. */
export function alias(x: Tensor): Tensor {
  return create(x.backend, open(x, x.origin), x, x.dtype, x.origin, x.id);
}

/** The same bytes as a value of their own, which no tape knows. */
export function detach(x: Tensor): Tensor {
  return create(x.backend, open(x, x.origin), x, x.dtype, x.origin, nextId++);
}

/**
 * The storage behind a live handle.
 * @throws {DisposedError} in the name of `op`
 */
export function storageOf(x: Tensor, op: string): Storage {
  return open(x, op);
}

/** Ends a handle because a call took its value over; touching it afterwards names that call. */
export function consume(x: Tensor, by: string): void {
  spend(x, by);
}

/** Smallest and largest element of an integer tensor made from host data, where known: what index checks go by. */
const ranges = new WeakMap<Tensor, readonly [min: number, max: number]>();

/** The known range of an integer tensor's values, if any. */
export function rangeOf(x: Tensor): readonly [min: number, max: number] | undefined {
  return ranges.get(x);
}

/** Notes the range of an integer tensor's values. */
export function setRange(x: Tensor, range: readonly [min: number, max: number] | undefined): Tensor {
  if (range !== undefined) ranges.set(x, range);
  return x;
}

/** Elements of small integer tensors made from host data: what checks of lengths and tables go by. */
const values = new WeakMap<Tensor, HostArray>();

/** The elements of an integer tensor, where the host knows them without asking a device. */
export function valuesOf(x: Tensor): HostArray | undefined {
  return values.get(x) ?? (x.backend.name === "cpu" ? x.dataSync() : undefined);
}

/** Notes the elements of an integer tensor; large ones are not kept. */
export function setValues(x: Tensor, data: HostArray): void {
  if (data.length <= 16384) values.set(x, data);
}

function nest(data: HostArray, shape: Shape): NestedArray {
  if (shape.length === 0) return data[0];
  const [length, ...rest] = shape;
  const step = sizeOf(rest);
  return Array.from(
    { length },
    (_, i) => rest.length === 0 ? data[i] : nest(data.subarray(i * step, (i + 1) * step) as HostArray, rest),
  );
}
