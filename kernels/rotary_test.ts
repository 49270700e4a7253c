import { cpu } from "../tensor/cpu.ts";
import { tensor } from "../tensor/create.ts";
import { cast, cos, sin } from "../tensor/elementwise.ts";
import { slice } from "../tensor/movement.ts";
import { key, randint, uniform } from "../tensor/random.ts";
import { rotaryEmbedding } from "../tensor/rotary.ts";
import { assertClose } from "../testing/mod.ts";
import { needAdapter } from "../testing/laws/adapter.ts";
import { assertSame, draw, stored } from "../testing/laws/both.ts";
import { webgpu } from "./webgpu.ts";

const gpu = await needAdapter(webgpu());

for (const dtype of stored) {
  Deno.test(`rotaryEmbedding() on the device equals its reference in ${dtype}`, async () => {
    for (const [D, R] of [[8, 4], [64, 32], [6, 3], [7, 2], [12, 4], [5, 0]]) {
      const angles = uniform(key(3, { backend: cpu() }), [9, R], { max: 6 });
      const tables = [cos(angles), sin(angles)].map((t) => t.dataSync());
      const [B, S, H] = [2, 5, 3], q = draw(1, [B, S, H, D], dtype), k = draw(2, [B, S, 1, D], dtype);
      for (const interleaved of [false, true]) {
        for (const shape of [null, [S], [B, S]]) {
          const rows = shape && randint(key(4, { backend: cpu() }), shape, { max: 9 }).dataSync();
          await assertSame(
            gpu,
            (q, k) => {
              const { backend } = q, table = (i: number) => tensor(tables[i], { shape: [9, R], backend });
              const positions = shape && rows ? tensor(rows, { shape, dtype: "i32", backend }) : undefined;
              return rotaryEmbedding([q, k], table(0), table(1), { interleaved, positions });
            },
            [q, k],
            2,
          );
        }
      }
    }
  });

  Deno.test(`rotaryEmbedding() on the device reads a slice of a fused projection where it lies, in ${dtype}`, async () => {
    const fused = draw(1, [2, 3, 6, 16], dtype), angles = uniform(key(3, { backend: cpu() }), [3, 8], { max: 6 });
    const tables = [cos(angles), sin(angles)].map((t) => t.dataSync());
    await assertSame(
      gpu,
      (x) => {
        const table = (i: number) => tensor(tables[i], { shape: [3, 8], backend: x.backend });
        return rotaryEmbedding(slice(x, [0, 0, 2], [2, 3, 4]), table(0), table(1));
      },
      [fused],
      2,
    );
  });
}

Deno.test("rotaryEmbedding() on the device turns several heads a thread where there are enough", async () => {
  for (const [H, dtype] of [[24, "f32"], [18, "bf16"], [3, "f32"]] as const) {
    const x = draw(1, [2, 257, H, 96], dtype), angles = uniform(key(3, { backend: cpu() }), [257, 40], { max: 6 });
    const tables = [cos(angles), sin(angles)].map((t) => t.dataSync());
    await assertSame(
      gpu,
      (x) => {
        const table = (i: number) => tensor(tables[i], { shape: [257, 40], backend: x.backend });
        return rotaryEmbedding(x, table(0), table(1), { interleaved: H === 18 });
      },
      [x],
      2,
    );
  }
});

Deno.test("rotaryEmbedding() on the device reads NaN outside its tables", async () => {
  const x = tensor([1, 2], { shape: [1, 1, 1, 2], backend: gpu }), table = tensor([[1]], { backend: gpu });
  const positions = cast(tensor([5], { backend: gpu }), "i32");
  await assertClose(rotaryEmbedding(x, table, table, { positions }), [[[[NaN, NaN]]]]);
});
