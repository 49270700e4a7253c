import assert from "node:assert/strict";
import { mkdtemp, readdir, readFile, rm } from "node:fs/promises";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { type llama, safetensors } from "@flashtape/flashtape/nn";
import { countParameters } from "./byte_model.ts";
import { readBook, readOptions } from "./moby_dick.ts";
import { UsageError } from "./program.ts";

const program = new URL("./moby_dick.ts", import.meta.url).pathname;

/** Runs the demo on the CPU; `hear` sees its output as it comes. */
async function run(
  args: readonly string[],
  hear: (output: string, stop: () => void) => void = () => {},
): Promise<{ code: number; output: string; folder: string }> {
  const folder = await mkdtemp(join(tmpdir(), "flashtape-"));
  const permissions = ["--allow-env", "--allow-read", `--allow-write=${folder}`];
  const child = new Deno.Command(Deno.execPath(), {
    args: ["run", "--quiet", ...permissions, program, "--out", folder, "--backend", "cpu", ...args],
    stdout: "piped",
    stderr: "piped",
  }).spawn();
  let output = "";
  const read = async (stream: ReadableStream<Uint8Array<ArrayBuffer>>) => {
    for await (const chunk of stream.pipeThrough(new TextDecoderStream())) {
      output += chunk;
      hear(output, () => child.kill("SIGINT"));
    }
  };
  await Promise.all([read(child.stdout), read(child.stderr)]);
  return { code: (await child.status).code, output, folder };
}

async function checkSaved(folder: string): Promise<void> {
  assert.deepEqual((await readdir(folder)).sort(), ["config.json", "loss.svg", "model.safetensors"]);
  const config: llama.LlamaConfig = JSON.parse(await readFile(join(folder, "config.json"), "utf8"));
  const { tensors, metadata } = await safetensors.readHeader(join(folder, "model.safetensors"));
  const size = Object.values(tensors).reduce((sum, { shape }) => sum + shape.reduce((a, b) => a * b, 1), 0);
  assert.equal(size, countParameters(config));
  assert.equal(metadata.format, "pt");
}

Deno.test("the demo trains, saves, loads the same model again, writes, and compares", async () => {
  const { code, output, folder } = await run(["--steps", "2", "--size", "tiny"]);
  try {
    assert.equal(code, 0, output);
    assert.match(output, /running on cpu/);
    assert.match(output, /100% {2}loss [\d.]+ {2}held-out [\d.]+ bits\/byte {2}[\d.k]+ tok\/s {2}0 s left/);
    assert.match(output, /loaded again: [\d.]+ bits per byte, the same to the last bit/);
    assert.match(output, /400 bytes, .* through a key\/value cache/);
    const rows = [...output.matchAll(/^ {2}(flash|naive) +([\d.]+) .* ([\d.]+) MB$/gm)];
    assert.deepEqual(rows.map((row) => row[1]), ["flash", "naive"]);
    assert(Math.abs(Number(rows[0][2]) - Number(rows[1][2])) < 1e-3, "both see the same loss");
    assert(Number(rows[0][3]) < Number(rows[1][3]) / 2, "flash needs less than half the memory");
    await checkSaved(folder);
  } finally {
    await rm(folder, { recursive: true });
  }
});

Deno.test("an interrupt ends the demo after the step that runs, with a whole checkpoint, and says so", async () => {
  let stopped = false;
  const { code, output, folder } = await run(["--minutes", "5", "--size", "tiny"], (output, stop) => {
    if (stopped || !/step \d/.test(output)) return;
    stopped = true;
    stop();
  });
  try {
    assert.equal(code, 130, output);
    assert.match(output, /interrupted after \d+ steps; what it has learnt is saved/);
    await checkSaved(folder);
  } finally {
    await rm(folder, { recursive: true });
  }
});

Deno.test("a flag that is wrong is refused with exit code 2 before anything runs", async () => {
  const { code, output, folder } = await run(["--minutes", "soon"]);
  await rm(folder, { recursive: true });
  assert.equal(code, 2);
  assert.match(output, /^--minutes is a number above 0, got "soon"/);
  assert(!output.includes("running on"));
});

Deno.test("readOptions() knows the flags and their defaults", () => {
  assert.deepEqual(readOptions([]), {
    minutes: 2,
    steps: undefined,
    size: "auto",
    backend: "auto",
    provider: "deno",
    seed: 0,
    out: "out",
  });
  assert.deepEqual(
    readOptions(["--minutes=0.5", "--steps", "7", "--size", "small", "--backend", "cpu", "--seed", "3", "--no-setup"]),
    {
      minutes: 0.5,
      steps: 7,
      size: "small",
      backend: "cpu",
      provider: "deno",
      seed: 3,
      out: "out",
    },
  );
  assert.equal(readOptions(["--help"]), "help");
  const wrong = [
    ["--steps", "1.5"],
    ["--steps", "0"],
    ["--seed", "-1"],
    ["--seed", ""],
    ["--backend", "gpu"],
    ["--provider", "chrome"],
    ["--size", "huge"],
    [
      "--out",
      "",
    ],
    ["--minutes", "0"],
    ["--unknown"],
    ["more"],
  ];
  for (const args of wrong) assert.throws(() => readOptions(args), UsageError, args.join(" "));
});

Deno.test("readBook() holds chapters out and knows what their bytes cost at least", () => {
  const { train, heldOut, entropy } = readBook();
  assert(train.length > 1e6 && heldOut.length > 4e4 && heldOut.length < train.length / 10);
  assert(entropy > 4.3 && entropy < 4.6);
  assert(new TextDecoder().decode(train).includes("Call me Ishmael."));
});
