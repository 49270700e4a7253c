/**
 * Gathering and scattering along an axis.
 *
 *   take         thread t moves one word (or four) of the result, whatever the dtype: 16-bit rows of even length are rows
 *                of words too
 *   scatterAdd   1. order: thread i counts, over all updates, those of a smaller index and earlier ones of its own; the
 *                   sum is its place in a stable sort, written without atomics
 *                2. add: the workgroup at the start of a run of equal indices adds the run to its row, in order
 *
 * So equal indices add up in the same order each time and results are equal to the bit from run to run. Step 1 compares
 * every pair, and takes at most 16384 updates at a time to stay small.
 *
 * Floor for taking 2^16 rows of 1024 f32: 537 MB read and written at 4.07 TB/s = 0.13 ms; measured on an H200: 0.141.
 * Scattering 16384 rows of 1024 f32 there: add 0.057 ms; order, one thread an update 0.897, sixteen 0.131 ◀ this file.
 */
import { type DType, isFloat } from "../tensor/dtype.ts";
import { sizeOf } from "../tensor/shape.ts";
import { globalIndex, gridFor } from "./elementwise.ts";
import { each, type Kernel, kernel } from "./kernel.ts";
import { copy, type Lowering, type View } from "./lowering.ts";
import { isPacked, load, storageBytes, storageType, storageType4, unpack4 } from "./storage.ts";

const entry = (lanes: number) =>
  `@compute @workgroup_size(${lanes}) fn main(
  @builtin(workgroup_id) group: vec3u, @builtin(num_workgroups) groups: vec3u, @builtin(local_invocation_index) lane: u32,
)`;

/** y[o, i] = x[o, index i], rows of words. */
const take = (vec: 1 | 4): Kernel => {
  const type = vec === 4 ? "vec4u" : "u32";
  return kernel(`take_v${vec}`, {
    reads: { x: type, index: "u32" },
    writes: { y: type },
    uniforms: { n: "u32", inner: "u32", count: "u32", length: "u32", x: "u32", index: "u32", missing: "u32" },
  }, () =>
    `${entry(256)} {
  let t = ${globalIndex};
  if (t >= u.n) { return; }
  let row = t / u.inner;
  let column = t % u.inner;
  let outer = row / u.count;
  let at = index[u.index + row % u.count];
  var value = ${type}(u.missing);
  if (at < u.length) { value = x[u.x + (outer * u.length + at) * u.inner + column]; }
  y[t] = value;
}`);
};

/** Updates that a workgroup places, and slices of the comparisons that its lanes share. */
const placed = 16, slices = 16;

/** The places of updates `first` … `first + n − 1` in a stable sort by index, and the lengths of runs at their starts. */
const order = (): Kernel =>
  kernel("scatter_order", {
    reads: { index: "u32" },
    writes: { sorted: "u32", runs: "u32" },
    uniforms: { n: "u32", first: "u32", index: "u32" },
  }, () => `
var<workgroup> tile: array<u32, 256>;
var<workgroup> counts: array<vec3u, 256>;
${entry(256)} {
  let i = (group.y * groups.x + group.x) * ${placed}u + lane % ${placed}u;
  let slice = lane / ${placed}u;
  let mine = index[u.index + u.first + min(i, u.n - 1u)];
  var count = vec3u(); // smaller; equal and earlier; equal
  for (var start = 0u; start < u.n; start += 256u) {
    workgroupBarrier();
    tile[lane] = index[u.index + u.first + min(start + lane, u.n - 1u)];
    workgroupBarrier();
    let j = start + slice * ${slices}u;
    ${
    each(256 / slices, (k) => `count += compare(mine, tile[slice * ${slices}u + ${k}u], j + ${k}u, i);`).join("\n    ")
  }
  }
  counts[lane] = count;
  workgroupBarrier();
  if (slice == 0u && i < u.n) {
    ${each(slices - 1, (s) => `count += counts[lane + ${(s + 1) * placed}u];`).join(" ")}
    sorted[count.x + count.y] = u.first + i;
    runs[count.x + count.y] = select(0u, count.z, count.y == 0u);
  }
}
fn compare(mine: u32, other: u32, j: u32, i: u32) -> vec3u {
  let there = j < u.n;
  let same = other == mine && there;
  return vec3u(u32(other < mine && there), u32(same && j < i), u32(same));
}`);

