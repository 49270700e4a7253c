import assert from "node:assert/strict";
import { float, property } from "@flashtape/flashtape/testing";
import { compareRuns } from "./check.ts";
import { summary } from "./measure.ts";
import { emptyRow, type Row } from "./record.ts";
import { axesOf, combinations } from "./sweep.ts";

const row = (each: number[], peakBytes = 100): Row => ({
  ...emptyRow("a", {}),
  ...{ clock: "wall clock", ms: summary(each), peakBytes },
});
const outcomes = (before: Row, rounds: Row[], tolerance = 0) =>
  compareRuns([before], rounds.map((round) => [round]), tolerance).map(({ figure, outcome }) => `${figure} ${outcome}`);

Deno.test("what is slower by more than the noise of the run is worse, and what is not is the same", () => {
  const steady = [1, 1.01, 0.99, 1], noisy = [1, 1.4, 0.8, 1.2];
  assert.deepEqual(outcomes(row(steady), [row([1.1, 1.11, 1.1]), row([1.1, 1.1, 1.09])]), ["time worse"]);
  assert.deepEqual(outcomes(row(steady), [row([0.9, 0.9, 0.9]), row([0.9, 0.91, 0.9])]), ["time better"]);
  assert.deepEqual(outcomes(row(steady), [row(noisy.map((x) => 1.1 * x)), row(noisy)]), ["time same"]);
  // Rounds that differ are noise, however steady each of them is.
  assert.deepEqual(outcomes(row(steady), [row([1.2, 1.2, 1.2]), row([1, 1, 1])]), ["time same"]);
});

Deno.test("more memory is worse, a row that is gone is missing, and a tolerance allows for both", () => {
  assert.deepEqual(outcomes(row([1]), [row([1], 101), row([1], 101)]), ["time same", "memory worse"]);
  assert.deepEqual(outcomes(row([1]), [row([1.05], 101), row([1.05], 101)], 0.1), ["time same", "memory same"]);
  assert.deepEqual(outcomes(row([1]), [{ ...row([1]), name: "b" }]), ["row missing"]);
});

property(
  "a run is never worse than itself",
  [float({ min: 0.001, max: 1000 }), float({ min: 0, max: 1 })],
  (ms, spread) => {
    const it = row([ms, ms * (1 + spread), ms / (1 + spread)]);
    assert.deepEqual(outcomes(it, [it, it]), ["time same"]);
  },
);

Deno.test("axesOf() takes flags with commas as lists, in both spellings", () => {
  assert.deepEqual(axesOf(["--seqlen", "128,256", "--causal=on,off", "--dtype", "f32", "--no-grad"]), {
    fixed: ["--dtype", "f32", "--no-grad"],
    axes: [{ flag: "--seqlen", values: ["128", "256"] }, { flag: "--causal", values: ["on", "off"] }],
  });
});

Deno.test("combinations() are all of them, switches set or left out, and words of others said", () => {
  const axes = [{ flag: "--a", values: ["1", "2"] }, { flag: "--b", values: ["on", "off"] }];
  assert.deepEqual(combinations(axes).map(({ flags }) => flags.join(" ")), [
    "--a 1 --b",
    "--a 1",
    "--a 2 --b",
    "--a 2",
  ]);
  const robust = combinations([{ flag: "--robustness", values: ["on", "off"] }]);
  assert.deepEqual(robust.map(({ flags }) => flags.join(" ")), ["--robustness on", "--robustness off"]);
});
