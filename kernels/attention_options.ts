/**
 * The text of attention's options, shared by forward, backward and decoding: which bindings and uniforms an option
 * brings to `attentionKernel`, where a workgroup's sequence lies, what happens to a score between the product and the softmax.
 *
 * Scores are kept in units of log₂e, so that the softmax is exp2. The order is that of the mathematics:
 * softcap → ALiBi → bias → masks; whoever multiplies q by `u.scale` has done scale (and 1/softcap) before.
 *
 * Names that the text here expects: `i` and `j` of a score as u32, `shift` = Sk − Sq, `b` and `h`.
 */
import { cappedText, joinProductText, lowOf, scaleText } from "./attention_careful.ts";
import {
  type AttentionFeatures,
  type AttentionLayout,
  type AttentionOperands,
  type AttentionShape,
  type AttentionStrides,
  featuresName,
  masked,
  operandType,
  strideFields,
  strideUniforms,
} from "./attention_common.ts";
import { rangeFunctions } from "./attention_matrix_powers.ts";
import { type Kernel, kernel, type KernelInterface, type UniformType } from "./kernel.ts";
import { philox4x32 } from "./random.ts";
import { load, storageType } from "./storage.ts";

/** Element strides of a tensor that broadcasts to [B, H, Sq, Sk]; 0 along an axis that it repeats. */
export interface ScoreStrides {
  readonly offset: number;
  readonly batch: number;
  readonly head: number;
  readonly row: number;
  readonly column: number;
}

/** Values of a call's options, as numbers for the uniforms; what lies in storage is bound by the caller. */
export interface AttentionSettings {
  readonly softmaxScale: number;
  /** Keys to the left and right that a query sees, −1 when unbounded; causal is [−1, 0]. */
  readonly window?: readonly [left: number, right: number];
  readonly softcap?: number;
  /** Elements from one batch row's slopes to the next: H for [B, H], 0 for [H]. */
  readonly alibiBatch?: number;
  readonly bias?: ScoreStrides;
  readonly mask?: ScoreStrides;
  readonly dropout?: number;
  /** Variable length: the most queries of a sequence. */
  readonly maxSeqlenQ?: number;
  /** Cache: keys of a row beyond `cacheLengths`. */
  readonly added?: number;
  /** Keys a page holds and pages a batch row's table holds. */
  readonly pages?: { readonly size: number; readonly row: number };
}

const unbounded = 2 ** 30;

/** Storage that the options read: name → element type. */
export function featureReads(features: AttentionFeatures): Record<string, string> {
  return {
    ...(features.lengths === "varlen" ? { cuQ: "i32", cuK: "i32" } : {}),
    ...(features.lengths === "cache" ? { cacheLengths: "i32" } : {}),
    ...(features.leftpad ? { leftpad: "i32" } : {}),
    ...(features.cacheIndex ? { cacheIndex: "i32" } : {}),
    ...(features.paged ? { pages: "i32" } : {}),
    ...(features.alibi ? { alibi: "f32" } : {}),
    ...(features.bias === "none" ? {} : { bias: storageType(features.bias) }),
    ...(features.mask ? { mask: "u32" } : {}),
    ...(features.dropout ? { dropoutKey: "u32" } : {}),
    ...(features.range === "none" ? {} : { ranges: "vec4u" }),
    ...(features.sinks ? { sinks: "f32" } : {}),
  };
}

/** Uniform fields that the options read. */
export function featureFields(features: AttentionFeatures): Record<string, UniformType> {
  return {
    ...(features.lengths === "varlen" ? { maxQ: "u32" } : {}),
    ...(features.lengths === "cache" ? { added: "i32" } : {}),
    ...(features.window ? { left: "i32", right: "i32" } : {}),
    ...(features.softcap ? { softcap: "f32" } : {}),
    ...(features.alibi ? { alibiBatch: "u32" } : {}),
    ...(features.bias === "none" ? {} : scoreFields("bias")),
    ...(features.mask ? scoreFields("mask") : {}),
    ...(features.dropout ? { dropBelow: "u32", keepScale: "f32" } : {}),
    ...(features.paged ? { pageSize: "u32", pagesRow: "u32" } : {}),
  };
}

/** Uniform fields that every kernel over q, k and v has: sizes, the scale, where the operands lie, what the options read. */
export function attentionFields(features: AttentionFeatures): Record<string, UniformType> {
  return {
    ...{ sq: "u32", sk: "u32", heads: "u32", group: "u32", scale: "f32" } as const,
    ...strideFields("q"),
    ...strideFields("k"),
    ...strideFields("v"),
    ...featureFields(features),
  };
}

/**
 * A kernel over q, k and v.
 *
 * @param name what its text depends on beside the options
 * @param shape reads beside the operands, which come first, and what the options read, which comes last; uniforms beside `attentionFields`
 */
