/**
 * What the attention kernels share: sizes and operands of a call, the text that reads and writes operands of 16 and 32 bits four
 * numbers at a time and that ends a row's softmax, the features that a kernel's text may contain, and the description of a tile.
 */
import type { AttentionSizes } from "../tensor/attention_options.ts";
import type { Capabilities } from "../tensor/backend.ts";
import { components, each, type UniformType } from "./kernel.ts";
import { load, pack2, roundingFunctions, storageType, storageType4 } from "./storage.ts";

/** How an operand's numbers are stored; arithmetic is f32 always. */
export type AttentionStorage = "f32" | "f16" | "bf16";

/** One operand as the kernel's text sees it: `unit` neighbouring numbers are one load, so that its rows begin and end with whole ones. */
export interface AttentionOperand {
  readonly storage: AttentionStorage;
  readonly unit: 8 | 4 | 2 | 1;
}

/** Where an operand's elements lie, in elements; the head size has stride 1. */
export interface AttentionStrides {
  readonly offset: number;
  readonly batch: number;
  readonly seq: number;
  readonly head: number;
}

/** What the choice of a kernel depends on. */
export interface AttentionShape extends AttentionSizes {
  /** Rows of all queries together when lengths vary; batch·seqlenQ otherwise. */
  readonly totalQ?: number;
}

/** How a call's operands lie in memory. */
export interface AttentionLayout {
  readonly q: AttentionStrides;
  readonly k: AttentionStrides;
  readonly v: AttentionStrides;
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
  /** Length of one chunk of the common axis: 8, 16 or 32. */
  readonly depth: number;
  /** Rows belong to single lanes and nothing passes through workgroup memory: see attention_lanes.ts. */
  readonly lanes?: boolean;
}

/** The options whose code a kernel contains; what they are set to comes through uniforms and storage. */
export interface AttentionFeatures {
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
  /**
   * Storage `ranges`, of attention_matrix_range.ts: `slopes` scales dS by them, `scaled` the operands too and skips heads that
   * f16 does not hold, `left` skips all others.
   */
  readonly range: "none" | "slopes" | "scaled" | "left";
}

/** No options: what `{ ...plainAttention, window: true }` starts from. */
export const plainAttention: AttentionFeatures = {
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
  range: "none",
};

/** What the text of every kernel over q, k and v depends on. */
export interface AttentionOperands {
  readonly headDim: number;
  readonly valueDim: number;
  readonly q: AttentionOperand;
  readonly k: AttentionOperand;
  readonly v: AttentionOperand;
  readonly features: AttentionFeatures;
}

/** What a dispatch of a kernel needs: workgroups and the values of its uniforms. */
export interface AttentionPlan {
  readonly workgroups: readonly [x: number, y: number, z: number];
  readonly uniforms: Readonly<Record<string, number>>;
}

/** What `pick…` wants to know of a device. */
export type AttentionCapabilities = Pick<Capabilities, "subgroupSize" | "maxWorkgroupMemory" | "maxInvocations">;

/** A score that no softmax can see, and a row maximum that stays above it. Finite, so that no NaN can come of them. */
export const masked = "-1e30f";
/** The row maximum before any score. */
export const floor = "-5e29f";

/** A tile of `ty` × `tx` threads that own `rows` × `columns` scores each. */
export function tileOf(tx: number, ty: number, rows: number, columns: number, depth = 16): AttentionTile {
  return { tx, ty, rows, columns, depth };
}

/**
 * Declares what ends the softmax of a row whose maximum and sum of powers are `top` and `sum`, sinks included: `by`, the factor of
 * its results, and `highest` and `total`, which `lseBits` takes. A row that sees no key has 0 and −∞.
 */
export function endSoftmax(
  { sinks, dropout }: Pick<AttentionFeatures, "sinks" | "dropout">,
  top: string,
  sum: string,
): string {
  const kept = dropout ? "u.keepScale" : "1.0f";
  if (!sinks) {
    return `let highest = ${top}; let total = ${sum}; let by = select(0.0f, ${kept} / total, total > 0.0f);`;
  }
  return `let sink = sinks[h] * 1.4426950408889634f; let highest = max(${top}, sink); let drop = exp2(${top} - highest);
    let total = select(0.0f, ${sum} * drop + exp2(sink - highest), ${sum} > 0.0f);
    let by = select(0.0f, drop * ${kept} / total, total > 0.0f);`;
}

/** The bits of a row's lse, after `endSoftmax`. */
export const lseBits = "select(0xff800000u, bitcast<u32>((highest + log2(total)) * 0.6931471805599453f), total > 0.0f)";

/** Number of threads of a tile. */
export function threads({ tx, ty }: AttentionTile): number {
  return tx * ty;
}

/** Vec4f that a thread owns of a row of `size` results. */
export function outsOf({ tx }: AttentionTile, size: number): number {
  return Math.ceil(size / (4 * tx));
}

/** True when a device has the threads and the workgroup memory for a tile. */
export function fits(
  { maxWorkgroupMemory, maxInvocations }: AttentionCapabilities,
  tile: AttentionTile,
  bytes: number,
): boolean {
  return bytes <= maxWorkgroupMemory && threads(tile) <= maxInvocations;
}

