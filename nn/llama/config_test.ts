import assert from "node:assert/strict";
import { dimensions, type LlamaConfig } from "./config.ts";

const small: LlamaConfig = {
  vocab_size: 10,
  hidden_size: 32,
  intermediate_size: 64,
  num_hidden_layers: 2,
  num_attention_heads: 4,
};

Deno.test("dimensions() fills in what a config leaves out", () => {
  const { kvHeads, headDim, tied, eps, frequencies } = dimensions(small);
  assert.deepEqual([kvHeads, headDim, tied, eps], [4, 8, false, 1e-6]);
  assert.deepEqual(Array.from(frequencies, (f) => Number(f.toPrecision(6))), [1, 0.1, 0.01, 0.001]);
});

Deno.test("dimensions() finds rotary settings in the old place and in the new one", () => {
  const llama3 = {
    rope_type: "llama3",
    factor: 8,
    low_freq_factor: 1,
    high_freq_factor: 4,
    original_max_position_embeddings: 32,
  };
  const old = dimensions({ ...small, rope_theta: 500, rope_scaling: llama3 });
  const recent = dimensions({ ...small, rope_parameters: { ...llama3, rope_theta: 500 } });
  assert.deepEqual(recent.frequencies, old.frequencies);
  assert.notDeepEqual(old.frequencies, dimensions({ ...small, rope_theta: 500 }).frequencies);
  const given = dimensions({ ...small, rope_parameters: { inv_freq: [1, 0.5, 0.25, 0.125] } });
  assert.deepEqual(given.frequencies, [1, 0.5, 0.25, 0.125]);
});

Deno.test("dimensions() names the field that is wrong", () => {
  const refused = (fields: Record<string, unknown>, message: RegExp) =>
    assert.throws(() => dimensions({ ...small, ...fields }), message);
  refused({ hidden_size: 0 }, /hidden_size is 0, expected a whole number above 0/);
  refused({ vocab_size: "10" }, /vocab_size is "10"/);
  refused({ num_hidden_layers: undefined }, /num_hidden_layers is undefined/);
  refused({ num_key_value_heads: 3 }, /3 key\/value heads do not divide 4/);
  refused({ hidden_size: 30 }, /head_dim is 7\.5/);
  refused({ head_dim: 7 }, /head_dim 7 is odd/);
  refused({ rms_norm_eps: -1 }, /rms_norm_eps is -1/);
  refused({ hidden_act: "gelu" }, /hidden_act is "gelu", this model has "silu"/);
  refused({ attention_bias: true }, /attention_bias is true/);
  refused({ model_type: "mistral" }, /model_type is "mistral"/);
  refused({ rope_scaling: { rope_type: "yarn" } }, /rope_type is "yarn"/);
  refused({ rope_scaling: { type: "linear" } }, /factor is undefined/);
  refused({ rope_parameters: { inv_freq: [1] } }, /inv_freq has 1 numbers, a head of 8 needs 4/);
});
