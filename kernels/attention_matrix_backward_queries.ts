/** The kernel of attention's backward on subgroup matrices that owns queries; attention_matrix_backward.ts says how. */
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
  stagedHalves,
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
import { isEdge, keyRange, locateBatch, locateHead } from "./attention_options.ts";
import { locateQueries } from "./attention_parts.ts";
import type { Kernel } from "./kernel.ts";

/** Reads what the keys kernel reads; writes dq [B, Sq, H, D]. */
export function attentionMatrixBackwardQueries(params: AttentionMatrixBackwardParams): Kernel {
  const { headDim, grad } = params;
  return matrixBackwardKernel("queries", params, { dq: operandType(denseOperand(grad, headDim)) }, body);
}

function body(params: AttentionMatrixBackwardParams): string {
  const { tile, headDim, features } = params, { step } = tile;
  const rows = matrixRows(tile), size = sizeIn(params, 2), staged = stagedHalves(params), scores = laneScores(tile);
  const keys = staged("0"), values = staged("1");
  const takeK = transfer(tile, sourceOf(params, "k"), keys), takeV = transfer(tile, sourceOf(params, "v"), values);
  const load = (first: string): string => `${takeK.load(first)}\n${takeV.load(first)}`;

  return `${preamble(params, size, [keys, keys, values, values], [["dq", headDim]])}
  ${locateQueries(params, rows)}
  ${locateBatch(features)}
  if (q0 >= sq) { return; }
  ${locateHead(features)}
  ${rangeText(features, params)}
  ${keyRange(features, "q0", rows, step)}
  let i = q0 + row;
  var low = 1e30f; var mean = 0.0f;
  if (i < sq) { let found = rowStats[lseAt + i]; low = found.x + found.z; mean = found.y * slopeScale; }
  ${zeroResults(tile, "x", size / 2)}
  ${leftMatrices(tile, size, "q")}
  ${leftText(tile, sourceOf(params, "q"), keys, "q0", "q", 0)}
  ${leftText(tile, sourceOf(params, "dOut"), values, "q0", "q", 1)}
  ${takeK.declare} ${takeV.declare}
  if (keyFrom < keyTo) { ${load("keyFrom")} }
  for (var k0 = keyFrom; k0 < keyTo; k0 += u.step) {
    ${takeK.store}
    ${takeV.store}
    ${load(`k0 + ${step}u`)}
    workgroupBarrier();
    {
      ${scoreProduct(tile, "s", "q", staged("side"))}
      ${storeScores(tile, "s", "scratch[side]")}
    }
    workgroupBarrier();
    {
      ${scoresText(params, ["j", "k0"])}
      ${scores.map(({ n }) => powerText(params, n, "low")).join("\n")}
      if (${isEdge(features, "q0", rows, "k0", step)}) {
        ${
    features.window
      ? "let most = min(i32(sk) - 1, i32(i) + shift + u.right); let least = i32(i) + shift - u.left;"
      : "let most = i32(sk) - 1; let least = 0;"
  }
        ${hideText(params, "k0")}
      }
      ${scores.map((of) => `x${of.n} *= ${slopeText(params, of, "vec4f(mean)")};`).join("\n")}
      ${unitsOf(tile).map((unit, n) => unit.write("scratch[1]", packUnit(`x${2 * n}`, `x${2 * n + 1}`))).join("\n")}
    }
    workgroupBarrier();
    ${mixMatrices(tile, "x", "scratch[1]", { name: "staged[side]", rows: step, size: size / 2 })}
    workgroupBarrier();
  }
  ${
    passResults(tile, "x", size / 2, "scratch[side]", (vec, inRow, d4) =>
      `let i = q0 + ${inRow};
      if (i < sq) {
        dq_put(((outRow + i) * u.heads + h) * ${headDim}u, side * ${size / 8}u + ${d4}, ${
        withoutPower(features, vec, "k", "slope")
      } * u.gradScale);
      }`)
  }
}`;
}
