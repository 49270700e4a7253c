import assert from "node:assert/strict";
import { tensor } from "../tensor/create.ts";
import { float, property } from "../testing/mod.ts";
import { cosineSchedule } from "./mod.ts";

const options = { learningRate: 2, minLearningRate: 0.5, warmupSteps: 10, totalSteps: 110 };
const rate = async (step: number) => await cosineSchedule(options)(tensor(step)).item();

Deno.test("cosineSchedule() rises in a line, comes down in half a cosine, and stays", async () => {
  const wanted = [[0, 0], [5, 1], [10, 2], [60, 1.25], [110, 0.5], [1000, 0.5]];
  for (const [step, value] of wanted) assert(Math.abs(await rate(step) - value) < 1e-6, `step ${step}`);
});

property("cosineSchedule() stays between 0 and the top and never rises after the warm-up", [
  float({ min: 0, max: 200 }),
  float({ min: 0, max: 200 }),
], async (a, b) => {
  const [early, late] = [Math.min(a, b), Math.max(a, b)];
  const [first, second] = [await rate(early), await rate(late)];
  assert(first >= 0 && first <= 2);
  if (early >= 10) assert(second <= first + 1e-6);
});

Deno.test("cosineSchedule() refuses steps and rates out of order", () => {
  assert.throws(() => cosineSchedule({ learningRate: 1, totalSteps: 5, warmupSteps: 5 }), /warmupSteps < totalSteps/);
  assert.throws(() => cosineSchedule({ learningRate: NaN, totalSteps: 5 }), /learningRate/);
  assert.throws(() => cosineSchedule({ learningRate: 1, minLearningRate: 2, totalSteps: 5 }), /minLearningRate/);
});
