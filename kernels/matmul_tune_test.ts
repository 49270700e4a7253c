import assert from "node:assert/strict";
import type { Backend } from "../tensor/backend.ts";
import { cpu } from "../tensor/cpu.ts";
import { UnsupportedError, ValueError } from "../tensor/errors.ts";
import { needAdapter } from "../testing/laws/adapter.ts";
import { matrixUnit, pickMatrix, useMatrixTable } from "./matmul_matrix_plan.ts";
import type { MatmulProblem } from "./matmul_plan.ts";
import { builtInMatmulTable, type MatmulTuning, tuneMatmul, useMatmulTuning } from "./matmul_tune.ts";
import { webgpu } from "./webgpu.ts";

const gpu = await needAdapter(webgpu());
const hasUnits = matrixUnit(gpu.capabilities) !== undefined;

/** A backend that only says what its device can do. */
const described = {
  description: "a card",
  capabilities: {
    ...cpu().capabilities,
    ...{ maxWorkgroupMemory: 49152, maxInvocations: 1024, subgroupSize: 32, f16: true, timestamps: true },
    subgroupMatrix: [{ m: 16, n: 16, k: 16, ab: "f16", acc: "f32" }],
  },
} as Partial<Backend> as Backend;

const square = (n: number): MatmulProblem => {
  const v = { dtype: "f16", offset: 0, transposed: false, stride: n, batchStrides: [] } as const;
  return { m: n, n, k: n, batch: [], a: v, b: v, out: "f16" };
};

const tile = { bm: 64, bn: 64, bk: 32, wm: 32, wn: 32, buffers: 1, rate: 100, wanted: 1 } as const;
const tuning: MatmulTuning = { device: "a card", table: { units: 10, tiles: [tile] } };

Deno.test("useMatmulTuning() decides which tiles products take, until the built-in table is asked for", () => {
  const { capabilities } = described,
    sizes = () => {
      const { bm, bn, bk } = pickMatrix(capabilities, square(4096))!;
      return [bm, bn, bk];
    };
  const usual = sizes();
  useMatmulTuning(described, tuning);
  assert.deepEqual(sizes(), [64, 64, 32]);
  const [first] = builtInMatmulTable(described).tiles;
  assert.equal(useMatrixTable(capabilities, undefined), tuning.table);
  assert.deepEqual(sizes(), usual);
  assert.deepEqual(usual, [first.bm, first.bn, first.bk]);
});

Deno.test("useMatmulTuning() refuses what another device measured, and what is no table", () => {
  const bad: unknown[] = [
    { ...tuning, device: "another card" },
    { ...tuning, table: { units: 0, tiles: [tile] } },
    { ...tuning, table: { units: 10, tiles: [] } },
    { ...tuning, table: { units: 10, tiles: [{ ...tile, rate: NaN }] } },
    { ...tuning, table: { units: 10, tiles: [{ ...tile, bm: "64" }] } },
    { device: "a card" },
  ];
  for (const each of bad) assert.throws(() => useMatmulTuning(described, each as MatmulTuning), ValueError);
});

Deno.test("tuneMatmul() refuses sizes that are none, and devices without matrix units", async () => {
  for (const options of [{ large: 0 }, { small: 1.5 }, { runs: NaN }, { ramp: -1 }, { ramp: NaN }]) {
    await assert.rejects(tuneMatmul(described, options), ValueError);
  }
  await assert.rejects(tuneMatmul(cpu()), UnsupportedError);
});

Deno.test("tuneMatmul() measures every tile that the device has room for, where it has matrix units", async () => {
  const seen: string[] = [];
  const tuned = tuneMatmul(gpu, {
    large: 32,
    small: 32,
    runs: 1,
    ramp: 0,
    onProgress: (_done, _of, tile) => seen.push(tile),
  });
  if (!hasUnits) return await assert.rejects(tuned, UnsupportedError);
  const { device, table } = await tuned;
  assert.equal(device, gpu.description);
  assert.deepEqual(table.tiles.map(({ bm, bn, bk }) => `${bm}x${bn}x${bk}`), seen);
  assert.ok(seen.length > 1 && table.tiles.every(({ rate, wanted }) => rate > 0 && wanted >= 1), JSON.stringify(table));
  assert.equal(useMatrixTable(gpu.capabilities, undefined), table);
});
