import assert from "node:assert/strict";
import { type MatmulCapabilities, type MatmulProblem, type MatmulView, pickMatmul, planMatmul } from "./matmul_plan.ts";

const devices: MatmulCapabilities[] = [
  { maxWorkgroupMemory: 49152, maxInvocations: 1024, subgroupSize: 32 },
  { maxWorkgroupMemory: 16384, maxInvocations: 256, subgroupSize: 0 },
  { maxWorkgroupMemory: 16352, maxInvocations: 128, subgroupSize: 64 },
  { maxWorkgroupMemory: 32768, maxInvocations: 1024, subgroupSize: 8 },
];

const sizes = [0, 1, 2, 5, 8, 9, 33, 64, 130, 1000, 4096, 128256];

function view(rows: number, cols: number, transposed: boolean, batch: readonly number[], offset = 0): MatmulView {
  let step = rows * cols;
  const batchStrides = batch.toReversed().map((n) => (step *= n) / n).reverse();
  return { dtype: "f32", offset, transposed, stride: transposed ? rows : cols, batchStrides };
}

function problem(m: number, n: number, k: number, layout = "nn", batch: readonly number[] = []): MatmulProblem {
  return {
    ...{ m, n, k, batch, out: "f32" },
    a: view(m, k, layout[0] === "t", batch),
    b: view(k, n, layout[1] === "t", batch),
  };
}

function* problems(): Generator<MatmulProblem> {
  for (const m of sizes) {
    for (const n of sizes) {
      for (const k of sizes) for (const layout of ["nn", "nt", "tn", "tt"]) yield problem(m, n, k, layout);
    }
  }
}

Deno.test("pickMatmul() keeps to what the device has", () => {
  for (const device of devices) {
    for (const p of problems()) {
      const { kernel } = planMatmul(device, p);
      const threads = Number(kernel.source.match(/@workgroup_size\((\d+)\)/)?.[1]);
      assert.ok(threads >= 1 && threads <= device.maxInvocations, kernel.name);
      let bytes = 0;
      for (const [, type] of kernel.source.matchAll(/var<workgroup> \w+: (.*);/g)) {
        const lengths = [...type.matchAll(/, (\d+)>/g)].map(([, n]) => Number(n));
        bytes += lengths.reduce((x, y) => x * y, type.includes("vec4f") ? 16 : 4);
      }
      assert.ok(bytes > 0 && bytes <= device.maxWorkgroupMemory, `${kernel.name}: ${bytes}`);
    }
  }
});

Deno.test("pickMatmul() refuses a device that no tile fits", () => {
  const device = { maxWorkgroupMemory: 1024, maxInvocations: 256, subgroupSize: 32 };
  assert.throws(() => pickMatmul(device, problem(64, 64, 64)), /\[matmul\] no tile fits: 1024 bytes/);
});

Deno.test("planMatmul() covers all of C and all of k, and nothing of an empty C", () => {
  for (const device of devices) {
    for (const p of problems()) {
      const { workgroups, uniforms: u, splits, kernel, scratchBytes, sum } = planMatmul(device, p);
      assert.ok(workgroups.every((n) => n <= 65535));
      assert.ok(workgroups[0] * workgroups[1] * workgroups[2] >= u.workgroups, kernel.name);
      assert.equal(u.m * u.n, p.m * p.n);
      if (p.m * p.n === 0) {
        assert.equal(u.workgroups, 0);
        continue;
      }
      assert.equal(u.workgroups, u.tilesM * u.tilesN * splits);
      assert.ok(splits * u.chunk >= p.k && (splits - 1) * u.chunk < Math.max(1, p.k), `${kernel.name} ${p.k}`);
      assert.equal(scratchBytes, splits > 1 ? splits * u.partial * 4 : 0);
      assert.equal(sum === undefined, splits === 1);
    }
  }
});

Deno.test("planMatmul() splits k only where it leaves multiprocessors idle otherwise", () => {
  const [device] = devices;
  assert.equal(planMatmul(device, problem(4096, 4096, 4096)).splits, 1);
  assert.ok(planMatmul(device, problem(64, 64, 8192)).splits > 1);
  assert.ok(planMatmul(device, problem(1, 1, 1 << 24, "nt")).splits > 1);
});

Deno.test("planMatmul() reads whole vectors only where every row of every matrix starts at one", () => {
  const read = (p: MatmulProblem) => planMatmul(devices[0], p).kernel.source.match(/> a: array<(\w+)>/)?.[1];
  const p = problem(64, 64, 64, "nn", [3]);
  assert.equal(read(p), "vec4f");
  assert.equal(read({ ...p, a: { ...p.a, offset: 2 } }), "f32");
  assert.equal(read({ ...p, a: { ...p.a, stride: 66 } }), "f32");
  assert.equal(read({ ...p, a: { ...p.a, batchStrides: [4097] } }), "f32");
  assert.equal(read({ ...p, batch: [1], a: { ...p.a, batchStrides: [4097] } }), "vec4f");
});

Deno.test("planMatmul() makes rows of a batch that continues A's rows", () => {
  const p = problem(16, 64, 32, "nn", [2, 5]);
  const { uniforms } = planMatmul(devices[0], { ...p, b: { ...p.b, batchStrides: [0, 0] } });
  assert.deepEqual([uniforms.m, uniforms.batch1, uniforms.batch2], [160, 1, 1]);
});

Deno.test("planMatmul() refuses four batch dimensions that do not merge", () => {
  const p = problem(16, 64, 32, "nn", [2, 3, 2, 3]);
  const b = { ...p.b, batchStrides: [0, 2048, 0, 2048] };
  assert.throws(() => planMatmul(devices[0], { ...p, b }), /4 batch dimensions/);
});
