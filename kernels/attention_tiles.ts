/**
 * The two tile products of attention, as text.
 *
 * A workgroup is a grid of `ty × tx` threads. Each thread owns `rows × columns` scores of a tile of
 * (ty·rows) × (tx·columns), and `rows × 4·outs` values of what the scores multiply.
 *
 *   scores[r][c] += A[r][d] · B[c][d]        (dotProduct: Q·Kᵀ, dO·Vᵀ)
 *   out[r][e]    += P[r][k] · B[k][e]        (mixProduct: P·V, dS·K, …)
 *
 * Both are sums of outer products along their common axis, which is walked in chunks of `depth`. A chunk lies in workgroup
 * memory as `left[depth/4][4][rows/4][ty]` and `right[depth/4][4][…][tx]` of vec4f: four neighbours of the other axis in a
 * vec4f, so that 4 + 4 loads of 16 bytes feed 4·64 multiplications of an 8×8 thread. All indices but the lane are constants
 * where it counts, so the bounds check that WebGPU adds is paid once for all loads of a lane. Operands that lie the other
 * way in memory are turned while they are stored, scores pass from registers; lanes are xor-ed with the place along the
 * common axis, so that the stores of neighbouring threads fall into different banks.
 */
import { type AttentionTile, threads } from "./attention_common.ts";
import { joinText, partsText } from "./attention_careful.ts";
import { lanesDot, lanesMix } from "./attention_lanes.ts";
import { components, each } from "./kernel.ts";

/** Bytes of workgroup memory: both sides of a chunk, and what reduces rows without subgroups. */
export function workgroupBytes(tile: AttentionTile, outs: number, scratch: boolean): number {
  const { tx, ty, rows, depth } = tile;
  if (tile.lanes) return 0;
  return depth * (rows / 4 * ty + quadsOf(tile, outs) * tx) * 16 + (scratch ? threads(tile) * rows * 4 : 0);
}

/** Declares the workgroup memory of the products. */
export function tileMemory(tile: AttentionTile, outs: number): string {
  if (tile.lanes) return "";
  const { tx, ty, rows, depth } = tile;
  const side = (name: string, quads: number, lanes: number): string =>
    `var<workgroup> ${name}: array<array<array<array<vec4f, ${lanes}>, ${quads}>, 4>, ${depth / 4}>;`;
  return `${side("left", rows / 4, ty)}\n${side("right", quadsOf(tile, outs), tx)}`;
}

function quadsOf({ columns }: AttentionTile, outs: number): number {
  return Math.max(columns / 4, outs);
}

/** The tile's row that is row `r` of a thread. */
export function rowOf({ ty, lanes }: AttentionTile, r: number): string {
  if (lanes) return `(ty + ${r * ty}u)`;
  return `(4u * ty + ${(r >> 2) * 4 * ty + (r & 3)}u)`;
}

/** The tile's column that is column `c` of a thread. */
export function columnOf({ tx, lanes }: AttentionTile, c: number): string {
  if (lanes) return `${c}u`;
  return `(4u * tx + ${(c >> 2) * 4 * tx + (c & 3)}u)`;
}

/** An operand's rows as the loads of a tile see them. */
export interface TileRows {
  /** Name of the operand. */
  readonly name: string;
  /** Elements of a row. */
  readonly size: number;
  /** Where row `i` of the operand starts. */
  readonly start: (i: string) => string;
  /** The tile's first row, and how many rows there are in all. */
  readonly first: string;
  readonly limit: string;
  /** Rows before this one are 0 too, whatever lies there. */
  readonly least?: string;
  /** What `dotProduct` does to a load, `" * u.scale"` for one. */
  readonly scale?: string;
}

/** One vec4f on its way into workgroup memory: where it comes from in a chunk, and where it goes. */
interface Staged {
  readonly name: string;
  readonly load: (chunk: string) => string;
  readonly store: string;
}

function exists(i: string, { limit, least }: TileRows): string {
  return `${i} < ${limit}${least === undefined ? "" : ` && ${i} >= ${least}`}`;
}

