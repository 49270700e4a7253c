/**
 * Flash attention, forward, on subgroup matrices: out = softmax(scale·q·kᵀ + …)·v and lse from q, k and v of f16, or of
 * bf16, which becomes f16 times powers of two on its way to workgroup memory (attention_matrix_range.ts).
 *
 *                 keys ─▶ steps of 16, staged in workgroup memory
 *   queries   ┌────────────┐
 *     │       │  q·kᵀ      │ ─▶ scratch (f32) ─▶ a lane a row: p = exp2(s − top), Σ p ─▶ scratch (f16)
 *     ▼       │  matrices  │
 *   one tile  └────────────┘     out += p·v, matrices of f32 from the first key to the last; divided by Σ p at the end
 *
 * Two barriers a step, and a third where p lies over the scores that it comes from instead of in the pad beside them:
 *
 *   q·kᵀ, scores stored │ scores read, p stored, next k and this v stored │ p·v
 *
 * `top` is 8 powers of two above a row's first maximum and stays: p fits f16 as long as no later score is 15 powers above
 * it, so that nothing is rescaled on the way. Where one is, the tile starts again with the maxima that it has found. A step
 * that all rows see whole skips the mask behind one uniform branch; steps that no row sees are not loaded.
 *
 * Floor for f16 B2 H16 S4096 D128, full: 275 GFLOP at 650 TFLOP/s, what a loop of these matrix products from workgroup
 * memory reaches, 0.42 ms. Scores and p through workgroup memory are 12 bytes a score beside 16 for k and v: at 128 bytes a
 * clock and processor some 550 TFLOP/s at most. What binds is waiting: workgroups share 48 KiB of a processor's memory and
 * 65536 registers, so two of four subgroups run (three at head size 64).
 *
 * Versions, H200, Dawn, robustness off, TFLOP/s at D 128 full / causal, then B4 H12 S2048 D 64:
 *   prototype  one place for k and v, six barriers, 16 rows a subgroup, rescaling          170 / 153   157 / 107
 *   v1  32 rows a subgroup, two share 32 keys, k and v apart, 1 workgroup of 128           121
 *   v2  the same, 256 threads, 48 KiB                                                      168 / 159
 *       k and v in one place, p in place, 2 workgroups of 128                              148 / 144   127 / 123
 *   v3  16×8×16 matrices in place of 16×16×16: a third of the code                         184 / 172   171 / –
 *   v4  the tile starts again instead of rescaling                                         200 / 191   185 / 143
 *       the next scores made beside the softmax (two groups of scores in flight)           215 / 200   150 / 143
 *   v5  4 subgroups of 32 rows, none sharing keys, steps of 16, p in place: 19 KiB         243 / –     175 / 143
 *       loads after the scores' product instead of before: fewer registers                 224 / 210   210 / 175  ◀
 *       p apart from the scores (one barrier less, one workgroup fewer)                    – / –       166 / 157
 *       steps of 32: 185 at D 64; 64 rows by two subgroups: 166; 16 rows a subgroup: 155 at D 128
 *       k and v straight from storage: 31 and 62 clocks a matrix, 3 from workgroup memory: not pursued
 *   v6  p in the pad, 23 KiB: two barriers a step                                          246 / –     160 / –    ◀ over D 80
 * The last three again on another day, robustness on, best of three rounds: v5 early 244 / 221 at D 128, late 194 / 165 at
 * D 64, v6 245 at D 128; without loads from storage 270 and 216, without p·v 334 (wrong results, all three).
 * PyTorch's FlashAttention-2, same card: 342 / 264, 262 / 181.
 */
