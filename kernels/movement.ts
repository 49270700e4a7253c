/** Movement kernels: filling and placing. Views need none; copies of views are the elementwise cast. */
import type { DType } from "../tensor/dtype.ts";
import { globalIndex, locate, locateUniforms } from "./elementwise.ts";
import { type Kernel, kernel } from "./kernel.ts";
import { load, pack4, roundingFunctions, storageType, storageType4, stored } from "./storage.ts";

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
