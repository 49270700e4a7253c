import assert from "node:assert/strict";
import {
  type Backend,
  cpu,
  type DType,
  flashAttention,
  grad,
  key,
  mul,
  naiveAttention,
  randn,
  sum,
  type Tensor,
  tensor,
} from "../mod.ts";
import { needAdapter } from "../testing/laws/adapter.ts";
import { assertClose } from "../testing/mod.ts";
import { webgpu } from "./webgpu.ts";

Deno.test("attention's gradient of sinks is that of naive attention, over batches and heads", async () => {
  const backend = await needAdapter(webgpu());
  const normal = (seed: number, shape: number[]) => randn(key(seed, { backend }), shape);
  const [q, k, v, weight] = [1, 2, 3, 4].map((seed) => normal(seed, [2, 300, 3, 8])), sinks = normal(5, [3]);
  const by = (attend: typeof flashAttention) =>
    grad((sinks: Tensor) => sum(mul(attend(q, k, v, { sinks, causal: true }), weight)))(sinks);
  await assertClose(by(flashAttention), by(naiveAttention), { rtol: 1e-4, atol: 1e-4 });
  backend.dispose();
});

Deno.test("a query that sees one key has no gradient, with dropout and results that are rounded", async () => {
  for (const backend of [cpu(), await needAdapter(webgpu())]) {
    const dropout = { p: 0.17, key: key(17, { backend }) };
    for (const dtype of ["f32", "f16", "bf16"] as const) {
      const normal = (seed: number, shape: number[]) => randn(key(seed, { backend }), shape, { dtype });
      const [q, weight] = [normal(1, [4, 2, 3, 16]), normal(4, [4, 2, 3, 16])];
      const [k, v] = [normal(2, [4, 1, 1, 16]), normal(3, [4, 1, 1, 16])];
      const gradients = grad((q: Tensor, k: Tensor) => sum(mul(flashAttention(q, k, v, { dropout }), weight)), [0, 1]);
      for (const x of gradients(q, k)) assert.ok((await x.data()).every((dx) => dx === 0), `${backend.name} ${dtype}`);
    }
    backend.dispose();
  }
});

Deno.test("the gradient of sinks of one query is right to one and a half roundings in the mean", async () => {
  const gpu = await needAdapter(webgpu()), heads = 32;
  const gradient = async (backend: Backend, dtype: DType) => {
    const normal = async (seed: number, shape: number[]) =>
      tensor(await randn(key(seed, { backend: gpu }), shape).data(), { shape, dtype, backend });
    const [q, weight] = [await normal(1, [1, 1, heads, 16]), await normal(4, [1, 1, heads, 16])];
    const [k, v, sinks] = [
      await normal(2, [1, 40, heads, 16]),
      await normal(3, [1, 40, heads, 16]),
      await normal(5, [heads]),
    ];
    return await grad((sinks: Tensor) => sum(mul(flashAttention(q, k, v, { sinks }), weight)))(sinks).data();
  };
  const exact = Array.from(await gradient(cpu(), "f64")), actual = await gradient(gpu, "f32");
  const mean = (xs: number[]) => Math.sqrt(xs.reduce((all, x) => all + x * x, 0) / xs.length);
  const error = mean(exact.map((x, h) => actual[h] - x)) / mean(exact);
  assert.ok(error <= 1.5 * 2 ** -23, `off by ${error / 2 ** -23} roundings`);
  gpu.dispose();
});
