/** The kernel of attention's backward on subgroup matrices that owns keys; attention_matrix_backward.ts says how. */
import { denseOperand, operandType } from "./attention_common.ts";
import {
  type AttentionMatrixBackwardParams,
  hideText,
  laneScores,
  matrixBackwardKernel,
  powerText,
  preamble,
  scoresText,
  sizeIn,
  slopeText,
  sourceOf,
  stagedWhole,
} from "./attention_matrix_backward.ts";
import { rangeText, withoutPower } from "./attention_matrix_powers.ts";
import {
  leftMatrices,
  leftText,
  matrixRows,
  mixMatrices,
  packUnit,
  passResults,
  scoreProduct,
  storeScores,
  transfer,
  unitsOf,
  zeroResults,
} from "./attention_matrix_tiles.ts";
import { isEdge, locateBatch, locateHead, locateKeys, queryRange } from "./attention_options.ts";
import { locateOwnKeys } from "./attention_parts.ts";
import { each, type Kernel } from "./kernel.ts";

/** Reads q, k, v, dOut, rowStats and what the features read; writes dk [B, Sk, Hk, D] and dv [B, Sk, Hk, Dv]. */
export function attentionMatrixBackwardKeys(params: AttentionMatrixBackwardParams): Kernel {
  const { headDim, valueDim, grad } = params;
  const writes = { dk: operandType(denseOperand(grad, headDim)), dv: operandType(denseOperand(grad, valueDim)) };
  return matrixBackwardKernel("keys", params, writes, body);
}

function body(params: AttentionMatrixBackwardParams): string {
  const { tile, headDim, valueDim, features } = params, { step } = tile;
  const rows = matrixRows(tile), size = sizeIn(params), staged = stagedWhole(params), scores = laneScores(tile);
  const takeQ = transfer(tile, sourceOf(params, "q"), staged("0")),
    takeD = transfer(tile, sourceOf(params, "dOut"), staged("1"));
  // A vec4f is written whole: lanes that write its parts would race.
  const takeStats = (first: string): string =>
    `if (li < ${step / 4}u) { ${
      each(4, (e) =>
        `{ let i = ${first} + li * 4u + ${e}u; let found = rowStats[lseAt + min(i, sq - 1u)];
        lowNext[${e}] = select(1e30f, found.x + found.z, i < sq); meanNext[${e}] = select(0.0f, found.y * slopeScale, i < sq); }`)
        .join("\n")
    } }`;
  const load = (first: string): string => `${takeQ.load(first)}\n${takeD.load(first)}\n${takeStats(first)}`;

  return `
var<workgroup> lows: array<vec4f, ${step / 4}>;
var<workgroup> means: array<vec4f, ${step / 4}>;
${preamble(params, size, [staged("0"), staged("1")], [["dk", headDim], ["dv", valueDim]])}
  ${locateOwnKeys(params, rows)}
  ${locateBatch(features)}
  if (k0 >= sk) { return; }
  ${rangeText(features, params)}
  ${queryRange(features, "k0", rows, step)}
  let j = k0 + row;
  ${zeroResults(tile, "x", size)}
  ${locateKeys(features)}
  ${leftMatrices(tile, size, "k")}
  ${leftText(tile, sourceOf(params, "k"), staged("0"), "k0", "k", 0)}
  ${leftText(tile, sourceOf(params, "v"), staged("1"), "k0", "k", 1)}
  for (var h = g * u.group; h < (g + 1u) * u.group; h++) {
    ${locateHead(features)}
    ${takeQ.declare} ${takeD.declare} var lowNext = vec4f(); var meanNext = vec4f();
    if (queryFrom < queryTo) { ${load("queryFrom")} }
    for (var q0 = queryFrom; q0 < queryTo; q0 += u.step) {
      ${takeQ.store}
      ${takeD.store}
      if (li < ${step / 4}u) { lows[li] = lowNext; means[li] = meanNext; }
      ${load(`q0 + ${step}u`)}
      workgroupBarrier();
      {
        ${scoreProduct(tile, "s", "k", staged("side"))}
        ${storeScores(tile, "s", "scratch[side]")}
      }
      workgroupBarrier();
      {
        ${scoresText(params, ["i", "q0"])}
        ${scores.map(({ unit, half, n }) => powerText(params, n, `lows[${unit.column} / 4u + ${half}u]`)).join("\n")}
        ${
    features.window
      ? `if (${isEdge(features, "q0", step, "k0", rows)}) {
          let least = i32(j) - shift - u.right; let most = i32(j) - shift + u.left;
          ${hideText(params, "q0")}
        }`
      : ""
  }
        ${
    scores.map((of) =>
      `let d${of.n} = x${of.n} * ${slopeText(params, of, `means[${of.unit.column} / 4u + ${of.half}u]`)};`
    )
      .join("\n")
  }
        ${
    unitsOf(tile).map((unit, n) =>
      [
        unit.write("scratch[0]", packUnit(`x${2 * n}`, `x${2 * n + 1}`)),
        unit.write("scratch[1]", packUnit(`d${2 * n}`, `d${2 * n + 1}`)),
      ].join("\n")
    ).join("\n")
  }
      }
      workgroupBarrier();
      ${mixMatrices(tile, "x", "scratch[side]", staged("1u - side"))}
      workgroupBarrier();
    }
  }
  let heads = u.heads / u.group;
  ${
    passResults(tile, "x", size, "scratch[side]", (vec, inRow, d4) =>
      `let j = k0 + ${inRow};
      if (j < sk) {
        let at = (keyRow + j) * heads + g;
        if (side == 0u) { dv_put(at * ${valueDim}u, ${d4}, ${withoutPower(features, vec, "dOut")}); }
        else { dk_put(at * ${headDim}u, ${d4}, ${withoutPower(features, vec, "q", "slope")} * u.gradScale); }
      }`)
  }
}`;
}
