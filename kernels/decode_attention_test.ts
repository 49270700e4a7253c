import assert from "node:assert/strict";
import type { Backend } from "../tensor/backend.ts";
import { cpu } from "../tensor/cpu.ts";
import { tensor } from "../tensor/create.ts";
import { decodeAttention, decodeAttentionOp } from "../tensor/decode_attention.ts";
import { runAll } from "../tensor/op.ts";
import { foldIn, key, randn } from "../tensor/random.ts";
import { assertClose } from "../testing/close.ts";
import { needAdapter } from "../testing/laws/adapter.ts";
import type { AttentionStorage } from "./attention_common.ts";
import {
  type DecodeAttentionKernel,
  decodeAttentionKernel,
  decodeAttentionMemory,
  decodeChunk,
  pickDecodeAttention,
} from "./decode_attention.ts";
import { webgpu } from "./webgpu.ts";

const host = cpu(), adapter = await needAdapter(webgpu());
/** The same adapter with the threads that a large device is given: a chunk asks of a subgroup only that it holds a key's lanes. */
const large = await needAdapter(webgpu());
Object.assign(large.capabilities, { subgroupSize: 32, maxWorkgroupMemory: 49152 });

interface Case {
  readonly storage: AttentionStorage;
  readonly size: number;
  readonly group: number;
  readonly kvHeads?: number;
  readonly capacity: number;
  readonly lengths: readonly number[];
  readonly leftpad?: readonly number[];
  readonly page?: number;
}

/** Numbers of few bits, so that the turned key is the same in any precision and rounds to the same. */
const drawn = (await randn(key(11, { backend: host }), [9973]).data()).map((x) => Math.round(x * 64) / 64);
const few = (i: number, size: number) => Float32Array.from({ length: size }, (_, n) => drawn[(n + i * 1009) % 9973]);

/** What a backend makes of a case whose cache is NaN wherever no row may look. */
async function results(backend: Backend, one: Case) {
  const { storage, size, group, kvHeads = 1, capacity, lengths, leftpad, page } = one;
  const batch = lengths.length, heads = group * kvHeads, pages = Math.ceil(capacity / (page ?? capacity));
  const room = pages * (page ?? capacity), blocks = batch * pages, row = kvHeads * size;
  const table = Array.from({ length: blocks }, (_, i) => blocks - 1 - i);
  const [k, v] = [few(1, batch * room * row), few(2, batch * room * row)];
  for (let b = 0; b < batch; b++) {
    for (let j = 0; j < room; j++) {
      if (j >= (leftpad?.[b] ?? 0) && j < lengths[b]) continue;
      const at = page ? table[b * pages + Math.floor(j / page)] * page + j % page : b * room + j;
      for (const x of [k, v]) x.fill(j % 3 === 1 ? Infinity : NaN, at * row, (at + 1) * row);
    }
  }
  // Rows of the table that no text reaches name no block.
  const dead = table.map((block, i) => (i % pages) * (page ?? room) > lengths[Math.floor(i / pages)] ? -1 : block);
  const shape = [...(page ? [blocks, page] : [batch, room]), kvHeads, size];
  const on = (data: ArrayLike<number>, shape: readonly number[], dtype: "f32" | "i32" | AttentionStorage = "f32") =>
    tensor(data as Float32Array, { shape: [...shape], dtype, backend });
  const angles = [room + 2, size / 2],
    turns = (step: number) =>
      Float32Array.from({ length: angles[0] * angles[1] }, (_, i) => [0.5, -1, 0.25, 1, -0.5][(i * step) % 5]);
  const [kOut, vOut, out] = runAll(decodeAttentionOp, [
    on(k, shape, storage),
    on(v, shape, storage),
    on(few(3, batch * (heads + 2 * kvHeads) * size), [batch, 1, (heads + 2 * kvHeads) * size]),
    on(turns(1), angles),
    on(turns(3), angles),
    on(Int32Array.from(lengths), [batch], "i32"),
    ...(leftpad ? [on(Int32Array.from(leftpad), [batch], "i32")] : []),
    ...(page ? [on(Int32Array.from(backend === host ? table : dead), [batch, pages], "i32")] : []),
  ], { heads, padded: leftpad !== undefined, paged: page !== undefined });
  return { k: await kOut.bytes(), v: await vOut.bytes(), out: await out.data() };
}

async function check(one: Case): Promise<void> {
  const wanted = await results(host, one);
  for (const backend of [adapter, large]) {
    const got = await results(backend, one);
    assertClose(got.out, wanted.out, { rtol: 2e-5, atol: 4e-6 });
    assert.deepEqual(got.k, wanted.k);
    assert.deepEqual(got.v, wanted.v);
    assert.deepEqual((await results(backend, one)).out, got.out);
  }
}

const storages = ["bf16", "f32", "f16"] as const;

Deno.test("heads of 8 to 256 numbers in groups of one to eight see their keys alone, the new one among them", async () => {
  for (const [i, size] of [8, 16, 32, 64, 128, 256].entries()) {
    for (const [n, group] of [1 + i, 8 - i].entries()) {
      const capacity = n === 0 ? 37 : 128;
      await check({
        ...{ storage: storages[(i + n) % 3], size, group, kvHeads: 2 - n, capacity },
        lengths: [0, 1, capacity - 1, capacity],
      });
    }
  }
});

