import assert from "node:assert/strict";
import { webgpu } from "../mod.ts";
import { assertClose } from "../testing/close.ts";
import { needAdapter } from "../testing/laws/adapter.ts";
import { cpu } from "./cpu.ts";
import { tensor } from "./create.ts";
import { key } from "./random.ts";
import { exponential, keptScores, type SampleParams, sampleTokens } from "./sample.ts";

const backends = [cpu(), await needAdapter(webgpu())];
const all: SampleParams = { repetitionPenalty: 1, temperature: 1, topK: 0, topP: 1, minP: 0, pad: -7 };

const logits = [1, 3, -2, 2.5, 3, 0.5, -Infinity, 2];

/** The probabilities that are left. */
function odds(params: Partial<SampleParams>, seen: number[] = []): number[] {
  const kept = Array.from(keptScores(logits, seen, { ...all, ...params }), Math.exp);
  const sum = kept.reduce((a, b) => a + b);
  return kept.map((x) => x / sum);
}

const left = (params: Partial<SampleParams>) => odds(params).flatMap((x, i) => x > 0 ? [i] : []);

Deno.test("keptScores() keeps what each step leaves of the step before", () => {
  assert.deepEqual(left({}), [0, 1, 2, 3, 4, 5, 7]);
  assert.deepEqual(left({ topK: 1 }), [1, 4]); // the last of them has an equal
  assert.deepEqual(left({ topK: 3 }), [1, 3, 4]);
  assert.deepEqual(left({ topK: 100 }), left({}));
  // e³ = 20.1 twice, then 12.2, 7.4, 2.7, 1.6, 0.1: 64.3 in all.
  assert.deepEqual(left({ topP: 0.01 }), [1, 4]);
  assert.deepEqual(left({ topP: 0.62 }), [1, 4]);
  assert.deepEqual(left({ topP: 0.63 }), [1, 3, 4]);
  assert.deepEqual(left({ topP: 0.95 }), [0, 1, 3, 4, 7]);
  assert.deepEqual(left({ topK: 3, topP: 0.76 }), [1, 4]); // of 52.4, not of 64.3
  assert.deepEqual(left({ minP: 0.36 }), [1, 3, 4, 7]);
  assert.deepEqual(left({ minP: 0.37 }), [1, 3, 4]);
  assert.deepEqual(left({ minP: 1 }), [1, 4]);
});

Deno.test("keptScores() divides by the temperature first, and penalises each token once", () => {
  assertClose([odds({ temperature: 0.5 })[1] / odds({ temperature: 0.5 })[3]], [Math.exp(1)]);
  const scores = keptScores(logits, [1, 1, 2, -1, 99], { ...all, repetitionPenalty: 1.5 });
  assert.deepEqual([...scores], [1, 2, -3, 2.5, 3, 0.5, -Infinity, 2]);
  assert.deepEqual([...keptScores([NaN, 1], [], { ...all, temperature: 0 })], [-Infinity, 1]);
});

Deno.test("exponential() is exact at both ends", () => {
  assertClose([exponential(0), exponential(2 ** 32 - 1), exponential(2 ** 31)], [2 ** -33, 33 * Math.LN2, Math.LN2]);
});

for (const backend of backends) {
  Deno.test(`draws come as often as their probability says, on ${backend.name}`, async () => {
    for (const params of [{}, { temperature: 0.7, topK: 5 }, { topP: 0.9 }, { temperature: 1.5, minP: 0.05 }]) {
      const want = odds(params), rows = 1600;
      const { tokens } = sampleTokens(
        tensor(Array.from({ length: rows }, () => logits).flat(), { shape: [rows, 8], backend }),
        {
          ids: tensor([], { shape: [rows, 0], dtype: "i32", backend }),
          places: tensor(new Int32Array(rows), { backend }),
          finished: tensor(new Int32Array(rows), { backend }),
        },
        { ...all, ...params, key: key(11, { backend }), stops: tensor([], { dtype: "i32", backend }) },
      );
      const counts = new Array<number>(8).fill(0);
      for (const token of await tokens.data()) counts[token]++;
      let chi = 0, freedom = -1;
      want.forEach((p, i) => {
        if (p === 0) return assert.equal(counts[i], 0);
        chi += (counts[i] - rows * p) ** 2 / (rows * p);
        freedom++;
      });
      assert.ok(chi < freedom + 4 * Math.sqrt(2 * freedom), `χ² ${chi} for ${freedom}: ${counts}`);
    }
  });

  Deno.test(`a row that is finished goes on with the pad token, on ${backend.name}`, async () => {
    const i32 = (values: number[], shape: number[] = [values.length]) =>
      tensor(values, { shape, dtype: "i32", backend });
    const scores = tensor([0, 9, 1, 0, 1, 9, 9, 0, 0, 5, 6, 7], { shape: [4, 3], backend });
    let state = {
      ids: i32([4, -1, -1, 4, -1, -1, 4, -1, -1, 4, 4, 4], [4, 3]),
      places: i32([0, 0, 0, 2]),
      finished: i32([0, 1, 0, 0]),
    };
    const options = { ...all, temperature: 0, key: key(1, { backend }), stops: i32([0]) };
    const { tokens, ...next } = sampleTokens(scores, state, options);
    state = next;
    assert.deepEqual(await tokens.array(), [[1], [-7], [0], [2]]);
    assert.deepEqual(await state.ids.array(), [[4, 1, -1], [4, -7, -1], [4, 0, -1], [4, 4, 4]]); // row 3 is full
    assert.deepEqual([...await state.places.data()], [1, 1, 1, 3]);
    assert.deepEqual([...await state.finished.data()], [0, 1, 1, 0]);
    const again = sampleTokens(scores, state, options);
    assert.deepEqual(await again.tokens.array(), [[1], [-7], [-7], [2]]);
  });
}
