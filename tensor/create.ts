/** Making tensors: from host data, and filled on the device. */
import { type Backend, getBackend } from "./backend.ts";
import { type DType, dtypes, encode, type HostArray, hostArray, isDType, isFloat, roundTo } from "./dtype.ts";
import { DTypeError, ShapeError, show, ValueError } from "./errors.ts";
import { checkDType, type Op, run } from "./op.ts";
import { track } from "./scope.ts";
import { checkShape, type Shape, sizeOf, stridesOf } from "./shape.ts";
import { makeTensor, type NestedArray, setRange, setValues, type Tensor } from "./tensor.ts";

/** Host numbers that `tensor()` takes: nested arrays, or a typed array. */
export type HostValues =
  | NestedArray
  | HostArray
  | Float32Array
  | Float64Array
  | Int8Array
  | Int16Array
  | Int32Array
  | Uint8Array
  | Uint8ClampedArray
  | Uint16Array
  | Uint32Array;

/** Element type and, for a creator, the backend. */
export interface CreateOptions {
  /** Element type; f32 when not given. */
  readonly dtype?: DType;
  /** Where the tensor lives; the current backend when not given. */
  readonly backend?: Backend;
}

/** The dtype that host values have when none is named. */
function dtypeOf(values: HostValues): DType {
  if (Array.isArray(values)) return values.length === 0 ? "f32" : dtypeOf(values[0] as NestedArray);
  if (typeof values === "boolean") return "bool";
  if (typeof values === "number" || values instanceof Float32Array || values instanceof Float64Array) return "f32";
  return values instanceof Uint32Array ? "u32" : "i32";
}

/** The shape of nested arrays, which must be even. */
function shapeOf(values: NestedArray): number[] {
  if (!Array.isArray(values)) return [];
  if (values.length === 0) return [0];
  const inner = shapeOf(values[0]);
  values.forEach((value, i) => {
    const other = shapeOf(value);
    if (show(other) !== show(inner)) {
      throw new ShapeError("tensor", `rows differ in shape: ${show(inner)} at index 0, ${show(other)} at index ${i}`);
    }
  });
  return [values.length, ...inner];
}

const limits = { i32: [-(2 ** 31), 2 ** 31 - 1], u32: [0, 2 ** 32 - 1] } as const;

/** Host numbers as an array of the dtype; whole numbers in range where the dtype is one of integers. */
function fill(dtype: DType, values: ArrayLike<number | boolean>): HostArray {
  const out = hostArray(dtype, values.length);
  if (dtype === "i32" || dtype === "u32") {
    const [min, max] = limits[dtype];
    for (let i = 0; i < values.length; i++) {
      const value = Number(values[i]);
      if (!Number.isInteger(value) || value < min || value > max) {
        throw new ValueError("tensor", `${value} at position ${i} is no ${dtype}`);
      }
      out[i] = value;
    }
  } else if (dtype === "bool") {
    for (let i = 0; i < values.length; i++) out[i] = values[i] ? 1 : 0;
  } else {
    for (let i = 0; i < values.length; i++) out[i] = Number(values[i]);
    roundTo(dtype, out);
  }
  return out;
}

function checkedDType(op: string, dtype: DType): DType {
  if (!isDType(dtype)) throw new DTypeError(op, `"${dtype}" is no dtype: ${Object.keys(dtypes).join(" ")}`);
  return dtype;
}

function upload(op: string, data: HostArray, shape: Shape, dtype: DType, backend: Backend): Tensor {
  checkDType(op, backend, dtype);
  const storage = backend.upload(dtype, encode(dtype, data));
  const x = track(makeTensor(backend, storage, { shape, strides: stridesOf(shape), offset: 0 }, dtype, op));
  if ((dtype === "i32" || dtype === "u32") && data.length > 0) {
    let min = Infinity, max = -Infinity;
    for (const value of data) {
      if (value < min) min = value;
      if (value > max) max = value;
    }
    setRange(x, [min, max]);
    setValues(x, data);
  }
  return x;
}

/**
 * A tensor from host numbers.
 *
 * @param values a number, nested arrays, or a typed array in row-major order; booleans make a bool tensor
 * @param options.shape for flat values; by default the nesting, or one axis
 * @param options.dtype by default f32 for numbers, bool for booleans, i32 or u32 for integer arrays
 * @throws {ShapeError} when rows are uneven or the count does not fit `shape`
 * @throws {ValueError} when an integer dtype cannot hold a value
 *
 * @example
 * ```ts
 * import { tensor } from "@flashtape/flashtape";
 * const x = tensor([[1, 2], [3, 4]]);
 * const ids = tensor([3, 1, 2], { dtype: "i32" });
 * const y = tensor(new Float32Array(6), { shape: [2, 3] });
 * ```
 */
