import assert from "node:assert/strict";
import { cp, mkdtemp, rm } from "node:fs/promises";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { readOptions } from "./chat.ts";
import { printable } from "./model_options.ts";
import { UsageError } from "./program.ts";

const program = new URL("./chat.ts", import.meta.url).pathname;
const fixture = new URL("../nn/fixtures/llama-a", import.meta.url).pathname;

/** Runs the program on the CPU, through pipes. */
async function run(args: readonly string[], input: string): Promise<{ code: number; out: string; err: string }> {
  const child = new Deno.Command(Deno.execPath(), {
    args: ["run", "--quiet", "--allow-env", "--allow-read", program, ...args, "--backend", "cpu"],
    stdin: "piped",
    stdout: "piped",
    stderr: "piped",
    env: { NO_COLOR: "1" },
  }).spawn();
  const writer = child.stdin.getWriter();
  await writer.write(new TextEncoder().encode(input));
  await writer.close();
  const { code, stdout, stderr } = await child.output(),
    decode = (bytes: Uint8Array) => new TextDecoder().decode(bytes);
  return { code, out: decode(stdout), err: decode(stderr) };
}

const greedy = ["--temperature", "0", "--max-new-tokens", "6"];

Deno.test("a piped chat answers line by line, knows its commands, and remembers what was said", async () => {
  const input = ["hello", "", "/nothing", "and then?", "/reset", "hello", "/help", "/exit", "never asked"].join("\n");
  const { code, out, err } = await run([fixture, ...greedy], input);
  assert.equal(code, 0, err);
  const told = err.split("\n");
  assert.match(told[0], /^llama-a: 131k parameters, bf16, context 512, on cpu \(.*\), loaded in [\d.]+ s$/);
  const counts = told.filter((line) => /^\[\d+ tokens?(, [\d.]+ tokens\/s)?, the first after \d+ ms\]$/.test(line));
  assert.equal(counts.length, 3, err);
  assert.match(err, /There is no command \/nothing; \/help lists them\.\n/);
  assert.match(err, /A new conversation\.\n[^]*\/reset {4}begin a new conversation/);
  const alone = await run([fixture, ...greedy], "hello");
  assert.equal(alone.code, 0);
  assert(out.startsWith(alone.out) && out.endsWith(alone.out), "after /reset the first answer comes again");
  assert.notEqual(out, alone.out.repeat(3), "the second question was answered with the first in mind");
});

Deno.test("a chat that grows beyond the context says so, forgets the oldest turns, and goes on", async () => {
  const lines = Array.from({ length: 5 }, (_, i) => `${i} ${"whale ".repeat(60)}`);
  const { code, out, err } = await run(
    [fixture, ...greedy, "--max-new-tokens", "2"],
    [...lines, "x ".repeat(700)].join("\n"),
  );
  assert.equal(code, 0, err);
  const form =
    /^The conversation is too long: (\d+) tokens, and the model's context of 512 has to hold the answer too\. Without the oldest turn it has (\d+)\.\nForgetting the oldest turn\.$/gm;
  const cuts = [...err.matchAll(form)];
  assert(cuts.length > 0, err);
  for (const [, before, after] of cuts) assert(Number(before) > 510 && Number(after) <= 510);
  assert.match(
    err,
    /Your message is too long: \d+ tokens, and the model's context of 512 has to hold .* Shorten it\.\n$/,
  );
  assert.equal(err.match(/^\[\d/gm)?.length, 5, "all but the last were answered");
  assert(out.length > 0);
});

Deno.test("a line that ends in a backslash goes on in the next", async () => {
  const [broken, whole] = await Promise.all([
    run([fixture, ...greedy], "one \\\ntwo"),
    run([fixture, ...greedy], "one two"),
  ]);
  assert.deepEqual([broken.code, whole.code], [0, 0]);
  assert.match(broken.err, /^\[/m);
  assert.equal(broken.err.match(/^\[/gm)?.length, 1);
});

Deno.test("a model without a template, and flags that are wrong, are refused before anything is asked", async () => {
  const folder = await mkdtemp(join(tmpdir(), "flashtape-"));
  try {
    await cp(fixture, folder, { recursive: true });
    await rm(join(folder, "chat_template.jinja"));
    const { code, out, err } = await run([folder], "hello");
    assert.deepEqual([code, out], [1, ""]);
    assert.equal(err, `[chat] ${folder} has no chat template: deno task generate continues plain text\n`);
    const wrong = await run([fixture, "--top-k", "many"], "hello");
    assert.deepEqual([wrong.code, wrong.out], [2, ""]);
    assert.match(wrong.err, /^--top-k is a whole number above 0, got "many"\n\ndeno task chat DIR/);
  } finally {
    await rm(folder, { recursive: true });
  }
});

Deno.test("readOptions() takes a directory, a system message, and the flags of sampling", () => {
  assert.deepEqual(readOptions(["m", "--system", "Be brief.", "--top-p", "0.5", "--stop", "x"]), {
    dir: "m",
    backend: "auto",
    provider: "deno",
    dtype: undefined,
    system: "Be brief.",
    stop: ["x"],
    sampling: { topP: 0.5 },
  });
  assert.equal(readOptions(["--help"]), "help");
  assert.throws(() => readOptions([]), UsageError);
  assert.throws(() => readOptions(["m", "--json"]), /Unknown option '--json'/);
});

Deno.test("printable() shows control characters as signs, and leaves lines and tabs", () => {
  assert.equal(printable("a\tb\nc \x1b[2J\x07\r\x7f\x9b 🐋"), "a\tb\nc ␛[2J␇␍␡\uFFFD 🐋");
});
