import assert from "node:assert/strict";
import { setBackend } from "../tensor/backend.ts";
import { compile } from "../tensor/compile.ts";
import { full, tensor } from "../tensor/create.ts";
import { add, maximum, mul, square } from "../tensor/elementwise.ts";
import { key, randn } from "../tensor/random.ts";
import { max, mean, sum } from "../tensor/reduce.ts";
import type { Tensor } from "../tensor/tensor.ts";
import { adamwUpdate, sgdUpdate } from "../tensor/update.ts";
import { Arbitrary, integer } from "../testing/arbitrary.ts";
import { needAdapter } from "../testing/laws/adapter.ts";
import { property } from "../testing/property.ts";
import { type Kernel, kernel } from "./kernel.ts";
import { PooledBuffer } from "./memory.ts";
import { merge as mergeWithin, mergedKernel } from "./merge.ts";
import type { Noted } from "./recorder.ts";
import { webgpu } from "./webgpu.ts";

const gpu = await needAdapter(webgpu());
setBackend(gpu);

const entry = "@compute @workgroup_size(64) fn main(@builtin(global_invocation_id) id: vec3u) {}";
const mergeable = "@compute @workgroup_size(64) fn main(@builtin(workgroup_id) group: vec3u) {}";
const copies = kernel("merge_test_copy", { reads: { x: "f32" }, writes: { y: "f32" } }, () => mergeable);

const pool = { give() {} };
const buffer = (id: number, bytes = 256) => {
  const made = new PooledBuffer(pool, id, {} as GPUBuffer, bytes); // plans bind nothing
  made.bytes = bytes;
  return made;
};
const run = (from: PooledBuffer, to: PooledBuffer, of: Kernel = copies, groups = 1): Noted => ({
  kernel: of,
  buffers: [from, to],
  uniforms: [],
  workgroups: [groups, 1, 1],
  label: { op: "copy", kernel: of.name, bytes: 8 },
});
const merge = (list: readonly Noted[], kept = (_: PooledBuffer) => true) =>
  mergeWithin(list, kept, { maxBuffers: 8, maxWorkgroups: 65535 });
const sizes = (list: readonly Noted[]) => list.map(({ kernel }) => Number(/_x(\d+)$/.exec(kernel.name)?.[1] ?? 1));

Deno.test("dispatches of one kernel that do not wait for each other become one, as far as a device binds", () => {
  const [a, ...others] = Array.from({ length: 8 }, (_, i) => buffer(i));
  const merged = merge(others.map((b) => run(a, b)));
  assert.deepEqual(sizes(merged), [4, 3]);
  assert.deepEqual(merged[0].buffers.map(({ id }) => id), [0, 0, 0, 0, 1, 2, 3, 4]);
  assert.deepEqual([merged[0].workgroups, merged[0].label.bytes], [[4, 1, 1], 32]);
  assert.deepEqual(merged[0].uniforms, [1, 2, 3, 4].flatMap((end) => [end, 1, 1])); // and one along x and y
});

Deno.test("what reads a result, or replaces what is still to be read, stays behind", () => {
  const [a, b, c, d] = [0, 1, 2, 3].map((id) => buffer(id));
  assert.deepEqual(sizes(merge([run(a, b), run(b, c), run(c, d)])), [1, 1, 1]);
  assert.deepEqual(sizes(merge([run(a, b), run(c, a)])), [1, 1]);
  assert.deepEqual(sizes(merge([run(a, b), run(c, b)])), [1, 1]);
  // The third joins the first, before the second, which has nothing to do with it; or the first the third.
  assert.deepEqual(sizes(merge([run(a, b), run(b, c), run(a, d)])), [2, 1]);
  const other = kernel("merge_test_before", { reads: { x: "f32" }, writes: { y: "f32" } }, () => mergeable);
  assert.deepEqual(sizes(merge([run(a, b), run(a, c, other), run(c, d)])), [1, 2]);
});

Deno.test("large dispatches, and kernels of another form, stay as they are", () => {
  const [a, b, c] = [0, 1, 2].map((id) => buffer(id));
  const large = [3, 4, 5, 6].map((id) => buffer(id, 2 ** 24));
  const shape = { reads: { x: "f32" }, writes: { y: "f32" } } as const;
  const other = kernel("merge_test_other", shape, () => entry);
  const named = kernel("merge_test_u", shape, () => mergeable.replace("{}", "{ let u = vec2f(1.0); y[0] = u.x; }"));
  assert.deepEqual(sizes(merge([run(a, b, copies, 2000), run(a, c, copies, 2000)])), [1, 1]);
  const both = [run(large[0], large[1]), run(large[2], large[3])];
  assert.deepEqual(sizes(merge(both)), [1, 1]); // what one reads or writes would be kept for longer
  assert.deepEqual(sizes(merge(both, () => false)), [2]); // it is there anyway, as parameters are
  for (const one of [other, named]) assert.deepEqual(sizes(merge([run(a, b, one), run(a, c, one)])), [1, 1]);
});

