import assert from "node:assert/strict";
import { pickParts } from "./attention_parts.ts";

const large = { subgroupSize: 32, maxWorkgroupMemory: 49152, maxInvocations: 1024 };
const tile = { tx: 8, ty: 16, rows: 8, columns: 8, depth: 16 };

Deno.test("few workgroups share their walks, many do not, a software adapter's never do", () => {
  assert.equal(pickParts(large, tile, 128, 32, true), 2);
  assert.equal(pickParts(large, tile, 128, 32, false), 4);
  assert.equal(pickParts(large, tile, 5000, 32, true), 1);
  assert.equal(pickParts(large, tile, 5000, 32, false), 1);
  assert.equal(pickParts({ ...large, subgroupSize: 8 }, tile, 1, 32, true), 1);
});

Deno.test("a walk is not split into more parts than it has tiles", () => {
  for (const walk of [0, 0.5, 1, 3.5]) {
    for (const even of [true, false]) assert.ok(pickParts(large, tile, 1, walk, even) <= Math.max(1, walk));
  }
});

Deno.test("parts fill the last wave: of one wave and a half, two make three", () => {
  assert.equal(pickParts(large, tile, 396, 64, true), 2);
});