export function tensor(values: HostValues, options: CreateOptions & { readonly shape?: Shape } = {}): Tensor {
  const { shape: wanted, backend = getBackend() } = options;
  const dtype = checkedDType("tensor", options.dtype ?? dtypeOf(values));
  let natural: number[], flat: ArrayLike<number | boolean>;
  if (ArrayBuffer.isView(values)) {
    natural = [values.length];
    flat = values;
  } else {
    natural = shapeOf(values as NestedArray);
    flat = (Array.isArray(values) ? values.flat(Infinity) : [values]) as (number | boolean)[];
  }
  const shape = wanted === undefined ? natural : [...checkShape("tensor", wanted)];
  if (sizeOf(shape) !== flat.length) {
    throw new ShapeError("tensor", `${flat.length} values do not fill ${show(shape)} (${sizeOf(shape)} elements)`);
  }
  return upload("tensor", fill(dtype, flat), shape, dtype, backend);
}

/**
 * A tensor from little-endian bytes, as files hold them: bool is one byte, f16 and bf16 two.
 * @throws {ShapeError} when the byte count does not fit shape and dtype
 */
export function fromBytes(
  bytes: Uint8Array,
  { shape, dtype, backend = getBackend() }: {
    readonly shape: Shape;
    readonly dtype: DType;
    readonly backend?: Backend;
  },
): Tensor {
  checkedDType("fromBytes", dtype);
  const need = sizeOf(checkShape("fromBytes", shape)) * dtypes[dtype].bytes;
  if (bytes.byteLength !== need) {
    throw new ShapeError("fromBytes", `${show(shape)} of ${dtype} needs ${need} bytes, got ${bytes.byteLength}`);
  }
  checkDType("fromBytes", backend, dtype);
  const layout = { shape: [...shape], strides: stridesOf(shape), offset: 0 };
  return track(makeTensor(backend, backend.upload(dtype, bytes), layout, dtype, "fromBytes"));
}

/** Every element is `value`. */
export const fullOp: Op<{ shape: Shape; dtype: DType; value: number }> = {
  name: "full",
  infer: (_, { shape, dtype }) => ({ shape, dtype }),
  reference: (_, { value }, y) => {
    y.data.fill(value);
  },
};

/** y[i] = start + i · step. */
export const arangeOp: Op<{ length: number; start: number; step: number; dtype: DType }> = {
  name: "arange",
  infer: (_, { length, dtype }) => ({ shape: [length], dtype }),
  reference: (_, { start, step }, y) => {
    for (let i = 0; i < y.data.length; i++) y.data[i] = start + i * step;
  },
};

/** A tensor whose every element is `value`. */
export function full(shape: Shape, value: number | boolean, options: CreateOptions = {}): Tensor {
  const dtype = checkedDType("full", options.dtype ?? (typeof value === "boolean" ? "bool" : "f32"));
  const [rounded] = fill(dtype, [value]);
  const params = { shape: [...checkShape("full", shape)], dtype, value: rounded };
  const x = run(fullOp, [], params, options.backend);
  return isFloat(dtype) || dtype === "bool" ? x : setRange(x, [rounded, rounded]);
}

/** A tensor of zeros. */
export function zeros(shape: Shape, options: CreateOptions = {}): Tensor {
  return full(shape, 0, options);
}

/** A tensor of ones. */
export function ones(shape: Shape, options: CreateOptions = {}): Tensor {
  return full(shape, 1, options);
}

/**
 * `[start, start + step, …)` up to and without `stop`; with one argument from 0.
 * @returns one axis; i32 when every number is whole and no dtype is named, else f32
 */
export function arange(
  start: number,
  stop?: number,
  options: CreateOptions & { readonly step?: number } = {},
): Tensor {
  const { step = 1, backend } = options;
  const [from, to] = stop === undefined ? [0, start] : [start, stop];
  if (![from, to, step].every(Number.isFinite) || step === 0) {
    throw new ValueError("arange", `start, stop and step are finite and step is not 0: ${from}, ${to}, ${step}`);
  }
  const whole = [from, step].every(Number.isInteger);
  const dtype = checkedDType("arange", options.dtype ?? (whole ? "i32" : "f32"));
  if (dtype === "bool") throw new DTypeError("arange", "counts in numbers, not bool");
  const length = Math.max(0, Math.ceil((to - from) / step));
  if (!isFloat(dtype) && length > 0) fill(dtype, [from, step < 0 ? from : step, from + (length - 1) * step]);
  const x = run(arangeOp, [], { length, start: from, step, dtype }, backend);
  const ends = [from, from + (length - 1) * step].sort((a, b) => a - b);
  return isFloat(dtype) || length === 0 ? x : setRange(x, [ends[0], ends[1]]);
}
