import assert from "node:assert/strict";
import { cpu } from "../tensor/cpu.ts";
import { tensor } from "../tensor/create.ts";
import { decodeAttention } from "../tensor/decode_attention.ts";
import { foldIn, key, randn } from "../tensor/random.ts";
import { assertClose } from "../testing/close.ts";
import { needAdapter } from "../testing/laws/adapter.ts";
import { type DecodeAttentionKernel, decodeAttentionKernel, pickDecodeAttention } from "./decode_attention.ts";
import { webgpu } from "./webgpu.ts";

const backends = [cpu(), await needAdapter(webgpu())];

Deno.test("groups up to eight heads, and parts of long texts, give what the CPU gives", async () => {
  for (const [group, size, capacity, past] of [[8, 32, 100, 99], [5, 64, 300, 270], [4, 64, 2100, 2050]]) {
    const drawn = (i: number, shape: number[]) => randn(foldIn(key(7, { backend: backends[0] }), i), shape);
    const data = [
      drawn(1, [2, 1, (group + 2) * size]),
      drawn(2, [capacity, size / 2]),
      drawn(3, [capacity, size / 2]),
      drawn(4, [2, capacity, 1, size]),
      drawn(5, [2, capacity, 1, size]),
    ];
    const results = await Promise.all(backends.map(async (backend) => {
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

Deno.test("pickDecodeAttention() splits long texts alone, and leaves other sizes to two ops", () => {
  const device = { subgroupSize: 32, maxInvocations: 1024, maxWorkgroupMemory: 49152 };
  const at = (capacity: number, more = {}) =>
    pickDecodeAttention(device, { size: 64, group: 4, units: 8, capacity, storage: "bf16", ...more });
  assert.equal(at(128)?.parts, 1);
  assert.equal(at(1024)?.parts, 8);
  assert.equal(at(32768)?.parts, 33);
  assert.equal(at(32768, { units: 512 })?.parts, 1);
  for (const other of [{ size: 80 }, { size: 12 }, { group: 9 }]) assert.equal(at(100, other), null);
  assert.equal(
    pickDecodeAttention({ ...device, subgroupSize: 0 }, { size: 64, group: 4, units: 8, capacity: 9, storage: "bf16" }),
    null,
  );
});

Deno.test("a kernel's name says all of its parameters", () => {
  const params: DecodeAttentionKernel = {
    ...{ storage: "bf16", group: 4, size: 64, threads: 256, unroll: 4, subgroup: 32 },
    ...{ padded: false, paged: false, split: false },
  };
  const others: Partial<DecodeAttentionKernel>[] = [
    { storage: "f32" },
    { group: 2 },
    { size: 32 },
    { threads: 128 },
    { unroll: 2 },
    { subgroup: 16 },
    { padded: true },
    { paged: true },
    { split: true },
  ];
  const names = [{}, ...others].map((more) => decodeAttentionKernel({ ...params, ...more }).name);
  assert.equal(new Set(names).size, names.length);
});
