/**
 * Flash attention, backward. P comes again from lse, so nothing of size Sq×Sk is kept:
 *
 *   D_i = Σ dO∘O − dLSE_i      dV = Pᵀ·dO      dS = P∘(dO·Vᵀ − D)      dQ = scale·dS·K      dK = scale·dSᵀ·Q
 *
 *   rows kernel      (lse·log₂e, D) of every query row
 *   keys kernel      a workgroup owns a tile of keys and walks the queries (of every head of its group):
 *                    dPᵀ = V·dOᵀ ─▶ workgroup memory;  Sᵀ = K·Qᵀ ─▶ P, dS;  dV += Pᵀ·dO;  dK += dSᵀ·Q
 *   queries kernel   a workgroup owns a tile of queries and walks the keys:
 *                    dP = dO·Vᵀ ─▶ workgroup memory;   S = Q·Kᵀ ─▶ dS;     dQ += dS·K
 *   sinks kernel     dsink_h = −Σ p_sink·D
 *
 * Seven products where five would do with atomics; in return every result is a sum in a fixed order.
 */
import {
  type AttentionCapabilities,
  type AttentionOperand,
  type AttentionOptions,
  type AttentionStorage,
  type AttentionTile,
  chunksPerStage,
  dotChunk,
  dotLoad,
  isVectorOperand,
  laneWidth,
  mixChunk,
  mixLoad,
  operandName,
  operandReader,
  operandType,
  operandWriter,
  optionsName,
  packBf16,
  stageDot,
  stageMix,
  stages,
  stageScores,
  strideFields,
  strideUniforms,
  threads,
  tileName,
  type TileRows,
} from "./attention_common.ts";
import {
  type AttentionSettings,
  dropoutText,
  isEdge,
  keyRange,
  keyRow,
  locateBatch,
  locateHead,
  optionFields,
  optionFunctions,
  optionReads,
  optionUniforms,
  queryRange,
  scoreText,
  visible,
} from "./attention_options.ts";
import type { AttentionLayout, AttentionPlan, AttentionShape } from "./attention_forward.ts";
import { each, type Kernel, kernel } from "./kernel.ts";

/** Everything that the text of the keys kernel or the queries kernel depends on. */
export interface AttentionBackwardParams {
  readonly tile: AttentionTile;
  readonly headDim: number;
  readonly valueDim: number;
  readonly q: AttentionOperand;
  readonly k: AttentionOperand;
  readonly v: AttentionOperand;
  /** The gradient of the output: dense [B, Sq, H, Dv]. */
  readonly dOut: AttentionOperand;
  /** dq, or dk and dv: dense. */
  readonly grad: AttentionStorage;
  readonly options: AttentionOptions;
  /** Heads vary fastest, tiles with the most work start first. */
  readonly longFirst: boolean;
  /** Queries kernel only: also write dS, f32 [B, H, Sq, Sk], the gradient of a bias before it is summed. */
  readonly dBias: boolean;
}

/** Lane rows of workgroup memory: where each part starts. */
function layout({ tile, headDim, valueDim }: AttentionBackwardParams) {
  const { tx, ty, columns, depth, stage } = tile;
  const outsK = Math.ceil(headDim / (4 * tx)), outsV = Math.ceil(valueDim / (4 * tx));
  const dims = Math.ceil(headDim / depth), values = Math.ceil(valueDim / depth), scores = tx * columns / depth;
  const dimStage = chunksPerStage(dims, stage), valueStage = chunksPerStage(values, stage);
  const mixStage = chunksPerStage(scores, stage);
  const left = scores * ty, right = left + Math.max(dimStage, valueStage) * ty;
  const rows = Math.max(right + Math.max(dimStage, valueStage) * tx, left + mixStage * tx);
  const width = laneWidth(tile, Math.max(outsK, outsV));
  return { outsK, outsV, dims, values, scores, dimStage, valueStage, mixStage, left, right, rows, width };
}

/** Bytes of workgroup memory that a kernel of these parameters takes. */
export function attentionBackwardMemory(params: AttentionBackwardParams): number {
  const { rows, width } = layout(params);
  return rows * width * 16;
}

