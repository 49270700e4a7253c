/**
 * Flash attention, backward, on subgroup matrices; what is computed stands in attention_backward.ts.
 *
 *   keys kernel      a workgroup owns keys, k and v in matrices, and walks the queries (of every head of its group):
 *                    Sᵀ = K·Qᵀ and dPᵀ = V·dOᵀ ─▶ scratch (f32) ─▶ lanes: P, dS ─▶ scratch (f16) ─▶ dV += Pᵀ·dO, dK += dSᵀ·Q
 *   queries kernel   a workgroup owns queries, q and dOut in matrices, and walks the keys:
 *                    S = Q·Kᵀ and dP = dO·Vᵀ   ─▶ scratch (f32) ─▶ lanes: dS    ─▶ scratch (f16) ─▶ dQ += dS·K
 *
 * Every result is a sum in a fixed order; four barriers a step. P is at most 1 and is rounded to f16 as it is, dS times a power
 * of two (attention_matrix_range.ts), without which |dOut|·|v| beyond 65504 gave NaN and gradients of 10⁻⁶ lost their digits.
 *
 * Floor for f16 B2 H16 S4096 D128, full: 962 GFLOP in seven products at 650 TFLOP/s, 1.48 ms; 687 of them are counted.
 * Versions on an H200, Dawn, robustness off, TFLOP/s of the products done (keys / queries), steps of 16 and f16 in place:
 *                                                                         D 128 full       B4 H12 S2048 D 64 full
 *   4 subgroups of 16 rows, 19 and 15 KiB                                 154 / 159        123 / 124
 *   P and dS apart from the scores, 25 KiB: one workgroup fewer            95 / 159
 *   steps of 32, 36 and 28 KiB: one workgroup                             132 / 135         79 / 79
 *   two subgroups share 32 columns                                        134 / 143         80 / 80
 *   8 subgroups of 16 rows                                                                  71 / 76
 *   16×16×16 matrices                                                     153 / –          123 / –
 *   loads after the products (keys: not measured)                         – / 160          – / 124
 *   2 subgroups of 32 rows, 15 KiB; loads after the products              –                121 / 131  ◀ to D 64
 * The two kernels take 6.15 ms at D 128 (112 TFLOP/s as counted) and 1.44 ms at D 64 (89); causal 3.19 (108) and 0.72 (89).
 * PyTorch's FlashAttention-2, same card: 2.72 and 0.77 ms, causal 1.72 and 0.44.
 * Over D 64 two lanes share a row, so P and dS stand in its pad, which is one vec4f longer than in the version measured.
 * Bound by waiting: two scores of f32 and four barriers a step, 8 to 12 subgroups on a processor. Next would be k and q in
 * two places each, for two barriers a step, and one scratch for both scores, for a workgroup more.
 */
import {
  type AttentionFeatures,
  type AttentionStorage,
  denseOperand,
  featuresName,
  operandType,
  operandWriter,
  writerFunctions,
} from "./attention_common.ts";
import type { AttentionLayout, AttentionPlan, AttentionShape } from "./attention_forward.ts";
import {
  type MatrixOperand,
  matrixOperandName,
  matrixOperandType,
  matrixReader,
  matrixStrides,
} from "./attention_matrix_operands.ts";
import {
  leftText,
  matrixRows,
  type MatrixSource,
  matrixThreads,
  type MatrixTile,
  matrixTileName,
  mixMatrices,
  narrowBytes,
  narrowMemory,
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
  attentionFields,
  type AttentionSettings,
  changesScores,
  featureFunctions,
  featureReads,
  featureUniforms,
  isEdge,
  keyRange,
  keyRow,
  locateBatch,
  locateHead,
  locateKeys,
  queryRange,
  scoreText,
} from "./attention_options.ts";
import { rangeText, scoreScale, withoutPower } from "./attention_matrix_powers.ts";
import { each, type Kernel, kernel } from "./kernel.ts";

/** Everything that the text of the keys kernel or the queries kernel on matrices depends on. */
export interface AttentionMatrixBackwardParams {
  readonly tile: MatrixTile;
  readonly headDim: number;
  readonly valueDim: number;
  readonly q: MatrixOperand;
  readonly k: MatrixOperand;
  readonly v: MatrixOperand;
  /** The gradient of the output: dense [B, Sq, H, Dv]. */
  readonly dOut: MatrixOperand;
  /** dq, or dk and dv: dense. */
  readonly grad: AttentionStorage;
  /** `range` is `slopes` or, for bf16, `scaled`. */
  readonly features: AttentionFeatures;
  /** Heads vary fastest, tiles with the most work start first. */
  readonly longFirst: boolean;
  /** The next step's operands are on their way to registers during the scores' products, not only after them. */
  readonly early: boolean;
}

