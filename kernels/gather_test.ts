import assert from "node:assert/strict";
import type { Backend } from "../tensor/backend.ts";
import { cpu } from "../tensor/cpu.ts";
import { tensor } from "../tensor/create.ts";
import { cast } from "../tensor/elementwise.ts";
import type { DType } from "../tensor/dtype.ts";
import { scatterAdd, take } from "../tensor/gather.ts";
import { slice, transpose } from "../tensor/movement.ts";
import { key, randint, randn } from "../tensor/random.ts";
import type { Tensor } from "../tensor/tensor.ts";
import { assertClose } from "../testing/mod.ts";
import { webgpu } from "./webgpu.ts";

const gpu = await webgpu();
const dtypes: DType[] = ["f32", "f16", "bf16", "i32", "u32", "bool"];

async function both(f: (backend: Backend) => Tensor, options?: { rtol: number; atol: number }): Promise<void> {
  const [a, b] = [cpu(), gpu].map(f);
  await assertClose(b, await a.data(), { dtype: a.dtype, ...options });
}

/** Whole numbers from −9 to 9, which every dtype holds and adds exactly. */
function numbers(backend: Backend, shape: number[], dtype: DType, seed = 1): Tensor {
  const x = randint(key(seed, { backend }), shape, { min: dtype === "u32" ? 0 : -9, max: 10 });
  return cast(x, dtype);
}

Deno.test("take() on the device moves every dtype along every axis", async () => {
  for (const dtype of dtypes) {
    for (
      const [shape, axis] of [[[7, 8], 0], [[7, 3], 0], [[7, 2], 0], [[5, 6, 3], 1], [[4, 9], 1], [[6], 0]] as const
    ) {
      await both((backend) => {
        const indices = randint(key(2, { backend }), [3, 5], { max: shape[axis]! });
        return take(numbers(backend, [...shape], dtype), indices, { axis });
      });
    }
    await both((backend) => {
      const x = transpose(slice(numbers(backend, [9, 6], dtype), [1, 2])); // [4, 8], neither dense nor aligned
      return take(x, slice(randint(key(2, { backend }), [6], { max: 4 }), [1]));
    });
  }
});

Deno.test("take() on the device reads NaN, or 0, outside the axis", async () => {
  for (const dtype of dtypes) {
    for (const inner of [1, 2, 4]) {
      await both((backend) => {
        const indices = cast(tensor([-1, 0, 3, 2, 1e9], { backend }), "i32"); // of range unknown to the host
        return take(numbers(backend, [3, inner], dtype), indices);
      });
    }
  }
});

Deno.test("scatterAdd() on the device adds in order, along every axis, for every number type", async () => {
  for (const dtype of ["f32", "f16", "bf16", "i32", "u32"] as const) {
    for (
      const [shape, axis] of [[[7, 8], 0], [[3, 300], 0], [[7, 3], 0], [[5, 6, 3], 1], [[4, 9], 1], [[6], 0]] as const
    ) {
      await both((backend) => {
        const n = 37, length = shape[axis]!;
        const indices = cast(cast(randint(key(2, { backend }), [n], { min: -1, max: length + 1 }), "f32"), "i32");
        const updates = numbers(backend, shape.map((d, i) => i === axis ? n : d), dtype, 3);
        return scatterAdd(numbers(backend, [...shape], dtype), indices, updates, { axis });
      });
    }
  }
});

Deno.test("scatterAdd() on the device is equal to the bit each time, over several blocks of updates", async () => {
  const n = 20000,
    indices = randint(key(1, { backend: gpu }), [n], { max: 3 }),
    updates = randn(key(2, { backend: gpu }), [n, 4]);
  const x = randn(key(3, { backend: gpu }), [3, 4]);
  const first = await scatterAdd(x, indices, updates).data();
  assert.deepEqual(await scatterAdd(x, indices, updates).data(), first);
  const onCpu = (t: Tensor) => tensor(t.dataSync(), { shape: t.shape, dtype: t.dtype, backend: cpu() });
  await assertClose(first, await scatterAdd(onCpu(x), onCpu(indices), onCpu(updates)).data(), {
    rtol: 1e-4,
    atol: 1e-3,
  });
});

Deno.test("take() and scatterAdd() on the device take empty tensors", async () => {
  for (const dtype of ["f32", "bf16"] as const) {
    await both((backend) => take(numbers(backend, [3, 2], dtype), tensor([], { dtype: "i32", backend })));
    await both((backend) => take(numbers(backend, [0, 3], dtype), cast(tensor([0, 1], { backend }), "i32")));
    await both((backend) => {
      const none = tensor([], { dtype: "i32", backend });
      return scatterAdd(numbers(backend, [3, 2], dtype), none, numbers(backend, [0, 2], dtype));
    });
  }
});
