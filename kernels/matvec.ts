/**
 * Linear layers over few rows: y = norm(x)·Wᵀ, several weights in one dispatch, gated or not, plus a residual. What counts is
 * that the weights come in at the speed of memory. A workgroup has up to eight rows of x; those with the others and the same
 * rows of W are its neighbours, so that W comes from memory once.
 *
 *   team of lanes ──▶ `rows` rows of W, 16 bytes a lane and load, `unroll` loads under way
 *                     Σ w·x, and beside it Σ x² for the norm: a row's scale factors out of its products,
 *                     y = r·(Σ w·(x·n)), so nobody waits for it
 *   lanes meet by shuffles, subgroups of a team through workgroup memory; one thread a result finishes it
 *
 * Floor: the weights once, at 4.07 TB/s on an H200; for Llama-3.2-1B in bf16, 2.47 GB, 0.61 ms. Measured there in Deno's own
 * WebGPU, ms for the 65 products of a token with two empty dispatches a layer between them, lanes x teams x rows, u unroll:
 *   v1  a subgroup a row, 8 rows a workgroup, all of a row under way; four subgroups a row of 8192         1.056
 *   v2  gate and up: 32x8x1u4 1.065, 32x8x1u2 1.052, 64x4x1u2 1.030, 32x8x2u2 1.018, 32x4x2u4 ◀             1.011
 *   v3  down: 32x8x1u8 1.089, 128x2x1u8 1.037, 256x1x1u4 0.988, 128x2x2u4 ◀                                 0.982
 *   v4  q, k and v: 32x8x2u4 1.048, 32x4x1u4 1.005, 64x4x1u4 0.991, 32x8x1u8 ◀;  o: 32x8x1u2 1.021, 128x2x1u2 ◀  0.968
 *   v5  scores: 128x1x1u2 1.011, 32x8x1u8 0.993, 32x8x2u4 0.974, 32x8x2u2 ◀                                 0.964
 *   without the empty dispatches 0.903: 2.7 TB/s over 65 dispatches. Two rows of x: 1.203 as v1, 1.049 as picked below.
 */
import type { Capabilities } from "../tensor/backend.ts";
import { each, type Kernel, kernel } from "./kernel.ts";
import type { MatmulDType } from "./matmul.ts";
import { mathFunctions } from "./math.ts";
import { storageType4, unpack4 } from "./storage.ts";

/** How the weights' rows are spread over threads. */
export interface MatvecTile {
  /** Threads that share a row; a power of two. */
  readonly lanes: number;
  /** Teams of lanes in a workgroup. */
  readonly teams: number;
  /** Rows of a weight that a team has at once. */
  readonly rows: number;
  /** Loads of each row that a lane has under way. */
  readonly unroll: number;
  /** Lanes of a subgroup; 0 goes through workgroup memory alone. */
  readonly subgroup: number;
}

/** What is computed. */
export interface MatvecParts {
  /** Rows of x that a workgroup has: 1, 2, 4 or 8, of which the last ones may be missing. */
  readonly m: number;
  readonly weights: number;
  readonly dtype: MatmulDType;
  /** The type of the norm's weight. */
  readonly norm: MatmulDType | null;
  readonly gated: boolean;
  readonly residual: boolean;
}

/** Elements of a weight that a load brings. */
export function matvecWidth(dtype: MatmulDType): number {
  return dtype === "f32" ? 4 : 8;
}

/** The kernel. Reads x, the norm, the weights and the residual; writes y, f32. */
export function matvec(tile: MatvecTile, parts: MatvecParts): Kernel {
  const { lanes, teams, rows, unroll, subgroup } = tile;
  const { m, weights, dtype, norm, gated, residual } = parts;
  const name = [
    `matvec_${lanes}x${teams}x${rows}_u${unroll}_m${m}_${weights}${dtype}`,
    ...(norm === null ? [] : [`norm_${norm}`]),
    ...(gated ? ["gated"] : []),
    ...(residual ? ["residual"] : []),
    ...(subgroup > 0 ? [`subgroups${subgroup}`] : []),
  ].join("_");
  const ids = each(weights, (i) => `w${i}`);
  return kernel(name, {
    reads: {
      x: "vec4f",
      ...(norm === null ? {} : { norm: storageType4(norm) }),
      ...Object.fromEntries(ids.map((id) => [id, dtype === "f32" ? "vec4f" : "vec4u"])),
      ...(residual ? { residual: "f32" } : {}),
    },
    writes: { y: "f32" },
    uniforms: {
      ...{ m: "u32", n: "u32", loads: "u32", groups: "u32", x: "u32", norm: "u32", residual: "u32" },
      ...Object.fromEntries(ids.flatMap((id) => [[`n_${id}`, "u32"], [`o_${id}`, "u32"]])),
      ...{ eps: "f32", inverse: "f32" },
    },
    requires: subgroup > 0 ? ["subgroups"] : [],
  }, () => body(tile, parts, ids));
}

