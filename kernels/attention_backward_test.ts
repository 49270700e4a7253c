import assert from "node:assert/strict";
import { flashAttention, grad, key, mul, naiveAttention, randn, sum, type Tensor } from "../mod.ts";
import { needAdapter } from "../testing/laws/adapter.ts";
import { assertClose } from "../testing/mod.ts";
import { webgpu } from "./webgpu.ts";

const backend = await needAdapter(webgpu());
const normal = (seed: number, shape: number[]) => randn(key(seed, { backend }), shape);

Deno.test("attention's gradients sum over the queries of a group, and are equal to the bit each time", async () => {
  const q = normal(1, [2, 9, 4, 12]), k = normal(2, [2, 13, 2, 12]), v = normal(3, [2, 13, 2, 8]);
  const weight = normal(4, [2, 9, 4, 8]);
  const gradients = (attend: typeof flashAttention) =>
    grad((q: Tensor, k: Tensor, v: Tensor) => sum(mul(attend(q, k, v, { causal: true }), weight)), [0, 1, 2])(q, k, v);
  const [first, again, naive] = [gradients(flashAttention), gradients(flashAttention), gradients(naiveAttention)];
  for (let i = 0; i < 3; i++) {
    assert.deepEqual(await first[i].data(), await again[i].data());
    await assertClose(first[i], naive[i], { rtol: 1e-4, atol: 1e-5 });
  }
});
