import assert from "node:assert/strict";
import { tensor } from "../tensor/create.ts";
import { DisposedError } from "../tensor/errors.ts";
import { slice } from "../tensor/movement.ts";
import { array, integer, property } from "../testing/mod.ts";
import { appendToCache, grownCapacity } from "./cache.ts";
import { emptyCache } from "./mod.ts";

property("a cache holds what was appended, in order, however small it began", [
  integer(1, 5),
  array(integer(1, 4), { minLength: 1, maxLength: 5 }),
], async (capacity, pieces) => {
  let layer: ReturnType<typeof appendToCache> | undefined, length = 0;
  for (const piece of pieces) {
    const row = (sign: number) =>
      tensor(Float32Array.from({ length: piece }, (_, i) => sign * (length + i + 1)), { shape: [1, piece, 1, 1] });
    capacity = grownCapacity(capacity, length + piece);
    layer = appendToCache(layer, length, capacity, row(1), row(-1));
    length += piece;
  }
  assert.equal(layer!.k.shape[1], capacity);
  assert(capacity >= length);
  const held = await slice(layer!.k, [0, 0, 0, 0], [1, length, 1, 1]).data();
  assert.deepEqual([...held], Array.from({ length }, (_, i) => i + 1));
  assert.deepEqual([...(await layer!.v.data()).slice(0, length)], [...held].map((v) => -v));
});

Deno.test("appending spends the cache that it is given", () => {
  const x = tensor([1], { shape: [1, 1, 1, 1] });
  for (const capacity of [2, 4]) {
    const old = appendToCache(undefined, 0, 2, x, x);
    appendToCache(old, 1, capacity, x, x);
    assert.throws(() => old.k.dataSync(), DisposedError);
    assert.throws(() => old.v.dataSync(), DisposedError);
  }
});

Deno.test("emptyCache() refuses a capacity that is none", () => {
  assert.throws(() => emptyCache({ capacity: 0 }), /capacity is a whole number above 0, got 0/);
  assert.deepEqual(emptyCache({ capacity: 7 }), { layers: [], length: 0, capacity: 7 });
});
