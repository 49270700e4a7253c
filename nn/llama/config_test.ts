import assert from "node:assert/strict";
import { bf16Bits, bf16Value, f16Bits, f16Value } from "../../tensor/dtype.ts";
import { checkGenerationConfig, dimensions, type LlamaConfig, roundRotary } from "./config.ts";

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
  refused({ head_dim: 2 ** 40 }, /head_dim is 1099511627776, no head has more than 65536/);
  refused({ head_dim: 7 }, /head_dim 7 is odd/);
  refused({ rms_norm_eps: -1 }, /rms_norm_eps is -1/);
  refused({ hidden_act: "gelu" }, /hidden_act is "gelu", this model has "silu"/);
  refused({ attention_bias: true }, /attention_bias is true/);
  refused({ model_type: "mistral" }, /model_type is "mistral"/);
  refused({ rope_scaling: { rope_type: "yarn" } }, /rope_type is "yarn"/);
  refused({ rope_scaling: { type: "linear" } }, /factor is undefined/);
  refused({ rope_parameters: { inv_freq: [1] } }, /inv_freq has 1 numbers, a head of 8 needs 4/);
  refused({ rope_parameters: { inv_freq: "four" } }, /inv_freq has 4 numbers/);
  refused({ rope_parameters: { inv_freq: [1, NaN, 1, 1] } }, /inv_freq is NaN, expected a number above 0/);
  refused({ rope_parameters: "llama3" }, /rotary settings are "llama3"/);
  refused({ rope_theta: -1 }, /rope_theta is -1/);
  refused({ tie_word_embeddings: "yes" }, /tie_word_embeddings is "yes"/);
  refused({ quantization_config: { bits: 4 } }, /quantization_config/);
});

Deno.test("roundRotary() writes the rounded frequencies into the config, wherever its settings stand", () => {
  const exact = dimensions(small).frequencies;
  for (const config of [small, { ...small, rope_theta: 500 }, { ...small, rope_parameters: { rope_theta: 500 } }]) {
    const rounded = roundRotary(config, "bf16"), { frequencies } = dimensions(rounded);
    assert.deepEqual(rounded.rope_parameters?.inv_freq, frequencies);
    assert(Array.from(frequencies).every((f) => f === bf16Value(bf16Bits(f))));
    assert.deepEqual(roundRotary(rounded, "bf16"), rounded);
  }
  assert.deepEqual(dimensions(roundRotary(small, "f16")).frequencies, Array.from(exact, (f) => f16Value(f16Bits(f))));
});

Deno.test("checkGenerationConfig() names the field that is wrong", () => {
  const good = { do_sample: true, temperature: 0.6, top_p: 0.9, eos_token_id: [1, 2], bos_token_id: 3, other: "kept" };
  assert.equal(checkGenerationConfig(good), good);
  checkGenerationConfig({ eos_token_id: 5, pad_token_id: null, max_new_tokens: null, top_k: 50 });
  const refused = (fields: Record<string, unknown>, message: RegExp) =>
    assert.throws(() => checkGenerationConfig(fields), message);
  refused({ temperature: "hot" }, /generation_config: temperature is "hot", expected a number from 0/);
  refused({ temperature: -1 }, /temperature is -1/);
  refused({ top_p: NaN }, /top_p is NaN/);
  refused({ eos_token_id: [1, "2"] }, /eos_token_id is \[1,"2"\], expected an id or a list of ids/);
  refused({ bos_token_id: 1.5 }, /bos_token_id is 1\.5/);
  refused({ do_sample: 1 }, /do_sample is 1/);
});
