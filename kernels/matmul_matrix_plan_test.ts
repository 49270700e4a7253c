import assert from "node:assert/strict";
import type { MatrixTile } from "./matmul_matrix.ts";
import { matrixUnit, pickMatrix } from "./matmul_matrix_plan.ts";
import { type MatmulCapabilities, type MatmulProblem, type MatmulView, planMatmul } from "./matmul_plan.ts";

const config = (m: number, n: number, k: number, ab = "f16", acc = "f32") => ({ m, n, k, ab, acc });
const nvidia: MatmulCapabilities = {
  ...{ maxWorkgroupMemory: 49152, maxInvocations: 1024, subgroupSize: 32, f16: true },
  subgroupMatrix: [config(16, 8, 8), config(16, 16, 16), config(16, 8, 16), config(16, 16, 32, "i8", "i32")],
};
const apple: MatmulCapabilities = {
  ...{
    maxWorkgroupMemory: 32768,
    maxInvocations: 1024,
    subgroupSize: 32,
    f16: true,
    subgroupMatrix: [config(8, 8, 8)],
  },
};
const software: MatmulCapabilities = { ...apple, subgroupSize: 8 };
const devices = [nvidia, apple, software, { ...nvidia, subgroupMatrix: [config(16, 8, 16)] }];

function view(rows: number, cols: number, transposed: boolean, dtype: MatmulView["dtype"]): MatmulView {
  return { dtype, offset: 0, transposed, stride: transposed ? rows : cols, batchStrides: [] };
}

function problem(m: number, n: number, k: number, layout = "nn", dtype: MatmulView["dtype"] = "f16"): MatmulProblem {
  const [a, b] = [view(m, k, layout[0] === "t", dtype), view(k, n, layout[1] === "t", dtype)];
  return { m, n, k, batch: [], a, b, out: dtype };
}

function* problems(): Generator<MatmulProblem> {
  for (
    const [m, n, k] of [[16, 16, 16], [33, 45, 19], [64, 4096, 2048], [1000, 24, 72], [4096, 4096, 4096], [
      9,
      128256,
      2048,
    ]]
  ) {
    for (const layout of ["nn", "nt", "tn", "tt"]) {
      for (const dtype of ["f16", "bf16"] as const) yield problem(m, n, k, layout, dtype);
    }
  }
}

Deno.test("matrixUnit() takes the largest shape that multiplies f16 and sums in f32", () => {
  assert.deepEqual(matrixUnit(nvidia), { m: 16, n: 16, k: 16 });
  assert.deepEqual(matrixUnit(apple), { m: 8, n: 8, k: 8 });
  for (const none of [undefined, [], [config(16, 16, 16, "f16", "f16")], [config(16, 16, 32, "u8", "u32")]]) {
    assert.equal(matrixUnit({ subgroupMatrix: none }), undefined);
  }
});

Deno.test("pickMatrix() leaves f32, single rows and devices without units to the portable kernels", () => {
  assert.equal(pickMatrix(nvidia, problem(512, 512, 512, "nn", "f32")), undefined);
  assert.equal(pickMatrix({ ...nvidia, f16: false }, problem(512, 512, 512)), undefined);
  assert.equal(pickMatrix({ ...nvidia, subgroupMatrix: [] }, problem(512, 512, 512)), undefined);
  assert.notEqual(planMatmul(nvidia, problem(4, 4096, 4096)).choice.kind, "matrix");
  assert.equal(planMatmul(nvidia, problem(512, 512, 512)).choice.kind, "matrix");
});

Deno.test("planMatmul() on matrix units keeps to what the device has, and covers all of C and k", () => {
  for (const device of devices) {
    for (const p of problems()) {
      const { choice, kernel, uniforms: u, workgroups, splits, sum, scratchBytes } = planMatmul(device, p);
      if (choice.kind !== "matrix") continue;
      const threads = Number(kernel.source.match(/@workgroup_size\((\d+)\)/)?.[1]);
      assert.ok(threads <= device.maxInvocations && threads % device.subgroupSize === 0, kernel.name);
      assert.ok(16 * Number(kernel.source.match(/vec4u, (\d+)>/)?.[1]) <= device.maxWorkgroupMemory, kernel.name);
      assert.ok(u.tilesM * choice.bm >= p.m && u.tilesN * choice.bn >= p.n, kernel.name);
      assert.ok(splits * u.chunk >= p.k && (splits - 1) * u.chunk < p.k, kernel.name);
      assert.ok(workgroups[0] * workgroups[1] >= u.workgroups && workgroups.every((x) => x <= 65535));
      assert.equal(u.workgroups, u.tilesM * u.tilesN * splits);
      assert.deepEqual([sum === undefined, scratchBytes], [splits === 1, splits === 1 ? 0 : splits * u.partial * 4]);
      const inner = Number(kernel.name.match(/_i(\d+)/)?.[1] ?? 1);
      assert.equal(u.chunk / choice.bk % inner, 0, kernel.name);
      if (inner > 1) assert.equal(p.k % (inner * choice.bk), 0, kernel.name);
    }
  }
});

Deno.test("planMatmul() packs what is not f16 in whole vectors, and nothing else", () => {
  const packs = (p: MatmulProblem) => planMatmul(software, p).packs.map(({ operand }) => operand).join("");
  assert.equal(packs(problem(32, 48, 64)), "");
  assert.equal(packs(problem(33, 48, 64, "nt")), "");
  assert.equal(packs(problem(33, 48, 64, "tn")), "a");
  assert.equal(packs(problem(32, 45, 64)), "b");
  assert.equal(packs(problem(32, 48, 63)), "a");
  assert.equal(packs(problem(32, 48, 64, "nn", "bf16")), "ab");
  const p = problem(32, 48, 64);
  assert.equal(packs({ ...p, a: { ...p.a, offset: 4 }, b: { ...p.b, dtype: "bf16" } }), "ab");
});

Deno.test("planMatmul() packs a repeated operand once, and steps through it as its batch does", () => {
  const p: MatmulProblem = {
    ...problem(20, 24, 33, "nn", "bf16"),
    batch: [2, 3],
    a: { ...view(20, 33, false, "bf16"), batchStrides: [660, 0] },
    b: { ...view(33, 24, false, "bf16"), batchStrides: [0, 792] },
  };
  const { packs, uniforms: u } = planMatmul(software, p);
  assert.deepEqual(packs.map(({ bytes }) => bytes), [2 * 20 * 5 * 16, 3 * 24 * 33 * 2]);
  assert.deepEqual(packs.map(({ exponents }) => exponents), [40, 72]);
  assert.deepEqual([u.a1, u.a2, u.b1, u.b2], [20 * 40, 0, 0, 24 * 33]);
});

Deno.test("a tile may be forced", () => {
  const tile: MatrixTile = {
    ...{ kind: "matrix", bm: 64, bn: 64, bk: 32, wm: 32, wn: 32, buffers: 1, splits: 2, lanes: 32 },
    unit: { m: 16, n: 16, k: 16 },
  };
  assert.match(planMatmul(nvidia, problem(64, 64, 1024), () => tile).kernel.name, /^matmul_matrix_64x64x32_32x32_1/);
});
