/**
 * Flash attention, forward: out = softmax(scale·q·kᵀ + …)·v and lse, without the scores ever leaving the workgroup.
 *
 *                 keys ─▶ tiles of tx·columns, one after another
 *   queries   ┌────────────┐
 *      │      │ q·kᵀ       │  scores in registers ─▶ running max m, sum l ─▶ p = exp2(s − m), in registers
 *      ▼      │(dotProduct)│
 *   one tile  └────────────┘  out·exp2(m_old − m) + p·v (mixProduct), in registers; divided by l once, at the end
 *   a workgroup
 *
 * q, k, v and p pass through workgroup memory a chunk of 16 at a time. A tile of keys that no query of the tile can see
 * is not loaded; one that all of them see skips the mask behind one uniform branch.
 *
 * Floor for f32 B4 H12 S2048 D64, full: 51.5 GFLOP at the 63 TFLOP/s of the FMA units, 0.82 ms.
 * Versions, H200, Deno's WebGPU, TFLOP/s full / causal (visible half counted), best of rounds with the clocks up:
 *   v0  4×8 a thread, dot(), q and p whole in workgroup memory, 48 KiB              13.2 / 10.1
 *   v1  8×8, chains of fma along d, q and p whole, 64×64 by 64 threads, 41 KiB      13.2
 *   v2  p whole, q again for every tile of keys, 33 KiB                             13.3   128×64, 45 KiB: 21.4
 *   v3  neither whole, 2 chunks a barrier, 16 KiB                                   24.7   256×64, 41 KiB: 33.2 / 27.2
 *   v4  1 chunk a barrier, 128×64 by 128 threads, 12 KiB                            32.2 / 28.8   64×64, 8 KiB: 32.4 / 27.8
 *       chunks of 8: 26.7 to 31.3; 512 rows: 17.2; 8×4 a thread 23 to 30, 4×8: 10
 *   v5  operands turned while stored, outer products                                33.3 / 30.0  ◀   64×64: 31.0 / 27.2
 *       256×64, chunks of 32, 40 KiB: 33.6; 128×64, chunks of 32, 24 KiB: 19.0; 8×4 a thread: 32.8
 *       the next chunk loaded early: 32.0, 256×64: 34.2
 *   v6  few workgroups share the keys of a tile (attention_parts.ts), the combining kernel included:
 *       B1 H12 S4096  25.4 / 26.9 ─▶ 30.2 / 32.3      B1 H8 S2048  22.7 / 11.5 ─▶ 31.5 / 26.7
 *   v7  few workgroups: scores by eights, since naive products of these sizes are sums of few parts. Of 240 f32 cases of the
 *       grid 11 missed their bound in out by up to a quarter, then none; in the mean from 0.50 of it to 0.30. B1 H8 S1024:
 *       80 µs ─▶ 86, causal 71 ─▶ 73, D 128 146 ─▶ 153. Each alone instead, misses: scale behind the sum 2, sums of a tile
 *       apart before they join out 10, exp2 to the last digit 8
 * f16 and bf16: 33.0 and 33.4 / 29.7; 256×64, chunks of 32: 33.5 and 33.9 ◀ / 29.1.
 * D 80: 33.2, 128: 35.7 / 31.6 (two parts 32.6), 192: 38.6, 256: 34.5.
 *
 * Against naive attention, f32 B1 H12 S4096 D64: 1.61 ms beside 1.84, causal 0.87 beside 2.81. Four times is out of reach
 * of f32 arithmetic: naive multiplies at 43 TFLOP/s, the FMA units end at 63. It holds 1.6 GB for it, flash 13 MB and parts.
 * Workgroups share some 48 KiB of a processor's memory here: 12 KiB of 128 threads let three run, 24 KiB one.
 */
