/**
 * `deno task check`: every rule of the house that is not one of the library's own tests. All steps run, whatever fails, and the
 * last line counts them: a step that runs tests counts its tests, any other counts as one.
 */
import { readFileSync } from "node:fs";
import process from "node:process";

type Config = { exports: Record<string, string>; publish: { include: string[] } };

/** Counts of one step or of all. */
export type Count = { passed: number; failed: number };

/** Adds up the summary lines that `deno test` ends with, `ok | 12 passed (3 steps) | 0 failed (1s)`; null when there are none. */
export function countTests(output: string): Count | null {
  const summaries = [...output.matchAll(/^(?:ok|FAILED) \| (\d+) passed\b.*?\| (\d+) failed\b/gm)];
  if (summaries.length === 0) return null;
  const total = (group: number) => summaries.reduce((sum, match) => sum + Number(match[group]), 0);
  return { passed: total(1), failed: total(2) };
}

/** What a step adds to the count: its tests, and one failure if it failed for another reason than a test. */
export function countStep(success: boolean, output: string): Count {
  const tests = countTests(output);
  if (tests === null) return success ? { passed: 1, failed: 0 } : { passed: 0, failed: 1 };
  return success || tests.failed > 0 ? tests : { ...tests, failed: 1 };
}

function steps({ exports, publish }: Config): { name: string; args: string[] }[] {
  const entries = Object.values(exports);
  const published = publish.include.filter((path) => path.endsWith("/") || path.endsWith(".ts"));
  const withoutTests = "--ignore=**/*_test.ts";
  return [
    { name: "fmt", args: ["fmt", "--check"] },
    { name: "lint", args: ["lint"] },
    {
      name: "lint, no console in published code",
      args: ["lint", "--rules-include=no-console", withoutTests, ...published],
    },
    { name: "types", args: ["check"] },
    { name: "doc --lint", args: ["doc", "--lint", ...entries] },
    {
      name: "examples in the docs",
      args: ["test", "--doc", "--allow-env", "--allow-read", "--allow-write", withoutTests, ...published],
    },
    {
      name: "set-up, import directions, consumer",
      args: ["test", "--allow-env", "--allow-read", "--allow-run", "--allow-sys=uid", "--allow-write", "tools"],
    },
    { name: "publish --dry-run", args: ["publish", "--dry-run", "--allow-dirty"] },
  ];
}

async function check(): Promise<Count> {
  const root = new URL("../", import.meta.url);
  const config: Config = JSON.parse(readFileSync(new URL("deno.json", root), "utf8"));
  const count: Count = { passed: 0, failed: 0 };
  for (const { name, args } of steps(config)) {
    const start = performance.now();
    const { success, stdout, stderr } = await new Deno.Command(Deno.execPath(), {
      args,
      cwd: root,
      env: { NO_COLOR: "1" },
      stdin: "null",
    }).output();
    const output = new TextDecoder().decode(stdout) + new TextDecoder().decode(stderr);
    const { passed, failed } = countStep(success, output);
    count.passed += passed;
    count.failed += failed;
    console.log(`${success ? "ok    " : "FAILED"} ${name} (${((performance.now() - start) / 1000).toFixed(1)} s)`);
    if (!success) console.log(`\n${output.trimEnd()}\n`);
  }
  return count;
}

if (import.meta.main) {
  const { passed, failed } = await check();
  console.log(`${passed} passed, ${failed} failed`);
  process.exit(failed === 0 ? 0 : 1);
}
