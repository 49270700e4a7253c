import assert from "node:assert/strict";
import { gridOf, locateOwnKeys, locateQueries, pickParts } from "./attention_parts.ts";

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

Deno.test("causal's long tiles start first: heads vary fastest, the last queries and the first keys come before the others", () => {
  assert.deepEqual(gridOf({ longFirst: false }, 10, 4, 2), [10, 4, 2]);
  assert.deepEqual(gridOf({ longFirst: true, parts: 3 }, 10, 4, 2), [4, 6, 10]);
  const first = (text: string, name: string) => text.match(`let ${name} = (.*?) \\* 64u;`)?.[1];
  assert.equal(first(locateQueries({ longFirst: true }, 64), "q0"), "(u.tiles - 1u - group.z)");
  assert.equal(first(locateOwnKeys({ longFirst: true }, 64), "k0"), "group.z");
  for (const locate of [locateQueries, locateOwnKeys]) {
    assert.match(locate({ longFirst: false }, 64), /let b = group\.z;.* = group\.x \* 64u/);
    assert.match(locate({ longFirst: false, parts: 2 }, 64), /let part = group\.z \/ u\.batch;/);
  }
});
