/**
 * What the attention kernels share: how a tile is spread over threads, how 16- and 32-bit operands are read, the two
 * tile products, and the text of every option between the scores and the softmax.
 *
 * A workgroup is a grid of `ty × tx` threads. Each thread owns `rows × columns` scores of a tile of
 * (ty·rows) × (tx·columns), and `rows × 4·outs` values of what the scores multiply.
 *
 *   scores[r][c] += A[r][d] · B[c][d]        (dotChunk: Q·Kᵀ, dO·Vᵀ)
 *   out[r][e]    += P[r][k] · B[k][e]        (mixChunk: P·V, dS·K, …)
 *
 * Both walk their common axis in chunks of `depth`. A chunk lies in workgroup memory as one short row for each lane
 * that reads it: `tile[lane][constant]`. The lane picks the row once, everything behind it is a constant offset, so
 * the bounds check that WebGPU adds to an index is paid once a chunk and not once a load; rows are padded to an odd
 * number of vec4f, so the lanes of a load fall into different banks.
 */
import { each } from "./kernel.ts";
import type { UniformType } from "./kernel.ts";

/** How an operand's numbers are stored; arithmetic is f32 always. */
export type AttentionStorage = "f32" | "f16" | "bf16";

/** One operand as the kernel's text sees it. */
export interface AttentionOperand {
  readonly storage: AttentionStorage;
  /** Four numbers a load: needs a head size, strides and an offset that are multiples of four. */
  readonly vector: boolean;
}

/** Where an operand's elements lie, in elements; the head size has stride 1. */
export interface AttentionStrides {
  readonly offset: number;
  readonly batch: number;
  readonly seq: number;
  readonly head: number;
}

/** How a tile is spread over threads and staged through workgroup memory. */
export interface AttentionTile {
  /** Threads side by side along the columns; a power of two. */
  readonly tx: number;
  /** Threads along the rows. */
  readonly ty: number;
  /** Rows a thread owns. */
  readonly rows: number;
  /** Score columns a thread owns: 4 or 8. */
  readonly columns: number;
  /** Length of one chunk of the common axis: 8 or 16. */
  readonly depth: number;
  /** Most chunks loaded between two barriers. */
  readonly stage: number;
  /** Most vec4f that a thread loads before it stores the first of them: registers against waiting. */
  readonly batch: number;
}

/** The options whose code a kernel contains; what they are set to comes through uniforms and storage. */
export interface AttentionOptions {
  /** Causal or a window: uniforms `left` and `right`, 2³⁰ when unbounded. */
  readonly window: boolean;
  readonly softcap: boolean;
  /** Storage `alibi`, f32 [H] or [B, H]. */
  readonly alibi: boolean;
  /** Storage `bias`, read by strides of [B, H, Sq, Sk]. */
  readonly bias: AttentionStorage | "none";
  /** Storage `mask`, one u32 an element, read by strides of [B, H, Sq, Sk]; not 0 = may attend. */
  readonly mask: boolean;
  /** Storage `sinks`, f32 [H]. */
  readonly sinks: boolean;
  /** Storage `dropoutKey`, u32 [2]. */
  readonly dropout: boolean;
  /** Lengths from the uniforms, from `cuQ` and `cuK`, or keys counted by `cacheLengths`. */
  readonly lengths: "dense" | "varlen" | "cache";
  /** Cache only: storage `leftpad`, i32 [B]. */
  readonly leftpad: boolean;
  /** Cache only: storage `cacheIndex`, i32 [B], the cache row of a batch row. */
  readonly cacheIndex: boolean;
  /** Cache only: storage `pages`, i32 [B, pages a row]; the batch strides of k and v then step over a page. */
  readonly paged: boolean;
}

/** No options: what `{ ...plainAttention, window: true }` starts from. */
export const plainAttention: AttentionOptions = {
  window: false,
  softcap: false,
  alibi: false,
  bias: "none",
  mask: false,
  sinks: false,
  dropout: false,
  lengths: "dense",
  leftpad: false,
  cacheIndex: false,
  paged: false,
};