export function attentionKernel<P extends AttentionOperands>(
  name: readonly string[],
  params: P,
  { reads, writes, uniforms, requires }: KernelInterface,
  body: (params: P) => string,
): Kernel {
  const { q, k, v, features } = params, operands = { q: operandType(q), k: operandType(k), v: operandType(v) };
  return kernel(name.join("_") + featuresName(features), {
    reads: { ...operands, ...reads, ...featureReads(features) },
    writes,
    uniforms: { ...attentionFields(features), ...uniforms },
    requires,
  }, () => body(params));
}

/** What `attentionFields` holds for a call. */
export function attentionUniforms(
  { q, k, v, features }: Pick<AttentionOperands, "q" | "k" | "v" | "features">,
  { seqlenQ, seqlenK, heads, kvHeads, totalQ = 0 }: AttentionShape,
  at: AttentionLayout,
  settings: AttentionSettings,
): Record<string, number> {
  return {
    sq: features.lengths === "varlen" ? totalQ : seqlenQ,
    sk: seqlenK,
    heads,
    group: heads / kvHeads,
    ...strideUniforms("q", q, at.q),
    ...strideUniforms("k", k, at.k),
    ...strideUniforms("v", v, at.v),
    ...featureUniforms(features, settings),
  };
}

/** What `featureFields` holds for a call, `scale` among it, and what careful kernels read beside it. */
function featureUniforms(features: AttentionFeatures, settings: AttentionSettings): Record<string, number> {
  const { softmaxScale, window: [left, right] = [-1, -1], softcap = 1, dropout = 0 } = settings;
  const scale = features.softcap ? softmaxScale / softcap : softmaxScale * Math.LOG2E;
  return {
    scale,
    scaleLow: scale - Math.fround(scale),
    ...(features.lengths === "varlen" ? { maxQ: settings.maxSeqlenQ ?? 0 } : {}),
    ...(features.lengths === "cache" ? { added: settings.added ?? 0 } : {}),
    ...(features.window ? { left: left < 0 ? unbounded : left, right: right < 0 ? unbounded : right } : {}),
    ...(features.softcap ? { softcap: softcap * Math.LOG2E } : {}),
    ...(features.alibi ? { alibiBatch: settings.alibiBatch ?? 0 } : {}),
    ...(features.bias === "none" ? {} : scoreUniforms("bias", settings.bias)),
    ...(features.mask ? scoreUniforms("mask", settings.mask) : {}),
    ...(features.dropout
      ? { dropBelow: Math.min(2 ** 32 - 1, Math.round(dropout * 2 ** 32)), keepScale: 1 / (1 - dropout) }
      : {}),
    ...(features.paged ? { pageSize: settings.pages?.size ?? 1, pagesRow: settings.pages?.row ?? 0 } : {}),
  };
}

function scoreFields(name: string): Record<string, UniformType> {
  return Object.fromEntries(["Offset", "Batch", "Head", "Row", "Column"].map((part) => [`${name}${part}`, "u32"]));
}

function scoreUniforms(name: string, strides?: ScoreStrides): Record<string, number> {
  const { offset = 0, batch = 0, head = 0, row = 0, column = 0 } = strides ?? {};
  return {
    [`${name}Offset`]: offset,
    [`${name}Batch`]: batch,
    [`${name}Head`]: head,
    [`${name}Row`]: row,
    [`${name}Column`]: column,
  };
}

/** Functions that the options' statements call. */
export function featureFunctions(features: AttentionFeatures): string {
  return [
    features.softcap ? tanhFunction : "",
    features.bias === "none" ? "" : `fn bias_one(at: u32) -> f32 { return ${load(features.bias, "bias", "at")}; }`,
    features.dropout ? philox4x32 : "",
    rangeFunctions(features),
  ].filter((text) => text !== "").join("\n");
}

/**
 * tanh and its slope, by w = 2/(e²ˣ + 1): 1 − w and w·(2 − w), of which the first cancels near 0, where Cephes' polynomial
 * serves, and the second nowhere: 1 − tanh² would lose what a large score's slope consists of. A step of Newton's mends what a
 * GPU's division is off by, which a softcap multiplies.
 */
const tanhFunction = `fn attention_tanh(x: f32) -> vec2f {
  let a = abs(x); let z = x * x;
  var p = fma(z, -5.70498872745e-3f, 2.06390887954e-2f);
  p = fma(p, z, -5.37397155531e-2f);
  p = fma(p, z, 1.33314422036e-1f);
  p = fma(p, z, -3.33332819422e-1f);
  let d = exp2(min(a, 30.0f) * 2.8853901f) + 1.0f;
  var w = 2.0f / d;
  w = fma(fma(-w, d, 2.0f), 0.5f * w, w);
  return vec2f(select(1.0f - w, fma(p * z, a, a), a < 0.625f) * sign(x), w * (2.0f - w));
}`;

