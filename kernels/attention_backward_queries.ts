/** The kernel of attention's backward that owns queries; attention_backward.ts says how it goes with the others. */
import { denseOperand, operandType, outsOf } from "./attention_common.ts";
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
import { dropoutText, isEdge, keyRange, locateBatch, locateHead, scoreText, visible } from "./attention_options.ts";
import { rangeText } from "./attention_matrix_powers.ts";
import { ownRows } from "./attention_lanes.ts";
import { locateQueries, partOf } from "./attention_parts.ts";
import { columnOf, four, rowOf } from "./attention_tiles.ts";
import { components, each, type Kernel } from "./kernel.ts";

/**
 * The kernel that owns queries. Reads what the keys kernel reads; writes dq [B, Sq, H, D], or as many as there are parts, and, when asked for,
 * dBias, f32 [B, H, Sq, Sk] (variable length: [B, H, maxSeqlenQ, maxSeqlenK]), only where a query sees a key.
 */
export function attentionBackwardQueries(params: AttentionBackwardParams): Kernel {
  const { headDim, grad, dBias } = params;
  const writes = { dq: operandType(denseOperand(grad, headDim)), ...(dBias ? { dBias: "f32" } : {}) };
  return backwardKernel("queries", params, writes, body);
}

function body(params: AttentionBackwardParams): string {
  const { tile, headDim, features, parts, sums, dBias } = params;
  const { tx, ty, rows, columns } = tile;
  const outsK = outsOf(tile, headDim);
  const queryTile = ty * rows, keyTile = tx * columns;
  const { scaled, k, v, dOut } = operands(params),
    partRow = parts > 1 ? " + part * u.batch * u.sq" : "";
  const query = (r: number): string => `(q0 + ${rowOf(tile, r)})`;
  const key = (c: number): string => `(k0 + ${columnOf(tile, c)})`;
  const perRow = (f: (r: number) => string): string => each(rows, f).join("\n");
  const gradients = (r: number, n: number): string =>
    `{
    let dp = ${four("g", r, n)};
    ${features.dropout ? dropoutText(query(r), `(k0 / 4u + tx + ${n * tx}u)`) : ""}
    ${
      components.map((x, i) => {
        const c = n * 4 + i, s = `s${r}_${c}`;
        const [seen, slope] = [
          features.dropout ? ` * kept.${x} * u.keepScale` : "",
          features.softcap ? " * t.y" : "",
        ];
        const at = `dBias[(biasAt + ${query(r)}) * u.sk + ${key(c)}]`;
        const bias = dBias ? `if (${visible(features, query(r), key(c))} && ${query(r)} < sq) { ${at} = ds; }` : "";
        return `{ ${scoreText(features, s, query(r), key(c), "", sums === "careful")} ` +
          `let ds = ${probability(params, s, `stats${r}`)} * ${
            lessD(params, x, seen, `stats${r}`)
          }; ${bias} ${s} = ds${slope}; }`;
      }).join("\n")
    }
    if (edge) {
      ${
      components.map((_, i) => {
        const c = n * 4 + i;
        return `if (!(${visible(features, query(r), key(c))})) { s${r}_${c} = 0.0f; }`;
      }).join("\n")
    }
    }
  }`;

  return `${preamble(params, [["dq", headDim]])}
  ${locateQueries(params, queryTile)}
  ${locateBatch(features)}
  if (q0 >= sq) { return; }
  ${locateHead(features)}
  ${rangeText(features)}
  ${keyRange(features, "q0", queryTile, keyTile)}
  ${partOf(params, "keyFrom", "keyTo", keyTile)}
  ${dBias ? `let biasAt = (b * u.heads + h) * ${features.lengths === "varlen" ? "u.maxQ" : "u.sq"};` : ""}
  ${perRow((r) => each(outsK, (e) => `var x${r}_${e} = vec4f();`).join(" "))}
  ${
    perRow((r) =>
      `let stats${r} = select(vec4f(1e30f, 0.0f, 0.0f, 0.0f), rowStats[lseAt + min(${query(r)}, sq - 1u)], ${
        query(r)
      } < sq);`
    )
  }
  ${ownRows(tile, scaled)}
  ${ownRows(tile, dOut)}
  for (var k0 = walkFrom; k0 < walkTo; k0 += ${keyTile}u) {
    ${products(params, [dOut, v], [scaled, k])}
    let edge = ${isEdge(features, "q0", queryTile, "k0", keyTile)};
    ${perRow((r) => each(columns / 4, (n) => gradients(r, n)).join("\n"))}
    ${mixInto(params, "s", k, outsK, "x", `min(${keyTile}u, walkTo - k0)`)}
  }
  ${
    perRow((r) =>
      [
        `if (${query(r)} < sq) {`,
        `let at = ((outRow${partRow} + ${query(r)}) * u.heads + h) * ${headDim}u;`,
        ...each(outsK, (e) => `dq_put(at, tx + ${e * tx}u, x${r}_${e} * u.gradScale);`),
        "}",
      ].join("\n")
    )
  }
}`;
}