/** What lanes are xor-ed with at vec4f `d4` of the common axis: a turned operand's stores then meet every bank once. */
function turnXor({ depth }: AttentionTile, lanes: number, d4: number): number {
  return (d4 * 32 / depth) & (lanes - 1);
}

/** The same for scores on their way from registers. */
function scoreXor({ ty }: AttentionTile, d4: number): number {
  return (d4 * 4) & (ty - 1);
}

/**
 * An operand of `dotProduct`, turned. The index of a load is held inside the operand and what lies past the end is
 * replaced by 0 afterwards, so that no load waits for a branch.
 */
function turned(tile: AttentionTile, side: "left" | "right", operand: TileRows): Staged[] {
  const { tx, ty, rows, columns, depth } = tile, { name, size, start, first, limit, scale = "" } = operand;
  const lanes = side === "left" ? ty : tx, k4 = depth / 4, all = threads(tile), size4 = Math.ceil(size / 4);
  const count = (side === "left" ? ty * rows : tx * columns) * k4, exact = size4 % k4 === 0;
  return each(Math.ceil(count / all), String).map((n) => {
    const at = Number(n) * all, partial = at + all > count, id = `${side}${n}`;
    const d = `(li % ${k4}u)`, row = `(${partial ? `min(li + ${at}u, ${count - 1}u)` : `(li + ${at}u)`} / ${k4}u)`;
    const i = `(${first} + ${row})`;
    const lane = `(((${row} >> 2u) % ${lanes}u) ^ ((${d} * ${32 / depth}u) & ${lanes - 1}u))`;
    const to = (c: number): string =>
      `${side}[${d}][${c}][${row} / ${4 * lanes}u][${lane}][${row} & 3u] = ${id}[${c}];`;
    const stores = each(4, to).join(" ");
    return {
      name: id,
      load: (chunk) => {
        const d4 = `(${chunk} * ${k4}u + ${d})`;
        const value = `${name}_at(${start(`min(${i}, ${limit} - 1u)`)}, ${exact ? d4 : `min(${d4}, ${size4 - 1}u)`})`;
        return `select(vec4f(), ${value}${scale}, ${exists(i, operand)}${exact ? "" : ` && ${d4} < ${size4}u`})`;
      },
      store: partial ? `if (li + ${at}u < ${count}u) { ${stores} }` : stores,
    };
  });
}

/** The right side of `mixProduct`, as it lies. Lanes past the end of a row load nothing. */
function straight(tile: AttentionTile, outs: number, operand: TileRows): Staged[] {
  const { tx, depth } = tile, { name, size, start, first, limit } = operand, all = threads(tile);
  const width = Math.min(tx * outs, Math.ceil(size / 4)), count = depth * width;
  return each(Math.ceil(count / all), String).map((n) => {
    const at = Number(n) * all, partial = at + all > count, id = `right${n}`;
    const x = partial ? `min(li + ${at}u, ${count - 1}u)` : `(li + ${at}u)`;
    const row = `(${x} / ${width}u)`, d4 = `(${x} % ${width}u)`;
    const store = `right[${row} >> 2u][${row} & 3u][${d4} / ${tx}u][${d4} % ${tx}u] = ${id};`;
    return {
      name: id,
      load: (chunk) => {
        const i = `(${first} + ${chunk} * ${depth}u + ${row})`;
        return `select(vec4f(), ${name}_at(${start(`min(${i}, ${limit} - 1u)`)}, ${d4}), ${exists(i, operand)})`;
      },
      store: partial ? `if (li + ${at}u < ${count}u) { ${store} }` : store,
    };
  });
}

/** A loop over chunks: each is loaded, stored, multiplied. All loads stand before the stores, so that they are under way together. */
function walk(count: string, staged: readonly Staged[], before: string, multiply: readonly string[]): string {
  return `for (var z = 0u; z < ${count}; z++) {
  workgroupBarrier();
  ${staged.map(({ name, load }) => `let ${name} = ${load("z")};`).join("\n")}
  ${staged.map(({ store }) => store).join("\n")}
  ${before}
  workgroupBarrier();
  ${multiply.join("\n")}
}`;
}

