import assert from "node:assert/strict";
import { countStep, countTests } from "./check.ts";

Deno.test("countTests() adds the summaries of all runs", () => {
  const output =
    "a ... ok (1ms)\n\nok | 12 passed (3 steps) | 0 failed (1s)\n\nFAILED | 4 passed | 2 failed | 1 ignored (1m2s)\n";
  assert.deepEqual(countTests(output), { passed: 16, failed: 2 });
});

Deno.test("countTests() does not take a test's own output for a summary", () => {
  assert.equal(countTests("it is ok | 1 passed | 0 failed\nerror: Type checking failed.\n"), null);
});

Deno.test("countStep() counts a step without tests as one", () => {
  assert.deepEqual(countStep(true, "Checked 3 files"), { passed: 1, failed: 0 });
  assert.deepEqual(countStep(false, "Found 1 problem"), { passed: 0, failed: 1 });
});

Deno.test("countStep() never counts a failed step as passed", () => {
  assert.deepEqual(countStep(false, "ok | 3 passed | 0 failed (1s)\nerror: leaked"), { passed: 3, failed: 1 });
  assert.deepEqual(countStep(false, "FAILED | 3 passed | 2 failed (1s)"), { passed: 3, failed: 2 });
});
