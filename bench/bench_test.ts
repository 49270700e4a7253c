/** Every command at small sizes, on the adapter that there is. One process: pipelines and packages are loaded once. */
import assert from "node:assert/strict";
import { existsSync, mkdtempSync, readdirSync, readFileSync, rmSync, writeFileSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { decode } from "npm:fast-png@8.0.0";
import { main } from "./bench.ts";
import { fromJson, type Result, toJson } from "./record.ts";

const directory = mkdtempSync(join(tmpdir(), "flashtape-bench-"));
addEventListener("unload", () => rmSync(directory, { recursive: true, force: true }));
const at = (...names: string[]) => join(directory, ...names);

/** Runs a command line; what it said. */
async function bench(line: string | readonly string[]): Promise<{ code: number; out: string; err: string }> {
  let out = "", err = "";
  const io = { out: (text: string) => out += text, err: (text: string) => err += text, live: false };
  const code = await main(typeof line === "string" ? line.split(" ") : line, io);
  return { code, out, err };
}

const quick = "--backend webgpu --repeats 3 --warmup 1 --ramp 0 --budget 0.3";

/** Runs a measuring command; its result, read back from its JSON through the schema. */
async function measured(line: string): Promise<Result & { out: string }> {
  const file = at("result.json"),
    [command, ...flags] = line.split(" ");
  const { code, out, err } = await bench(
    `${command} ${quick} ${flags.join(" ")} --json ${file} --csv ${at("result.csv")}`,
  );
  assert.equal(code, 0, err);
  const result = fromJson(readFileSync(file, "utf8"));
  assert.equal(result.device.backend, "webgpu");
  assert.equal(readFileSync(at("result.csv"), "utf8").trim().split("\n").length, result.rows.length + 1);
  for (const { ms, clock, skipped } of result.rows) {
    if (skipped !== undefined) continue;
    assert(ms !== null && ms.min > 0 && ms.each.length >= 1 && ms.each.length <= 3);
    assert(clock !== null && out.length > 0);
  }
  return { ...result, out };
}

Deno.test("attention prints both passes with time, rate, memory, clock and device", async () => {
  const { rows, device, out } = await measured(
    "attention --batch 1 --seqlen 64 --nheads 2 --kv-heads 1 --headdim 32 --causal",
  );
  for (const title of ["Forward Pass Results", "Backward Pass Results"]) assert(out.includes(title), out);
  for (const line of ["Time \\(min\\)", "TFLOPs/s \\(peak\\)", "Peak memory", "Clock", "Device"]) {
    assert.equal(out.match(new RegExp(`^  ${line} +\\S`, "gm"))?.length, 2, line);
  }
  assert.deepEqual(rows.map(({ labels }) => labels.pass), ["forward", "backward"]);
  assert.equal(rows[0].clock, device.timestamps ? "gpu timestamps" : "wall clock");
  assert.equal(rows[0].peakBytes, 64 * 2 * 32 * 4 + 2 * 64 * 4); // out and lse
});

Deno.test("attention takes every algorithm, type and window", async () => {
  const shared = "attention --batch 1 --seqlen 32 --nheads 1 --headdim 16 --no-grad";
  for (const more of ["--algorithm naive --window 4:0", "--algorithm v2 --block-size 16 --dtype bf16"]) {
    assert.equal((await measured(`${shared} ${more}`)).rows.length, 1);
  }
});

Deno.test("compare says how much faster, smaller and different flash is", async () => {
  const { rows, out } = await measured("compare --batch 1 --seqlen 64 --nheads 2 --headdim 32 --causal --no-grad");
  assert.deepEqual(rows.map(({ labels }) => labels.algorithm), ["naive", "flash"]);
  assert(rows[1].difference!.max < 1e-5 && rows[1].difference!.mean > 0);
  assert.match(out, /flash\s+forward\s+\S+\s+\S+×/);
});

Deno.test("layers measures each layer four ways, with differences from the eager one", async () => {
  const sizes = "--batch 1 --seqlen 8 --hidden 16 --intermediate 24 --vocab 40 --nheads 2";
  const { rows } = await measured(`layers ${sizes} --no-grad`);
  assert.equal(rows.length, 5 * 4);
  for (const { labels: { way, compiled }, difference, wall } of rows) {
    assert.equal(difference === undefined, way === "eager" && !compiled);
    assert(difference === undefined || difference.max < 1e-5);
    assert(wall !== undefined);
  }
});

Deno.test("model measures forward, loss and step, and the losses agree", async () => {
  const { rows, out } = await measured("model --preset tiny --layers 1 --vocab 32 --batch 1 --seqlen 8");
  assert.deepEqual([...new Set(rows.map(({ labels }) => labels.work))], ["forward", "loss", "step"]);
  assert(rows.every(({ difference }) => difference === undefined || difference.max < 1e-5));
  assert.match(out, /tokens\/s/);
});

Deno.test("generate writes as many tokens as asked for, with both kinds of attention", async () => {
  const { rows } = await measured(
    "generate --preset tiny --layers 1 --vocab 32 --batch 2 --prompt 4 --new 5 --dtype f32",
  );
  assert.deepEqual(rows.map(({ labels }) => labels.attention), ["naive", "flash"]);
  for (const { figures, ms } of rows) {
    assert(figures!["ms to the first token"] < ms!.median && figures!["ms/token"] > 0);
    assert(Math.abs(figures!["tokens/s"] * ms!.median / 1000 - 10) < 5);
  }
});

/** Colours of a picture, the most frequent first. */
function colorsOf(file: string): { width: number; height: number; shares: number[] } {
  const { width, height, data, channels } = decode(readFileSync(file)), counts = new Map<number, number>();
  for (let i = 0; i < data.length; i += channels) {
    const color = (data[i] << 16) | (data[i + 1] << 8) | data[i + 2];
    counts.set(color, (counts.get(color) ?? 0) + 1);
  }
  return { width, height, shares: [...counts.values()].sort((a, b) => b - a).map((n) => n / (width * height)) };
}

const pictures = ["memory", "performance", "dashboard"];

Deno.test("suite writes charts, JSON and CSV, and goes on after what does not fit", async () => {
  const sizes = "--max-seq-len 64 --batch-size 1 --embed-dim 64 --num-heads 4 --block-size 32";
  // Naive attention's backward pass at 64 needs about 350 KiB: it is left out, and recorded.
  const { rows } = await measured(`suite ${sizes} --memory-limit 0.0002 --save-dir ${at("suite")}`);
  const out = rows.filter(({ skipped }) => skipped !== undefined);
  assert(out.length > 0 && out.every(({ skipped }) => skipped!.predictedBytes! > 0.0002 * 2 ** 30));
  assert(out.length < rows.length && rows.at(-1)!.skipped === undefined);
  assert.deepEqual(new Set(rows.map(({ labels }) => labels.algorithm)), new Set(["naive", "v1", "v2", "flash"]));
  const names = pictures.flatMap((name) => [`benchmark_${name}.png`, `benchmark_${name}.svg`]);
  assert.deepEqual(
    readdirSync(at("suite")).sort(),
    [...names, "benchmark_results.csv", "benchmark_results.json"].sort(),
  );
  for (const name of pictures) {
    const { width, height, shares } = colorsOf(at("suite", `benchmark_${name}.png`));
    assert(
      width > 800 && height > 400 && shares[0] > 0.5 && shares[0] < 0.99 && shares.length > 50,
      `${name} ${shares.length}`,
    );
    const svg = readFileSync(at("suite", `benchmark_${name}.svg`), "utf8");
    for (const word of ["sequence length", "naive", "flash", new Date().toISOString().slice(0, 4), "WebGPU by Deno"]) {
      assert(svg.includes(word), `${name}: ${word}`);
    }
    assert(!/NaN|Infinity|undefined/.test(svg), name);
  }
});

Deno.test("suite draws an earlier result again, in the dark, without measuring", async () => {
  const { code, err } = await bench(
    `suite --from ${at("suite", "benchmark_results.json")} --theme dark --save-dir ${at("dark")}`,
  );
  assert.equal(code, 0, err);
  for (const name of pictures) {
    const [light, dark] = ["suite", "dark"].map((from) => colorsOf(at(from, `benchmark_${name}.png`)));
    assert.equal(dark.width, light.width);
    const { data } = decode(readFileSync(at("dark", `benchmark_${name}.png`)));
    assert(data[0] < 64, "the paper is dark");
  }
});

Deno.test("profile prints the kernels and writes a trace that parses", async () => {
  const line = `profile --trace ${
    at("trace.json")
  } attention --batch 1 --seqlen 64 --nheads 2 --headdim 32 --no-grad ${quick}`;
  const { code, out, err } = await bench(line);
  assert.equal(code, 0, err);
  assert.match(out, /attention_forward\S*\s+attention\s+1 /);
  const { traceEvents } = JSON.parse(readFileSync(at("trace.json"), "utf8"));
  assert(traceEvents.some((event: { ph: string; dur: number }) => event.ph === "X" && event.dur > 0));
});

Deno.test("report writes a page, and the same page again from what it left", async () => {
  const only = "--only compare,blocks", flags = ["--flags", quick];
  const first = await bench([...`report --quick ${only} --save-dir ${at("report")}`.split(" "), ...flags]);
  assert.equal(first.code, 0, first.err);
  const page = readFileSync(at("report", "results.md"), "utf8");
  for (const word of ["## Block sizes", "$ deno task bench compare", "speed-up"]) {
    assert(page.includes(word), word);
  }
  for (const name of ["compare.json", "blocks.json"]) fromJson(readFileSync(at("report", name), "utf8"));
  const again = await bench([
    ...`report --quick ${only} --from ${at("report")} --save-dir ${at("again")}`.split(" "),
    ...flags,
  ]);
  assert.equal(again.code, 0, again.err);
  assert.equal(readFileSync(at("again", "results.md"), "utf8"), page);
});

Deno.test("sweep runs every combination of lists", async () => {
  const inner = `attention --batch 1 --nheads 1 --headdim 32 --seqlen 32,64 --causal on,off --no-grad ${quick}`;
  const { code, out, err } = await bench(`sweep --json ${at("sweep.json")} ${inner}`);
  assert.equal(code, 0, err);
  const { rows, command } = fromJson(readFileSync(at("sweep.json"), "utf8"));
  assert.equal(command, "sweep attention");
  assert.deepEqual(rows.map(({ labels }) => [labels.seqlen, labels.causal]), [
    ["32", "on"],
    ["32", "off"],
    ["64", "on"],
    ["64", "off"],
  ]);
  assert(out.includes("seqlen 64, causal off"));
  const check = await bench(`check --rounds 2 --tolerance 10 --baseline ${at("sweep.json")}`);
  assert(check.code < 2, check.err);
  assert.match(check.out, /seqlen 64, causal off\) +time/);
});

