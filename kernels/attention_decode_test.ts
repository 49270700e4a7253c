/** Decoding's kernels against the loops in f64: split keys, pages, tables of rows, padding on the left, rotation. */
import assert from "node:assert/strict";
import { cacheAppendOp, cacheAttentionOp } from "../tensor/attention_cache.ts";
import type { OptionalInput } from "../tensor/attention_options.ts";
import type { Backend } from "../tensor/backend.ts";
import type { DType } from "../tensor/dtype.ts";
import { runAll } from "../tensor/op.ts";
import { needAdapter } from "../testing/laws/adapter.ts";
import {
  assertNear,
  host,
  type Input,
  integers,
  normal,
  on,
  opCall,
  type Problem,
  randomMask,
} from "../testing/laws/attention_problem.ts";
import { denseStrides } from "./attention_options.ts";
import { plainAttention } from "./attention_common.ts";
import { pickAttentionDecode } from "./attention_decode.ts";
import { webgpu } from "./webgpu.ts";

const adapter = await needAdapter(webgpu());
const portable = await needAdapter(webgpu());
Object.assign(portable.capabilities, { subgroupSize: 0, subgroups: false });

interface Cached extends Omit<Problem, "maxSeqlens" | "sizes"> {
  readonly lengths: Input;
  readonly added?: number;
  readonly interleaved?: boolean;
  readonly numSplits?: number;
}

async function checkAttention(backend: Backend, cached: Cached): Promise<void> {
  const { added = 0, interleaved = false, numSplits = 0 } = cached,
    { params, inputs: [q, k, v, ...more] } = opCall(cached);
  const inputs = [q, k, v, cached.lengths, ...more];
  const run = (at: Backend) =>
    runAll(cacheAttentionOp, inputs.map((x) => on(at, x)), { ...params, added, interleaved, numSplits });
  const [results, wanted] = [run(backend), run(host)];
  for (const [i, name] of ["out", "lse"].entries()) {
    assertNear(name, await results[i].data(), await wanted[i].data(), results[i].dtype);
  }
  const again = run(backend);
  for (const i of [0, 1]) assert.deepEqual(await again[i].bytes(), await results[i].bytes());
}

async function cacheOf(rows: number, length: number, heads: number, sizes: readonly [number, number], dtype?: DType) {
  const [headDim, valueDim] = sizes;
  return {
    k: await normal([rows, length, heads, headDim], dtype),
    v: await normal([rows, length, heads, valueDim], dtype),
  };
}

for (const [name, backend] of [["adapter", adapter], ["adapter without subgroups", portable]] as const) {
  Deno.test(`decoding on the ${name} is exact for groups of 1 to 8 heads and any number of parts`, async () => {
    const cache = await cacheOf(2, 300, 2, [64, 64]), lengths = integers([300, 177]);
    for (const group of [1, 2, 3, 8]) {
      const q = await normal([2, 1, 2 * group, 64]);
      for (const numSplits of group === 3 ? [0, 1, 2, 7] : [0]) {
        await checkAttention(backend, { q, ...cache, lengths, numSplits });
      }
    }
  });

  Deno.test(`decoding on the ${name} takes any head size and storage`, async () => {
    for (
      const [sizes, dtype] of [[[128, 128], "f16"], [[256, 256], "f32"], [[80, 40], "bf16"], [[7, 5], "f16"]] as const
    ) {
      const cache = await cacheOf(1, 90, 2, sizes, dtype);
      await checkAttention(backend, { q: await normal([1, 2, 4, sizes[0]], dtype), ...cache, lengths: integers([71]) });
    }
    const cache = await cacheOf(1, 90, 2, [64, 64], "f16");
    await checkAttention(backend, { q: await normal([1, 1, 4, 64]), ...cache, lengths: integers([90]) });
  });
}

Deno.test("decoding with all options is exact, in one part and in three", async () => {
  for (const numSplits of [1, 3]) {
    await checkAttention(adapter, {
      q: await normal([2, 2, 6, 32]),
      ...await cacheOf(4, 150, 2, [32, 24]),
      lengths: integers([140, 33]),
      optional: {
        alibiSlopes: await normal([6]),
        bias: await normal([2, 150]),
        mask: await randomMask([2, 1, 1, 150]),
        sinks: await normal([6]),
        key: { shape: [2], dtype: "u32", values: [5, 77] },
        cacheBatchIdx: integers([3, 1]),
      },
      window: [40, 0],
      softcap: 2,
      dropout: 0.2,
      numSplits,
    });
  }
});