import {
  type AttentionLayout,
  type AttentionOperand,
  type AttentionOperands,
  type AttentionPlan,
  type AttentionShape,
  endSoftmax,
  floor,
  lseBits,
  masked,
  operandName,
  operandType,
  operandWriter,
  writerFunctions,
} from "./attention_common.ts";
import { matrixReader } from "./attention_matrix_operands.ts";
import {
  isBeside,
  joinRow,
  leftMatrices,
  leftText,
  matrixRows,
  type MatrixSource,
  matrixThreads,
  type MatrixTile,
  matrixTileName,
  mixMatrices,
  packUnit,
  paddedSize,
  passResults,
  placeText,
  scoreProduct,
  scratchBytes,
  scratchMemory,
  type Staged,
  stagedBytes,
  stagedMemory,
  storeScores,
  transfer,
  unitsOf,
  zeroResults,
} from "./attention_matrix_tiles.ts";
import {
  attentionKernel,
  type AttentionSettings,
  attentionUniforms,
  changesScores,
  dropoutText,
  featureFunctions,
  isEdge,
  keyRange,
  keyRow,
  locateBatch,
  locateHead,
  scoreText,
} from "./attention_options.ts";
import { type AttentionOrder, gridOf, locateQueries } from "./attention_parts.ts";
import { rangeText, scoreScale, withoutPower } from "./attention_matrix_powers.ts";
import { each, type Kernel } from "./kernel.ts";

/** Everything that the text of the matrix forward kernel depends on. */
export interface AttentionMatrixForwardParams extends AttentionOperands, AttentionOrder {
  readonly tile: MatrixTile;
  readonly out: AttentionOperand;
  /** The next keys and values are on their way to registers during the products, not only during the softmax. */
  readonly early: boolean;
}

function stagedOf({ tile, headDim, valueDim }: AttentionMatrixForwardParams): { keys: Staged; values: Staged } {
  const place = (name: string, size: number): Staged => ({ name, rows: tile.step, size: paddedSize(tile, size) });
  return { keys: place("keys", headDim), values: place("values", valueDim) };
}

/** Bytes of workgroup memory that the kernel of these parameters takes. */
export function attentionMatrixForwardMemory(params: AttentionMatrixForwardParams): number {
  const { keys, values } = stagedOf(params), { tile } = params;
  return stagedBytes(keys) + stagedBytes(values) + scratchBytes(tile) + matrixRows(tile) * 4 + 4;
}

/**
 * The forward kernel on matrices. Reads q, k, v and what the options read, sinks last; writes out, dense [B, Sq, H, Dv],
 * and lse, the bits of f32 [B, H, Sq], −∞ among them (variable length: [Tq, H, Dv] and [H, Tq]).
 */
export function attentionMatrixForward(params: AttentionMatrixForwardParams): Kernel {
  const { tile, headDim, valueDim, q, k, v, out, longFirst, early } = params;
  const name = [
    `attention_matrix_forward_d${headDim}x${valueDim}_${matrixTileName(tile)}`,
    ...[q, k, v, out].map(operandName),
    ...(longFirst ? ["long"] : []),
    ...(early ? ["early"] : []),
  ];
  return attentionKernel(name, params, {
    writes: { out: operandType(out), lse: "u32" },
    uniforms: { tiles: "u32", step: "u32" },
    requires: ["f16", "subgroups", "subgroup-matrix"],
  }, body);
}

/** Powers of two between a row's first maximum and the score whose p is 1, and how far beyond that p still fits f16. */
const below = 8, beyond = 15;

