/** What an op is, and the one way that a call takes: infer, run on the backend, tell the tape. */
import { type Backend, getBackend } from "./backend.ts";
import { type DType, type HostArray, hostArray } from "./dtype.ts";
import { DTypeError, ShapeError, show, UnsupportedError } from "./errors.ts";
import { isDense, type Layout, type Shape, sizeOf, stridesOf } from "./shape.ts";
import { track } from "./scope.ts";
import { consume, makeTensor, rangeOf, setRange, type Storage, storageOf, type Tensor } from "./tensor.ts";

/** What is known of a tensor before it is computed. */
export interface Spec {
  /** Axis lengths, outermost first. */
  readonly shape: Shape;
  /** Element type. */
  readonly dtype: DType;
}

/** Elements on the host, as references see them. f16 and bf16 are held as f32 values. */
export interface NdArray extends Spec, Layout {
  /** The elements that the layout looks into. */
  readonly data: HostArray;
}

/** What an operation means. Its kernel and its derivative stand under its name in their own tables. */
export interface Op<Params = Record<never, never>> {
  /** The name in every table, and in error messages. */
  readonly name: string;
  /** Shape and dtype of the result, or of each result; refuses what is not valid before anything runs. */
  infer(inputs: readonly Spec[], params: Params): Spec | readonly Spec[];
  /** The specification: readable loops, exact in f64. Outputs arrive dense and zeroed. */
  reference(inputs: readonly NdArray[], params: Params, ...outputs: NdArray[]): void;
  /** For ops that move nothing: how the result sees its input's storage, or null when a copy is needed. */
  view?(input: Layout, params: Params): Layout | null;
  /** For ops that write in place: output i takes over the storage of input `inPlace[i]`, and that handle is spent. */
  readonly inPlace?: readonly number[];
}

/** The parameters of an op. */
export type ParamsOf<O> = O extends Op<infer P> ? P : never;

/** Hears of every op that runs. Tapes are observers. */
export interface Observer {
  note<P>(op: Op<P>, inputs: readonly Tensor[], params: P, outputs: readonly Tensor[]): void;
  /** Whether a gradient by this value may be wanted: a loss can then make it along the way. */
  tracks?(x: Tensor): boolean;
}

const observers: Observer[] = [];

/** Runs `f` while an observer listens. */
export function observe<T>(observer: Observer, f: () => T): T {
  observers.push(observer);
  try {
    return f();
  } finally {
    observers.splice(observers.lastIndexOf(observer), 1);
  }
}

/** Runs `f` while one observer, or nobody, listens instead of those that do now. */
export function observeOnly<T>(only: readonly Observer[], f: () => T): T {
  const all = observers.splice(0, observers.length, ...only);
  try {
    return f();
  } finally {
    observers.splice(0, observers.length, ...all);
  }
}

/** The observers that listen now. */
export function listening(): readonly Observer[] {
  return observers;
}

/** Runs an op that has one result. */
export function run<P>(op: Op<P>, inputs: readonly Tensor[], params: P, backend?: Backend): Tensor {
  return runAll(op, inputs, params, backend)[0];
}

/**
 * Runs an op.
 * @param backend where to run an op without inputs; by default the current backend
 */
export function runAll<P>(op: Op<P>, inputs: readonly Tensor[], params: P, backend?: Backend): Tensor[] {
  const at = backendOf(op.name, inputs) ?? backend ?? getBackend();
  const inferred = op.infer(inputs, params);
  const specs = Array.isArray(inferred) ? inferred as readonly Spec[] : [inferred as Spec];
  for (const { dtype } of specs) checkDType(op.name, at, dtype);
  const layout = op.view?.(inputs[0], params);
  let outputs: Tensor[];
  if (layout) {
    const x = inputs[0];
    outputs = [makeTensor(at, storageOf(x, op.name), layout, x.dtype, op.name)];
    // A view that drops no element keeps what is known of the values.
    if (rangeOf(x) !== undefined && sizeOf(layout.shape) >= x.size) setRange(outputs[0], rangeOf(x));
  } else {
    const into = op.inPlace?.map((i) => takeOver(op.name, inputs, i));
    const storages = at.run(op, inputs, params, specs, into);
    outputs = specs.map((spec, i) =>
      makeTensor(at, storages[i], { shape: spec.shape, strides: stridesOf(spec.shape), offset: 0 }, spec.dtype, op.name)
    );
    for (const i of op.inPlace ?? []) consume(inputs[i], op.name);
  }
  for (const y of outputs) track(y);
  for (let i = 0; i < observers.length; i++) observers[i].note(op, inputs, params, outputs);
  return outputs;
}