/** How products are summed: one after another, by eights, or into two floats, as attention_careful.ts has them. */
export type Sums = "plain" | "eights" | "careful";

/**
 * A whole product of scores: `${s}r_c` += A·Bᵀ, A along the tile's rows.
 *
 * @param sums eight products at a time may be added up before they join the sum, as `rowProduct` does it for one score
 */
export function dotProduct(tile: AttentionTile, s: string, a: TileRows, b: TileRows, sums: Sums = "plain"): string {
  if (tile.lanes) return lanesDot(tile, s, a, b);
  const { tx, ty, rows, columns, depth } = tile, to = sums === "plain" ? s : "eight";
  const perScore = (f: (id: string) => string): string[] =>
    each(rows, (r) => each(columns, (n) => f(`${r}_${n}`)).join(" "));
  const fours = each(depth / 4, (d4) => {
    const lane = (name: string, lanes: number): string => `${name} ^ ${turnXor(tile, lanes, d4)}u`;
    const steps = each(4, (c) =>
      [
        "{",
        ...each(rows / 4, (q) => `let a${q} = left[${d4}][${c}][${q}][la];`),
        ...each(columns / 4, (q) => `let b${q} = right[${d4}][${c}][${q}][lb];`),
        ...each(rows, (r) =>
          each(columns, (n) =>
            `${to}${r}_${n} = fma(a${r >> 2}[${r & 3}], b${n >> 2}[${n & 3}], ${to}${r}_${n});`)
            .join(" ")),
        "}",
      ].join("\n"));
    return `{ let la = ${lane("ty", ty)}; let lb = ${lane("tx", tx)};\n${steps.join("\n")} }`;
  });
  const eights = each(depth / 8, (n) =>
    [
      `{ ${perScore((id) => `var eight${id} = 0.0f;`).join("\n")}`,
      ...fours.slice(2 * n, 2 * n + 2),
      `${perScore((id) => `${s}${id} += eight${id};`).join("\n")} }`,
    ].join("\n"));
  // A loop, since these steps are ten times as long.
  const careful = `for (var d = 0u; d < ${depth}u; d++) {
    let turn = d / 4u * ${32 / depth}u; let la = ty ^ (turn & ${ty - 1}u); let lb = tx ^ (turn & ${tx - 1}u);
    ${each(rows / 4, (q) => `let a${q} = left[d / 4u][d % 4u][${q}][la]; ${partsText(`a${q}`, "vec4f")}`).join("\n")}
    ${
    each(columns / 4, (q) => `let b${q} = right[d / 4u][d % 4u][${q}][lb]; ${partsText(`b${q}`, "vec4f")}`).join("\n")
  }
    ${
    each(rows, (r) =>
      each(columns, (n) =>
        joinText(`${s}${r}_${n}`, `a${r >> 2}[${r & 3}]`, `b${n >> 2}[${n & 3}]`)).join("\n"))
      .join("\n")
  }
  }`;
  const staged = [...turned(tile, "left", a), ...turned(tile, "right", b)];
  return walk(`${Math.ceil(a.size / depth)}u`, staged, "", { plain: fours, eights, careful: [careful] }[sums]);
}

/**
 * `sum` += one whole product of rows of `size` elements, in the order of `dotProduct`: statements in which `a` and `b`
 * are the vec4f of both rows at `d4`.
 */
export function rowProduct(size: number, a: string, b: string, sums: Sums): string {
  const size4 = Math.ceil(size / 4),
    fours = (to: string) =>
      `let a = ${a}; let b = ${b}; ${to} = fma(a.w, b.w, fma(a.z, b.z, fma(a.y, b.y, fma(a.x, b.x, ${to}))));`;
  if (sums === "careful") {
    const steps = components.map((x) => joinText("sum", `a.${x}`, `b.${x}`)).join(" "),
      parts = partsText("a", "vec4f") + partsText("b", "vec4f");
    return `for (var d4 = 0u; d4 < ${size4}u; d4++) { let a = ${a}; let b = ${b}; ${parts} ${steps} }`;
  }
  if (sums === "plain") return `for (var d4 = 0u; d4 < ${size4}u; d4++) { ${fours("sum")} }`;
  return `for (var first = 0u; first < ${size4}u; first += 2u) {
    var eight = 0.0f;
    for (var d4 = first; d4 < min(first + 2u, ${size4}u); d4++) { ${fours("eight")} }
    sum += eight;
  }`;
}

