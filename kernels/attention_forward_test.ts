import assert from "node:assert/strict";
import { pickAttentionBackward } from "./attention_backward.ts";
import { attentionBackwardMemory } from "./attention_backward.ts";
import { type AttentionFeatures, type AttentionStorage, plainAttention, threads } from "./attention_common.ts";
import { attentionDecodeMemory, pickAttentionDecode } from "./attention_decode.ts";
import { attentionForward, attentionForwardMemory, pickAttentionForward } from "./attention_forward.ts";
import { denseStrides } from "./attention_options.ts";

const storage = { q: "f32", k: "f32", v: "f32", out: "f32", dOut: "f32", grad: "f32" } as const;

const devices = [0, 8, 32].flatMap((subgroupSize) =>
  [[16384, 256], [32768, 1024], [49152, 1024]].map(([maxWorkgroupMemory, maxInvocations]) => ({
    subgroupSize,
    maxWorkgroupMemory,
    maxInvocations,
  }))
);

function shapeOf(headDim: number, valueDim: number, seqlenQ: number) {
  const shape = { batch: 4, seqlenQ, seqlenK: 4096, heads: 8, kvHeads: 2, headDim, valueDim };
  const at = {
    q: denseStrides(seqlenQ, 8, headDim),
    k: denseStrides(4096, 2, headDim),
    v: denseStrides(4096, 2, valueDim),
  };
  return { shape, at };
}

Deno.test("attention finds tiles for every head size within every device's threads and workgroup memory", () => {
  for (const device of devices) {
    for (let size = 1; size <= 256; size++) {
      for (const [headDim, valueDim] of [[size, size], [size, 257 - size]]) {
        const { shape, at } = shapeOf(headDim, valueDim, 2048);
        const forward = pickAttentionForward(device, shape, at, storage, plainAttention);
        const backward = pickAttentionBackward(device, shape, at, storage, plainAttention, true);
        const { params: decode } = pickAttentionDecode(
          device,
          { ...shape, seqlenQ: 1 },
          at,
          storage,
          plainAttention,
          0,
        );
        const sizes: [bytes: number, threads: number][] = [
          [attentionForwardMemory(forward), threads(forward.tile)],
          [attentionBackwardMemory(backward.keys), threads(backward.keys.tile)],
          [attentionBackwardMemory(backward.queries), threads(backward.queries.tile)],
          [attentionDecodeMemory(decode), decode.lanes * decode.groups],
        ];
        for (const [bytes, count] of sizes) {
          assert.ok(bytes <= device.maxWorkgroupMemory, `D ${headDim}, Dv ${valueDim}: ${bytes} bytes`);
          assert.ok(count <= device.maxInvocations, `D ${headDim}, Dv ${valueDim}: ${count} threads`);
        }
      }
    }
  }
});

Deno.test("attention uses subgroups only where one holds all threads of a row", () => {
  for (const device of devices) {
    for (const size of [8, 64, 100, 128, 192, 256]) {
      const { shape, at } = shapeOf(size, size, 2048);
      const { subgroups, tile } = pickAttentionForward(device, shape, at, storage, plainAttention);
      assert.equal(subgroups, device.subgroupSize >= tile.tx);
      const { params } = pickAttentionDecode(device, { ...shape, seqlenQ: 1 }, at, storage, plainAttention, 0);
      assert.equal(params.subgroups, device.subgroupSize >= params.lanes);
    }
  }
});

Deno.test("attention reads four numbers at a time exactly where all strides allow it", () => {
  const { shape, at } = shapeOf(64, 64, 128);
  const pick = (q: Partial<typeof at.q>) =>
    pickAttentionForward(devices[0], shape, { ...at, q: { ...at.q, ...q } }, storage, plainAttention).q.unit;
  assert.equal(pick({}), 4);
  for (const name of ["offset", "batch", "seq", "head"] as const) assert.equal(pick({ [name]: at.q[name] + 2 }), 1);
});

Deno.test("scores are summed by eights where few workgroups share a GPU, and not on a software adapter", () => {
  const sums = (heads: number, subgroupSize: number, type: AttentionStorage) => {
    const { shape, at } = shapeOf(64, 48, 256), of = { q: type, k: type, v: type, out: type };
    return pickAttentionForward(
      { ...devices[8], subgroupSize },
      { ...shape, heads, kvHeads: heads },
      at,
      of,
      plainAttention,
    )
      .sums;
  };
  assert.deepEqual([sums(8, 32, "f32"), sums(256, 32, "f32")], ["eights", "plain"]);
  assert.deepEqual([sums(8, 8, "f32"), sums(8, 32, "f16")], ["plain", "plain"]);
});

Deno.test("an attention kernel's name changes with everything that its text depends on", () => {
  const { shape, at } = shapeOf(64, 48, 128);
  const base = pickAttentionForward(devices[8], shape, at, storage, plainAttention);
  const flags = ["window", "softcap", "alibi", "mask", "sinks", "dropout", "leftpad", "cacheIndex", "paged"] as const;
  const features: Partial<AttentionFeatures>[] = [
    ...flags.map((name) => ({ [name]: true })),
    { bias: "f32" },
    { bias: "bf16" },
    { lengths: "varlen" },
    { lengths: "cache" },
    { range: "left" },
  ];
  const storages: AttentionStorage[] = ["f16", "bf16"];
  const variants = [
    base,
    ...features.map((some) => ({ ...base, features: { ...plainAttention, ...some } })),
    ...(["q", "k", "v", "out"] as const).flatMap((name) => [
      ...storages.map((storage) => ({ ...base, [name]: { ...base[name], storage } })),
      { ...base, [name]: { ...base[name], unit: 1 as const } },
    ]),
    ...(["tx", "ty", "rows", "columns", "depth"] as const).map((name) => ({
      ...base,
      tile: { ...base.tile, [name]: base.tile[name] * 2 },
    })),
    { ...base, headDim: 80 },
    { ...base, valueDim: 80 },
    { ...base, subgroups: !base.subgroups },
    { ...base, longFirst: !base.longFirst },
    { ...base, parts: 1 },
    ...(["plain", "eights", "careful"] as const).filter((sums) => sums !== base.sums).map((sums) => ({
      ...base,
      sums,
    })),
  ];
  const kernels = variants.map(attentionForward);
  assert.equal(new Set(kernels.map(({ name }) => name)).size, variants.length);
  assert.equal(new Set(kernels.map(({ source }) => source)).size, variants.length);
});