/** What `pick…` wants to know of a device. */
export interface AttentionCapabilities {
  /** Smallest subgroup, 0 where there are none. */
  readonly subgroupSize: number;
  /** Bytes of workgroup memory. */
  readonly workgroupMemory: number;
  /** Threads a workgroup may have. */
  readonly workgroupThreads: number;
}

/** A score that no softmax can see, and a row maximum that stays above it. Finite, so that no NaN can come of them. */
export const masked = "-1e30f";
/** The row maximum before any score. */
export const floor = "-5e29f";

/** Number of threads of a tile. */
export function threads({ tx, ty }: AttentionTile): number {
  return tx * ty;
}

/** Vec4f of one lane's row of workgroup memory. */
export function laneWidth({ rows, columns, depth }: AttentionTile, outs: number): number {
  return Math.max(rows * depth / 4, columns * depth / 4, depth * outs) + 1;
}

/** The largest number of chunks up to `most` that divides `chunks`. */
export function chunksPerStage(chunks: number, most: number): number {
  for (let n = Math.min(most, chunks); n > 1; n--) if (chunks % n === 0) return n;
  return 1;
}

/** Part of a kernel's name: every option that changes its text. */
export function optionsName(options: AttentionOptions): string {
  const { bias, lengths, ...flags } = options;
  const on = Object.entries(flags).filter(([, value]) => value).map(([key]) => key);
  if (bias !== "none") on.push(`bias_${bias}`);
  if (lengths !== "dense") on.push(lengths);
  return on.map((name) => `_${name}`).join("");
}

/** Part of a kernel's name: the tile. */
export function tileName({ tx, ty, rows, columns, depth, stage, batch }: AttentionTile): string {
  return `${ty * rows}x${tx * columns}_t${ty}x${tx}_k${depth}x${stage}_b${batch}`;
}

/** Part of a kernel's name: one operand. */
export function operandName({ storage, vector }: AttentionOperand): string {
  return `${storage}${vector ? "v" : ""}`;
}

/** True when four elements at a time can be loaded from that operand. */
export function isVectorOperand(headDim: number, { offset, batch, seq, head }: AttentionStrides): boolean {
  return [headDim, offset, batch, seq, head].every((n) => n % 4 === 0);
}

/** Element type of the storage binding of an operand. */
export function operandType({ storage, vector }: AttentionOperand): string {
  if (storage === "f32") return vector ? "vec4f" : "f32";
  return vector ? "vec2u" : "u32";
}

/** The strides as uniforms: in vec4f when the operand is read four at a time. */
export function strideUniforms(
  name: string,
  { vector }: AttentionOperand,
  { offset, batch, seq, head }: AttentionStrides,
): Record<string, number> {
  const unit = vector ? 4 : 1;
  return {
    [`${name}Offset`]: offset / unit,
    [`${name}Batch`]: batch / unit,
    [`${name}Seq`]: seq / unit,
    [`${name}Head`]: head / unit,
  };
}

/** The uniform fields that `strideUniforms` fills. */
export function strideFields(name: string): Record<string, UniformType> {
  return { [`${name}Offset`]: "u32", [`${name}Batch`]: "u32", [`${name}Seq`]: "u32", [`${name}Head`]: "u32" };
}

/**
 * WGSL of `fn <name>_at(row, d4) -> vec4f`: elements 4·d4 … 4·d4+3 of the row that starts at `row`; 0 past `size`.
 */
