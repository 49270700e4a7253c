/**
 * Attention of few queries over many keys: decoding. The query heads of a group (times the queries) are the rows of one
 * tile, so that every key is read once for all of them, and the keys are split over workgroups.
 *
 *   workgroup = (key head, batch row, part of the keys);  thread = (lane, key group)
 *
 *   keys ──▶ groups of `lanes` threads take `unroll` keys each a step, 16 bytes a load, 8 numbers a lane
 *            s = q·k summed over the lanes ─▶ online softmax in each group ─▶ out += p·v, 8 numbers a lane
 *   end  ──▶ groups are joined through workgroup memory; parts by `attentionCombine`, by lse
 *
 * No key passes through workgroup memory: a lane holds its numbers of q and out in registers for all rows.
 *
 * Floor: the cache once, at 4.07 TB/s on an H200: f16 B1 H32 Hk8 D64, 131,072 keys, 268 MB, 66 µs.
 * Versions, TB/s with one batch row / B64 with 1,024 keys each, the combining kernel included:
 *   v1  groups joined row by row, each thread scanning them; 128 threads, 128 parts / 2     2.47 / 1.78
 *       64 threads                                                                          2.93 / 2.26
 *   v2  all rows joined between two barriers; 128 threads, 128 parts / 1                    2.91 / 3.06  ◀
 *       64 parts                                                                            3.16         ◀
 *       64 threads                                                                          2.07 / 2.21
 *       rows joined two at a time: 3.07 / 2.89
 *   2 or 8 keys a step instead of 4: 2.0 to 2.4; 16 lanes a key 1.1, 4 lanes 2.6; 8 bytes a load 2.4
 * f32: 3.4. D 128: 2.7. Group of 1: 3.7; of 8: 1.6, bound by arithmetic.
 *
 * Short texts, µs with one batch row from a cache of lengths, the combining kernel included:
 *   24 keys of 128   6.2    100 of 128   6.8    (one dispatch; 256 threads 13.2, 512 threads 21.6: the join walks the groups)
 *   100 of 1,024     9.5 in 8 parts, 7.1 in one     1,000 of 1,024   10.4 in 8, 10.0 in 16, 12.0 in 4, 18.2 in one
 *   of 32,768, 64 parts: 24 keys 12.0, 1,000 12.2, 4,000 13.6, 32,000 31.5 (32 parts 40.6, 128 parts 38.2)
 *   the same in pages of 16, a page looked up when its keys are wanted: 100 keys 13.1, 32,000 43.8
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
  denseOperand,
  endSoftmax,
  floor,
  isEven,
  lseBits,
  operandName,
  operandOf,
  operandReader,
  operandType,
  operandWriter,
  unpack4,
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
  locateKeys,
  locateScores,
  locateSeed,
  pageOf,
  scoreText,
  visible,
} from "./attention_options.ts";
import { carefulFunctions, joinText, lowOf, partsText } from "./attention_careful.ts";
import { reduceRows, rowScratch } from "./attention_tiles.ts";
import { components, each, type Kernel } from "./kernel.ts";

/** Everything that the text of the decoding kernel depends on. */
export interface AttentionDecodeParams extends AttentionOperands {
  readonly out: AttentionOperand;
  readonly subgroups: boolean;
  /** Rows of a tile: query heads of one group, times queries. */
  readonly rows: number;
  /** Threads that share a key; a power of two. */
  readonly lanes: number;
  /** Keys that are under way at once in a workgroup. */
  readonly groups: number;
  /** Keys of a group in one step. */
  readonly unroll: number;
  /** The keys are split: out and lse are those of parts, f32. */
  readonly split: boolean;
  /** Scores in two floats, of f32 calls over few keys: see attention_careful.ts. */
  readonly careful: boolean;
}

/** Vec4f that a lane owns of a row of `size` numbers: pairs of them when loads are eight wide. */
function pieces({ lanes }: AttentionDecodeParams, { unit }: AttentionOperand, size: number): number {
  return unit === 8 ? 2 * Math.ceil(size / (8 * lanes)) : Math.ceil(size / (4 * lanes));
}

/** Which vec4f of a row piece `e` of a lane is. */
function pieceAt({ lanes }: AttentionDecodeParams, { unit }: AttentionOperand, lane: string, e: number): string {
  return unit === 8 ? `(2u * (${lane} + ${(e >> 1) * lanes}u) + ${e & 1}u)` : `(${lane} + ${e * lanes}u)`;
}

