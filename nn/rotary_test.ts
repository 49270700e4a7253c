import assert from "node:assert/strict";
import { rotaryFrequencies, type RotaryScaling, rotaryTables } from "./mod.ts";

const llama32: RotaryScaling = {
  type: "llama3",
  factor: 32,
  lowFreqFactor: 1,
  highFreqFactor: 4,
  originalMaxPositions: 8192,
};

Deno.test("rotaryFrequencies() stretches as Llama 3.2 does: short waves stay, long ones by the factor", () => {
  const plain = rotaryFrequencies({ headDim: 64, theta: 500_000 });
  const scaled = rotaryFrequencies({ headDim: 64, theta: 500_000, scaling: llama32 });
  const between = new Map([[15, 1.29054793e-3], [16, 4.29556797e-4], [17, 9.70828780e-5]]);
  scaled.forEach((f, i) => {
    const want = i < 15 ? plain[i] : between.get(i) ?? plain[i] / 32;
    assert(Math.abs(f / want - 1) < 1e-8, `index ${i}: ${f} for ${want}`);
  });
  assert.deepEqual([...rotaryFrequencies({ headDim: 4, theta: 100, scaling: { type: "linear", factor: 2 } })], [
    0.5,
    0.05,
  ]);
});

Deno.test("rotaryTables() keeps the digits of far positions", async () => {
  const { cos, sin } = rotaryTables([0.7], 100_001);
  assert.deepEqual(cos.shape, [100_001, 1]);
  const at = 100_000;
  assert(Math.abs((await cos.data())[at] - Math.cos(at * 0.7)) < 1e-7);
  assert(Math.abs((await sin.data())[at] - Math.sin(at * 0.7)) < 1e-7);
});

Deno.test("rotaryFrequencies() refuses odd heads and settings out of their range", () => {
  assert.throws(() => rotaryFrequencies({ headDim: 3 }), /even number/);
  assert.throws(() => rotaryFrequencies({ headDim: 4, theta: 0 }), /theta/);
  assert.throws(() => rotaryFrequencies({ headDim: 4, scaling: { type: "linear", factor: 0 } }), /factor/);
  assert.throws(() => rotaryFrequencies({ headDim: 4, scaling: { ...llama32, highFreqFactor: 1 } }), /0 < low < high/);
});
