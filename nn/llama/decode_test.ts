import assert from "node:assert/strict";
import { webgpu } from "../../mod.ts";
import { memory, setBackend } from "../../tensor/backend.ts";
import { cpu } from "../../tensor/cpu.ts";
import { tensor } from "../../tensor/create.ts";
import { reshape, slice } from "../../tensor/movement.ts";
import { key } from "../../tensor/random.ts";
import { dispose, scope } from "../../tensor/scope.ts";
import { assertClose } from "../../testing/close.ts";
import { needAdapter } from "../../testing/laws/adapter.ts";
import { advance, begin, type Choice, type Decoder, type Decoding, roundedCapacity, stepOf } from "./decode.ts";
import { forward, init } from "./model.ts";

const gpu = await needAdapter(webgpu());
const config = {
  vocab_size: 61,
  hidden_size: 32,
  intermediate_size: 48,
  num_hidden_layers: 2,
  num_attention_heads: 4,
  num_key_value_heads: 2,
  initializer_range: 0.4,
  tie_word_embeddings: true,
};

const decoder = (dtype: "f32" | "bf16" = "f32", backend = gpu): Decoder => {
  setBackend(backend);
  using seed = key(5);
  return { params: init(seed, config, { dtype }), config, attention: "flash" };
};
const choiceOf = (): Choice => ({
  ...{ repetitionPenalty: 1, temperature: 0, topK: 0, topP: 1, minP: 0, pad: 0 },
  ...{ key: key(1), stops: tensor([], { dtype: "i32" }) },
});

async function run(model: Decoder, rows: number[][], steps: number, room: { capacity: number; pageSize?: number }) {
  const choice = choiceOf(), length = Math.max(...rows.map((row) => row.length));
  let state: Decoding = begin(model, rows, { ...room, pad: 0 }, choice);
  for (let i = 0; i < steps; i++) state = advance(model, state, choice);
  using drawn = slice(state.ids, [0, length], [rows.length, length + steps + 1]);
  const ids = await drawn.array();
  dispose([state, choice]);
  return ids as number[][];
}

Deno.test("one recording serves every length, in five dispatches a layer", async () => {
  const model = decoder("bf16");
  await run(model, [[1, 2, 3]], 9, { capacity: 128 });
  await run(model, [[4, 5, 6, 7, 8, 9, 10]], 20, { capacity: 128 });
  const { recordings } = stepOf(model);
  assert.equal(recordings.length, 1);
  const calls = recordings[0].kernels.flatMap(({ op, calls }) => Array<string>(calls).fill(op));
  assert.deepEqual(
    calls.toSorted(),
    [
      ...["take", "cast", "sample", "project"], // embedding, then norm and scores
      ...Array(2).fill(["project", "decodeAttention", "project", "project", "project"]).flat(),
    ].toSorted(),
  );
});

Deno.test("pages hold what a dense cache does, padded rows too", async () => {
  const model = decoder(), rows = [[3, 9, 27, 20, 11], [7]];
  const dense = await run(model, rows, 12, { capacity: 32 });
  for (const pageSize of [4, 5, 32]) assert.deepEqual(await run(model, rows, 12, { capacity: 32, pageSize }), dense);
});

Deno.test("what is decoded by steps is what the whole text gives", async () => {
  for (const dtype of ["f32", "bf16"] as const) {
    const model = decoder(dtype), prompt = [3, 9, 27, 20, 11], choice = choiceOf();
    let state = begin(model, [prompt], { capacity: 32, pad: 0 }, choice);
    for (let i = 0; i < 6; i++) {
      const ids = slice(state.ids, [0, 0], [1, prompt.length + i + 1]);
      const whole = forward(model.params, config, ids, { logitsToKeep: 1 }).logits;
      const { tokens, cache, places } = state;
      // The keys that were decoded so far are those of the whole, up to the cache's rounding.
      const step = scope(() =>
        forward(model.params, config, tokens, {
          cache: {
            ...cache,
            layers: cache.layers.map(({ k, v }) => ({ k: reshape(k, k.shape), v: reshape(v, v.shape) })),
            lengths: places,
          },
        }).logits
      );
      const near = dtype === "f32" ? 1e-4 : 0.05;
      await assertClose(step, whole, { rtol: near, atol: near });
      state = advance(model, state, choice);
    }
    dispose([state, choice]);
  }
});

Deno.test("a model's steps hold no more memory from text to text, and none when its parameters are gone", async () => {
  const backend = await webgpu(); // its own: what other tests dropped is freed at any time
  const model = decoder("f32", backend);
  const before = memory().current;
  await run(model, [[1, 2]], 5, { capacity: 128 });
  const level = memory().current;
  for (let i = 0; i < 4; i++) await run(model, [[1, 2, 3 + i]], 5 + i, { capacity: 128 });
  assert.equal(memory().current, level);
  stepOf(model)[Symbol.dispose]();
  assert.ok(memory().current - before <= 2 * 256 * 4 * 4 + 256, "only the tables of angles stay");
  setBackend(gpu);
  backend.dispose();
});

Deno.test("a config written anew for each text shares a model's recorded step, one that says other things does not", () => {
  const { params, config } = decoder("f32", gpu), step = stepOf({ params, config });
  assert.equal(stepOf({ params, config: { ...config } }), step);
  assert.notEqual(stepOf({ params, config: { ...config, rms_norm_eps: 0.5 } }), step);
  dispose(params);
});

Deno.test("roundedCapacity() holds the length, and wastes less than half", () => {
  for (let length = 1; length < 5000; length += 7) {
    const capacity = roundedCapacity(length);
    assert.ok(capacity >= length && (capacity === 128 || capacity < 1.51 * length), `${length}: ${capacity}`);
    assert.equal(roundedCapacity(capacity), capacity);
  }
});

Deno.test("the CPU decodes the same tokens", async () => {
  const rows = [[3, 9, 27], [7]], want = await run(decoder(), rows, 6, { capacity: 16 });
  setBackend(cpu());
  const model: Decoder = { params: init(key(5), config), config, attention: "naive" };
  assert.deepEqual(await run(model, rows, 6, { capacity: 16 }), want);
});