/** Rows whose results are joined between two barriers: as many as 8 KiB hold. */
function rowsAtOnce(params: AttentionDecodeParams): number {
  const { v, valueDim, rows, lanes, groups } = params, bytes = lanes * groups * pieces(params, v, valueDim) * 16;
  let n = rows;
  while (n > 1 && n * bytes > 8192) n /= 2;
  return n;
}

/** Bytes of workgroup memory that the kernel of these parameters takes. */
export function attentionDecodeMemory(params: AttentionDecodeParams): number {
  const { v, valueDim, rows, lanes, groups, unroll, subgroups, careful } = params;
  const outs = rowsAtOnce(params) * pieces(params, v, valueDim) * 16, scratch = rows * unroll * (careful ? 8 : 4);
  return groups * rows * 8 + lanes * groups * (outs + (subgroups ? 0 : scratch));
}

/**
 * The decoding kernel. Reads q, k, v and what the features read, sinks last when the keys are not split; writes out,
 * dense [B, Sq, H, Dv], and the bits of lse [B, H, Sq]; of parts out f32 [parts, B, Sq, H, Dv] and lse [parts, B, H, Sq].
 */
export function attentionDecode(params: AttentionDecodeParams): Kernel {
  const { headDim, valueDim, q, k, v, out, subgroups, rows, lanes, groups, unroll, split, careful } = params;
  const name = [
    `attention_decode_d${headDim}x${valueDim}_r${rows}_l${lanes}x${groups}_u${unroll}`,
    ...[q, k, v, out].map(operandName),
    ...(split ? ["split"] : []),
    ...(careful ? ["careful"] : []),
    ...(subgroups ? ["subgroups"] : []),
  ];
  return attentionKernel(name, params, {
    writes: { out: operandType(out), lse: "u32" },
    uniforms: { parts: "u32", batch: "u32", ...(careful ? { scaleLow: "f32" } : {}) },
    requires: subgroups ? ["subgroups"] : [],
  }, body);
}

/** Reads piece `e` of the row at `row` as vec4f, into names that start with `to`; nothing outside the row. */
function loadPieces(
  params: AttentionDecodeParams,
  name: "q" | "k" | "v",
  operand: AttentionOperand,
  size: number,
  row: string,
  to: string,
  count: number,
): string[] {
  const { lanes } = params, size4 = Math.ceil(size / 4);
  if (operand.unit !== 8) {
    return each(count, (e) => {
      // q is spread over the lanes as the keys are.
      const d4 = pieceAt(params, name === "q" ? params.k : operand, "tx", e);
      const inside = count * lanes === size4;
      const read = `${name}_at(${row}, ${inside ? d4 : `min(${d4}, ${size4 - 1}u)`})`;
      return `let ${to}${e} = ${inside ? read : `select(vec4f(), ${read}, ${d4} < ${size4}u)`};`;
    });
  }
  return each(count / 2, (n) => {
    const d8 = `(tx + ${n * lanes}u)`, inside = count * lanes === size4;
    const [a, b] = [
      `${to}w${n}`,
      inside ? "" : ` & select(vec4u(), vec4u(0xffffffffu), vec4<bool>(${d8} < ${size / 8}u))`,
    ];
    const word = `let ${a} = ${name}[${row} + ${inside ? d8 : `min(${d8}, ${size / 8 - 1}u)`}]${b};`;
    const { storage } = operand;
    return `${word} let ${to}${2 * n} = ${unpack4(storage, `${a}.x`, `${a}.y`)}; ` +
      `let ${to}${2 * n + 1} = ${unpack4(storage, `${a}.z`, `${a}.w`)};`;
  });
}

