/**
 * The two tile products of attention, as text.
 *
 * A workgroup is a grid of `ty × tx` threads. Each thread owns `rows × columns` scores of a tile of
 * (ty·rows) × (tx·columns), and `rows × 4·outs` values of what the scores multiply.
 *
 *   scores[r][c] += A[r][d] · B[c][d]        (dotProduct: Q·Kᵀ, dO·Vᵀ)
 *   out[r][e]    += P[r][k] · B[k][e]        (mixProduct: P·V, dS·K, …)
 *
 * Both walk their common axis in chunks of `depth`. A chunk lies in workgroup memory as one short row for each lane
 * that reads it: `tile[lane][constant]`. The lane picks the row once, everything behind it is a constant offset, so
 * the bounds check that WebGPU adds to an index is paid once a chunk and not once a load; rows are padded to an odd
 * number of vec4f, so the lanes of a load fall into different banks. The left side's lanes come first, then the right side's.
 */
import { type AttentionTile, threads } from "./attention_common.ts";
import { each } from "./kernel.ts";

/** Vec4f of one lane's row of workgroup memory. */
function laneWidth({ rows, columns, depth }: AttentionTile, outs: number): number {
  return Math.max(rows * depth / 4, columns * depth / 4, depth * outs) + 1;
}

/** The largest number of chunks up to `most` that divides `chunks`. */
function chunksPerStage(chunks: number, most: number): number {
  for (let n = Math.min(most, chunks); n > 1; n--) if (chunks % n === 0) return n;
  return 1;
}

/** One vec4f on its way into workgroup memory. */
interface Staged {
  readonly load: string;
  readonly store: string;
}

/**
 * Four-wide loads into the lane rows at `to`, for an operand whose rows are the tile's rows (`lanes` = ty) or its
 * columns (`lanes` = tx) and whose common axis runs along d: used by both operands of `dotChunk`.
 *
 * @param load vec4f expression for row `row` of the tile and vec4f `d4` of the chunk
 * @param id a letter that keeps names apart
 */
function stageDot(
  tile: AttentionTile,
  side: "rows" | "columns",
  id: string,
  to: string,
  load: (row: string, d4: string) => string,
): Staged[] {
  const { tx, ty, rows, columns, depth } = tile;
  const k4 = depth / 4, count = (side === "rows" ? ty * rows : tx * columns) * k4, all = threads(tile);
  const staged: Staged[] = [];
  for (let i = 0; i * all < count; i++) {
    const x = `${id}${i}`;
    const partial = (i + 1) * all > count;
    const load4 = [
      `let ${x}_row = ${partial ? `min(li + ${i * all}u, ${count - 1}u)` : `(li + ${i * all}u)`} / ${k4}u;`,
      `let ${x} = ${load(`${x}_row`, `(li % ${k4}u)`)};`,
    ].join(" ");
    const [lane, slot] = side === "rows"
      ? [`${x}_row / ${rows}u`, `${x}_row % ${rows}u`]
      : [`(${x}_row >> 2u) % ${tx}u`, `((${x}_row & 3u) + 4u * (${x}_row / ${4 * tx}u))`];
    const store = `tile[${to} + ${lane}][${slot} * ${k4}u + li % ${k4}u] = ${x};`;
    staged.push({ load: load4, store: partial ? `if (li + ${i * all}u < ${count}u) { ${store} }` : store });
  }
  return staged;
}

/**
 * The same for an operand whose rows are the common axis: used by the right side of `mixChunk`.
 *
 * @param size vec4f of a row that exist; the lanes past it load nothing
 */
function stageMix(
  tile: AttentionTile,
  outs: number,
  size: number,
  id: string,
  to: string,
  load: (row: string, d4: string) => string,
): Staged[] {
  const { tx, depth } = tile;
  const width = Math.min(tx * outs, size), count = depth * width, all = threads(tile);
  const staged: Staged[] = [];
  for (let i = 0; i * all < count; i++) {
    const x = `${id}${i}`;
    const partial = (i + 1) * all > count;
    const load4 = [
      `let ${x}_at = ${partial ? `min(li + ${i * all}u, ${count - 1}u)` : `li + ${i * all}u`};`,
      `let ${x} = ${load(`(${x}_at / ${width}u)`, `(${x}_at % ${width}u)`)};`,
    ].join(" ");
    const lane = `(${x}_at % ${width}u) % ${tx}u`;
    const slot = `(${x}_at / ${width}u) * ${outs}u + (${x}_at % ${width}u) / ${tx}u`;
    const store = `tile[${to} + ${lane}][${slot}] = ${x};`;
    staged.push({ load: load4, store: partial ? `if (li + ${i * all}u < ${count}u) { ${store} }` : store });
  }
  return staged;
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
}

