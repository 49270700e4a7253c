import assert from "node:assert/strict";
import { cpu } from "../tensor/cpu.ts";
import { tensor } from "../tensor/create.ts";
import type { DType } from "../tensor/dtype.ts";
import { bernoulli, dropout, foldIn, key, randint, randn, split, uniform } from "../tensor/random.ts";
import { slice, transpose } from "../tensor/movement.ts";
import type { Tensor } from "../tensor/tensor.ts";
import { webgpu } from "./webgpu.ts";

const gpu = await webgpu();

/** The bits of what `f` draws under one key, on both backends. */
async function both(f: (key: Tensor) => Tensor | readonly Tensor[], seed: number | bigint = 2024): Promise<void> {
  const [a, b] = await Promise.all([cpu(), gpu].map(async (backend) => {
    const drawn = [f(key(seed, { backend }))].flat();
    return await Promise.all(drawn.map(async (x) => `${x.dtype} ${x.shape} ${await x.bytes()}`));
  }));
  assert.deepEqual(b, a);
}

const sizes = [0, 1, 2, 3, 4, 5, 255, 1027];
const floats: DType[] = ["f32", "f16", "bf16"];

Deno.test("random numbers are equal to the bit on both backends", async () => {
  for (const n of sizes) {
    for (const dtype of floats) {
      await both((k) => [
        randn(k, [n], { dtype }),
        uniform(k, [n], { dtype }),
        uniform(k, [n], { dtype, min: -0.1, max: 1e3 / 3 }),
      ]);
    }
    await both((k) => [
      bernoulli(k, [n], { p: 0 }),
      bernoulli(k, [n], { p: 0.3 }),
      bernoulli(k, [n], { p: 1 }),
      randint(k, [n], { max: 10 }),
      randint(k, [n], { min: -7, max: 2 ** 31 }),
      randint(k, [n], { min: -(2 ** 31), max: 2 ** 31 }),
    ]);
  }
});

Deno.test("keys are equal on both backends, and views of a split serve as keys", async () => {
  await both((k) => split(k, 5), 2n ** 64n - 1n);
  await both((k) => [foldIn(k, 0), foldIn(k, 123456789), foldIn(k, tensor(-3, { dtype: "i32", backend: k.backend }))]);
  await both((k) => randn(split(foldIn(k, 1), 3)[2], [9]));
});

Deno.test("normal numbers are equal in the far tails", async () => {
  const n = 1 << 18;
  await both((k) => randn(k, [n]), 5);
  const extremes = (await randn(key(5, { backend: gpu }), [n]).data()) as Float32Array;
  assert(extremes.some((z) => z > 4.2) && extremes.some((z) => z < -4.2));
});

Deno.test("dropout() drops the same elements on both backends, of views too", async () => {
  for (const dtype of floats) {
    await both((k) => dropout(randn(k, [513], { dtype }), { p: 0.5, key: k }));
    await both((k) => dropout(transpose(slice(randn(k, [9, 7], { dtype }), [1, 1])), { p: 0.5, key: k }));
  }
});
