/**
 * Operands made fit for matrix units: f16, in whole vectors of eight along the axis that is adjacent in memory.
 *
 * bf16 and f32 have more range than f16, so an operand of them becomes f16 times a power of two, one for each row (a row of
 * A, a column of B): the largest number of the row then lies between 2^14 and 2^15. The product is multiplied by both powers
 * when it is stored. Infinities and NaN stay what they are. Numbers down to 2^-29 of the largest have f16's eleven digits
 * (all eight of bf16 down to 2^-31), those below lose some, and at 2^-40 of it they become zero: less than what sums in f32
 * lose to the largest terms. An f32 operand comes with one of 16 bits, in whose dtype a model would hold both: eleven digits
 * are more than the eight of bf16, and as many as f16 has.
 *
 *   rows adjacent along k      ──lanes──▶ max ──▶ exponent ──▶ second walk writes        (the row is in the cache by then);
 *                              rows of several operands, which follow one another, in one dispatch; or f32 rows that go
 *                              through RMSNorm: the first walk sums their squares too, the second one scales and weighs
 *   rows side by side, eight   `most`: the largest of each row in a chunk of k ──▶ `side`: their largest, exponents; writes
 *   at a time                  in the same layout, which the product reads in place
 *   rows side by side, ragged  32 rows by groups of lanes, which write rows adjacent along k, zeros after the last term
 *
 * Floor: 4 bytes an element of 16 bits, 6 of f32, at the speed of a copy; side by side 6 and 10, since nothing is read
 * again from a cache. Loads of both kernels of that way are whole lines, and parts of k keep all of a device busy, which
 * the third way does not: it has a workgroup for 32 rows. Rows with a norm are read and written once less than by a kernel of
 * its own before, 8 bytes an element, and cost a dispatch less: 7.5 µs for [1024, 2048] with its norm, 6.5 without.
 */
import { each, type Kernel, kernel, wgsl } from "./kernel.ts";
import type { MatmulDType } from "./matmul.ts";
import { joinLanes, laneMemory } from "./rows.ts";
import { pack2, roundingFunctions, unpack4 } from "./storage.ts";

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
  /** Operands whose rows follow one another, with `vec` 8. */
  readonly operands: number;
  /** The type of the weight of the RMSNorm that rows of one f32 operand go through, with `vec` 8. */
  readonly norm?: MatmulDType;
}

