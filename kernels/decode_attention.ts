/**
 * A step of decoding between two products: queries and the new key turn, key and value join the cache, and the query heads
 * of a group attend to it, all in one dispatch; a second one joins the parts of long texts.
 *
 *   workgroup = (key head, batch row, part of the keys)
 *   qkv ──turn──▶ workgroup memory: the group's queries, the new key and value ──▶ the first part writes the cache
 *   lanes share a key, 8 numbers each; a team of lanes takes `unroll` keys a step     s = q·k, online softmax, o += p·v
 *   teams meet by shuffles, subgroups through workgroup memory; the new key comes from there, not from the cache
 *
 * Floor: the cache once. Measured on an H200, ms for a token of Llama-3.2-1B's shape in bf16, 16 of these dispatches in it:
 *   rotaryAppend and cacheAttention apart, room for 1,024 keys                                       1.140
 *   this, room for 128: 256 threads, 4 keys a step 1.021 ◀; 2 keys 1.020, 8 keys 1.042; 128 threads 1.027, 512 1.035, 64 1.047
 *   1,000 keys, room for 1,536, keys of a part: 128 1.095 ◀, 256 1.115, 512 1.129, 1,024 1.164
 *   32,700 keys: 64 parts 1.661, 33 parts 1.575 ◀ (46 µs a dispatch, 3.3 TB/s, and 7 to combine)
 * Short texts are latency, 14 µs a dispatch with timestamps around it whatever the tile: decode_attention_chunks.ts is for them.
 */
import { decodeAttentionInputs, type DecodeAttentionParams, decodeAttentionParts } from "../tensor/decode_attention.ts";
import { sizeOf } from "../tensor/shape.ts";
import { attentionCombine, pickAttentionCombine, planAttentionCombine } from "./attention_combine.ts";
import { lowerCacheAttention } from "./attention_cache_lowering.ts";
import {
  type AttentionCapabilities,
  type AttentionStorage,
  denseOperand,
  endSoftmax,
  floor,
  lseBits,
  masked,
  plainAttention,
  unpack4,
} from "./attention_common.ts";
import {
  decodeChunksKernel,
  type DecodeChunksPick,
  type DecodeChunksSizes,
  enough,
  pickDecodeChunks,
} from "./decode_attention_chunks.ts";
import { each, type Kernel, kernel } from "./kernel.ts";
import { elementwise, type Lowering, partCall, type View } from "./lowering.ts";
import { mathFunctions } from "./math.ts";
import { lowerRotaryAppend } from "./rotary_append.ts";
import { pack2, roundingFunctions } from "./storage.ts";

/** Everything that the text depends on. */
export interface DecodeAttentionKernel {
  readonly storage: AttentionStorage;
  /** Query heads of a key head. */
  readonly group: number;
  /** Numbers of a head: 8 times a power of two. */
  readonly size: number;
  readonly threads: number;
  readonly unroll: number;
  readonly subgroup: number;
  readonly padded: boolean;
  readonly paged: boolean;
  /** The keys are split: out and lse are those of parts. */
  readonly split: boolean;
}

/** The kernel. Reads qkv, cos, sin, lengths, leftpad, pages; writes k, v, out and, of parts, lse. */
export function decodeAttentionKernel(params: DecodeAttentionKernel): Kernel {
  const { storage, group, size, threads, unroll, subgroup, padded, paged, split } = params;
  const name = [
    `decode_attention_d${size}_g${group}_t${threads}_u${unroll}_${storage}_subgroups${subgroup}`,
    ...(padded ? ["padded"] : []),
    ...(paged ? ["paged"] : []),
    ...(split ? ["split"] : []),
  ].join("_");
  const cache = storage === "f32" ? "vec4f" : "vec4u";
  return kernel(name, {
    reads: {
      ...{ qkv: "f32", cos: "f32", sin: "f32", lengths: "i32" },
      ...(padded ? { leftpad: "i32" } : {}),
      ...(paged ? { pages: "i32" } : {}),
    },
    writes: { k: cache, v: cache, out: "vec4f", ...(split ? { lse: "u32" } : {}) },
    uniforms: {
      ...{ batch: "u32", kvHeads: "u32", parts: "u32", capacity: "u32", page: "u32", pagesRow: "u32", known: "u32" },
      ...{ qkv: "u32", cos: "u32", sin: "u32", lengths: "u32", leftpad: "u32", pages: "u32", scale: "f32" },
    },
    requires: ["subgroups"],
  }, () => body(params));
}