Deno.test("decoding reads pages of any size and skips padding on the left, whatever lies in it", async () => {
  const cache = await cacheOf(30, 7, 2, [16, 16]), poisoned = Float32Array.from(cache.v.values);
  poisoned.fill(NaN, 4 * 7 * 32, 4 * 7 * 32 + 3 * 32); // the padding of row 0: its first page is block 4
  const blockTable = integers(Array.from({ length: 27 }, (_, i) => (i * 7 + 4) % 30), [3, 9]);
  const optional = { cacheLeftpad: integers([3, 0, 50]), blockTable };
  const common = { ...cache, v: { ...cache.v, values: poisoned }, lengths: integers([60, 13, 50]), optional };
  await checkAttention(adapter, { q: await normal([3, 1, 4, 16]), ...common, numSplits: 2 });
  await checkAttention(adapter, { q: await normal([3, 40, 4, 16]), ...common, window: [-1, 0] });
});

Deno.test("decoding rotates queries to their positions", async () => {
  const [cos, sin] = [await normal([60, 8]), await normal([60, 8])], cache = await cacheOf(2, 60, 1, [20, 20]);
  for (const [window, interleaved] of [[[-1, 0], false], [[-1, -1], true]] as const) {
    const q = await normal([2, 3, 4, 20]), lengths = integers([50, 0]);
    await checkAttention(adapter, { q, ...cache, lengths, optional: { cos, sin }, window, interleaved, added: 3 });
  }
});

Deno.test("an append writes new keys and values to their places, rotated, and nothing else", async () => {
  for (const dtype of ["f32", "f16", "bf16"] as const) {
    for (const [size, place] of [[16, "dense"], [7, "paged"], [6, "index"]] as const) {
      const rows = place === "paged" ? 12 : 4, length = place === "paged" ? 5 : 20;
      const { k: kCache, v: vCache } = await cacheOf(rows, length, 1, [size, size], dtype);
      const batch = place === "index" ? 2 : place === "paged" ? 3 : 4;
      const lengths = integers(Array.from({ length: batch }, (_, b) => 6 * b));
      const [k, v] = [await normal([batch, 3, 1, size]), await normal([batch, 3, 1, size], dtype)];
      const optional: Partial<Record<OptionalInput, Input>> = {
        ...(place === "index" ? { cacheBatchIdx: integers([3, 0]) } : {}),
        ...(place === "paged"
          ? { blockTable: integers(Array.from({ length: 12 }, (_, i) => (i * 5 + 2) % 12), [3, 4]) }
          : {}),
        cos: await normal([30, 2]),
        sin: await normal([30, 2]),
      };
      const names = Object.keys(optional) as OptionalInput[];
      const inputs = [kCache, vCache, k, v, lengths, ...names.map((name) => optional[name]!)];
      for (const interleaved of [false, true]) {
        const [written, wanted] = [adapter, host].map((at) =>
          runAll(cacheAppendOp, inputs.map((x) => on(at, x)), { optional: names, interleaved })
        );
        for (const i of [0, 1]) assertNear("cache", await written[i].data(), await wanted[i].data(), dtype);
      }
    }
  }
});

Deno.test("the number of parts follows the keys and the work that there is", () => {
  const device = { subgroupSize: 32, maxWorkgroupMemory: 49152, maxInvocations: 1024 };
  const parts = (batch: number, seqlenK: number, numSplits = 0) => {
    const shape = { batch, seqlenQ: 1, seqlenK, heads: 32, kvHeads: 8, headDim: 64, valueDim: 64 };
    const at = { q: denseStrides(1, 32, 64), k: denseStrides(seqlenK, 8, 64), v: denseStrides(seqlenK, 8, 64) };
    const storage = { q: "f16", k: "f16", v: "f16", out: "f16" } as const;
    return pickAttentionDecode(device, shape, at, storage, plainAttention, numSplits).parts;
  };
  assert.equal(parts(1, 131072), 64);
  assert.equal(parts(64, 1024), 1);
  assert.equal(parts(1, 100), 1);
  assert.equal(parts(1, 131072, 1), 1);
  assert.equal(parts(1, 131072, 5), 5);
});
