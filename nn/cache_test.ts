import assert from "node:assert/strict";
import { cpu } from "../tensor/cpu.ts";
import type { AttentionCache } from "../tensor/attention_cache.ts";
import { tensor } from "../tensor/create.ts";
import { DisposedError, LimitError, ShapeError } from "../tensor/errors.ts";
import { take } from "../tensor/gather.ts";
import { reshape, slice } from "../tensor/movement.ts";
import type { Tensor } from "../tensor/tensor.ts";
import { array, elementOf, integer, property } from "../testing/mod.ts";
import { appendToCache, grownCapacity, grownTable, roomInCache } from "./cache.ts";
import { emptyCache } from "./mod.ts";

const backend = cpu();
const room = { batch: 2, heads: [1, 1], dtype: "f32", backend } as const;

/** What the rows hold at their first `length` positions. */
async function held(x: Tensor, length: number, table?: Tensor): Promise<number[]> {
  const all = table === undefined ? x : take(x, reshape(table, [table.size]));
  const rows = reshape(all, [2, all.size / 2]);
  return [...await slice(rows, [0, 0], [2, length]).data()];
}

property("a cache holds what was appended, in order, however small it began, in pages or not", [
  integer(1, 5),
  elementOf(undefined, 1, 2, 3),
  array(integer(1, 4), { minLength: 1, maxLength: 5 }),
], async (capacity, pageSize, pieces) => {
  let layer: AttentionCache | undefined, table: Tensor | undefined, length = 0;
  for (const piece of pieces) {
    const rows = (sign: number) =>
      tensor(
        Float32Array.from(
          { length: 2 * piece },
          (_, i) => sign * (100 * Math.floor(i / piece) + length + i % piece + 1),
        ),
        { shape: [2, piece, 1, 1], backend },
      );
    capacity = grownCapacity(capacity, length + piece);
    if (pageSize !== undefined) table = grownTable({ size: pageSize, table }, 2, capacity, backend);
    layer = appendToCache(roomInCache(layer, { ...room, capacity, pageSize }), length, rows(1), rows(-1), table);
    length += piece;
  }
  const want = [0, 100].flatMap((row) => Array.from({ length }, (_, i) => row + i + 1));
  assert.deepEqual(await held(layer!.k, length, table), want);
  assert.deepEqual((await held(layer!.v, length, table)).map((v) => -v), want);
  assert.ok(layer!.k.shape[0] * layer!.k.shape[1] < 2 * (capacity + (pageSize ?? 1)));
});

Deno.test("appending and growing spend the cache that they are given", () => {
  const x = tensor([1, 2], { shape: [2, 1, 1, 1], backend });
  const old = roomInCache(undefined, { ...room, capacity: 2 });
  const next = appendToCache(old, 1, x, x);
  assert.throws(() => old.k.dataSync(), DisposedError);
  roomInCache(next, { ...room, capacity: 4 });
  assert.throws(() => next.v.dataSync(), DisposedError);
});

Deno.test("lengths of the device's own count say where each row goes on", async () => {
  const x = tensor([1, 2], { shape: [2, 1, 1, 1], backend });
  const lengths = tensor([2, 0], { dtype: "i32", backend });
  const { k } = appendToCache(roomInCache(undefined, { ...room, capacity: 3 }), lengths, x, x);
  assert.deepEqual([...await k.data()], [0, 0, 1, 2, 0, 0]);
});

Deno.test("a cache that is too short, or another batch's, is refused by its numbers", () => {
  const x = tensor([1, 2], { shape: [2, 1, 1, 1], backend }), layer = roomInCache(undefined, { ...room, capacity: 2 });
  assert.throws(
    () => appendToCache(layer, 2, x, x),
    (e) => e instanceof LimitError && /holds 2 positions: 2 and 1 new do not fit/.test(e.message),
  );
  assert.throws(() => roomInCache(layer, { ...room, batch: 3, capacity: 2 }), ShapeError);
  const table = grownTable({ size: 2 }, 2, 4, backend);
  assert.throws(() => grownTable({ size: 2, table }, 3, 4, backend), /\[2,2\] has 2 rows for a batch of 3/);
});

Deno.test("emptyCache() has room in whole pages, and refuses a capacity that is none", () => {
  assert.throws(() => emptyCache({ capacity: 0 }), /capacity is a whole number above 0, got 0/);
  assert.throws(() => emptyCache({ pageSize: 1.5 }), /pageSize is a whole number above 0, got 1\.5/);
  assert.deepEqual(emptyCache({ capacity: 7 }), { layers: [], length: 0, capacity: 7 });
  assert.deepEqual(emptyCache({ capacity: 7, pageSize: 4, dtype: "f16" }), {
    layers: [],
    length: 0,
    capacity: 8,
    pages: { size: 4 },
    dtype: "f16",
  });
});
