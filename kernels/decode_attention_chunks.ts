/**
 * A step of decoding in one dispatch, as decode_attention.ts says, for texts whose time is latency: the cache's numbers are asked
 * for before anything is known of the text, a thread has a score to itself, and the kernel's text is short.
 *
 *   workgroup = (query heads of a key head, batch row, part of the keys); chunk = threads / lanes of a key, 32 numbers a lane
 *   k, v of a chunk ──▶ registers: a lane's part of its key; of 16 keys of its split, the thread's two numbers of v
 *   lengths, qkv, cos, sin ──turn──▶ workgroup memory: queries, the new key and value as the cache will give them back
 *   s = q·k ──workgroup memory──▶ a split's 16 scores: max, powers and sum in every thread of it, o += p·v
 *   splits meet in workgroup memory, in their order; the new key stands in its place in the chunk
 *
 * `fixed` parts are chunks of the room, whatever of it the text fills; others are shares of the text, a chunk after the other.
 * What lies in the cache around the text may be NaN: its scores are masked, and its values are left out, not multiplied by 0.
 */
import {
  type AttentionCapabilities,
  type AttentionStorage,
  endSoftmax,
  floor,
  lseBits,
  masked,
  plainAttention,
  unpack4,
} from "./attention_common.ts";
import { each, type Kernel, kernel } from "./kernel.ts";
import { mathFunctions } from "./math.ts";
import { pack2, roundingFunctions } from "./storage.ts";

/** Everything that the text depends on. */
export interface DecodeChunksKernel {
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
export function decodeChunk({ size, threads }: Pick<DecodeChunksKernel, "size" | "threads">) {
  const lanes = Math.max(1, size / 32), keys = threads / lanes, pairs = size / 2, splits = threads / pairs;
  return { lanes, keys, pairs, splits, own: keys / splits };
}

/** Bytes of workgroup memory. */
export function decodeChunksMemory(params: Pick<DecodeChunksKernel, "storage" | "rows" | "size" | "threads">): number {
  const { storage, rows, size } = params, { keys, pairs, splits } = decodeChunk(params);
  const fresh = 2 * pairs * (storage === "f32" ? 8 : 4);
  return 4 * rows * (size + keys + 2 * splits + 2 * splits * pairs) + fresh;
}

/** The kernel. Reads qkv, cos, sin, lengths, leftpad, pages; writes k, v, out and, of parts, lse. */
export function decodeChunksKernel(params: DecodeChunksKernel): Kernel {
  const { storage, group, rows, size, threads, padded, paged, fixed, split } = params;
  const name = [
    `decode_chunks_d${size}_g${group}_r${rows}_t${threads}_${storage}`,
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

function body(params: DecodeChunksKernel): string {
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

/** A choice for a call: the kernel's own parameters, and the number of parts. */
export type DecodeChunksPick = Pick<DecodeChunksKernel, "threads" | "rows" | "fixed"> & { readonly parts: number };

/** What a choice depends on. */
export interface DecodeChunksSizes extends Pick<DecodeChunksKernel, "size" | "group" | "storage"> {
  /** Key heads times batch rows. */
  readonly units: number;
  readonly capacity: number;
}

/** Workgroups that fill a large device; WebGPU does not tell how large one is. */
export const enough = 264;

/**
 * Fixed chunks where one part, or at most `parts`, hold the room, and a workgroup for every query head while those are few; or
 * else shares of the text, each key read once for as many heads of its group as there is memory for.
 */
export function pickDecodeChunks(
  { subgroupSize, maxInvocations, maxWorkgroupMemory }: AttentionCapabilities,
  { size, group, units, capacity, storage }: DecodeChunksSizes,
  parts: number,
): DecodeChunksPick | null {
  const divisors = Array.from({ length: group }, (_, i) => i + 1).filter((rows) => group % rows === 0);
  const choices = (subgroupSize <= 8 ? [Math.max(64, size / 2)] : [256, 512]).flatMap((threads) => {
    const { lanes, keys, splits } = decodeChunk({ size, threads });
    const rows = divisors.filter((rows) => decodeChunksMemory({ storage, rows, size, threads }) <= maxWorkgroupMemory);
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