Deno.test("sweep leaves out what does not fit and keeps the rest", async () => {
  const { code, out, err } = await bench(
    `sweep attention --batch 1 --nheads 1 --headdim 32 --seqlen 1048576,32 --memory-limit 0.1 --no-grad ${quick}`,
  );
  assert.equal(code, 0, err);
  assert.match(out, /seqlen 1048576\) +left out/);
  assert.match(out, /seqlen 32\) +\d/);
});

Deno.test("attention says which pass does not fit, after the one that does", async () => {
  // The backward pass of naive attention is predicted to hold several times what the forward pass does.
  const { code, out, err } = await bench(
    `attention --algorithm naive --batch 1 --nheads 1 --headdim 32 --seqlen 256 --memory-limit 0.0009 ${quick}`,
  );
  assert.equal(code, 0, err);
  assert.match(out, /Forward Pass Results: .*\n +Time \(min\)/);
  assert.match(out, /Backward Pass Results: .*\n +left out: would need .* of at most/);
});

Deno.test("check passes against a slower baseline and exits with 1 against a faster one", async () => {
  const { out: _, ...now } = await measured("attention --batch 1 --seqlen 64 --nheads 2 --headdim 32 --no-grad");
  const scaled = (by: number): Result => ({
    ...now,
    rows: now.rows.map((row) => ({ ...row, ms: { ...row.ms!, median: row.ms!.median * by } })),
  });
  for (const [by, expected] of [[1000, 0], [1e-3, 1]] as const) {
    writeFileSync(at("baseline.json"), toJson(scaled(by)));
    const { code, out, err } = await bench(`check --rounds 2 --baseline ${at("baseline.json")}`);
    assert.equal(code, expected, err);
    assert.match(out, expected === 0 ? /nothing is worse/ : /1 of 1 figures are worse/);
  }
});

