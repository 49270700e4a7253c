import assert from "node:assert/strict";
import type { DType } from "../../tensor/dtype.ts";
import { FormatError } from "../../tensor/errors.ts";
import type { Shape } from "../../tensor/shape.ts";
import { CheckpointError, checkTensors } from "./checkpoint.ts";
import type { LlamaConfig } from "./config.ts";
import { parameterShapes } from "./model.ts";

const config: LlamaConfig = {
  vocab_size: 11,
  hidden_size: 8,
  intermediate_size: 12,
  num_hidden_layers: 2,
  num_attention_heads: 2,
  tie_word_embeddings: true,
};

type Tensors = Record<string, { dtype: DType; shape: Shape }>;

/** The tensors of the config, with some of them changed; null takes one away. */
function tensors(changes: Record<string, Tensors[string] | null> = {}): Map<string, Tensors[string]> {
  const all = Object.entries(parameterShapes(config)).map(([name, shape]) => [name, { dtype: "bf16", shape }] as const);
  const found = new Map<string, Tensors[string]>(all);
  for (const [name, change] of Object.entries(changes)) {
    if (change === null) found.delete(name);
    else found.set(name, change);
  }
  return found;
}

Deno.test("checkTensors() takes what the config asks for, and what tied and old checkpoints hold beside it", () => {
  checkTensors("test", "model", tensors(), config);
  checkTensors("test", "model", tensors({ "lm_head.weight": { dtype: "bf16", shape: [11, 8] } }), config);
  const old = "model.layers.0.self_attn.rotary_emb.inv_freq";
  checkTensors("test", "model", tensors({ [old]: { dtype: "f32", shape: [2] } }), config);
});

Deno.test("checkTensors() lists every tensor that is missing, wrong or unknown in one error", () => {
  const found = tensors({
    "model.norm.weight": null,
    "model.layers.1.mlp.up_proj.weight": { dtype: "f32", shape: [12, 9] },
    "model.layers.0.mlp.up_proj.weight": { dtype: "i32", shape: [12, 8] },
    "score.weight": { dtype: "f16", shape: [2, 8] },
  });
  const error = (() => {
    try {
      checkTensors("test", "model", found, config);
    } catch (error) {
      return error;
    }
  })();
  assert(error instanceof CheckpointError && error instanceof FormatError);
  assert.equal(error.name, "CheckpointError");
  assert.equal(
    error.message,
    `[test] model: the tensors are not those of the config
  missing: "model.norm.weight" [8]
  wrong: "model.layers.0.mlp.up_proj.weight" i32 [12,8], the config says [12,8]
  wrong: "model.layers.1.mlp.up_proj.weight" f32 [12,9], the config says [12,8]
  unknown: "score.weight" f16 [2,8]`,
  );
  assert.deepEqual(error.tensors.at(-1), { name: "score.weight", dtype: "f16", found: [2, 8] });
});

Deno.test("checkTensors() keeps its message short whatever is claimed", () => {
  const claims = (layers: number) => ({ ...config, num_hidden_layers: layers });
  assert.throws(() => checkTensors("test", "model", tensors(), claims(1e9)), /says 1000000000 layers, there are 20/);
  assert.throws(() => checkTensors("test", "model", tensors(), claims(20)), (error) => {
    assert(error instanceof CheckpointError);
    assert.equal(error.tensors.length, 18 * 9);
    assert.match(error.message, /\n {2}missing: 142 more$/);
    return error.message.split("\n").length === 22;
  });
  const long = tensors({ ["x".repeat(1e5)]: { dtype: "f32", shape: Array(1000).fill(1) } });
  assert.throws(() => checkTensors("test", "model", long, config), (error: Error) => error.message.length < 1000);
});
