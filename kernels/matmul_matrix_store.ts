/** How sums of a product on matrix units become elements of C: scaled, gated, added to, rounded, as far as C goes. */
import { swigluExpression } from "./gated.ts";
import { each, wgsl } from "./kernel.ts";
import { mathFunctions } from "./math.ts";
import { addedFrom } from "./matmul.ts";
import { endingText } from "./matmul_matrix_ending.ts";
import type { MatrixParts } from "./matmul_matrix.ts";
import { folder } from "./matmul_matrix_fold.ts";
import { pack2, roundingFunctions } from "./storage.ts";

/** WGSL type of C's buffer. */
export function typeOfC({ out, outVec }: MatrixParts): string {
  if (out === "f32") return outVec >= 4 ? "vec4f" : "f32";
  return outVec === 8 ? "vec4u" : outVec === 4 ? "vec2u" : "u32";
}

/**
 * `store(base, m, n, v, w)`: the eight columns of C from n on, as far as they exist, in row m. Where C is gated, v and w are
 * sums of the gate, and those of the same columns of what it gates follow.
 */
export function storer(
  { out, outVec, adds, scaledA, scaledB, deviceRounds, gate, ending, fold }: MatrixParts,
  columns: number,
): string {
  const pair = (w: string) =>
    out === "f16" ? `unpack2x16float(${w})` : `vec2f(bitcast<f32>(${w} << 16u), bitcast<f32>(${w} & 0xffff0000u))`;
  const parts = ["low.x", "low.y", "low.z", "low.w", "high.x", "high.y", "high.z", "high.w"];
  const words = [0, 2, 4, 6].map((i) => {
    const [a, b] = adds ? [`${parts[i]} + p${i}.x`, `${parts[i + 1]} + p${i}.y`] : [parts[i], parts[i + 1]];
    return pack2(out, a, b);
  });
  const old = (i: number, w: string) => adds ? [`let p${i} = ${pair(w)};`] : [];
  const within = (j: number, text: string) => j === 0 ? text : `if (n + ${j}u < u.n) { ${text} }`;
  let lines: string[];
  if (out === "f32") {
    lines = outVec >= 4
      ? ["low", "high"].map((v, h) => {
        const text = `c[(start >> 2u) + ${h}u] = ${v}${adds ? ` + ${adds}[(other >> 2u) + ${h}u]` : ""};`;
        return outVec === 8 ? text : within(4 * h, text);
      })
      : parts.map((v, j) => within(j, `c[start + ${j}u] = ${v}${adds ? ` + ${adds}[other + ${j}u]` : ""};`));
  } else if (outVec === 8) {
    lines = [
      ...adds ? [`let before = ${adds}[other >> 3u];`] : [],
      ...["x", "y", "z", "w"].flatMap((w, i) => old(2 * i, `before.${w}`)),
      `c[start >> 3u] = vec4u(${words.join(", ")});`,
    ];
  } else if (outVec === 4) {
    lines = [0, 1].map((h) =>
      within(
        4 * h,
        [
          ...adds ? [`let before = ${adds}[(other >> 2u) + ${h}u];`] : [],
          ...["x", "y"].flatMap((w, i) => old(4 * h + 2 * i, `before.${w}`)),
          `c[(start >> 2u) + ${h}u] = vec2u(${words.slice(2 * h, 2 * h + 2).join(", ")});`,
        ].join(" "),
      )
    );
  } else {
    lines = words.map((word, i) =>
      within(2 * i, [...old(2 * i, `${adds}[(other >> 1u) + ${i}u]`), `c[(start >> 1u) + ${i}u] = ${word};`].join(" "))
    );
  }
  const scaled = scaledA || scaledB;
  const parameters = [
    ...["base: u32", "m: u32", "n: u32", "v: vec4f", "w: vec4f", ...gate ? ["up_v: vec4f", "up_w: vec4f"] : []],
    ...scaledA ? ["scales_a: u32"] : [],
    ...scaledB ? ["eb0: vec4i", "eb1: vec4i", ...gate ? ["up_eb0: vec4i", "up_eb1: vec4i"] : []] : [],
  ].join(", ");
  const value = (sums: string, b: string) =>
    scaled ? `times(${sums}, ${[...scaledA ? ["vec4i(ea)"] : [], ...scaledB ? [b] : []].join(" + ")})` : sums;
  const half = (sums: string, b: string) =>
    gate ? `gated(${value(sums, b)}, ${value(`up_${sums}`, `up_${b}`)})` : value(sums, b);
  const finished = (sums: string, j: number) =>
    ending ? `ending(${sums}, start - u.offset_c + ${j}u, n + ${j}u)` : sums;
  const values = wgsl`${scaledA ? "let ea = scale_a[scales_a + min(m, u.m - 1u)];" : ""}
  let low = ${finished(half("v", "eb0"), 0)}; let high = ${finished(half("w", "eb1"), 4)};`;
  const power = scaled
    ? `fn power(e: vec4i) -> vec4f { return bitcast<vec4f>((e + 127) << vec4u(23u)); }
fn times(v: vec4f, e: vec4i) -> vec4f { let half = e >> vec4u(1u); return v * power(half) * power(e - half); }`
    : "";
  if (fold !== undefined) return `${power}\n${folder(fold, columns, parameters, values)}`;
  const gated = wgsl`fn gated(gate: vec4f, up: vec4f) -> vec4f {
  return vec4f(${each(4, (j) => swigluExpression([`gate[${j}]`, `up[${j}]`], "f32", "f32")).join(", ")});
}`;
  return wgsl`${roundingFunctions(out, deviceRounds)}
${power}
${gate ? `${mathFunctions(gated)}\n${gated}` : ""}
${ending ? endingText(ending, out) : ""}
fn store(${parameters}) {
  if (m >= u.m || n >= u.n) { return; }
  let start = base + m * u.n + n;${adds ? ` let other = ${addedFrom(adds, "start")};` : ""}
  ${values}
${lines}
}`;
}
