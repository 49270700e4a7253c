/**
 * Flash attention, backward. P comes again from lse, so nothing of size Sq×Sk is kept:
 *
 *   D_i = Σ dO∘O − dLSE_i      dV = Pᵀ·dO      dS = P∘(dO·Vᵀ − D)      dQ = scale·dS·K      dK = scale·dSᵀ·Q
 *
 *   rows kernel      (lse·log₂e, D) of every query row: attention_rows.ts
 *   keys kernel      a workgroup owns a tile of keys and walks the queries (of every head of its group):
 *                    dPᵀ = V·dOᵀ;  Sᵀ = K·Qᵀ;  P and dS in registers;  dV += Pᵀ·dO;  dK += dSᵀ·Q
 *   queries kernel   a workgroup owns a tile of queries and walks the keys:
 *                    dP = dO·Vᵀ;   S = Q·Kᵀ;   dS in registers;         dQ += dS·K
 *
 * Seven products where five would do with atomics; in return every result is a sum in a fixed order.
 *
 * Floor for f32 B4 H12 S2048 D64, full: 180 GFLOP in seven products; 129 of them are counted (2.5 × forward).
 * Versions on an H200, TFLOP/s of the products done (keys kernel / queries kernel), best of rounds with the clocks up:
 *   v1  8×8 a thread, dP, P and dS pass whole through workgroup memory, 64×64 by 64 threads    10.4 / 11.4
 *       128×64 by 128 threads, 45 KiB                                                          20.1 / 22.0
 *       4×4 a thread, 2 chunks a barrier: 32×64, 21 KiB                                        22.2 / 23.1
 *   v2  dP beside S in registers, P and dS pass a chunk at a time; 64×64 throughout:
 *       4×4 a thread, 2 chunks a barrier, 17 KiB                                               27.5 / 27.7
 *       8×4 a thread, 12 KiB                                                                   25.7 / 29.8
 *       4×8 a thread, 12 KiB                                                                   27.8 / 29.3
 *       8×8 a thread: 64×128, 12 KiB                                                           26.7 / 28.9 (128×64)
 *       the same with 2 chunks a barrier, 25 KiB                                               21.0 / 22.0
 *   v3  operands turned while stored, outer products: 8×4 a thread, 64×64, 8 KiB               29.9 / 31.5  ◀ keys
 *       8×8 a thread, 128×64, 12 KiB                                                           30.0 / 33.4  ◀ queries
 *       4×4 a thread, chunks of 32: 27.2 / –; 256×64, chunks of 32, 40 KiB: – / 33.8
 *       the next chunk loaded early: 26.4 / 31.6
 * All together 5.8 ms, 22 TFLOP/s as counted; causal (29.3 / 30.8) 3.0 ms, 21. D 128: 30.3 / 37.1, 256: 30.3 / 34.0.
 */
import {
  type AttentionCapabilities,
  type AttentionFeatures,
  type AttentionOperand,
  type AttentionStorage,
  type AttentionTile,
  denseOperand,
  featuresName,
  fits,
  operandName,
  operandOf,
  operandReader,
  operandType,
  operandWriter,
  outsOf,
  strideFields,
  strideUniforms,
  threads,
  tileName,
  writerFunctions,
} from "./attention_common.ts";
import type { AttentionLayout, AttentionPlan, AttentionShape } from "./attention_forward.ts";
import { rowsPerGroup } from "./attention_rows.ts";
import {
  type AttentionSettings,
  dropoutText,
  featureFields,
  featureFunctions,
  featureReads,
  featureUniforms,
  isEdge,
  keyRange,
  keyRow,
  locateBatch,
  locateHead,
  queryRange,
  scoreText,
  visible,
} from "./attention_options.ts";
import {
  columnOf,
  dotProduct,
  four,
  mixProduct,
  rowOf,
  tileMemory,
  type TileRows,
  workgroupBytes,
} from "./attention_tiles.ts";
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
  readonly features: AttentionFeatures;
  /** Heads vary fastest, tiles with the most work start first. */
  readonly longFirst: boolean;
  /** Keys kernel only: a tile's sums are made apart and then added, for fewer roundings in a row and more registers. */
  readonly stepwise: boolean;
  /** Queries kernel only: also write dS, f32 [B, H, Sq, Sk], where a query sees a key. */
  readonly dBias: boolean;
}

