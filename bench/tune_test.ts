import assert from "node:assert/strict";
import { mkdirSync, mkdtempSync, readdirSync, readFileSync, rmSync, writeFileSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { main } from "./bench.ts";
import { fromJson } from "./record.ts";
import { tilesFile, userCache } from "./tiles.ts";

// The file of tests ends, the process goes on to the next: `dawn()` must not end it. Nor are backends closed here: once a
// device of Dawn's was destroyed, its module aborts when the file's isolate is torn down.
globalThis.addEventListener("unload", (event) => event.stopImmediatePropagation());

Deno.test("userCache() is the folder that each system has for what can be measured again", () => {
  const of = (os: string, env: Record<string, string>) => userCache(os, (name) => env[name]);
  assert.equal(of("linux", { HOME: "/home/a" }), "/home/a/.cache/flashtape");
  assert.equal(of("linux", { HOME: "/home/a", XDG_CACHE_HOME: "/c" }), "/c/flashtape");
  assert.equal(of("linux", { HOME: "/home/a", XDG_CACHE_HOME: "c" }), "/home/a/.cache/flashtape");
  assert.equal(of("darwin", { HOME: "/Users/a", XDG_CACHE_HOME: "/c" }), "/Users/a/Library/Caches/flashtape");
  assert.equal(of("windows", { LOCALAPPDATA: "/a/local", HOME: "/h" }), "/a/local/flashtape");
  for (const os of ["linux", "darwin", "windows"]) assert.equal(of(os, {}), null);
});

Deno.test("tilesFile() has a file for each adapter, with and without bounds checks", () => {
  assert.equal(tilesFile("/c", "NVIDIA H200", "on"), "/c/matmul-nvidia-h200.json");
  assert.equal(
    tilesFile("/c", "llvmpipe (LLVM 15.0.6, 256 bits)", "off"),
    "/c/matmul-llvmpipe-llvm-15-0-6-256-bits-unchecked.json",
  );
});

const quick = "--backend webgpu --provider dawn --repeats 1 --warmup 0 --ramp 0 --budget 0.1";

Deno.test("tune keeps tiles that other commands then use and name; without matrix units it leaves nothing", async () => {
  const directory = mkdtempSync(join(tmpdir(), "flashtape-tune-"));
  const cache = join(directory, "cache"), json = join(directory, "result.json");
  const bench = async (line: string) => {
    let out = "", err = "";
    const code = await main(line.split(" "), {
      ...{ out: (text: string) => out += text, err: (text: string) => err += text, live: false },
    });
    return { code, out, err };
  };
  try {
    const tuned = await bench(`tune ${quick} --large 32 --small 32 --cache ${cache} --json ${json}`);
    if (tuned.code !== 0) { // Dawn is not there, or finds no adapter, or one without units
      assert.equal(tuned.code, 2);
      assert.match(tuned.err, /no matrix units|adapter|could not be loaded/);
      assert.deepEqual(readdirSync(directory), []);
      return;
    }
    const { rows, device } = fromJson(readFileSync(json, "utf8"));
    assert.ok(rows.length > 1);
    for (const { name, labels, figures } of rows) {
      assert.ok(figures!["TFLOP/s"] > 0 && figures!["workgroups wanted"] >= 1, name);
      assert.match(tuned.out, new RegExp(`^${labels.tile} +${labels.subgroup} +\\S`, "m"));
    }
    assert.ok(rows.some(({ figures }) => figures!["built-in TFLOP/s"] > 0));
    assert.match(tuned.err, new RegExp(`\\[${rows.length}/${rows.length}\\] tile `));
    const file = tilesFile(cache, device.name, "on");
    assert.deepEqual(readdirSync(cache).map((name) => join(cache, name)), [file]);
    assert.ok(tuned.out.includes(file));

    const attention = `attention ${quick} --batch 1 --seqlen 8 --nheads 1 --headdim 8 --no-grad --json ${json}`;
    for (const [flags, uses] of [[`--cache ${cache}`, true], ["--no-cache", false]] as const) {
      const { code, out, err } = await bench(`${attention} ${flags}`);
      assert.equal(code, 0, err);
      assert.equal(out.includes("tuned tiles"), uses, out);
      assert.equal(fromJson(readFileSync(json, "utf8")).device.tunedTiles, uses);
    }

    for (const [i, text] of ["{", `{"device": "another card"}`].entries()) {
      const spoilt = join(directory, `spoilt${i}`), spoiltFile = tilesFile(spoilt, device.name, "on");
      mkdirSync(spoilt);
      writeFileSync(spoiltFile, text);
      const { code, err } = await bench(`${attention} --cache ${spoilt}`);
      assert.equal(code, 2);
      assert.ok(err.includes(spoiltFile) && err.includes("bench tune"), err);
    }
  } finally {
    rmSync(directory, { recursive: true });
  }
});