/** The statements between a step's product and the one with v: scratch holds the scores before, 16-bit p after. */
function softmaxText({ tile, features }: AttentionMatrixForwardParams): string {
  const rows = matrixRows(tile), { step } = tile, units = unitsOf(tile);
  const vec = units.flatMap((unit, n) => ([0, 1] as const).map((half) => ({ unit, half, x: `x${2 * n + half}` })));
  const all = (join: (a: string, b: string) => string): string => vec.map(({ x }) => x).reduce(join);
  const perVec = (f: (at: { x: string; column: string; half: number }) => string): string =>
    vec.map(({ unit, half, x }) => f({ x, column: unit.column, half })).join("\n");

  // Where nothing stands between the product and the softmax, scale (10⁻⁶ to 1) is multiplied in the exponent.
  const fold = !changesScores(features) && features.range !== "scaled", unseen = fold ? "-1e38f" : masked;
  const scores = perVec(({ x, column, half }) =>
    each(
      4,
      (e) =>
        `{ let j = k0 + ${column} + ${half * 4 + e}u; var s = ${x}[${e}]; ${
          scoreText(features, "s", "i", "j")
        } ${x}[${e}] = s; }`,
    ).join("\n")
  );
  return `
      ${
    vec.map(({ unit, half, x }) =>
      `var ${x} = ${unit.read("scratch", half)}${fold ? "" : ` * ${scoreScale(features)}`};`
    ).join("\n")
  }
      ${fold ? "" : scores}
      if (${isEdge(features, "q0", rows, "k0", step)}) {
        ${
    features.window
      ? "let most = min(i32(sk) - 1, i32(i) + shift + u.right); let least = max(i32(keyFirst), i32(i) + shift - u.left);"
      : "let most = i32(sk) - 1; let least = i32(keyFirst);"
  }
        ${
    perVec(({ x, column, half }) =>
      `{ let j = vec4i(i32(k0 + ${column}) + ${half * 4}) + vec4i(0, 1, 2, 3); ` +
      `${x} = select(vec4f(${unseen}), ${x}, (j >= vec4i(least)) & (j <= vec4i(most))); }`
    )
  }
      }
      let most4 = ${all((a, b) => `max(${a}, ${b})`)};
      var most = max(max(most4.x, most4.y), max(most4.z, most4.w));
      ${joinRow(tile, "most", (a, b) => `max(${a}, ${b})`)}
      seen = max(seen, ${fold ? "max(most * u.scale, -1e30f)" : "most"});
      top = select(top, seen + ${below}.0f, top == ${floor} && seen > ${floor});
      ${perVec(({ x }) => `${x} = exp2(${fold ? `fma(${x}, vec4f(u.scale), vec4f(-top))` : `${x} - top`});`)}
      let sum4 = ${all((a, b) => `(${a} + ${b})`)};
      sum += (sum4.x + sum4.y) + (sum4.z + sum4.w);
      ${
    features.dropout
      ? perVec(({ x, column, half }) => `{ ${dropoutText("i", `((k0 + ${column}) / 4u + ${half}u)`)} ${x} *= kept; }`)
      : ""
  }
      ${
    units.map((unit, n) => unit.write("scratch", packUnit(`x${2 * n}`, `x${2 * n + 1}`)))
      .join("\n")
  }`;
}

