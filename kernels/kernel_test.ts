import assert from "node:assert/strict";
import { each, kernel, madeKernel, wgsl } from "./kernel.ts";

Deno.test("kernel() declares reads, then writes, then the uniform block, in the order in which they are bound", () => {
  const { source, reads, writes, uniforms } = kernel("kernel_test_order", {
    writes: { y: "u32", z: "vec4f" },
    uniforms: { n: "u32", by: "f32" },
    reads: { b: "f32", a: "vec2u" },
  }, () => "// body");
  assert.deepEqual(source.split("\n"), [
    "@group(0) @binding(0) var<storage, read> b: array<f32>;",
    "@group(0) @binding(1) var<storage, read> a: array<vec2u>;",
    "@group(0) @binding(2) var<storage, read_write> y: array<u32>;",
    "@group(0) @binding(3) var<storage, read_write> z: array<vec4f>;",
    "struct Uniforms { n: u32, by: f32 }",
    "@group(0) @binding(4) var<uniform> u: Uniforms;",
    "// body",
  ]);
  assert.deepEqual([reads, writes, uniforms], [["b", "a"], ["y", "z"], [["n", "u32"], ["by", "f32"]]]);
});

Deno.test("a kernel without uniforms has no uniform block", () => {
  const { source } = kernel("kernel_test_plain", { writes: { y: "f32" } }, () => "// body");
  assert.equal(source, "@group(0) @binding(0) var<storage, read_write> y: array<f32>;\n// body");
});

Deno.test("kernel() writes the text of a name once", () => {
  let written = 0;
  const make = () =>
    kernel("kernel_test_once", { writes: { y: "f32" } }, () => {
      written++;
      return "";
    });
  assert.equal(madeKernel("kernel_test_once"), undefined);
  const first = make();
  assert.equal(make(), first);
  assert.equal(madeKernel("kernel_test_once"), first);
  assert.equal(written, 1);
});

Deno.test("wgsl joins unrolled lines by newlines, and leaves the rest as it stands", () => {
  assert.equal(
    wgsl`a${1}${"b"}\n${each(3, (i) => wgsl`y[${i}] = ${2 * i}u;`)}\n}`,
    "a1b\ny[0] = 0u;\ny[1] = 2u;\ny[2] = 4u;\n}",
  );
  assert.equal(wgsl`${[]}`, "");
  assert.deepEqual(each(0, String), []);
});