/** The storage that an in-place op writes: the input's own when nobody else sees it, this call included, else a copy. */
function takeOver(op: string, inputs: readonly Tensor[], i: number): Storage {
  const x = inputs[i], storage = storageOf(x, op), seen = inputs.some((y, n) => y === x && n !== i);
  return storage.refs === 1 && !seen && x.offset === 0 && isDense(x) ? storage : x.backend.copy(x);
}

/**
 * The backend that the inputs share, or null without inputs.
 * @throws {UnsupportedError} when they do not share one
 */
export function backendOf(op: string, inputs: readonly Tensor[]): Backend | null {
  if (inputs.length === 0) return null;
  const { backend } = inputs[0];
  for (const x of inputs) {
    storageOf(x, op);
    if (x.backend !== backend) {
      throw new UnsupportedError(
        op,
        `tensors live on different backends: ${backend.name} and ${x.backend.name}; move one by tensor(await x.data(), …)`,
      );
    }
  }
  return backend;
}

/** Refuses a dtype that a backend does not hold. */
export function checkDType(op: string, backend: Backend, dtype: DType): void {
  if (backend.dtypes.includes(dtype)) return;
  throw new UnsupportedError(
    op,
    `${backend.name} has no ${dtype}, only ${backend.dtypes.join(" ")}: cast, or use cpu()`,
  );
}

/**
 * Refuses a dtype that an op cannot take.
 * @throws {DTypeError} naming what it takes
 */
export function expectDType(op: string, what: string, dtype: DType, allowed: readonly DType[]): void {
  if (allowed.includes(dtype)) return;
  throw new DTypeError(op, `${what} is ${dtype}, expected ${allowed.join(" or ")}`);
}

/** Refuses another rank. */
export function expectRank(op: string, what: string, shape: Shape, rank: number): void {
  if (shape.length !== rank) {
    throw new ShapeError(op, `${what} has ${shape.length} axes, expected ${rank}: ${show(shape)}`);
  }
}

/** Dense host elements of a spec, zeroed. */
export function ndarray({ shape, dtype }: Spec): NdArray {
  return { shape, dtype, strides: stridesOf(shape), offset: 0, data: hostArray(dtype, sizeOf(shape)) };
}

/** The same elements, dense and from offset 0; copies only when they are not. */
export function dense(x: NdArray): NdArray {
  const size = sizeOf(x.shape);
  if (isDense(x)) {
    if (x.offset === 0 && x.data.length === size) return x;
    return {
      ...x,
      strides: stridesOf(x.shape),
      offset: 0,
      data: x.data.subarray(x.offset, x.offset + size) as HostArray,
    };
  }
  const y = ndarray(x);
  let i = 0;
  forEachOffset(x, (at) => {
    y.data[i++] = x.data[at];
  });
  return y;
}

/** Calls `f` with the place of each element of a layout, in row-major order. */
export function forEachOffset({ shape, strides, offset }: Layout, f: (at: number) => void): void {
  if (sizeOf(shape) === 0) return;
  const rank = shape.length;
  if (rank === 0) return f(offset);
  const index = new Array<number>(rank).fill(0);
  const inner = shape[rank - 1], step = strides[rank - 1];
  for (let at = offset;;) {
    for (let i = 0; i < inner; i++) f(at + i * step);
    let axis = rank - 2;
    for (; axis >= 0; axis--) {
      at += strides[axis];
      if (++index[axis] < shape[axis]) break;
      at -= strides[axis] * shape[axis];
      index[axis] = 0;
    }
    if (axis < 0) return;
  }
}