/**
 * Declares what batch row `b` is: `sq`, `sk`, `shift`, `keyFirst`, and the first rows of the dense results, `outRow` for
 * queries and `keyRow` for keys.
 */
export function locateBatch(features: AttentionFeatures): string {
  const { lengths, leftpad } = features;
  return [
    ...(lengths === "varlen"
      ? [
        "let outRow = u32(cuQ[b]); let sq = u32(clamp(cuQ[b + 1u] - cuQ[b], 0, i32(u.maxQ)));",
        "let keyRow = u32(cuK[b]); let sk = u32(clamp(cuK[b + 1u] - cuK[b], 0, i32(u.sk)));",
      ]
      : [
        `let sq = u.sq; let sk = ${
          lengths === "cache" ? "u32(clamp(cacheLengths[b] + u.added, 0, i32(u.sk)))" : "u.sk"
        };`,
        "let outRow = b * u.sq; let keyRow = b * u.sk;",
      ]),
    `let keyFirst = ${leftpad ? "u32(max(leftpad[b], 0))" : "0u"};`,
    "let shift = i32(sk) - i32(sq);",
  ].join("\n");
}

/** Declares where the keys and values of key head `g` lie, after `locateBatch`: `kBase` and `vBase`, in units of a load. */
export function locateKeys({ lengths, paged, cacheIndex }: AttentionFeatures): string {
  const base = (name: "k" | "v", step: string): string =>
    `let ${name}Base = u.${name}Offset + ${step} + g * u.${name}Head;`;
  if (lengths === "varlen") return ["k", "v"].map((x) => base(x as "k" | "v", `keyRow * u.${x}Seq`)).join("\n");
  return [
    `let cacheRow = ${paged ? "0u" : cacheIndex ? "u32(cacheIndex[b])" : "b"};`,
    base("k", "cacheRow * u.kBatch"),
    base("v", "cacheRow * u.vBatch"),
  ].join("\n");
}

/**
 * Declares where query head `h` with key head `g` lies, after `locateBatch`: `qBase` and what `locateKeys` does, `lseAt`
 * of the row's statistics, and what the features need for a head.
 */
export function locateHead(features: AttentionFeatures): string {
  return [
    ...(features.lengths === "varlen"
      ? ["let qBase = u.qOffset + outRow * u.qSeq + h * u.qHead; let lseAt = h * u.sq + outRow;"]
      : ["let qBase = u.qOffset + b * u.qBatch + h * u.qHead; let lseAt = (b * u.heads + h) * u.sq;"]),
    locateKeys(features),
    locateScores(features, "h", ""),
    locateSeed(features),
  ].filter((line) => line !== "").join("\n");
}

/** Declares dropout's key. */
export function locateSeed({ dropout }: AttentionFeatures): string {
  return dropout ? "let seed = vec2u(dropoutKey[0], dropoutKey[1]);" : "";
}

/** Declares what the scores of head `h` need, in names that end in `suffix`. */
export function locateScores({ alibi, bias, mask }: AttentionFeatures, h: string, suffix: string): string {
  const base = (name: string): string =>
    `let ${name}Base${suffix} = u.${name}Offset + b * u.${name}Batch + ${h} * u.${name}Head;`;
  return [
    alibi ? `let slope${suffix} = alibi[b * u.alibiBatch + ${h}] * 1.4426950408889634f;` : "",
    bias === "none" ? "" : base("bias"),
    mask ? base("mask") : "",
  ].filter((line) => line !== "").join("\n");
}

/** The page that holds key `j`. */
export function pageOf(j: string): string {
  return `u32(pages[b * u.pagesRow + (${j}) / u.pageSize])`;
}

/** Where key `j`'s row of operand `name` (k or v) starts; with pages, in `page`. */
export function keyRow(features: AttentionFeatures, name: "k" | "v", j: string, page = pageOf(j)): string {
  if (!features.paged) return `${name}Base + (${j}) * u.${name}Seq`;
  return `${name}Base + ${page} * u.${name}Batch + ((${j}) % u.pageSize) * u.${name}Seq`;
}

/** True when the options change every score, not only those at a tile's edge. */
export function changesScores({ softcap, alibi, bias, mask }: AttentionFeatures): boolean {
  return softcap || alibi || bias !== "none" || mask;
}

/** Statements that hide a score, of one float or two, where `seen` is false. */
export function hiddenText(s: string, seen: string, careful: boolean): string {
  const low = lowOf(s), hide = `${s} = select(${masked}, ${s}, ${seen});`;
  return careful ? `${low} = select(0.0f, ${low}, ${seen}); ${hide}` : hide;
}

