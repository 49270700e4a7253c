import assert from "node:assert/strict";
import { float, property } from "@flashtape/flashtape/testing";
import { svg, ticks } from "./curve.ts";

property("ticks() are few, round and inside the range", [
  float({ min: -1e4, max: 1e4 }),
  float({ min: 1e-3, max: 1e4 }),
], (min, span) => {
  const max = min + span, marks = ticks(min, max, 6);
  assert(marks.length >= 2 && marks.length <= 8, `${marks}`);
  assert(marks.every((v) => v >= min - 1e-6 * span && v <= max + 1e-6 * span), `${marks} in ${min} to ${max}`);
});

Deno.test("svg() draws every series and level, escapes names, and leaves out what is no number", () => {
  const text = svg({
    title: "a < b & c",
    x: "step",
    y: "bits",
    series: [
      { name: "one", color: "red", points: [[0, 3], [1, NaN], [2, 1]] },
      { name: "two", color: "blue", points: [[1, 2]], marks: true },
    ],
    levels: [{ name: "level", y: 2.5 }],
  });
  assert.match(text, /^<svg [^>]+>\n[\s\S]*<\/svg>\n$/);
  assert(!text.includes("NaN") && !text.includes("a < b & c"));
  assert.equal(text.match(/<circle/g)?.length, 1);
  for (const word of ["one", "two", "level", "step", "bits"]) assert(text.includes(`>${word}</text>`), word);
});

Deno.test("svg() of nothing is still a picture", () => {
  assert(!svg({ title: "", x: "", y: "", series: [], levels: [] }).includes("NaN"));
});