import {
  type AttentionCapabilities,
  type AttentionFeatures,
  type AttentionLayout,
  type AttentionOperand,
  type AttentionOperands,
  type AttentionPlan,
  type AttentionShape,
  type AttentionStorage,
  type AttentionTile,
  denseOperand,
  endSoftmax,
  fits,
  floor,
  lseBits,
  operandName,
  operandOf,
  operandReader,
  operandsOf,
  operandType,
  operandWriter,
  outsOf,
  threads,
  tileName,
  tileOf,
  writerFunctions,
} from "./attention_common.ts";
import {
  attentionKernel,
  type AttentionSettings,
  attentionUniforms,
  changesScores,
  dropoutText,
  featureFunctions,
  hiddenText,
  isEdge,
  keyRange,
  keyRow,
  locateBatch,
  locateHead,
  scoreText,
  visible,
} from "./attention_options.ts";
import { isSoftware, lanesMost, lanesTile, ownRows } from "./attention_lanes.ts";
import { isFew } from "./attention_rows.ts";
import { type AttentionOrder, gridOf, locateQueries, partOf, pickParts } from "./attention_parts.ts";
import { rangeText } from "./attention_matrix_powers.ts";
import {
  columnOf,
  dotProduct,
  mixProduct,
  reduceRows,
  rowOf,
  rowScratch,
  type Sums,
  tileMemory,
  type TileRows,
  workgroupBytes,
} from "./attention_tiles.ts";
import { carefulFunctions, lowOf } from "./attention_careful.ts";
import { each, type Kernel } from "./kernel.ts";

/** Everything that the text of the forward kernel depends on. */
export interface AttentionForwardParams extends AttentionOperands, AttentionOrder {
  readonly tile: AttentionTile;
  readonly out: AttentionOperand;
  readonly subgroups: boolean;
  /** Workgroups that share a tile's keys; above 1 out and lse are those of parts, f32, for `attentionCombine`. */
  readonly parts: number;
  /** Scores of fewer roundings, where few queries or few keys average nothing: by eights for 16 bits, careful for f32. */
  readonly sums: Sums;
}

/** Bytes of workgroup memory that the kernel of these parameters takes. */
export function attentionForwardMemory(params: AttentionForwardParams): number {
  return workgroupBytes(params.tile, outsOf(params.tile, params.valueDim), !params.subgroups);
}

/**
 * The forward kernel. Reads q, k, v and what the options read, sinks last; writes out, dense [B, Sq, H, Dv], and lse,
 * the bits of f32 [B, H, Sq], −∞ among them (variable length: [Tq, H, Dv] and [H, Tq]).
 */
export function attentionForward(params: AttentionForwardParams): Kernel {
  const { tile, headDim, valueDim, q, k, v, out, subgroups, longFirst, parts, sums } = params;
  const name = [
    `attention_forward_d${headDim}x${valueDim}_${tileName(tile)}`,
    ...[q, k, v, out].map(operandName),
    ...(longFirst ? ["long"] : []),
    ...(parts > 1 ? ["split"] : []),
    ...(sums === "plain" ? [] : [sums]),
    ...(subgroups ? ["subgroups"] : []),
  ];
  return attentionKernel(name, params, {
    writes: { out: operandType(out), lse: "u32" },
    uniforms: { tiles: "u32", parts: "u32", batch: "u32", ...(sums === "careful" ? { scaleLow: "f32" } : {}) },
    requires: subgroups ? ["subgroups"] : [],
  }, body);
}

