/**
 * What the backward of attention needs for every query row, and the gradient of sinks.
 *
 *   rows kernel    out, dOut ─ one lane a row, 4 numbers a load ─▶ Σ dO∘O − dLSE, beside lse·log₂e in two parts
 *   sinks kernel   one workgroup a head: dsink_h = −Σ p_sink·D, p_sink = e^(sink − lse)
 *
 * Floor of the rows kernel for f32 B4 H12 S2048 D64: 50 MB at 4.07 TB/s = 0.012 ms; measured 0.020 ms on an H200.
 */
import { type AttentionOperand, operandName, operandReader, operandType } from "./attention_common.ts";
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
}

/**
 * The rows kernel: from out and dOut, dense [B, Sq, H, Dv], lse and dLse, [B, H, Sq], to rowStats, vec4f [B, H, Sq]:
 * (high part of lse·log₂e, D, its low part, 0), and 10³⁰ for the lse of a row that sees no key, so that its every p is 0.
 *
 * A rounded lse·log₂e would cost p more digits than lse itself has lost: factors of 12 bits have an exact product. D is
 * summed in the order of the products that it is subtracted from, so that a row with one key has gradient 0 exactly.
 */
export function attentionBackwardRows({ valueDim, out, dOut, dLse }: AttentionRowsParams): Kernel {
  const name = `attention_backward_rows_d${valueDim}_${operandName(out)}_${operandName(dOut)}${dLse ? "_dlse" : ""}`;
  const all = rowsPerGroup, size4 = Math.ceil(valueDim / 4);
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
  for (var d4 = 0u; d4 < ${size4}u; d4++) {
    let a = out_at(row * ${units(out)}u, d4); let b = dOut_at(row * ${units(dOut)}u, d4);
    sum = fma(a.w, b.w, fma(a.z, b.z, fma(a.y, b.y, fma(a.x, b.x, sum))));
  }
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
