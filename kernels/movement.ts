/**
 * Movement kernels: filling, placing and turning. Views need none; copies of views are the elementwise cast, but for
 * large transposed ones of 32-bit types, which go through tiles of workgroup memory:
 *
 *   x ──32 elements of a column, adjacent in memory──▶ tile ──32 elements of a row──▶ y
 *
 * Floor for the copy of a transposed [8192, 8192] f32: 0.54 GB at 4.07 TB/s = 0.132 ms.
 *   v1  each thread reads where its element lies     0.53 ms on an H200, 1.0 TB/s
 *   v2  tiles, padded so that columns lie apart      0.144, 3.7 TB/s  ◀ this file
 */
import type { DType } from "../tensor/dtype.ts";
import { collapse, type Layout } from "../tensor/shape.ts";
import { globalIndex, locate, locateUniforms } from "./elementwise.ts";
import { each, type Kernel, kernel } from "./kernel.ts";
import { isPacked, load, pack4, roundingFunctions, storageType, storageType4, stored } from "./storage.ts";

const entry = `@compute @workgroup_size(256) fn main(
  @builtin(workgroup_id) group: vec3u, @builtin(num_workgroups) groups: vec3u, @builtin(local_invocation_index) lane: u32,
)`;

/** y[i] = value, four elements a thread; the value's bits come as a uniform word, packed types twice in it. */
export const fill = (dtype: DType): Kernel =>
  kernel(`fill_${dtype}`, { writes: { y: "vec4u" }, uniforms: { n: "u32", bits: "u32" } }, () => `
${entry} {
  let t = ${globalIndex};
  if (t < u.n) { y[t] = vec4u(u.bits); }
}`);

/** y[i] = start + i · step, four elements a thread. Floats count in i32 first, so that whole numbers stay exact. */
export const arange = (dtype: DType): Kernel => {
  const whole = dtype === "i32" || dtype === "u32";
  return kernel(`arange_${dtype}`, {
    writes: { y: storageType4(dtype) },
    uniforms: { n: "u32", start: whole ? "i32" : "f32", step: whole ? "i32" : "f32" },
  }, () => {
    const at = (j: number) =>
      whole ? `${dtype}(u.start + i32(4u * t + ${j}u) * u.step)` : `fma(f32(4u * t + ${j}u), u.step, u.start)`;
    return `${roundingFunctions(dtype)}
${entry} {
  let t = ${globalIndex};
  if (t < u.n) { y[t] = ${pack4(dtype, [0, 1, 2, 3].map(at))}; }
}`;
  });
};

/** y[place(i)] = x[i]: a view of x into a strided part of y, of a 32-bit type. */
export const place = (dtype: DType, rank: number): Kernel =>
  kernel(`place${rank}_${dtype}`, {
    reads: { a: storageType(dtype) },
    writes: { b: storageType(dtype) },
    uniforms: { n: "u32", ...locateUniforms(2, rank) },
  }, () => `
${entry} {
  let t = ${globalIndex};
  if (t >= u.n) { return; }
  ${locate(2, rank, "t")}
  b[at_b] = ${stored(dtype, load(dtype, "a", "at_a"))};
}`);

/** Elements of a tile's side. */
const side = 32;
/** Smaller copies stay elementwise, which others can be fused with. */
const fewest = 2 ** 18;

/** y[b, r, c] = x[offset + b · batch + r + c · step], a tile a workgroup. */
export const turn = (dtype: DType): Kernel =>
  kernel(`turn_${dtype}`, {
    reads: { x: storageType(dtype) },
    writes: { y: storageType(dtype) },
    uniforms: { rows: "u32", columns: "u32", offset: "u32", batch: "u32", step: "u32" },
  }, () => {
    const part = (i: number) => `${i * 8}u`;
    return `
var<workgroup> tile: array<${storageType(dtype)}, ${side * (side + 1)}>;
@compute @workgroup_size(256) fn main(
  @builtin(workgroup_id) group: vec3u, @builtin(local_invocation_index) lane: u32,
) {
  let near = lane % ${side}u; let far = lane / ${side}u;
  let row = group.y * ${side}u; let column = group.x * ${side}u;
  let source = u.offset + group.z * u.batch + row + near;
  ${
      each(side / 8, (i) => `
  if (row + near < u.rows && column + far + ${part(i)} < u.columns) {
    tile[(far + ${part(i)}) * ${side + 1}u + near] = x[source + (column + far + ${part(i)}) * u.step];
  }`).join("")
    }
  workgroupBarrier();
  let target_at = group.z * u.rows * u.columns + column + near;
  ${
      each(side / 8, (i) => `
  if (row + far + ${part(i)} < u.rows && column + near < u.columns) {
    y[target_at + (row + far + ${part(i)}) * u.columns] = tile[near * ${side + 1}u + far + ${part(i)}];
  }`).join("")
    }
}`;
  });

/** How a layout is copied by tiles: batches of transposed matrices; null where it is not worth it. */
export function turnOf(
  layout: Layout,
  dtype: DType,
  maxWorkgroups: number,
): { uniforms: Record<string, number>; workgroups: [number, number, number] } | null {
  if (isPacked(dtype)) return null;
  const { shape, strides: [strides] } = collapse(layout.shape, [layout.strides]);
  if (shape.length !== 2 && shape.length !== 3) return null;
  const [rows, columns] = shape.slice(-2), [one, step] = strides.slice(-2);
  const count = shape.length === 3 ? shape[0] : 1, batch = shape.length === 3 ? strides[0] : 0;
  if (one !== 1 || step <= 1 || rows < side || columns < side || count * rows * columns < fewest) return null;
  const workgroups: [number, number, number] = [Math.ceil(columns / side), Math.ceil(rows / side), count];
  if (workgroups.some((n) => n > maxWorkgroups)) return null;
  return { uniforms: { rows, columns, offset: layout.offset, batch, step }, workgroups };
}
