/**
 * Gathering and scattering along one axis, seen as [outer, length, inner] and [outer, count, inner].
 *
 *   take        thread per result element (four where inner allows): reads its index, then its element
 *   scatterAdd  workgroup per update and 256 columns: if an equal index stands earlier it leaves; else it owns that row
 *               and adds all equal ones in order, so there are no atomics and sums are equal to the bit
 *
 *     indices  7 3 7 7 3        update 0 owns row 7 and adds 0, 2, 3; update 1 owns row 3 and adds 1, 4
 */
import { type DType, isFloat } from "../tensor/dtype.ts";
import { sizeOf } from "../tensor/shape.ts";
import { globalIndex, gridFor } from "./elementwise.ts";
import { each, type Kernel, kernel } from "./kernel.ts";
import { copy, type Lowering } from "./lowering.ts";
import { computeType, isPacked, load, storageType, storageType4, stored } from "./storage.ts";

/** What an index outside the axis reads. */
function missing(dtype: DType, vec: 1 | 4): string {
  if (isPacked(dtype)) {
    const twice = dtype === "f16" ? "0x7e007e00u" : "0x7fc07fc0u";
    return vec === 4 ? `vec2u(${twice})` : "bitcast<f32>(u.nan)";
  }
  const one = isFloat(dtype) ? "bitcast<f32>(u.nan)" : dtype === "bool" ? "false" : `${dtype}(0)`;
  return vec === 4 ? `${storageType4(dtype)}(${stored(dtype, one)})` : one;
}

/** y[o, i, j] = x[o, indices[i], j]; inner, and x's offset, in units of `vec` elements. */
export const take = (dtype: DType, index: "i32" | "u32", vec: 1 | 4): Kernel => {
  const output = isPacked(dtype) && vec === 1 ? "f32" : dtype;
  return kernel(`take_v${vec}_${dtype}_${index}`, {
    reads: { x: vec === 4 ? storageType4(dtype) : storageType(dtype), indices: index },
    writes: { y: vec === 4 ? storageType4(output) : storageType(output) },
    uniforms: {
      n: "u32",
      length: "u32",
      count: "u32",
      inner: "u32",
      offset: "u32",
      first: "u32",
      nan: "u32",
    },
  }, () => `
@compute @workgroup_size(256) fn main(
  @builtin(workgroup_id) group: vec3u, @builtin(num_workgroups) groups: vec3u, @builtin(local_invocation_index) lane: u32,
) {
  let t = ${globalIndex};
  if (t >= u.n) { return; }
  let j = t % u.inner; let rest = t / u.inner;
  let row = u32(indices[u.first + rest % u.count]); // a negative index is a large one
  let at = u.offset + (rest / u.count * u.length + min(row, u.length - 1u)) * u.inner + j;
  if (row < u.length) { y[t] = ${vec === 4 ? "x[at]" : stored(output, load(dtype, "x", "at"))}; }
  else { y[t] = ${vec === 4 ? missing(dtype, 4) : stored(output, missing(dtype, 1))}; }
}`);
};

/** Columns that an owner adds up, 64 apart. */
const columns = 4;

/** y[o, indices[i], j] += updates[o, i, j] in the order of i. */
export const scatterAdd = (dtype: DType, update: DType, index: "i32" | "u32"): Kernel =>
  kernel(`scatter_add_${dtype}_${update}_${index}`, {
    reads: { updates: storageType(update), indices: index },
    writes: { y: storageType(dtype) },
    uniforms: {
      length: "u32",
      count: "u32",
      inner: "u32",
      offset: "u32",
      first: "u32",
      blocks: "u32",
      groups: "u32",
    },
  }, () => `
var<workgroup> earlier: atomic<u32>;
@compute @workgroup_size(64) fn main(
  @builtin(workgroup_id) group: vec3u, @builtin(num_workgroups) groups: vec3u, @builtin(local_invocation_index) lane: u32,
) {
  let id = group.y * groups.x + group.x;
  let mine = id / u.blocks % u.count;
  let outer = id / u.blocks / u.count;
  let row = u32(indices[u.first + mine]); // a negative index is a large one
  for (var i = lane; i < mine; i += 64u) {
    if (u32(indices[u.first + i]) == row) { atomicOr(&earlier, 1u); break; }
  }
  workgroupBarrier();
  if (atomicLoad(&earlier) != 0u || row >= u.length || id >= u.groups) { return; }
  let j0 = id % u.blocks * ${64 * columns}u + lane;
  let place = (outer * u.length + row) * u.inner + j0;
  ${
    each(columns, (c) => `let in${c} = j0 + ${64 * c}u < u.inner; var sum${c} = ${computeType(dtype)}(0);`).join("\n  ")
  }
  ${each(columns, (c) => `if (in${c}) { sum${c} = y[place + ${64 * c}u]; }`).join("\n  ")}
  for (var i = mine; i < u.count; i++) {
    if (u32(indices[u.first + i]) != row) { continue; }
    let source = u.offset + (outer * u.count + i) * u.inner + j0;
    ${
    each(columns, (c) => `if (in${c}) { sum${c} += ${load(update, "updates", `source + ${64 * c}u`)}; }`).join("\n    ")
  }
  }
  ${each(columns, (c) => `if (in${c}) { y[place + ${64 * c}u] = sum${c}; }`).join("\n  ")}
}`);

/** y = elements of x by their places along an axis. */
export function lowerTake(call: Lowering<{ axis: number }>): void {
  const { axis } = call.params, [y] = call.outputs;
  const inner = sizeOf(call.inputs[0].shape.slice(axis + 1)), length = call.inputs[0].shape[axis];
  const vec = inner % 4 === 0 ? 4 : 1;
  const x = call.dense(call.inputs[0], vec), indices = call.dense(call.inputs[1], 1);
  const n = sizeOf(y.shape) / vec;
  const result = isPacked(y.dtype) && vec === 1 ? call.temporary(y.shape, "f32") : y;
  const uniforms = {
    n,
    length,
    count: sizeOf(indices.shape),
    inner: inner / vec,
    offset: x.offset / vec,
    first: indices.offset,
    nan: 0x7fc00000,
  };
  const kernel = take(x.dtype, indices.dtype as "i32" | "u32", vec);
  call.dispatch(kernel, [x, indices, result], uniforms, gridFor(n, call.capabilities.maxWorkgroups));
  if (result !== y) copy(call, result, y);
}

/** y = x, and updates added at their places along an axis; packed types are summed in f32. */
export function lowerScatterAdd(call: Lowering<{ axis: number }>): void {
  const { axis } = call.params, [y] = call.outputs, [x] = call.inputs;
  const inner = sizeOf(x.shape.slice(axis + 1)), outer = sizeOf(x.shape.slice(0, axis));
  const indices = call.dense(call.inputs[1], 1), updates = call.dense(call.inputs[2], 1);
  const count = sizeOf(indices.shape);
  const result = isPacked(y.dtype) ? call.temporary(y.shape, "f32") : y;
  copy(call, x, result);
  const blocks = Math.ceil(inner / (64 * columns)), groups = outer * count * blocks;
  const kernel = scatterAdd(result.dtype, updates.dtype, indices.dtype as "i32" | "u32");
  const uniforms = {
    length: x.shape[axis],
    count,
    inner,
    offset: updates.offset,
    first: indices.offset,
    blocks,
    groups,
  };
  call.dispatch(kernel, [updates, indices, result], uniforms, gridFor(groups * 256, call.capabilities.maxWorkgroups));
  if (result !== y) copy(call, result, y);
}
