import assert from "node:assert/strict";
import { array, elementOf, float, integer, property } from "@flashtape/flashtape/testing";
import { duration, line, short } from "./progress.ts";

property("line() never fills the last column, whatever the width and the fields", [
  float({ min: 0, max: 1 }),
  array(elementOf("loss 2.345", "held-out 3.456 bits/byte", "1:23 left"), { maxLength: 4 }),
  integer(1, 200),
], (done, fields, columns) => {
  const text = line({ done, fields }, columns);
  assert([...text].length < columns);
  assert(!text.includes("\n"));
});

Deno.test("line() shows the bar, the share and the fields in their order", () => {
  assert.equal(line({ done: 0.5, fields: ["loss 1", "12 s left"] }, 80), "━━━━━╌╌╌╌╌ 50%  loss 1  12 s left");
  assert.equal(line({ done: 1, fields: ["loss 1", "12 s left"] }, 20), "100%  loss 1");
});

Deno.test("numbers and times are written short", () => {
  assert.deepEqual([0, 9.99, 999.4, 999.6, 1234, 99_999, 1e6, 23_344_640].map(short), [
    "0",
    "9.99",
    "999",
    "1k",
    "1.23k",
    "100k",
    "1M",
    "23.3M",
  ]);
  assert.deepEqual([0, 59.4, 60, 125].map(duration), ["0 s", "59 s", "1:00", "2:05"]);
});