/** Part of a kernel's name: every feature that changes its text. */
export function featuresName(features: AttentionFeatures): string {
  const { bias, lengths, range, ...flags } = features;
  const on = Object.entries(flags).filter(([, value]) => value).map(([key]) => key);
  if (bias !== "none") on.push(`bias_${bias}`);
  if (lengths !== "dense") on.push(lengths);
  if (range !== "none") on.push(range);
  return on.map((name) => `_${name}`).join("");
}

/** Part of a kernel's name: the tile. */
export function tileName({ tx, ty, rows, columns, depth, lanes }: AttentionTile): string {
  if (lanes) return `${ty * rows}x${columns}_lanes`;
  return `${ty * rows}x${tx * columns}_t${ty}x${tx}_k${depth}`;
}

/** Part of a kernel's name: one operand. */
export function operandName({ storage, unit }: AttentionOperand): string {
  return `${storage}u${unit}`;
}

/** True when every row of `size` elements that lie there begins and ends with whole units. */
export function isEven(unit: number, size: number, { offset, batch, seq, head }: AttentionStrides): boolean {
  return [size, offset, batch, seq, head].every((n) => n % unit === 0);
}

/** The operand of rows of `size` elements that lie there: four numbers a load where all of them are aligned. */
export function operandOf(storage: AttentionStorage, size: number, strides: AttentionStrides): AttentionOperand {
  return { storage, unit: isEven(4, size, strides) ? 4 : 1 };
}

/** The operands of a call, each as `of` makes it. */
export function operandsOf(
  { headDim, valueDim }: Pick<AttentionShape, "headDim" | "valueDim">,
  at: AttentionLayout,
  storage: Readonly<Record<"q" | "k" | "v", AttentionStorage>>,
  of: typeof operandOf,
): Omit<AttentionOperands, "features"> {
  const [q, k, v] = [of(storage.q, headDim, at.q), of(storage.k, headDim, at.k), of(storage.v, valueDim, at.v)];
  return { headDim, valueDim, q, k, v };
}

/** Element type of the storage binding of an operand. */
export function operandType({ storage, unit }: AttentionOperand): string {
  return unit === 8 ? "vec4u" : unit === 4 ? storageType4(storage) : storageType(storage);
}

/** The strides as uniforms, in the units of the operand's loads. */
export function strideUniforms(
  name: string,
  { unit }: AttentionOperand,
  { offset, batch, seq, head }: AttentionStrides,
): Record<string, number> {
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
export function operandReader(name: string, { storage, unit }: AttentionOperand, size: number): string {
  const head = `fn ${name}_at(row: u32, d4: u32) -> vec4f {`;
  if (unit === 4) {
    if (storage === "f32") return `${head} return ${name}[row + d4]; }`;
    return `${head} let w = ${name}[row + d4]; return ${unpack4(storage, "w.x", "w.y")}; }`;
  }
  const parts = components.map((part, i) => {
    const read = `x.${part} = ${load(storage, name, `row + d + ${i}u`)};`;
    return i === 0 || size % 4 === 0 ? read : `if (d + ${i}u < ${size}u) { ${read} }`;
  });
  return `${head} let d = d4 * 4u; var x = vec4f(); ${parts.join(" ")} return x; }`;
}

/** WGSL of four numbers that two words hold. */
export function unpack4(storage: AttentionStorage, low: string, high: string): string {
  return storage === "f16"
    ? `vec4f(unpack2x16float(${low}), unpack2x16float(${high}))`
    : `bitcast<vec4f>(vec4u(${low} << 16u, ${low} & 0xffff0000u, ${high} << 16u, ${high} & 0xffff0000u))`;
}

/**
 * WGSL of `fn <name>_put(row, d4, x)`: writes four values of a dense row of `size` elements that starts at element
 * `row`, leaving out what is past the row. 16-bit storage needs an even size, and `roundingFunctions`.
 */
export function operandWriter(name: string, { storage, unit }: AttentionOperand, size: number): string {
  const head = `fn ${name}_put(row: u32, d4: u32, x: vec4f) {`;
  const pair = (a: string, b: string): string => pack2(storage, `x.${a}`, `x.${b}`);
  if (unit === 4) {
    const value = storage === "f32" ? "x" : `vec2u(${pair("x", "y")}, ${pair("z", "w")})`;
    return `${head} if (d4 < ${size / 4}u) { ${name}[(row >> 2u) + d4] = ${value}; } }`;
  }
  const put = (i: number, at: string, value: string): string =>
    `if (d + ${i}u < ${size}u) { ${name}[${at}] = ${value}; }`;
  const parts = storage === "f32"
    ? each(4, (i) => put(i, `row + d + ${i}u`, `x[${i}]`))
    : [put(0, "(row + d) >> 1u", pair("x", "y")), put(2, "(row + d + 2u) >> 1u", pair("z", "w"))];
  return `${head} let d = d4 * 4u; ${parts.join(" ")} }`;
}

/** A dense result of rows of `size` elements. */
export function denseOperand(storage: AttentionStorage, size: number): AttentionOperand {
  return { storage, unit: size % 4 === 0 ? 4 : 1 };
}

/** WGSL that writers of that storage call. */
export function writerFunctions(storage: AttentionStorage): string {
  return roundingFunctions(storage);
}
