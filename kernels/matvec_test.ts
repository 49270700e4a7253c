import assert from "node:assert/strict";
import { encode, hostArray } from "../tensor/dtype.ts";
import { assertClose } from "../testing/close.ts";
import { needAdapter } from "../testing/laws/adapter.ts";
import { open } from "./device.ts";
import type { MatmulDType } from "./matmul.ts";
import { matvec, type MatvecParts, type MatvecTile, pickMatvec } from "./matvec.ts";
import { BufferPool, type PooledBuffer } from "./memory.ts";
import { Pipelines } from "./pipelines.ts";
import { DispatchQueue } from "./queue.ts";
import { Readback } from "./readback.ts";

const device = await needAdapter(open());
const fail = (error: Error) => {
  throw error;
};
const queue = new DispatchQueue(device.device), pipelines = new Pipelines(device, queue.uniforms, fail);
const pool = new BufferPool(device.device, 2 ** 27, () => {}, fail), readback = new Readback(device.device, queue);

function upload(dtype: MatmulDType, values: Float64Array): PooledBuffer {
  const data = hostArray(dtype, values.length);
  data.set(values);
  const buffer = pool.take(values.length * 4, "test");
  queue.write(buffer, encode(dtype, data) as Uint8Array<ArrayBuffer>);
  return buffer;
}

/** Whole numbers over 8, which every dtype holds and every order of a sum gives exactly. */
const numbers = (count: number, seed: number) =>
  Float64Array.from({ length: count }, (_, i) => ((i * 7919 + seed * 104729) % 17 - 8) / 8);

/** The kernel's y, and what it should be. */
async function both(tile: MatvecTile, parts: MatvecParts, k: number, sections: number[], rows: number) {
  const x = numbers(rows * k, 1), norm = numbers(k, 2), weights = sections.map((n, i) => numbers(n * k, 3 + i));
  const n = parts.gated ? sections[0] : sections.reduce((a, b) => a + b), residual = numbers(rows * n, 9);
  const width = parts.dtype === "f32" ? 4 : 8, groups = Math.ceil(n / tile.teams / tile.rows);
  const y = pool.take(rows * n * 4, "test");
  const buffers = [
    upload("f32", x),
    ...(parts.norm ? [upload(parts.norm, norm)] : []),
    ...weights.map((w) => upload(parts.dtype, w)),
    ...(parts.residual ? [upload("f32", residual)] : []),
    y,
  ];
  const at = {
    x: 0,
    norm: 0,
    residual: 0,
    ...Object.fromEntries(sections.flatMap((n, i) => [[`n_w${i}`, n], [`o_w${i}`, 0]])),
  };
  const uniforms = { m: rows, n, loads: k / width, groups, eps: 1e-3, inverse: 1 / k, ...at };
  queue.dispatch(pipelines, matvec(tile, parts), buffers, uniforms, [Math.ceil(rows / parts.m), groups, 1]);
  queue.flush();
  const got = new Float32Array((await readback.read(y.buffer, 0, rows * n * 4)).buffer);
  const want = Array.from({ length: rows }, (_, i) => {
    const row = Array.from(x.subarray(i * k, (i + 1) * k));
    const scale = 1 / Math.sqrt(row.reduce((s, v) => s + v * v, 0) / k + 1e-3);
    const from = parts.norm ? row.map((v, j) => v * scale * norm[j]) : row;
    const dots = weights.flatMap((w, s) =>
      Array.from({ length: sections[s] }, (_, r) => from.reduce((sum, v, j) => sum + v * w[r * k + j], 0))
    );
    const values = parts.gated ? dots.slice(0, n).map((g, j) => g / (1 + Math.exp(-g)) * dots[n + j]) : dots;
    return values.map((v, j) => v + (parts.residual ? residual[i * n + j] : 0));
  }).flat();
  return { got, want };
}

const plain = { weights: 1, norm: null, gated: false, residual: false } as const;

Deno.test("every way to spread rows over threads gives the product, tails and all", async () => {
  const subgroup = device.capabilities.subgroupSize;
  const tiles: MatvecTile[] = [
    { lanes: 4, teams: 4, slices: 2, rows: 2, unroll: 2, subgroup: 0 },
    ...(subgroup >= 8
      ? [
        { lanes: subgroup, teams: 2, slices: 1, rows: 1, unroll: 4, subgroup },
        { lanes: subgroup, teams: 2, slices: 4, rows: 2, unroll: 1, subgroup }, // four subgroups meet in workgroup memory
        { lanes: 4, teams: 8, slices: 1, rows: 4, unroll: 2, subgroup }, // two teams share a subgroup
        { lanes: 4, teams: 2, slices: 4, rows: 1, unroll: 2, subgroup }, // slices of a row lie in several subgroups
      ]
      : []),
  ];
  for (const [i, tile] of tiles.entries()) {
    const dtype = (["bf16", "f32", "f16"] as const)[i % 3], m = [1, 2, 4, 8, 2][i], even = tile.rows;
    for (const k of [8, 264]) {
      const one = await both(tile, { ...plain, dtype, m }, k, [23], m);
      assertClose(one.got, one.want, { rtol: 1e-5, atol: 1e-5 });
    }
    const three = await both(
      tile,
      { ...plain, dtype, m, weights: 3, norm: dtype, residual: true },
      264,
      [4 * even, 2 * even, even],
      Math.max(1, m - 1),
    );
    assertClose(three.got, three.want, { rtol: 1e-5, atol: 1e-4 });
    const more = await both(tile, { ...plain, dtype, m, norm: dtype, residual: true }, 72, [23], 3 * m - m / 2 | 0);
    assertClose(more.got, more.want, { rtol: 1e-5, atol: 1e-4 });
    const gate = await both(tile, { ...plain, dtype, m, weights: 2, norm: "f32", gated: true }, 264, [23, 23], m);
    assertClose(gate.got, gate.want, { rtol: 1e-4, atol: 1e-4 });
  }
});

Deno.test("pickMatvec() fits the device, and gives a team rows of one weight", () => {
  for (const subgroupSize of [0, 8, 16, 32, 64]) {
    for (const maxInvocations of [128, 256, 1024]) {
      for (const k of [8, 64, 2048, 8192, 131072]) {
        for (const [m, blocks] of [[1, 1], [2, 1], [4, 1], [8, 1], [8, 4]]) {
          for (const sections of [[2048], [2048, 512, 512], [5, 3], [20000], [64, 64]]) {
            const gated = sections.length === 2 && sections[0] === sections[1];
            const call = { k, m, sections, blocks, dtype: "bf16" as const, gated };
            const tile = pickMatvec({ subgroupSize, maxInvocations }, call);
            assert.ok(tile.lanes * tile.teams * tile.slices <= maxInvocations && tile.teams >= 1);
            assert.equal(Math.log2(tile.lanes) % 1, 0);
            assert.ok(Number.isInteger(tile.teams) && (tile.subgroup === 0 || tile.lanes <= tile.subgroup));
            assert.ok(sections.every((n) => n % tile.rows === 0));
            assert.ok(tile.subgroup === 0 || tile.subgroup === subgroupSize);
          }
        }
      }
    }
  }
});