function body(tile: MatvecTile, parts: MatvecParts, ids: readonly string[]): string {
  const { lanes, teams, rows, unroll, subgroup } = tile, { m, dtype, norm, gated, residual } = parts;
  const halves = matvecWidth(dtype) / 4;
  // A gate's rows come in pairs, one of each weight.
  const sums = gated ? [...each(rows, (r) => `g${r}`), ...each(rows, (r) => `s${r}`)] : each(rows, (r) => `s${r}`);
  const all = [...sums.flatMap((s) => each(m, (i) => `${s}_${i}`)), ...(norm === null ? [] : each(m, (i) => `q_${i}`))];
  /** Loads at \`k\` of the rows of some weights, as variables that end with u. */
  const fetch = (from: readonly (readonly [sum: string, place: string])[], u: number) =>
    from.map(([sum, place]) => `let ${sum}w${u} = ${place}k${u}];`).join(" ");
  const use = (from: readonly (readonly [sum: string, place: string])[], u: number) => {
    const xs = each(m, (i) =>
      each(halves, (h) => {
        const id = `x${i}_${h}`;
        const load = `let ${norm === null ? id : `raw${i}_${h}`} = x[x${i} + ${halves}u * k${u} + ${h}u];`;
        return norm === null
          ? load
          : `${load} q_${i} += dot(raw${i}_${h}, raw${i}_${h}); let ${id} = raw${i}_${h} * n_${h};`;
      }).join(" "));
    const norms = norm === null ? [] : each(halves, (h) => {
      const at = `norm[u.norm + ${halves}u * k${u} + ${h}u]`;
      return norm === "f32"
        ? `let n_${h} = ${at};`
        : `let b_${h} = ${at}; let n_${h} = vec4f(${unpack4(norm, `b_${h}`).join(", ")});`;
    });
    const products = from.map(([sum]) => {
      const w = `${sum}w${u}`;
      const parts = dtype === "f32"
        ? [`let p0 = ${w};`]
        : ["xy", "zw"].map((c, h) => `let p${h} = vec4f(${unpack4(dtype, `${w}.${c}`).join(", ")});`);
      return `{ ${parts.join(" ")} ${
        each(m, (i) => each(halves, (h) => `${sum}_${i} += dot(p${h}, x${i}_${h});`).join(" ")).join(" ")
      } }`;
    });
    return `{ ${norms.join(" ")} ${xs.join(" ")}\n      ${products.join("\n      ")} }`;
  };
  const sweep = (from: readonly (readonly [sum: string, place: string])[]) => `
    var k = lane;
    for (; k + ${(unroll - 1) * lanes}u < u.loads; k += ${unroll * lanes}u) {
      ${each(unroll, (n) => `let k${n} = k + ${n * lanes}u;`).join(" ")}
      ${each(unroll, (n) => fetch(from, n)).join("\n      ")}
      ${each(unroll, (n) => use(from, n)).join("\n      ")}
    }
    for (; k < u.loads; k += ${lanes}u) { let k0 = k; ${fetch(from, 0)} ${use(from, 0)} }`;
  const placesIn = (id: string, prefix: string, first: string) =>
    each(rows, (r) => `let ${prefix}${r}_at = u.o_${id} + min(${first} + ${r}u, u.n_${id} - 1u) * u.loads;`).join(" ");
  const source = (id: string, prefix: string) =>
    Array.from({ length: rows }, (_, r) => [`${prefix}${r}`, `${id}[${prefix}${r}_at + `] as const);
  const work = gated
    ? `{ ${placesIn(ids[0], "g", "row")} ${placesIn(ids[1], "s", "row")} ${
      sweep([...source(ids[0], "g"), ...source(ids[1], "s")])
    } }`
    : ids.map((id, i) => {
      const before = ids.slice(0, i).map((id) => ` - u.n_${id}`).join("");
      const inside = i === ids.length - 1 ? "" : `if (row${before} < u.n_${id}) `;
      return `${inside}{ let first = row${before}; ${placesIn(id, "s", "first")} ${sweep(source(id, "s"))} }`;
    }).join(" else ");

  const scale = (i: number) => norm === null ? "" : ` * (1.0f / sqrt(q_${i} * u.inverse + u.eps))`;
  const finish = (r: number, i: number) => {
    const s = `s${r}_${i}${scale(i)}`;
    const value = gated
      ? `let gate = g${r}_${i}${scale(i)}; let value = gate * ft_sigmoid(gate) * (${s});`
      : `let value = ${s};`;
    return `if (begin + ${i}u < u.m && row + ${r}u < u.n) { ${value} let at = (begin + ${i}u) * u.n + row + ${r}u;
      y[at] = value${residual ? " + residual[u.residual + at]" : ""}; }`;
  };
  const shuffles = subgroup === 0
    ? ""
    : each(Math.log2(Math.min(lanes, subgroup)), (b) =>
      all.map((s) => `${s} += subgroupShuffleXor(${s}, ${1 << b}u);`).join(" ")).join("\n  ");
  // Parts of a team that shuffles do not join.
  const step = subgroup === 0 ? 1 : Math.min(lanes, subgroup), partsOfTeam = lanes / step;
  const meet = partsOfTeam === 1
    ? each(rows * m, (n) => `if (lane == ${n % lanes}u) { ${finish(n % rows, Math.floor(n / rows))} }`).join("\n  ")
    : `if (lane % ${step}u == 0u) { ${all.map((s, n) => `part[${n}][li / ${step}u] = ${s};`).join(" ")} }
  workgroupBarrier();
  if (lane == 0u) {
    let from_part = team * ${partsOfTeam}u;
    ${
      all.map((s, n) => `${s} = ${each(partsOfTeam, (p) => `part[${n}][from_part + ${p}u]`).join(" + ")};`).join(
        "\n    ",
      )
    }
    ${each(rows * m, (n) => finish(n % rows, Math.floor(n / rows))).join("\n    ")}
  }`;
  return `${mathFunctions(gated ? "ft_sigmoid()" : "")}
${partsOfTeam === 1 ? "" : `var<workgroup> part: array<array<f32, ${teams * partsOfTeam}>, ${all.length}>;`}
@compute @workgroup_size(${lanes * teams})
fn main(@builtin(workgroup_id) wid: vec3u, @builtin(local_invocation_index) li: u32) {
  let lane = li % ${lanes}u; let team = li / ${lanes}u;
  let row = ((wid.z * u.groups + wid.y) * ${teams}u + team) * ${rows}u; let begin = wid.x * ${m}u;
  ${each(m, (i) => `let x${i} = u.x + min(begin + ${i}u, u.m - 1u) * ${halves}u * u.loads;`).join(" ")}
  ${all.map((s) => `var ${s} = 0.0f;`).join(" ")}
  ${work}
  ${shuffles}
  ${meet}
}`;
}

