/** The WebGPU backend: tensors in pooled buffers, ops as batched dispatches. */
import type { Backend, Capabilities, LaunchLog, MemoryInfo, Recorder } from "../tensor/backend.ts";
import type { DType } from "../tensor/dtype.ts";
import { DeviceError, DeviceLostError, UnsupportedError, ValueError } from "../tensor/errors.ts";
import type { Op, Spec } from "../tensor/op.ts";
import { isDense, type Layout, type Shape, sizeOf, stridesOf } from "../tensor/shape.ts";
import { type Storage, storageOf, type Tensor } from "../tensor/tensor.ts";
import { definedLowering } from "./defined.ts";
import { type Device, open } from "./device.ts";
import type { Kernel } from "./kernel.ts";
import { copy, type Lower, type Lowering, type View } from "./lowering.ts";
import { loweringOf } from "./lowerings.ts";
import { BufferPool, PooledBuffer } from "./memory.ts";
import { Pipelines } from "./pipelines.ts";
import { type Cost, labelOf, Profiler } from "./profiler.ts";
import { DispatchQueue } from "./queue.ts";
import { Readback } from "./readback.ts";
import { DeviceRecorder, Tracing } from "./recorder.ts";
import { Replay } from "./replay.ts";
import { kindOf, Scribe, type Script, Scripts } from "./script.ts";
import { storageBytes } from "./storage.ts";

/** How to open the WebGPU backend. */
export interface WebGpuOptions {
  /** Where the adapter comes from; the runtime's own WebGPU when not given. */
  readonly gpu?: GPU;
  /** Whether to use Deno's shortcut for reading results, where it works. */
  readonly fastReadback?: boolean;
}

/** What a call needs of its backend. */
interface Parts {
  readonly capabilities: Capabilities;
  readonly pool: Pick<BufferPool, "take">;
  readonly queue: Pick<DispatchQueue, "dispatch">;
  readonly pipelines: Pipelines;
  /** While a profile is taken. */
  readonly profiler: Pick<Tracing, "launch"> | Pick<Profiler, "launch"> | null;
}

/** One call of an op on this device. */
class DeviceCall<P> implements Lowering<P> {
  readonly capabilities: Capabilities;
  readonly #parts: Parts;
  readonly #op: string;
  readonly #scribe: Scribe | null;
  #temporaries: PooledBuffer[] | null = null;

  /** @param scribe writes down what is dispatched */
  constructor(
    parts: Parts,
    op: string,
    readonly inputs: readonly View[],
    readonly outputs: readonly View[],
    readonly params: P,
    scribe: Scribe | null = null,
  ) {
    this.#parts = parts;
    this.#op = op;
    this.#scribe = scribe;
    this.capabilities = parts.capabilities;
  }