function body(params: DecodeAttentionKernel): string {
  const { storage, group, size, threads, unroll, subgroup, padded, paged, split } = params;
  const half = size / 2, lanes = size / 8, teams = threads / lanes, waves = threads / subgroup, step = teams * unroll;
  const rows = (f: (r: number) => string): string => each(group, f).join("\n  ");
  const both = (f: (e: number) => string): string => `${f(0)} ${f(1)}`;
  /** Numbers 8·tx … 8·tx + 7 of a row of the cache, as two vec4f. */
  const fetch = (id: "k" | "v", to: string, row: string) =>
    storage === "f32"
      ? both((e) => `let ${to}_${e} = ${id}[(${row}) * ${size / 4}u + 2u * tx + ${e}u];`)
      : `let ${to}w = ${id}[(${row}) * ${lanes}u + tx]; let ${to}_0 = ${unpack4(storage, `${to}w.x`, `${to}w.y`)}; ` +
        `let ${to}_1 = ${unpack4(storage, `${to}w.z`, `${to}w.w`)};`;
  const place = (j: string) =>
    paged
      ? `(u32(pages[u.pages + b * u.pagesRow + (${j}) / u.page]) * u.page + (${j}) % u.page) * u.kvHeads + g`
      : `(b * u.capacity + (${j})) * u.kvHeads + g`;
  const overLanes = (names: readonly string[]) =>
    each(Math.log2(lanes), (i) => names.map((s) => `${s} += subgroupShuffleXor(${s}, ${1 << i}u);`).join(" "))
      .join("\n    ");
  /** Takes scores s with values v into a row's state. */
  const take = (r: number, scores: readonly string[], values: readonly string[]) =>
    `{ let top = ${
      scores.reduce((a, b) => `max(${a}, ${b})`, `m${r}`)
    }; let f = exp2(m${r} - top); m${r} = top; l${r} *= f; ` +
    both((e) => `o${r}_${e} *= f;`) +
    scores.map((s, n) =>
      ` { let p = exp2(${s} - top); l${r} += p; ${
        both((e) => `o${r}_${e} = fma(vec4f(p), ${values[n]}_${e}, o${r}_${e});`)
      } }`
    ).join("") + " }";
  return `${mathFunctions("ft_nan()")}
${roundingFunctions(storage)}
var<workgroup> turned: array<vec4f, ${(group + 1) * size / 4}>;
var<workgroup> vNew: array<vec4f, ${size / 4}>;
var<workgroup> states: array<vec2f, ${group * waves}>;
var<workgroup> outs: array<vec4f, ${group * waves * size / 4}>;
@compute @workgroup_size(${threads})
fn main(@builtin(workgroup_id) wid: vec3u, @builtin(local_invocation_index) li: u32) {
  let g = wid.x; let b = wid.y; let part = wid.z;
  let tx = li % ${lanes}u; let ty = li / ${lanes}u; let wave = li / ${subgroup}u;
  let heads = u.kvHeads * ${group}u;
  let length = lengths[u.lengths + b]; let pad = ${padded ? "max(leftpad[u.leftpad + b], 0)" : "0"};
  let position = ${padded ? "max(length - pad, 0)" : "length"};
  let known = position >= 0 && u32(position) < u.known;
  let angles = u32(max(position, 0)) * ${half}u;
  let start = u.qkv + b * (heads + 2u * u.kvHeads) * ${size}u;
  for (var x = li; x < ${(group + 1) * half}u; x += ${threads}u) {
    let h = x / ${half}u; let i = x % ${half}u;
    let at = start + select(heads + g, g * ${group}u + h, h < ${group}u) * ${size}u + i;
    let x1 = qkv[at]; let x2 = qkv[at + ${half}u];
    let c = select(ft_nan(), cos[u.cos + angles + i], known); let s = select(ft_nan(), sin[u.sin + angles + i], known);
    let by = select(1.0f, u.scale, h < ${group}u);
    let to = h * ${size}u + i;
    turned[to / 4u][to % 4u] = (x1 * c - x2 * s) * by;
    turned[(to + ${half}u) / 4u][(to + ${half}u) % 4u] = (x2 * c + x1 * s) * by;
  }
  if (li < ${size / 4}u) {
    let at = start + (heads + u.kvHeads + g) * ${size}u + 4u * li;
    vNew[li] = vec4f(qkv[at], qkv[at + 1u], qkv[at + 2u], qkv[at + 3u]);
  }
  workgroupBarrier();
  let room = i32(u.capacity); let joins = length >= 0 && length < room;
  ${rows((r) => both((e) => `let q${r}_${e} = turned[${r * size / 4}u + 2u * tx + ${e}u];`))}
  ${both((e) => `var kn_${e} = turned[${group * size / 4}u + 2u * tx + ${e}u];`)}
  ${both((e) => `var vn_${e} = vNew[2u * tx + ${e}u];`)}
  // As the cache will give them back.
  ${
    storage === "f32"
      ? ""
      : ["kn", "vn"].map((id) =>
        both((e) =>
          `{ let w = vec2u(${pack2(storage, `${id}_${e}.x`, `${id}_${e}.y`)}, ${
            pack2(storage, `${id}_${e}.z`, `${id}_${e}.w`)
          }); ` +
          `${id}_${e} = ${unpack4(storage, "w.x", "w.y")}; }`
        )
      ).join(" ")
  }
  if (part == 0u && joins && ty == 0u) {
    let at = ${place("u32(length)")};
    ${
    (["k", "v"] as const).map((id) =>
      storage === "f32"
        ? both((e) => `${id}[at * ${size / 4}u + 2u * tx + ${e}u] = ${id}n_${e};`)
        : `${id}[at * ${lanes}u + tx] = vec4u(${
          each(
            2,
            (e) =>
              `${pack2(storage, `${id}n_${e}.x`, `${id}n_${e}.y`)}, ${
                pack2(storage, `${id}n_${e}.z`, `${id}n_${e}.w`)
              }`,
          )
            .join(", ")
        });`
    ).join(" ")
  }
  }
  let keyFrom = u32(pad); let keyTo = u32(clamp(length, 0, room));
  let share = (max(keyTo, keyFrom) - keyFrom + u.parts * ${step}u - 1u) / (u.parts * ${step}u) * ${step}u;
  let end = min(keyTo, keyFrom + (part + 1u) * share);
  ${rows((r) => `var m${r} = ${floor}; var l${r} = 0.0f; var o${r}_0 = vec4f(); var o${r}_1 = vec4f();`)}
  for (var k0 = keyFrom + part * share; k0 < end; k0 += ${step}u) {
    ${
    each(unroll, (n) => `let j${n} = k0 + ${n * teams}u + ty; let at${n} = ${place(`min(j${n}, keyTo - 1u)`)};`).join(
      "\n    ",
    )
  }
    ${each(unroll, (n) => fetch("k", `k${n}`, `at${n}`)).join("\n    ")}
    ${each(unroll, (n) => fetch("v", `v${n}`, `at${n}`)).join("\n    ")}
    ${rows((r) => each(unroll, (n) => `var s${r}_${n} = dot(q${r}_0, k${n}_0) + dot(q${r}_1, k${n}_1);`).join(" "))}
    ${overLanes(each(group * unroll, (c) => `s${Math.floor(c / unroll)}_${c % unroll}`))}
    ${rows((r) => each(unroll, (n) => `s${r}_${n} = select(${masked}, s${r}_${n}, j${n} < end);`).join(" "))}
    ${rows((r) => take(r, each(unroll, (n) => `s${r}_${n}`), each(unroll, (n) => `v${n}`)))}
  }
  ${rows((r) => `var new${r} = dot(q${r}_0, kn_0) + dot(q${r}_1, kn_1);`)}
  ${overLanes(each(group, (r) => `new${r}`))}
  let own = part == 0u && joins && length >= i32(pad) && ty == 0u;
  ${rows((r) => `new${r} = select(${masked}, new${r}, own); ${take(r, [`new${r}`], ["vn"])}`)}
  ${
    each(Math.log2(subgroup / lanes), (i) => {
      const by = `${lanes << i}u`;
      return rows((r) =>
        `{ let other = subgroupShuffleXor(m${r}, ${by}); let top = max(m${r}, other); let f = exp2(m${r} - top); let h = exp2(other - top); m${r} = top; ` +
        `l${r} = l${r} * f + subgroupShuffleXor(l${r}, ${by}) * h; ` +
        both((e) => `o${r}_${e} = o${r}_${e} * f + subgroupShuffleXor(o${r}_${e}, ${by}) * h;`) + " }"
      );
    }).join("\n  ")
  }
  if (li % ${subgroup}u < ${lanes}u) {
    ${
    rows((r) =>
      both((e) => `outs[(wave * ${group}u + ${r}u) * ${size / 4}u + 2u * tx + ${e}u] = o${r}_${e};`) +
      ` if (tx == 0u) { states[wave * ${group}u + ${r}u] = vec2f(m${r}, l${r}); }`
    )
  }
  }
  workgroupBarrier();
  for (var x = li; x < ${group * size / 4}u; x += ${threads}u) {
    let r = x / ${size / 4}u; let d4 = x % ${size / 4}u;
    var top = ${floor}; var sum = 0.0f; var y = vec4f();
    for (var n = 0u; n < ${waves}u; n++) { top = max(top, states[n * ${group}u + r].x); }
    for (var n = 0u; n < ${waves}u; n++) {
      let at = n * ${group}u + r; let one = states[at]; let f = exp2(one.x - top);
      sum = fma(one.y, f, sum);
      y = fma(outs[at * ${size / 4}u + d4], vec4f(f), y);
    }
    let row = (part * u.batch + b) * heads + g * ${group}u + r;
    ${endSoftmax(plainAttention, "top", "sum")}
    out[row * ${size / 4}u + d4] = y * by;
    ${split ? `if (d4 == 0u) { lse[row] = ${lseBits}; }` : ""}
  }
}`;
}

/** Keys of a part that are worth a workgroup of their own. */
const leastKeys = 128;

/** Room up to which decode_attention_chunks.ts is picked; its speed is not yet measured. */
const chunksUpTo = Infinity;

/** The kernel of a call, by what its text depends on, and its number of parts. */
export type DecodeAttentionPick = DecodeChunksPick | {
  readonly threads: number;
  readonly unroll: number;
  readonly parts: number;
};

/** The kernel of a call and its number of parts; null where the device or the sizes are not for it. */
export function pickDecodeAttention(
  capabilities: AttentionCapabilities,
  sizes: DecodeChunksSizes,
): DecodeAttentionPick | null {
  const { subgroupSize, maxInvocations } = capabilities, { size, group, units, capacity } = sizes, lanes = size / 8;
  if (subgroupSize === 0 || !Number.isInteger(Math.log2(lanes)) || group > 8) return null;
  const parts = Math.max(1, Math.min(Math.floor(enough / units), Math.ceil(capacity / leastKeys)));
  const chunks = capacity <= chunksUpTo ? pickDecodeChunks(capabilities, sizes, parts) : null;
  if (chunks !== null) return chunks;
  if (subgroupSize < lanes) return null;
  const software = subgroupSize <= 8, threads = Math.min(software ? 64 : 256, maxInvocations);
  return { threads, unroll: software || group > 4 ? 2 : 4, parts };
}

/** A step's queries, keys and values on their way through attention. */
export function lowerDecodeAttention(call: Lowering<DecodeAttentionParams>): void {
  const given = decodeAttentionInputs(call.inputs, call.params), { heads, padded, paged } = call.params;
  const [k, v, out] = call.outputs, [, page, kvHeads, size] = k.shape, batch = given.qkv.shape[0];
  if (sizeOf(out.shape) === 0) return;
  const capacity = given.blockTable ? given.blockTable.shape[1] * page : page, group = heads / kvHeads;
  const storage = k.dtype as AttentionStorage, rows = batch * heads, { subgroupSize } = call.capabilities;
  const picked = pickDecodeAttention(call.capabilities, { size, group, units: batch * kvHeads, capacity, storage });
  if (picked === null || capacity === 0) return apart(call);
  const { parts } = picked, split = parts > 1, build = { storage, group, size, padded, paged, split };
  const [qkv, cos, sin, lengths] = [given.qkv, given.cos, given.sin, given.lengths].map((x) => call.dense(x, 1));
  const leftpad = given.leftpad && call.dense(given.leftpad, 1),
    table = given.blockTable && call.dense(given.blockTable, 1);
  const kernel = "unroll" in picked
    ? decodeAttentionKernel({ ...build, ...picked, subgroup: subgroupSize })
    : decodeChunksKernel({ ...build, ...picked });
  const partOut = split ? call.temporary([parts, rows, size], "f32") : out;
  const partLse = split ? [call.temporary([parts, rows], "f32")] : [];
  const reads = [qkv, cos, sin, lengths, ...(leftpad ? [leftpad] : []), ...(table ? [table] : [])];
  call.dispatch(kernel, [...reads, k, v, partOut, ...partLse], {
    ...{ batch, kvHeads, parts, capacity, page, blocks: k.shape[0], known: cos.shape[0] },
    pagesRow: table?.shape[1] ?? 0,
    ...{ qkv: qkv.offset, cos: cos.offset, sin: sin.offset, lengths: lengths.offset },
    leftpad: leftpad?.offset ?? 0,
    pages: table?.offset ?? 0,
    scale: Math.LOG2E / Math.sqrt(size),
  }, ["rows" in picked ? heads / picked.rows : kvHeads, batch, parts]);
  if (!split) return;
  const combine = pickAttentionCombine(parts, { valueDim: size, out: denseOperand("f32", size), sinks: false });
  const { workgroups, uniforms } = planAttentionCombine(combine, batch, 1, heads, parts);
  call.dispatch(
    attentionCombine(combine),
    [partOut, ...partLse, out, call.temporary([rows], "f32")],
    uniforms,
    workgroups,
  );
}

/** The same as the two ops that it stands for. */
function apart(call: Lowering<DecodeAttentionParams>): void {
  const given = decodeAttentionInputs(call.inputs, call.params), [k, v, out] = call.outputs;
  const { append, attend } = decodeAttentionParts(call.params, k.shape[3]),
    table = given.blockTable ? [given.blockTable] : [];
  const q = call.temporary(out.shape, "f32"), positions: View[] = [];
  if (given.leftpad !== undefined) {
    const at = call.temporary(given.lengths.shape, "i32");
    elementwise(call, "behind", ([n, pad]) => `max(${n} - ${pad}, 0)`, [given.lengths, given.leftpad], at);
    positions.push({ ...at, shape: [at.shape[0], 1], strides: [1, 1] });
  }
  const turn = [given.kCache, given.vCache, given.qkv, given.cos, given.sin, given.lengths, ...positions, ...table];
  lowerRotaryAppend(partCall(call, turn, [k, v, q], append));
  const seen = [q, k, v, given.lengths, ...(given.leftpad ? [given.leftpad] : []), ...table];
  const [batch, , heads] = out.shape;
  lowerCacheAttention(partCall(call, seen, [out, call.temporary([batch, heads, 1], "f32")], attend));
}
