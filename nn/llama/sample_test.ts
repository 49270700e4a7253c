import assert from "node:assert/strict";
import { endsOf, samplingOf } from "./sample.ts";

const none = { repetitionPenalty: 1, temperature: 0, topK: 0, topP: 1, minP: 0 };

Deno.test("samplingOf() takes the likeliest token unless something asks for draws", () => {
  assert.deepEqual(samplingOf({}, {}), none);
  assert.deepEqual(samplingOf({}, { temperature: 0.6, top_p: 0.9 }), { ...none, topP: 0.9 });
  assert.deepEqual(samplingOf({ topK: 5 }, {}), { ...none, temperature: 1, topK: 5 });
  assert.deepEqual(samplingOf({ temperature: 0.5 }, {}), { ...none, temperature: 0.5 });
});

Deno.test("samplingOf() goes by the model's own numbers, and options go before them", () => {
  const config = { do_sample: true, temperature: 0.6, top_p: 0.9, top_k: 40, min_p: 0.1, repetition_penalty: 1.2 };
  const own = { repetitionPenalty: 1.2, temperature: 0.6, topK: 40, topP: 0.9, minP: 0.1 };
  assert.deepEqual(samplingOf({}, config), own);
  assert.deepEqual(samplingOf({ temperature: 0 }, config), { ...own, temperature: 0 });
  assert.deepEqual(samplingOf({ topP: 1, topK: 0 }, config), { ...own, topP: 1, topK: 0 });
});

Deno.test("samplingOf() names the option that is out of its range", () => {
  const refused = (options: Record<string, unknown>, message: RegExp) =>
    assert.throws(() => samplingOf(options, {}), message);
  refused({ temperature: NaN }, /\[generate\] temperature is .*, got NaN/);
  refused({ temperature: -1 }, /temperature is .*, got -1/);
  refused({ topP: 1.5 }, /topP is above 0 and at most 1, got 1\.5/);
  refused({ topP: 0 }, /topP .* got 0/);
  refused({ topK: 2.5 }, /topK .* got 2\.5/);
  refused({ minP: 2 }, /minP is from 0 to 1, got 2/);
  refused({ repetitionPenalty: 0 }, /repetitionPenalty .* got 0/);
  refused({ temperature: "1" }, /temperature is a number, got 1/);
});

Deno.test("endsOf() reads one id or a list, and finds something to pad with", () => {
  const config = {
    vocab_size: 9,
    hidden_size: 2,
    intermediate_size: 2,
    num_hidden_layers: 1,
    num_attention_heads: 1,
  };
  assert.deepEqual(endsOf(config, {}), { stops: [], pad: 0 });
  assert.deepEqual(endsOf({ ...config, eos_token_id: 7 }, {}), { stops: [7], pad: 7 });
  assert.deepEqual(endsOf({ ...config, eos_token_id: 7, pad_token_id: 8 }, { eos_token_id: [5, 6] }), {
    stops: [5, 6],
    pad: 8,
  });
  assert.throws(() => endsOf(config, { pad_token_id: 0.5 }), /whole numbers, got 0\.5/);
});
