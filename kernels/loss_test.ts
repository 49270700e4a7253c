import assert from "node:assert/strict";
import { type Backend, type DType, grad, valueAndGrad } from "../mod.ts";
import { cpu } from "../tensor/cpu.ts";
import { tensor } from "../tensor/create.ts";
import { cast, mul } from "../tensor/elementwise.ts";
import { crossEntropy, type CrossEntropyOptions, linearCrossEntropy } from "../tensor/loss.ts";
import { reshape } from "../tensor/movement.ts";
import { key, randint, randn } from "../tensor/random.ts";
import { sum } from "../tensor/reduce.ts";
import type { Tensor } from "../tensor/tensor.ts";
import { assertClose } from "../testing/mod.ts";
import { needAdapter } from "../testing/laws/adapter.ts";
import { assertSame, draw, stored } from "../testing/laws/both.ts";
import { webgpu } from "./webgpu.ts";

const gpu = await needAdapter(webgpu());

for (const dtype of stored) {
  Deno.test(`crossEntropy() on the device equals its reference in ${dtype}`, async () => {
    const options: CrossEntropyOptions[] = [
      {},
      { labelSmoothing: 0.1, zLoss: 0.01 },
      { softcap: 2, reduction: "sum" },
      { reduction: "none", ignoreIndex: 2 },
    ];
    for (const [N, V] of [[1, 1], [3, 3], [5, 8], [4, 130], [7, 256], [2, 5003], [2, 9000]]) {
      const logits = mul(draw(1, [N, V], dtype), 3);
      const labels = randint(key(2, { backend: cpu() }), [N], { max: V }).dataSync();
      for (const option of options) {
        if (N > 1) labels[0] = option.ignoreIndex ?? -100;
        await assertSame(
          gpu,
          (x) => {
            const t = tensor(labels, { dtype: "i32", backend: x.backend });
            return crossEntropy(x, cast(cast(t, "f32"), "i32"), option);
          },
          [logits],
          4,
        );
      }
    }
  });
}

Deno.test("labels computed on the device that are no class make NaN there too", async () => {
  const labels = cast(tensor([0, 9, -3, -100], { backend: gpu }), "i32"),
    logits = randn(key(1, { backend: gpu }), [4, 5]);
  const rows = await crossEntropy(logits, labels, { reduction: "none" }).data();
  assert.deepEqual(Array.from(rows, Number.isNaN), [false, true, true, false]);
  const d = await grad((x: Tensor) => crossEntropy(x, labels, { reduction: "sum" }))(logits).data();
  assert.deepEqual([0, 1, 2, 3].map((i) => Number.isNaN(d[5 * i])), [false, true, true, false]);
});

Deno.test("crossEntropy() on the device takes infinite logits", async () => {
  const logits = tensor([[-Infinity, 0, 0, -Infinity], [0, 1e30, 0, 0]], { backend: gpu });
  const labels = tensor([2, 1], { dtype: "i32", backend: gpu });
  await assertClose(crossEntropy(logits, labels, { reduction: "none" }), [Math.log(2), 0]);
});

Deno.test("a loss and its gradient keep their digits beside a large lse", async () => {
  const values = [1000, 1000.5, 999.25, 997], label = 2;
  const all = values.reduce((sum, z) => sum + Math.exp(z - 1000), 0);
  const loss = 1000 + Math.log(all) - values[label];
  const slopes = values.map((z, j) => Math.exp(z - 1000) / all - (j === label ? 1 : 0));
  const labels = tensor([label], { dtype: "i32", backend: gpu }), unit = 2 ** -22;
  const close = (x: Tensor, expected: number[]) => assertClose(x, expected, { atol: unit, rtol: unit });
  for (const reduction of ["none", "sum"] as const) {
    const [total, dx] = valueAndGrad((x: Tensor) => sum(crossEntropy(x, labels, { reduction })))(
      tensor([values], { backend: gpu }),
    );
    await close(reshape(total, [1]), [loss]);
    await close(reshape(dx, [4]), slopes);
    const [linear, dw] = valueAndGrad((w: Tensor) =>
      sum(linearCrossEntropy(tensor([[1, 0]], { backend: gpu }), w, labels, { reduction }))
    )(tensor(values.map((z) => [z, 1]), { backend: gpu }));
    await close(reshape(linear, [1]), [loss]);
    await close(reshape(dw, [8]), slopes.flatMap((d) => [d, 0]));
  }
});

Deno.test("a gradient keeps its digits where softcap has bent logits flat", async () => {
  const [N, V, softcap] = [64, 64, 5], own = Array.from({ length: N }, (_, i) => i);
  const values = Array.from({ length: N * V }, (_, i) => Math.fround(12 + 3 * Math.sin(i)));
  const slopes = async (backend: Backend, dtype: DType) => {
    const labels = tensor(own, { dtype: "i32", backend });
    const loss = (x: Tensor) => crossEntropy(x, labels, { reduction: "sum", softcap });
    return await grad(loss)(tensor(values, { shape: [N, V], dtype, backend })).data();
  };
  const exact = await slopes(cpu(), "f64"), actual = await slopes(gpu, "f32");
  // dz is nearly -1 there, and 1 - tanh² ends in tanh's last digit.
  for (const i of own) {
    const error = Math.abs(actual[i * V + i] - exact[i * V + i]);
    assert.ok(error <= 2 ** -23, `label ${i} is off by ${error / 2 ** -23} roundings of 1`);
  }
});
