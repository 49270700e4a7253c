/**
 * What the backward of attention needs for every query row, and the gradient of sinks.
 *
 *   rows kernel    out, dOut ─ one lane a row, 4 numbers a load ─▶ Σ dO∘O − dLSE, beside lse·log₂e in two parts
 *   sinks kernel   one workgroup a head: dsink_h = −Σ p_sink·D, p_sink = e^(sink − lse)
 *
 * Floor of the rows kernel for f32 B4 H12 S2048 D64: 50 MB at 4.07 TB/s = 0.012 ms; measured 0.020 ms on an H200.
 */
import {
  type AttentionFeatures,
  type AttentionOperand,
  featuresName,
  operandName,
  operandReader,
  operandType,
  strideFields,
} from "./attention_common.ts";
import { mathFunctions } from "./math.ts";
import {
  featureFields,
  featureFunctions,
  featureReads,
  keyRow,
  locateBatch,
  locateHead,
  scoreText,
  visible,
} from "./attention_options.ts";
import { rowProduct } from "./attention_tiles.ts";
import { type Kernel, kernel } from "./kernel.ts";

/** Rows that one workgroup of the rows kernel takes. */
export const rowsPerGroup = 64;

/** What the rows kernel depends on. */
export interface AttentionRowsParams {
  readonly valueDim: number;
  readonly out: AttentionOperand;
  readonly dOut: AttentionOperand;
  /** The gradient of lse is there too: storage `dLse`, f32 [B, H, Sq]. */
  readonly dLse: boolean;
  /** As in the kernels that D is for. */
  readonly careful: boolean;
}

/**
 * The rows kernel: from out and dOut, dense [B, Sq, H, Dv], lse and dLse, [B, H, Sq], to rowStats, vec4f [B, H, Sq]:
 * (high part of lse·log₂e, D, its low part, 0), and 10³⁰ for the lse of a row that sees no key, so that its every p is 0.
 *
 * A rounded lse·log₂e would cost p more digits than lse itself has lost: factors of 12 bits have an exact product. D is
 * summed in the order of the products that it is subtracted from, so that a row with one key has gradient 0 exactly.
 */
export function attentionBackwardRows({ valueDim, out, dOut, dLse, careful }: AttentionRowsParams): Kernel {
  const name = `attention_backward_rows_d${valueDim}_${operandName(out)}_${operandName(dOut)}${dLse ? "_dlse" : ""}` +
    (careful ? "_careful" : "");
  const all = rowsPerGroup;
  const units = (operand: AttentionOperand): number => operand.vector ? valueDim / 4 : valueDim;
  return kernel(name, {
    reads: { out: operandType(out), dOut: operandType(dOut), lse: "f32", ...(dLse ? { dLse: "f32" } : {}) },
    writes: { rowStats: "vec4f" },
    uniforms: { sq: "u32", heads: "u32", rows: "u32", groups: "u32" },
  }, () => `
${operandReader("out", out, valueDim)}
${operandReader("dOut", dOut, valueDim)}
@compute @workgroup_size(${all})
fn main(@builtin(workgroup_id) group: vec3u, @builtin(local_invocation_index) li: u32) {
  let row = (group.y * u.groups + group.x) * ${all}u + li;
  if (row >= u.rows) { return; }
  var sum = 0.0f;
  ${rowProduct(valueDim, `out_at(row * ${units(out)}u, d4)`, `dOut_at(row * ${units(dOut)}u, d4)`, careful)}
  let i = row / u.heads; let h = row % u.heads;
  let at = ((i / u.sq) * u.heads + h) * u.sq + i % u.sq;
  ${dLse ? "sum -= dLse[at];" : ""}
  let natural = lse[at];
  let coarse = bitcast<f32>(bitcast<u32>(natural) & 0xfffff000u);
  let low = coarse * ${Math.LOG2E - coarseLog2e}f + (natural - coarse) * ${Math.LOG2E}f;
  rowStats[at] = select(vec4f(1e30f, 0.0f, 0.0f, 0.0f), vec4f(coarse * ${coarseLog2e}f, sum, low, 0.0f), natural > -1e30f);
}`);
}

/** log₂e to 12 bits. */
const coarseLog2e = Math.round(Math.LOG2E * 2048) / 2048;

/** Fewest queries, and fewest keys, with which a row's rounded lse is averaged away. */
export const fewRows = 4;

