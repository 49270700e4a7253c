/** The fused layers and losses on the device against their references: awkward sizes, every storage type, views. */
import assert from "node:assert/strict";
import { grad } from "../autograd/grad.ts";
import { cpu } from "../tensor/cpu.ts";
import { tensor } from "../tensor/create.ts";
import { type DType, isFloat } from "../tensor/dtype.ts";
import { add, cast, cos, mul, sin } from "../tensor/elementwise.ts";
import { geglu, swiglu } from "../tensor/gated.ts";
import { crossEntropy, type CrossEntropyOptions, linearCrossEntropy } from "../tensor/loss.ts";
import { slice, transpose } from "../tensor/movement.ts";
import { layerNorm, rmsNorm } from "../tensor/norm.ts";
import { key, randint, randn, uniform } from "../tensor/random.ts";
import { sum } from "../tensor/reduce.ts";
import { rotaryEmbedding } from "../tensor/rotary.ts";
import type { Tensor } from "../tensor/tensor.ts";
import { assertClose } from "../testing/mod.ts";
import { webgpu } from "./webgpu.ts";

const gpu = await webgpu();
const storage: DType[] = ["f32", "f16", "bf16"];
const unit: Readonly<Record<string, number>> = { f32: 2 ** -20, f16: 2 ** -9, bf16: 2 ** -6 };

/** Results of `f` on both backends from the same inputs; the gradients by float inputs too. */
async function both(
  f: (...xs: Tensor[]) => Tensor | readonly Tensor[],
  inputs: readonly Tensor[],
  scale = 1,
): Promise<void> {
  const floats = inputs.flatMap((x, i) => isFloat(x.dtype) ? [i] : []);
  const weighted = (...xs: Tensor[]) =>
    [f(...xs)].flat().map((y, n) => {
      const weights = tensor(randn(key(n, { backend: cpu() }), y.shape).dataSync(), {
        shape: y.shape,
        backend: y.backend,
      });
      return sum(mul(cast(y, "f32"), weights));
    }).reduce(add);
  const [a, b] = [cpu(), gpu].map((backend) => {
    const xs = inputs.map((x) => tensor(x.dataSync(), { shape: x.shape, dtype: x.dtype, backend }));
    return [...[f(...xs)].flat(), ...grad(weighted, floats)(...xs) as Tensor[]];
  });
  for (const [i, y] of b.entries()) {
    const expected = await a[i].data(), u = unit[y.dtype];
    assert.deepEqual([y.shape, y.dtype], [a[i].shape, a[i].dtype]);
    // Errors belong to the terms that a number is the sum of: here those of its tensor, or of inputs of size 1.
    const size = Math.sqrt(Array.from(expected).reduce((s, v) => s + v * v, 0) / Math.max(1, expected.length));
    assertClose(await y.data(), expected, { rtol: scale * u, atol: scale * u * Math.max(0.01, size) });
  }
}

const draw = (seed: number, shape: number[], dtype: DType = "f32") =>
  randn(key(seed, { backend: cpu() }), shape, { dtype });

for (const dtype of storage) {
  Deno.test(`rmsNorm() and layerNorm() on the device equal their references in ${dtype}`, async () => {
    for (
      const [rows, D] of [[1, 1], [3, 3], [5, 8], [2, 30], [9, 64], [4, 130], [33, 257], [2, 1024], [3, 8200], [70, 36]]
    ) {
      const [x, w, b, residual] = [[rows, D], [D], [D], [rows, D]].map((shape, i) => draw(i, shape, dtype));
      await both((x, w) => rmsNorm(x, w, { eps: 1e-5 }), [x, w], 2);
      await both(
        (x, w, residual) => {
          const { out, sum } = rmsNorm(x, w, { residual });
          return [out, sum];
        },
        [x, w, residual],
        2,
      );
      await both((x, w, b) => layerNorm(x, w, b), [x, w, b], D === 1 ? 300 : 2);
    }
  });

  Deno.test(`norms of views and of nothing equal their references in ${dtype}`, async () => {
    const view = (x: Tensor) => transpose(slice(x, [1, 2]));
    await both((x, w) => rmsNorm(view(x), slice(w, [1])), [draw(1, [9, 7], dtype), draw(2, [9], dtype)], 2);
    await both((x, w) => layerNorm(view(x), slice(w, [1])), [draw(1, [9, 7], dtype), draw(2, [9], dtype)], 2);
    await both((x, w) => rmsNorm(x, w), [draw(1, [0, 6], dtype), draw(2, [6], dtype)]);
    await both((x, w) => layerNorm(x, w), [draw(1, [3, 0], dtype), draw(2, [0], dtype)]);
  });

  Deno.test(`swiglu() and geglu() on the device equal their references in ${dtype}`, async () => {
    for (const shape of [[0], [1], [7], [5, 6], [3, 1000]]) {
      const gate = mul(draw(1, shape, dtype), 3), up = draw(2, shape, dtype);
      await both(swiglu, [gate, up], 2);
      await both((a, b) => geglu(a, b), [gate, up], 2);
      await both((a, b) => geglu(a, b, { approximate: "tanh" }), [gate, up], 2);
    }
    await both((a, b) => swiglu(transpose(a), transpose(b)), [draw(1, [3, 5], dtype), draw(2, [3, 5], dtype)], 2);
  });

  Deno.test(`rotaryEmbedding() on the device equals its reference in ${dtype}`, async () => {
    for (const [D, R] of [[8, 4], [64, 32], [6, 3], [7, 2], [12, 4], [5, 0]]) {
      const angles = uniform(key(3, { backend: cpu() }), [9, R], { max: 6 });
      const tables = [cos(angles), sin(angles)].map((t) => t.dataSync());
      const [B, S, H] = [2, 5, 3], q = draw(1, [B, S, H, D], dtype), k = draw(2, [B, S, 1, D], dtype);
      for (const interleaved of [false, true]) {
        for (const shape of [null, [S], [B, S]]) {
          const rows = shape && randint(key(4, { backend: cpu() }), shape, { max: 9 }).dataSync();
          await both(
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
    await both(
      (x) => {
        const table = (i: number) => tensor(tables[i], { shape: [3, 8], backend: x.backend });
        return rotaryEmbedding(slice(x, [0, 0, 2], [2, 3, 4]), table(0), table(1));
      },
      [fused],
      2,
    );
  });

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
        await both(
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

  Deno.test(`linearCrossEntropy() on the device equals its reference in ${dtype}`, async () => {
    const options: CrossEntropyOptions[] = [{}, { labelSmoothing: 0.1, zLoss: 0.01, softcap: 3 }, {
      reduction: "none",
    }];
    for (const [N, D, V] of [[1, 1, 1], [3, 5, 7], [9, 16, 64], [33, 24, 130]]) {
      const hidden = draw(1, [N, D], dtype), weight = draw(2, [V, D], dtype);
      const labels = randint(key(2, { backend: cpu() }), [N], { max: V }).dataSync();
      if (N > 1) labels[0] = -100;
      for (const option of options) {
        await both((h, w) => linearCrossEntropy(h, w, tensor(labels, { dtype: "i32", backend: h.backend }), option), [
          hidden,
          weight,
        ], 8);
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

Deno.test("rotaryEmbedding() on the device turns several heads a thread where there are enough", async () => {
  for (const [H, dtype] of [[24, "f32"], [18, "bf16"], [3, "f32"]] as const) {
    const x = draw(1, [2, 257, H, 96], dtype), angles = uniform(key(3, { backend: cpu() }), [257, 40], { max: 6 });
    const tables = [cos(angles), sin(angles)].map((t) => t.dataSync());
    await both(
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