Deno.test("groups up to eight heads, and parts of long texts, give what the CPU gives", async () => {
  for (const [group, size, capacity, past] of [[8, 32, 100, 99], [5, 64, 300, 270], [4, 64, 2100, 2050]]) {
    const drawn = (i: number, shape: number[]) => randn(foldIn(key(7, { backend: host }), i), shape);
    const data = [
      drawn(1, [2, 1, (group + 2) * size]),
      drawn(2, [capacity, size / 2]),
      drawn(3, [capacity, size / 2]),
      drawn(4, [2, capacity, 1, size]),
      drawn(5, [2, capacity, 1, size]),
    ];
    const results = await Promise.all([host, adapter].map(async (backend) => {
      const [qkv, cos, sin, k, v] = data.map((x, i) =>
        tensor(x.dataSync(), { shape: x.shape, dtype: i < 3 ? "f32" : "bf16", backend })
      );
      const lengths = tensor([past, 40], { dtype: "i32", backend });
      const { out, cache } = decodeAttention(qkv, { k, v }, { heads: group, cos, sin, lengths });
      return await Promise.all([out.data(), cache.k.data(), cache.v.data()]);
    }));
    assertClose(results[1][0], results[0][0], { rtol: 1e-4, atol: 1e-5 });
    assertClose(results[1][1], results[0][1], { rtol: 2 ** -7, atol: 1e-6 });
    assert.deepEqual(results[1][2], results[0][2]);
  }
});

Deno.test("padding, pages and room for many chunks change nothing", async () => {
  for (const [i, size] of [8, 64, 256].entries()) {
    const lengths = [-1, 20, 150, 299, 330], leftpad = [0, 20, 140, 0, 21];
    for (const [n, capacity] of [300, [2500, 1100, 700][i]].entries()) {
      const base = { storage: storages[(i + n) % 3], size, group: 2, capacity, lengths };
      await check({ ...base, ...(n === 0 ? {} : { leftpad, page: 10 }) });
      await check({ ...base, ...(n === 0 ? { leftpad } : { page: 16 }) });
    }
  }
  for (const length of [0, 129, 1999, 2000]) { // parts of more than a chunk
    await check({ storage: "bf16", size: 64, group: 4, kvHeads: 2, capacity: 2000, lengths: [length] });
  }
});

Deno.test("a room of one chunk is one part, of a query head each; memory decides how many heads share a workgroup", () => {
  const device = { subgroupSize: 32, maxWorkgroupMemory: 49152, maxInvocations: 1024 };
  const pick = (capacity: number, more = {}, of = device) =>
    pickDecodeAttention(of, { storage: "bf16", size: 64, group: 4, units: 8, capacity, ...more });
  assert.deepEqual(pick(128), { threads: 256, rows: 1, fixed: true, parts: 1 });
  assert.deepEqual(pick(129), { threads: 512, rows: 1, fixed: true, parts: 1 });
  assert.deepEqual(pick(257), { threads: 256, rows: 1, fixed: true, parts: 3 });
  assert.deepEqual(pick(128, { units: 128 }), { threads: 256, rows: 2, fixed: true, parts: 1 });
  assert.deepEqual(pick(9999), { threads: 256, rows: 4, fixed: false, parts: 33 });
  assert.equal(pick(32768, { units: 512 })?.parts, 1);
  for (const other of [{ size: 80 }, { size: 12 }, { size: 2048 }, { group: 9 }]) assert.equal(pick(9, other), null);
  assert.equal(pick(9, {}, { ...device, subgroupSize: 0 }), null);
  for (const size of [8, 64, 256]) {
    for (const group of [1, 4, 5, 8]) {
      for (const storage of storages) {
        const least = { ...device, maxWorkgroupMemory: 16384, maxInvocations: 256 };
        const { threads, rows } = pick(9999, { size, group, storage }, least)!;
        assert.equal(group % rows, 0);
        const bytes = decodeAttentionMemory({ storage, rows, size, threads });
        assert.ok(bytes <= 16384, `${bytes} bytes`);
        const { source } = decodeAttentionKernel({
          ...{ storage, group, rows, size, threads, padded: false, paged: false, fixed: true, split: false },
        });
        const arrays = [...source.matchAll(/<workgroup> \w+: array<(\w+), (\d+)>/g)];
        const sum = arrays.reduce((n, [, type, count]) => n + Number(count) * (type === "vec2f" ? 8 : 4), 0);
        assert.equal(sum, bytes);
      }
    }
  }
});

Deno.test("a chunk's threads have 32 numbers of a key each, and two of a value's in up to 16 keys", () => {
  assert.deepEqual(decodeChunk({ size: 64, threads: 256 }), { lanes: 2, keys: 128, pairs: 32, splits: 8, own: 16 });
  assert.deepEqual(decodeChunk({ size: 8, threads: 64 }), { lanes: 1, keys: 64, pairs: 4, splits: 16, own: 4 });
});

Deno.test("a kernel says all of its parameters in its name", () => {
  const params: DecodeAttentionKernel = {
    ...{ storage: "bf16", group: 4, rows: 2, size: 64, threads: 256 },
    ...{ padded: false, paged: false, fixed: false, split: false },
  };
  const others: Partial<DecodeAttentionKernel>[] = [
    ...[{ storage: "f32" as const }, { group: 2 }, { rows: 1 }, { size: 32 }, { threads: 128 }],
    ...[{ padded: true }, { paged: true }, { fixed: true }, { split: true }],
  ];
  const names = [{}, ...others].map((more) => decodeAttentionKernel({ ...params, ...more }).name);
  assert.equal(new Set(names).size, names.length);
});