  dispatch(
    kernel: Kernel,
    views: readonly View[],
    uniforms: Readonly<Record<string, number>>,
    workgroups: readonly [number, number, number],
    cost?: Cost,
  ): void {
    if (workgroups[0] === 0 || workgroups[1] === 0 || workgroups[2] === 0) return;
    const { queue, pipelines, profiler } = this.#parts;
    const timestamps = profiler?.launch(labelOf(this.#op, kernel, this.inputs, views, cost), cost);
    const buffers = views.map((v) => v.buffer);
    queue.dispatch(pipelines, kernel, buffers, uniforms, workgroups, timestamps);
    this.#scribe?.dispatch(pipelines, kernel, buffers, uniforms, workgroups);
  }

  temporary(shape: Shape, dtype: DType): View {
    const buffer = this.#parts.pool.take(sizeOf(shape) * storageBytes(dtype), this.#op);
    (this.#temporaries ??= []).push(buffer);
    this.#scribe?.temporary(buffer);
    return { buffer, shape, strides: stridesOf(shape), offset: 0, dtype };
  }

  dense(view: View, align = 4): View {
    if (isDense(view) && view.offset % align === 0) return view;
    const whole = this.temporary(view.shape, view.dtype);
    if (sizeOf(view.shape) > 0) copy(this, view, whole);
    return whole;
  }

  /** Frees the temporaries. */
  end(): void {
    for (const buffer of this.#temporaries ?? []) buffer.free();
  }
}

class WebGpuBackend implements Backend {
  readonly name = "webgpu";
  readonly description: string;
  readonly capabilities: Capabilities;
  readonly dtypes: readonly DType[] = ["f32", "f16", "bf16", "i32", "u32", "bool"];
  readonly #device: Device;
  readonly #pool: BufferPool;
  readonly #queue: DispatchQueue;
  readonly #pipelines: Pipelines;
  readonly #readback: Readback;
  readonly #scripts = new Scripts();
  #parts: Parts;
  #profiler: Profiler | null = null;
  /** While a call is recorded. */
  #tracing: Tracing | null = null;
  #failure: Error | null = null;
  #closed = false;

  constructor(device: Device) {
    this.#device = device;
    this.description = device.description;
    this.capabilities = device.capabilities;
    const fail = (error: Error) => {
      this.#failure ??= error;
    };
    this.#queue = new DispatchQueue(device.device);
    this.#pipelines = new Pipelines(device, this.#queue.uniforms, fail);
    const { maxBinding } = device.capabilities;
    this.#pool = new BufferPool(device.device, maxBinding, (buffer) => {
      if (buffer.usedIn === this.#queue.batch) this.#queue.flush(); // what waits must not use a destroyed buffer
      this.#pipelines.forget(buffer.id);
    }, fail);
    this.#readback = new Readback(device.device, this.#queue);
    this.#parts = this.#assemble();
    device.device.addEventListener("uncapturederror", (event) => {
      event.preventDefault();
      fail(new DeviceError("webgpu", (event as GPUUncapturedErrorEvent).error.message));
    });
    device.device.lost.then(({ reason, message }) => {
      if (!this.#closed) {
        fail(new DeviceLostError("webgpu", `the device was lost (${reason || "unknown"}): ${message}`));
      }
    });
  }

  /** Finds out what only a running device tells. */
  async start(fastReadback: boolean): Promise<this> {
    if (fastReadback) await this.#readback.probe();
    return this;
  }

  upload(dtype: DType, bytes: Uint8Array): Storage {
    this.#check("upload");
    const words = wordsOf(dtype, bytes);
    const buffer = this.#pool.take(words.byteLength, "upload");
    if (words.byteLength > 0) this.#queue.write(buffer, padded(words));
    this.#tracing?.upload(buffer, words);
    return buffer;
  }

  allocate(dtype: DType, size: number): Storage {
    this.#check("upload");
    this.#refuseRecording("upload");
    return this.#pool.take(size * storageBytes(dtype), "upload");
  }

  write(storage: Storage, dtype: DType, at: number, bytes: Uint8Array): void {
    this.#check("upload");
    this.#refuseRecording("upload");
    const words = padded(wordsOf(dtype, bytes));
    if (words.byteLength > 0) this.#queue.write(storage as PooledBuffer, words, at * storageBytes(dtype));
  }

  copy(x: Tensor): Storage {
    const buffer = this.#parts.pool.take(x.size * storageBytes(x.dtype), "copy");
    if (x.size > 0) {
      const to = { shape: x.shape, strides: stridesOf(x.shape), offset: 0, dtype: x.dtype, buffer };
      copy(new DeviceCall(this.#parts, "copy", [], [to], {}), this.#view(x, "copy"), to);
    }
    return buffer;
  }

  run<P>(
    op: Op<P>,
    inputs: readonly Tensor[],
    params: P,
    outputs: readonly Spec[],
    into: readonly Storage[] = [],
  ): Storage[] {
    this.#check(op.name);
    const lower = loweringOf(op);
    if (lower === undefined) throw new UnsupportedError(op.name, "has no kernel: give it one, or use cpu()");
    const { pool, profiler } = this.#parts;
    const given = inputs.map((x) => this.#bufferOf(x, op.name));
    const made = outputs.map(({ shape, dtype }, i) =>
      into[i] as PooledBuffer | undefined ?? pool.take(sizeOf(shape) * storageBytes(dtype), op.name)
    );
    if (outputs.every(({ shape }) => sizeOf(shape) === 0)) return made;
    const buffers = [...given, ...made];
    // Where dispatches are told apart, by a profile or a recording, and where a lowering is not ours, all is planned anew.
    const kind = profiler === null && definedLowering(op) === undefined
      ? kindOf(op.name, inputs, params, outputs, buffers)
      : null;
    const script = kind === null ? undefined : this.#scripts.find(kind);
    try {
      if (script !== undefined) this.#follow(script, buffers, op.name);
      else this.#plan(lower, op.name, inputs, params, outputs, buffers, kind);
    } catch (error) {
      made.forEach((buffer, i) => into[i] === undefined && buffer.free());
      throw error;
    }
    return made;
  }

  async read(storage: Storage, layout: Layout, dtype: DType): Promise<Uint8Array> {
    const part = this.#part(storage, layout, dtype);
    if (part === null) return new Uint8Array(0);
    const words = await this.#waiting("data", this.#readback.read(part.buffer.buffer, part.start, part.length));
    return this.#finish(words, part, dtype);
  }

  readSync(storage: Storage, layout: Layout, dtype: DType): Uint8Array {
    const part = this.#part(storage, layout, dtype);
    if (part === null) return new Uint8Array(0);
    return this.#finish(this.#readback.readSync(part.buffer.buffer, part.start, part.length), part, dtype);
  }

  async synchronize(): Promise<void> {
    this.#check("synchronize");
    this.#refuseRecording("synchronize");
    this.#queue.flush();
    if (this.#readback.immediate) this.#readback.readSync(this.#queue.uniforms, 0, 4);
    else await this.#waiting("synchronize", this.#device.device.queue.onSubmittedWorkDone());
    this.#check("synchronize");
  }

  memory(): MemoryInfo {
    return this.#pool.memory();
  }

  resetPeak(): void {
    this.#pool.resetPeak();
  }

  profile(): LaunchLog {
    this.#check("profile");
    if (!this.capabilities.timestamps) throw new UnsupportedError("profile", "this device has no timestamps");
    if (this.#profiler !== null) throw new ValueError("profile", "a profile is running: they do not nest");
    const profiler = new Profiler(this.#device.device);
    this.#profiler = profiler;
    this.#parts = this.#assemble();
    return {
      stop: () => {
        this.#profiler = null;
        this.#parts = this.#assemble();
        this.#queue.flush();
        return profiler.finish((buffer, offset, bytes) => this.#readback.read(buffer, offset, bytes));
      },
    };
  }

  record(): Recorder {
    this.#check("compile");
    const tracing = new Tracing(this.#queue.uniforms);
    const standIn = (on: Tracing | null) => () => {
      this.#tracing = on;
      this.#parts = this.#assemble();
    };
    const by = { enter: standIn(tracing), leave: standIn(null) };
    return new DeviceRecorder(tracing, by, (results) => {
      const parts = {
        device: this.#device.device,
        pool: this.#pool,
        queue: this.#queue,
        pipelines: this.#pipelines,
        maxWorkgroups: this.capabilities.maxWorkgroups,
      };
      return new Replay(parts, tracing, results, () => this.#profiler, () => this.#check("compile"));
    });
  }

  dispose(): void {
    this.#closed = true;
    this.#queue.flush();
    this.#pool.close();
    this.#device.device.destroy();
  }

  /** What calls work with now. */
  #assemble(): Parts {
    const parts = { capabilities: this.capabilities, pipelines: this.#pipelines };
    const tracing = this.#tracing;
    return tracing === null
      ? { ...parts, pool: this.#pool, queue: this.#queue, profiler: this.#profiler }
      : { ...parts, pool: tracing, queue: tracing, profiler: tracing };
  }

  #refuseRecording(op: string): void {
    if (this.#tracing === null) return;
    throw new UnsupportedError(op, "a compiled function runs later than it is recorded: return tensors and read those");
  }

  /** Waits for the device. Where that fails because the device is gone, the error says so. */
  async #waiting<T>(op: string, wait: Promise<T>): Promise<T> {
    try {
      return await wait;
    } catch (cause) {
      // The loss is told by a promise of its own, which may come a moment later.
      await Promise.race([this.#device.device.lost, new Promise((done) => setTimeout(done, 100))]);
      this.#check(op);
      throw new DeviceError(op, cause instanceof Error ? cause.message : String(cause), { cause });
    }
  }

  /** Errors that the device reported since the last call are thrown by this one. */
  #check(op: string): void {
    if (this.#closed) throw new DeviceLostError(op, "the backend was disposed");
    const failure = this.#failure;
    if (failure === null) return;
    if (!(failure instanceof DeviceLostError)) this.#failure = null;
    throw failure;
  }

  /** Plans and dispatches a call, and keeps what it dispatched for calls of its kind, where it has one. */
  #plan<P>(
    lower: Lower<P>,
    op: string,
    inputs: readonly Tensor[],
    params: P,
    outputs: readonly Spec[],
    buffers: readonly PooledBuffer[],
    kind: string | null,
  ): void {
    const views = inputs.map((x) => this.#view(x, op));
    const results = outputs.map(({ shape, dtype }, i) => {
      return { buffer: buffers[inputs.length + i], shape, strides: stridesOf(shape), offset: 0, dtype };
    });
    const scribe = kind === null ? null : new Scribe(buffers);
    const call = new DeviceCall(this.#parts, op, views, results, params, scribe);
    try {
      lower(call);
    } finally {
      call.end();
    }
    if (scribe !== null) this.#scripts.keep(kind!, scribe);
  }

  /** Dispatches what an earlier call of the kind did. */
  #follow({ temporaries, steps }: Script, buffers: PooledBuffer[], op: string): void {
    const first = buffers.length;
    try {
      for (const bytes of temporaries) buffers.push(this.#pool.take(bytes, op));
      for (const { pipeline, operands, uniforms, workgroups } of steps) {
        this.#queue.send(this.#pipelines, pipeline, operands.map((i) => buffers[i]), uniforms, workgroups);
      }
    } finally {
      for (let i = first; i < buffers.length; i++) buffers[i].free();
    }
  }

  #bufferOf(x: Tensor, op: string): PooledBuffer {
    const storage = storageOf(x, op);
    if (!(storage instanceof PooledBuffer)) throw new UnsupportedError(op, `${x} is not on this device`);
    return storage;
  }

  #view(x: Tensor, op: string): View {
    return { buffer: this.#bufferOf(x, op), shape: x.shape, strides: x.strides, offset: x.offset, dtype: x.dtype };
  }

  /** Where in which buffer the elements of a layout lie dense, in whole words; null for no elements. */
  #part(storage: Storage, layout: Layout, dtype: DType): Part | null {
    this.#check("data");
    this.#refuseRecording("data");
    const size = sizeOf(layout.shape);
    if (size === 0) return null;
    const width = storageBytes(dtype);
    const from: View = { ...pick(layout), buffer: storage as PooledBuffer, dtype };
    const call = new DeviceCall(this.#parts, "data", [from], [], {});
    const whole = call.dense(from, 1);
    call.end(); // a copy is queued; later ops that reuse its buffer are queued behind the read
    const start = Math.floor(whole.offset * width / 4) * 4;
    const end = Math.ceil((whole.offset + size) * width / 4) * 4;
    return {
      buffer: whole.buffer,
      start,
      length: end - start,
      skip: whole.offset * width - start,
      bytes: size * width,
    };
  }

  #finish(words: Uint8Array<ArrayBuffer>, { skip, bytes }: Part, dtype: DType): Uint8Array {
    this.#check("data");
    const exact = words.subarray(skip, skip + bytes);
    if (dtype !== "bool") return exact;
    return Uint8Array.from(new Uint32Array(exact.buffer, exact.byteOffset, bytes / 4), (x) => x === 0 ? 0 : 1);
  }
}

interface Part {
  readonly buffer: PooledBuffer;
  readonly start: number;
  readonly length: number;
  readonly skip: number;
  readonly bytes: number;
}

function pick({ shape, strides, offset }: Layout): Layout {
  return { shape, strides, offset };
}

/** Bytes as they lie in buffers: bool takes a word. */
function wordsOf(dtype: DType, bytes: Uint8Array): Uint8Array {
  return dtype === "bool" ? new Uint8Array(Uint32Array.from(bytes).buffer) : bytes;
}

/** Host writes go in whole words. */
function padded(bytes: Uint8Array): Uint8Array<ArrayBuffer> {
  const length = Math.ceil(bytes.byteLength / 4) * 4;
  if (length === bytes.byteLength) return bytes as Uint8Array<ArrayBuffer>;
  const out = new Uint8Array(length);
  out.set(bytes);
  return out;
}

/**
 * The WebGPU backend on the fastest adapter. f64 is refused here.
 * @param opening the device, where it is on its way already
 * @throws {UnsupportedError} when there is no WebGPU or no adapter
 */
export async function webgpu(
  { gpu, fastReadback = true }: WebGpuOptions = {},
  opening: Promise<Device> = open(gpu),
): Promise<Backend> {
  return await new WebGpuBackend(await opening).start(fastReadback);
}
