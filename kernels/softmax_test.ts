import assert from "node:assert/strict";
import { cpu } from "../tensor/cpu.ts";
import { tensor } from "../tensor/create.ts";
import { transpose } from "../tensor/movement.ts";
import { logSoftmax, softmax } from "../tensor/norm.ts";
import { logsumexp, sum } from "../tensor/reduce.ts";
import type { Tensor } from "../tensor/tensor.ts";
import { arbShape, arbTensorData, assertClose, property } from "../testing/mod.ts";
import { needAdapter } from "../testing/laws/adapter.ts";
import { draw, stored } from "../testing/laws/both.ts";
import { pickSoftmax } from "./softmax.ts";
import { webgpu } from "./webgpu.ts";

const gpu = await needAdapter(webgpu());
const onGpu = (x: Tensor) => tensor(x.dataSync(), { shape: x.shape, dtype: x.dtype, backend: gpu });

Deno.test("pickSoftmax() covers a row, keeps it in registers while it fits, and loads by fours where it can", () => {
  for (const dtype of stored) {
    for (let n = 1; n < 20_000; n += n < 300 ? 1 : 77) {
      const { lanes, vec, held } = pickSoftmax("softmax", dtype, n);
      assert.equal(vec, n % 4 === 0 ? 4 : 1);
      assert(lanes <= 256 && Number.isInteger(Math.log2(lanes)), `${lanes} lanes`);
      if (held > 0) assert(held <= 8 && lanes * vec * held >= n, `${n}: ${[lanes, vec, held]}`);
      else assert(n / vec > 8 * lanes, `${n} would fit`);
    }
  }
  assert.equal(pickSoftmax("softmax", "bf16", 7).output, "f32"); // odd rows share words
  assert.equal(pickSoftmax("softmax", "bf16", 8).output, "bf16");
});

for (const dtype of stored) {
  Deno.test(`softmax() and logSoftmax() of ${dtype} rows agree with their references, held in registers or long`, async () => {
    for (const shape of [[3, 1], [5, 7], [9, 64], [2, 1000], [2, 2051], [1, 8192], [1, 8200]]) {
      const x = draw(shape[1], shape, dtype);
      for (const f of [softmax, logSoftmax]) await assertClose(f(onGpu(x)), await f(x).data(), { dtype });
    }
  });

  Deno.test(`softmax() along the first axis of ${dtype} is that of the transpose`, async () => {
    const x = onGpu(draw(1, [37, 6], dtype));
    for (const f of [softmax, logSoftmax]) {
      assert.deepEqual(await f(x, { axis: 0 }).data(), await transpose(f(transpose(x))).data());
    }
  });
}

Deno.test("a row of which −∞ is all but some is 0 there, and a row of −∞ alone is NaN", async () => {
  for (const n of [5, 8, 2052, 8200]) { // one by one, by fours, held and long
    const x = new Float32Array(2 * n).fill(-Infinity);
    x[n - 1] = x[0] = 3;
    const y = await softmax(tensor(x, { shape: [2, n], backend: gpu })).data();
    assert.deepEqual([...y.slice(0, n)], Array.from({ length: n }, (_, i) => i === 0 || i === n - 1 ? 0.5 : 0));
    assert(y.slice(n).every(Number.isNaN), `${n}`);
  }
});

Deno.test("logsumexp() of rows that are held in registers agrees with its reference, odd rows and infinities too", async () => {
  const row = (n: number, at0: number, rest: number) => Array.from({ length: n }, (_, i) => i === 0 ? at0 : rest);
  for (const n of [129, 1024, 9000]) {
    for (const dtype of stored) {
      const x = draw(n, [5, n], dtype);
      await assertClose(logsumexp(onGpu(x), { axis: 1 }), await logsumexp(x, { axis: 1 }).data(), { dtype });
    }
    const rows = [
      row(n, 1000, 0),
      row(n, 3, -Infinity),
      row(n, -Infinity, -Infinity),
      row(n, Infinity, 1),
      row(n, NaN, 1),
    ];
    const y = await logsumexp(tensor(rows, { backend: gpu }), { axis: 1 }).data();
    assert.deepEqual([...y], [1000, 3, -Infinity, Infinity, NaN]);
  }
});

property("softmax() on the device is as on the CPU, and sums to one, for any view", [
  arbTensorData({ shape: arbShape({ minRank: 1, zeros: false }), min: -90, max: 90, views: true }),
], async (x) => {
  const y = softmax(x.tensor(gpu));
  await assertClose(y, await softmax(x.tensor(cpu())).data());
  await assertClose(sum(y, { axis: -1 }), 1);
}, { runs: 40 });
