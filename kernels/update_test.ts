import assert from "node:assert/strict";
import { assertClose } from "../testing/mod.ts";
import type { Backend } from "../tensor/backend.ts";
import { cpu } from "../tensor/cpu.ts";
import { tensor, zeros } from "../tensor/create.ts";
import { slice, transpose } from "../tensor/movement.ts";
import { key, randn, split } from "../tensor/random.ts";
import type { Tensor } from "../tensor/tensor.ts";
import { adamwUpdate, sgdUpdate } from "../tensor/update.ts";
import { webgpu } from "./webgpu.ts";

const gpu = await webgpu();

/** The same steps on both backends. */
async function both(
  run: (backend: Backend) => readonly Tensor[],
  tolerance = { rtol: 2e-6, atol: 1e-7 },
): Promise<void> {
  const [a, b] = await Promise.all([cpu(), gpu].map((backend) => Promise.all(run(backend).map((x) => x.data()))));
  for (const [i, x] of a.entries()) assertClose(b[i], x, tolerance);
}

Deno.test("adamwUpdate() on the device equals the reference over several steps", async () => {
  for (const dtype of ["f32", "f16", "bf16"] as const) {
    for (const shape of [[0], [1], [7], [33, 5]]) {
      await both((backend) => {
        const draws = split(key(1, { backend }), 5);
        let param = randn(draws[0], shape, { dtype }), m = zeros(shape, { backend }), v = zeros(shape, { backend });
        const rate = tensor(0.1, { backend });
        for (let i = 1; i < 5; i++) {
          const grad = randn(draws[i], shape, { dtype }), step = tensor(i, { dtype: "i32", backend });
          ({ param, m, v } = adamwUpdate({ param, grad, m, v, step, learningRate: rate }, { weightDecay: 0.1 }));
        }
        return [param, m, v];
      }, dtype === "f32" ? { rtol: 1e-5, atol: 1e-6 } : { rtol: 2 ** -6, atol: 1e-2 });
    }
  }
});

Deno.test("adamwUpdate() corrects its bias at every count, with betas of 0 and near 1", async () => {
  for (const step of [1, 2, 10, 700, 100000, 2 ** 31 - 1]) {
    for (const [beta1, beta2] of [[0, 0], [0.9, 0.999], [0.5, 0.999999]]) {
      await both((backend) => {
        const f32 = (values: number[]) => tensor(values, { backend });
        const count = tensor(step, { dtype: "i32", backend });
        const inputs = { param: f32([1, 2]), grad: f32([0.5, -3]), m: f32([0.1, 0.2]), v: f32([0.3, 0.4]) };
        const next = adamwUpdate({ ...inputs, step: count, learningRate: tensor(0.1, { backend }) }, { beta1, beta2 });
        return [next.param, next.m, next.v];
      });
    }
  }
});

Deno.test("sgdUpdate() on the device equals the reference, with views as gradients", async () => {
  for (const options of [{}, { momentum: 0.9 }, { momentum: 0.9, nesterov: true, weightDecay: 0.1 }]) {
    await both((backend) => {
      const [a, b, c] = split(key(3, { backend }), 3);
      const grad = transpose(slice(randn(a, [6, 7]), [1, 2])), learningRate = tensor(0.1, { backend });
      const velocity = "momentum" in options ? randn(c, [5, 5]) : undefined;
      const next = sgdUpdate({ param: randn(b, [5, 5]), grad, velocity, learningRate }, options);
      return [next.param, ...(next.velocity === undefined ? [] : [next.velocity])];
    });
  }
});

Deno.test("updates on the device write in place and leave other views of a parameter alone", async () => {
  const base = randn(key(1, { backend: gpu }), [4, 4]), kept = await base.data();
  const inputs = { grad: randn(key(2, { backend: gpu }), [4, 4]), learningRate: tensor(1, { backend: gpu }) };
  const shared = sgdUpdate({ param: transpose(base), ...inputs }).param;
  assert.deepEqual(await base.data(), kept);
  const before = gpu.memory().current;
  const next = sgdUpdate({ param: shared, ...inputs });
  assert.equal(gpu.memory().current, before);
  assert(shared.disposed && !next.param.disposed);
});