function body(params: AttentionDecodeParams): string {
  const { headDim, valueDim, q, k, v, out, features, subgroups, rows, lanes, groups, unroll, split, careful } = params;
  const all = lanes * groups, step = groups * unroll;
  const keyPieces = pieces(params, k, headDim), valuePieces = pieces(params, v, valueDim);
  const perRow = (f: (r: number) => string): string => each(rows, f).join("\n");
  const perKey = (f: (n: number) => string): string => each(unroll, f).join("\n");
  const cells = (f: (r: number, n: number) => string): string => perRow((r) => each(unroll, (n) => f(r, n)).join(" "));
  // A step's pages are looked up while the step before loads its keys.
  const pages = (f: (n: number) => string): string => features.paged ? perKey(f) : "";
  const key = (n: number): string => `(k0 + ${n * groups}u + ty)`;
  const score = (r: number, n: number): string => `s${r}_${n}`;
  const zeroed = features.leftpad, atOnce = rowsAtOnce(params);

  const dots = cells((r, n) =>
    `var ${score(r, n)} = 0.0f; ${
      each(keyPieces, (e) =>
        components.map((x) =>
          `${score(r, n)} = fma(q${r}_${e}.${x}, k${n}_${e}.${x}, ${score(r, n)});`
        ).join(" "))
        .join(" ")
    }`
  );
  const carefulDots = [
    perKey((n) => each(keyPieces, (e) => partsText(`k${n}_${e}`, "vec4f")).join(" ")),
    cells((r, n) =>
      [
        `var ${score(r, n)} = 0.0f; var ${lowOf(score(r, n))} = 0.0f;`,
        ...each(keyPieces, (e) =>
          components.map((x) => joinText(score(r, n), `q${r}_${e}.${x}`, `k${n}_${e}.${x}`)).join("\n")),
        `var pair${r}_${n} = vec2f(${score(r, n)}, ${lowOf(score(r, n))});`,
      ].join("\n")
    ),
  ].join("\n");
  const allCells = (f: (r: number, n: number) => string): string[] =>
    each(rows * unroll, (c) => f(Math.floor(c / unroll), c % unroll));
  const products = careful
    ? [
      carefulDots,
      reduceRows(lanes, subgroups, allCells((r, n) => `pair${r}_${n}`), (a, b) => `ft_joined(${a}, ${b})`),
      cells((r, n) => `${score(r, n)} = pair${r}_${n}.x; ${lowOf(score(r, n))} = pair${r}_${n}.y;`),
    ].join("\n")
    : `${dots}
    ${reduceRows(lanes, subgroups, allCells(score), (a, b) => `${a} + ${b}`)}`;
  const mix = perRow((r) =>
    each(
      valuePieces,
      (e) => each(unroll, (n) => `o${r}_${e} = fma(vec4f(${score(r, n)}), v${n}_${e}, o${r}_${e});`).join(" "),
    ).join("\n")
  );

  return `
${operandReader("q", q, headDim)}
${k.unit === 8 ? "" : operandReader("k", k, headDim)}
${v.unit === 8 ? "" : operandReader("v", v, valueDim)}
${writerFunctions(out.storage)}
${operandWriter("out", out, valueDim)}
${featureFunctions(features)}
${careful ? carefulFunctions : ""}
var<workgroup> state: array<vec2f, ${groups * rows}>;
var<workgroup> outs: array<vec4f, ${atOnce * all * valuePieces}>;
${rowScratch(all, rows * unroll, subgroups, careful ? "vec2f" : "f32")}
@compute @workgroup_size(${all})
fn main(@builtin(workgroup_id) group: vec3u, @builtin(local_invocation_index) li: u32) {
  let tx = li % ${lanes}u; let ty = li / ${lanes}u;
  let kvHeads = u.heads / u.group;
  let g = group.x % kvHeads; let firstRow = (group.x / kvHeads) * ${rows}u; let b = group.y; let part = group.z;
  ${locateBatch(features)}
  ${locateKeys(features)}
  ${locateSeed(features)}
  let rowCount = u.group * sq;
  let q0 = firstRow / u.group;
  ${
    perRow((r) =>
      [
        `let row${r} = min(firstRow + ${r}u, rowCount - 1u);`,
        `let i${r} = row${r} / u.group; let h${r} = g * u.group + row${r} % u.group;`,
        `let qRow${r} = u.qOffset + b * u.qBatch + i${r} * u.qSeq + h${r} * u.qHead;`,
        ...loadPieces(params, "q", q, headDim, `qRow${r}`, `raw${r}_`, keyPieces),
        ...each(keyPieces, (e) => {
          const q = `q${r}_${e}`, raw = `raw${r}_${e}`;
          return careful ? `let ${q} = ${raw}; ${partsText(q, "vec4f")}` : `let ${q} = ${raw} * u.scale;`;
        }),
        locateScores(features, `h${r}`, String(r)),
        `var m${r} = ${floor}; var l${r} = 0.0f;`,
        ...each(valuePieces, (e) => `var o${r}_${e} = vec4f();`),
      ].join(" ")
    )
  }
  ${keyRange(features, "q0", rows, step)}
  let share = (max(keyTo, keyFrom) - keyFrom + u.parts * ${step}u - 1u) / (u.parts * ${step}u) * ${step}u;
  let end = min(keyTo, keyFrom + (part + 1u) * share);
  let start = keyFrom + part * share;
  ${pages((n) => `var page${n} = ${pageOf(`min(start + ${n * groups}u + ty, sk - 1u)`)};`)}
  for (var k0 = start; k0 < end; k0 += ${step}u) {
    ${perKey((n) => `let j${n} = min(${key(n)}, sk - 1u);`)}
    ${
    perKey((n) =>
      loadPieces(params, "k", k, headDim, keyRow(features, "k", `j${n}`, `page${n}`), `k${n}_`, keyPieces).join(" ")
    )
  }
    ${
    perKey((n) =>
      loadPieces(
        params,
        "v",
        v,
        valueDim,
        keyRow(features, "v", `j${n}`, `page${n}`),
        zeroed ? `w${n}_` : `v${n}_`,
        valuePieces,
      )
        .join(" ")
    )
  }
    ${pages((n) => `page${n} = ${pageOf(`min(${key(n)} + ${step}u, sk - 1u)`)};`)}
    ${
    zeroed
      ? perKey((n) =>
        each(valuePieces, (e) => `let v${n}_${e} = select(vec4f(), w${n}_${e}, ${key(n)} >= keyFirst);`).join(" ")
      )
      : ""
  }
    ${products}
    ${
    careful || changesScores(features)
      ? cells((r, n) => `{ ${scoreText(features, score(r, n), `i${r}`, key(n), String(r), careful)} }`)
      : ""
  }
    if (${isEdge(features, "q0", rows, "k0", step)}) {
      ${cells((r, n) => hiddenText(score(r, n), visible(features, `i${r}`, key(n)), careful))}
    }
    ${
    perRow((r) =>
      [
        `let top${r} = ${each(unroll, (n) => score(r, n)).reduce((a, b) => `max(${a}, ${b})`, `m${r}`)};`,
        `let f${r} = exp2(m${r} - top${r}); m${r} = top${r}; l${r} *= f${r};`,
        ...each(valuePieces, (e) => `o${r}_${e} *= f${r};`),
        ...each(unroll, (n) => {
          const s = score(r, n), low = careful ? ` + ${lowOf(s)}` : "";
          return `${s} = exp2(${s} - m${r}${low}); l${r} += ${s};`;
        }),
      ].join(" ")
    )
  }
    ${
    features.dropout
      ? cells((r, n) =>
        `{ ${dropoutText(`i${r}`, `${key(n)} >> 2u`, `h${r}`)} ${score(r, n)} *= kept[${key(n)} & 3u]; }`
      )
      : ""
  }
    ${mix}
  }
  if (tx == 0u) { ${perRow((r) => `state[ty * ${rows}u + ${r}u] = vec2f(m${r}, l${r});`)} }
  ${
    each(rows / atOnce, (pass) =>
      [
        pass === 0 ? "" : "workgroupBarrier();",
        ...each(atOnce, (r) =>
          each(valuePieces, (e) => `outs[${(r * valuePieces + e) * all}u + li] = o${pass * atOnce + r}_${e};`).join(
            " ",
          )),
        "workgroupBarrier();",
        finish(pass * atOnce),
      ].join("\n")).join("\n")
  }
}`;

  /** Joins the groups' results of the rows from `first` on: a thread one vec4f of one row. */
  function finish(first: number): string {
    const place = split ? "part * u.batch * sq + outRow + i" : "outRow + i";
    const lsePlace = `(${split ? "part * u.batch + b" : "b"}) * u.heads * sq + h * sq + i`;
    const width = lanes * valuePieces;
    return `for (var x = li; x < ${atOnce * width}u; x += ${all}u) {
      let r = ${first}u + x / ${width}u; let row = firstRow + r;
      if (row < rowCount) {
        let i = row / u.group; let h = g * u.group + row % u.group;
        let lane = x % ${lanes}u; let e = x % ${width}u / ${lanes}u;
        var top = ${floor}; var sum = 0.0f; var y = vec4f();
        ${each(groups, (n) => `top = max(top, state[${n * rows}u + r].x);`).join(" ")}
        for (var n = 0u; n < ${groups}u; n++) {
          let one = state[n * ${rows}u + r]; let f = exp2(one.x - top);
          sum = fma(one.y, f, sum);
          y = fma(outs[((r - ${first}u) * ${valuePieces}u + e) * ${all}u + n * ${lanes}u + lane], vec4f(f), y);
        }
        ${endSoftmax(features, "top", "sum")}
        out_put(((${place}) * u.heads + h) * ${valueDim}u, ${
      v.unit === 8 ? `2u * (lane + (e >> 1u) * ${lanes}u) + (e & 1u)` : `lane + e * ${lanes}u`
    }, y * by);
        if (x % ${width}u == 0u) {
          lse[${lsePlace}] = ${lseBits};
        }
      }
    }`;
  }
}