/** A whole product of scores with a right side: `${o}r_e` += P·B for the first `count` columns of the tile, P in `${p}r_c`. */
export function mixProduct(
  tile: AttentionTile,
  p: string,
  b: TileRows,
  outs: number,
  o: string,
  count: string,
): string {
  if (tile.lanes) return lanesMix(tile, p, b, o);
  const { tx, ty, rows, columns, depth } = tile, k4 = depth / 4;
  const scores = each(columns / 4, (group) => {
    const at = `(tx + ${group * tx}u)`, d4 = `(${at} % ${k4}u)`;
    const stores = each(
      4,
      (c) =>
        each(
          rows / 4,
          (q) =>
            `left[${d4}][${c}][${q}][ty ^ ((${d4} * 4u) & ${ty - 1}u)] = vec4f(${
              each(4, (i) => `${p}${q * 4 + i}_${group * 4 + c}`).join(", ")
            });`,
        ).join(" "),
    );
    return `if (${at} / ${k4}u == z) {\n${stores.join("\n")}\n}`;
  }).join("\n");
  const multiply = each(k4, (d4) =>
    [
      `{ let la = ty ^ ${scoreXor(tile, d4)}u;`,
      ...each(4, (c) =>
        [
          "{",
          ...each(rows / 4, (q) => `let a${q} = left[${d4}][${c}][${q}][la];`),
          ...each(outs, (e) => `let b${e} = right[${d4}][${c}][${e}][tx];`),
          ...each(
            rows,
            (r) =>
              each(outs, (e) => `${o}${r}_${e} = fma(vec4f(a${r >> 2}[${r & 3}]), b${e}, ${o}${r}_${e});`).join(" "),
          ),
          "}",
        ].join("\n")),
      "}",
    ].join("\n"));
  return walk(`((${count} + ${depth - 1}u) / ${depth}u)`, straight(tile, outs, b), scores, multiply);
}

/** A thread's four scores of row `r` and column group `group` as one vec4f. */
export function four(name: string, r: number, group: number): string {
  return `vec4f(${each(4, (i) => `${name}${r}_${group * 4 + i}`).join(", ")})`;
}

/**
 * Statements that combine values of a thread over the `tx` threads of its row, so that all of them end with the whole: by
 * subgroup shuffles, or through the workgroup array `rowScratch`.
 */
export function reduceRows(
  tx: number,
  subgroups: boolean,
  names: readonly string[],
  join: (a: string, b: string) => string,
): string {
  const n = names.length;
  if (tx === 1) return "";
  if (subgroups) {
    return each(
      Math.log2(tx),
      (i) => names.map((name) => `${name} = ${join(name, `subgroupShuffleXor(${name}, ${1 << i}u)`)};`).join(" "),
    ).join("\n");
  }
  return [
    "workgroupBarrier();",
    ...names.map((name, i) => `rowScratch[li * ${n}u + ${i}u] = ${name};`),
    "workgroupBarrier();",
    // Every thread of a row joins in the same order, so all of them end with the same bits.
    ...names.map((name, i) => `${name} = rowScratch[ty * ${tx * n}u + ${i}u];`),
    `for (var j = 1u; j < ${tx}u; j++) { let start = (ty * ${tx}u + j) * ${n}u;`,
    ...names.map((name, i) => `${name} = ${join(name, `rowScratch[start + ${i}u]`)};`),
    "}",
  ].join("\n");
}

/** Declares what `reduceRows` writes `count` values of each of `threads` threads through when there are no subgroups. */
export function rowScratch(threads: number, count: number, subgroups: boolean, type: "f32" | "vec2f" = "f32"): string {
  return subgroups ? "" : `var<workgroup> rowScratch: array<${type}, ${threads * count}>;`;
}