function body(params: AttentionForwardParams): string {
  const { tile, headDim, valueDim, q, k, v, out, features, subgroups, parts, sums } = params,
    careful = sums === "careful";
  const { tx, ty, rows, columns } = tile;
  const queryTile = ty * rows, keyTile = tx * columns, outs = outsOf(tile, valueDim);
  const row = (r: number): string => `(q0 + ${rowOf(tile, r)})`;
  const column = (c: number): string => `(k0 + ${columnOf(tile, c)})`;
  const cells = (f: (r: number, c: number) => string): string[] =>
    each(rows, (r) => each(columns, (c) => f(r, c)).join(" "));
  const perRow = (f: (r: number) => string): string => each(rows, f).join("\n");

  const queries: TileRows = {
    name: "q",
    size: headDim,
    start: (i) => `qBase + ${i} * u.qSeq`,
    first: "q0",
    limit: "sq",
    scale: careful ? undefined : " * u.scale",
  };
  const keysOf = (name: "k" | "v", size: number): TileRows => ({
    name,
    size,
    start: (j) => keyRow(features, name, j),
    first: "k0",
    limit: "sk",
    least: features.leftpad ? "keyFirst" : undefined,
  });

  return `
${operandReader("q", q, headDim)}
${operandReader("k", k, headDim)}
${operandReader("v", v, valueDim)}
${writerFunctions(out.storage)}
${operandWriter("out", out, valueDim)}
${featureFunctions(features)}
${careful ? carefulFunctions : ""}
${tileMemory(tile, outs)}
${rowScratch(threads(tile), rows, subgroups)}
@compute @workgroup_size(${threads(tile)})
fn main(@builtin(workgroup_id) group: vec3u, @builtin(local_invocation_index) li: u32) {
  let tx = li % ${tx}u; let ty = li / ${tx}u;
  ${locateQueries(params, queryTile)}
  ${locateBatch(features)}
  ${locateHead(features)}
  ${rangeText(features)}
  if (q0 >= sq) { return; }
  ${keyRange(features, "q0", queryTile, keyTile)}
  ${partOf(params, "keyFrom", "keyTo", keyTile)}
  ${
    perRow((r) => `var m${r} = ${floor}; var l${r} = 0.0f; ${each(outs, (e) => `var o${r}_${e} = vec4f();`).join(" ")}`)
  }
  ${ownRows(tile, queries)}
  for (var k0 = walkFrom; k0 < walkTo; k0 += ${keyTile}u) {
    ${cells((r, c) => `var s${r}_${c} = 0.0f;${careful ? ` var ${lowOf(`s${r}_${c}`)} = 0.0f;` : ""}`).join("\n")}
    ${dotProduct(tile, "s", queries, keysOf("k", headDim), sums)}
    ${
    careful || changesScores(features)
      ? cells((r, c) => `{ ${scoreText(features, `s${r}_${c}`, row(r), column(c), "", careful)} }`).join("\n")
      : ""
  }
    if (${isEdge(features, "q0", queryTile, "k0", keyTile)}) {
      ${cells((r, c) => hiddenText(`s${r}_${c}`, visible(features, row(r), column(c)), careful)).join("\n")}
    }
    ${perRow((r) => `var x${r} = ${each(columns, (c) => `s${r}_${c}`).reduce((a, b) => `max(${a}, ${b})`)};`)}
    ${reduceRows(tx, subgroups, each(rows, (r) => `x${r}`), (a, b) => `max(${a}, ${b})`)}
    ${
    perRow((r) =>
      [
        `x${r} = max(m${r}, x${r}); let f${r} = exp2(m${r} - x${r}); m${r} = x${r}; l${r} *= f${r};`,
        ...each(outs, (e) => `o${r}_${e} *= f${r};`),
        ...each(columns, (c) => {
          const s = `s${r}_${c}`;
          return `${s} = exp2(${s} - m${r}${careful ? ` + ${lowOf(s)}` : ""}); l${r} += ${s};`;
        }),
      ].join(" ")
    )
  }
    ${
    features.dropout
      ? each(rows, (r) =>
        each(columns / 4, (n) =>
          `{ ${dropoutText(row(r), `(k0 / 4u + tx + ${n * tx}u)`)} ${
            each(4, (c) =>
              `s${r}_${n * 4 + c} *= kept[${c}];`).join(" ")
          } }`).join("\n"))
        .join("\n")
      : ""
  }
    ${mixProduct(tile, "s", keysOf("v", valueDim), outs, "o", `min(${keyTile}u, walkTo - k0)`)}
  }
  ${reduceRows(tx, subgroups, each(rows, (r) => `l${r}`), (a, b) => `${a} + ${b}`)}
  ${
    perRow((r) =>
      [
        `if (${row(r)} < sq) {`,
        endSoftmax(features, `m${r}`, `l${r}`),
        `let at = ((outRow${parts > 1 ? " + part * u.batch * u.sq" : ""} + ${row(r)}) * u.heads + h) * ${valueDim}u;`,
        ...each(outs, (e) => `out_put(at, tx + ${e * tx}u, o${r}_${e} * by);`),
        `if (tx == 0u) { lse[lseAt${parts > 1 ? " + part * u.batch * u.heads * u.sq" : ""} + ${
          row(r)
        }] = ${lseBits}; }`,
        "}",
      ].join("\n")
    )
  }
}`;
}

/**
 * Chooses the kernel of a call.
 *
 * @param storage of q, k, v and of out
 */
export function pickAttentionForward(
  capabilities: AttentionCapabilities,
  shape: AttentionShape,
  at: AttentionLayout,
  storage: { q: AttentionStorage; k: AttentionStorage; v: AttentionStorage; out: AttentionStorage },
  features: AttentionFeatures,
): AttentionForwardParams {
  const { headDim, valueDim, batch, heads, seqlenQ, seqlenK } = shape;
  const full = storage.q === "f32" && storage.k === "f32", few = isFew(seqlenQ, seqlenK);
  // Eights where there are registers to spare, since few workgroups are there to hide behind one another anyway.
  const spare = batch * heads * Math.ceil(seqlenQ / 64) < 256 && !isSoftware(capabilities.subgroupSize);
  const sums: Sums = few && full ? "careful" : few || full && spare ? "eights" : "plain";
  const common = {
    ...operandsOf(shape, at, storage, operandOf),
    longFirst: features.window,
    sums,
  };
  for (const tile of forwardTiles(capabilities, shape, features, storage.k, sums)) {
    const { tx, ty, rows, columns } = tile, workgroups = batch * heads * Math.ceil(seqlenQ / (ty * rows));
    const parts = features.lengths === "varlen" || features.range === "left"
      ? 1
      : pickParts(capabilities, tile, workgroups, seqlenK / (tx * columns), !features.window, valueDim > 96);
    const params = {
      ...common,
      tile,
      parts,
      out: denseOperand(parts > 1 ? "f32" : storage.out, valueDim),
      features: { ...features, sinks: features.sinks && parts === 1 },
      subgroups: capabilities.subgroupSize >= tx,
    };
    if (fits(capabilities, tile, attentionForwardMemory(params))) return params;
  }
  throw new RangeError(`[attention] no tile of head size ${headDim} fits ${capabilities.maxWorkgroupMemory} bytes`);
}

/** Tiles to try, best first; few workgroups are spread over smaller tiles. */
function forwardTiles(
  { subgroupSize }: AttentionCapabilities,
  { batch, heads, seqlenQ, seqlenK, headDim, valueDim }: AttentionShape,
  { dropout, window }: AttentionFeatures,
  storage: AttentionStorage,
  sums: Sums,
): AttentionTile[] {
  const many = batch * heads * Math.ceil(seqlenQ / 128) >= 256;
  const last = tileOf(valueDim <= 128 ? 8 : 16, 4, 4, 4, 8);
  if (sums === "careful") return [...(valueDim <= 128 ? [tileOf(8, 8, 4, 4, 8)] : []), last];
  if (isSoftware(subgroupSize) && valueDim <= 128) { // a large text takes a second to compile
    const worth = batch * heads * seqlenQ * seqlenK > 2 ** 21;
    const large = Math.max(headDim, valueDim) <= lanesMost && !dropout
      ? lanesTile(subgroupSize)
      : tileOf(8, 16, 8, 8, 8);
    return [...(worth ? [large] : []), tileOf(8, 8, 4, 4, 8), last];
  }
  // Fewer loads of 16 bits, which take time to unpack, where there are workgroups enough for a device to be full of them.
  const packed = storage !== "f32" && !window && valueDim <= 64 && batch * heads * Math.ceil(seqlenQ / 256) >= 256;
  if (packed) return [tileOf(8, 32, 8, 8, 32), tileOf(8, 16, 8, 8), tileOf(8, 8, 8, 8), last];
  if (valueDim <= 96) return [...(seqlenQ > 64 ? [tileOf(8, 16, 8, 8)] : []), tileOf(8, 8, 8, 8), last];
  if (valueDim <= 192) {
    return [...(many ? [tileOf(16, 16, 8, 8, 32)] : []), tileOf(16, 8, 8, 8), tileOf(16, 8, 8, 8, 8), last];
  }
  return [tileOf(32, 4, 8, 8), tileOf(32, 4, 8, 8, 8), last];
}

/** Workgroups and uniforms of a call. */
export function planAttentionForward(
  params: AttentionForwardParams,
  shape: AttentionShape,
  at: AttentionLayout,
  settings: AttentionSettings,
): AttentionPlan {
  const { batch, seqlenQ, heads } = shape, { parts } = params;
  const tiles = Math.ceil(seqlenQ / (params.tile.ty * params.tile.rows));
  return {
    workgroups: gridOf(params, tiles, heads, batch),
    uniforms: { ...attentionUniforms(params, shape, at, settings), tiles, parts, batch },
  };
}