type Kind = "keys" | "queries";

/** The two operands that a step brings: for the scores (deep) and for dP (value). */
function stagedOf({ tile, headDim, valueDim }: AttentionMatrixBackwardParams): { deep: Staged; value: Staged } {
  const place = (name: string, size: number): Staged => ({ name, rows: tile.step, size: paddedSize(tile, size) });
  return { deep: place("deep", headDim), value: place("value", valueDim) };
}

/** Bytes of workgroup memory that a kernel of these parameters takes. */
export function attentionMatrixBackwardMemory(params: AttentionMatrixBackwardParams): number {
  const { tile } = params, { deep, value } = stagedOf(params);
  return stagedBytes(deep) + stagedBytes(value) + 2 * scratchBytes(tile) + 2 * narrowBytes(tile) + tile.step * 8;
}

function nameOf(kind: Kind, params: AttentionMatrixBackwardParams): string {
  const { tile, headDim, valueDim, q, k, v, dOut, grad, features, longFirst } = params;
  return [
    `attention_matrix_backward_${kind}_d${headDim}x${valueDim}_${matrixTileName(tile)}`,
    ...[q, k, v, dOut].map(matrixOperandName),
    grad,
    ...(longFirst ? ["long"] : []),
    ...(params.early ? ["early"] : []),
  ].join("_") + featuresName(features);
}

function interfaceOf({ q, k, v, dOut, features }: AttentionMatrixBackwardParams) {
  return {
    reads: {
      q: matrixOperandType(q),
      k: matrixOperandType(k),
      v: matrixOperandType(v),
      dOut: matrixOperandType(dOut),
      rowStats: "vec4f",
      ...featureReads(features),
    },
    uniforms: {
      ...attentionFields(features),
      tiles: "u32",
      step: "u32",
      gradScale: "f32",
    },
    requires: ["f16", "subgroups", "subgroup-matrix"],
  } as const;
}

