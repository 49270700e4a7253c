import assert from "node:assert/strict";
import { progressOn } from "./progress.ts";
import { emptyRow } from "./record.ts";

Deno.test("a bar hides no cursor and lets lines wrap, so that Ctrl-C leaves a terminal as it was", () => {
  let said = "";
  const progress = progressOn({ out: () => {}, err: (text) => said += text, live: true });
  progress.start(2);
  progress.on("the first");
  progress.done(emptyRow("the first", {}));
  progress.on("x".repeat(1000));
  progress.done(emptyRow("x", {}));
  progress.stop();
  assert.match(said, /╌ 0\/2/);
  assert(!said.includes("\x1b[?"), JSON.stringify(said));
  // deno-lint-ignore no-control-regex
  for (const line of said.split(/\x1b\S*?[A-Za-z78]/)) assert(line.length <= 1000 / 4, line);
});

Deno.test("elsewhere each figure is a line", () => {
  let said = "";
  const progress = progressOn({ out: () => {}, err: (text) => said += text, live: false });
  progress.start(2);
  for (const name of ["a", "b"]) progress.done({ ...emptyRow(name, {}), figures: { "TFLOP/s": 2 } });
  progress.stop();
  assert.equal(said, "[1/2] a: 2.00 TFLOP/s\n[2/2] b: 2.00 TFLOP/s\n");
});
