/**
 * Operands made fit for matrix units: rows of f16 adjacent along k, whole vectors of eight, zeros after the last.
 *
 * bf16 has f32's range and fewer digits than f16, so an operand of it becomes f16 times a power of two, one for each row
 * (a row of A, a column of B): the largest number of the row then lies between 2^14 and 2^15. Numbers down to 2^-31 of it
 * keep all their digits, those below lose some, and at 2^-40 of it they become zero: less than what sums in f32 lose to the
 * largest terms. Infinities and NaN stay what they are. The product is multiplied by both powers when it is stored.
 *
 *   row adjacent along k   ──lanes──▶ max ──▶ exponent ──▶ second walk writes            (the row is in the cache by then)
 *   row strided along k    32 rows by groups of lanes, each of which has every so many vectors of eight
 *
 * Floor: 4 bytes an element at the speed of a copy.
 */
import { each, type Kernel, kernel, wgsl } from "./kernel.ts";
import { pack2, roundingFunctions } from "./storage.ts";

/** What of an operand is baked into the kernel that packs it. */
export interface PackParts {
  readonly dtype: "f16" | "bf16";
  /** Whether elements are adjacent along k in memory; else rows are. */
  readonly alongK: boolean;
  /** Eight where every row starts at a whole vector and ends with one; only for rows that are adjacent along k. */
  readonly vec: 1 | 8;
  /** Invocations that share a row: a power of two. */
  readonly lanes: number;
  /** Rows of a workgroup. */
  readonly rows: number;
}

/** The exponent of a row whose largest finite number has these bits. */
const exponent = "clamp(i32(most >> 7u) - 141, -120, 113)";

/** Reads x, writes y and, for bf16, an exponent a row: x = y · 2^exponent. */
export function packMatrix(parts: PackParts): Kernel {
  const { dtype, alongK, vec, lanes, rows } = parts;
  const scaled = dtype === "bf16";
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
    const element = alongK ? "base + k" : "base + k * u.stride";
    const eight = vec === 8
      ? `return x[(base >> 3u) + w];`
      : wgsl`return vec4u(${
        each(4, (i) => `half(base, w * 8u + ${2 * i}u) | (half(base, w * 8u + ${2 * i + 1}u) << 16u)`).join(", ")
      });`;
    const words = ["x", "y", "z", "w"];
    return wgsl`${scaled ? roundingFunctions("f16") : ""}
${
      vec === 8 ? "" : wgsl`fn half(base: u32, k: u32) -> u32 {
  let i = ${element.replace("k", "min(k, u.k - 1u)")};
  return select(0u, (x[i >> 1u] >> ((i & 1u) * 16u)) & 0xffffu, k < u.k);
}`
    }
fn eight(base: u32, w: u32) -> vec4u { ${eight} }
${
      scaled
        ? wgsl`fn finite(bits: u32) -> u32 { return select(0u, bits, bits < 0x7f80u); }
fn largest(w: vec4u) -> u32 {
  let low = w & vec4u(0x7fffu); let high = (w >> vec4u(16u)) & vec4u(0x7fffu);
  return max(${words.map((c) => `max(finite(low.${c}), finite(high.${c}))`).reduce((a, b) => `max(${a}, ${b})`)}, 0u);
}
fn convert(w: u32, scale: f32) -> u32 {
  return ${pack2("f16", "bitcast<f32>(w << 16u) * scale", "bitcast<f32>(w & 0xffff0000u) * scale")};
}
var<workgroup> most_of: array<atomic<u32>, ${rows}>;`
        : ""
    }
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
    y[to + w] = ${scaled ? `vec4u(${words.map((c) => `convert(v.${c}, scale)`).join(", ")})` : "v"};
  }
}`;
  });
}