function body(params: AttentionMatrixForwardParams): string {
  const { tile, headDim, valueDim, q, k, v, out, features, early } = params, { step } = tile;
  const rows = matrixRows(tile), { keys, values } = stagedOf(params);
  const least = features.leftpad ? "keyFirst" : undefined, most = "(sk - 1u)";
  const sourceOf = (name: "k" | "v"): MatrixSource => ({
    name,
    start: (j) => keyRow(features, name, j),
    least,
    most,
    wide: params[name].storage === "bf16",
  });
  const query: MatrixSource = {
    name: "q",
    start: (i) => `qBase + ${i} * u.qSeq`,
    most: "(sq - 1u)",
    wide: q.storage === "bf16",
  };
  const takeKeys = transfer(tile, sourceOf("k"), keys), takeValues = transfer(tile, sourceOf("v"), values);
  const fetch = (keys: string, values: string): string => `${takeKeys.load(keys)}\n${takeValues.load(values)}`;

  return `
${matrixReader("q", q, headDim, keys.size, features.range === "scaled")}
${matrixReader("k", k, headDim, keys.size, features.range === "scaled")}
${matrixReader("v", v, valueDim, values.size, features.range === "scaled")}
${writerFunctions(out.storage)}
${operandWriter("out", out, valueDim)}
${featureFunctions(features)}
${stagedMemory(keys)}
${stagedMemory(values)}
${scratchMemory(tile, "scratch")}
var<workgroup> factors: array<f32, ${rows}>;
var<workgroup> outgrown: atomic<u32>;
@compute @workgroup_size(${matrixThreads(tile)})
fn main(@builtin(workgroup_id) group: vec3u, @builtin(local_invocation_index) li: u32) {
  ${placeText(tile)}
  ${locateQueries(params, rows)}
  ${locateBatch(features)}
  ${locateHead(features)}
  ${rangeText(features)}
  if (q0 >= sq) { return; }
  ${keyRange(features, "q0", rows, step)}
  let i = q0 + row;
  ${zeroResults(tile, "o", values.size)}
  ${takeKeys.declare} ${takeValues.declare}
  if (keyFrom < keyTo) { ${takeKeys.load("keyFrom")} }
  ${leftMatrices(tile, keys.size, "q")}
  ${leftText(tile, query, keys, "q0", "q")}
  var top = ${floor}; var seen = ${floor}; var sum = 0.0f;
  for (var again = 0u; again < 2u; again++) {
    ${takeKeys.store}
    ${early ? `if (keyFrom < keyTo) { ${fetch(`keyFrom + ${step}u`, "keyFrom")} }` : ""}
    workgroupBarrier();
    for (var k0 = keyFrom; k0 < keyTo; k0 += u.step) {
      {
        ${scoreProduct(tile, "s", "q", keys)}
        ${storeScores(tile, "s", "scratch")}
      }
      workgroupBarrier();
      ${early ? "" : fetch(`k0 + ${step}u`, "k0")}
      {
        ${softmaxText(params)}
      }
      ${takeKeys.store}
      ${takeValues.store}
      ${early ? fetch(`k0 + ${2 * step}u`, `k0 + ${step}u`) : ""}
      workgroupBarrier();
      ${mixMatrices(tile, "o", "scratch", values)}
      ${isBeside(tile) ? "" : "workgroupBarrier();"}
    }
    if (li == 0u) { atomicStore(&outgrown, 0u); }
    workgroupBarrier();
    if (seen > top + ${beyond}.0f) { atomicStore(&outgrown, 1u); }
    if (workgroupUniformLoad(&outgrown) == 0u) { break; }
    top = max(top, seen); sum = 0.0f;
    ${zeroResults(tile, "o", values.size, "")}
    if (keyFrom < keyTo) { ${takeKeys.load("keyFrom")} }
  }
  ${joinRow(tile, "sum", (a, b) => `${a} + ${b}`)}
  ${endSoftmax(features, "top", "sum")}
  if (part == 0u) {
    factors[row] = by;
    if (i < sq) {
      lse[lseAt + i] = ${lseBits};
    }
  }
  ${
    passResults(tile, "o", values.size, "scratch", (vec, inRow, d4) =>
      `let inRow = ${inRow};
      if (q0 + inRow < sq) {
        out_put(((outRow + q0 + inRow) * u.heads + h) * ${valueDim}u, ${d4}, ${
        withoutPower(features, `${vec} * factors[inRow]`, "v")
      });
      }`)
  }
}`;
}

/** Workgroups and uniforms of a call. */
export function planAttentionMatrixForward(
  params: AttentionMatrixForwardParams,
  shape: AttentionShape,
  at: AttentionLayout,
  settings: AttentionSettings,
): AttentionPlan {
  const { batch, seqlenQ, heads } = shape;
  const tiles = Math.ceil(seqlenQ / matrixRows(params.tile));
  return {
    workgroups: gridOf(params, tiles, heads, batch),
    uniforms: { ...attentionUniforms(params, shape, at, settings), tiles, step: params.tile.step },
  };
}