/**
 * Statements that turn the product `s` into the score of (i, j); `t` is then softcap's tanh and its slope.
 *
 * @param suffix of the names that `locateScores` declared
 * @param careful the score has two floats, as attention_careful.ts has them, and is not yet scaled
 */
export function scoreText(
  features: AttentionFeatures,
  s: string,
  i: string,
  j: string,
  suffix = "",
  careful = false,
): string {
  const { softcap, alibi, bias, mask } = features;
  const distance = `abs(f32(i32(${i}) + shift - i32(${j})))`;
  // Past the end of the rows and keys there is nothing to read, and nobody looks at the score.
  const at = (name: string): string =>
    `${name}Base${suffix} + min(${i}, sq - 1u) * u.${name}Row + min(${j}, sk - 1u) * u.${name}Column`;
  return [
    careful ? scaleText(s) : "",
    softcap ? `let t = attention_tanh(${s}); ${careful ? cappedText(s) : `${s} = t.x * u.softcap;`}` : "",
    !alibi ? "" : careful ? joinProductText(s, `-slope${suffix}`, distance) : `${s} -= slope${suffix} * ${distance};`,
    bias === "none"
      ? ""
      : careful
      ? joinProductText(s, `bias_one(${at("bias")})`, "1.4426950408889634f")
      : `${s} += bias_one(${at("bias")}) * 1.4426950408889634f;`,
    mask ? hiddenText(s, `mask[${at("mask")}] != 0u`, careful) : "",
  ].filter((text) => text !== "").join(" ");
}

/**
 * True for a score that lengths and window allow. Joined by `&`: a tile asks for each of its scores, and the branches
 * of so many `&&` keep the compiler of Chromium's software adapter busy for minutes.
 */
export function visible({ window, leftpad }: AttentionFeatures, i: string, j: string): string {
  const all = [
    `${j} < sk`,
    leftpad ? `${j} >= keyFirst` : "",
    window ? `i32(${j}) - i32(${i}) - shift <= u.right` : "",
    window ? `i32(${i}) + shift - i32(${j}) <= u.left` : "",
  ].filter((text) => text !== "");
  return all.length === 1 ? all[0] : `(${all.map((text) => `(${text})`).join(" & ")})`;
}

/** True for a tile of scores in which `visible` has to be asked: rows from `q0`, columns from `k0`. */
export function isEdge(
  { window, leftpad }: AttentionFeatures,
  q0: string,
  rows: number,
  k0: string,
  columns: number,
): string {
  return [
    `${k0} + ${columns}u > sk`,
    leftpad ? `${k0} < keyFirst` : "",
    window
      ? `i32(${k0}) + ${columns - 1} - i32(${q0}) - shift > u.right || i32(${q0}) + ${
        rows - 1
      } + shift - i32(${k0}) > u.left`
      : "",
  ].filter((text) => text !== "").join(" || ");
}

/** Declares `keyFrom` and `keyTo`: the keys that the queries from `q0` may see, `keyFrom` at a tile's start. */
export function keyRange({ window, leftpad }: AttentionFeatures, q0: string, rows: number, columns: number): string {
  const first = leftpad ? "keyFirst" : "0u";
  if (!window) return `let keyFrom = ${first} / ${columns}u * ${columns}u; let keyTo = sk;`;
  return [
    `let lastRow = i32(min(${q0} + ${rows}u, sq)) - 1 + shift;`,
    `let keyFrom = max(${first}, u32(max(i32(${q0}) + shift - u.left, 0))) / ${columns}u * ${columns}u;`,
    "let keyTo = u32(clamp(lastRow + u.right + 1, 0, i32(sk)));",
  ].join("\n");
}

/** Declares `queryFrom` and `queryTo`: the queries that may see a key of the tile from `k0`. */
export function queryRange({ window }: AttentionFeatures, k0: string, rows: number, columns: number): string {
  if (!window) return "let queryFrom = 0u; let queryTo = sq;";
  return [
    `let lastKey = i32(min(${k0} + ${rows}u, sk)) - 1 - shift;`,
    `let queryFrom = u32(max(i32(${k0}) - shift - u.right, 0)) / ${columns}u * ${columns}u;`,
    "let queryTo = u32(clamp(lastKey + u.left + 1, 0, i32(sq)));",
  ].join("\n");
}

/** Statements that name the four dropout factors of query `i` and keys 4·j4 … 4·j4+3: `kept`, 0 or 1. */
export function dropoutText(i: string, j4: string, h = "h"): string {
  return `let kept = select(vec4f(), vec4f(1.0f), philox(vec4u(${j4}, ${i}, ${h}, b), seed) >= vec4u(u.dropBelow));`;
}

/** Strides of a dense [B, S, H, D] operand. */
export function denseStrides(seqlen: number, heads: number, headDim: number): AttentionStrides {
  return { offset: 0, batch: seqlen * heads * headDim, seq: heads * headDim, head: headDim };
}
