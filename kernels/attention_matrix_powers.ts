/**
 * The text by which kernels use what `attentionRange` has found: which heads are whose, and the powers of two that operands
 * and dS are multiplied by on their way to f16. Why and how stands in attention_matrix_range.ts.
 */
import type { AttentionFeatures } from "./attention_common.ts";

/** Words that a key head of a batch row has in `ranges`. */
export const rangeWords = 8;

/** Binades below a head's largest number within which its rows' largest numbers have to be. */
const depth = 16;

/** Functions that `rangeText` and `withoutPower` call. */
export function rangeFunctions({ range }: AttentionFeatures): string {
  if (range === "none") return "";
  return `
fn range_held(most: u32, least: u32) -> bool {
  return least != 0xffffffffu && i32(most >> 23u) - i32(~least >> 23u) <= ${depth};
}
fn range_exponent(most: u32) -> i32 { return i32(most >> 23u) - 127; }
fn range_fitting(most: u32) -> i32 { return clamp(14 - range_exponent(most), -113, 126); }
fn range_power(e: i32) -> f32 { return select(0.0f, bitcast<f32>(u32(clamp(e, -126, 127) + 127) << 23u), e > -127); }
fn range_without(x: vec4f, e: i32) -> vec4f { let half = -e / 2; return x * range_power(half) * range_power(-e - half); }`;
}

/**
 * Statements that follow where `b` and `g` are declared, uniform for a workgroup: those that leave a head to the other
 * kernel, and of a matrix kernel those that declare the powers, `<name>Exponent` of an operand that is read scaled.
 *
 * @param backward the size of values, in the matrix kernels of the backward
 */
export function rangeText({ range }: AttentionFeatures, backward?: { readonly valueDim: number }): string {
  if (range === "none") return "";
  const load = `let rangeAt = (b * (u.heads / u.group) + g) * ${rangeWords / 4}u;
  let rangeQK = ranges[rangeAt]; let rangeV = ranges[rangeAt + 1u];`;
  const held = "range_held(rangeQK.x, rangeQK.y) && range_held(rangeQK.z, rangeQK.w) && range_held(rangeV.x, rangeV.y)";
  if (range === "left") return `${load} if (${held}) { return; }`;
  const scaled = {
    q: "rangeQK.x",
    k: "rangeQK.z",
    v: "rangeV.x",
    ...(backward === undefined ? {} : { dOut: "rangeV.z" }),
  };
  // |dP| < 2^(slopes − 1), as is |D|: dS fits f16 times the power of 15 − slopes.
  const slopes = backward === undefined ? "" : `let slopes = 1 + max(range_exponent(rangeV.w) + 1,
    range_exponent(rangeV.x) + range_exponent(rangeV.z) + ${3 + Math.ceil(Math.log2(backward.valueDim))});
  let slopeExponent = clamp(15 - slopes, -126, 126); let slopeScale = range_power(slopeExponent);
  let slopeIn = ${range === "slopes" ? "slopeScale" : "range_power(slopeExponent - vExponent - dOutExponent)"};`;
  if (range === "slopes") return `${load} ${slopes}`;
  return `${load} if (!(${held})) { return; }
  ${
    Object.entries(scaled).map(([name, most]) =>
      `let ${name}Exponent = range_fitting(${most}); ${name}_power = range_power(${name}Exponent);`
    ).join("\n")
  }
  let scoreScale = u.scale * range_power(-(qExponent + kExponent));
  ${slopes}`;
}

/** By what products of q and k are multiplied. */
export function scoreScale({ range }: AttentionFeatures): string {
  return range === "scaled" ? "scoreScale" : "u.scale";
}

/** A vec4f without the powers that its factors had: of scaled operands, and `slope` of dS. */
export function withoutPower({ range }: AttentionFeatures, vec: string, ...factors: string[]): string {
  const powers = factors.filter((name) => range === "scaled" || (range === "slopes" && name === "slope"));
  return powers.length === 0 ? vec : `range_without(${vec}, ${powers.map((name) => `${name}Exponent`).join(" + ")})`;
}
