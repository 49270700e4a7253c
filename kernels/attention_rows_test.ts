import { flashAttention, grad, key, mul, naiveAttention, randn, sum, type Tensor } from "../mod.ts";
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
