/** What a backend is, and which one creators use. */
import type { DType } from "./dtype.ts";
import type { Op, Spec } from "./op.ts";
import type { Layout } from "./shape.ts";
import type { Storage, Tensor } from "./tensor.ts";

/** What a device can do, as probed. */
export interface Capabilities {
  /** Whether kernels may multiply in f16. Storage in f16 needs no feature. */
  readonly f16: boolean;
  /**
   * Whether the device's own conversions to f16 round to nearest even, overflow to infinity and keep NaN, as WGSL does not
   * ask of them. Tried where there are matrix units, whose kernels leave rounding to them then; false elsewhere.
   */
  readonly roundsF16: boolean;
  /** Whether kernels may use subgroup operations. */
  readonly subgroups: boolean;
  /** Lanes of a subgroup; 0 without subgroups. */
  readonly subgroupSize: number;
  /** The matrix units' shapes and types; empty without them. */
  readonly subgroupMatrix: readonly { m: number; n: number; k: number; ab: string; acc: string }[];
  /** Whether GPU timestamps can be taken. */
  readonly timestamps: boolean;
  /** The largest tensor that one kernel can bind, in bytes. */
  readonly maxBinding: number;
  /** Workgroup memory, in bytes. */
  readonly maxWorkgroupMemory: number;
  /** Invocations in one workgroup. */
  readonly maxInvocations: number;
  /** Workgroups along one axis of a dispatch. */
  readonly maxWorkgroups: number;
}

/** The shapes of the matrix units that multiply f16 and sum in f32, as kernels use them. */
export function matrixUnits(
  { subgroupMatrix = [] }: Partial<Pick<Capabilities, "subgroupMatrix">>,
): { m: number; n: number; k: number }[] {
  return subgroupMatrix.filter(({ ab, acc }) => ab === "f16" && acc === "f32").map(({ m, n, k }) => ({ m, n, k }));
}

/** Bytes held on a backend. */
export interface MemoryInfo {
  /** Bytes that live tensors hold. */
  readonly current: number;
  /** The most that `current` has been since the start or `resetPeak()`. */
  readonly peak: number;
  /** Bytes kept for reuse. */
  readonly pooled: number;
}

/** One run of a kernel; on a backend without kernels, of an op. */
export interface Launch {
  /** The op that asked for it. */
  readonly op: string;
  /** The kernel's name, with its parameters. */
  readonly kernel: string;
  /** When it began, in milliseconds since the first. */
  readonly start: number;
  /** How long it took, in milliseconds. */
  readonly ms: number;
  /** The least that it has to move: inputs read once, outputs written once. */
  readonly bytes?: number;
  /** Floating-point operations, where the op has a count of them. */
  readonly flops?: number;
}

/** Notes every launch until it is stopped. */
export interface LaunchLog {
  /** Ends it and waits for what still runs. */
  stop(): Promise<readonly Launch[]>;
}

/** Takes down what ops would run, instead of running it. */
export interface Recorder {
  /** Storage that stands for one which every replay is given: as many bytes as the tensor's own. */
  standIn(x: Tensor): Storage;
  /** Runs `f` with this recorder in the device's place. */
  during<T>(f: () => T): T;
  /** Whether the storage was made while recording: it has no bytes. */
  made(storage: Storage): boolean;
  /** Whether an op wrote in place into a stand-in. */
  replaced(standIn: Storage): boolean;
  /** What another recording does otherwise, in words; null when both do the same. */
  difference(other: Recorder): string | null;
  /**
   * Makes ready to run it all again and again.
   * @param results storages made while recording that each replay makes anew
   */
  plan(results: readonly Storage[]): Recording;
  /** Lets go of what was recorded. */
  free(): void;
}

/** A kernel of a recording. */
export interface RecordedKernel {
  /** The op that asked for it, or `fused` for several elementwise ops in one. */
  readonly op: string;
  /** Its name, with its parameters. */
  readonly name: string;
  /** How often it runs in one replay. */
  readonly calls: number;
  /** Its shader. */
  readonly source: string;
}

/** What was recorded, ready to run. */
export interface Recording {
  /** How many dispatches one replay is. */
  readonly dispatches: number;
  /** The kernels of one replay, in the order of their first run. */
  readonly kernels: readonly RecordedKernel[];
  /** Bytes that it keeps for values between its dispatches. */
  readonly bytes: number;
  /**
   * Runs it.
   * @param given one storage for each stand-in, in the order of their making
   * @returns one new storage for each result
   */
  replay(given: readonly Storage[]): Storage[];
  /** Frees what it keeps. */
  free(): void;
}

/** Where tensors live and ops run. */
export interface Backend {
  /** `cpu` or `webgpu`. */
  readonly name: string;
  /** The device in words. */
  readonly description: string;
  /** What the device can do. */
  readonly capabilities: Capabilities;
  /** The element types that tensors can have here. */
  readonly dtypes: readonly DType[];
  /** Storage that holds the little-endian bytes of a dtype. */
  upload(dtype: DType, bytes: Uint8Array): Storage;
  /** Storage for so many elements, undefined until {@linkcode write} has filled them. */
  allocate(dtype: DType, size: number): Storage;
  /**
   * Fills a part of what `allocate` made: large tensors come from files in pieces.
   * @param at the element that the bytes begin with; its place in the storage is a multiple of 4 bytes
   * @param bytes little-endian, as for `upload`; they may be reused as soon as the call returns
   */
  write(storage: Storage, dtype: DType, at: number, bytes: Uint8Array): void;
  /** Dense storage with the elements that a handle sees. */
  copy(x: Tensor): Storage;
  /** Runs an op; `into` holds, for an op that works in place, the storage of each output. */
  run<P>(
    op: Op<P>,
    inputs: readonly Tensor[],
    params: P,
    outputs: readonly Spec[],
    into?: readonly Storage[],
  ): Storage[];
  /** The elements that a layout sees, dense, as little-endian bytes. */
  read(storage: Storage, layout: Layout, dtype: DType): Promise<Uint8Array>;
  /** The same without waiting for a promise. */
  readSync(storage: Storage, layout: Layout, dtype: DType): Uint8Array;
  /** Sends what is queued and waits until the device has done it. */
  synchronize(): Promise<void>;
  /** Bytes held now. */
  memory(): MemoryInfo;
  /** Starts the peak anew from what is held now. */
  resetPeak(): void;
  /**
   * Begins to note what runs and for how long.
   * @throws {UnsupportedError} when the device has no clock
   */
  profile?(): LaunchLog;
  /** Begins a recording; a backend without it runs what is compiled as it comes. */
  record?(): Recorder;
  /** Frees the device; tensors on it are gone. */
  dispose(): void;
}

let current: Backend | null = null;
let fallback: (() => Backend) | null = null;

/** Makes a backend the one that creators use. */
export function setBackend(backend: Backend): void {
  current = backend;
}

/** The backend that creators use: the last one set, else the CPU. */
export function getBackend(): Backend {
  if (current === null) {
    if (fallback === null) throw new Error("no backend: import tensor/cpu.ts or call setBackend()");
    current = fallback();
  }
  return current;
}

/** Names the backend that stands in until one is set; called once by the CPU backend. */
export function setFallback(make: () => Backend): void {
  fallback = make;
}

/** Bytes that the default backend holds: `{ current, peak, pooled }`. */
export function memory(): MemoryInfo {
  return getBackend().memory();
}

/** Starts the default backend's peak anew from what is held now. */
export function resetPeak(): void {
  getBackend().resetPeak();
}
