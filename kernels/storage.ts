/** How dtypes lie in storage buffers: f16 and bf16 two to a u32, bool one to a u32; and the WGSL that reads and writes them. */
import type { DType } from "../tensor/dtype.ts";
import { components } from "./kernel.ts";

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
  return components.map((c) => dtype === "bool" ? `(${value}.${c} != 0u)` : `${value}.${c}`);
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
 * @param byDevice leaves f16 to the device, which was found to convert like that (`Capabilities.roundsF16`)
 */
export function roundingFunctions(dtype: DType, byDevice = false): string {
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
${
      byDevice
        ? `fn ft_pack_f16(a: f32, b: f32) -> u32 { return bitcast<u32>(vec2<f16>(vec2f(a, b))); }`
        : `fn ft_halves(x: vec2f) -> vec2u {
  let bits = bitcast<vec2u>(x); let magnitude = bits & vec2u(0x7fffffffu);
  let normal = (magnitude - vec2u(0x37fff001u) + ((magnitude >> vec2u(13u)) & vec2u(1u))) >> vec2u(13u);
  // Below 2^-14 the last place is 2^-24, as it is of numbers from 0.5 on: the sum with 0.5 rounds there.
  let small = bitcast<vec2u>(bitcast<vec2f>(magnitude) + 0.5f) - vec2u(0x3f000000u);
  let finite = min(select(small, normal, magnitude >= vec2u(0x38800000u)), vec2u(0x7c00u));
  return ((bits >> vec2u(16u)) & vec2u(0x8000u)) | select(finite, vec2u(0x7e00u), magnitude > vec2u(0x7f800000u));
}
fn ft_pack_f16(a: f32, b: f32) -> u32 { let h = ft_halves(vec2f(a, b)); return h.x | (h.y << 16u); }`
    }
fn ft_f16(x: f32) -> u32 { return ft_pack_f16(x, 0.0f); }`;
  }
  return "";
}
