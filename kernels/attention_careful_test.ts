import assert from "node:assert/strict";
import { type Backend, cpu, type DType, flashAttention, key, randn, type Tensor, tensor, vjp, webgpu } from "../mod.ts";
import { needAdapter } from "../testing/laws/adapter.ts";

const [Sq, Sk, D] = [24, 33, 40];

/** All probabilities as the backward has them: those of query i are the gradient of v's column i, where out's alone has one. */
async function probabilities(extra: "bias" | "alibiSlopes" | undefined, backend: Backend, dtype: DType) {
  const make = async (seed: number, shape: number[], by = 1): Promise<Tensor> => {
    const numbers = await randn(key(seed, { backend: cpu() }), shape).data();
    return tensor(Array.from(numbers, (x) => Math.fround(x * by)), { shape, dtype, backend });
  };
  const [q, k, v] = [await make(1, [1, Sq, 1, D], 8), await make(2, [1, Sk, 1, D]), await make(3, [1, Sk, 1, Sq])];
  const options = extra === "bias"
    ? { bias: await make(4, [Sq, Sk], 4) }
    : extra === "alibiSlopes"
    ? { alibiSlopes: tensor([0.3], { dtype, backend }) }
    : {};
  const one = Array.from({ length: Sq * Sq }, (_, i) => i % (Sq + 1) === 0 ? 1 : 0);
  const [, pullback] = vjp((v: Tensor) => flashAttention(q, k, v, options), v);
  return await pullback(tensor(one, { shape: [1, Sq, 1, Sq], dtype, backend }))[0].data();
}

Deno.test("a probability of few queries is right to four roundings, however large its f32 score", async () => {
  const gpu = await needAdapter(webgpu());
  for (const extra of [undefined, "bias", "alibiSlopes"] as const) {
    const exact = await probabilities(extra, cpu(), "f64"), actual = await probabilities(extra, gpu, "f32");
    let worst = 0;
    exact.forEach((p, i) => p > 1e-4 && (worst = Math.max(worst, Math.abs(actual[i] / p - 1))));
    assert.ok(worst <= 4 * 2 ** -23, `${extra ?? "plain"}: off by ${worst / 2 ** -23} roundings`);
  }
  gpu.dispose();
});