/** `eight(base, w)`: the elements of vector `w` of the row at `base`, f16 as they lie, others as the bits of f32. */
function reader(
  { dtype, alongK, vec, operands }: Pick<PackParts, "dtype" | "alongK" | "vec" | "operands">,
): string {
  const [structure, type] = dtype === "f16" ? ["", "vec4u"] : ["struct Eight { low: vec4u, high: vec4u }", "Eight"];
  if (vec === 8) {
    const widened = (v: string) => `(${v} << vec4u(16u, 0u, 16u, 0u)) & vec4u(0xffff0000u)`;
    const text = {
      f16: "return at((base >> 3u) + w);",
      bf16: `let v = at((base >> 3u) + w); return Eight(${widened("v.xxyy")}, ${widened("v.zzww")});`,
      f32: "let i = (base >> 2u) + 2u * w; return Eight(at(i), at(i + 1u));",
    };
    const others = each(operands - 1, (i) => `if (operand == ${i + 1}u) { return x${i + 1}[i]; }`);
    return wgsl`${structure}
${operands > 1 ? "var<private> operand: u32;" : ""}
fn at(i: u32) -> vec4u { ${others.join(" ")} return x[i]; }
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
fn pairs(bits: vec4u, scale: vec4f) -> vec2u {
  let v = bitcast<vec4f>(bits) * scale;
  return vec2u(${pack2("f16", "v.x", "v.y")}, ${pack2("f16", "v.z", "v.w")});
}`;

/** `eight(base, w)` times the norm's weight and a factor. */
const normed = (dtype: MatmulDType): string => {
  const [load, low, high] = dtype === "f32"
    ? ["let i = u.norm + 2u * w;", "norm[i]", "norm[i + 1u]"]
    : ["let b = norm[u.norm + w];", ...["xy", "zw"].map((half) => `vec4f(${unpack4(dtype, `b.${half}`).join(", ")})`)];
  return wgsl`fn normed(v: Eight, w: u32, factor: f32) -> Eight {
  ${load}
  return Eight(
    bitcast<vec4u>(bitcast<vec4f>(v.low) * factor * ${low}),
    bitcast<vec4u>(bitcast<vec4f>(v.high) * factor * ${high}),
  );
}
fn squares(v: Eight) -> f32 {
  let low = bitcast<vec4f>(v.low); let high = bitcast<vec4f>(v.high);
  return dot(low, low) + dot(high, high);
}`;
};

/** Reads x and the norm's weight, where there is one; writes y and, for bf16 and f32, an exponent a row: x = y · 2^exponent. */
export function packMatrix(parts: PackParts): Kernel {
  const { dtype, alongK, vec, lanes, rows, operands, norm } = parts;
  const scaled = dtype !== "f16", others = Array.from({ length: operands - 1 }, (_, i) => i + 1);
  const name = `matmul_pack_${dtype}_${alongK ? "k" : "r"}${vec}_${rows}x${lanes}${
    operands > 1 ? `_of${operands}` : ""
  }${norm ? `_norm_${norm}` : ""}`;
  const fields = "rows k words offset stride batch1 batch2 s0 s1 s2 groups workgroups".split(" ");
  return kernel(name, {
    reads: {
      ...Object.fromEntries(["x", ...others.map((i) => `x${i}`)].map((id) => [id, vec === 8 ? "vec4u" : "u32"])),
      ...norm ? { norm: norm === "f32" ? "vec4f" : "vec4u" } : {},
    },
    writes: { y: "vec4u", ...scaled ? { exponents: "i32" } : {} },
    uniforms: {
      ...Object.fromEntries(
        [...fields, ...others.flatMap((i) => [`first${i}`, `offset${i}`, `stride${i}`])].map((
          id,
        ) => [id, "u32" as const]),
      ),
      ...norm ? { norm: "u32", eps: "f32", inverse: "f32" } as const : {},
    },
  }, () => {
    const place = alongK
      ? `let lane = li % ${lanes}u; let mine = li / ${lanes}u;`
      : `let mine = li % ${rows}u; let lane = li / ${rows}u;`;
    return wgsl`${reader(parts)}
${scaled ? `${scaling}\nvar<workgroup> most_of: array<atomic<u32>, ${rows}>;` : ""}
${norm ? `${normed(norm)}\n${laneMemory(1)}` : ""}
@compute @workgroup_size(${rows * lanes})
fn main(@builtin(workgroup_id) wid: vec3u, @builtin(local_invocation_index) li: u32) {
  let id = wid.y * 65535u + wid.x;
  if (id >= u.workgroups) { return; }
  let z = id / u.groups;
  ${place}
  let row = id % u.groups * ${rows}u + mine; let known = min(row, u.rows - 1u);
  ${operands > 1 ? "var" : "let"} base = u.offset + z / u.batch2 / u.batch1 * u.s0 + z / u.batch2 % u.batch1 * u.s1
    + z % u.batch2 * u.s2 + known${alongK ? " * u.stride" : ""};
${
      others.map((i) =>
        `  if (known >= u.first${i}) { operand = ${i}u; base = u.offset${i} + (known - u.first${i}) * u.stride${i}; }`
      ).join("\n")
    }
${
      scaled
        ? wgsl`  var highest = 0u;
${
          norm
            ? wgsl`  var square = 0.0;
  for (var w = lane; w < u.words; w += ${lanes}u) {
    let v = eight(base, w); square += squares(v); highest = max(highest, largest(normed(v, w, 1.0)));
  }`
            : wgsl`  for (var w = lane; w < u.words; w += ${lanes}u) { highest = max(highest, largest(eight(base, w))); }`
        }
  atomicMax(&most_of[mine], highest);
${
          norm
            ? wgsl`  let me = li;
  ${joinLanes({ lanes }, ["square"])}
  let factor = 1.0 / sqrt(square * u.inverse + u.eps);
  let most = bitcast<u32>(bitcast<f32>(atomicLoad(&most_of[mine])) * factor);`
            : wgsl`  workgroupBarrier();
  let most = atomicLoad(&most_of[mine]);`
        }
  let e = ${exponent};
  let scale = vec4f(bitcast<f32>(u32(127 - e) << 23u));
  if (lane == 0u && row < u.rows) { exponents[z * u.rows + row] = e; }`
        : ""
    }
  if (row >= u.rows) { return; }
  let to = (z * u.rows + row) * u.words;
  for (var w = lane; w < u.words; w += ${lanes}u) {
    let v = ${norm ? "normed(eight(base, w), w, factor)" : "eight(base, w)"};
    y[to + w] = ${scaled ? "vec4u(pairs(v.low, scale), pairs(v.high, scale))" : "v"};
  }
}`;
  });
}

/** Rows of a workgroup, and how many of its lanes share their terms: a lane loads eight rows. */
export const sideRows = 256, sideLanes = 8;

/** Loads of a lane that are on their way together. */
const together = 4;

const sideUniforms = Object.fromEntries(
  "rows k offset stride batch1 batch2 s0 s1 s2 across chunks chunk workgroups".split(" ").map((name) => [name, "u32"]),
) as Record<string, "u32">;

/** What both kernels begin with, and a walk over a lane's terms: `use(v, k)` has a load and the term that it is of. */
const sides = (dtype: MatmulDType, memory: string) =>
  wgsl`${reader({ dtype, alongK: true, vec: 8, operands: 1 })}
${scaling}
${memory}
@compute @workgroup_size(${sideRows})
fn main(@builtin(workgroup_id) wid: vec3u, @builtin(local_invocation_index) li: u32) {
  let id = wid.y * 65535u + wid.x;
  if (id >= u.workgroups) { return; }
  let part = id / u.across % u.chunks; let z = id / u.across / u.chunks;
  let first = id % u.across * ${sideRows}u; let own = first + li; let at = li % ${
    sideRows / 8
  }u * 8u; let row = first + at;
  let base = u.offset + z / u.batch2 / u.batch1 * u.s0 + z / u.batch2 % u.batch1 * u.s1 + z % u.batch2 * u.s2 + row;
  let begin = part * u.chunk + li / ${
    sideRows / 8
  }u; let end = select(0u, min(u.k, (part + 1u) * u.chunk), row < u.rows);`;

const walk = (use: (v: string, k: string) => string) =>
  wgsl`  for (var k = begin; k < end; k += ${together * sideLanes}u) {
${
    each(together, (i) =>
      `    let k${i} = k + ${i * sideLanes}u; let v${i} = eight(base + min(k${i}, end - 1u) * u.stride, 0u);`)
  }
${each(together, (i) => `    ${use(`v${i}`, `k${i}`)}`)}
  }`;

/** Rows side by side: writes the bits of the largest finite number of each row, for each chunk of k. */
export const mostOfRows = (dtype: MatmulDType): Kernel =>
  kernel(
    `matmul_most_${dtype}`,
    { reads: { x: "vec4u" }, writes: { most: "u32" }, uniforms: sideUniforms },
    () =>
      wgsl`${sides(dtype, `var<workgroup> most_of: array<atomic<u32>, ${sideRows}>;`)}
  var low = vec4u(); var high = vec4u();
${walk((v) => `low = max(low, finite(${v}.low)); high = max(high, finite(${v}.high));`)}
${each(4, (j) => `  atomicMax(&most_of[at + ${j}u], low[${j}]); atomicMax(&most_of[at + ${j + 4}u], high[${j}]);`)}
  workgroupBarrier();
  if (own < u.rows) { most[(z * u.chunks + part) * u.rows + own] = atomicLoad(&most_of[li]); }
}`,
  );

/** Rows side by side: reads x and what {@linkcode mostOfRows} wrote; writes y in the layout of x, and an exponent a row. */
export const packSide = (dtype: MatmulDType): Kernel =>
  kernel(`matmul_pack_${dtype}_side`, {
    reads: { x: "vec4u", known: "u32" },
    writes: { y: "vec4u", exponents: "i32" },
    uniforms: sideUniforms,
  }, () =>
    wgsl`${sides(dtype, `var<workgroup> scales: array<f32, ${sideRows}>;`)}
  var most = 0u;
  let mine = z * u.chunks * u.rows + min(own, u.rows - 1u);
  for (var c = 0u; c < u.chunks; c += ${together}u) {
${each(together, (i) => `    let m${i} = known[mine + min(c + ${i}u, u.chunks - 1u) * u.rows];`)}
    most = max(most, max(max(m0, m1), max(m2, m3)));
  }
  let e = ${exponent};
  if (part == 0u && own < u.rows) { exponents[z * u.rows + own] = e; }
  scales[li] = bitcast<f32>(u32(127 - e) << 23u);
  workgroupBarrier();
  let low = vec4f(${each(4, (j) => `scales[at + ${j}u]`).join(", ")});
  let high = vec4f(${each(4, (j) => `scales[at + ${j + 4}u]`).join(", ")});
${
      walk((v, k) =>
        `if (${k} < end) { y[((z * u.k + ${k}) * u.rows + row) >> 3u] = vec4u(pairs(${v}.low, low), pairs(${v}.high, high)); }`
      )
    }
}`);
