/**
 * What a product on matrix units leaves of logits that nobody stores: for each row and each strip of neighbouring columns
 * (max z, Σ exp(z − max)), the sum of z where labels are smoothed, and the logit of the row's label.
 *
 *   sums of a subgroup ──strip of workgroup memory──▶ eight columns a lane ──shuffles──▶ one pair a row and strip
 *
 * At 4096 × 1024 → 128256 the logits would be 2.1 GB, written and read again; the pairs of strips of 64 are 66 MB.
 */
import { each, wgsl } from "./kernel.ts";
import { mathFunctions } from "./math.ts";

/** What of a loss is baked into the kernel. */
export interface MatrixFold {
  /** Logits go through cap · tanh(z / cap). */
  readonly softcap: boolean;
  /** Sums of logits are wanted. */
  readonly sum: boolean;
}

/** Uniforms beside those of every product: strips of a row, and where a block of classes, rows and labels begins. */
export const foldUniforms = {
  cap: "f32",
  strips: "u32",
  first_strip: "u32",
  first_class: "u32",
  first_label: "u32",
} as const;

/** `store(base, m, n, low, high)` in place of one that writes C; `values` is the text that scales eight sums. */
export function folder({ softcap, sum }: MatrixFold, columns: number, parameters: string, values: string): string {
  const halves = ["low", "high"], lanes = Math.log2(columns / 8);
  const bent = (z: string) =>
    softcap ? `u.cap * vec4f(${each(4, (i) => `ft_tanh(${z}[${i}] / u.cap)`).join(", ")})` : z;
  const join = (name: string, by: (a: string, b: string) => string) =>
    each(lanes, (i) => `  ${name} = ${by(name, `subgroupShuffleXor(${name}, ${1 << i}u)`)};`);
  const add = (a: string, b: string) => `${a} + ${b}`;
  const total = (name: string, from: string) =>
    `  let f${name} = ${from}; var ${name} = f${name}.x + f${name}.y + f${name}.z + f${name}.w;`;
  const body = wgsl`
  ${values}
${halves.map((z, h) => `  let in_${z} = vec4u(${each(4, (i) => `${4 * h + i}u`).join(", ")}) + n < vec4u(u.n);`)}
  let least = bitcast<f32>(0xff7fffffu);
${halves.map((z) => `  let z_${z} = select(vec4f(least), ${bent(z)}, in_${z});`)}
  let four = max(z_low, z_high); var top = max(max(max(four.x, four.y), max(four.z, four.w)), least);
${join("top", (a, b) => `max(${a}, ${b})`)}
${halves.map((z) => `  let e_${z} = select(vec4f(), exp2((z_${z} - top) * ${Math.LOG2E}), in_${z});`)}
${total("s", "e_low + e_high")}
${join("s", add)}
${sum ? total("t", "select(vec4f(), z_low, in_low) + select(vec4f(), z_high, in_high)") : ""}
${sum ? join("t", add) : ""}
  if (m >= u.m || n >= u.n) { return; }
  let label = u32(labels[u.first_label + m]) - u.first_class; let at = label - n; // far above all columns where it is none
  if (at < 8u && label < u.n) { chosen[m] = select(z_high[at & 3u], z_low[at & 3u], at < 4u); }
  if (n % ${columns}u == 0u) {
    let strip = m * u.strips + u.first_strip + n / ${columns}u;
    c[strip] = vec2f(top, s);${sum ? " sums[strip] = t;" : ""}
  }`;
  return wgsl`${mathFunctions(body)}
fn store(${parameters}) {${body}
}`;
}
