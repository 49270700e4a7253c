import assert from "node:assert/strict";
import { setBackend } from "../tensor/backend.ts";
import { ones } from "../tensor/create.ts";
import { add, exp } from "../tensor/elementwise.ts";
import { ValueError } from "../tensor/errors.ts";
import { matmul } from "../tensor/matmul.ts";
import { profile } from "../tensor/profile.ts";
import { needAdapter } from "../testing/laws/adapter.ts";
import { webgpu } from "./webgpu.ts";

const gpu = await needAdapter(webgpu());
setBackend(gpu);

Deno.test("profile() times each kernel by the GPU's clock and counts what it moves", async () => {
  const x = ones([128, 128]);
  const { value, launches, kernels, ms } = await profile(() => exp(matmul(x, x)));
  assert.deepEqual(value.shape, [128, 128]);
  assert.deepEqual(launches.map(({ op }) => op), ["matmul", "exp"]);
  assert(launches.every((launch) => launch.ms > 0));
  assert(launches[1].start >= launches[0].start + launches[0].ms);
  assert.equal(launches[0].flops, 2 * 128 ** 3);
  assert.equal(launches[0].bytes, 3 * 128 * 128 * 4);
  assert.equal(launches[1].bytes, 2 * 128 * 128 * 4);
  assert.equal(ms, kernels.reduce((sum, kernel) => sum + kernel.ms, 0));
});

Deno.test("profile() takes more launches than one query set holds", async () => {
  const x = ones([4]);
  const { launches } = await profile(() => {
    let y = x;
    for (let i = 0; i < 2100; i++) y = add(y, x);
    return y;
  });
  assert.equal(launches.length, 2100);
  assert(launches.every((launch, i) => i === 0 || launch.start >= launches[i - 1].start));
});

Deno.test("profile() leaves what runs after it alone, and does not nest", async () => {
  const x = ones([3]);
  await assert.rejects(profile(() => profile(() => add(x, 1))), ValueError);
  assert.deepEqual([...await add(x, x).data()], [2, 2, 2]);
  const { launches } = await profile(() => add(x, x));
  assert.equal(launches.length, 1);
});
