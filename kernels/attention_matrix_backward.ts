/**
 * Flash attention, backward, on subgroup matrices; what is computed stands in attention_backward.ts. Two subgroups are abreast
 * over the same rows, one on the side of the scores, one on that of dP, so that each holds one operand in matrices:
 *
 *   keys kernel      a workgroup owns keys and walks the queries (of every head of its group):
 *                    side 0 holds K: Sᵀ  = K·Qᵀ  ─▶ scratch (f32) ─▶ lanes: P  ─▶ scratch (f16) ─▶ dV += Pᵀ·dO
 *                    side 1 holds V: dPᵀ = V·dOᵀ ─▶ scratch (f32) ─▶ lanes: dS ─▶ scratch (f16) ─▶ dK += dSᵀ·Q
 *   queries kernel   a workgroup owns queries and walks the keys:
 *                    side 0 holds Q:  S  = Q·Kᵀ  ─▶ scratch (f32) ─▶ lanes                         dQ += dS·K, the left
 *                    side 1 holds dO: dP = dO·Vᵀ ─▶ scratch (f32) ─▶ lanes: dS ─▶ scratch (f16) ─▶ or the right columns
 *
 * One text serves both sides: places are chosen by the side, products are not. Every result is a sum in a fixed order; four
 * barriers a step. P is at most 1, and dS has a power of two, so that both fit f16.
 *
 * Floor for f16 B2 H16 S4096 D128, full: 962 GFLOP in seven products at 620 TFLOP/s, which these matrices reach from
 * registers, 1.55 ms; 687 of them are counted. Versions on an H200, Dawn, with robustness unless said, ms (keys / queries):
 *                                                                     D 128 full        B4 H12 S2048 D 64 full
 *   v1  every subgroup holds both operands: 16 rows at D 128,
 *       two of 32 rows at D 64, P and dS in the pad                   3.54 / 2.52       0.84 / 0.61
 *       P and dS apart from the scores, one workgroup fewer           5.7  / 2.5
 *       steps of 32: one workgroup                                    4.1  / 2.9        1.3 / 1.0
 *       without the barriers between scores and lanes (a race)        3.47 / 2.50
 *       K in two places, V stored early: two barriers a step           –   / 2.98
 *       without loads from storage 2.86 / 1.87, without lanes too 2.35 / 1.37 (wrong results)
 *   v2  two abreast over 32 rows: half of the loads of matrices       3.18 / 2.38       1.04 / 0.80
 *       rows of scratch 7 vec4f instead of 6: other banks             3.10 / 2.33       1.02 / 0.80
 *       P and dS over the scores, 5 vec4f: three workgroups at D 64   3.04 / 2.31       0.72 / 0.57   ◀ this file
 *       96 rows 0.81 / 0.64 at D 64; 128 rows 3.59 / 2.63, one workgroup; 64 rows by two subgroups 0.82 / 0.63 at D 64
 *   With the rest of a call 5.40 ms at D 128 (127 TFLOP/s as counted) and 1.31 at D 64 (98.5).
 * PyTorch's FlashAttention-2, same card: 2.72 and 0.77 ms.
 * Barriers do not bind it, since leaving two of four out changes nothing; loads from storage do, a fifth of the time: 64
 * rows share what a step brings, and larger workgroups leave one resident, since all share 48 KiB of a processor's memory.
 */
import {
  type AttentionFeatures,
  type AttentionLayout,
  type AttentionOperand,
  type AttentionOperands,
  type AttentionPlan,
  type AttentionShape,
  type AttentionStorage,
  denseOperand,
  operandName,
  operandType,
  operandWriter,
  writerFunctions,
} from "./attention_common.ts";
import { matrixReader } from "./attention_matrix_operands.ts";
import { scoreScale } from "./attention_matrix_powers.ts";
import {
  matrixRows,
  type MatrixSource,
  matrixThreads,
  type MatrixTile,
  matrixTileName,
  paddedSize,
  placeText,
  scratchBytes,
  scratchMemory,
  type Staged,
  stagedBytes,
  type Unit,
  unitsOf,
} from "./attention_matrix_tiles.ts";
import {
  attentionKernel,
  type AttentionSettings,
  attentionUniforms,
  changesScores,
  featureFunctions,
  keyRow,
  scoreText,
} from "./attention_options.ts";
import { type AttentionOrder, gridOf } from "./attention_parts.ts";
import { each, type Kernel } from "./kernel.ts";

