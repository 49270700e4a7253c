import assert from "node:assert/strict";
import { mkdtemp, rm, writeFile } from "node:fs/promises";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { dispose, getBackend, init, type Tensor, tensor } from "@flashtape/flashtape";
import { safetensors } from "@flashtape/flashtape/nn";
import { readOptions } from "./gpt.ts";
import { UsageError } from "./program.ts";
import { type GptConfig, Training, windowsOf } from "./gpt_model.ts";

await init();

const tiny: GptConfig = {
  ...{ layers: 2, heads: 2, width: 16, context: 16, batch: 4, dropout: 0.2, learningRate: 0.01, steps: 20, seed: 3 },
  dtype: "f32",
  checkpoint: false,
};
const bytes = new TextEncoder().encode("Call me Ishmael. Some years ago, never mind how long precisely. ".repeat(4));
const text = tensor(bytes, { dtype: "i32" });

/** Takes steps and gives their losses. */
async function take(training: Training, count: number): Promise<number[]> {
  const losses: Tensor[] = [];
  for (let i = 0; i < count; i++) losses.push(training.step());
  const values = await Promise.all(losses.map((loss) => loss.item()));
  dispose(losses);
  return values;
}

/** A folder for one test. */
async function inFolder(f: (file: string) => Promise<void>): Promise<void> {
  const folder = await mkdtemp(join(tmpdir(), "flashtape-"));
  try {
    await f(join(folder, "gpt.safetensors"));
  } finally {
    await rm(folder, { recursive: true });
  }
}

for (
  const [name, changes] of [["as it is", {}], ["with bf16 activations and recomputation", {
    dtype: "bf16",
    checkpoint: true,
  }]] as const
) {
  Deno.test(`training that is saved and resumed is training that never stopped, to the bit: ${name}`, () =>
    inFolder(async (file) => {
      const config: GptConfig = { ...tiny, ...changes };
      using whole = Training.start(config, text);
      using part = Training.start(config, text);
      const expected = await take(whole, 6), before = await take(part, 3);
      await part.save(file);
      using resumed = await Training.resume(file, text);
      assert.equal(resumed.steps, 3);
      assert.deepEqual(resumed.config, config);
      assert.deepEqual([...before, ...await take(resumed, 3)], expected);
      for (const [name, x] of Object.entries(whole.params)) {
        assert.deepEqual(await resumed.params[name].bytes(), await x.bytes(), name);
      }
      await whole.save(file);
      const saved = await safetensors.toBytes(await safetensors.read(file));
      await resumed.save(file);
      assert.deepEqual(await safetensors.toBytes(await safetensors.read(file)), saved);
    }));
}

Deno.test("a GPT learns a text by heart, and its memory stays flat", async () => {
  using training = Training.start({ ...tiny, dropout: 0, batch: 8 }, text);
  using windows = windowsOf(bytes, tiny.context, 4);
  const before = await training.evaluate(windows);
  await take(training, 2);
  const { current } = getBackend().memory();
  await take(training, 18);
  assert.ok(
    getBackend().memory().current <= current,
    "what other tests dropped may be freed meanwhile, nothing is added",
  );
  const after = await training.evaluate(windows);
  assert.ok(Math.abs(before - Math.log(256)) < 0.1, "a fresh model knows nothing");
  assert.ok(after < 0.7 * before, `${before} → ${after}`);
  const written: number[] = [];
  for await (const byte of training.write("Call me", 5)) written.push(byte);
  assert.equal(written.length, 5);
});

Deno.test("readOptions() refuses what it does not know, and names what an option can be", () => {
  const { config, steps, resume } = readOptions(["--steps", "7", "--dtype", "bf16", "--resume"]) as Exclude<
    ReturnType<typeof readOptions>,
    "help"
  >;
  assert.deepEqual([config.steps, config.dtype, steps, resume], [7, "bf16", 7, true]);
  assert.equal(readOptions(["--help"]), "help");
  for (
    const [args, message] of [
      [["--steps", "0"], /--steps is a whole number above 0, got "0"/],
      [["--dropout", "1"], /--dropout is at least 0 and below 1/],
      [["--dtype", "f64"], /--dtype is one of f32, bf16, f16, got "f64"/],
      [["--width", "100"], /--width is a multiple of 8 · heads, got 100 and 6/],
      [["--wide"], /--wide/],
    ] as const
  ) assert.throws(() => readOptions(args), (error) => error instanceof UsageError && message.test(error.message));
});

Deno.test("a checkpoint that cannot be written is refused before anything is trained", async () => {
  const folder = await mkdtemp(join(tmpdir(), "flashtape-")), program = new URL("./gpt.ts", import.meta.url).pathname;
  try {
    await writeFile(join(folder, "file"), "");
    for (const [file, says] of [[folder, /it is a folder/], [join(folder, "file", "gpt"), /not a directory|exists/]]) {
      const { code, stdout, stderr } = await new Deno.Command(Deno.execPath(), {
        args: ["run", "--quiet", "--allow-all", program, "--backend", "cpu", "--file", file as string],
      }).output();
      const said = new TextDecoder().decode(stderr);
      assert.equal(code, 2, said);
      assert.ok(said.startsWith(`--file: cannot write "${file}": `) && (says as RegExp).test(said), said);
      assert.equal(stdout.length, 0);
    }
  } finally {
    await rm(folder, { recursive: true });
  }
});
