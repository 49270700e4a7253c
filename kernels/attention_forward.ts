/**
 * Flash attention, forward: out = softmax(scale·q·kᵀ + …)·v and lse, without the scores ever leaving the workgroup.
 *
 *                 keys ─▶ tiles of tx·columns, one after another
 *   queries   ┌────────────┐
 *      │      │ q·kᵀ       │  scores in registers ─▶ running max m, sum l ─▶ p = exp2(s − m) ─▶ workgroup memory
 *      ▼      │  (dotChunk)│
 *   one tile  └────────────┘  out·exp2(m_old − m) + p·v (mixChunk), in registers; divided by l once, at the end
 *   a workgroup
 *
 * A tile of keys that no query of the tile can see is not loaded; one that all of them see skips the mask behind one
 * uniform branch.
 */
import {
  type AttentionCapabilities,
  type AttentionOperand,
  type AttentionOptions,
  type AttentionStorage,
  type AttentionStrides,
  type AttentionTile,
  chunksPerStage,
  dotChunk,
  dotLoad,
  floor,
  isVectorOperand,
  laneWidth,
  masked,
  mixChunk,
  mixLoad,
  operandName,
  operandReader,
  operandType,
  operandWriter,
  optionsName,
  packBf16,
  reduceRows,
  rowScratch,
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
  changesScores,
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
  scoreText,
  visible,
  workgroupBytes,
} from "./attention_options.ts";
import { each, type Kernel, kernel } from "./kernel.ts";

/** Everything that the text of the forward kernel depends on. */
export interface AttentionForwardParams {
  readonly tile: AttentionTile;
  readonly headDim: number;
  readonly valueDim: number;
  readonly q: AttentionOperand;
  readonly k: AttentionOperand;
  readonly v: AttentionOperand;
  readonly out: AttentionOperand;
  readonly options: AttentionOptions;
  readonly subgroups: boolean;
  /** Keep the query tile in workgroup memory instead of loading it again for every tile of keys. */
  readonly resident: boolean;
  /** Put the whole tile of probabilities into workgroup memory at once instead of a stage at a time. */
  readonly whole: boolean;
  /** Heads vary fastest and the last query tiles start first, so that causal's long tiles do not end the dispatch. */
  readonly lastFirst: boolean;
}

/** Lane rows of workgroup memory: where each part starts. */
function layout({ tile, headDim, valueDim, resident, whole }: AttentionForwardParams) {
  const { tx, ty, columns, depth, stage } = tile;
  const outs = Math.ceil(valueDim / (4 * tx));
  const dims = Math.ceil(headDim / depth), keys = tx * columns / depth;
  const dotStage = chunksPerStage(dims, stage), mixStage = chunksPerStage(keys, stage);
  const scores = resident ? dims * ty : 0;
  const staged = scores + (whole ? keys * ty : 0);
  const left = staged + dotStage * tx, leftScores = staged + mixStage * tx;
  const rows = Math.max(left + (resident ? 0 : dotStage * ty), leftScores + (whole ? 0 : mixStage * ty));
  return { outs, dims, keys, dotStage, mixStage, scores, staged, left, leftScores, rows, width: laneWidth(tile, outs) };
}

/** Bytes of workgroup memory that the kernel of these parameters takes. */
export function attentionForwardMemory(params: AttentionForwardParams): number {
  const { rows, width } = layout(params);
  return workgroupBytes(params.tile, rows, width, params.subgroups);
}

/**
 * The forward kernel. Reads q, k, v and what the options read, sinks last; writes out, dense [B, Sq, H, Dv], and lse,
 * the bits of f32 [B, H, Sq], −∞ among them (variable length: [Tq, H, Dv] and [H, Tq]).
 */