function outsMost({ tile, headDim, valueDim }: AttentionBackwardParams): number {
  return outsOf(tile, Math.max(headDim, valueDim));
}

/** Bytes of workgroup memory that a kernel of these parameters takes. */
export function attentionBackwardMemory(params: AttentionBackwardParams): number {
  return workgroupBytes(params.tile, outsMost(params), false);
}

function nameOf(kind: string, params: AttentionBackwardParams): string {
  const { tile, headDim, valueDim, q, k, v, dOut, grad, features, longFirst, stepwise, dBias } = params;
  return [
    `attention_backward_${kind}_d${headDim}x${valueDim}_${tileName(tile)}`,
    ...[q, k, v, dOut].map(operandName),
    grad,
    ...(longFirst ? ["long"] : []),
    ...(stepwise ? ["stepwise"] : []),
    ...(dBias ? ["dbias"] : []),
  ].join("_") + featuresName(features);
}

function interfaceOf({ q, k, v, dOut, features }: AttentionBackwardParams) {
  return {
    reads: {
      q: operandType(q),
      k: operandType(k),
      v: operandType(v),
      dOut: operandType(dOut),
      rowStats: "vec4f",
      ...featureReads(features),
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
      ...featureFields(features),
    },
  } as const;
}

/** What both kernels have before their `main`, and its first line. */
function preamble(
  params: AttentionBackwardParams,
  outputs: readonly (readonly [name: string, size: number])[],
): string {
  const { tile, headDim, valueDim, q, k, v, dOut, grad, features } = params;
  return `
${operandReader("q", q, headDim)}
${operandReader("k", k, headDim)}
${operandReader("v", v, valueDim)}
${operandReader("dOut", dOut, valueDim)}
${writerFunctions(grad)}
${outputs.map(([name, size]) => operandWriter(name, denseOperand(grad, size), size)).join("\n")}
${featureFunctions(features)}
${tileMemory(tile, outsMost(params))}
@compute @workgroup_size(${threads(tile)})
fn main(@builtin(workgroup_id) group: vec3u, @builtin(local_invocation_index) li: u32) {
  let tx = li % ${tile.tx}u; let ty = li / ${tile.tx}u;`;
}

/** The four operands as rows of a tile: queries from `q0`, keys from `k0`. */
function operands(
  { headDim, valueDim, dOut, features }: AttentionBackwardParams,
): Record<"q" | "k" | "v" | "dOut", TileRows> {
  const queries = { first: "q0", limit: "sq" }, keys = { first: "k0", limit: "sk" };
  const units = dOut.vector ? valueDim / 4 : valueDim;
  return {
    q: { name: "q", size: headDim, start: (i) => `qBase + ${i} * u.qSeq`, ...queries },
    k: { name: "k", size: headDim, start: (j) => keyRow(features, "k", j), ...keys },
    v: { name: "v", size: valueDim, start: (j) => keyRow(features, "v", j), ...keys },
    dOut: { name: "dOut", size: valueDim, start: (i) => `((outRow + ${i}) * u.heads + h) * ${units}u`, ...queries },
  };
}

const components = ["x", "y", "z", "w"];

/**
 * The kernel that owns keys. Reads q, k, v, dOut, rowStats and what the features read; writes dk [B, Sk, Hk, D] and
 * dv [B, Sk, Hk, Dv].
 */
export function attentionBackwardKeys(params: AttentionBackwardParams): Kernel {
  const { headDim, valueDim, grad } = params;
  return kernel(nameOf("keys", params), {
    ...interfaceOf(params),
    writes: { dk: operandType(denseOperand(grad, headDim)), dv: operandType(denseOperand(grad, valueDim)) },
  }, () => keysBody(params));
}

