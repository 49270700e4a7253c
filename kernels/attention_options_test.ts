import assert from "node:assert/strict";
import { type AttentionFeatures, plainAttention } from "./attention_common.ts";
import {
  attentionKernel,
  changesScores,
  denseStrides,
  featureFields,
  featureReads,
  scoreText,
  visible,
} from "./attention_options.ts";

const every: AttentionFeatures = {
  ...plainAttention,
  ...{ window: true, softcap: true, alibi: true, bias: "f32", mask: true, sinks: true, dropout: true },
};

Deno.test("plain attention binds nothing for options and leaves scores as they are", () => {
  assert.deepEqual(featureReads(plainAttention), {});
  assert.equal(changesScores(plainAttention), false);
  assert.equal(changesScores(every), true);
});

Deno.test("each option that changes scores by a tensor binds it under its own name", () => {
  assert.deepEqual(Object.keys(featureReads(every)).sort(), ["alibi", "bias", "dropoutKey", "mask", "sinks"]);
  const one = (features: Partial<AttentionFeatures>) => Object.keys(featureReads({ ...plainAttention, ...features }));
  assert.deepEqual(one({ mask: true }), ["mask"]);
  assert.deepEqual(one({ window: true, softcap: true }), []);
});

Deno.test("options that are numbers come through uniforms, and only those that are on", () => {
  const plain = Object.keys(featureFields(plainAttention)), all = Object.keys(featureFields(every));
  assert.ok(plain.every((name) => all.includes(name)));
  for (const name of ["left", "right"]) assert.ok(all.includes(name) && !plain.includes(name), name);
});

Deno.test("softcap, ALiBi and bias change a score in this order", () => {
  const text = scoreText(every, "s", "i", "j");
  const places = [/tanh|cap/i, /alibi|slope/i, /bias/i].map((what) => text.search(what));
  assert.ok(places.every((place) => place >= 0), text);
  assert.deepEqual(places, [...places].sort((a, b) => a - b));
});

Deno.test("without a window every key that exists is visible", () => {
  assert.doesNotMatch(visible(plainAttention, "i", "j"), /left|right/);
  assert.match(visible(every, "i", "j"), /left/);
});

Deno.test("denseStrides() are those of B S H D", () => {
  assert.deepEqual(denseStrides(7, 3, 5), { offset: 0, batch: 105, seq: 15, head: 5 });
});

Deno.test("attentionKernel() binds the operands first and what the options read last, and names the options", () => {
  const operand = { storage: "f16", unit: 8 } as const, operands = { q: operand, k: operand, v: operand };
  const params = { headDim: 64, valueDim: 64, ...operands, features: { ...plainAttention, window: true, sinks: true } };
  const interfaces = { reads: { dOut: "f32" }, writes: { out: "f32" }, uniforms: { tiles: "u32" } } as const;
  const { name, reads, uniforms } = attentionKernel(["options", "test"], params, interfaces, () => "");
  assert.equal(name, "options_test_window_sinks");
  assert.deepEqual(reads, ["q", "k", "v", "dOut", "sinks"]);
  assert.deepEqual([uniforms[0][0], uniforms.at(-1)![0]], ["sq", "tiles"]);
});
