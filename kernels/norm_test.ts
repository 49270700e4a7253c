import { slice, transpose } from "../tensor/movement.ts";
import { layerNorm, rmsNorm } from "../tensor/norm.ts";
import type { Tensor } from "../tensor/tensor.ts";
import { needAdapter } from "../testing/laws/adapter.ts";
import { assertSame, draw, stored } from "../testing/laws/both.ts";
import { webgpu } from "./webgpu.ts";

const gpu = await needAdapter(webgpu());

for (const dtype of stored) {
  Deno.test(`rmsNorm() and layerNorm() on the device equal their references in ${dtype}`, async () => {
    for (
      const [rows, D] of [[1, 1], [3, 3], [5, 8], [2, 30], [9, 64], [4, 130], [33, 257], [2, 1024], [3, 8200], [70, 36]]
    ) {
      const [x, w, b, residual] = [[rows, D], [D], [D], [rows, D]].map((shape, i) => draw(i, shape, dtype));
      await assertSame(gpu, (x, w) => rmsNorm(x, w, { eps: 1e-5 }), [x, w], 2);
      await assertSame(
        gpu,
        (x, w, residual) => {
          const { out, sum } = rmsNorm(x, w, { residual });
          return [out, sum];
        },
        [x, w, residual],
        2,
      );
      await assertSame(gpu, (x, w, b) => layerNorm(x, w, b), [x, w, b], D === 1 ? 300 : 2);
    }
  });

  Deno.test(`norms of views and of nothing equal their references in ${dtype}`, async () => {
    const view = (x: Tensor) => transpose(slice(x, [1, 2]));
    await assertSame(gpu, (x, w) => rmsNorm(view(x), slice(w, [1])), [draw(1, [9, 7], dtype), draw(2, [9], dtype)], 2);
    await assertSame(
      gpu,
      (x, w) => layerNorm(view(x), slice(w, [1])),
      [draw(1, [9, 7], dtype), draw(2, [9], dtype)],
      2,
    );
    await assertSame(gpu, (x, w) => rmsNorm(x, w), [draw(1, [0, 6], dtype), draw(2, [6], dtype)]);
    await assertSame(gpu, (x, w) => layerNorm(x, w), [draw(1, [3, 0], dtype), draw(2, [0], dtype)]);
  });
}