Deno.test("ground measures the whole floor in small", async () => {
  const { rows } = await measured(`ground --scale 0.00001 --budget 0.03 --save ${at("ground.json")}`);
  assert(rows.length >= 10 && rows.every(({ figures }) => Object.values(figures!).every((rate) => rate > 0)));
});

const commands = [
  "ground",
  "attention",
  "compare",
  "layers",
  "model",
  "generate",
  "suite",
  "peers",
  "llama",
  "tune",
  "profile",
  "sweep",
  "check",
];

Deno.test("--help works at every level and names every flag", async () => {
  const { code, out } = await bench("--help");
  assert.equal(code, 0);
  for (const name of commands) {
    assert.match(out, new RegExp(`^  ${name} `, "m"));
    const page = await bench(`${name} --help`);
    assert.equal(page.code, 0);
    assert.match(page.out, new RegExp(`Usage: bench ${name}`));
  }
});

Deno.test("what cannot be is refused with exit code 2, naming flag, value and what is allowed", async () => {
  writeFileSync(at("file"), "");
  writeFileSync(at("no.json"), "{}");
  const refused: [line: string, ...says: (string | RegExp)[]][] = [
    ["nothing", "'nothing'", "attention, compare"],
    ["attention --seqlen 0", "--seqlen", "'0'", "1 to"],
    ["attention --seqlen 12.5", "--seqlen", "'12.5'"],
    ["attention --dtype f8", "--dtype", "'f8'", "f32, f16, bf16"],
    ["attention --algorithm best", "--algorithm", "flash, naive, v1, v2"],
    ["attention --window a", "--window", "'a'", "LEFT:RIGHT"],
    ["attention --preset gpt9", "--preset", "gpt2, gpt3"],
    ["attention --nheads 6 --kv-heads 4", "--kv-heads 4", "--nheads 6", "1, 2, 3, 6"],
    ["attention --backend tpu", "--backend", "'tpu'", "auto, webgpu, cpu"],
    ["attention --provider chrome", "--provider", "deno, dawn"],
    ["attention --robustness maybe", "--robustness", "'maybe'", "on, off"],
    ["attention --robustness off", "--robustness off", "--provider dawn"],
    ["tune --large 0", "--large", "'0'"],
    ["attention --json= --seqlen 8", "--json", "''", "a path"],
    ["suite --save-dir= --max-seq-len 32", "--save-dir", "''", "a path"],
    ["ground --scale 1 --memory-limit 1", "--scale 1", "4.0 GiB", "at most"],
    ["attention --batch 65536 --backend webgpu", "nothing of this fits", "--batch, --seqlen, --nheads, --headdim"],
    [`suite --max-seq-len 1048576 --memory-limit 1 --save-dir ${at("none")}`, "nothing of this fits", "--max-seq-len"],
    [`model --preset llama-1b --memory-limit 0.1 --json ${at("none.json")}`, "nothing of this fits", "--preset"],
    ["sweep attention --seqlen 65536,131072 --memory-limit 0.01 --backend cpu", "nothing of this fits", "--seqlen"],
    [`sweep suite --max-seq-len 32,64 --save-dir ${at("none")}`, "--save-dir", "sweep --json"],
    [`profile attention --seqlen 8 --json=${at("none.json")}`, "--json", "--trace FILE"],
    [`profile --trace ${at("none.json")} attention --seqlen 1048576 --memory-limit 1`, "nothing of this fits"],
    [`check --baseline ${at("no.json")} --tolerance -1`, "--tolerance", "'-1'", "from 0 to 10"],
    [`tune --cache ${at("file", "tiles")}`, "--cache", "cannot be written"],
    [`tune --provider deno --backend webgpu --cache ${at("tiles")}`, "no matrix units", "--provider dawn"],
    ["tune --backend cpu --no-cache", "no matrix units"],
    ["attention --repeats 0", "--repeats", "'0'"],
    ["attention --colour red", "--colour"],
    ["attention 12", "12"],
    [`attention --json ${at("file", "x.json")}`, "--json", at("file"), "cannot be written"],
    [`suite --save-dir ${at("file", "plots")}`, "--save-dir", "cannot be written"],
    ["suite --embed-dim 100 --num-heads 12", "--num-heads 12", "--embed-dim 100"],
    [`suite --from ${at("absent.json")}`, "--from", "absent.json"],
    ["suite --theme blue", "--theme", "light, dark"],
    // The scores of one head are 4 GiB and more: no binding of this adapter holds them.
    [
      "attention --algorithm naive --seqlen 32768 --batch 1 --nheads 1 --backend webgpu",
      /would need|larger than one binding/,
    ],
    ["attention --seqlen 4096 --memory-limit 0.001", /would need \S+ MiB of at most 1.0 MiB/, "--memory-limit"],
    ["layers --only rmsNorm,magic", "--only", "swiglu"],
    ["layers --hidden 10 --nheads 4", "--nheads", "'4'"],
    ["model --preset gpt5", "--preset", "llama-1b"],
    [`generate --model ${at("file")}`, "--model", "config.json"],
    ["profile peers", "peers cannot be profiled"],
    ["profile attention --seqlen -1", "--seqlen", "'-1'"],
    ["sweep attention --seqlen 64", "no flag", "512,1024"],
    ["sweep attention --dtype f32,f8", "--dtype", "'f8'"],
    ["report --only all", "'all'", "suite, compare"],
    [`report --quick --from ${at("absent")}`, "--from", "suite.json"],
    ["check", "--baseline"],
    [`check --baseline ${at("no.json")}`, "--baseline", "format"],
    ["peers --dtypes f64", "--dtypes", "f32, f16"],
  ];
  const before = readdirSync(directory).sort();
  for (const [line, ...says] of refused) {
    const { code, out, err } = await bench(line);
    assert.equal(code, 2, `${line}\n${out}${err}`);
    for (const part of says) {
      assert(typeof part === "string" ? err.includes(part) : part.test(err), `${line}: ${part}\n${err}`);
    }
    assert(!err.includes("    at "), `${line} shows a stack`);
  }
  assert.deepEqual(readdirSync(directory).sort(), before);
  assert(
    !existsSync("out/bench/benchmark_results.json") || readdirSync("out/bench").every((name) => !name.endsWith(".tmp")),
  );
});
