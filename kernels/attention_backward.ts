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
 *   v4  few workgroups share the walk of a tile (attention_parts.ts), their sums apart
 *       B1 H8 S2048, full                                       27.1 / 22.7 ─▶ 29.8 / 32.1
 *       causal                                                  15.9 / 15.9 ─▶ 28.5 / 29.4
 *       B1 H12 S4096, full                                      29.8 / 24.9 ─▶ 29.8 / 32.9
 *   v5  few workgroups: dP and S by eights, and D with them, since naive products of these sizes are sums of few parts. Of 240
 *       f32 cases of the grid 9 missed their bound in dq or dk, then none; in the mean dq from 0.44 of it to 0.30
 *       B1 H8 S1024, µs: D 64 219 / 119 ─▶ 225 / 136, causal 124 / 76 ─▶ 127 / 93; D 128 323 / 218 ─▶ 337 / 252
 *       keys by 8×8 a thread then: 202 / –, causal 168, D 128 833. Sums of results apart as well: dq no better
 * All together 5.8 ms, 22 TFLOP/s as counted; causal (29.3 / 30.8) 3.0 ms, 21. D 256: 30.3 / 34.0.
 * D 128: two vec4f a row of each result leave room for fewer workgroups, and causal's last ones end alone. µs, full / causal:
 *   keys     16×8 threads of 8×4: 6792 / 3741    32×4: 6527 / 3556 ◀    16×16 of 4×4: 10025 / 5322    16×8 of 4×8: 6873 / 4015
 *   queries  16×16 of 8×8, chunks of 32: 4300 ◀ / 2551    32×8 of 8×4: 4515 / 2454 ◀    16×8 of 8×4: 5167 / 2690
 *            32×4 of 8×8: 5139 / 2939    16×8 of 4×8: 4939 / 2599    16×16 of 8×4: 5899 / 3100
 * All together 10.9 / 6.06 ms, 23.7 / 21.2 TFLOP/s as counted, beside 22.2 / 21.0 of D 64 in that run.
 *
 * Against naive attention, f32 B1 H12 S4096 D64: 6.2 ms beside 4.9, causal 3.1 beside 6.2. Naive needs four products (103
 * GFLOP) and 4 GB; seven are 180 GFLOP, 2.9 ms if nothing but FMAs ran, so a factor of four is not to be had in f32.
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
  fits,
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
import { isSoftware, lanesMost, lanesTile } from "./attention_lanes.ts";
import { type AttentionOrder, gridOf, pickParts } from "./attention_parts.ts";
import { isFew, rowsPerGroup, sumsOfD } from "./attention_rows.ts";
import { fewKeys } from "../tensor/attention_options.ts";
import {
  attentionKernel,
  type AttentionSettings,
  attentionUniforms,
  featureFunctions,
  keyRow,
} from "./attention_options.ts";
import { dotProduct, mixProduct, type Sums, tileMemory, type TileRows, workgroupBytes } from "./attention_tiles.ts";
import { carefulFunctions, lowOf, powerOf } from "./attention_careful.ts";
import { each, type Kernel } from "./kernel.ts";

/** Everything that the text of the keys kernel or the queries kernel depends on. */
export interface AttentionBackwardParams extends AttentionOperands, AttentionOrder {
  readonly tile: AttentionTile;
  /** The gradient of the output: dense [B, Sq, H, Dv]. */
  readonly dOut: AttentionOperand;
  /** dq, or dk and dv: dense. */
  readonly grad: AttentionStorage;
  /** Workgroups that share a tile's walk; above 1 the results are those of parts, f32 [parts, …], to be summed. */
  readonly parts: number;
  /** A tile's sums are made apart and then added, for fewer roundings in a row and more registers. */
  readonly stepwise: boolean;
  /**
   * How scores and dP are summed: plain, both by eights, or careful, where few rows or few keys average nothing: scores in
   * two floats and powers to the last digit (see `attentionBackwardNorms`), dP by eights.
   */
  readonly sums: Sums;
  /** Queries kernel only: also write dS, f32 [B, H, Sq, Sk], where a query sees a key. */
  readonly dBias: boolean;
}