/** Everything that the text of the keys kernel or the queries kernel on matrices depends on. */
export interface AttentionMatrixBackwardParams extends AttentionOperands, AttentionOrder {
  readonly tile: MatrixTile;
  /** The gradient of the output: dense [B, Sq, H, Dv]. */
  readonly dOut: AttentionOperand;
  /** dq, or dk and dv: dense. */
  readonly grad: AttentionStorage;
  /** Its `range` is `slopes` or, for bf16, `scaled`. */
  readonly features: AttentionFeatures;
}

function nameOf(kind: "keys" | "queries", params: AttentionMatrixBackwardParams): string[] {
  const { tile, headDim, valueDim, q, k, v, dOut, grad, longFirst } = params;
  return [
    `attention_matrix_backward_${kind}_d${headDim}x${valueDim}_${matrixTileName(tile)}`,
    ...[q, k, v, dOut].map(operandName),
    grad,
    ...(longFirst ? ["long"] : []),
  ];
}

/**
 * The keys kernel or the queries kernel: reads q, k, v, dOut, rowStats and what the features read.
 *
 * @param writes names and element types of the results
 */
export function matrixBackwardKernel(
  kind: "keys" | "queries",
  params: AttentionMatrixBackwardParams,
  writes: Record<string, string>,
  body: (params: AttentionMatrixBackwardParams) => string,
): Kernel {
  return attentionKernel(nameOf(kind, params), params, {
    reads: { dOut: operandType(params.dOut), rowStats: "vec4f" },
    writes,
    uniforms: { tiles: "u32", step: "u32", gradScale: "f32" },
    requires: ["f16", "subgroups", "subgroup-matrix"],
  }, body);
}

/** Where the rows of an operand lie, after `locateHead`. */
export function sourceOf(
  params: AttentionMatrixBackwardParams,
  name: "q" | "k" | "v" | "dOut",
): MatrixSource {
  const { valueDim, dOut, features } = params;
  const wide = params[name].storage === "bf16";
  if (name === "k" || name === "v") return { name, start: (j) => keyRow(features, name, j), most: "(sk - 1u)", wide };
  const start = name === "q"
    ? (i: string) => `qBase + ${i} * u.qSeq`
    : (i: string) => `((outRow + ${i}) * u.heads + h) * ${valueDim / dOut.unit}u`;
  return { name, start, most: "(sq - 1u)", wide };
}

/** Elements of a row in matrices, the same on both sides: `halves` of them come out even too. */
export function sizeIn({ tile, headDim, valueDim }: AttentionMatrixBackwardParams, halves = 1): number {
  return halves * paddedSize(tile, Math.max(headDim, valueDim) / halves);
}

/** The operand of the scores (0) and that of dP (1) in `staged`, as the keys kernel has them. */
export function stagedWhole(params: AttentionMatrixBackwardParams): (i: string) => Staged {
  const rows = params.tile.step, size = sizeIn(params);
  return (i) => ({ name: `staged[${i}]`, rows, size });
}

/** The same in halves of columns, as the queries kernel has them. */
export function stagedHalves(params: AttentionMatrixBackwardParams): (i: string) => Staged {
  const rows = params.tile.step, size = sizeIn(params, 2);
  return (i) => ({ name: "", rows, size, half: (right) => `staged[2u * ${i} + ${right}]` });
}

/** Bytes of workgroup memory that the larger of the two kernels takes. */
export function attentionMatrixBackwardMemory(params: AttentionMatrixBackwardParams): number {
  const { tile } = params, scratch = 2 * scratchBytes(tile);
  return scratch + Math.max(
    2 * stagedBytes(stagedWhole(params)("0u")) + tile.step * 8,
    4 * stagedBytes(stagedHalves(params)("0u")),
  );
}

/** What both kernels have before their `main`, and its first line. */
export function preamble(
  params: AttentionMatrixBackwardParams,
  size: number,
  places: readonly Staged[],
  outputs: readonly (readonly [name: string, size: number])[],
): string {
  const { tile, headDim, valueDim, q, k, v, dOut, grad, features } = params, scaled = features.range === "scaled";
  return `
${matrixReader("q", q, headDim, size, scaled)}
${matrixReader("k", k, headDim, size, scaled)}
${matrixReader("v", v, valueDim, size, scaled)}
${matrixReader("dOut", dOut, valueDim, size, scaled)}
${writerFunctions(grad)}
${outputs.map(([name, size]) => operandWriter(name, denseOperand(grad, size), size)).join("\n")}
${featureFunctions(features)}
var<workgroup> staged: array<array<vec4u, ${stagedBytes(places[0]) / 16}>, ${places.length}>;
${scratchMemory(tile, "scratch", 2)}
@compute @workgroup_size(${matrixThreads(tile)})
fn main(@builtin(workgroup_id) group: vec3u, @builtin(local_invocation_index) li: u32) {
  ${placeText(tile)}`;
}