/** Most rows (query heads of a group, times queries) for which decoding is the better kernel. */
export const decodeRows = 32;

/** Workgroups that fill a large device; WebGPU does not tell how large one is. */
const enough = 512;
/** Fewest keys of a part that are worth a workgroup of their own. */
const leastKeys = 128;

/**
 * Chooses the decoding kernel of a call and the number of parts.
 *
 * @param numSplits parts that the caller wants; 0 chooses
 */
export function pickAttentionDecode(
  { subgroupSize, maxWorkgroupMemory, maxInvocations }: AttentionCapabilities,
  { batch, seqlenQ, seqlenK, heads, kvHeads, headDim, valueDim }: AttentionShape,
  at: AttentionLayout,
  storage: { q: AttentionStorage; k: AttentionStorage; v: AttentionStorage; out: AttentionStorage },
  features: AttentionFeatures,
  numSplits: number,
): { params: AttentionDecodeParams; parts: number } {
  const count = heads / kvHeads * seqlenQ, rows = count <= 1 ? 1 : count <= 2 ? 2 : count <= 4 ? 4 : 8;
  const units = batch * kvHeads * Math.ceil(count / rows);
  const wanted = Math.min(Math.floor(enough / units), Math.ceil(seqlenK / leastKeys));
  const parts = Math.max(1, numSplits === 0 ? wanted : Math.min(numSplits, seqlenK));
  const wideOf = (name: "k" | "v", size: number): AttentionOperand =>
    storage[name] !== "f32" && isEven(8, size, at[name])
      ? { storage: storage[name], unit: 8 }
      : operandOf(storage[name], size, at[name]);
  const dim = Math.max(headDim, valueDim), lanes = dim <= 64 ? 8 : dim <= 128 ? 16 : 32;
  const params: AttentionDecodeParams = {
    headDim,
    valueDim,
    q: operandOf(storage.q, headDim, at.q),
    k: wideOf("k", headDim),
    v: wideOf("v", valueDim),
    out: denseOperand(parts > 1 ? "f32" : storage.out, valueDim),
    features: { ...features, sinks: features.sinks && parts === 1 },
    subgroups: subgroupSize >= lanes,
    rows,
    lanes,
    groups: Math.min(rows === 8 ? 64 : 128, maxInvocations) / lanes,
    unroll: 4,
    split: parts > 1,
    // Beside the cache's own cost, which decoding pays for every token, ten operations a product are too many.
    careful: storage.q === "f32" && storage.k === "f32" && features.lengths === "dense" && seqlenK <= 1024,
  };
  const fitting = attentionDecodeMemory(params) <= maxWorkgroupMemory ? params : { ...params, groups: 32 / lanes };
  return { params: fitting, parts };
}

/** Workgroups and uniforms of the decoding kernel. */
export function planAttentionDecode(
  params: AttentionDecodeParams,
  parts: number,
  shape: AttentionShape,
  at: AttentionLayout,
  settings: AttentionSettings,
): AttentionPlan {
  const { batch, seqlenQ, heads, kvHeads } = shape;
  const tiles = Math.ceil(heads / kvHeads * seqlenQ / params.rows);
  return {
    workgroups: [kvHeads * tiles, batch, parts],
    uniforms: { ...attentionUniforms(params, shape, at, settings), parts, batch },
  };
}
