import { cpu } from "../tensor/cpu.ts";
import { tensor } from "../tensor/create.ts";
import { type CrossEntropyOptions, linearCrossEntropy } from "../tensor/loss.ts";
import { key, randint } from "../tensor/random.ts";
import { needAdapter } from "../testing/laws/adapter.ts";
import { assertSame, draw, stored } from "../testing/laws/both.ts";
import { webgpu } from "./webgpu.ts";

const gpu = await needAdapter(webgpu());

for (const dtype of stored) {
  Deno.test(`linearCrossEntropy() on the device equals its reference in ${dtype}`, async () => {
    const options: CrossEntropyOptions[] = [{}, { labelSmoothing: 0.1, zLoss: 0.01, softcap: 3 }, {
      reduction: "none",
    }];
    for (const [N, D, V] of [[1, 1, 1], [3, 5, 7], [9, 16, 64], [33, 24, 130]]) {
      const hidden = draw(1, [N, D], dtype), weight = draw(2, [V, D], dtype);
      const labels = randint(key(2, { backend: cpu() }), [N], { max: V }).dataSync();
      if (N > 1) labels[0] = -100;
      for (const option of options) {
        await assertSame(
          gpu,
          (h, w) => linearCrossEntropy(h, w, tensor(labels, { dtype: "i32", backend: h.backend }), option),
          [
            hidden,
            weight,
          ],
          8,
        );
      }
    }
  });
}