export function attentionForward(params: AttentionForwardParams): Kernel {
  const { tile, headDim, valueDim, q, k, v, out, options, subgroups, resident, whole, lastFirst } = params;
  const name = [
    `attention_forward_d${headDim}x${valueDim}_${tileName(tile)}`,
    ...[q, k, v, out].map(operandName),
    ...(resident ? ["resident"] : []),
    ...(whole ? ["whole"] : []),
    ...(lastFirst ? ["last"] : []),
    ...(subgroups ? ["subgroups"] : []),
  ].join("_") + optionsName(options);
  return kernel(name, {
    reads: {
      q: operandType(q),
      k: operandType(k),
      v: operandType(v),
      ...optionReads(options),
      ...(options.sinks ? { sinks: "f32" } : {}),
    },
    writes: { out: operandType(out), lse: "u32" },
    uniforms: {
      sq: "u32",
      sk: "u32",
      heads: "u32",
      group: "u32",
      tiles: "u32",
      scale: "f32",
      ...strideFields("q"),
      ...strideFields("k"),
      ...strideFields("v"),
      ...optionFields(options),
    },
    requires: subgroups ? ["subgroups"] : [],
  }, () => body(params));
}

function body(params: AttentionForwardParams): string {
  const { tile, headDim, valueDim, q, k, v, out, options, subgroups, resident, whole, lastFirst } = params;
  const { tx, ty, rows, columns, depth } = tile;
  const { outs, dims, keys, dotStage, mixStage, scores, staged, left, leftScores, rows: laneRows, width } = layout(
    params,
  );
  const queryTile = ty * rows, keyTile = tx * columns;
  const value4 = Math.ceil(valueDim / 4);
  const row = (r: number): string => `(q0 + ty * ${rows}u + ${r}u)`;
  const column = (c: number): string => `(k0 + (tx + ${(c >> 2) * tx}u) * 4u + ${c & 3}u)`;
  const cells = (f: (r: number, c: number) => string): string[] =>
    each(rows, (r) => each(columns, (c) => f(r, c)).join(" "));
  const perRow = (f: (r: number) => string): string => each(rows, f).join("\n");

  const queries: TileRows = {
    name: "q",
    size: headDim,
    start: (i) => `qBase + ${i} * u.qSeq`,
    first: "q0",
    limit: "sq",
  };
  const keysOf = (name: "k" | "v", size: number): TileRows => ({
    name,
    size,
    start: (j) => keyRow(options, name, j),
    first: "k0",
    limit: "sk",
  });
  const loadQ = (chunk: string) => (r: string, d: string): string => `${dotLoad(tile, queries, chunk)(r, d)} * u.scale`;
  const loadK = (chunk: string) => dotLoad(tile, keysOf("k", headDim), chunk);
  const loadV = (chunk: string) => mixLoad(tile, keysOf("v", valueDim), chunk);
  const probability = (r: number, group: number): string =>
    `vec4f(${each(4, (c) => `s${r}_${group * 4 + c}`).join(", ")})`;

  return `
${operandReader("q", q, headDim)}
${operandReader("k", k, headDim)}
${operandReader("v", v, valueDim)}
${out.storage === "bf16" ? packBf16 : ""}
${operandWriter("out", out, valueDim)}
${optionFunctions(options)}
var<workgroup> tile: array<array<vec4f, ${width}>, ${laneRows}>;
${rowScratch(tile, subgroups)}
@compute @workgroup_size(${threads(tile)})
fn main(@builtin(workgroup_id) group: vec3u, @builtin(local_invocation_index) li: u32) {
  let tx = li % ${tx}u; let ty = li / ${tx}u;
  ${
    lastFirst
      ? "let h = group.x; let b = group.y; let q0 = (u.tiles - 1u - group.z)"
      : "let h = group.y; let b = group.z; let q0 = group.x"
  } * ${queryTile}u;
  let g = h / u.group;
  ${locateBatch(options)}
  ${locateHead(options)}
  if (q0 >= sq) { return; }
  ${keyRange(options, "q0", queryTile, keyTile)}
  ${
    perRow((r) => `var m${r} = ${floor}; var l${r} = 0.0f; ${each(outs, (e) => `var o${r}_${e} = vec4f();`).join(" ")}`)
  }
  ${
    resident
      ? `for (var z = 0u; z < ${dims}u; z++) { ${
        stages(tile, [stageDot(tile, "rows", "q_", `z * ${ty}u`, loadQ("z"))])
      } }`
      : ""
  }
  for (var k0 = keyFrom; k0 < keyTo; k0 += ${keyTile}u) {
    ${cells((r, c) => `var s${r}_${c} = 0.0f;`).join("\n")}
    for (var d0 = 0u; d0 < ${dims}u; d0 += ${dotStage}u) {
      workgroupBarrier();
      ${
    stages(
      tile,
      each(dotStage, String).flatMap((z) => [
        ...(resident ? [] : [stageDot(tile, "rows", `q${z}_`, `${left + Number(z) * ty}u`, loadQ(`(d0 + ${z}u)`))]),
        stageDot(tile, "columns", `k${z}_`, `${staged + Number(z) * tx}u`, loadK(`(d0 + ${z}u)`)),
      ]),
    )
  }
      workgroupBarrier();
      for (var z = 0u; z < ${dotStage}u; z++) {
        let left = ${resident ? `(d0 + z) * ${ty}u` : `${left}u + z * ${ty}u`} + ty;
        let right = ${staged}u + z * ${tx}u + tx;
        ${dotChunk(tile, "s", "left", "right").join("\n")}
      }
    }
    ${
    changesScores(options)
      ? cells((r, c) => `{ ${scoreText(options, `s${r}_${c}`, row(r), column(c))} }`).join("\n")
      : ""
  }
    if (${isEdge(options, "q0", queryTile, "k0", keyTile)}) {
      ${
    cells((r, c) => `s${r}_${c} = select(${masked}, s${r}_${c}, ${visible(options, row(r), column(c))});`).join("\n")
  }
    }
    ${perRow((r) => `var x${r} = ${each(columns, (c) => `s${r}_${c}`).reduce((a, b) => `max(${a}, ${b})`)};`)}
    ${reduceRows(tile, subgroups, each(rows, (r) => `x${r}`), (a, b) => `max(${a}, ${b})`).join("\n")}
    ${
    perRow((r) =>
      [
        `x${r} = max(m${r}, x${r}); let f${r} = exp2(m${r} - x${r}); m${r} = x${r}; l${r} *= f${r};`,
        ...each(outs, (e) => `o${r}_${e} *= f${r};`),
        ...each(columns, (c) => `s${r}_${c} = exp2(s${r}_${c} - m${r}); l${r} += s${r}_${c};`),
      ].join(" ")
    )
  }
    ${
    options.dropout
      ? each(rows, (r) =>
        each(columns / 4, (n) =>
          `{ ${dropoutText(row(r), `(k0 / 4u + tx + ${n * tx}u)`)} ${
            each(4, (c) =>
              `s${r}_${n * 4 + c} *= kept[${c}];`).join(" ")
          } }`).join("\n"))
        .join("\n")
      : ""
  }
    ${whole ? stageScores(tile, probability, `${scores}u`).join("\n") : ""}
    let chunks = min(${keys}u, (keyTo - k0 + ${depth - 1}u) / ${depth}u);
    for (var c0 = 0u; c0 < chunks; c0 += ${mixStage}u) {
      workgroupBarrier();
      ${
    stages(
      tile,
      each(mixStage, String).map((z) =>
        stageMix(tile, outs, value4, `v${z}_`, `${staged + Number(z) * tx}u`, loadV(`(c0 + ${z}u)`))
      ),
    )
  }
      ${whole ? "" : stageScores(tile, probability, `${leftScores}u`, { first: "c0", count: mixStage }).join("\n")}
      workgroupBarrier();
      for (var z = 0u; z < ${mixStage}u; z++) {
        let left = ${whole ? `${scores}u + (c0 + z) * ${ty}u` : `${leftScores}u + z * ${ty}u`} + ty;
        let right = ${staged}u + z * ${tx}u + tx;
        ${mixChunk(tile, outs, "o", "left", "right").join("\n")}
      }
    }
  }
  ${reduceRows(tile, subgroups, each(rows, (r) => `l${r}`), (a, b) => `${a} + ${b}`).join("\n")}
  ${
    perRow((r) =>
      [
        `if (${row(r)} < sq) {`,
        options.sinks
          ? `let sink = sinks[h] * 1.4426950408889634f; let top = max(m${r}, sink); let drop = exp2(m${r} - top);
          let sum = select(0.0f, l${r} * drop + exp2(sink - top), l${r} > 0.0f);
          let by = select(0.0f, drop${options.dropout ? " * u.keepScale" : ""} / sum, sum > 0.0f);`
          : `let top = m${r}; let sum = l${r};
          let by = select(0.0f, ${options.dropout ? "u.keepScale" : "1.0f"} / sum, sum > 0.0f);`,
        `let at = ((outRow + ${row(r)}) * u.heads + h) * ${valueDim}u;`,
        ...each(outs, (e) => `out_put(at, tx + ${e * tx}u, o${r}_${e} * by);`),
        `if (tx == 0u) { lse[lseAt + ${
          row(r)
        }] = select(0xff800000u, bitcast<u32>((top + log2(sum)) * 0.6931471805599453f), sum > 0.0f); }`,
        "}",
      ].join("\n")
    )
  }
}`;
}

/** What the choice of a tile depends on. */
export interface AttentionShape {
  readonly batch: number;
  readonly seqlenQ: number;
  readonly seqlenK: number;
  readonly heads: number;
  readonly kvHeads: number;
  readonly headDim: number;
  readonly valueDim: number;
  /** Rows of all queries together when lengths vary; batch·seqlenQ otherwise. */
  readonly totalQ?: number;
}

/** How a call's operands lie in memory. */
export interface AttentionLayout {
  readonly q: AttentionStrides;
  readonly k: AttentionStrides;
  readonly v: AttentionStrides;
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
  options: AttentionOptions,
): AttentionForwardParams {
  const { headDim, valueDim } = shape;
  const operand = (name: "q" | "k" | "v", size: number): AttentionOperand => ({
    storage: storage[name],
    vector: isVectorOperand(size, at[name]),
  });
  const common = {
    headDim,
    valueDim,
    q: operand("q", headDim),
    k: operand("k", headDim),
    v: operand("v", valueDim),
    out: { storage: storage.out, vector: valueDim % 4 === 0 },
    options,
    lastFirst: options.window,
  };
  for (const { resident, whole, ...tile } of forwardTiles(valueDim)) {
    const subgroups = capabilities.subgroupSize >= tile.tx;
    const params = { ...common, tile, subgroups, resident, whole };
    const fits = attentionForwardMemory(params) <= capabilities.workgroupMemory &&
      threads(tile) <= capabilities.workgroupThreads;
    if (fits) return params;
  }
  throw new RangeError(`[attention] no tile of head size ${headDim} fits ${capabilities.workgroupMemory} bytes`);
}

/** Tiles to try, best first. */
function forwardTiles(valueDim: number): (AttentionTile & { resident: boolean; whole: boolean })[] {
  const tx = valueDim <= 96 ? 8 : valueDim <= 192 ? 16 : 32;
  return [
    { tx, ty: 8, rows: 8, columns: 8, depth: 16, stage: 2, batch: 8, resident: true, whole: true },
    { tx, ty: 8, rows: 8, columns: 8, depth: 16, stage: 2, batch: 8, resident: false, whole: false },
    { tx, ty: 8, rows: 8, columns: 8, depth: 16, stage: 1, batch: 8, resident: false, whole: false },
    { tx, ty: 8, rows: 8, columns: 8, depth: 8, stage: 1, batch: 8, resident: false, whole: false },
    { tx, ty: 4, rows: 4, columns: 4, depth: 8, stage: 1, batch: 8, resident: false, whole: false },
  ];
}

/** What a dispatch of the kernel needs: workgroups and the values of its uniforms. */
export interface AttentionPlan {
  readonly workgroups: readonly [x: number, y: number, z: number];
  readonly uniforms: Readonly<Record<string, number>>;
}

/** Workgroups and uniforms of a call. */
export function planAttentionForward(
  params: AttentionForwardParams,
  shape: AttentionShape,
  at: AttentionLayout,
  settings: AttentionSettings,
): AttentionPlan {
  const { batch, seqlenQ, seqlenK, heads, kvHeads, totalQ } = shape;
  const tiles = Math.ceil(seqlenQ / (params.tile.ty * params.tile.rows));
  return {
    workgroups: params.lastFirst ? [heads, batch, tiles] : [tiles, heads, batch],
    uniforms: {
      sq: params.options.lengths === "varlen" ? totalQ ?? 0 : seqlenQ,
      sk: seqlenK,
      heads,
      group: heads / kvHeads,
      tiles,
      ...strideUniforms("q", params.q, at.q),
      ...strideUniforms("k", params.k, at.k),
      ...strideUniforms("v", params.v, at.v),
      ...optionUniforms(params.options, settings),
    },
  };
}
