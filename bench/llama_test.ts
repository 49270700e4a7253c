import { cpu, init, key, setBackend, tensor } from "@flashtape/flashtape";
import { generate, llama, safetensors } from "@flashtape/flashtape/nn";
import assert from "node:assert/strict";
import { mkdtempSync, readFileSync, rmSync, writeFileSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { main } from "./bench.ts";
import { llamaReport, llamaRows } from "./llama.ts";
import { llamaParts } from "./llama_parts.ts";
import { closeBackends, describe } from "./machine.ts";
import { fromJson, type Result, type Row, toJson } from "./record.ts";

const config = {
  model_type: "llama",
  vocab_size: 400,
  hidden_size: 32,
  intermediate_size: 48,
  num_hidden_layers: 2,
  num_attention_heads: 4,
  num_key_value_heads: 2,
  initializer_range: 0.3,
  max_position_embeddings: 1024,
  tie_word_embeddings: true,
};
const sizes = { long: 12, new: 5, contexts: [8] };
const settings = {
  ...{ backend: "webgpu", provider: "deno", robustness: "on" } as const,
  ...{ warmup: 0, ramp: 0, repeats: 2, seed: 0, budget: 1 },
};

/** A small checkpoint with what PyTorch would have left of it; gone afterwards. */
async function withCheckpoint(f: (directory: string) => Promise<void>): Promise<void> {
  const directory = mkdtempSync(join(tmpdir(), "flashtape-"));
  try {
    setBackend(cpu());
    const params = llama.init(key(1), config, { dtype: "bf16" });
    await llama.save(directory, { config, params });
    const prompts = [0, 1].map((row) => Array.from({ length: 6 }, (_, i) => (row + 1) * (7 * i + 3) % 400));
    const long = Array.from({ length: 12 }, (_, i) => 31 * i % 400), tokens: number[] = [];
    for await (const step of generate({ config, params }, { inputIds: prompts[0], maxNewTokens: 5, temperature: 0 })) {
      tokens.push(step.tokens[0]);
    }
    const last = (ids: number[]) =>
      llama.forward(params, config, tensor([ids], { dtype: "i32" }), { logitsToKeep: 1 }).logits;
    await safetensors.write(`${directory}/logits.safetensors`, { short: last(prompts[0]), long: last(long) });
    const baseline = {
      ...{ torch: "2.0", device: "a card", new: 5, prompts, long: [long] },
      ways: {
        eager: {
          load: [2],
          decode1: [9, 10, 11],
          decode2: [20],
          first: [3],
          prefill: [7],
          train: [30],
          train_peak_bytes: 2 ** 20,
        },
        sdpa: { decode1: [5], decode2: [10], first: [2], prefill: [4], prefill8: [12], train: [20] },
      },
      agreement: {
        f32: { tokens, margins: [1, 1, 1, 1, 1] },
        bf16: { tokens: tokens.with(2, -1), margins: [1, 1, 0.5, 1, 1] },
      },
      failed: { "prefill8 eager": "out of memory" },
    };
    writeFileSync(`${directory}/baseline.json`, JSON.stringify(baseline));
    await f(directory);
  } finally {
    setBackend(cpu());
    rmSync(directory, { recursive: true });
  }
}

/** All parts of a directory, measured in small; rows and text. */
async function measured(directory: string, only = llamaParts.filter((part) => part !== "static")) {
  const backend = await init({ backend: "webgpu" });
  const progress = { start: () => {}, on: () => {}, done: () => {}, stop: () => {} };
  const io = { out: () => {}, err: () => {}, live: false };
  const rows = await llamaRows({ backend, settings, io, progress }, directory, { only, python: null }, sizes);
  const result: Result = {
    ...{ format: "flashtape-bench/1", command: "llama", arguments: [], date: new Date().toISOString() },
    ...{ ...describe(backend, settings), settings: { warmup: 0, ramp: 0, repeats: 2, seed: 0, budget: 1 }, rows },
  };
  backend.dispose();
  assert.deepEqual(fromJson(toJson(result)), result);
  return { rows, text: llamaReport(result) };
}

const find = (rows: readonly Row[], name: string) => {
  const row = rows.find((row) => row.name === name);
  assert.ok(row !== undefined, `${name} of ${rows.map(({ name }) => name).join("; ")}`);
  return row;
};

Deno.test("llama times every part of a checkpoint beside what PyTorch left, and says where tokens part", async () => {
  await withCheckpoint(async (directory) => {
    const { rows, text } = await measured(directory);
    const own = rows.filter(({ labels }) => labels.way === "flashtape" && labels.unit !== undefined);
    assert.deepEqual(own.map(({ labels }) => labels.work), [
      ...["load", "first token", "decode, batch 1", "decode, batch 2", "prefill 1 × 12", "prefill 8 × 12"],
      ...["decode with 8 before", "train step 4 × 12"],
    ]);
    for (const { name, ms, skipped } of own) {
      assert.ok(skipped === undefined && ms!.median > 0, `${name} ${skipped?.reason}`);
    }
    const train = find(rows, "train step 4 × 12 flashtape");
    assert.ok(Math.abs(train.figures!["tokens/s"] * train.ms!.median / 48_000 - 1) < 1e-6);
    assert.ok(train.figures!["bytes held at most"] > 2 * 400 * 32);
    const agreement = find(rows, "agreement flashtape");
    assert.equal(agreement.labels.f32, "equal");
    assert.equal(agreement.labels.bf16, "token 2 differs, margin 0.500");
    assert.ok(agreement.figures!["short prompt"] < 1e-3 && agreement.figures!["long prompt"] < 1e-3);
    assert.equal(find(rows, "decode, batch 1 PyTorch eager").figures!["tokens/s"], 500);
    assert.equal(find(rows, "prefill 8 × 12 PyTorch eager").skipped!.reason, "out of memory");
    assert.match(text, /^decode, batch 1 +tokens\/s +\S+ +500 +1,000$/m);
    assert.match(text, /^prefill 8 × 12 +ms +\S+ +failed +12\.00$/m);
    assert.match(text, /^train step 4 × 12, memory +\S+ KiB +1\.0 MiB$/m);
    assert.match(text, /PyTorch 2\.0, a card/);
    assert.match(text, /equal \(f32\), token 2 differs, margin 0\.500 \(bf16\)/);
    assert.match(text, /^prefill 8 × 12 PyTorch eager failed: out of memory$/m);
  });
});

Deno.test("a part that fails is said, and the others are measured", async () => {
  await withCheckpoint(async (directory) => {
    rmSync(join(directory, "logits.safetensors"));
    const { rows, text } = await measured(directory, ["agreement", "train", "prefill"]);
    const agreement = find(rows, "agreement flashtape");
    assert.match(agreement.skipped!.reason, /logits\.safetensors/);
    assert.ok(text.includes(`agreement flashtape failed: ${agreement.skipped!.reason}`));
    for (const name of ["prefill 1 × 12 flashtape", "train step 4 × 12 flashtape"]) {
      assert.ok(find(rows, name).ms!.median > 0);
    }
    writeFileSync(join(directory, "model.safetensors"), "no weights");
    const broken = await measured(directory, ["prefill", "train"]);
    assert.equal(broken.rows.filter(({ skipped }) => skipped !== undefined).length, 3);
    assert.match(broken.text, /^load flashtape failed: \S/m);
  });
});

Deno.test("llama as a command measures the parts that are asked for; without PyTorch or a checkpoint it says so", async () => {
  await withCheckpoint(async (directory) => {
    const bench = async (...line: string[]) => {
      let out = "", err = "";
      const io = { out: (text: string) => out += text, err: (text: string) => err += text, live: false };
      return { code: await main(line, io), out, err };
    };
    const quick = ["--backend", "webgpu", "--repeats", "1", "--budget", "0.1"], json = join(directory, "result.json");
    const absent = ["--python", join(directory, "no-python")];
    const found = await bench("llama", directory, "--only", "decode,static", ...quick, ...absent, "--json", json);
    assert.equal(found.code, 0, found.err);
    const { rows, device } = fromJson(readFileSync(json, "utf8"));
    assert.equal(device.provider, "deno");
    assert.deepEqual(
      rows.filter(({ labels }) => labels.way === "flashtape").map(({ labels }) => labels.part),
      ["decode", "decode", "decode"],
    );
    assert.match(rows.at(-1)!.skipped!.reason, /no-python could not be started/); // for `static`
    assert.match(found.out, /^PyTorch failed: .*no-python/m);
    const refused: [line: string[], says: RegExp][] = [
      [["llama"], /directory/],
      [["llama", directory, "--only", "prefill9"], /prefill9.*load, decode/s],
      [["llama", join(directory, "config.json")], /is a file/],
      [["llama", join(directory, "empty"), ...quick, ...absent], /no checkpoint there.*no-python/s],
      [["llama", join(directory, "empty"), ...quick, "--no-python"], /no checkpoint there.*--no-python/s],
      [["llama", directory, "--robustness", "off"], /--provider dawn/],
    ];
    for (const [line, says] of refused) {
      const { code, err } = await bench(...line);
      assert.equal(code, 2, `${line}\n${err}`);
      assert.match(err, says);
    }
    await closeBackends();
  });
});