Deno.test("a merged kernel has copies of what touches bindings, and one of what does not", () => {
  const one = kernel("merge_test_text", {
    reads: { x: "vec4f" },
    writes: { y: "vec4f" },
    uniforms: { n: "u32" },
  }, () =>
    `const k = 2.0; // x is read by first() alone
fn twice(v: f32) -> f32 { return k * v; }
var<workgroup> w: array<f32, 64>;
fn first(i: u32) -> f32 { return x[i].x + f32(u.n); }
@compute @workgroup_size(64) fn main(
  @builtin(workgroup_id) group: vec3u, @builtin(num_workgroups) groups: vec3u, @builtin(local_invocation_index) lane: u32,
) {
  w[lane] = twice(first(lane)) + f32(groups.x);
  workgroupBarrier();
  y[group.x].x = w[63u - lane];
}`);
  const { body, reads, writes, uniforms } = mergedKernel(one, 2);
  assert.deepEqual([reads, writes], [["x_at0", "x_at1"], ["y_at0", "y_at1"]]);
  const own = ["merged_end", "merged_x", "merged_y", "n"];
  assert.deepEqual(uniforms.map(([id]) => id), [0, 1].flatMap((i) => own.map((id) => `${id}_at${i}`)));
  for (
    const [text, times] of [["fn twice(", 1], ["var<workgroup> w", 1], ["fn first_at1(", 1], ["x_at1[i].x", 1]] as const
  ) {
    assert.equal(body.split(text).length - 1, times, `${text} in ${body}`);
  }
});

/** The kernels of a function's recording, when it gives the bits of the plain function twice. */
async function same(f: (xs: Tensor[]) => Tensor[], make: () => Tensor[]): Promise<string[]> {
  using compiled = compile(f);
  const bits = async (ys: readonly Tensor[]) => [...await Promise.all(ys.map((y) => y.bytes()))].map((b) => [...b]);
  const expected = await bits(f(make()));
  for (let i = 0; i < 2; i++) assert.deepEqual(await bits(compiled(make())), expected);
  return compiled.recordings[0].kernels.map(({ name, calls }) => `${name} ${calls}`);
}

Deno.test("the updates of many parameters are a few dispatches, and so is the norm of their gradients", async () => {
  const shapes = [[300], [7, 11], [250], [64, 5], [270]];
  const make = () => Array.from({ length: 2 * shapes.length }, (_, i) => randn(key(i), shapes[i % shapes.length]));
  const kernels = await same((xs) => {
    const params = xs.slice(0, shapes.length), grads = xs.slice(shapes.length);
    const norm = grads.map((g) => sum(square(g))).reduce((a, b) => add(a, b));
    const step = tensor(1, { dtype: "i32" }), learningRate = full([], 0.1);
    return params.flatMap((param, i) => {
      const grad = mul(grads[i], norm), zeros = () => full(shapes[i], 0);
      const done = adamwUpdate({ param, grad, m: zeros(), v: zeros(), step, learningRate });
      return [done.param, done.m, done.v];
    });
  }, make);
  const dispatches = kernels.reduce((n, line) => n + Number(line.split(" ")[1]), 0);
  assert.ok(kernels.some((name) => /^adamw_f32_f32_x5 1$/.test(name)), `${kernels}`);
  assert.ok(dispatches <= 10, `${kernels}`); // of 36
});

/** Random programs over four small tensors: maps, reductions, and updates in place. */
const arbSteps = new Arbitrary((source) =>
  Array.from({ length: integer(2, 24).draw(source) }, () => ({
    what: integer(0, 5).draw(source),
    a: integer(0, 9).draw(source),
    b: integer(0, 9).draw(source),
  }))
);

property("merged programs give the bits of plain ones", [arbSteps], async (steps) => {
  const make = () => [0, 1, 2, 3].map((i) => randn(key(i), [3, 40]));
  await same((xs) => {
    const values = [...xs], learningRate = full([], 0.5);
    for (const { what, a, b } of steps) {
      const x = values[a % values.length], y = values[b % values.length];
      if (what === 0) values.push(mul(x, y));
      if (what === 1) values.push(maximum(x, sum(y, { axis: 1, keepDims: true })));
      if (what === 2) values.push(add(x, max(y, { axis: 0, keepDims: true })));
      if (what === 3) values.push(add(y, mean(square(x))));
      if (what >= 4 && x !== y) {
        const { param } = sgdUpdate({ param: x, grad: y, learningRate });
        values[values.indexOf(x)] = param;
      }
    }
    return values;
  }, make);
}, { runs: 25 });
