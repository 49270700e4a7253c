/**
 * A step of decoding between two products: queries and the new key turn, key and value join the cache, and query heads attend
 * to it, all in one dispatch; a second one joins the parts of long texts.
 *
 *   workgroup = (query heads of a key head, batch row, part of the keys); chunk = threads / lanes of a key, 32 numbers a lane
 *   k, v of a chunk ──▶ registers: a lane's part of its key; of 16 keys of its split, the thread's two numbers of v
 *   lengths, qkv, cos, sin ──turn──▶ workgroup memory: queries, the new key and value as the cache will give them back
 *   s = q·k ──workgroup memory──▶ a split's 16 scores: max, powers and sum in every thread of it, o += p·v
 *   splits meet in workgroup memory, in their order; the new key stands in its place in the chunk
 *
 * `fixed` parts are chunks of the room, whatever of it the text fills: the cache's numbers are asked for before anything is
 * known of the text. Other parts are shares of the text, a chunk after the other. What lies in the cache around the text may
 * be NaN: its scores are masked, and its values are left out, not multiplied by 0.
 *
 * Floor: the cache once. Measured on an H200, ms for a token of Llama-3.2-1B's shape in bf16, 16 of these dispatches in it:
 *   rotaryAppend and cacheAttention apart, room for 1,024 keys                                       1.140
 *   v1  8 lanes a key, 4 keys a step, online softmax in every thread, states meet by shuffles, room for 128     1.021
 *       2 keys a step 1.020, 8 keys 1.042; 128 threads 1.027, 512 1.035, 64 1.047: latency, whatever the tile
 *       1,000 keys, room for 1,536, keys of a part: 128 1.095, 256 1.115, 512 1.129, 1,024 1.164
 *       32,700 keys: 64 parts 1.661, 33 parts 1.575
 *   µs a dispatch through Dawn, timestamps: 30 of 128 keys, 1,000 of 1,536, 32,000          v1 14.2, 14.1, 39.7
 *   v2  this, a workgroup for all query heads of a key head                                    10.6, 10.6, 39.3 (3.6 TB/s)
 *       a workgroup for every query head while those are at most 264 ◀                          7.2,  8.1, 39.2
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
  /** Query heads of a workgroup: divides the group. */
  readonly rows: number;
  /** Numbers of a head: 8 times a power of two. */
  readonly size: number;
  readonly threads: number;
  readonly padded: boolean;
  readonly paged: boolean;
  /** A part is one chunk of the room; else a share of the text. */
  readonly fixed: boolean;
  /** The keys are split: out and lse are those of parts. */
  readonly split: boolean;
}

/** How threads share a chunk: lanes of a key, keys; threads of a split of the values, splits, keys of a split. */
export function decodeChunk({ size, threads }: Pick<DecodeAttentionKernel, "size" | "threads">) {
  const lanes = Math.max(1, size / 32), keys = threads / lanes, pairs = size / 2, splits = threads / pairs;
  return { lanes, keys, pairs, splits, own: keys / splits };
}

/** Bytes of workgroup memory. */
export function decodeAttentionMemory(
  params: Pick<DecodeAttentionKernel, "storage" | "rows" | "size" | "threads">,
): number {
  const { storage, rows, size } = params, { keys, pairs, splits } = decodeChunk(params);
  const fresh = 2 * pairs * (storage === "f32" ? 8 : 4);
  return 4 * rows * (size + keys + 2 * splits + 2 * splits * pairs) + fresh;
}

/** The kernel. Reads qkv, cos, sin, lengths, leftpad, pages; writes k, v, out and, of parts, lse. */
export function decodeAttentionKernel(params: DecodeAttentionKernel): Kernel {
  const { storage, group, rows, size, threads, padded, paged, fixed, split } = params;
  const name = [
    `decode_attention_d${size}_g${group}_r${rows}_t${threads}_${storage}`,
    ...(padded ? ["padded"] : []),
    ...(paged ? ["paged"] : []),
    ...(fixed ? ["fixed"] : []),
    ...(split ? ["split"] : []),
  ].join("_");
  const [four, two] = storage === "f32" ? ["vec4f", "vec2f"] : ["vec4u", "u32"];
  return kernel(name, {
    reads: {
      ...{ qkv: "f32", cos: "f32", sin: "f32", lengths: "i32" },
      ...(padded ? { leftpad: "i32" } : {}),
      ...(paged ? { pages: "i32" } : {}),
    },
    writes: { k: four, v: two, out: "vec2f", ...(split ? { lse: "u32" } : {}) },
    uniforms: {
      ...{ batch: "u32", kvHeads: "u32", parts: "u32", capacity: "u32", known: "u32" },
      ...{ page: "u32", pagesRow: "u32", blocks: "u32" },
      ...{ qkv: "u32", cos: "u32", sin: "u32", lengths: "u32", leftpad: "u32", pages: "u32", scale: "f32" },
    },
    requires: size > 32 ? ["subgroups"] : [],
  }, () => body(params));
}