/** What the norms kernel depends on. */
export interface AttentionNormsParams {
  readonly headDim: number;
  readonly q: AttentionOperand;
  readonly k: AttentionOperand;
  readonly features: AttentionFeatures;
  readonly sinks: boolean;
}

/**
 * The norms kernel, for few queries or few keys: sums every row's p as the backward will have them, in the order of its
 * products, and moves the low part of lse until they sum to 1. A rounding of lse that all p of a row share would
 * else show in dk and dv, where no other row averages it. A workgroup a row, a lane a key.
 */
export function attentionBackwardNorms({ headDim, q, k, features, sinks }: AttentionNormsParams): Kernel {
  const name = `attention_backward_norms_d${headDim}_${operandName(q)}_${operandName(k)}${sinks ? "_sinks" : ""}` +
    featuresName(features);
  const all = 64;
  return kernel(name, {
    reads: { q: operandType(q), k: operandType(k), ...featureReads(features), ...(sinks ? { sinks: "f32" } : {}) },
    writes: { rowStats: "vec4f" },
    uniforms: {
      sq: "u32",
      sk: "u32",
      heads: "u32",
      group: "u32",
      scale: "f32",
      ...strideFields("q"),
      ...strideFields("k"),
      ...featureFields(features),
    },
  }, () => `
${operandReader("q", q, headDim)}
${operandReader("k", k, headDim)}
${featureFunctions(features)}
${mathFunctions("ft_exp2()")}
var<workgroup> parts: array<f32, ${all}>;
@compute @workgroup_size(${all})
fn main(@builtin(workgroup_id) group: vec3u, @builtin(local_invocation_index) li: u32) {
  let i = group.x; let h = group.y; let b = group.z; let g = h / u.group;
  ${locateBatch(features)}
  if (i >= sq) { return; }
  ${locateHead(features, ["k"])}
  let stats = rowStats[lseAt + i];
  var whole = 0.0f;
  for (var j = li; j < sk; j += ${all}u) {
    var sum = 0.0f;
    ${rowProduct(headDim, "q_at(qBase + i * u.qSeq, d4) * u.scale", `k_at(${keyRow(features, "k", "j")}, d4)`, true)}
    var s = sum;
    ${scoreText(features, "s", "i", "j")}
    if (${visible(features, "i", "j")}) { whole += ft_exp2(s - stats.x - stats.z); }
  }
  parts[li] = whole;
  for (var half = ${all / 2}u; half > 0u; half >>= 1u) {
    workgroupBarrier();
    if (li < half) { parts[li] += parts[li + half]; }
  }
  if (li == 0u && stats.x < 1e30f) {
    // log₂ of what is nearly 1, where a device's own may be off by 2⁻²¹.
    let over = parts[0]${sinks ? " + ft_exp2(sinks[h] * 1.4426950408889634f - stats.x - stats.z)" : ""} - 1.0f;
    let change = over * (1.0f - over * (0.5f - over * 0.33333333f)) * 1.4426950408889634f;
    rowStats[lseAt + i] = vec4f(stats.xy, stats.z + select(0.0f, change, abs(over) < 0.01f), 0.0f);
  }
}`);
}

/** The sinks kernel: from rowStats, [B, H, Sq], and sinks, f32 [H], to dsinks, f32 [H]; one workgroup a head. */
export function attentionBackwardSinks(): Kernel {
  const all = 256;
  return kernel("attention_backward_sinks", {
    reads: { rowStats: "vec4f", sinks: "f32" },
    writes: { dsinks: "f32" },
    uniforms: { batch: "u32", sq: "u32", heads: "u32" },
  }, () => `
var<workgroup> parts: array<f32, ${all}>;
@compute @workgroup_size(${all})
fn main(@builtin(workgroup_id) group: vec3u, @builtin(local_invocation_index) li: u32) {
  let h = group.x; let sink = sinks[h] * 1.4426950408889634f;
  var sum = 0.0f;
  for (var b = 0u; b < u.batch; b++) {
    for (var i = li; i < u.sq; i += ${all}u) {
      let stats = rowStats[(b * u.heads + h) * u.sq + i];
      sum -= exp2(sink - stats.x - stats.z) * stats.y;
    }
  }
  parts[li] = sum;
  for (var half = ${all / 2}u; half > 0u; half >>= 1u) {
    workgroupBarrier();
    if (li < half) { parts[li] += parts[li + half]; }
  }
  if (li == 0u) { dsinks[h] = parts[0]; }
}`);
}
