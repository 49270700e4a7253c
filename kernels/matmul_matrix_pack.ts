/**
 * Operands made fit for matrix units: rows of f16 adjacent along k, whole vectors of eight, zeros after the last.
 *
 * bf16 and f32 have more range than f16, so an operand of them becomes f16 times a power of two, one for each row (a row of
 * A, a column of B): the largest number of the row then lies between 2^14 and 2^15. The product is multiplied by both powers
 * when it is stored. Infinities and NaN stay what they are. Numbers down to 2^-29 of the largest have f16's eleven digits
 * (all eight of bf16 down to 2^-31), those below lose some, and at 2^-40 of it they become zero: less than what sums in f32
 * lose to the largest terms. An f32 operand comes with one of 16 bits, in whose dtype a model would hold both: eleven digits
 * are more than the eight of bf16, and as many as f16 has.
 *
 *   row adjacent along k   ──lanes──▶ max ──▶ exponent ──▶ second walk writes            (the row is in the cache by then)
 *   row strided along k    32 rows by groups of lanes, each of which has every so many vectors of eight
 *
 * Floor: 4 bytes an element of 16 bits, 6 of f32, at the speed of a copy.
 */
import { each, type Kernel, kernel, wgsl } from "./kernel.ts";
import type { MatmulDType } from "./matmul.ts";
import { pack2, roundingFunctions } from "./storage.ts";

/** What of an operand is baked into the kernel that packs it. */
export interface PackParts {
  readonly dtype: MatmulDType;
  /** Whether elements are adjacent along k in memory; else rows are. */
  readonly alongK: boolean;
  /** Eight where every row starts at a whole vector and ends with one; only for rows that are adjacent along k. */
  readonly vec: 1 | 8;
  /** Invocations that share a row: a power of two. */
  readonly lanes: number;
  /** Rows of a workgroup. */
  readonly rows: number;
}

/** `eight(base, w)`: the elements of vector `w` of the row at `base`, f16 as they lie, others as the bits of f32. */
function reader({ dtype, alongK, vec }: PackParts): string {
  const [structure, type] = dtype === "f16" ? ["", "vec4u"] : ["struct Eight { low: vec4u, high: vec4u }", "Eight"];
  if (vec === 8) {
    const widened = (v: string) => `(${v} << vec4u(16u, 0u, 16u, 0u)) & vec4u(0xffff0000u)`;
    const text = {
      f16: "return x[(base >> 3u) + w];",
      bf16: `let v = x[(base >> 3u) + w]; return Eight(${widened("v.xxyy")}, ${widened("v.zzww")});`,
      f32: "let i = (base >> 2u) + 2u * w; return Eight(x[i], x[i + 1u]);",
    };
    return wgsl`${structure}
fn eight(base: u32, w: u32) -> ${type} { ${text[dtype]} }`;
  }
  const half = "(x[i >> 1u] >> ((i & 1u) * 16u)) & 0xffffu";
  const value = { f16: half, bf16: `(${half}) << 16u`, f32: "x[i]" }[dtype];
  const ones = each(8, (i) => `one(base, w * 8u + ${i}u)`);
  const result = dtype === "f16"
    ? `vec4u(${each(4, (i) => `${ones[2 * i]} | (${ones[2 * i + 1]} << 16u)`)})`
    : `Eight(vec4u(${ones.slice(0, 4)}), vec4u(${ones.slice(4)}))`;
  return wgsl`${structure}
fn one(base: u32, given: u32) -> u32 {
  let k = min(given, u.k - 1u); let i = ${alongK ? "base + k" : "base + k * u.stride"};
  return select(0u, ${value}, given < u.k);
}
fn eight(base: u32, w: u32) -> ${type} { return ${result}; }`;
}

/** The exponent of a row whose largest finite number has these bits. */
const exponent = "clamp(i32(most >> 23u) - 141, -120, 113)";

/** Functions for elements that are scaled. */
const scaling = wgsl`${roundingFunctions("f16")}
fn finite(bits: vec4u) -> vec4u { let size = bits & vec4u(0x7fffffffu); return select(vec4u(), size, size < vec4u(0x7f800000u)); }
fn largest(v: Eight) -> u32 {
  let four = max(finite(v.low), finite(v.high)); let two = max(four.xy, four.zw);
  return max(two.x, two.y);
}
fn pairs(bits: vec4u, scale: f32) -> vec2u {
  let v = bitcast<vec4f>(bits) * scale;
  return vec2u(${pack2("f16", "v.x", "v.y")}, ${pack2("f16", "v.z", "v.w")});
}`;

/** Reads x, writes y and, for bf16 and f32, an exponent a row: x = y · 2^exponent. */
export function packMatrix(parts: PackParts): Kernel {
  const { dtype, alongK, vec, lanes, rows } = parts;
  const scaled = dtype !== "f16";
  const name = `matmul_pack_${dtype}_${alongK ? "k" : "r"}${vec}_${rows}x${lanes}`;
  return kernel(name, {
    reads: { x: vec === 8 ? "vec4u" : "u32" },
    writes: { y: "vec4u", ...scaled ? { exponents: "i32" } : {} },
    uniforms: Object.fromEntries(
      "rows k words offset stride batch1 batch2 s0 s1 s2 groups workgroups".split(" ").map((field) => [field, "u32"]),
    ),
  }, () => {
    const place = alongK
      ? `let lane = li % ${lanes}u; let mine = li / ${lanes}u;`
      : `let mine = li % ${rows}u; let lane = li / ${rows}u;`;
    return wgsl`${reader(parts)}
${scaled ? `${scaling}\nvar<workgroup> most_of: array<atomic<u32>, ${rows}>;` : ""}
@compute @workgroup_size(${rows * lanes})
fn main(@builtin(workgroup_id) wid: vec3u, @builtin(local_invocation_index) li: u32) {
  let id = wid.y * 65535u + wid.x;
  if (id >= u.workgroups) { return; }
  let z = id / u.groups;
  ${place}
  let row = id % u.groups * ${rows}u + mine; let known = min(row, u.rows - 1u);
  let base = u.offset + z / u.batch2 / u.batch1 * u.s0 + z / u.batch2 % u.batch1 * u.s1 + z % u.batch2 * u.s2 + known${
      alongK ? " * u.stride" : ""
    };
${
      scaled
        ? wgsl`  var highest = 0u;
  for (var w = lane; w < u.words; w += ${lanes}u) { highest = max(highest, largest(eight(base, w))); }
  atomicMax(&most_of[mine], highest);
  workgroupBarrier();
  let most = atomicLoad(&most_of[mine]);
  let e = ${exponent};
  let scale = bitcast<f32>(u32(127 - e) << 23u);
  if (lane == 0u && row < u.rows) { exponents[z * u.rows + row] = e; }`
        : ""
    }
  if (row >= u.rows) { return; }
  let to = (z * u.rows + row) * u.words;
  for (var w = lane; w < u.words; w += ${lanes}u) {
    let v = eight(base, w);
    y[to + w] = ${scaled ? "vec4u(pairs(v.low, scale), pairs(v.high, scale))" : "v"};
  }
}`;
  });
}
