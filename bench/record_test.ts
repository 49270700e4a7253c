import assert from "node:assert/strict";
import { existsSync, mkdtempSync, readdirSync, readFileSync, rmSync, writeFileSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { expectWritable, UsageError, writeAll } from "./files.ts";
import { summary } from "./measure.ts";
import { emptyRow, fromJson, type Result, toCsv, toJson } from "./record.ts";
import { bytes, digits, ms, table, times } from "./table.ts";

const result: Result = {
  format: "flashtape-bench/1",
  command: "attention",
  arguments: ["attention", "--seqlen", "64"],
  date: "2026-11-21T00:00:00.000Z",
  machine: { processor: "1 × x", os: "Linux", runtime: "Deno" },
  device: {
    ...{ name: "a, card", backend: "webgpu", provider: "deno", timestamps: true, f16: true, subgroups: 32 },
    ...{ matrixUnits: false, maxBinding: 2 ** 31 - 4 },
  },
  settings: { warmup: 1, ramp: 0, repeats: 2, seed: 0, budget: 1 },
  rows: [
    { ...emptyRow("one", { causal: true, n: 3 }), clock: "gpu timestamps", ms: summary([1, 2]), flops: 2e9 },
    { ...emptyRow("two", { n: 4 }), skipped: { reason: "too large", predictedBytes: 2 ** 40 } },
  ],
};

Deno.test("a result comes back from its JSON", () => {
  assert.deepEqual(fromJson(toJson(result)), result);
});

Deno.test("what is no result is refused, saying where", () => {
  const wrong = { ...result, rows: [{ ...result.rows[0], ms: { ...result.rows[0].ms, median: "1" } }] };
  assert.throws(() => fromJson(JSON.stringify(wrong)), /rows\[0\]\.ms\.median/);
  assert.throws(() => fromJson("{"), /not JSON/);
  assert.throws(() => fromJson("{}"), /format/);
});

Deno.test("CSV has a line for each row, a column for each label, and quotes", () => {
  const [head, one, two] = toCsv(result).trim().split("\n");
  assert.match(head, /^name,causal,n,clock,median_ms,.*skipped,predicted_bytes,device,date$/);
  assert.match(one, /^one,true,3,gpu timestamps,1.5,1,1.5,2,2,.*"a, card"/);
  assert.match(two, /^two,,4,,.*too large,1099511627776/);
});

Deno.test("files are written whole or not at all", () => {
  const directory = mkdtempSync(join(tmpdir(), "flashtape-files-"));
  try {
    const file = join(directory, "a.txt");
    writeFileSync(file, "old");
    // The second file cannot be written: its directory is a file. The first must stay as it was.
    assert.throws(() => writeAll({ [file]: "new", [join(file, "b.txt")]: "x" }));
    assert.equal(readFileSync(file, "utf8"), "old");
    assert.throws(() => expectWritable("--json", join(file, "b.txt")), UsageError);
    assert.throws(() => expectWritable("--json", directory), /is a directory/);
    expectWritable("--json", join(directory, "new", "er", "c.txt"));
    assert.ok(!existsSync(join(directory, "new")));
    writeAll({ [join(directory, "deeper", "c.txt")]: "new" });
    assert(existsSync(join(directory, "deeper", "c.txt")));
    assert.deepEqual(readdirSync(directory).sort(), ["a.txt", "deeper"]);
  } finally {
    rmSync(directory, { recursive: true });
  }
});

Deno.test("numbers are written for people", () => {
  assert.deepEqual([0.01234, 1.234, 12.34, 1234.5, 0.00001].map(digits), [
    "0.0123",
    "1.23",
    "12.3",
    "1,235",
    "1.00e-5",
  ]);
  assert.deepEqual([512, 2048, 100 * 2 ** 20, 2 ** 41].map(bytes), ["512 B", "2.0 KiB", "100 MiB", "2.0 TiB"]);
  assert.deepEqual([0.12345, 1.2345, 123.45, null].map(ms), ["0.1235", "1.23", "123.5", ""]);
  assert.deepEqual([1.234, 12.34, 123.4].map(times), ["1.23×", "12.3×", "123×"]);
});

Deno.test("table() aligns its columns", () => {
  assert.equal(table(["a", "b"], [["long", "1"], ["x", "100"]]), "a       b\nlong    1\nx     100");
});
