import assert from "node:assert/strict";
import { cpu } from "../tensor/cpu.ts";
import { tensor } from "../tensor/create.ts";
import type { DType } from "../tensor/dtype.ts";
import { mul } from "../tensor/elementwise.ts";
import { key, randn } from "../tensor/random.ts";
import { type SampleParams, sampleTokens } from "../tensor/sample.ts";
import { needAdapter } from "../testing/laws/adapter.ts";
import { webgpu } from "./webgpu.ts";

const backends = [cpu(), await needAdapter(webgpu())];
const plainly: SampleParams = { repetitionPenalty: 1, temperature: 1, topK: 0, topP: 1, minP: 0, pad: 0 };

Deno.test("the GPU draws the CPU's tokens from tens of thousands, in all their ties", async () => {
  const settings: Partial<SampleParams>[] = [
    { temperature: 0 },
    { temperature: 0, repetitionPenalty: 1.5 },
    {},
    { temperature: 0.6, topP: 0.9 },
    { topK: 1000 },
    { temperature: 1.3, topK: 50, topP: 0.5, repetitionPenalty: 1.2 },
    { temperature: 2, topP: 0.95, minP: 0.01 },
    { temperature: 100, topP: 0.5 }, // all within one bin
    { temperature: 0.01, topK: 19000 }, // nearly all beyond the last bin
  ];
  for (const [size, dtype] of [[20_001, "f32"], [20_000, "bf16"]] as const) {
    for (const [seed, params] of settings.entries()) {
      const scores = await mul(randn(key(seed, { backend: backends[0] }), [2, size], { dtype }), 3).data();
      const draw = async (backend: typeof backends[number]) => {
        const on = (values: ArrayLike<number>, shape: number[], dtype: DType) =>
          tensor(Array.from(values), { shape, dtype, backend });
        const { tokens } = sampleTokens(on(scores, [2, size], dtype), {
          ids: on([1, 2, 3, 5, 8, 13], [2, 3], "i32"),
          places: on([2, 2], [2], "i32"),
          finished: on([0, 0], [2], "i32"),
        }, { ...plainly, ...params, key: key(seed, { backend }), stops: on([], [0], "i32") });
        return [...await tokens.data()];
      };
      assert.deepEqual(await draw(backends[1]), await draw(backends[0]), `${dtype} ${JSON.stringify(params)}`);
    }
  }
});
