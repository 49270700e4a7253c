/**
 * Linear layers over few rows: y = norm(x)·Wᵀ, several weights in one dispatch, gated or not, plus a residual. What counts is
 * that the weights come in at the speed of memory. A workgroup has up to eight rows of x; those with the others and the same
 * rows of W are its neighbours, so that W comes from memory once.
 *
 *   team of lanes ──▶ `rows` rows of W, 16 bytes a lane and load, `unroll` loads under way
 *                     Σ w·x, and beside it Σ x² for the norm: a row's scale factors out of its products,
 *                     y = r·(Σ w·(x·n)), so nobody waits for it
 *   lanes meet by shuffles, slices of a team through workgroup memory; one thread a result finishes it
 *
 * Floor: the weights once, at 4.07 TB/s on an H200; for Llama-3.2-1B in bf16, 2.47 GB, 0.61 ms. Measured there in Deno's own
 * WebGPU, ms for the 65 products of a token with two empty dispatches a layer between them, lanes x teams x rows, u unroll:
 *   v1  a subgroup a row, 8 rows a workgroup, all of a row under way; four subgroups a row of 8192         1.056
 *   v2  gate and up: 32x8x1u4 1.065, 32x8x1u2 1.052, 64x4x1u2 1.030, 32x8x2u2 1.018, 32x4x2u4 ◀             1.011
 *   v3  down: 32x8x1u8 1.089, 128x2x1u8 1.037, 256x1x1u4 0.988, 128x2x2u4 ◀                                 0.982
 *   v4  q, k and v: 32x8x2u4 1.048, 32x4x1u4 1.005, 64x4x1u4 0.991, 32x8x1u8 ◀;  o: 32x8x1u2 1.021, 128x2x1u2 ◀  0.968
 *   v5  scores: 128x1x1u2 1.011, 32x8x1u8 0.993, 32x8x2u4 0.974, 32x8x2u2 ◀                                 0.964
 *   without the empty dispatches 0.903: 2.7 TB/s over 65 dispatches. Two rows of x: 1.203 as v1, 1.049 as picked below.
 *
 * Many rows of x are bound by arithmetic, and by x coming out of the first cache. µs a dispatch through Dawn, timestamps, the card
 * kept busy, lanes x teams x slices r rows: 8 rows of x, then 24; gate and up, down, q k v, o, scores
 *   v6  norm times x, each team all squares, 32x8x1r2u2 and its like              75, 27, 20, 15, 389   184, 72, 55, 35, 1110
 *   v7  norm times w where that is less, squares shared by teams, fma for dot     49, 31, 20, 13, 391   121, 72, 52, 34, 1172
 *   v8  a load at a time, four rows a team, few lanes and many slices ◀           38, 19, 14, 9, 253     82, 46, 27, 14, 697
 *   16 rows of x in a workgroup: never faster than twice 8
 * One row of x in the same way: gate and up 20.3, of 66 other tiles the best 20.1; down 11.6, 32x1x8r2u2 ◀ 11.0; q k v 8.0,
 * 32x2x4r2u2 ◀ 6.5; o 5.5, others 5.4; scores 122, others 121. Four rows: 35 and 29 as 16x16x1r2; 13.7; 11.6 and 8.8 as 32x4x2r2; 6.8; 172.
 * Floor of 24: 1.6 GFLOP of 63 TFLOP/s for gate and up, 26 µs.
 */
import type { Capabilities } from "../tensor/backend.ts";
import { components, each, type Kernel, kernel } from "./kernel.ts";
import type { MatmulDType } from "./matmul.ts";
import { mathFunctions } from "./math.ts";
import { storageType4, unpack4 } from "./storage.ts";

/** How the weights' rows are spread over threads. */
export interface MatvecTile {
  /** Threads side by side that share a row; a power of two, and no more than a subgroup has. */
  readonly lanes: number;
  /** Teams of lanes in a workgroup. */
  readonly teams: number;
  /** Threads that share a row at a distance of `lanes` times `teams`. */
  readonly slices: number;
  /** Rows of a weight that a team has at once. */
  readonly rows: number;
  /** Loads of each row that a lane has under way. */
  readonly unroll: number;
  /** Lanes of a subgroup; 0 goes through workgroup memory alone. */
  readonly subgroup: number;
}