function nameOf(kind: string, params: AttentionBackwardParams): string {
  const { tile, headDim, valueDim, q, k, v, dOut, grad, options, longFirst, dBias } = params;
  return [
    `attention_backward_${kind}_d${headDim}x${valueDim}_${tileName(tile)}`,
    ...[q, k, v, dOut].map(operandName),
    grad,
    ...(longFirst ? ["long"] : []),
    ...(dBias ? ["dbias"] : []),
  ].join("_") + optionsName(options);
}

function interfaceOf({ q, k, v, dOut, options }: AttentionBackwardParams) {
  return {
    reads: {
      q: operandType(q),
      k: operandType(k),
      v: operandType(v),
      dOut: operandType(dOut),
      rowStats: "vec2f",
      ...optionReads(options),
    },
    uniforms: {
      sq: "u32",
      sk: "u32",
      heads: "u32",
      group: "u32",
      tiles: "u32",
      scale: "f32",
      gradScale: "f32",
      ...strideFields("q"),
      ...strideFields("k"),
      ...strideFields("v"),
      ...optionFields(options),
    },
  } as const;
}

/** What both kernels have before their `main`. */
function preamble(
  params: AttentionBackwardParams,
  outputs: readonly (readonly [name: string, size: number])[],
): string {
  const { tile, headDim, valueDim, q, k, v, dOut, grad, options } = params;
  const { rows, width } = layout(params);
  return `
${operandReader("q", q, headDim)}
${operandReader("k", k, headDim)}
${operandReader("v", v, valueDim)}
${operandReader("dOut", dOut, valueDim)}
${grad === "bf16" ? packBf16 : ""}
${outputs.map(([name, size]) => operandWriter(name, gradOperand(grad, size), size)).join("\n")}
${optionFunctions(options)}
var<workgroup> tile: array<array<vec4f, ${width}>, ${rows}>;
@compute @workgroup_size(${threads(tile)})
fn main(@builtin(workgroup_id) group: vec3u, @builtin(local_invocation_index) li: u32) {
  let tx = li % ${tile.tx}u; let ty = li / ${tile.tx}u;`;
}

function gradOperand(storage: AttentionStorage, size: number): AttentionOperand {
  return { storage, vector: size % 4 === 0 };
}

/** The four operands as rows of a tile: queries from `q0`, keys from `k0`. */
function operands(
  { headDim, valueDim, dOut, options }: AttentionBackwardParams,
): Record<"q" | "k" | "v" | "dOut", TileRows> {
  const queries = { first: "q0", limit: "sq" }, keys = { first: "k0", limit: "sk" };
  const valueUnits = dOut.vector ? valueDim / 4 : valueDim;
  return {
    q: { name: "q", size: headDim, start: (i) => `qBase + ${i} * u.qSeq`, ...queries },
    k: { name: "k", size: headDim, start: (j) => keyRow(options, "k", j), ...keys },
    v: { name: "v", size: valueDim, start: (j) => keyRow(options, "v", j), ...keys },
    dOut: {
      name: "dOut",
      size: valueDim,
      start: (i) => `((outRow + ${i}) * u.heads + h) * ${valueUnits}u`,
      ...queries,
    },
  };
}

/** A whole product of scores: s = A·Bᵀ along an axis of `size`, A along the tile's rows. */
function dotProduct(
  params: AttentionBackwardParams,
  a: TileRows,
  b: TileRows,
  stage: number,
  scaleA: string,
): string {
  const { tile } = params, { tx, ty, depth } = tile, { left, right } = layout(params);
  const chunks = Math.ceil(a.size / depth);
  const load = (rows: TileRows, z: string, scale: string) => (r: string, d: string): string =>
    dotLoad(tile, rows, `(d0 + ${z}u)`)(r, d) + scale;
  return `
    for (var d0 = 0u; d0 < ${chunks}u; d0 += ${stage}u) {
      workgroupBarrier();
      ${
    stages(
      tile,
      each(stage, String).flatMap((z) => [
        stageDot(tile, "rows", `a${z}_`, `${left + Number(z) * ty}u`, load(a, z, scaleA)),
        stageDot(tile, "columns", `b${z}_`, `${right + Number(z) * tx}u`, load(b, z, "")),
      ]),
    )
  }
      workgroupBarrier();
      for (var z = 0u; z < ${stage}u; z++) {
        let left = ${left}u + z * ${ty}u + ty; let right = ${right}u + z * ${tx}u + tx;
        ${dotChunk(tile, "s", "left", "right").join("\n")}
      }
    }`;
}

