/**
 * What the backward of attention needs for every query row, and the gradient of sinks.
 *
 *   rows kernel    out, dOut ─ one lane a row, 4 numbers a load ─▶ Σ dO∘O − dLSE, beside lse·log₂e in two parts
 *   sinks kernel   one workgroup a head: dsink_h = −Σ p_sink·D, p_sink = e^(sink − lse)
 *
 * Floor of the rows kernel for f32 B4 H12 S2048 D64: 50 MB at 4.07 TB/s = 0.012 ms; measured 0.020 ms on an H200.
 */
import {
  type AttentionOperand,
  type AttentionOperands,
  operandName,
  operandReader,
  operandType,
} from "./attention_common.ts";
import {
  attentionKernel,
  dropoutText,
  featureFunctions,
  keyRow,
  locateBatch,
  locateHead,
  scoreText,
  visible,
} from "./attention_options.ts";
import { carefulFunctions, lowOf, powerOf } from "./attention_careful.ts";
import { rowProduct, type Sums } from "./attention_tiles.ts";
import { type Kernel, kernel } from "./kernel.ts";

/** Rows that one workgroup of the rows kernel takes. */
export const rowsPerGroup = 64;

/** What the rows kernel depends on. */
export interface AttentionRowsParams {
  readonly valueDim: number;
  readonly out: AttentionOperand;
  readonly dOut: AttentionOperand;
  /** As in the kernels that D is for. */
  readonly sums: Sums;
}

/**
 * The rows kernel: from out and dOut, dense [B, Sq, H, Dv], lse and dLse, [B, H, Sq], to rowStats, vec4f [B, H, Sq]:
 * (high part of lse·log₂e, D, its low part, 0; with `careful` the high part is whole, and D lacks −dLSE, which is last), and 10³⁰ for the lse of a row that sees no key, so that its every p is 0.
 *
 * A rounded lse·log₂e would cost p more digits than lse itself has lost: factors of 12 bits have an exact product. D is
 * summed in the order of the products that it is subtracted from, so that a row with one key has gradient 0 exactly.
 */