/** The tile for rows of k elements: what was fastest in a chain of all of a model's layers. */
export function pickMatvec(
  { subgroupSize, maxInvocations }: Pick<Capabilities, "subgroupSize" | "maxInvocations">,
  { k, sections, dtype, m, gated }: Pick<MatvecParts, "dtype" | "m" | "gated"> & {
    readonly k: number;
    /** Rows of each weight. */
    readonly sections: readonly number[];
  },
): MatvecTile {
  const pairs = sections.every((n) => n % 2 === 0) ? 2 : 1;
  if (subgroupSize < 16) { // a processor, or no subgroups
    return { lanes: 8, teams: 8, rows: m > 2 ? pairs : 1, unroll: 1, subgroup: subgroupSize === 8 ? 8 : 0 };
  }
  const tile = (subgroups: number, teams: number, rows: number, unroll: number): MatvecTile => {
    const most = Math.min(256, maxInvocations), lanes = Math.min(most, subgroups * subgroupSize);
    return {
      lanes,
      teams: Math.min(teams, most / lanes),
      rows,
      unroll: m > 2 ? Math.min(2, unroll) : unroll,
      subgroup: subgroupSize,
    };
  };
  if (gated) return m === 1 ? tile(1, 4, pairs, 4) : tile(1, 8, pairs, 2);
  if (k / matvecWidth(dtype) > 16 * subgroupSize) return tile(4, m === 1 ? 2 : 1, pairs, 4);
  if (sections.length > 1) return tile(1, 8, 1, 8);
  if (sections[0] > 8192) return tile(1, 8, pairs, m === 1 ? 2 : 4);
  return m === 1 ? tile(4, 2, 1, 2) : tile(2, 4, 1, 4);
}
