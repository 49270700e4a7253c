/**
 * Scores in two floats, s + low, where few queries or few keys average nothing: what a sum, the scale or an option rounds off
 * a score stays beside it until its power is taken. A plain f32 score of 10 is off by a dozen roundings, and p by as many.
 *
 *   q·k      a factor in two of 12 bits, their product exact; what the sum loses ─▶ low      (dotProduct, rowProduct)
 *   ·scale   behind the sum, the scale itself in two floats
 *   options  ALiBi and bias as further products; softcap by its slope
 *   power    2^(s + low − whole − rest), row statistics in two as well: whole numbers are taken apart first, exactly
 *
 * No product relies on fma: software adapters round it twice. Eleven operations a product instead of one, in tiles of 32×32;
 * what that costs a GPU was not measured.
 */
import { mathFunctions } from "./math.ts";

/** The float beside score `s`. */
export function lowOf(s: string): string {
  return `low_${s}`;
}

/** Functions that careful statements call. */
export const carefulFunctions: string = mathFunctions("ft_lost() ft_power() ft_joined()");

/** Declares the parts of a factor, `high_${name}` of 12 bits and `rest_${name}`. */
export function partsText(name: string, type: "f32" | "vec4f"): string {
  const words = type === "f32" ? "u32" : "vec4u";
  return `let high_${name} = bitcast<${type}>(bitcast<${words}>(${name}) & ${words}(0xfffff000u)); ` +
    `let rest_${name} = ${name} - high_${name};`;
}

/** Statements that add a product to a score, of factors whose parts are declared. */
export function joinText(s: string, a: string, b: string): string {
  return `{ let more = high_${a} * high_${b}; let whole = ${s} + more; ${lowOf(s)} += ` +
    `fma(high_${a}, rest_${b}, fma(rest_${a}, ${b}, ft_lost(${s}, more, whole))); ${s} = whole; }`;
}

/** Statements that add the product of two expressions to a score. */
export function joinProductText(s: string, a: string, b: string): string {
  return `{ let one = ${a}; let other = ${b}; ${partsText("one", "f32")} ${partsText("other", "f32")} ${
    joinText(s, "one", "other")
  } }`;
}

/** Statements that scale a sum of products, and need the uniforms `scale` and `scaleLow`. */
export function scaleText(s: string): string {
  return timesText(s, s, "u.scale", `fma(${s}, u.scaleLow, ${lowOf(s)} * u.scale)`);
}

/** Statements that cap a score of which `t` is the tanh and its slope. */
export function cappedText(s: string): string {
  return timesText(s, "t.x", "u.softcap", `${lowOf(s)} * t.y * u.softcap`);
}

/** A score becomes the product of two expressions and what `low` says beside it, `s` rounded as one float would be. */
function timesText(s: string, a: string, b: string, low: string): string {
  const own = lowOf(s);
  return `{ let old = ${low}; let first = ${a}; ${s} = 0.0f; ${own} = old; ${joinProductText(s, "first", b)}
    let both = ${s} + ${own}; ${own} = ft_lost(${s}, ${own}, both); ${s} = both; }`;
}

/** The power of a score, `whole` and `rest` those of its row. It ends at 2.8. */
export function powerOf(s: string, whole: string, rest: string): string {
  return `ft_power(${s}, ${lowOf(s)}, ${whole}, ${rest})`;
}