function keysBody(params: AttentionBackwardParams): string {
  const { tile, headDim, valueDim, features, longFirst, stepwise } = params;
  const { tx, ty, rows, columns } = tile;
  const outsK = outsOf(tile, headDim), outsV = outsOf(tile, valueDim);
  const keyTile = ty * rows, queryTile = tx * columns;
  const { q, k, v, dOut } = operands(params);
  const key = (r: number): string => `(k0 + ${rowOf(tile, r)})`;
  const query = (c: number): string => `(q0 + ${columnOf(tile, c)})`;
  const perRow = (f: (r: number) => string): string => each(rows, f).join("\n");
  const zeros = (name: string, outs: number): string =>
    perRow((r) => each(outs, (e) => `var ${name}${r}_${e} = vec4f();`).join(" "));
  const clear = (name: string): string => perRow((r) => each(columns, (c) => `${name}${r}_${c} = 0.0f;`).join(" "));

  const mix = (scores: string, right: TileRows, outs: number, to: string): string => {
    const product = (o: string) => mixProduct(tile, scores, right, outs, o, `min(${queryTile}u, queryTo - q0)`);
    if (!stepwise) return product(to);
    const add = perRow((r) => each(outs, (e) => `${to}${r}_${e} += step${r}_${e};`).join(" "));
    return `{ ${zeros("step", outs)}\n${product("step")}\n${add} }`;
  };

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
        const [seen, slope] = [features.dropout ? ` * kept` : "", features.softcap ? " * (1.0f - t * t)" : ""];
        return `{ ${features.dropout ? `let kept = ${kept(r, c)};` : ""} ${scoreText(features, s, query(c), key(r))} ` +
          `let e = exp2(${s} - stats${c}.x - stats${c}.z); p.${x} = e${seen}; ${s} = e * (dp.${x}${seen} - stats${c}.y)${slope}; }`;
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
  ${
    longFirst
      ? "let g = group.x; let b = group.y; let k0 = group.z"
      : "let g = group.y; let b = group.z; let k0 = group.x"
  } * ${keyTile}u;
  ${locateBatch(features)}
  if (k0 >= sk) { return; }
  ${queryRange(features, "k0", keyTile, queryTile)}
  ${zeros("x", outsK)}
  ${zeros("y", outsV)}
  for (var h = g * u.group; h < (g + 1u) * u.group; h++) {
    ${locateHead(features)}
    for (var q0 = queryFrom; q0 < queryTo; q0 += ${queryTile}u) {
      ${clear("var g")}
      ${clear("var s")}
      ${dotProduct(tile, "g", v, dOut)}
      ${dotProduct(tile, "s", k, q, " * u.scale")}
      ${
    each(columns, (c) =>
      `let stats${c} = select(vec4f(1e30f, 0.0f, 0.0f, 0.0f), rowStats[lseAt + min(${query(c)}, sq - 1u)], ${
        query(c)
      } < sq);`)
      .join("\n")
  }
      let edge = ${isEdge(features, "q0", queryTile, "k0", keyTile)};
      ${drops}
      ${perRow((r) => each(columns / 4, (n) => gradients(r, n)).join("\n"))}
      ${mix("g", dOut, outsV, "y")}
      ${mix("s", q, outsK, "x")}
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
 * The kernel that owns queries. Reads what the keys kernel reads; writes dq [B, Sq, H, D] and, when asked for,
 * dBias, f32 [B, H, Sq, Sk] (variable length: [B, H, maxSeqlenQ, maxSeqlenK]), only where a query sees a key.
 */
export function attentionBackwardQueries(params: AttentionBackwardParams): Kernel {
  const { headDim, grad, dBias } = params;
  return kernel(nameOf("queries", params), {
    ...interfaceOf(params),
    writes: { dq: operandType(denseOperand(grad, headDim)), ...(dBias ? { dBias: "f32" } : {}) },
  }, () => queriesBody(params));
}

function queriesBody(params: AttentionBackwardParams): string {
  const { tile, headDim, features, longFirst, dBias } = params;
  const { tx, ty, rows, columns } = tile;
  const outsK = outsOf(tile, headDim);
  const queryTile = ty * rows, keyTile = tx * columns;
  const { q, k, v, dOut } = operands(params);
  const query = (r: number): string => `(q0 + ${rowOf(tile, r)})`;
  const key = (c: number): string => `(k0 + ${columnOf(tile, c)})`;
  const perRow = (f: (r: number) => string): string => each(rows, f).join("\n");
  const clear = (name: string): string => perRow((r) => each(columns, (c) => `${name}${r}_${c} = 0.0f;`).join(" "));
  const gradients = (r: number, n: number): string =>
    `{
    let dp = ${four("g", r, n)};
    ${features.dropout ? dropoutText(query(r), `(k0 / 4u + tx + ${n * tx}u)`) : ""}
    ${
      components.map((x, i) => {
        const c = n * 4 + i, s = `s${r}_${c}`;
        const [seen, slope] = [
          features.dropout ? ` * kept.${x} * u.keepScale` : "",
          features.softcap ? " * (1.0f - t * t)" : "",
        ];
        const at = `dBias[(biasAt + ${query(r)}) * u.sk + ${key(c)}]`;
        const bias = dBias ? `if (${visible(features, query(r), key(c))} && ${query(r)} < sq) { ${at} = ds; }` : "";
        return `{ ${scoreText(features, s, query(r), key(c))} ` +
          `let ds = exp2(${s} - stats${r}.x - stats${r}.z) * (dp.${x}${seen} - stats${r}.y); ${bias} ${s} = ds${slope}; }`;
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
  ${
    longFirst
      ? "let h = group.x; let b = group.y; let q0 = (u.tiles - 1u - group.z)"
      : "let h = group.y; let b = group.z; let q0 = group.x"
  } * ${queryTile}u;
  let g = h / u.group;
  ${locateBatch(features)}
  if (q0 >= sq) { return; }
  ${locateHead(features)}
  ${keyRange(features, "q0", queryTile, keyTile)}
  ${dBias ? `let biasAt = (b * u.heads + h) * ${features.lengths === "varlen" ? "u.maxQ" : "u.sq"};` : ""}
  ${perRow((r) => each(outsK, (e) => `var x${r}_${e} = vec4f();`).join(" "))}
  ${
    perRow((r) =>
      `let stats${r} = select(vec4f(1e30f, 0.0f, 0.0f, 0.0f), rowStats[lseAt + min(${query(r)}, sq - 1u)], ${
        query(r)
      } < sq);`
    )
  }
  for (var k0 = keyFrom; k0 < keyTo; k0 += ${keyTile}u) {
    ${clear("var g")}
    ${clear("var s")}
    ${dotProduct(tile, "g", dOut, v)}
    ${dotProduct(tile, "s", q, k, " * u.scale")}
    let edge = ${isEdge(features, "q0", queryTile, "k0", keyTile)};
    ${perRow((r) => each(columns / 4, (n) => gradients(r, n)).join("\n"))}
    ${mixProduct(tile, "s", k, outsK, "x", `min(${keyTile}u, keyTo - k0)`)}
  }
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
  features: AttentionFeatures,
  dBias: boolean,
): { keys: AttentionBackwardParams; queries: AttentionBackwardParams } {
  const { headDim, valueDim } = shape;
  const common = {
    headDim,
    valueDim,
    q: operandOf(storage.q, headDim, at.q),
    k: operandOf(storage.k, headDim, at.k),
    v: operandOf(storage.v, valueDim, at.v),
    dOut: denseOperand(storage.dOut, valueDim),
    grad: storage.grad,
    features: { ...features, sinks: false },
    longFirst: features.window,
  };
  // Where there are registers to spare, since few workgroups are there to hide behind one another anyway.
  const stepwise = shape.batch * shape.kvHeads * Math.ceil(shape.seqlenK / 64) < 256;
  const choose = (tiles: readonly AttentionTile[], stepwise: boolean, dBias: boolean): AttentionBackwardParams => {
    for (const tile of tiles) {
      const params = { ...common, tile, stepwise, dBias };
      if (fits(capabilities, tile, attentionBackwardMemory(params))) return params;
    }
    throw new RangeError(`[attention] no tile of head size ${headDim} fits ${capabilities.maxWorkgroupMemory} bytes`);
  };
  const { keys, queries } = backwardTiles(capabilities, shape, features.window);
  return { keys: choose(keys, stepwise, false), queries: choose(queries, false, dBias) };
}

/** Tiles to try for both kernels, best first; few workgroups are spread over smaller tiles. */
function backwardTiles(
  { subgroupSize }: AttentionCapabilities,
  { batch, heads, seqlenQ, seqlenK, headDim, valueDim }: AttentionShape,
  window: boolean,
): { keys: AttentionTile[]; queries: AttentionTile[] } {
  const tile = (tx: number, ty: number, rows: number, columns: number, depth = 16): AttentionTile => ({
    tx,
    ty,
    rows,
    columns,
    depth,
  });
  const dim = Math.max(headDim, valueDim), many = batch * heads * Math.ceil(seqlenQ / 128) >= 256;
  const last = dim <= 128 ? [tile(8, 8, 4, 4, 8), tile(8, 4, 4, 4, 8)] : [tile(16, 4, 4, 4, 8)];
  if (subgroupSize > 0 && subgroupSize < 16) { // a software adapter: the large text takes seconds to compile
    const worth = batch * heads * seqlenQ * seqlenK > 2 ** 21 && dim <= 128 ? [tile(8, 16, 8, 8, 8)] : [];
    return { keys: [...worth, ...last], queries: [...worth, ...last] };
  }
  const best = dim <= 64
    ? { keys: [tile(16, 8, 8, 4)], queries: [many && !window ? tile(8, 16, 8, 8) : tile(16, 8, 8, 4)] }
    : dim <= 96
    ? { keys: [tile(8, 16, 4, 8)], queries: [tile(8, 16, 8, 8)] }
    : dim <= 128
    ? { keys: [tile(16, 8, 8, 4)], queries: [...(many ? [tile(16, 16, 8, 8, 32)] : []), tile(16, 8, 8, 8)] }
    : dim <= 192
    ? { keys: [tile(16, 8, 4, 8)], queries: [tile(16, 8, 8, 8)] }
    : { keys: [tile(32, 4, 8, 4)], queries: [tile(32, 4, 8, 8)] };
  return { keys: [...best.keys, ...last], queries: [...best.queries, ...last] };
}

/** Workgroups and uniforms of the four kernels of a call. */
export function planAttentionBackward(
  { keys, queries }: { keys: AttentionBackwardParams; queries: AttentionBackwardParams },
  shape: AttentionShape,
  at: AttentionLayout,
  settings: AttentionSettings,
): { rows: AttentionPlan; keys: AttentionPlan; queries: AttentionPlan; sinks: AttentionPlan } {
  const { batch, seqlenQ, seqlenK, heads, kvHeads, totalQ } = shape;
  const varlen = keys.features.lengths === "varlen";
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
        ...featureUniforms(params.features, settings),
      },
    };
  };
  const rows = sequences * sq * heads, groups = Math.min(65535, Math.ceil(rows / rowsPerGroup));
  return {
    rows: {
      workgroups: [groups, groups === 0 ? 0 : Math.ceil(rows / rowsPerGroup / groups), 1],
      uniforms: { sq, heads, rows, groups },
    },
    keys: plan(keys, seqlenK, kvHeads),
    queries: plan(queries, seqlenQ, heads),
    sinks: { workgroups: [heads, 1, 1], uniforms: { batch: sequences, sq, heads } },
  };
}
