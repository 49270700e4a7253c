/** Element types: their bytes, their host arrays, and how two of them meet. */
import { DTypeError } from "./errors.ts";

/** An element type. f16 and bf16 are storage, arithmetic accumulates in f32; f64 exists on the CPU backend alone. */
export type DType = "f64" | "f32" | "f16" | "bf16" | "i32" | "u32" | "bool";

/** What `data()` gives: f16 and bf16 as f32, bool as 0 and 1. */
export type HostArray =
  | Float64Array<ArrayBuffer>
  | Float32Array<ArrayBuffer>
  | Int32Array<ArrayBuffer>
  | Uint32Array<ArrayBuffer>
  | Uint8Array<ArrayBuffer>;

interface DTypeInfo {
  /** Bytes an element takes in files and in `bytes()`. */
  readonly bytes: number;
  readonly kind: "float" | "int" | "bool";
  /** The distance from 1 to the next number; 0 for exact types. */
  readonly epsilon: number;
  readonly array: new (length: number) => HostArray;
}

/** Every element type, once. */
export const dtypes: Readonly<Record<DType, DTypeInfo>> = {
  f64: { bytes: 8, kind: "float", epsilon: 2 ** -52, array: Float64Array },
  f32: { bytes: 4, kind: "float", epsilon: 2 ** -23, array: Float32Array },
  f16: { bytes: 2, kind: "float", epsilon: 2 ** -10, array: Float32Array },
  bf16: { bytes: 2, kind: "float", epsilon: 2 ** -7, array: Float32Array },
  i32: { bytes: 4, kind: "int", epsilon: 0, array: Int32Array },
  u32: { bytes: 4, kind: "int", epsilon: 0, array: Uint32Array },
  bool: { bytes: 1, kind: "bool", epsilon: 0, array: Uint8Array },
};

/** Whether a value names an element type. */
export function isDType(value: unknown): value is DType {
  return typeof value === "string" && Object.hasOwn(dtypes, value);
}

/** Whether the type holds fractions. */
export function isFloat(dtype: DType): boolean {
  return dtypes[dtype].kind === "float";
}

/** An empty host array for elements of a type. */
export function hostArray(dtype: DType, length: number): HostArray {
  return new dtypes[dtype].array(length);
}

/**
 * The type in which two types meet: bool < i32, u32 < f16, bf16 < f32 < f64; f16 with bf16 gives f32.
 * @throws {DTypeError} for i32 with u32, which share no integer type
 */
export function promote(op: string, a: DType, b: DType): DType {
  if (a === b) return a;
  const kinds = { bool: 0, int: 1, float: 2 };
  const ka = kinds[dtypes[a].kind], kb = kinds[dtypes[b].kind];
  if (ka !== kb) return ka > kb ? a : b;
  if (ka === 1) throw new DTypeError(op, `${a} and ${b} have no common integer type: cast one of them`);
  const wide = dtypes[a].bytes > dtypes[b].bytes ? a : b;
  return dtypes[a].bytes === dtypes[b].bytes ? "f32" : wide;
}

const scratch = new Float32Array(1), scratchBits = new Uint32Array(scratch.buffer);

/** The bits of the bf16 nearest to `x`, ties to even; NaN stays NaN. */
export function bf16Bits(x: number): number {
  scratch[0] = x;
  const bits = scratchBits[0];
  if ((bits & 0x7fffffff) > 0x7f800000) return (bits >>> 16) | 0x40;
  return ((bits + 0x7fff + ((bits >>> 16) & 1)) >>> 16) & 0xffff;
}

/** The bits of the f16 nearest to `x`, ties to even. */
export function f16Bits(x: number): number {
  scratch[0] = x;
  const bits = scratchBits[0];
  const sign = (bits >>> 16) & 0x8000, magnitude = bits & 0x7fffffff;
  if (magnitude > 0x7f800000) return sign | 0x7e00;
  if (magnitude >= 0x477ff000) return sign | 0x7c00; // rounds to 65536 or more
  if (magnitude < 0x38800000) { // below 2^-14: a multiple of 2^-24
    const scaled = Math.abs(scratch[0]) * 2 ** 24;
    const floor = Math.floor(scaled), rest = scaled - floor;
    return sign | (rest > 0.5 || (rest === 0.5 && (floor & 1)) ? floor + 1 : floor);
  }
  return sign | ((magnitude - 0x38000000 + 0xfff + ((magnitude >>> 13) & 1)) >>> 13);
}

/** The number that f16 bits stand for. */
export function f16Value(bits: number): number {
  const sign = bits & 0x8000 ? -1 : 1, exponent = (bits >>> 10) & 31, fraction = bits & 1023;
  if (exponent === 31) return fraction ? NaN : sign * Infinity;
  return sign * (exponent === 0 ? fraction * 2 ** -24 : (1 + fraction / 1024) * 2 ** (exponent - 15));
}

/** The number that bf16 bits stand for. */
export function bf16Value(bits: number): number {
  scratchBits[0] = bits << 16;
  return scratch[0];
}

/** Rounds every element to a 16-bit type, in place. Other types are left as they are. */
export function roundTo(dtype: DType, data: HostArray): void {
  if (dtype === "f16") { for (let i = 0; i < data.length; i++) data[i] = f16Value(f16Bits(data[i])); }
  if (dtype === "bf16") { for (let i = 0; i < data.length; i++) data[i] = bf16Value(bf16Bits(data[i])); }
}

/** Host values as little-endian bytes of a type, as files hold them. */
export function encode(dtype: DType, data: HostArray): Uint8Array<ArrayBuffer> {
  if (dtype !== "f16" && dtype !== "bf16") return new Uint8Array(data.buffer, data.byteOffset, data.byteLength);
  const bits = dtype === "f16" ? f16Bits : bf16Bits;
  const out = new Uint16Array(data.length);
  for (let i = 0; i < data.length; i++) out[i] = bits(data[i]);
  return new Uint8Array(out.buffer);
}

/** Little-endian bytes of a type as host values. The result owns its memory. */
export function decode(dtype: DType, bytes: Uint8Array): HostArray {
  const length = bytes.byteLength / dtypes[dtype].bytes;
  const out = hostArray(dtype, length);
  if (dtype !== "f16" && dtype !== "bf16") {
    new Uint8Array(out.buffer).set(bytes);
    return out;
  }
  const value = dtype === "f16" ? f16Value : bf16Value;
  for (let i = 0; i < length; i++) out[i] = value(bytes[2 * i] | (bytes[2 * i + 1] << 8));
  return out;
}