export function operandReader(name: string, { storage, vector }: AttentionOperand, size: number): string {
  const head = `fn ${name}_at(row: u32, d4: u32) -> vec4f {`;
  if (vector) {
    if (storage === "f32") return `${head} return ${name}[row + d4]; }`;
    return `${head} let w = ${name}[row + d4]; return ${unpack4(storage, "w.x", "w.y")}; }`;
  }
  const one = `fn ${name}_one(at: u32) -> f32 { ${scalarOf(name, storage, "at")} }`;
  const parts = ["x", "y", "z", "w"].map((part, i) => {
    const read = `x.${part} = ${name}_one(row + d + ${i}u);`;
    return i === 0 || size % 4 === 0 ? read : `if (d + ${i}u < ${size}u) { ${read} }`;
  });
  return `${one}\n${head} let d = d4 * 4u; var x = vec4f(); ${parts.join(" ")} return x; }`;
}

/** WGSL statements that return element `at` of a storage array of scalars, two to a word when 16-bit. */
export function scalarOf(name: string, storage: AttentionStorage, at: string): string {
  if (storage === "f32") return `return ${name}[${at}];`;
  const word = `let w = ${name}[(${at}) >> 1u] >> (((${at}) & 1u) << 4u);`;
  return storage === "f16"
    ? `${word} return unpack2x16float(w & 0xffffu).x;`
    : `${word} return bitcast<f32>(w << 16u);`;
}

function unpack4(storage: AttentionStorage, low: string, high: string): string {
  return storage === "f16"
    ? `vec4f(unpack2x16float(${low}), unpack2x16float(${high}))`
    : `bitcast<vec4f>(vec4u(${low} << 16u, ${low} & 0xffff0000u, ${high} << 16u, ${high} & 0xffff0000u))`;
}

/**
 * WGSL of `fn <name>_put(row, d4, x)`: writes four values of a dense row of `size` elements that starts at element
 * `row`, leaving out what is past the row. 16-bit storage needs an even size.
 */
export function operandWriter(name: string, { storage, vector }: AttentionOperand, size: number): string {
  const head = `fn ${name}_put(row: u32, d4: u32, x: vec4f) {`;
  if (vector) {
    const value = storage === "f32" ? "x" : `vec2u(${pack2(storage, "x.xy")}, ${pack2(storage, "x.zw")})`;
    return `${head} if (d4 < ${size / 4}u) { ${name}[(row >> 2u) + d4] = ${value}; } }`;
  }
  if (storage === "f32") {
    const parts = each(4, (i) => `if (d + ${i}u < ${size}u) { ${name}[row + d + ${i}u] = x[${i}]; }`);
    return `${head} let d = d4 * 4u; ${parts.join(" ")} }`;
  }
  const parts = [["x.xy", 0], ["x.zw", 2]].map(([pair, i]) =>
    `if (d + ${i}u < ${size}u) { ${name}[(row + d + ${i}u) >> 1u] = ${pack2(storage, String(pair))}; }`
  );
  return `${head} let d = d4 * 4u; ${parts.join(" ")} }`;
}

/** Bits of two 16-bit numbers; bf16 rounds to nearest even and keeps NaN. */
function pack2(storage: AttentionStorage, pair: string): string {
  return storage === "f16" ? `pack2x16float(${pair})` : `pack_bf16(${pair})`;
}

/** WGSL that `operandWriter` calls for bf16. */
export const packBf16 = `fn pack_bf16(x: vec2f) -> u32 {
  let bits = bitcast<vec2u>(x);
  let rounded = (bits + vec2u(0x7fffu) + ((bits >> vec2u(16u)) & vec2u(1u))) >> vec2u(16u);
  let half = select(rounded, vec2u(0x7fc0u), (bits & vec2u(0x7fffffffu)) > vec2u(0x7f800000u));
  return half.x | (half.y << 16u);
}`;