/** Where the rows of an operand lie, after `locateHead`. */
function sourceOf(
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

/** What both kernels have before their `main`, and its first line. */
function preamble(
  params: AttentionMatrixBackwardParams,
  outputs: readonly (readonly [name: string, size: number])[],
): string {
  const { tile, headDim, valueDim, q, k, v, dOut, grad, features } = params, { deep, value } = stagedOf(params);
  const scaled = features.range === "scaled";
  return `
${matrixReader("q", q, headDim, deep.size, scaled)}
${matrixReader("k", k, headDim, deep.size, scaled)}
${matrixReader("v", v, valueDim, value.size, scaled)}
${matrixReader("dOut", dOut, valueDim, value.size, scaled)}
${writerFunctions(grad)}
${outputs.map(([name, size]) => operandWriter(name, denseOperand(grad, size), size)).join("\n")}
${featureFunctions(features)}
${stagedMemory(deep)}
${stagedMemory(value)}
${scratchMemory(tile, "scoreScratch")}
${scratchMemory(tile, "slopeScratch")}
${narrowMemory(tile, "scoreNarrow")}
${narrowMemory(tile, "slopeNarrow")}
@compute @workgroup_size(${matrixThreads(tile)})
fn main(@builtin(workgroup_id) group: vec3u, @builtin(local_invocation_index) li: u32) {
  ${placeText(tile)}`;
}

/** The names under which narrow scores are found. */
function narrowNames({ inPlace }: MatrixTile): { scores: string; slopes: string } {
  return inPlace
    ? { scores: "scoreScratch", slopes: "slopeScratch" }
    : { scores: "scoreNarrow", slopes: "slopeNarrow" };
}

/**
 * The kernel that owns keys. Reads q, k, v, dOut, rowStats and what the features read; writes dk [B, Sk, Hk, D] and
 * dv [B, Sk, Hk, Dv].
 */
export function attentionMatrixBackwardKeys(params: AttentionMatrixBackwardParams): Kernel {
  const { headDim, valueDim, grad } = params;
  return kernel(nameOf("keys", params), {
    ...interfaceOf(params),
    writes: { dk: operandType(denseOperand(grad, headDim)), dv: operandType(denseOperand(grad, valueDim)) },
  }, () => keysBody(params));
}

function keysBody(params: AttentionMatrixBackwardParams): string {
  const { tile, headDim, valueDim, features, longFirst, early } = params, { step } = tile;
  const rows = matrixRows(tile), { deep, value } = stagedOf(params), units = unitsOf(tile), narrow = narrowNames(tile);
  const takeQ = transfer(tile, sourceOf(params, "q"), deep), takeD = transfer(tile, sourceOf(params, "dOut"), value);
  const vec = units.flatMap((unit, n) => ([0, 1] as const).map((half) => ({ unit, half, n: 2 * n + half })));
  // A vec4f is written whole: lanes that write its parts would race.
  const takeStats = (first: string): string =>
    `if (li < ${step / 4}u) { ${
      each(4, (e) =>
        `{ let i = ${first} + li * 4u + ${e}u; let found = rowStats[lseAt + min(i, sq - 1u)];
        lowNext[${e}] = select(1e30f, found.x + found.z, i < sq); meanNext[${e}] = select(0.0f, found.y * slopeScale, i < sq); }`)
        .join("\n")
    } }`;
  const putStats = `if (li < ${step / 4}u) { lows[li] = lowNext; means[li] = meanNext; }`;
  const scores = vec.map(({ unit, half, n }) =>
    each(
      4,
      (e) =>
        `{ let i = q0 + ${unit.column} + ${half * 4 + e}u; var s = x${n}[${e}]; ${
          scoreText(features, "s", "i", "j")
        } x${n}[${e}] = s; ${features.softcap ? `slope${n}[${e}] = 1.0f - t * t;` : ""} }`,
    ).join("\n")
  ).join("\n");
  const load = (first: string): string => `${takeQ.load(first)}\n${takeD.load(first)}\n${takeStats(first)}`;

  return `
var<workgroup> lows: array<vec4f, ${step / 4}>;
var<workgroup> means: array<vec4f, ${step / 4}>;
${preamble(params, [["dk", headDim], ["dv", valueDim]])}
  ${
    longFirst
      ? "let g = group.x; let b = group.y; let k0 = group.z"
      : "let g = group.y; let b = group.z; let k0 = group.x"
  } * ${rows}u;
  ${locateBatch(features)}
  if (k0 >= sk) { return; }
  ${rangeText(features, params)}
  ${queryRange(features, "k0", rows, step)}
  let j = k0 + row;
  ${zeroResults(tile, "x", deep.size)}
  ${zeroResults(tile, "y", value.size)}
  ${locateKeys(features)}
  ${leftText(tile, sourceOf(params, "k"), deep, "k0", "k")}
  ${leftText(tile, sourceOf(params, "v"), value, "k0", "v")}
  for (var h = g * u.group; h < (g + 1u) * u.group; h++) {
    ${locateHead(features)}
    ${takeQ.declare} ${takeD.declare} var lowNext = vec4f(); var meanNext = vec4f();
    if (queryFrom < queryTo) { ${load("queryFrom")} }
    for (var q0 = queryFrom; q0 < queryTo; q0 += u.step) {
      ${takeQ.store}
      ${takeD.store}
      ${putStats}
      ${early ? load(`q0 + ${step}u`) : ""}
      workgroupBarrier();
      {
        ${scoreProduct(tile, "s", "k", deep)}
        ${storeScores(tile, "s", "scoreScratch")}
      }
      {
        ${scoreProduct(tile, "s", "v", value)}
        ${storeScores(tile, "s", "slopeScratch")}
      }
      workgroupBarrier();
      ${early ? "" : load(`q0 + ${step}u`)}
      {
        ${
    vec.map(({ unit, half, n }) => `var x${n} = ${unit.read("scoreScratch", half)} * ${scoreScale(features)};`).join(
      "\n",
    )
  }
        ${features.softcap ? vec.map(({ n }) => `var slope${n} = vec4f(1.0f);`).join(" ") : ""}
        ${changesScores(features) ? scores : ""}
        ${vec.map(({ unit, half, n }) => `x${n} = exp2(x${n} - lows[${unit.column} / 4u + ${half}u]);`).join("\n")}
        ${
    features.window
      ? `if (${isEdge(features, "q0", step, "k0", rows)}) {
          let least = i32(j) - shift - u.right; let most = i32(j) - shift + u.left;
          ${
        vec.map(({ unit, half, n }) =>
          `{ let i = vec4i(i32(q0 + ${unit.column}) + ${half * 4}) + vec4i(0, 1, 2, 3); ` +
          `x${n} = select(vec4f(), x${n}, (i >= vec4i(least)) & (i <= vec4i(most))); }`
        ).join("\n")
      }
        }`
      : ""
  }
        ${
    vec.map(({ unit, half, n }) =>
      `let d${n} = x${n} * fma(${
        unit.read("slopeScratch", half)
      }, vec4f(slopeIn), -means[${unit.column} / 4u + ${half}u])${features.softcap ? ` * slope${n}` : ""};`
    ).join("\n")
  }
        ${
    units.map((unit, n) =>
      [
        unit.write(narrow.scores, packUnit(`x${2 * n}`, `x${2 * n + 1}`)),
        unit.write(narrow.slopes, packUnit(`d${2 * n}`, `d${2 * n + 1}`)),
      ].join("\n")
    ).join("\n")
  }
      }
      workgroupBarrier();
      ${mixMatrices(tile, "y", narrow.scores, value)}
      ${mixMatrices(tile, "x", narrow.slopes, deep)}
      workgroupBarrier();
    }
  }
  let heads = u.heads / u.group;
  ${
    passResults(tile, "x", deep.size, "scoreScratch", (vec, inRow, d4) =>
      `let j = k0 + ${inRow};
      if (j < sk) { dk_put(((keyRow + j) * heads + g) * ${headDim}u, ${d4}, ${
        withoutPower(features, vec, "q", "slope")
      } * u.gradScale); }`)
  }
  ${
    passResults(tile, "y", value.size, "scoreScratch", (vec, inRow, d4) =>
      `let j = k0 + ${inRow};
      if (j < sk) { dv_put(((keyRow + j) * heads + g) * ${valueDim}u, ${d4}, ${
        withoutPower(features, vec, "dOut")
      }); }`)
  }
}`;
}

/**
 * The kernel that owns queries. Reads what the keys kernel reads; writes dq [B, Sq, H, D].
 */
export function attentionMatrixBackwardQueries(params: AttentionMatrixBackwardParams): Kernel {
  const { headDim, grad } = params;
  return kernel(nameOf("queries", params), {
    ...interfaceOf(params),
    writes: { dq: operandType(denseOperand(grad, headDim)) },
  }, () => queriesBody(params));
}

function queriesBody(params: AttentionMatrixBackwardParams): string {
  const { tile, headDim, features, longFirst, early } = params, { step } = tile;
  const rows = matrixRows(tile), { deep, value } = stagedOf(params), units = unitsOf(tile), narrow = narrowNames(tile);
  const takeK = transfer(tile, sourceOf(params, "k"), deep), takeV = transfer(tile, sourceOf(params, "v"), value);
  const vec = units.flatMap((unit, n) => ([0, 1] as const).map((half) => ({ unit, half, n: 2 * n + half })));
  const scores = vec.map(({ unit, half, n }) =>
    each(
      4,
      (e) =>
        `{ let j = k0 + ${unit.column} + ${half * 4 + e}u; var s = x${n}[${e}]; ${
          scoreText(features, "s", "i", "j")
        } x${n}[${e}] = s; ${features.softcap ? `slope${n}[${e}] = 1.0f - t * t;` : ""} }`,
    ).join("\n")
  ).join("\n");
  const load = (first: string): string => `${takeK.load(first)}\n${takeV.load(first)}`;

  return `${preamble(params, [["dq", headDim]])}
  ${
    longFirst
      ? "let h = group.x; let b = group.y; let q0 = (u.tiles - 1u - group.z)"
      : "let h = group.y; let b = group.z; let q0 = group.x"
  } * ${rows}u;
  let g = h / u.group;
  ${locateBatch(features)}
  if (q0 >= sq) { return; }
  ${locateHead(features)}
  ${rangeText(features, params)}
  ${keyRange(features, "q0", rows, step)}
  let i = q0 + row;
  var low = 1e30f; var mean = 0.0f;
  if (i < sq) { let found = rowStats[lseAt + i]; low = found.x + found.z; mean = found.y * slopeScale; }
  ${zeroResults(tile, "x", deep.size)}
  ${leftText(tile, sourceOf(params, "q"), deep, "q0", "q")}
  ${leftText(tile, sourceOf(params, "dOut"), value, "q0", "e")}
  ${takeK.declare} ${takeV.declare}
  if (keyFrom < keyTo) { ${load("keyFrom")} }
  for (var k0 = keyFrom; k0 < keyTo; k0 += u.step) {
    ${takeK.store}
    ${takeV.store}
    ${early ? load(`k0 + ${step}u`) : ""}
    workgroupBarrier();
    {
      ${scoreProduct(tile, "s", "q", deep)}
      ${storeScores(tile, "s", "scoreScratch")}
    }
    {
      ${scoreProduct(tile, "s", "e", value)}
      ${storeScores(tile, "s", "slopeScratch")}
    }
    workgroupBarrier();
    ${early ? "" : load(`k0 + ${step}u`)}
    {
      ${
    vec.map(({ unit, half, n }) => `var x${n} = ${unit.read("scoreScratch", half)} * ${scoreScale(features)};`).join(
      "\n",
    )
  }
      ${features.softcap ? vec.map(({ n }) => `var slope${n} = vec4f(1.0f);`).join(" ") : ""}
      ${changesScores(features) ? scores : ""}
      ${vec.map(({ n }) => `x${n} = exp2(x${n} - low);`).join("\n")}
      if (${isEdge(features, "q0", rows, "k0", step)}) {
        ${
    features.window
      ? "let most = min(i32(sk) - 1, i32(i) + shift + u.right); let least = i32(i) + shift - u.left;"
      : "let most = i32(sk) - 1; let least = 0;"
  }
        ${
    vec.map(({ unit, half, n }) =>
      `{ let j = vec4i(i32(k0 + ${unit.column}) + ${half * 4}) + vec4i(0, 1, 2, 3); ` +
      `x${n} = select(vec4f(), x${n}, (j >= vec4i(least)) & (j <= vec4i(most))); }`
    ).join("\n")
  }
      }
      ${
    vec.map(({ unit, half, n }) =>
      `x${n} = x${n} * fma(${unit.read("slopeScratch", half)}, vec4f(slopeIn), vec4f(-mean))${
        features.softcap ? ` * slope${n}` : ""
      };`
    ).join("\n")
  }
      ${units.map((unit, n) => unit.write(narrow.slopes, packUnit(`x${2 * n}`, `x${2 * n + 1}`))).join("\n")}
    }
    workgroupBarrier();
    ${mixMatrices(tile, "x", narrow.slopes, deep)}
    workgroupBarrier();
  }
  ${
    passResults(tile, "x", deep.size, "scoreScratch", (vec, inRow, d4) =>
      `let i = q0 + ${inRow};
      if (i < sq) { dq_put(((outRow + i) * u.heads + h) * ${headDim}u, ${d4}, ${
        withoutPower(features, vec, "k", "slope")
      } * u.gradScale); }`)
  }
}`;
}

/** Workgroups and uniforms of the two kernels of a call. */
export function planAttentionMatrixBackward(
  { keys, queries }: { keys: AttentionMatrixBackwardParams; queries: AttentionMatrixBackwardParams },
  shape: AttentionShape,
  at: AttentionLayout,
  settings: AttentionSettings,
): { keys: AttentionPlan; queries: AttentionPlan } {
  const { batch, seqlenQ, seqlenK, heads, kvHeads, totalQ } = shape;
  const plan = (params: AttentionMatrixBackwardParams, seqlen: number, heads: number): AttentionPlan => {
    const tiles = Math.ceil(seqlen / matrixRows(params.tile));
    return {
      workgroups: params.longFirst ? [heads, batch, tiles] : [tiles, heads, batch],
      uniforms: {
        sq: params.features.lengths === "varlen" ? totalQ ?? 0 : seqlenQ,
        sk: seqlenK,
        heads: shape.heads,
        group: shape.heads / kvHeads,
        tiles,
        step: params.tile.step,
        gradScale: settings.softmaxScale,
        ...matrixStrides("q", params.q, at.q),
        ...matrixStrides("k", params.k, at.k),
        ...matrixStrides("v", params.v, at.v),
        ...featureUniforms(params.features, settings),
      },
    };
  };
  return { keys: plan(keys, seqlenK, kvHeads), queries: plan(queries, seqlenQ, heads) };
}
