import assert from "node:assert/strict";
import { mkdtemp, readdir, readFile, rm, writeFile } from "node:fs/promises";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { dispose, init, tensor } from "@flashtape/flashtape";
import { llama } from "@flashtape/flashtape/nn";
import { evaluate, readOptions, train } from "./finetune.ts";
import { UsageError } from "./program.ts";

const fixture = new URL("../nn/fixtures/llama-a", import.meta.url).pathname;
const text = "Call me Ishmael. Some years ago, never mind how long precisely, I went to sea. ".repeat(20);

Deno.test("training lowers the loss, and what is saved computes the same when it is loaded again", async () => {
  await init({ backend: "cpu" });
  const folder = await mkdtemp(join(tmpdir(), "flashtape-"));
  try {
    const model = await llama.load(fixture, { dtype: "f32" }), { config } = model;
    using ids = tensor(model.tokenizer.encode(text), { dtype: "i32" });
    const before = await evaluate(model.params, config, ids, 32), heard: number[] = [];
    const training = { steps: 12, batch: 2, context: 32, learningRate: 5e-3, seed: 1 };
    const { params, steps } = await train(model.params, config, ids, training, (step) => heard.push(step));
    const after = await evaluate(params, config, ids, 32);
    assert.equal(steps, 12);
    assert.equal(heard.at(-1), 12);
    assert(after < before - 0.5, `${before} → ${after}`);
    await llama.save(folder, { ...model, params });
    const back = await llama.load(folder);
    using row = tensor([model.tokenizer.encode("Call me")], { dtype: "i32" });
    const logits = [params, back.params].map((p) => llama.forward(p, back.config, row).logits);
    assert.deepEqual(await logits[1].data(), await logits[0].data());
    assert.equal(await evaluate(back.params, back.config, ids, 32), after);
    dispose([params, back.params, logits]);
  } finally {
    await rm(folder, { recursive: true });
  }
});

Deno.test("the program trains, tells how far it is, and saves in the checkpoint's own type", async () => {
  const folder = await mkdtemp(join(tmpdir(), "flashtape-")), out = join(folder, "trained");
  try {
    await writeFile(join(folder, "text.txt"), text);
    const program = new URL("./finetune.ts", import.meta.url).pathname;
    const { code, stdout, stderr } = await new Deno.Command(Deno.execPath(), {
      args: ["run", "--quiet", "--allow-env", "--allow-read", `--allow-write=${folder}`, program, fixture].concat(
        [join(folder, "text.txt"), "--out", out, "--steps", "2", "--batch", "1", "--context", "16", "--backend", "cpu"],
      ),
    }).output();
    const output = new TextDecoder().decode(stdout);
    assert.equal(code, 0, new TextDecoder().decode(stderr));
    assert.match(output, /^llama-a: 131k parameters, f32, /);
    assert.match(output, /100% {2}loss [\d.]+ {2}[\d.k]+ tok\/s {2}0 s left {2}step 2/);
    assert.match(output, /loss on held-out text: [\d.]+ before, [\d.]+ after 2 steps\nsaved .*, in bf16\n$/);
    assert.deepEqual(await readdir(out), (await readdir(fixture)).filter((file) => !file.startsWith("expected")));
    // Where nothing can be written, that is said before anything is trained.
    const refused = await new Deno.Command(Deno.execPath(), {
      args: ["run", "--quiet", "--allow-all", program, fixture, join(folder, "text.txt"), "--out"].concat(
        [join(folder, "text.txt", "out"), "--context", "16", "--backend", "cpu"],
      ),
    }).output();
    assert.equal(refused.code, 2);
    assert.match(new TextDecoder().decode(refused.stderr), /^--out: cannot write to ".*text.txt.out": .*\n/);
    const config = JSON.parse(await readFile(join(out, "config.json"), "utf8"));
    assert.equal(config.dtype, "bfloat16");
  } finally {
    await rm(folder, { recursive: true });
  }
});

Deno.test("readOptions() refuses what cannot be meant", () => {
  const options = readOptions(["a", "b.txt", "--out", "c", "--steps", "5", "--save-dtype", "f16"]);
  assert(options !== "help");
  assert.deepEqual([options.dir, options.text, options.out, options.steps, options.dtype, options.saveDType], [
    ...["a", "b.txt", "c"],
    5,
    "f32",
    "f16",
  ]);
  for (const args of [["a"], ["a", "b"], ["a", "b", "--out", "./a"], ["a", "b", "c", "--out", "d"]]) {
    assert.throws(() => readOptions(args), UsageError);
  }
  assert.throws(
    () => readOptions(["a", "b", "--out", "c", "--learning-rate", "0"]),
    /--learning-rate is a number above 0/,
  );
});