/** One vec4f on its way into workgroup memory. */
export interface Staged {
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
export function stageDot(
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
export function stageMix(
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
}

/**
 * What `stageDot` loads of an operand: chunk `chunk` of its rows, 0 past the last row and past the row's end. The index
 * is held inside the operand and the value replaced afterwards, so that no load waits for a branch.
 */
export function dotLoad({ depth }: AttentionTile, { name, size, start, first, limit }: TileRows, chunk: string) {
  const size4 = Math.ceil(size / 4), exact = size4 % (depth / 4) === 0;
  return (row: string, d: string): string => {
    const d4 = `(${chunk} * ${depth / 4}u + ${d})`, i = `(${first} + ${row})`;
    const value = `${name}_at(${start(`min(${i}, ${limit} - 1u)`)}, ${exact ? d4 : `min(${d4}, ${size4 - 1}u)`})`;
    return `select(vec4f(), ${value}, ${i} < ${limit}${exact ? "" : ` && ${d4} < ${size4}u`})`;
  };
}

/** What `stageMix` loads of an operand: rows of chunk `chunk`, 0 past the last one. */
export function mixLoad({ depth }: AttentionTile, { name, start, first, limit }: TileRows, chunk: string) {
  return (row: string, d4: string): string => {
    const i = `(${first} + ${chunk} * ${depth}u + ${row})`;
    return `select(vec4f(), ${name}_at(${start(`min(${i}, ${limit} - 1u)`)}, ${d4}), ${i} < ${limit})`;
  };
}

/** The loads and stores of a stage, `batch` loads under way together. */
export function stages({ batch }: AttentionTile, parts: readonly Staged[][]): string {
  const all = parts.flat();
  return each(Math.ceil(all.length / batch), (n) => {
    const some = all.slice(n * batch, (n + 1) * batch);
    return [...some.map(({ load }) => load), ...some.map(({ store }) => store)].join("\n");
  }).join("\n");
}

/** One chunk of scores += A·Bᵀ: `${s}${r}_${c}` scalars, lane rows `a` and `b` of workgroup memory. */
export function dotChunk({ rows, columns, depth }: AttentionTile, s: string, a: string, b: string): string[] {
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
export function mixChunk({ rows, depth }: AttentionTile, outs: number, o: string, a: string, b: string): string[] {
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

/** Writes a thread's scores as the left side of `mixChunk`: chunk `n` of them at lane row `to + n·ty + ty of the thread`. */
export function stageScores(
  { tx, ty, rows, columns, depth }: AttentionTile,
  value: (r: number, group: number) => string,
  to: string,
  stage?: { first: string; count: number },
): string[] {
  const k4 = depth / 4;
  return each(columns / 4, (group) => {
    const at = `(tx + ${group * tx}u)`;
    const chunk = stage === undefined ? `${at} / ${k4}u` : `(${at} / ${k4}u - ${stage.first})`;
    const stores = each(
      rows,
      (r) => `tile[${to} + (${chunk}) * ${ty}u + ty][${r * k4}u + ${at} % ${k4}u] = ${value(r, group)};`,
    );
    // An unsigned difference below the first chunk wraps to a large number, so one comparison holds both ends.
    return stage === undefined ? stores.join("\n") : `if (${chunk} < ${stage.count}u) {\n${stores.join("\n")}\n}`;
  });
}

/**
 * Statements that combine per-row values of a thread over the `tx` threads of that row, so that all of them end with
 * the whole: by subgroup shuffles, or through the workgroup array `rowScratch`.
 */
export function reduceRows(
  tile: AttentionTile,
  subgroups: boolean,
  names: readonly string[],
  join: (a: string, b: string) => string,
): string[] {
  const { tx } = tile, n = names.length;
  if (tx === 1) return [];
  if (subgroups) {
    return each(
      Math.log2(tx),
      (i) => names.map((name) => `${name} = ${join(name, `subgroupShuffleXor(${name}, ${1 << i}u)`)};`).join(" "),
    );
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
  ];
}

/** Declares what `reduceRows` writes through when there are no subgroups. */
export function rowScratch(tile: AttentionTile, subgroups: boolean): string {
  return subgroups ? "" : `var<workgroup> rowScratch: array<f32, ${threads(tile) * tile.rows}>;`;
}