/** Vec4f that a thread owns of the longer of a key's and a value's row. */
function outsMost({ tile, headDim, valueDim }: AttentionBackwardParams): number {
  return outsOf(tile, Math.max(headDim, valueDim));
}

/** Bytes of workgroup memory that a kernel of these parameters takes. */
export function attentionBackwardMemory(params: AttentionBackwardParams): number {
  return workgroupBytes(params.tile, outsMost(params), false);
}

function nameOf(kind: "keys" | "queries", params: AttentionBackwardParams): string[] {
  const { tile, headDim, valueDim, q, k, v, dOut, grad, longFirst, parts, stepwise, sums, dBias } = params;
  return [
    `attention_backward_${kind}_d${headDim}x${valueDim}_${tileName(tile)}`,
    ...[q, k, v, dOut].map(operandName),
    grad,
    ...(longFirst ? ["long"] : []),
    ...(parts > 1 ? ["split"] : []),
    ...(stepwise ? ["stepwise"] : []),
    ...(sums === "plain" ? [] : [sums]),
    ...(dBias ? ["dbias"] : []),
  ];
}

/**
 * The keys kernel or the queries kernel: reads q, k, v, dOut, rowStats and what the features read.
 *
 * @param writes names and element types of the results
 */
export function backwardKernel(
  kind: "keys" | "queries",
  params: AttentionBackwardParams,
  writes: Record<string, string>,
  body: (params: AttentionBackwardParams) => string,
): Kernel {
  return attentionKernel(nameOf(kind, params), params, {
    reads: { dOut: operandType(params.dOut), rowStats: "vec4f" },
    writes,
    uniforms: {
      tiles: "u32",
      parts: "u32",
      batch: "u32",
      gradScale: "f32",
      ...(params.sums === "careful" ? { scaleLow: "f32" } : {}),
    },
    requires: params.tile.lanes ? ["subgroups"] : [],
  }, body);
}