/** What is computed. */
export interface MatvecParts {
  /** Rows of x that a workgroup has, a power of two, of which the last ones may be missing. */
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
  const { lanes, teams, slices, rows, unroll, subgroup } = tile;
  const { m, weights, dtype, norm, gated, residual } = parts;
  const name = [
    `matvec_${lanes}x${teams}x${slices}_r${rows}_u${unroll}_m${m}_${weights}${dtype}`,
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
  const { lanes, teams, slices, rows, unroll, subgroup } = tile, { m, dtype, norm, gated, residual } = parts;
  const halves = matvecWidth(dtype) / 4, across = lanes * slices, threads = across * teams;
  // A gate's rows come in pairs, one of each weight.
  const firsts = gated ? each(rows, (r) => `g${r}`) : [], sums = [...firsts, ...each(rows, (r) => `s${r}`)];
  // Teams share the squares of several rows of x, since each has but its own rows of the weights to add up besides.
  const squares = norm === null ? 0 : Math.ceil(m / teams);
  const owns = m === 1 ? [] : each(
    squares,
    (j) => `let own${j} = u.x + min(begin + min(team + ${j * teams}u, ${m - 1}u), u.m - 1u) * ${halves}u * u.loads;`,
  );
  const all = [...sums.flatMap((s) => each(m, (i) => `${s}_${i}`)), ...each(squares, (j) => `q${j}`)];
  // Whichever is less work.
  const scaled = norm === null ? null : m > sums.length ? "weights" : "x";
  const dot = (a: string, b: string, to: string) =>
    m > 2 ? components.map((c) => `${to} = fma(${a}.${c}, ${b}.${c}, ${to});`).join(" ") : `${to} += dot(${a}, ${b});`;
  /** Loads at `k` of the rows of some weights, as variables that end with u. */
  const fetch = (from: readonly (readonly [sum: string, place: string])[], u: number) =>
    from.map(([sum, place]) => `let ${sum}w${u} = ${place}k${u}];`).join(" ");
  const use = (from: readonly (readonly [sum: string, place: string])[], u: number) => {
    const half = (f: (h: number) => string) => each(halves, f).join(" ");
    const at = (h: number) => `${halves}u * k${u} + ${h}u`;
    const norms = norm === null
      ? ""
      : half((h) =>
        norm === "f32"
          ? `let n_${h} = norm[u.norm + ${at(h)}];`
          : `let b_${h} = norm[u.norm + ${at(h)}]; let n_${h} = vec4f(${unpack4(norm, `b_${h}`).join(", ")});`
      );
    const raw = scaled === "x" ? "raw" : "x";
    const xs = each(m, (i) => half((h) => `let ${raw}${i}_${h} = x[x${i} + ${at(h)}];`));
    const own = each(
      squares,
      (j) =>
        m === 1
          ? half((h) => dot(`${raw}0_${h}`, `${raw}0_${h}`, `q${j}`))
          : half((h) => `{ let own = x[own${j} + ${at(h)}]; ${dot("own", "own", `q${j}`)} }`),
    );
    const times = scaled === "x" ? each(m, (i) => half((h) => `let x${i}_${h} = raw${i}_${h} * n_${h};`)) : [];
    const products = from.map(([sum]) => {
      const w = `${sum}w${u}`, by = (h: number) => scaled === "weights" ? ` * n_${h}` : "";
      const parts = dtype === "f32"
        ? `let p0 = ${w}${by(0)};`
        : half((h) => `let p${h} = vec4f(${unpack4(dtype, `${w}.${h === 0 ? "xy" : "zw"}`).join(", ")})${by(h)};`);
      return `{ ${parts} ${each(m, (i) => half((h) => dot(`p${h}`, `x${i}_${h}`, `${sum}_${i}`))).join(" ")} }`;
    });
    return `{ ${[norms, ...xs, ...own, ...times].join(" ")}\n      ${products.join("\n      ")} }`;
  };
  const sweep = (from: readonly (readonly [sum: string, place: string])[]) => `
    var k = first_k;
    for (; k + ${(unroll - 1) * across}u < u.loads; k += ${unroll * across}u) {
      ${each(unroll, (n) => `let k${n} = k + ${n * across}u;`).join(" ")}
      ${each(unroll, (n) => fetch(from, n)).join("\n      ")}
      ${each(unroll, (n) => use(from, n)).join("\n      ")}
    }
    for (; k < u.loads; k += ${across}u) { let k0 = k; ${fetch(from, 0)} ${use(from, 0)} }`;
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

  const shuffles = subgroup === 0
    ? ""
    : each(Math.log2(lanes), (b) => all.map((s) => `${s} += subgroupShuffleXor(${s}, ${1 << b}u);`).join(" "))
      .join("\n  ");
  // Parts of a sum that shuffles do not join.
  const joined = subgroup === 0 ? across : slices, alone = joined === 1 && (m === 1 || norm === null);
  /** Writes a result: row `r` of the team's, row `i` of x, from its sums and its sum of squares. */
  const finish = (row: string, i: string, sum: string, gate: string, square: string) => {
    const scale = norm === null ? "" : ` * (1.0f / sqrt(${square} * u.inverse + u.eps))`;
    const value = gated
      ? `let gate = ${gate}${scale}; let value = gate * ft_sigmoid(gate) * (${sum}${scale});`
      : `let value = ${sum}${scale};`;
    return `if (begin + ${i} < u.m && ${row} < u.n) { ${value} let at = (begin + ${i}) * u.n + ${row};
      y[at] = value${residual ? " + residual[u.residual + at]" : ""}; }`;
  };
  const partOf = (n: string, team: string) =>
    `(${each(joined, (p) => `part[((${n}) * ${joined}u + ${p}u) * ${teams}u + ${team}]`).join(" + ")})`;
  const meet = alone
    ? each(rows * m, (n) => {
      const r = n % rows, i = Math.floor(n / rows);
      return `if (lane == ${n % lanes}u) { ${finish(`(row + ${r}u)`, `${i}u`, `s${r}_${i}`, `g${r}_${i}`, "q0")} }`;
    }).join("\n  ")
    : `${subgroup === 0 ? "" : "if (lane == 0u) "}{ let place = ${
      subgroup === 0 ? "first_k" : "slice"
    } * ${teams}u + team; ${all.map((s, n) => `part[${n * joined * teams}u + place] = ${s};`).join(" ")} }
  workgroupBarrier();
  for (var n = li; n < ${teams * rows * m}u; n += ${threads}u) {
    let t = n % ${teams}u; let r = n / ${teams}u % ${rows}u; let i = n / ${teams * rows}u;
    let result = first_row + t * ${rows}u + r;
    ${
      finish(
        "result",
        "i",
        partOf(`(r + ${firsts.length}u) * ${m}u + i`, "t"),
        partOf(`r * ${m}u + i`, "t"),
        m === 1 ? partOf(`${sums.length * m}u`, "t") : partOf(`${sums.length * m}u + i / ${teams}u`, `i % ${teams}u`),
      )
    }
  }`;
  return `${mathFunctions(gated ? "ft_sigmoid()" : "")}
${alone ? "" : `var<workgroup> part: array<f32, ${all.length * joined * teams}>;`}
@compute @workgroup_size(${threads})
fn main(@builtin(workgroup_id) wid: vec3u, @builtin(local_invocation_index) li: u32) {
  let lane = li % ${lanes}u; let team = li / ${lanes}u % ${teams}u; let slice = li / ${lanes * teams}u;
  let first_k = slice * ${lanes}u + lane;
  let first_row = (wid.z * u.groups + wid.y) * ${teams * rows}u; let begin = wid.x * ${m}u;
  let row = first_row + team * ${rows}u;
  ${each(m, (i) => `let x${i} = u.x + min(begin + ${i}u, u.m - 1u) * ${halves}u * u.loads;`).join(" ")}
${owns.join(" ")}
  ${all.map((s) => `var ${s} = 0.0f;`).join(" ")}
  ${work}
  ${shuffles}
  ${meet}
}`;
}

/** The tile for rows of k elements: what was fastest on an H200, for one row of x in a chain of all of a model's layers. */
export function pickMatvec(
  { subgroupSize, maxInvocations }: Pick<Capabilities, "subgroupSize" | "maxInvocations">,
  { k, sections, dtype, m, gated, blocks }: Pick<MatvecParts, "dtype" | "m" | "gated"> & {
    readonly k: number;
    /** Rows of each weight. */
    readonly sections: readonly number[];
    /** Workgroups that stream the same rows for other rows of x. */
    readonly blocks: number;
  },
): MatvecTile {
  /** The most rows, up to so many, that every weight has a multiple of. */
  const upTo = (rows: number): number => sections.every((n) => n % rows === 0) ? rows : upTo(rows / 2);
  if (subgroupSize < 16) { // a processor, or no subgroups
    const subgroup = subgroupSize === 8 ? 8 : 0;
    return { lanes: 8, teams: 8, slices: 1, rows: m > 2 ? upTo(2) : 1, unroll: 1, subgroup };
  }
  const tile = (lanes: number, teams: number, slices: number, rows: number, unroll: number): MatvecTile => {
    const most = Math.min(256, maxInvocations) / lanes, some = Math.min(most, slices);
    return {
      lanes,
      teams: Math.min(teams, most / some),
      slices: some,
      rows: upTo(rows),
      unroll,
      subgroup: subgroupSize,
    };
  };
  const whole = subgroupSize, loads = k / matvecWidth(dtype), long = loads > 16 * whole, wide = sections[0] > 8192;
  if (m <= 2) {
    if (gated) return m === 1 ? tile(whole, 4, 1, 2, 4) : tile(whole, 8, 1, 2, 2);
    if (long) return m === 1 ? tile(whole, 1, 8, 2, 2) : tile(whole, 1, 4, 2, 4);
    if (sections.length > 1) return m === 1 ? tile(whole, 2, 4, 2, 2) : tile(whole, 4, 2, 2, 2);
    if (wide) return tile(whole, 8, 1, 2, m === 1 ? 2 : 4);
    return m === 1 ? tile(whole, 2, 4, 1, 2) : tile(whole, 4, 2, 1, 4);
  }
  // More rows of x are more to do than to load: teams that are neighbours in a subgroup read the same x at once.
  if (gated) return m === 4 ? tile(16, 16, 1, 2, 1) : blocks === 1 ? tile(whole, 8, 1, 2, 1) : tile(4, 16, 2, 2, 1);
  if (long) return tile(16, 2, 8, 4, 1);
  if (sections.length > 1) return m === 4 ? tile(whole, 4, 2, 2, 1) : tile(4, 8, 8, 2, 1);
  if (wide) return tile(whole, 8, 1, 4, 1);
  return blocks === 1 ? tile(16, 2, 8, 4, 1) : tile(8, 4, 4, 4, 1);
}
