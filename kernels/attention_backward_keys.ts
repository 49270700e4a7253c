/** The kernel of attention's backward that owns keys; attention_backward.ts says how it goes with the others. */
import { type AttentionTile, denseOperand, operandType, outsOf } from "./attention_common.ts";
import {
  type AttentionBackwardParams,
  backwardKernel,
  lessD,
  mixInto,
  operands,
  preamble,
  probability,
  products,
} from "./attention_backward.ts";
import { dropoutText, isEdge, locateBatch, locateHead, queryRange, scoreText, visible } from "./attention_options.ts";
import { rangeText } from "./attention_matrix_powers.ts";
import { ownRows } from "./attention_lanes.ts";
import { locateOwnKeys, partOf } from "./attention_parts.ts";
import { columnOf, four, rowOf } from "./attention_tiles.ts";
import { components, each, type Kernel } from "./kernel.ts";

/**
 * The kernel that owns keys. Reads q, k, v, dOut, rowStats and what the features read; writes dk [B, Sk, Hk, D] and
 * dv [B, Sk, Hk, Dv], or as many of both as there are parts.
 */
export function attentionBackwardKeys(params: AttentionBackwardParams): Kernel {
  const { headDim, valueDim, grad } = params;
  const writes = { dk: operandType(denseOperand(grad, headDim)), dv: operandType(denseOperand(grad, valueDim)) };
  return backwardKernel("keys", params, writes, body);
}

function body(params: AttentionBackwardParams): string {
  const { tile, headDim, valueDim, features, parts, sums } = params;
  const { tx, ty, rows, columns } = tile;
  const outsK = outsOf(tile, headDim), outsV = outsOf(tile, valueDim);
  const keyTile = ty * rows, queryTile = tx * columns;
  const { q, scaled, k, v, dOut } = operands(params),
    partRow = parts > 1 ? " + part * u.batch * u.sk" : "";
  const key = (r: number): string => `(k0 + ${rowOf(tile, r)})`;
  const query = (c: number): string => `(q0 + ${columnOf(tile, c)})`;
  const perRow = (f: (r: number) => string): string => each(rows, f).join("\n");
  const zeros = (name: string, outs: number): string =>
    perRow((r) => each(outs, (e) => `var ${name}${r}_${e} = vec4f();`).join(" "));

  // The dropout generator gives four keys of one query a call, so its bits are drawn column by column beforehand.
  const drops = !features.dropout ? "" : [
    ...each(rows / 4, (half) => `var kept${half} = 0u;`),
    ...each(
      columns,
      (c) =>
        each(
          rows / 4,
          (half) =>
            `{ let i = ${query(c)}; let j4 = k0 / 4u + ty + ${half * ty}u; ${
              dropoutText("i", "j4")
            } kept${half} |= dot(vec4u(kept), vec4u(1u, ${2 ** columns}u, ${4 ** columns}u, ${
              8 ** columns
            }u)) << ${c}u; }`,
        )
          .join(" "),
    ),
  ].join("\n");
  const kept = (r: number, c: number): string => `f32((kept${r >> 2} >> ${(r & 3) * columns + c}u) & 1u) * u.keepScale`;

  const gradients = (r: number, n: number): string =>
    `{
    let dp = ${four("g", r, n)}; var p = vec4f();
    ${
      components.map((x, i) => {
        const c = n * 4 + i, s = `s${r}_${c}`;
        const [seen, slope] = [features.dropout ? ` * kept` : "", features.softcap ? " * t.y" : ""];
        return `{ ${features.dropout ? `let kept = ${kept(r, c)};` : ""} ${
          scoreText(features, s, query(c), key(r), "", sums === "careful")
        } ` +
          `let e = ${probability(params, s, `stats${c}`)}; p.${x} = e${seen}; ${s} = e * ${
            lessD(params, x, seen, `stats${c}`)
          }${slope}; }`;
      }).join("\n")
    }
    if (edge) {
      ${
      components.map((x, i) => {
        const c = n * 4 + i;
        return `if (!(${visible(features, query(c), key(r))})) { p.${x} = 0.0f; s${r}_${c} = 0.0f; }`;
      }).join("\n")
    }
    }
    ${each(4, (i) => `g${r}_${n * 4 + i} = p[${i}];`).join(" ")}
  }`;

  return `${preamble(params, [["dk", headDim], ["dv", valueDim]])}
  ${locateOwnKeys(params, keyTile)}
  ${locateBatch(features)}
  if (k0 >= sk) { return; }
  ${rangeText(features)}
  ${queryRange(features, "k0", keyTile, queryTile)}
  ${partOf(params, "queryFrom", "queryTo", queryTile)}
  ${zeros("x", outsK)}
  ${zeros("y", outsV)}
  for (var h = g * u.group; h < (g + 1u) * u.group; h++) {
    ${locateHead(features)}
    ${ownRows(tile, k)}
    ${ownRows(tile, v)}
    for (var q0 = walkFrom; q0 < walkTo; q0 += ${queryTile}u) {
      ${products(params, [v, dOut], [k, scaled])}
      ${stats(tile, query)}
      let edge = ${isEdge(features, "q0", queryTile, "k0", keyTile)};
      ${drops}
      ${perRow((r) => each(columns / 4, (n) => gradients(r, n)).join("\n"))}
      ${mixInto(params, "g", dOut, outsV, "y", `min(${queryTile}u, walkTo - q0)`)}
      ${mixInto(params, "s", q, outsK, "x", `min(${queryTile}u, walkTo - q0)`)}
    }
  }
  ${
    perRow((r) =>
      [
        `if (${key(r)} < sk) {`,
        `let at = (keyRow${partRow} + ${key(r)}) * (u.heads / u.group) + g;`,
        ...each(outsK, (e) => `dk_put(at * ${headDim}u, tx + ${e * tx}u, x${r}_${e} * u.gradScale);`),
        ...each(outsV, (e) => `dv_put(at * ${valueDim}u, tx + ${e * tx}u, y${r}_${e});`),
        "}",
      ].join("\n")
    )
  }
}`;
}

/** Declares `stats` of every column's query. */
function stats(tile: AttentionTile, query: (c: number) => string): string {
  const at = (i: string): string =>
    `select(vec4f(1e30f, 0.0f, 0.0f, 0.0f), rowStats[lseAt + min(${i}, sq - 1u)], ${i} < sq)`;
  if (!tile.lanes) return each(tile.columns, (c) => `let stats${c} = ${at(query(c))};`).join("\n");
  const passed = each(tile.columns, (c) => `let stats${c} = subgroupBroadcast(ownStats, ${c}u);`);
  return [`let ownStats = ${at("(q0 + ty)")};`, ...passed].join("\n");
}
