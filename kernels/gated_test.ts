import { mul } from "../tensor/elementwise.ts";
import { geglu, swiglu } from "../tensor/gated.ts";
import { transpose } from "../tensor/movement.ts";
import { needAdapter } from "../testing/laws/adapter.ts";
import { assertSame, draw, stored } from "../testing/laws/both.ts";
import { webgpu } from "./webgpu.ts";

const gpu = await needAdapter(webgpu());

for (const dtype of stored) {
  Deno.test(`swiglu() and geglu() on the device equal their references in ${dtype}`, async () => {
    for (const shape of [[0], [1], [7], [5, 6], [3, 1000]]) {
      const gate = mul(draw(1, shape, dtype), 3), up = draw(2, shape, dtype);
      await assertSame(gpu, swiglu, [gate, up], 2);
      await assertSame(gpu, (a, b) => geglu(a, b), [gate, up], 2);
      await assertSame(gpu, (a, b) => geglu(a, b, { approximate: "tanh" }), [gate, up], 2);
    }
    await assertSame(gpu, (a, b) => swiglu(transpose(a), transpose(b)), [
      draw(1, [3, 5], dtype),
      draw(2, [3, 5], dtype),
    ], 2);
  });
}