/** A whole product with the scores in workgroup memory: o += P·B for the first `count` columns of the tile. */
function mixProduct(params: AttentionBackwardParams, b: TileRows, outs: number, o: string, count: string): string {
  const { tile } = params, { tx, ty, depth } = tile, { left, mixStage } = layout(params);
  return `
    for (var c0 = 0u; c0 < (${count} + ${depth - 1}u) / ${depth}u; c0 += ${mixStage}u) {
      workgroupBarrier();
      ${
    stages(
      tile,
      each(mixStage, String).map((z) =>
        stageMix(
          tile,
          outs,
          Math.ceil(b.size / 4),
          `b${z}_`,
          `${left + Number(z) * tx}u`,
          mixLoad(tile, b, `(c0 + ${z}u)`),
        )
      ),
    )
  }
      workgroupBarrier();
      for (var z = 0u; z < ${mixStage}u; z++) {
        let left = (c0 + z) * ${ty}u + ty; let right = ${left}u + z * ${tx}u + tx;
        ${mixChunk(tile, outs, o, "left", "right").join("\n")}
      }
    }`;
}

/** Where a thread's four scores of row `r` and column group `group` lie in the scores' part of workgroup memory. */
function ownScores({ tx, ty, depth }: AttentionTile, r: number, group: number): string {
  const at = `(tx + ${group * tx}u)`, k4 = depth / 4;
  return `tile[(${at} / ${k4}u) * ${ty}u + ty][${r * k4}u + ${at} % ${k4}u]`;
}

const components = ["x", "y", "z", "w"];

/**
 * The kernel that owns keys. Reads q, k, v, dOut, rowStats and what the options read; writes dk [B, Sk, Hk, D] and
 * dv [B, Sk, Hk, Dv].
 */
export function attentionBackwardKeys(params: AttentionBackwardParams): Kernel {
  const { headDim, valueDim, grad } = params;
  return kernel(nameOf("keys", params), {
    ...interfaceOf(params),
    writes: { dk: operandType(gradOperand(grad, headDim)), dv: operandType(gradOperand(grad, valueDim)) },
  }, () => keysBody(params));
}