function exists(i: string, limit: string, least: string | undefined): string {
  return `${i} < ${limit}${least === undefined ? "" : ` && ${i} >= ${least}`}`;
}

/**
 * What `stageDot` loads of an operand: chunk `chunk` of its rows, 0 past the last row and past the row's end. The index
 * is held inside the operand and the value replaced afterwards, so that no load waits for a branch.
 */
function dotLoad({ depth }: AttentionTile, { name, size, start, first, limit, least }: TileRows, chunk: string) {
  const size4 = Math.ceil(size / 4), exact = size4 % (depth / 4) === 0;
  return (row: string, d: string): string => {
    const d4 = `(${chunk} * ${depth / 4}u + ${d})`, i = `(${first} + ${row})`;
    const value = `${name}_at(${start(`min(${i}, ${limit} - 1u)`)}, ${exact ? d4 : `min(${d4}, ${size4 - 1}u)`})`;
    return `select(vec4f(), ${value}, ${exists(i, limit, least)}${exact ? "" : ` && ${d4} < ${size4}u`})`;
  };
}

/** What `stageMix` loads of an operand: rows of chunk `chunk`, 0 past the last one. */
function mixLoad({ depth }: AttentionTile, { name, start, first, limit, least }: TileRows, chunk: string) {
  return (row: string, d4: string): string => {
    const i = `(${first} + ${chunk} * ${depth}u + ${row})`;
    return `select(vec4f(), ${name}_at(${start(`min(${i}, ${limit} - 1u)`)}, ${d4}), ${exists(i, limit, least)})`;
  };
}

/** The loads and stores of a stage, `batch` loads under way together. */
function stages({ batch }: AttentionTile, parts: readonly Staged[][]): string {
  const all = parts.flat();
  return each(Math.ceil(all.length / batch), (n) => {
    const some = all.slice(n * batch, (n + 1) * batch);
    return [...some.map(({ load }) => load), ...some.map(({ store }) => store)].join("\n");
  }).join("\n");
}

/** One chunk of scores += A·Bᵀ: `${s}${r}_${c}` scalars, lane rows `a` and `b` of workgroup memory. */
function dotChunk({ rows, columns, depth }: AttentionTile, s: string, a: string, b: string): string[] {
  return each(depth / 4, (d) =>
    [
      "{",
      ...each(rows, (r) => `let a${r} = tile[${a}][${r * depth / 4 + d}];`),
      ...each(columns, (c) =>
        [
          `{ let b = tile[${b}][${c * depth / 4 + d}];`,
          ...["x", "y", "z", "w"].flatMap((x) =>
            each(rows, (r) => `${s}${r}_${c} = fma(a${r}.${x}, b.${x}, ${s}${r}_${c});`)
          ),
          "}",
        ].join(" ")),
      "}",
    ].join("\n"));
}

/** One chunk of out += P·B: `${o}${r}_${e}` vec4f, lane rows `a` and `b` of workgroup memory. */
function mixChunk({ rows, depth }: AttentionTile, outs: number, o: string, a: string, b: string): string[] {
  return each(depth / 4, (d) =>
    [
      "{",
      ...each(rows, (r) => `let a${r} = tile[${a}][${r * depth / 4 + d}];`),
      ...["x", "y", "z", "w"].flatMap((x, i) =>
        each(outs, (e) =>
          [
            `{ let b = tile[${b}][${(d * 4 + i) * outs + e}];`,
            ...each(rows, (r) => `${o}${r}_${e} = fma(vec4f(a${r}.${x}), b, ${o}${r}_${e});`),
            "}",
          ].join(" "))
      ),
      "}",
    ].join("\n"));
}

/** A thread's four scores of row `r` and column group `group` as one vec4f. */
export function four(name: string, r: number, group: number): string {
  return `vec4f(${each(4, (i) => `${name}${r}_${group * 4 + i}`).join(", ")})`;
}

/**
 * Writes those of a thread's scores `${p}${r}_${c}` that belong to chunks `first` … `first + count − 1` of the tile's columns
 * as the left side of `mixChunk`, from lane row `to`.
 */