/** y[o, index] += the updates of a run; lanes share a row. */
const add = (dtype: DType, output: DType, vec: 1 | 4, lanes: number): Kernel =>
  kernel(`scatter_add_${dtype}_${output}_v${vec}_l${lanes}`, {
    reads: {
      index: "u32",
      sorted: "u32",
      runs: "u32",
      updates: vec === 4 ? storageType4(dtype) : storageType(dtype),
    },
    writes: { y: vec === 4 ? storageType4(output) : storageType(output) },
    uniforms: { n: "u32", outer: "u32", count: "u32", inner: "u32", length: "u32", updates: "u32", index: "u32" },
  }, () => {
    const type = `vec4${output === "f32" ? "f" : output === "i32" ? "i" : "u"}`;
    const read = (at: string) => {
      if (vec === 1) return load(dtype, "updates", at);
      return isPacked(dtype) ? `${type}(${unpack4(dtype, `updates[${at}]`).join(", ")})` : `updates[${at}]`;
    };
    return `${entry(lanes)} {
  let g = group.y * groups.x + group.x;
  if (g >= u.n * u.outer) { return; }
  let p = g % u.n;
  let outer = g / u.n;
  let run = runs[p];
  if (run == 0u) { return; }
  let row = index[u.index + sorted[p]];
  if (row >= u.length) { return; }
  let to = (outer * u.length + row) * u.inner;
  let base = u.updates + outer * u.count * u.inner;
  for (var c = lane; c < u.inner; c += ${lanes}u) {
    var sum = y[to + c];
    var k = 0u;
    for (; k + 4u <= run; k += 4u) {
      ${each(4, (i) => `let v${i} = ${read(`base + sorted[p + k + ${i}u] * u.inner + c`)};`).join("\n      ")}
      ${each(4, (i) => `sum += v${i};`).join(" ")}
    }
    for (; k < run; k++) { sum += ${read("base + sorted[p + k] * u.inner + c")}; }
    y[to + c] = sum;
  }
}`;
  });

/** Updates that are put in order at a time. */
const block = 16384;

interface Axes {
  readonly outer: number;
  readonly length: number;
  readonly inner: number;
}

function axesOf(x: View, axis: number): Axes {
  return { outer: sizeOf(x.shape.slice(0, axis)), length: x.shape[axis], inner: sizeOf(x.shape.slice(axis + 1)) };
}

const missing: Readonly<Record<string, number>> = { f32: 0x7fc00000, f16: 0x7e007e00, bf16: 0x7fc07fc0 };

/** y = x at indices along an axis. */
export function lowerTake(call: Lowering<{ axis: number }>): void {
  const [x, indices] = call.inputs, [y] = call.outputs, { axis } = call.params;
  if (!isPacked(x.dtype) || sizeOf(x.shape.slice(axis + 1)) % 2 === 0) return takeRows(call, x, indices, axis, y);
  const wide = call.temporary(x.shape, "f32"), taken = call.temporary(y.shape, "f32"); // two rows share a word
  if (sizeOf(x.shape) > 0) copy(call, x, wide);
  takeRows(call, wide, indices, axis, taken);
  copy(call, taken, y);
}

function takeRows(call: Lowering<unknown>, x: View, indices: View, axis: number, y: View): void {
  const { outer, length, inner } = axesOf(x, axis);
  const rows = call.dense(x), index = call.dense(indices, 1), count = sizeOf(indices.shape);
  const width = storageBytes(x.dtype), words = inner * width / 4;
  const vec = words % 4 === 0 && rows.offset * width % 16 === 0 ? 4 : 1;
  const n = outer * count * words / vec;
  const uniforms = {
    n,
    inner: words / vec,
    count,
    length,
    x: rows.offset * width / 4 / vec,
    index: index.offset,
    missing: isFloat(x.dtype) ? missing[x.dtype] : 0,
  };
  call.dispatch(take(vec), [rows, index, y], uniforms, gridFor(n, call.capabilities.maxWorkgroups));
}

/** y = x with updates added at indices along an axis. */
export function lowerScatterAdd(call: Lowering<{ axis: number }>): void {
  const [x, indices, updates] = call.inputs, [y] = call.outputs, { outer, length, inner } = axesOf(x, call.params.axis);
  const target = isPacked(y.dtype) ? call.temporary(y.shape, "f32") : y;
  copy(call, x, target);
  const index = call.dense(indices, 1), from = call.dense(updates), count = sizeOf(indices.shape);
  const vec = inner % 4 === 0 ? 4 : 1, lanes = inner / vec > 64 ? 256 : 64;
  const { maxWorkgroups } = call.capabilities;
  for (let start = 0; start < count && outer * inner > 0; start += block) {
    const n = Math.min(block, count - start);
    const sorted = call.temporary([n], "u32"), runs = call.temporary([n], "u32");
    const groups = gridFor(n * 256 / placed, maxWorkgroups);
    call.dispatch(order(), [index, sorted, runs], { n, first: start, index: index.offset }, groups);
    const uniforms = { n, outer, count, inner: inner / vec, length, updates: from.offset / vec, index: index.offset };
    const kernel = add(from.dtype, target.dtype, vec, lanes);
    call.dispatch(kernel, [index, sorted, runs, from, target], uniforms, gridFor(n * outer * 256, maxWorkgroups));
  }
  if (target !== y) copy(call, target, y);
}
