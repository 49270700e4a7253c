/**
 * Joins attention over parts of the keys by their lse: out = Σ e^(lse_n − lse)·out_n.
 *
 *   many parts of few rows (decoding)   a workgroup a row: 32 lanes along Dv, 8 along the parts, joined in workgroup memory
 *   few parts of many rows              a thread four numbers of a row, one part after another
 *
 * Floor: every part read once. For two parts of f32 B1 H8 S2048 D64 on an H200, 13 MB, 3 µs: a workgroup a row took
 * 68 µs, a thread for four numbers 16.
 */
import {
  type AttentionOperand,
  type AttentionPlan,
  denseOperand,
  endSoftmax,
  floor,
  lseBits,
  masked,
  operandName,
  operandReader,
  operandType,
  operandWriter,
  writerFunctions,
} from "./attention_common.ts";
import { each, type Kernel, kernel } from "./kernel.ts";

/** What the combining kernel depends on. */
export interface AttentionCombineParams {
  readonly valueDim: number;
  readonly out: AttentionOperand;
  readonly sinks: boolean;
  /** Parts that a thread walks alone; otherwise eight threads share them. */
  readonly few: boolean;
}

/** Most parts that a thread walks alone. */
const fewParts = 8;

/** The combining kernel of so many parts. */
export function pickAttentionCombine(
  parts: number,
  params: Pick<AttentionCombineParams, "valueDim" | "out" | "sinks">,
): AttentionCombineParams {
  return { ...params, few: parts <= fewParts };
}

/**
 * Joins parts by their lse. Reads partOut f32 [parts, B, Sq, H, Dv], partLse f32 [parts, B, H, Sq] and sinks; writes out
 * and the bits of lse.
 */
export function attentionCombine(params: AttentionCombineParams): Kernel {
  const { valueDim, out, sinks, few } = params;
  const name = `attention_combine_d${valueDim}_${operandName(out)}${sinks ? "_sinks" : ""}${few ? "_few" : ""}`;
  return kernel(name, {
    reads: { partOut: operandType(partOf(params)), partLse: "f32", ...(sinks ? { sinks: "f32" } : {}) },
    writes: { out: operandType(out), lse: "u32" },
    uniforms: { sq: "u32", heads: "u32", rows: "u32", parts: "u32", groups: "u32" },
  }, () => few ? aThread(params) : aWorkgroup(params));
}

const threads = 256;

function partOf({ valueDim }: Pick<AttentionCombineParams, "valueDim">): AttentionOperand {
  return denseOperand("f32", valueDim);
}

/** Elements of partOut that one step of its reader's index takes, of a row. */
function unitsOf({ valueDim }: AttentionCombineParams): number {
  return valueDim / partOf({ valueDim }).unit;
}

function preamble({ valueDim, out }: AttentionCombineParams): string {
  return `${operandReader("partOut", partOf({ valueDim }), valueDim)}
${writerFunctions(out.storage)}
${operandWriter("out", out, valueDim)}`;
}

function aThread(params: AttentionCombineParams): string {
  const { valueDim, sinks } = params, size4 = Math.ceil(valueDim / 4);
  return `${preamble(params)}
@compute @workgroup_size(${threads})
fn main(@builtin(workgroup_id) group: vec3u, @builtin(local_invocation_index) li: u32) {
  let thread = (group.y * u.groups + group.x) * ${threads}u + li;
  let row = thread / ${size4}u; let d4 = thread % ${size4}u;
  if (row >= u.rows) { return; }
  let h = row % u.heads; let i = (row / u.heads) % u.sq; let b = row / u.heads / u.sq;
  let at = (b * u.heads + h) * u.sq + i;
  var top = ${floor}; var sum = 0.0f; var y = vec4f();
  for (var n = 0u; n < u.parts; n++) {
    let x = max(partLse[n * u.rows + at] * 1.4426950408889634f, ${masked});
    let next = max(top, x); let f = exp2(top - next); let p = exp2(x - next);
    top = next; sum = sum * f + p;
    y = fma(vec4f(p), partOut_at((n * u.rows + row) * ${unitsOf(params)}u, d4), y * f);
  }
  ${endSoftmax({ sinks, dropout: false }, "top", "sum")}
  out_put(row * ${valueDim}u, d4, y * by);
  if (d4 == 0u) { lse[at] = ${lseBits}; }
}`;
}

function aWorkgroup(params: AttentionCombineParams): string {
  const { valueDim, sinks } = params, lanes = 32, groups = threads / lanes, size4 = Math.ceil(valueDim / 4);
  const count = Math.ceil(size4 / lanes);
  return `${preamble(params)}
var<workgroup> state: array<vec2f, ${groups}>;
var<workgroup> outs: array<vec4f, ${threads}>;
@compute @workgroup_size(${threads})
fn main(@builtin(workgroup_id) group: vec3u, @builtin(local_invocation_index) li: u32) {
  let tx = li % ${lanes}u; let ty = li / ${lanes}u;
  let row = group.y * u.groups + group.x;
  if (row >= u.rows) { return; }
  let h = row % u.heads; let i = (row / u.heads) % u.sq; let b = row / u.heads / u.sq;
  let at = (b * u.heads + h) * u.sq + i;
  var m = ${floor}; var l = 0.0f;
  ${each(count, (e) => `var o${e} = vec4f();`).join(" ")}
  for (var n = ty; n < u.parts; n += ${groups}u) {
    let x = max(partLse[n * u.rows + at] * 1.4426950408889634f, ${masked});
    let top = max(m, x); let f = exp2(m - top); let p = exp2(x - top);
    m = top; l = l * f + p;
    ${
    each(count, (e) => {
      const d4 = `(tx + ${e * lanes}u)`;
      const read = `partOut_at((n * u.rows + row) * ${unitsOf(params)}u, ${
        size4 % lanes === 0 ? d4 : `min(${d4}, ${size4 - 1}u)`
      })`;
      return `o${e} = fma(vec4f(p), ${read}, o${e} * f);`;
    }).join(" ")
  }
  }
  if (tx == 0u) { state[ty] = vec2f(m, l); }
  workgroupBarrier();
  var top = ${floor}; var sum = 0.0f;
  for (var n = 0u; n < ${groups}u; n++) { top = max(top, state[n].x); }
  for (var n = 0u; n < ${groups}u; n++) { sum += state[n].y * exp2(state[n].x - top); }
  let f = exp2(m - top);
  ${endSoftmax({ sinks, dropout: false }, "top", "sum")}
  ${
    each(count, (e) =>
      `outs[li] = o${e} * f;
  workgroupBarrier();
  if (ty == 0u) {
    var y = vec4f();
    for (var n = 0u; n < ${groups}u; n++) { y += outs[n * ${lanes}u + tx]; }
    out_put(row * ${valueDim}u, tx + ${e * lanes}u, y * by);
  }
  workgroupBarrier();`).join("\n")
  }
  if (li == 0u) { lse[at] = ${lseBits}; }
}`;
}

/** Workgroups and uniforms of a call. */
export function planAttentionCombine(
  { valueDim, few }: AttentionCombineParams,
  batch: number,
  seqlenQ: number,
  heads: number,
  parts: number,
): AttentionPlan {
  const rows = batch * seqlenQ * heads, all = few ? Math.ceil(rows * Math.ceil(valueDim / 4) / threads) : rows;
  const groups = Math.min(65535, all);
  return {
    workgroups: [groups, groups === 0 ? 0 : Math.ceil(all / groups), 1],
    uniforms: { sq: seqlenQ, heads, rows, parts, groups },
  };
}