/** What both kernels have before their `main`, and its first line. */
export function preamble(
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
${params.sums === "careful" ? carefulFunctions : ""}
${tileMemory(tile, outsMost(params))}
@compute @workgroup_size(${threads(tile)})
fn main(@builtin(workgroup_id) group: vec3u, @builtin(local_invocation_index) li: u32) {
  let tx = li % ${tile.tx}u; let ty = li / ${tile.tx}u;`;
}

/**
 * The probability of a score of the row whose numbers stand in `stats`. It is none above 1: an lse beyond 2^31 is rounded by so
 * much that the power alone would overflow.
 */
export function probability({ sums }: Pick<AttentionBackwardParams, "sums">, s: string, stats: string): string {
  if (sums === "careful") return `min(${powerOf(s, `${stats}.x`, `${stats}.z`)}, 1.0f)`;
  return `exp2(min(${s} - ${stats}.x - ${stats}.z, 0.0f))`;
}

/**
 * Component `x` of `dp` times `seen`, which is dropout's, less what `stats` has of its row: D, and with careful scores −dLSE by
 * itself. There the product is rounded as the rows' D was: one operation for product and difference leaves that rounding as a
 * gradient where a query has one key. The bound, which nothing is below, keeps a compiler from making them one.
 */
export function lessD(
  { sums }: Pick<AttentionBackwardParams, "sums">,
  x: string,
  seen: string,
  stats: string,
): string {
  if (sums !== "careful") return `(dp.${x}${seen} - ${stats}.y)`;
  return `(${seen === "" ? `dp.${x}` : `max(dp.${x}${seen}, -3.4e38f)`} - ${stats}.y + ${stats}.w)`;
}

/** The products of both kernels, dPᵀ or dP in `g` and Sᵀ or S in `s`, by what stands left and right of each. */
export function products(
  { tile, sums }: AttentionBackwardParams,
  g: readonly [TileRows, TileRows],
  s: readonly [TileRows, TileRows],
): string {
  const clear = (name: string): string =>
    each(tile.rows, (r) => each(tile.columns, (c) => `var ${name}${r}_${c} = 0.0f;`).join(" ")).join("\n");
  return [
    clear("g"),
    clear("s"),
    ...(sums === "careful" ? [clear(lowOf("s"))] : []),
    dotProduct(tile, "g", ...g, sumsOfD(sums)),
    dotProduct(tile, "s", ...s, sums),
  ].join("\n");
}

/** A tile's share of a result, `${to}r_e`, with `outs` vec4f a row of it. */
export function mixInto(
  { tile, stepwise }: AttentionBackwardParams,
  scores: string,
  right: TileRows,
  outs: number,
  to: string,
  count: string,
): string {
  if (!stepwise) return mixProduct(tile, scores, right, outs, to, count);
  const perRow = (f: (r: number, e: number) => string): string =>
    each(tile.rows, (r) => each(outs, (e) => f(r, e)).join(" ")).join("\n");
  return `{ ${perRow((r, e) => `var step${r}_${e} = vec4f();`)}
  ${mixProduct(tile, scores, right, outs, "step", count)}
  ${perRow((r, e) => `${to}${r}_${e} += step${r}_${e};`)} }`;
}

/** The four operands as rows of a tile, queries from `q0`, keys from `k0`, and q as scores want it. */
export function operands(
  { headDim, valueDim, dOut, features, sums }: AttentionBackwardParams,
): Record<"q" | "scaled" | "k" | "v" | "dOut", TileRows> {
  const queries = { first: "q0", limit: "sq" }, keys = { first: "k0", limit: "sk" };
  const q = { name: "q", size: headDim, start: (i: string) => `qBase + ${i} * u.qSeq`, ...queries };
  return {
    q,
    scaled: sums === "careful" ? q : { ...q, scale: " * u.scale" },
    k: { name: "k", size: headDim, start: (j) => keyRow(features, "k", j), ...keys },
    v: { name: "v", size: valueDim, start: (j) => keyRow(features, "v", j), ...keys },
    dOut: {
      name: "dOut",
      size: valueDim,
      start: (i) => `((outRow + ${i}) * u.heads + h) * ${valueDim / dOut.unit}u`,
      ...queries,
    },
  };
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
  const { headDim, valueDim } = shape, dense = features.lengths === "dense";
  const { batch, heads, kvHeads, seqlenQ, seqlenK } = shape;
  // Where there are registers to spare, since few workgroups are there to hide behind one another anyway. With many it
  // costs a tenth: keys 29.8 to 27.4 TFLOP/s for B4 H12 S2048.
  const stepwise = batch * kvHeads * Math.ceil(seqlenK / 64) < 256;
  // In 16 bits D out of a rounded result costs less than the rounding of the gradients, but where few keys make a row.
  const careful = (seqlenK <= fewKeys || storage.q === "f32" && isFew(seqlenQ, seqlenK)) && seqlenQ < 65536;
  const eights = stepwise && storage.q === "f32" && !isSoftware(capabilities.subgroupSize);
  const sums: Sums = careful ? "careful" : eights ? "eights" : "plain";
  const common = {
    ...operandsOf(shape, at, storage, operandOf),
    dOut: denseOperand(storage.dOut, valueDim),
    features: { ...features, sinks: false },
    longFirst: features.window,
    sums,
  };
  const choose = (
    tiles: readonly AttentionTile[],
    groups: number,
    [own, walked]: readonly [own: number, walked: number],
    dBias: boolean,
  ): AttentionBackwardParams => {
    for (const tile of tiles) {
      const { tx, ty, rows, columns } = tile, workgroups = groups * Math.ceil(own / (ty * rows));
      const parts = dense && features.range === "none"
        ? pickParts(
          capabilities,
          tile,
          workgroups,
          walked / (tx * columns),
          !features.window,
          Math.max(headDim, valueDim) > 64,
        )
        : 1;
      const step = stepwise && (careful || rows * columns <= 32), grad = parts > 1 ? "f32" : storage.grad;
      const params = { ...common, tile, parts, grad, stepwise: step, dBias };
      if (fits(capabilities, tile, attentionBackwardMemory(params))) return params;
    }
    throw new RangeError(`[attention] no tile of head size ${headDim} fits ${capabilities.maxWorkgroupMemory} bytes`);
  };
  const { keys, queries } = backwardTiles(capabilities, shape, features, sums);
  return {
    keys: choose(keys, batch * kvHeads, [seqlenK, seqlenQ], false),
    queries: choose(queries, batch * heads, [seqlenQ, seqlenK], dBias),
  };
}

/** Tiles to try for both kernels, best first; few workgroups are spread over smaller tiles. */
function backwardTiles(
  { subgroupSize }: AttentionCapabilities,
  { batch, heads, seqlenQ, seqlenK, headDim, valueDim }: AttentionShape,
  { window, dropout }: AttentionFeatures,
  sums: Sums,
): { keys: AttentionTile[]; queries: AttentionTile[] } {
  const dim = Math.max(headDim, valueDim), many = batch * heads * Math.ceil(seqlenQ / 128) >= 256;
  const last = dim <= 128 ? [tileOf(8, 8, 4, 4, 8), tileOf(8, 4, 4, 4, 8)] : [tileOf(16, 4, 4, 4, 8)];
  if (sums === "careful") return { keys: last, queries: last };
  if (isSoftware(subgroupSize)) { // a large text takes seconds to compile
    const worth = batch * heads * seqlenQ * seqlenK > 2 ** 21 && dim <= 128;
    const large = dim <= lanesMost && !dropout ? lanesTile(subgroupSize) : tileOf(8, 16, 8, 8, 8);
    const tiles = worth ? [large, ...last] : last;
    return { keys: tiles, queries: tiles };
  }
  const best = dim <= 64
    ? { keys: [tileOf(16, 8, 8, 4)], queries: [seqlenQ > 64 && !window ? tileOf(8, 16, 8, 8) : tileOf(16, 8, 8, 4)] }
    : dim <= 96
    ? { keys: [tileOf(8, 16, 4, 8)], queries: [tileOf(8, 16, 8, 8)] }
    : dim <= 128
    ? {
      keys: [...(many ? [tileOf(32, 4, 8, 4)] : []), tileOf(16, 8, 8, 4)],
      queries: [...(many ? [window ? tileOf(32, 8, 8, 4) : tileOf(16, 16, 8, 8, 32)] : []), tileOf(16, 8, 8, 8)],
    }
    : dim <= 192
    ? { keys: [tileOf(16, 8, 4, 8)], queries: [tileOf(16, 8, 8, 8)] }
    : { keys: [tileOf(32, 4, 8, 4)], queries: [tileOf(32, 4, 8, 8)] };
  return { keys: [...best.keys, ...last], queries: [...best.queries, ...last] };
}

/** Workgroups and uniforms of the kernels of a call. */
export function planAttentionBackward(
  { keys, queries }: { keys: AttentionBackwardParams; queries: AttentionBackwardParams },
  shape: AttentionShape,
  at: AttentionLayout,
  settings: AttentionSettings,
): Record<"rows" | "norms" | "keys" | "queries" | "sinks", AttentionPlan> {
  const { batch, seqlenQ, seqlenK, heads, kvHeads, totalQ } = shape;
  const varlen = keys.features.lengths === "varlen";
  const sq = varlen ? totalQ ?? 0 : seqlenQ, sequences = varlen ? 1 : batch;
  const plan = (params: AttentionBackwardParams, seqlen: number, heads: number): AttentionPlan => {
    const tiles = Math.ceil(seqlen / (params.tile.ty * params.tile.rows));
    return {
      workgroups: gridOf(params, tiles, heads, batch),
      uniforms: {
        ...attentionUniforms(params, shape, at, settings),
        tiles,
        parts: params.parts,
        batch,
        gradScale: settings.softmaxScale,
      },
    };
  };
  const rows = sequences * sq * heads, groups = Math.min(65535, Math.ceil(rows / rowsPerGroup));
  return {
    rows: {
      workgroups: [groups, groups === 0 ? 0 : Math.ceil(rows / rowsPerGroup / groups), 1],
      uniforms: { sq, heads, rows, groups },
    },
    norms: { ...plan(queries, seqlenQ, heads), workgroups: [seqlenQ, heads, batch] },
    keys: plan(keys, seqlenK, kvHeads),
    queries: plan(queries, seqlenQ, heads),
    sinks: { workgroups: [heads, 1, 1], uniforms: { batch: sequences, sq, heads } },
  };
}