/** A vec4f of a lane's scores: `x<n>`, the half of a unit of eight. */
export interface LaneScores {
  readonly unit: Unit;
  readonly half: 0 | 1;
  readonly n: number;
}

/** The vec4f that a lane owns. */
export function laneScores(tile: MatrixTile): LaneScores[] {
  return unitsOf(tile).flatMap((unit, n) => ([0, 1] as const).map((half) => ({ unit, half, n: 2 * n + half })));
}

/**
 * Statements that declare `x<n>`, the scores with what the options make of them, and with softcap their `slope<n>`.
 *
 * @param walked the name of the index that goes along the scores' columns, and the first of the step
 */
export function scoresText(
  { tile, features }: AttentionMatrixBackwardParams,
  [walked, first]: readonly [string, string],
): string {
  const scores = laneScores(tile);
  return [
    ...scores.map(({ unit, half, n }) => `var x${n} = ${unit.read("scratch[0]", half)} * ${scoreScale(features)};`),
    ...(features.softcap ? scores.map(({ n }) => `var slope${n} = vec4f(1.0f);`) : []),
    ...(changesScores(features)
      ? scores.flatMap(({ unit, half, n }) =>
        each(
          4,
          (e) =>
            `{ let ${walked} = ${first} + ${unit.column} + ${half * 4 + e}u; var s = x${n}[${e}]; ${
              scoreText(features, "s", "i", "j")
            } x${n}[${e}] = s; ${features.softcap ? `slope${n}[${e}] = t.y;` : ""} }`,
        )
      )
      : []),
  ].join("\n");
}

/**
 * The scores of a lane become probabilities, by what is taken off each four. Those of bf16 may lie where lse is rounded by so
 * much that the power overflows; none is above 1. With it bf16 has 123 and 94 TFLOP/s where f16 has 130 and 98. Those of f16 go without: from
 * 4·10⁸ on, which takes numbers near the end of f16, gradients become infinite here. Naive attention holds scores in f16 and is
 * NaN from 65,504 on.
 */
export function powerText({ features }: AttentionMatrixBackwardParams, n: number, low: string): string {
  const power = `x${n} - ${low}`;
  return `x${n} = exp2(${features.range === "scaled" ? `min(${power}, vec4f())` : power});`;
}

/** Statements that set p to 0 outside of `least` … `most`, indices along the scores' columns from `first` on. */
export function hideText({ tile }: AttentionMatrixBackwardParams, first: string): string {
  return laneScores(tile).map(({ unit, half, n }) =>
    `{ let at = vec4i(i32(${first} + ${unit.column}) + ${half * 4}) + vec4i(0, 1, 2, 3); ` +
    `x${n} = select(vec4f(), x${n}, (at >= vec4i(least)) & (at <= vec4i(most))); }`
  ).join("\n");
}

/** dP − D of a lane's vec4f, times dS' power, and softcap's slope. */
export function slopeText(
  { features }: AttentionMatrixBackwardParams,
  { unit, half, n }: LaneScores,
  mean: string,
): string {
  const slope = `fma(${unit.read("scratch[1]", half)}, vec4f(slopeIn), -${mean})`;
  return features.softcap ? `${slope} * slope${n}` : slope;
}

/** Workgroups and uniforms of the two kernels of a call. */
export function planAttentionMatrixBackward(
  params: AttentionMatrixBackwardParams,
  shape: AttentionShape,
  at: AttentionLayout,
  settings: AttentionSettings,
): { keys: AttentionPlan; queries: AttentionPlan } {
  const { batch, seqlenQ, seqlenK, heads, kvHeads } = shape;
  const plan = (seqlen: number, heads: number): AttentionPlan => {
    const tiles = Math.ceil(seqlen / matrixRows(params.tile));
    return {
      workgroups: gridOf(params, tiles, heads, batch),
      uniforms: {
        ...attentionUniforms(params, shape, at, settings),
        tiles,
        step: params.tile.step,
        gradScale: settings.softmaxScale,
      },
    };
  };
  return { keys: plan(seqlenK, kvHeads), queries: plan(seqlenQ, heads) };
}