export function attentionBackwardRows({ valueDim, out, dOut, sums }: AttentionRowsParams): Kernel {
  const careful = sums === "careful";
  const name = `attention_backward_rows_d${valueDim}_${operandName(out)}_${operandName(dOut)}` +
    (sums === "plain" ? "" : `_${sums}`);
  const all = rowsPerGroup;
  return kernel(name, {
    reads: { out: operandType(out), dOut: operandType(dOut), lse: "f32", dLse: "f32" },
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
  ${
    rowProduct(
      valueDim,
      `out_at(row * ${valueDim / out.unit}u, d4)`,
      `dOut_at(row * ${valueDim / dOut.unit}u, d4)`,
      sumsOfD(sums),
    )
  }
  let i = row / u.heads; let h = row % u.heads;
  let at = ((i / u.sq) * u.heads + h) * u.sq + i % u.sq;
  ${careful ? "" : "sum -= dLse[at];"}
  let natural = lse[at];
  let coarse = bitcast<f32>(bitcast<u32>(natural) & 0xfffff000u);
  let low = coarse * ${Math.LOG2E - coarseLog2e}f + (natural - coarse) * ${Math.LOG2E}f;
  let high = coarse * ${coarseLog2e}f;
  let stats = ${
    careful ? "vec4f(round(high), sum, high - round(high) + low, dLse[at])" : "vec4f(high, sum, low, 0.0f)"
  };
  rowStats[at] = select(vec4f(1e30f, 0.0f, 0.0f, 0.0f), stats, natural > -1e30f);
}`);
}

/** How D and dP are summed, where scores are summed so. */
export function sumsOfD(sums: Sums): Sums {
  return sums === "plain" ? "plain" : "eights";
}

/** log₂e to 12 bits. */
const coarseLog2e = Math.round(Math.LOG2E * 2048) / 2048;

/**
 * Whether a call has so few queries or keys that no other row averages what a row's rounded lse has lost. Beside long
 * texts, where the norms kernel reads all keys for each row, only with up to 4.
 */
export function isFew(seqlenQ: number, seqlenK: number): boolean {
  return Math.min(seqlenQ, seqlenK) <= (Math.max(seqlenQ, seqlenK) <= 1024 ? 32 : 4);
}

/** What the norms kernel depends on. */
export interface AttentionNormsParams extends AttentionOperands {
  readonly dOut: AttentionOperand;
}

/**
 * The norms kernel, for few queries or few keys, where no other row averages what all p of a row have in common: sums every
 * row's p as the backward will have them, in the order of its products, moves the low part of lse until they sum to 1,
 * and takes D from p and dp instead of out. A workgroup a row, a lane a key.
 *
 *   D = c + Σ p·(dp − c), c the dp of a p above ½: a row with one key has dp − D = 0 exactly, and no other sum is of numbers
 *   much larger than what it comes to
 */
export function attentionBackwardNorms(params: AttentionNormsParams): Kernel {
  const { headDim, valueDim, q, k, v, dOut } = params;
  const name = [`attention_backward_norms_d${headDim}x${valueDim}`, ...[q, k, v, dOut].map(operandName)];
  return attentionKernel(name, params, {
    reads: { dOut: operandType(dOut) },
    writes: { rowStats: "vec4f" },
    uniforms: { scaleLow: "f32" },
  }, normsBody);
}

function normsBody({ headDim, valueDim, q, k, v, dOut, features }: AttentionNormsParams): string {
  const all = 64, row = `((outRow + i) * u.heads + h) * ${valueDim / dOut.unit}u`;
  // Every key's score and gradient, then what is to be done with them where the query sees the key.
  const eachKey = (body: string): string =>
    `for (var j = li; j < sk; j += ${all}u) {
    var sum = 0.0f;
    ${rowProduct(valueDim, `dOut_at(${row}, d4)`, `v_at(${keyRow(features, "v", "j")}, d4)`, "eights")}
    var dp = sum; var ${lowOf("sum")} = 0.0f; sum = 0.0f;
    ${rowProduct(headDim, "q_at(qBase + i * u.qSeq, d4)", `k_at(${keyRow(features, "k", "j")}, d4)`, "careful")}
    ${features.dropout ? `{ ${dropoutText("i", "j >> 2u")} dp *= kept[j & 3u] * u.keepScale; }` : ""}
    { ${scoreText(features, "sum", "i", "j", "", true)} }
    if (${visible(features, "i", "j")}) { ${body} }
  }`;
  const tree = (join: string): string =>
    `for (var half = ${all / 2}u; half > 0u; half >>= 1u) {
    workgroupBarrier();
    if (li < half) { let a = parts[li]; let b = parts[li + half]; parts[li] = ${join}; }
  }
  workgroupBarrier();`;
  return `
${operandReader("q", q, headDim)}
${operandReader("k", k, headDim)}
${operandReader("v", v, valueDim)}
${operandReader("dOut", dOut, valueDim)}
${featureFunctions(features)}
${carefulFunctions}
var<workgroup> parts: array<vec2f, ${all}>;
@compute @workgroup_size(${all})
fn main(@builtin(workgroup_id) group: vec3u, @builtin(local_invocation_index) li: u32) {
  let i = group.x; let h = group.y; let b = group.z; let g = h / u.group;
  ${locateBatch(features)}
  if (i >= sq) { return; }
  ${locateHead(features)}
  let stats = rowStats[lseAt + i];
  var top = vec2f(-3e38f, 0.0f);
  ${eachKey("if (sum > top.x) { top = vec2f(sum, dp); }")}
  parts[li] = top;
  ${tree("select(a, b, b.x > a.x)")}
  let center = select(0.0f, parts[0].y, exp2(parts[0].x - stats.x - stats.z) > 0.5f);
  workgroupBarrier();
  var sums = vec2f();
  ${eachKey(`let e = ${powerOf("sum", "stats.x", "stats.z")}; sums += vec2f(e, e * (dp - center));`)}
  parts[li] = sums;
  ${tree("a + b")}
  if (li == 0u && stats.x < 1e30f) {
    let sink = ${features.sinks ? "ft_power(sinks[h] * 1.4426950408889634f, 0.0f, stats.x, stats.z)" : "0.0f"};
    let total = parts[0].x + sink; let over = total - 1.0f;
    // log₂ of what is nearly 1, where a device's own may be off by 2⁻²¹.
    let change = over * (1.0f - over * (0.5f - over * 0.33333333f)) * 1.4426950408889634f;
    let d = center + (parts[0].y - sink * center) / max(total, 1e-37f);
    rowStats[lseAt + i] = vec4f(stats.x, d, stats.z + select(0.0f, change, abs(over) < 0.01f), stats.w);
  }
}`;
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
      sum -= exp2(sink - stats.x - stats.z) * (stats.y - stats.w);
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
