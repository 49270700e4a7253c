import assert from "node:assert/strict";
import { grad } from "../mod.ts";
import { cpu } from "../tensor/cpu.ts";
import { tensor } from "../tensor/create.ts";
import { cast, mul } from "../tensor/elementwise.ts";
import { crossEntropy, type CrossEntropyOptions } from "../tensor/loss.ts";
import { key, randint, randn } from "../tensor/random.ts";
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
