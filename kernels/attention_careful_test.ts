import assert from "node:assert/strict";
import { type Backend, cpu, type DType, flashAttention, key, randn, type Tensor, tensor, vjp, webgpu } from "../mod.ts";
import { needAdapter } from "../testing/laws/adapter.ts";

const D = 40;

const make = async (backend: Backend, dtype: DType, seed: number, shape: number[], by = 1): Promise<Tensor> => {
  const numbers = await randn(key(seed, { backend: cpu() }), shape).data();
  return tensor(Array.from(numbers, (x) => Math.fround(x * by)), { shape, dtype, backend });
};

const unitMatrix = (n: number, backend: Backend, dtype: DType) =>
  tensor(Array.from({ length: n * n }, (_, i) => i % (n + 1) === 0 ? 1 : 0), { shape: [1, n, 1, n], dtype, backend });

/** All probabilities as the backward has them: those of query i are the gradient of v's column i, where out's alone has one. */
async function backward(extra: "bias" | "alibiSlopes" | undefined, backend: Backend, dtype: DType) {
  const [Sq, Sk] = [24, 33], draw = make.bind(null, backend, dtype);
  const [q, k, v] = [await draw(1, [1, Sq, 1, D], 8), await draw(2, [1, Sk, 1, D]), await draw(3, [1, Sk, 1, Sq])];
  const options = extra === "bias"
    ? { bias: await draw(4, [Sq, Sk], 4) }
    : extra === "alibiSlopes"
    ? { alibiSlopes: tensor([0.3], { dtype, backend }) }
    : {};
  const [, pullback] = vjp((v: Tensor) => flashAttention(q, k, v, options), v);
  return await pullback(unitMatrix(Sq, backend, dtype))[0].data();
}

/** All probabilities as the forward has them: out, where the values are a unit matrix. */
async function forward([Sq, Sk]: readonly number[], backend: Backend, dtype: DType) {
  const q = await make(backend, dtype, 1, [1, Sq, 1, D], 8), k = await make(backend, dtype, 2, [1, Sk, 1, D]);
  return await flashAttention(q, k, unitMatrix(Sk, backend, dtype)).data();
}

Deno.test("a probability of few queries is right to four roundings, however large its f32 score", async () => {
  const gpu = await needAdapter(webgpu());
  for (const extra of [undefined, "bias", "alibiSlopes"] as const) {
    const exact = await backward(extra, cpu(), "f64"), actual = await backward(extra, gpu, "f32");
    let worst = 0;
    exact.forEach((p, i) => p > 1e-4 && (worst = Math.max(worst, Math.abs(actual[i] / p - 1))));
    assert.ok(worst <= 4 * 2 ** -23, `${extra ?? "plain"}: off by ${worst / 2 ** -23} roundings`);
  }
  gpu.dispose();
});

Deno.test("the share of a value in the result of few queries or keys is right to four roundings of 1", async () => {
  for (const subgroups of [true, false]) {
    const gpu = await needAdapter(webgpu());
    if (!subgroups) Object.assign(gpu.capabilities, { subgroupSize: 0, subgroups });
    for (const lengths of [[24, 33], [1, 200], [90, 24]]) {
      const exact = await forward(lengths, cpu(), "f64"), actual = await forward(lengths, gpu, "f32");
      let worst = 0;
      exact.forEach((p, i) => worst = Math.max(worst, Math.abs(actual[i] - p)));
      assert.ok(worst <= 4 * 2 ** -23, `${lengths}, subgroups ${subgroups}: off by ${worst / 2 ** -23} roundings`);
    }
    gpu.dispose();
  }
});
