/**
 * Queries turn, keys turn and go into the cache with the values: a thread has two numbers of a head and the two that turn
 * with them, so that a word of a 16-bit cache has one writer. A few kilobytes: what it costs is its dispatch.
 */
import { rotaryAppendInputs, type RotaryAppendParams } from "../tensor/rotary_append.ts";
import type { AttentionStorage } from "./attention_common.ts";
import { type Kernel, kernel } from "./kernel.ts";
import type { Lowering } from "./lowering.ts";
import { mathFunctions } from "./math.ts";
import { pack2, roundingFunctions, storageType } from "./storage.ts";

interface Shape {
  readonly storage: AttentionStorage;
  readonly positioned: boolean;
  readonly paged: boolean;
}

const rotaryAppend = ({ storage, positioned, paged }: Shape): Kernel =>
  kernel(`rotary_append_${storage}${positioned ? "_positions" : ""}${paged ? "_paged" : ""}`, {
    reads: {
      ...{ qkv: "vec2f", cos: "vec2f", sin: "vec2f", lengths: "i32" },
      ...(positioned ? { positions: "i32" } : {}),
      ...(paged ? { pages: "i32" } : {}),
    },
    writes: {
      k: storage === "f32" ? "vec2f" : storageType(storage),
      v: storage === "f32" ? "vec2f" : storageType(storage),
      q: "vec2f",
    },
    uniforms: {
      ...{ threads: "u32", groups: "u32", count: "u32", heads: "u32", kvHeads: "u32", quarter: "u32" },
      ...{ qkv: "u32", cos: "u32", sin: "u32", lengths: "u32", positions: "u32", pages: "u32" },
      ...{ capacity: "u32", page: "u32", pagesRow: "u32", known: "u32", positionsRow: "u32" },
    },
  }, () => {
    const packed = (id: string) => storage === "f32" ? id : pack2(storage, `${id}.x`, `${id}.y`);
    const row = paged
      ? "u32(pages[u.pages + b * u.pagesRow + u32(place) / u.page]) * u.page + u32(place) % u.page"
      : "b * u.capacity + u32(place)";
    return `${mathFunctions("ft_nan()")}
${roundingFunctions(storage)}
@compute @workgroup_size(64)
fn main(@builtin(workgroup_id) group: vec3u, @builtin(local_invocation_index) li: u32) {
  let thread = (group.y * u.groups + group.x) * 64u + li;
  if (thread >= u.threads) { return; }
  let i = thread % u.quarter; let all = u.heads + 2u * u.kvHeads;
  let h = thread / u.quarter % all; let token = thread / u.quarter / all; let b = token / u.count;
  let place = lengths[u.lengths + b] + i32(token % u.count);
  let position = ${positioned ? "positions[u.positions + b * u.positionsRow + token % u.count]" : "place"};
  let start = u.qkv + (token * all + h) * 2u * u.quarter + i;
  var x = qkv[start]; var y = qkv[start + u.quarter];
  if (h < u.heads + u.kvHeads) {
    let at = u32(max(position, 0)) * u.quarter + i;
    var c = cos[u.cos + at]; var s = sin[u.sin + at];
    if (position < 0 || u32(position) >= u.known) { c = vec2f(ft_nan()); s = c; }
    let turned = x * c - y * s;
    y = y * c + x * s;
    x = turned;
  }
  if (h < u.heads) {
    let to = (token * u.heads + h) * 2u * u.quarter + i;
    q[to] = x; q[to + u.quarter] = y;
    return;
  }
  if (place < 0 || u32(place) >= u.capacity) { return; }
  let to = ((${row}) * u.kvHeads + (h - u.heads) % u.kvHeads) * 2u * u.quarter + i;
  if (h < u.heads + u.kvHeads) { k[to] = ${packed("x")}; k[to + u.quarter] = ${packed("y")}; }
  else { v[to] = ${packed("x")}; v[to + u.quarter] = ${packed("y")}; }
}`;
  });

/** Queries, keys and values on their way to attention. */
export function lowerRotaryAppend(call: Lowering<RotaryAppendParams>): void {
  const { heads } = call.params, given = rotaryAppendInputs(call.inputs, call.params);
  const [k, v, q] = call.outputs, [, page, kvHeads, size] = k.shape;
  const [qkv, cos, sin] = [given.qkv, given.cos, given.sin].map((x) => call.dense(x, 2));
  const lengths = call.dense(given.lengths, 1);
  const positions = given.positions && call.dense(given.positions, 1);
  const table = given.blockTable && call.dense(given.blockTable, 1);
  const [batch, count] = qkv.shape, quarter = size / 4;
  const threads = batch * count * (heads + 2 * kvHeads) * quarter;
  if (threads === 0) return;
  const workgroups = Math.ceil(threads / 64), groups = Math.min(65535, workgroups);
  const shape = {
    storage: k.dtype as AttentionStorage,
    positioned: positions !== undefined,
    paged: table !== undefined,
  };
  const views = [qkv, cos, sin, lengths, ...(positions ? [positions] : []), ...(table ? [table] : []), k, v, q];
  call.dispatch(rotaryAppend(shape), views, {
    ...{ threads, groups, count, heads, kvHeads, quarter, page },
    ...{ qkv: qkv.offset / 2, cos: cos.offset / 2, sin: sin.offset / 2, lengths: lengths.offset },
    positions: positions?.offset ?? 0,
    pages: table?.offset ?? 0,
    capacity: table ? table.shape[1] * page : page,
    pagesRow: table?.shape[1] ?? 0,
    known: cos.shape[0],
    positionsRow: positions?.shape.length === 2 ? count : 0,
  }, [groups, Math.ceil(workgroups / groups), 1]);
}