function stageScores(
  { tx, ty, rows, columns, depth }: AttentionTile,
  p: string,
  to: string,
  first: string,
  count: number,
): string {
  const k4 = depth / 4;
  return each(columns / 4, (group) => {
    const at = `(tx + ${group * tx}u)`, chunk = `(${at} / ${k4}u - ${first})`;
    const stores = each(
      rows,
      (r) => `tile[${to} + ${chunk} * ${ty}u + ty][${r * k4}u + ${at} % ${k4}u] = ${four(p, r, group)};`,
    );
    // An unsigned difference below the first chunk wraps to a large number, so one comparison holds both ends.
    return `if (${chunk} < ${count}u) {\n${stores.join("\n")}\n}`;
  }).join("\n");
}

/** Chunks of a kernel's products, and lane rows of its workgroup memory. */
export interface ProductLayout {
  /** Lane row where the right side starts. */
  readonly right: number;
  readonly laneRows: number;
  readonly width: number;
}

/**
 * Workgroup memory for products whose stages hold up to `chunks` chunks.
 *
 * @param outs vec4f that a thread owns of a row of the widest result
 */
export function productLayout(tile: AttentionTile, chunks: readonly number[], outs: number): ProductLayout {
  const most = Math.max(...chunks.map((n) => chunksPerStage(n, tile.stage)));
  return { right: most * tile.ty, laneRows: most * (tile.ty + tile.tx), width: laneWidth(tile, outs) };
}

/** Bytes of workgroup memory: the lane rows, and what reduces rows without subgroups. */
export function workgroupBytes(tile: AttentionTile, { laneRows, width }: ProductLayout, scratch: boolean): number {
  return laneRows * width * 16 + (scratch ? threads(tile) * tile.rows * 4 : 0);
}

/** A whole product of scores: `${s}r_c` += A·Bᵀ, A along the tile's rows, its elements multiplied by `scale`. */
export function dotProduct(
  tile: AttentionTile,
  { right }: ProductLayout,
  s: string,
  a: TileRows,
  b: TileRows,
  scale = "",
): string {
  const { tx, ty, depth } = tile, chunks = Math.ceil(a.size / depth), stage = chunksPerStage(chunks, tile.stage);
  const load = (rows: TileRows, z: string, scale: string) => (r: string, d: string): string =>
    dotLoad(tile, rows, `(d0 + ${z}u)`)(r, d) + scale;
  return `for (var d0 = 0u; d0 < ${chunks}u; d0 += ${stage}u) {
  workgroupBarrier();
  ${
    stages(
      tile,
      each(stage, String).flatMap((z) => [
        stageDot(tile, "rows", `a${z}_`, `${Number(z) * ty}u`, load(a, z, scale)),
        stageDot(tile, "columns", `b${z}_`, `${right + Number(z) * tx}u`, load(b, z, "")),
      ]),
    )
  }
  workgroupBarrier();
  for (var z = 0u; z < ${stage}u; z++) {
    let left = z * ${ty}u + ty; let right = ${right}u + z * ${tx}u + tx;
    ${dotChunk(tile, s, "left", "right").join("\n")}
  }
}`;
}

/** A whole product of scores with a right side: `${o}r_e` += P·B for the first `count` columns of the tile, P in `${p}r_c`. */
export function mixProduct(
  tile: AttentionTile,
  { right }: ProductLayout,
  p: string,
  b: TileRows,
  outs: number,
  o: string,
  count: string,
): string {
  const { tx, ty, columns, depth } = tile, stage = chunksPerStage(tx * columns / depth, tile.stage);
  const size4 = Math.ceil(b.size / 4);
  return `for (var c0 = 0u; c0 < (${count} + ${depth - 1}u) / ${depth}u; c0 += ${stage}u) {
  workgroupBarrier();
  ${
    stages(
      tile,
      each(stage, String).map((z) =>
        stageMix(tile, outs, size4, `b${z}_`, `${right + Number(z) * tx}u`, mixLoad(tile, b, `(c0 + ${z}u)`))
      ),
    )
  }
  ${stageScores(tile, p, "0u", "c0", stage)}
  workgroupBarrier();
  for (var z = 0u; z < ${stage}u; z++) {
    let left = z * ${ty}u + ty; let right = ${right}u + z * ${tx}u + tx;
    ${mixChunk(tile, outs, o, "left", "right").join("\n")}
  }
}`;
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
export function rowScratch(threads: number, count: number, subgroups: boolean): string {
  return subgroups ? "" : `var<workgroup> rowScratch: array<f32, ${threads * count}>;`;
}
