/**
 * Normal numbers from 32 random bits by the inverse of the normal distribution, in integers alone: logarithms and sines
 * differ from device to device, products of integers do not.
 *
 * One bit is the sign. The other 31 are m, and the upper tail is q = (2m + 1)·2⁻³³, never 0 and never ½. Each octave of
 * q, from [¼, ½) down to 2⁻³³, has a polynomial of degree 7 in Q28; a number of leading zeros picks it. Before it is
 * rounded to f32 the result is within 1.1e-7 of the exact inverse; it reaches ±6.3.
 */
import { mulHigh } from "./philox.ts";

const octaves = 32, terms = 8;

/** e^−x by its series at x/256, squared eight times: no function that engines are free to round as they like. */
function expNegative(x: number): number {
  const y = x / 256;
  let sum = 1, term = 1;
  for (let n = 1; n < 20; n++) sum += term *= -y / n;
  for (let i = 0; i < 8; i++) sum *= sum;
  return sum;
}

/** The normal density. */
function density(z: number): number {
  return expNegative(z * z / 2) / Math.sqrt(2 * Math.PI);
}

/** The normal distribution's upper tail: a series with terms of one sign near 0, Laplace's continued fraction beyond. */
function upperTail(z: number): number {
  if (z < 2.5) {
    let term = z, sum = z;
    for (let n = 1; n < 60; n++) sum += term *= z * z / (2 * n + 1);
    return 0.5 - density(z) * sum;
  }
  let fraction = z;
  for (let k = 150; k >= 1; k--) fraction = z + k / fraction;
  return density(z) / fraction;
}

/** The z whose upper tail is q, by Newton's method, which from 0 climbs to it on a convex slope. */
function inverseTail(q: number): number {
  let z = 0;
  for (let i = 0; i < 100; i++) {
    const step = (upperTail(z) - q) / density(z);
    z += step;
    if (Math.abs(step) < 1e-14) break;
  }
  return z;
}

/** cos((2i + 1)π/16), by halving angles. */
function chebyshevNodes(): number[] {
  const half = (c: number) => [Math.sqrt((1 + c) / 2), Math.sqrt((1 - c) / 2)];
  const positive = half(Math.SQRT1_2).flatMap(half);
  return [...positive, ...positive.map((x) => -x)];
}

let table: Int32Array<ArrayBuffer> | null = null;

/**
 * Coefficients, i32 [32, 8]: row c for upper tails q ∈ [2^−(c+2), 2^−(c+1)), constant term first. They belong to
 * ξ ∈ [−½, ½) along the octave and are scaled by 2²⁸.
 */
export function normalTable(): Int32Array<ArrayBuffer> {
  if (table !== null) return table;
  table = new Int32Array(octaves * terms);
  const nodes = chebyshevNodes();
  for (let c = 0; c < octaves; c++) {
    const divided = nodes.map((x) => inverseTail(2 ** -(c + 2) * (1 + (x + 1) / 2)));
    for (let j = 1; j < terms; j++) {
      for (let i = terms - 1; i >= j; i--) divided[i] = (divided[i] - divided[i - 1]) / (nodes[i] - nodes[i - j]);
    }
    const powers = [divided[terms - 1]]; // Newton's form multiplied out
    for (let i = terms - 2; i >= 0; i--) {
      powers.unshift(divided[i]);
      for (let j = 0; j + 1 < powers.length; j++) powers[j] -= nodes[i] * powers[j + 1];
    }
    powers.forEach((a, i) => table![c * terms + i] = Math.round(a * 2 ** (28 + i)));
  }
  return table;
}

/** The high half of a 64-bit product of two i32. */
function mulHighSigned(a: number, b: number): number {
  return (mulHigh(a >>> 0, b >>> 0) - (a < 0 ? b : 0) - (b < 0 ? a : 0)) | 0;
}

/**
 * The normal number that 32 random bits stand for, as f32.
 * @param coefficients {@linkcode normalTable}, wherever it lies
 */
export function normalOf(bits: number, coefficients: ArrayLike<number> = normalTable()): number {
  const tail = ((bits << 1) | 1) >>> 0; // odd, so never 0
  const c = Math.clz32(tail);
  const xi = ((tail << c) - 0xc0000000) << 1;
  let sum = coefficients[c * terms + terms - 1];
  for (let i = terms - 2; i >= 0; i--) sum = (coefficients[c * terms + i] + mulHighSigned(sum, xi)) | 0;
  // Just above 0 the rounded polynomial may dip below it. Rounded here to 24 bits, it is an f32 as it stands.
  const magnitude = Math.max(sum, 0);
  const drop = Math.max(0, 8 - Math.clz32(magnitude));
  const leading = ((magnitude + ((1 << drop) >> 1)) >>> drop) << drop;
  return ((bits | 0) < 0 ? -leading | 0 : leading) * 2 ** -28; // an integer has no −0
}