function body(params: DecodeAttentionKernel): string {
  const { storage, group, rows, size, threads, padded, paged, fixed, split } = params;
  const { lanes, keys, pairs, splits, own } = decodeChunk(params);
  const half = size / 2, quarter = size / 4, wide = storage === "f32" ? 4 : 8, loads = size / lanes / wide;
  const word = storage === "f32" ? "vec2f" : "u32";
  const lines = (n: number, f: (i: number) => string) => each(n, f).join("\n    ");
  /** Load `n` of a lane: loads of a row are dealt out, so that neighbours read neighbouring ones. */
  const deal = (n: number) => `${n * lanes}u + tx`;
  /** Load `n` of the new key. */
  const newKey = (n: string) =>
    storage === "f32"
      ? `vec4f(fresh[2u * (${n})], fresh[2u * (${n}) + 1u])`
      : `vec4u(${each(4, (i) => `fresh[4u * (${n}) + ${i}u]`).join(", ")})`;
  const fetch = `
    let key = chunk + own; let row = place(b, g, min(key, u.capacity - 1u)) * ${size / wide}u;
    ${lines(loads, (n) => `var k${n} = k[row + ${deal(n)}];`)}
    let near = chunk + keys;
    ${lines(own, (i) => `let v${i} = v[place(b, g, min(near + ${i}u, u.capacity - 1u)) * ${pairs}u + d];`)}`;
  const quads = size / lanes / 4;
  /** Four numbers of the thread's part of its key, and their dot product with a query's. */
  const numbers = (i: number) => {
    const from = `k${Math.floor(4 * i / wide)}`;
    if (storage === "f32") return from;
    return i % 2 === 0 ? unpack4(storage, `${from}.x`, `${from}.y`) : unpack4(storage, `${from}.z`, `${from}.w`);
  };
  const dot = (i: number) => {
    const at = (Math.floor(4 * i / wide) * lanes * wide + 4 * i % wide) / 2;
    return `dot(vec4f(turned[q + ${at}u], turned[q + ${at + 1}u]), n${i})`;
  };
  const score = `
    if (joins && key == past) { ${each(loads, (n) => `k${n} = ${newKey(deal(n))};`).join(" ")} }
    ${lines(quads, (i) => `let n${i} = ${numbers(i)};`)}
    for (var r = 0u; r < ${rows}u; r++) {
      var s = 0.0f; let q = r * ${pairs}u + ${wide / 2}u * tx;
      if (key - first < seen) { s = ${each(quads, dot).join(" + ")}; }
      ${each(Math.log2(lanes), (i) => `s += subgroupShuffleXor(s, ${1 << i}u);`).join(" ")}
      if (tx == 0u) { scores[r * ${keys}u + own] = select(${masked}, s, key - first < seen); }
    }
    workgroupBarrier();`;
  const take = (r: number) =>
    `{
      ${lines(own, (i) => `let s${i} = scores[keys + ${r * keys + i}u];`)}
      let top = ${each(own, (i) => `s${i}`).reduce((a, b) => `max(${a}, ${b})`, `top${r}`)};
      ${fixed ? "" : `let f = exp2(top${r} - top); sum${r} *= f; o${r} *= f;`} top${r} = top;
      ${lines(own, (i) => `{ let p = exp2(s${i} - top); sum${r} += p; o${r} = fma(vec2f(p), w${i}, o${r}); }`)}
      if (ours) { o${r} = fma(vec2f(exp2(scores[keys + ${
      r * keys
    }u + joined] - top)), pair(fresh[${pairs}u + d]), o${r}); }
    }`;
  const attend = `
    if (near < end && near + ${own}u > first) {
    let joined = past - near; let ours = joins && joined < ${own}u && past - first < seen;
    ${lines(own, (i) => `let w${i} = pair(select(${word}(), v${i}, near + ${i}u - first < read));`)}
    ${lines(rows, take)}
    }`;
  return `${mathFunctions("ft_nan()")}
${roundingFunctions(storage)}
fn pair(w: ${word}) -> vec2f { return ${
    storage === "f32"
      ? "w"
      : storage === "f16"
      ? "unpack2x16float(w)"
      : "bitcast<vec2f>(vec2u(w << 16u, w & 0xffff0000u))"
  }; }
fn stored(x: vec2f) -> ${word} { return ${storage === "f32" ? "x" : pack2(storage, "x.x", "x.y")}; }
fn place(b: u32, g: u32, j: u32) -> u32 {
  return (${
    paged
      ? "min(u32(pages[u.pages + b * u.pagesRow + j / u.page]), u.blocks - 1u) * u.page + j % u.page"
      : "b * u.capacity + j"
  }) * u.kvHeads + g;
}
var<workgroup> turned: array<vec2f, ${rows * pairs}>;
var<workgroup> fresh: array<${word}, ${2 * pairs}>;
var<workgroup> scores: array<f32, ${rows * keys}>;
var<workgroup> states: array<vec2f, ${rows * splits}>;
var<workgroup> outs: array<vec2f, ${rows * splits * pairs}>;
@compute @workgroup_size(${threads})
fn main(@builtin(workgroup_id) wid: vec3u, @builtin(local_invocation_index) li: u32) {
  let g = wid.x / ${group / rows}u; let b = wid.y; let part = wid.z;
  let tx = li % ${lanes}u; let own = li / ${lanes}u;
  let d = li % ${pairs}u; let keys = li / ${pairs}u * ${own}u;
  ${fixed ? `let chunk = part * ${keys}u;${fetch}` : ""}
  let heads = u.kvHeads * ${group}u;
  let length = lengths[u.lengths + b]; let pad = ${padded ? "max(leftpad[u.leftpad + b], 0)" : "0"};
  let position = ${padded ? "max(length - pad, 0)" : "length"};
  let known = position >= 0 && u32(position) < u.known;
  let angles = u32(max(position, 0)) * ${half}u;
  let start = u.qkv + b * (heads + 2u * u.kvHeads) * ${size}u;
  for (var x = li; x < ${(rows + 2) * quarter}u; x += ${threads}u) {
    let h = x / ${quarter}u; let i = x % ${quarter}u; let angle = angles + 2u * i;
    let head = select(heads + g + (h - ${rows}u) * u.kvHeads, wid.x * ${rows}u + h, h < ${rows}u);
    let at = start + head * ${size}u + 2u * i;
    let x1 = vec2f(qkv[at], qkv[at + 1u]); let x2 = vec2f(qkv[at + ${half}u], qkv[at + ${half + 1}u]);
    let c = select(vec2f(ft_nan()), vec2f(cos[u.cos + angle], cos[u.cos + angle + 1u]), known);
    let s = select(vec2f(ft_nan()), vec2f(sin[u.sin + angle], sin[u.sin + angle + 1u]), known);
    let y1 = select(x1 * c - x2 * s, x1, h > ${rows}u); let y2 = select(x2 * c + x1 * s, x2, h > ${rows}u);
    if (h < ${rows}u) {
      let to = h * ${pairs}u + i;
      turned[to] = y1 * u.scale; turned[to + ${quarter}u] = y2 * u.scale;
    } else {
      let to = (h - ${rows}u) * ${pairs}u + i;
      fresh[to] = stored(y1); fresh[to + ${quarter}u] = stored(y2);
    }
  }
  let room = i32(u.capacity); let joins = length >= 0 && length < room;
  // Of the keys from first to end that are seen, the new one alone, at \`past\`, is not read.
  let pads = u32(pad); let past = u32(clamp(length, 0, room)); let all = past + select(0u, 1u, joins);
  ${
    fixed
      ? "let first = pads; let end = all;"
      : `let share = (max(all, pads) - pads + u.parts * ${keys}u - 1u) / (u.parts * ${keys}u) * ${keys}u;
  let first = pads + part * share; let end = min(all, first + share);`
  }
  let seen = max(end, first) - first; let read = max(min(end, past), first) - first;
  ${lines(rows, (r) => `var top${r} = ${floor}; var sum${r} = 0.0f; var o${r} = vec2f();`)}
  workgroupBarrier();
  ${
    fixed ? `${score}${attend}` : `for (var chunk = first; chunk < end; chunk += ${keys}u) {${fetch}${score}${attend}
    workgroupBarrier();
  }`
  }
  ${
    lines(rows, (r) =>
      `outs[${r * splits * pairs}u + li] = o${r}; if (d == 0u) { states[${
        r * splits
      }u + li / ${pairs}u] = vec2f(top${r}, sum${r}); }`)
  }
  workgroupBarrier();
  ${
    rows * pairs > threads
      ? `for (var x = li; x < ${rows * pairs}u; x += ${threads}u) {`
      : `if (li < ${rows * pairs}u) { let x = li;`
  }
    let r = x / ${pairs}u; let states0 = r * ${splits}u;
    var top = ${floor}; var sum = 0.0f; var y = vec2f();
    for (var n = 0u; n < ${splits}u; n++) { top = max(top, states[states0 + n].x); }
    for (var n = 0u; n < ${splits}u; n++) {
      let one = states[states0 + n]; let f = exp2(one.x - top);
      sum = fma(one.y, f, sum);
      y = fma(outs[(states0 + n) * ${pairs}u + x % ${pairs}u], vec2f(f), y);
    }
    let row = (part * u.batch + b) * heads + wid.x * ${rows}u + r;
    ${endSoftmax(plainAttention, "top", "sum")}
    out[row * ${pairs}u + x % ${pairs}u] = y * by;
    ${split ? `if (x % ${pairs}u == 0u) { lse[row] = ${lseBits}; }` : ""}
  }
  if (joins && part == 0u && wid.x % ${group / rows}u == 0u) {
    let at = place(b, g, past);
    if (li < ${size / wide}u) { k[at * ${size / wide}u + li] = ${newKey("li")}; }
    if (li < ${pairs}u) { v[at * ${pairs}u + li] = fresh[${pairs}u + li]; }
  }
}`;
}

/** Keys of a part that are worth a workgroup of their own, and workgroups that fill a large device, which WebGPU does not tell. */
const leastKeys = 128, enough = 264;

/** The kernel of a call, by what the call does not say of it, and its number of parts. */
export type DecodeAttentionPick = Pick<DecodeAttentionKernel, "threads" | "rows" | "fixed"> & {
  readonly parts: number;
};

/**
 * Fixed chunks where one part, or the parts that fill a device, hold the room, and a workgroup for every query head while those
 * are few; or else shares of the text, each key read once for as many heads of its group as there is memory for.
 *
 * @returns null where the device or the sizes are not for the kernel
 */
export function pickDecodeAttention(
  { subgroupSize, maxInvocations, maxWorkgroupMemory }: AttentionCapabilities,
  { size, group, units, capacity, storage }: Pick<DecodeAttentionKernel, "size" | "group" | "storage"> & {
    /** Key heads times batch rows. */
    readonly units: number;
    readonly capacity: number;
  },
): DecodeAttentionPick | null {
  if (subgroupSize === 0 || !Number.isInteger(Math.log2(size / 8)) || group > 8) return null;
  const parts = Math.max(1, Math.min(Math.floor(enough / units), Math.ceil(capacity / leastKeys)));
  const divisors = Array.from({ length: group }, (_, i) => i + 1).filter((rows) => group % rows === 0);
  const choices = (subgroupSize <= 8 ? [Math.max(64, size / 2)] : [256, 512]).flatMap((threads) => {
    const { lanes, keys, splits } = decodeChunk({ size, threads });
    const rows = divisors.filter((rows) =>
      decodeAttentionMemory({ storage, rows, size, threads }) <= maxWorkgroupMemory
    );
    const taken = splits >= 1 && lanes <= subgroupSize && threads <= maxInvocations && rows.length > 0;
    return taken ? [{ threads, keys, rows }] : [];
  });
  if (choices.length === 0) return null;
  for (const most of [1, parts]) {
    const one = choices.find(({ keys }) => keys * most >= capacity);
    if (one === undefined) continue;
    const { threads, rows, keys } = one, needed = Math.ceil(capacity / keys);
    const few = rows.find((n) => units * group / n * needed <= enough) ?? rows.at(-1)!;
    return { threads, rows: few, fixed: true, parts: needed };
  }
  const { threads, rows } = choices[0];
  return { threads, rows: rows.at(-1)!, fixed: false, parts };
}

/** A step's queries, keys and values on their way through attention. */
export function lowerDecodeAttention(call: Lowering<DecodeAttentionParams>): void {
  const given = decodeAttentionInputs(call.inputs, call.params), { heads, padded, paged } = call.params;
  const [k, v, out] = call.outputs, [, page, kvHeads, size] = k.shape, batch = given.qkv.shape[0];
  if (sizeOf(out.shape) === 0) return;
  const capacity = given.blockTable ? given.blockTable.shape[1] * page : page, group = heads / kvHeads;
  const storage = k.dtype as AttentionStorage, rows = batch * heads;
  const picked = pickDecodeAttention(call.capabilities, { size, group, units: batch * kvHeads, capacity, storage });
  if (picked === null || capacity === 0) return apart(call);
  const { parts } = picked, split = parts > 1, build = { storage, group, size, padded, paged, split };
  const [qkv, cos, sin, lengths] = [given.qkv, given.cos, given.sin, given.lengths].map((x) => call.dense(x, 1));
  const leftpad = given.leftpad && call.dense(given.leftpad, 1),
    table = given.blockTable && call.dense(given.blockTable, 1);
  const kernel = decodeAttentionKernel({ ...build, ...picked });
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
  }, [heads / picked.rows, batch, parts]);
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
