import { cpu, init, key, setBackend, tensor } from "@flashtape/flashtape";
import { generate, llama, safetensors } from "@flashtape/flashtape/nn";
import assert from "node:assert/strict";
import { mkdtempSync, rmSync, writeFileSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { benchLlama, llamaTable } from "./llama.ts";

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

Deno.test("benchLlama() times a checkpoint and finds where its tokens part from the baseline's", async () => {
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
    const speed = { eager: { tokens_per_second_batch_1: 3 } };
    const baseline = {
      ...{ torch: "none", device: "none", new: 5, prompts, long, load_seconds: 1, speed },
      f32: { tokens, margins: [1, 1, 1, 1, 1] },
      bf16: { tokens: tokens.with(2, -1), margins: [1, 1, 0.5, 1, 1] },
    };
    writeFileSync(`${directory}/baseline.json`, JSON.stringify(baseline));
    const backend = await init({ backend: "webgpu" });
    const figures = await benchLlama(backend, directory, { repeats: 1, contexts: [8] });
    assert.deepEqual(figures.differs, { f32: null, bf16: { place: 2, margin: 0.5 } });
    assert.ok(figures.scores.short < 1e-3 && figures.scores.long < 1e-3, JSON.stringify(figures.scores));
    for (const x of [figures.tokensPerSecond[1], figures.tokensPerSecond[2], figures.contexts[8], figures.prefillMs]) {
      assert.ok(x > 0 && x < Infinity);
    }
    const lines = llamaTable(figures, baseline);
    assert.match(lines[1], /^tokens\/s, batch 1 +\d+ +3$/);
    assert.match(lines.at(-2)!, /equal \(f32\), token 2 differs, margin 0\.500 \(bf16\)/);
    backend.dispose();
  } finally {
    setBackend(cpu());
    rmSync(directory, { recursive: true });
  }
});