function keysBody(params: AttentionBackwardParams): string {
  const { tile, headDim, valueDim, options, longFirst } = params;
  const { tx, ty, rows, columns } = tile;
  const { outsK, outsV, dimStage, valueStage } = layout(params);
  const keyTile = ty * rows, queryTile = tx * columns;
  const { q, k, v, dOut } = operands(params);
  const key = (r: number): string => `(k0 + ty * ${rows}u + ${r}u)`;
  const query = (c: number): string => `(q0 + (tx + ${(c >> 2) * tx}u) * 4u + ${c & 3}u)`;
  const perRow = (f: (r: number) => string): string => each(rows, f).join("\n");
  const zeros = (name: string, outs: number): string =>
    perRow((r) => each(outs, (e) => `var ${name}${r}_${e} = vec4f();`).join(" "));
  const clear = (word: string): string => perRow((r) => each(columns, (c) => `${word} s${r}_${c} = 0.0f;`).join(" "));

  // The dropout generator gives four keys of one query a call, so its bits are drawn column by column beforehand.
  const drops = !options.dropout ? "" : [
    ...each(rows / 4, (half) => `var kept${half} = 0u;`),
    ...each(
      columns,
      (c) =>
        each(
          rows / 4,
          (half) =>
            `{ let i = ${query(c)}; let j4 = (k0 + ty * ${rows}u) / 4u + ${half}u; ${
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
    let dp = ${ownScores(tile, r, n)}; var p = vec4f();
    ${
      components.map((x, i) => {
        const c = n * 4 + i, s = `s${r}_${c}`;
        const [seen, slope] = [options.dropout ? ` * kept` : "", options.softcap ? " * (1.0f - t * t)" : ""];
        return `{ ${options.dropout ? `let kept = ${kept(r, c)};` : ""} ${scoreText(options, s, query(c), key(r))} ` +
          `let e = exp2(${s} - stats${c}.x); p.${x} = e${seen}; ${s} = e * (dp.${x}${seen} - stats${c}.y)${slope}; }`;
      }).join("\n")
    }
    if (edge) {
      ${
      components.map((x, i) => {
        const c = n * 4 + i;
        return `if (!(${visible(options, query(c), key(r))})) { p.${x} = 0.0f; s${r}_${c} = 0.0f; }`;
      }).join("\n")
    }
    }
    ${ownScores(tile, r, n)} = p;
  }`;
  const score = (r: number, n: number): string => `vec4f(${each(4, (i) => `s${r}_${n * 4 + i}`).join(", ")})`;

  return `${preamble(params, [["dk", headDim], ["dv", valueDim]])}
  ${
    longFirst
      ? "let g = group.x; let b = group.y; let k0 = group.z"
      : "let g = group.y; let b = group.z; let k0 = group.x"
  } * ${keyTile}u;
  ${locateBatch(options)}
  if (k0 >= sk) { return; }
  ${queryRange(options, "k0", keyTile, queryTile)}
  ${zeros("x", outsK)}
  ${zeros("y", outsV)}
  for (var h = g * u.group; h < (g + 1u) * u.group; h++) {
    ${locateHead(options)}
    for (var q0 = queryFrom; q0 < queryTo; q0 += ${queryTile}u) {
      ${clear("var")}
      ${dotProduct(params, v, dOut, valueStage, "")}
      ${stageScores(tile, score, "0u").join("\n")}
      ${clear("")}
      ${dotProduct(params, k, q, dimStage, " * u.scale")}
      ${
    each(columns, (c) =>
      `let stats${c} = select(vec2f(1e30f, 0.0f), rowStats[lseAt + min(${query(c)}, sq - 1u)], ${query(c)} < sq);`)
      .join("\n")
  }
      let edge = ${isEdge(options, "q0", queryTile, "k0", keyTile)};
      ${drops}
      ${perRow((r) => each(columns / 4, (n) => gradients(r, n)).join("\n"))}
      ${mixProduct(params, dOut, outsV, "y", `min(${queryTile}u, queryTo - q0)`)}
      workgroupBarrier();
      ${stageScores(tile, score, "0u").join("\n")}
      ${mixProduct(params, q, outsK, "x", `min(${queryTile}u, queryTo - q0)`)}
    }
  }
  ${
    perRow((r) =>
      [
        `if (${key(r)} < sk) {`,
        `let at = (keyRow + ${key(r)}) * (u.heads / u.group) + g;`,
        ...each(outsK, (e) => `dk_put(at * ${headDim}u, tx + ${e * tx}u, x${r}_${e} * u.gradScale);`),
        ...each(outsV, (e) => `dv_put(at * ${valueDim}u, tx + ${e * tx}u, y${r}_${e});`),
        "}",
      ].join("\n")
    )
  }
}`;
}

/**
 * The kernel that owns queries. Reads what the keys kernel reads; writes dq [B, Sq, H, D], and dBias, f32
 * [B, H, Sq, Sk], when asked for (dense lengths only).
 */
export function attentionBackwardQueries(params: AttentionBackwardParams): Kernel {
  const { headDim, grad, dBias } = params;
  return kernel(nameOf("queries", params), {
    ...interfaceOf(params),
    writes: { dq: operandType(gradOperand(grad, headDim)), ...(dBias ? { dBias: "f32" } : {}) },
  }, () => queriesBody(params));
}

function queriesBody(params: AttentionBackwardParams): string {
  const { tile, headDim, options, longFirst, dBias } = params;
  const { tx, ty, rows, columns } = tile;
  const { outsK, dimStage, valueStage } = layout(params);
  const queryTile = ty * rows, keyTile = tx * columns;
  const { q, k, v, dOut } = operands(params);
  const query = (r: number): string => `(q0 + ty * ${rows}u + ${r}u)`;
  const key = (c: number): string => `(k0 + (tx + ${(c >> 2) * tx}u) * 4u + ${c & 3}u)`;
  const perRow = (f: (r: number) => string): string => each(rows, f).join("\n");
  const clear = (word: string): string => perRow((r) => each(columns, (c) => `${word} s${r}_${c} = 0.0f;`).join(" "));
  const gradients = (r: number, n: number): string =>
    `{
    let dp = ${ownScores(tile, r, n)};
    ${options.dropout ? dropoutText(query(r), `(k0 / 4u + tx + ${n * tx}u)`) : ""}
    ${
      components.map((x, i) => {
        const c = n * 4 + i, s = `s${r}_${c}`;
        const [seen, slope] = [
          options.dropout ? ` * kept.${x} * u.keepScale` : "",
          options.softcap ? " * (1.0f - t * t)" : "",
        ];
        const bias = dBias
          ? `if (${visible(options, query(r), key(c))} && ${query(r)} < sq) { dBias[(lseAt + ${query(r)}) * sk + ${
            key(c)
          }] = ds; }
           else if (${key(c)} < sk && ${query(r)} < sq) { dBias[(lseAt + ${query(r)}) * sk + ${key(c)}] = 0.0f; }`
          : "";
        return `{ ${scoreText(options, s, query(r), key(c))} ` +
          `let ds = exp2(${s} - stats${r}.x) * (dp.${x}${seen} - stats${r}.y); ${bias} ${s} = ds${slope}; }`;
      }).join("\n")
    }
    if (edge) {
      ${
      components.map((_, i) => {
        const c = n * 4 + i;
        return `if (!(${visible(options, query(r), key(c))})) { s${r}_${c} = 0.0f; }`;
      }).join("\n")
    }
    }
    ${ownScores(tile, r, n)} = vec4f(${each(4, (i) => `s${r}_${n * 4 + i}`).join(", ")});
  }`;
  const score = (r: number, n: number): string => `vec4f(${each(4, (i) => `s${r}_${n * 4 + i}`).join(", ")})`;
  const unseen = `
  for (var r = 0u; r < min(${queryTile}u, sq - q0); r++) {
    for (var j = li; j < keyFrom; j += ${threads(tile)}u) { dBias[(lseAt + q0 + r) * sk + j] = 0.0f; }
    for (var j = max(keyFrom, (keyTo + ${keyTile - 1}u) / ${keyTile}u * ${keyTile}u) + li; j < sk; j += ${
    threads(tile)
  }u) {
      dBias[(lseAt + q0 + r) * sk + j] = 0.0f;
    }
  }`;

  return `${preamble(params, [["dq", headDim]])}
  ${
    longFirst
      ? "let h = group.x; let b = group.y; let q0 = (u.tiles - 1u - group.z)"
      : "let h = group.y; let b = group.z; let q0 = group.x"
  } * ${queryTile}u;
  let g = h / u.group;
  ${locateBatch(options)}
  if (q0 >= sq) { return; }
  ${locateHead(options)}
  ${keyRange(options, "q0", queryTile, keyTile)}
  ${perRow((r) => each(outsK, (e) => `var x${r}_${e} = vec4f();`).join(" "))}
  ${
    perRow((r) =>
      `let stats${r} = select(vec2f(1e30f, 0.0f), rowStats[lseAt + min(${query(r)}, sq - 1u)], ${query(r)} < sq);`
    )
  }
  for (var k0 = keyFrom; k0 < keyTo; k0 += ${keyTile}u) {
    ${clear("var")}
    ${dotProduct(params, dOut, v, valueStage, "")}
    ${stageScores(tile, score, "0u").join("\n")}
    ${clear("")}
    ${dotProduct(params, q, k, dimStage, " * u.scale")}
    let edge = ${isEdge(options, "q0", queryTile, "k0", keyTile)};
    ${perRow((r) => each(columns / 4, (n) => gradients(r, n)).join("\n"))}
    ${mixProduct(params, k, outsK, "x", `min(${keyTile}u, keyTo - k0)`)}
  }
  ${dBias ? unseen : ""}
  ${
    perRow((r) =>
      [
        `if (${query(r)} < sq) {`,
        `let at = ((outRow + ${query(r)}) * u.heads + h) * ${headDim}u;`,
        ...each(outsK, (e) => `dq_put(at, tx + ${e * tx}u, x${r}_${e} * u.gradScale);`),
        "}",
      ].join("\n")
    )
  }
}`;
}

/** What the rows kernel depends on. */
export interface AttentionRowsParams {
  readonly valueDim: number;
  readonly out: AttentionOperand;
  readonly dOut: AttentionOperand;
  /** The gradient of lse is there too: storage `dLse`, f32 [B, H, Sq]. */
  readonly dLse: boolean;
}

/**
 * The rows kernel: from out and dOut, dense [B, Sq, H, Dv], lse and dLse, [B, H, Sq], to rowStats, vec2f [B, H, Sq]:
 * (lse·log₂e, D), and 10³⁰ for the lse of a row that sees no key, so that its every p is 0.
 */
export function attentionBackwardRows({ valueDim, out, dOut, dLse }: AttentionRowsParams): Kernel {
  const name = `attention_backward_rows_d${valueDim}_${operandName(out)}_${operandName(dOut)}${dLse ? "_dlse" : ""}`;
  const lanes = 8, all = 256, size4 = Math.ceil(valueDim / 4);
  const units = (operand: AttentionOperand): number => operand.vector ? valueDim / 4 : valueDim;
  return kernel(name, {
    reads: { out: operandType(out), dOut: operandType(dOut), lse: "f32", ...(dLse ? { dLse: "f32" } : {}) },
    writes: { rowStats: "vec2f" },
    uniforms: { sq: "u32", heads: "u32", rows: "u32", groups: "u32" },
  }, () => `
${operandReader("out", out, valueDim)}
${operandReader("dOut", dOut, valueDim)}
var<workgroup> parts: array<f32, ${all}>;
@compute @workgroup_size(${all})
fn main(@builtin(workgroup_id) group: vec3u, @builtin(local_invocation_index) li: u32) {
  let row = (group.y * u.groups + group.x) * ${all / lanes}u + li / ${lanes}u;
  var sum = 0.0f;
  if (row < u.rows) {
    for (var d4 = li % ${lanes}u; d4 < ${size4}u; d4 += ${lanes}u) {
      sum += dot(out_at(row * ${units(out)}u, d4), dOut_at(row * ${units(dOut)}u, d4));
    }
  }
  parts[li] = sum;
  workgroupBarrier();
  if (row < u.rows && li % ${lanes}u == 0u) {
    for (var lane = 1u; lane < ${lanes}u; lane++) { sum += parts[li + lane]; }
    let i = row / u.heads; let h = row % u.heads;
    let at = ((i / u.sq) * u.heads + h) * u.sq + i % u.sq;
    ${dLse ? "sum -= dLse[at];" : ""}
    let natural = lse[at];
    rowStats[at] = select(vec2f(1e30f, 0.0f), vec2f(natural * 1.4426950408889634f, sum), natural > -1e30f);
  }
}`);
}

/** The sinks kernel: from rowStats, [B, H, Sq], and sinks, f32 [H], to dsinks, f32 [H]; one workgroup a head. */
export function attentionBackwardSinks(): Kernel {
  const all = 256;
  return kernel("attention_backward_sinks", {
    reads: { rowStats: "vec2f", sinks: "f32" },
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
      sum -= exp2(sink - stats.x) * stats.y;
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

/** Chooses the keys kernel and the queries kernel of a call. */
export function pickAttentionBackward(
  capabilities: AttentionCapabilities,
  shape: AttentionShape,
  at: AttentionLayout,
  storage: {
    q: AttentionStorage;
    k: AttentionStorage;
    v: AttentionStorage;
    dOut: AttentionStorage;
    grad: AttentionStorage;
  },
  options: AttentionOptions,
  dBias: boolean,
): { keys: AttentionBackwardParams; queries: AttentionBackwardParams } {
  const { headDim, valueDim } = shape;
  const common = {
    headDim,
    valueDim,
    q: { storage: storage.q, vector: isVectorOperand(headDim, at.q) },
    k: { storage: storage.k, vector: isVectorOperand(headDim, at.k) },
    v: { storage: storage.v, vector: isVectorOperand(valueDim, at.v) },
    dOut: { storage: storage.dOut, vector: valueDim % 4 === 0 },
    grad: storage.grad,
    options: { ...options, sinks: false },
    longFirst: options.window,
  };
  const fitting = (dBias: boolean): AttentionBackwardParams => {
    for (const tile of backwardTiles(Math.max(headDim, valueDim))) {
      const params = { ...common, tile, dBias };
      const fits = attentionBackwardMemory(params) <= capabilities.workgroupMemory &&
        threads(tile) <= capabilities.workgroupThreads;
      if (fits) return params;
    }
    throw new RangeError(`[attention] no tile of head size ${headDim} fits ${capabilities.workgroupMemory} bytes`);
  };
  return { keys: fitting(false), queries: fitting(dBias) };
}

/** Tiles to try, best first. */
function backwardTiles(dim: number): AttentionTile[] {
  const tx = dim <= 96 ? 8 : dim <= 192 ? 16 : 32;
  return [
    { tx, ty: 8, rows: 8, columns: 8, depth: 16, stage: 2, batch: 8 },
    { tx, ty: 8, rows: 8, columns: 8, depth: 16, stage: 1, batch: 8 },
    { tx, ty: 8, rows: 8, columns: 4, depth: 16, stage: 1, batch: 8 },
    { tx, ty: 8, rows: 8, columns: 4, depth: 8, stage: 1, batch: 8 },
    { tx, ty: 4, rows: 8, columns: 4, depth: 8, stage: 1, batch: 8 },
    { tx, ty: 1, rows: 8, columns: 4, depth: 8, stage: 1, batch: 8 },
  ];
}

/** Workgroups and uniforms of the four kernels of a call. */
export function planAttentionBackward(
  { keys, queries }: { keys: AttentionBackwardParams; queries: AttentionBackwardParams },
  shape: AttentionShape,
  at: AttentionLayout,
  settings: AttentionSettings,
): { rows: AttentionPlan; keys: AttentionPlan; queries: AttentionPlan; sinks: AttentionPlan } {
  const { batch, seqlenQ, seqlenK, heads, kvHeads, totalQ } = shape;
  const varlen = keys.options.lengths === "varlen";
  const sq = varlen ? totalQ ?? 0 : seqlenQ, sequences = varlen ? 1 : batch;
  const plan = (params: AttentionBackwardParams, seqlen: number, heads: number): AttentionPlan => {
    const tiles = Math.ceil(seqlen / (params.tile.ty * params.tile.rows));
    return {
      workgroups: params.longFirst ? [heads, batch, tiles] : [tiles, heads, batch],
      uniforms: {
        sq,
        sk: seqlenK,
        heads: shape.heads,
        group: shape.heads / kvHeads,
        tiles,
        gradScale: settings.softmaxScale,
        ...strideUniforms("q", params.q, at.q),
        ...strideUniforms("k", params.k, at.k),
        ...strideUniforms("v", params.v, at.v),
        ...optionUniforms(params.options, settings),
      },
    };
  };
  const rows = sequences * sq * heads, groups = Math.min(65535, Math.ceil(rows / 32));
  return {
    rows: {
      workgroups: [groups, groups === 0 ? 0 : Math.ceil(rows / 32 / groups), 1],
      uniforms: { sq, heads, rows, groups },
    },
    keys: plan(keys, seqlenK, kvHeads),
    queries: plan(queries, seqlenQ, heads),
    sinks: { workgroups: [heads, 1, 1], uniforms: { batch: sequences, sq, heads } },
  };
}
