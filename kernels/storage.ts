/** How dtypes lie in storage buffers: f16 and bf16 two to a u32, bool one to a u32; and the WGSL that reads and writes them. */
import type { DType } from "../tensor/dtype.ts";

/** Bytes that an element takes in a GPU buffer. */
export function storageBytes(dtype: DType): number {
  return isPacked(dtype) ? 2 : dtype === "f64" ? 8 : 4;
}

/** Whether two elements share a u32. */
export function isPacked(dtype: DType): boolean {
  return dtype === "f16" || dtype === "bf16";
}

/** The element type of a buffer read one element (or one packed pair) at a time. */
export function storageType(dtype: DType): string {
  return dtype === "f32" || dtype === "i32" ? dtype : "u32";
}

/** The type that kernels compute with. */
export function computeType(dtype: DType): string {
  return isPacked(dtype) ? "f32" : dtype;
}

/** The element type of a buffer read four elements at a time. */
export function storageType4(dtype: DType): string {
  if (isPacked(dtype)) return "vec2u";
  return dtype === "f32" ? "vec4f" : dtype === "i32" ? "vec4i" : "vec4u";
}

/** The f32 of the low half of a packed word. */
function low(dtype: DType, word: string): string {
  return dtype === "f16" ? `unpack2x16float(${word}).x` : `bitcast<f32>((${word}) << 16u)`;
}

/** The f32 of the high half. */
function high(dtype: DType, word: string): string {
  return dtype === "f16" ? `unpack2x16float(${word}).y` : `bitcast<f32>((${word}) & 0xffff0000u)`;
}

/** WGSL that reads element `i` of a buffer of {@linkcode storageType}. */
export function load(dtype: DType, buffer: string, i: string): string {
  if (dtype === "bool") return `(${buffer}[${i}] != 0u)`;
  if (dtype === "f16") return `unpack2x16float(${buffer}[(${i}) >> 1u])[(${i}) & 1u]`;
  if (dtype === "bf16") {
    return `bitcast<f32>((${buffer}[(${i}) >> 1u] >> (((${i}) & 1u) * 16u)) << 16u)`;
  }
  return `${buffer}[${i}]`;
}

/** WGSL for the four elements of a value of {@linkcode storageType4}. */
export function unpack4(dtype: DType, value: string): string[] {
  if (isPacked(dtype)) {
    return [low(dtype, `${value}.x`), high(dtype, `${value}.x`), low(dtype, `${value}.y`), high(dtype, `${value}.y`)];
  }
  return ["x", "y", "z", "w"].map((c) => dtype === "bool" ? `(${value}.${c} != 0u)` : `${value}.${c}`);
}

/** WGSL for a packed word of two f32 expressions. Needs {@linkcode roundingFunctions}. */
export function pack2(dtype: DType, a: string, b: string): string {
  return dtype === "f16" ? `ft_pack_f16(${a}, ${b})` : `ft_pack_bf16(${a}, ${b})`;
}

/** WGSL that makes a value of {@linkcode storageType4} from four computed ones. */
export function pack4(dtype: DType, [a, b, c, d]: readonly string[]): string {
  if (isPacked(dtype)) return `vec2u(${pack2(dtype, a, b)}, ${pack2(dtype, c, d)})`;
  const parts = dtype === "bool" ? [a, b, c, d].map((x) => `u32(${x})`) : [a, b, c, d];
  return `${storageType4(dtype)}(${parts.join(", ")})`;
}

/** WGSL that stores a computed value as one element of an unpacked dtype. */
export function stored(dtype: DType, value: string): string {
  return dtype === "bool" ? `u32(${value})` : value;
}

/**
 * WGSL functions that pack with rounding to nearest even, overflow to infinity and NaN kept; `pack2x16float` leaves all
 * three to the driver.
 */
export function roundingFunctions(dtype: DType): string {
  if (dtype === "bf16") {
    return `
fn ft_bf16(x: f32) -> u32 {
  let bits = bitcast<u32>(x);
  let rounded = (bits + 0x7fffu + ((bits >> 16u) & 1u)) >> 16u;
  return select(rounded, (bits >> 16u) | 0x40u, (bits & 0x7fffffffu) > 0x7f800000u);
}
fn ft_pack_bf16(a: f32, b: f32) -> u32 { return ft_bf16(a) | (ft_bf16(b) << 16u); }`;
  }
  if (dtype === "f16") {
    return `
fn ft_f16(x: f32) -> u32 {
  let bits = bitcast<u32>(x);
  let sign = (bits >> 16u) & 0x8000u;
  let magnitude = bits & 0x7fffffffu;
  if (magnitude > 0x7f800000u) { return sign | 0x7e00u; }
  if (magnitude >= 0x477ff000u) { return sign | 0x7c00u; }
  if (magnitude >= 0x38800000u) { return sign | ((magnitude - 0x38000000u + 0xfffu + ((magnitude >> 13u) & 1u)) >> 13u); }
  if (magnitude < 0x33000000u) { return sign; }
  // Below 2^-14 the fraction shifts right, hidden one included: drop bits and round to even.
  let drop = 126u - (magnitude >> 23u);
  let fraction = (magnitude & 0x7fffffu) | 0x800000u;
  return sign | ((fraction + (1u << (drop - 1u)) - 1u + ((fraction >> drop) & 1u)) >> drop);
}
fn ft_pack_f16(a: f32, b: f32) -> u32 { return ft_f16(a) | (ft_f16(b) << 16u); }`;
  }
  return "";
}
