import assert from "node:assert/strict";
import { tensor } from "../tensor/create.ts";
import { argmax, argmin, cumsum, logsumexp, max, min, sum, topK } from "../tensor/reduce.ts";
import { stack } from "../tensor/movement.ts";
import { needAdapter } from "../testing/laws/adapter.ts";
import { accumulator, keyFunction, type ReduceName, reduceRows } from "./reduce.ts";
import { webgpu } from "./webgpu.ts";

const gpu = await needAdapter(webgpu());
const row = (values: number[], dtype: "f32" | "i32" | "u32" = "f32") => tensor(values, { dtype, backend: gpu });

Deno.test("sums of several thousand equal numbers lose no more than pairs do", async () => {
  const n = 10_000, values = Array(n).fill(0.1);
  const exact = n * Math.fround(0.1);
  const got = await sum(row(values)).item();
  assert(Math.abs(got - exact) <= 16 * 2 ** -24 * exact, `${got}, not ${exact}`); // one after another: 400 units
});

Deno.test("max() and min() give NaN where one is, and the ends of their types", async () => {
  for (const at of [0, 3, 299]) {
    const values = Array.from({ length: 300 }, (_, i) => i === at ? NaN : i);
    assert.deepEqual([await max(row(values)).item(), await min(row(values)).item()], [NaN, NaN]);
  }
  const low = -(2 ** 31), high = 2 ** 31 - 1;
  assert.deepEqual([await max(row([low, low], "i32")).item(), await min(row([high], "i32")).item()], [low, high]);
  assert.deepEqual([await max(row([0], "u32")).item(), await min(row([2 ** 32 - 1], "u32")).item()], [0, 2 ** 32 - 1]);
  assert.equal(await max(row([-Infinity, -Infinity])).item(), -Infinity);
});

Deno.test("argmax() and argmin() give the first of equals, and of NaNs", async () => {
  const places = async (values: number[]) => [await argmax(row(values)).item(), await argmin(row(values)).item()];
  assert.deepEqual(await places([1, 5, 5, 0, 0]), [1, 3]);
  assert.deepEqual(await places([0, -0, 0]), [0, 0]);
  assert.deepEqual(await places([7, NaN, Infinity, NaN, -Infinity]), [1, 1]);
  assert.deepEqual(await places([-Infinity, -Infinity]), [0, 0]);
  const late = Array.from({ length: 700 }, (_, i) => i % 300 === 299 ? 3 : 0); // several lanes meet
  assert.deepEqual(await places(late), [299, 0]);
});

Deno.test("logsumexp() takes numbers whose powers overflow, −∞ alone, and one ∞", async () => {
  const rows = [[1000, 1000, -1000], [-Infinity, -Infinity, -Infinity], [Infinity, 0, 1], [-2000, -2000, -2000]];
  const got = await logsumexp(stack(rows.map((values) => row(values))), { axis: 1 }).data();
  const expected = [1000 + Math.LN2, -Infinity, Infinity, -2000 + Math.log(3)].map(Math.fround);
  got.forEach((y, i) => assert(Object.is(y, expected[i]) || Math.abs(y - expected[i]) <= 1.3e-4, `${y}`));
});

Deno.test("cumsum() carries over blocks; topK() sorts NaN first and keeps the order of equals", async () => {
  const n = 1500, running = await cumsum(row(Array(n).fill(1), "i32")).data();
  assert.deepEqual([...running], Array.from({ length: n }, (_, i) => i + 1));
  const { values, indices } = topK(row([2, 9, NaN, 9, -1]), 4);
  assert.deepEqual([...await values.data()], [NaN, 9, 9, 2]);
  assert.deepEqual([...await indices.data()], [2, 1, 3, 0]);
});

Deno.test("a reduction's kernel is named by what its text depends on", () => {
  const names: ReduceName[] = ["sum", "mean", "max", "min", "logsumexp", "argmax", "argmin"];
  const kernels = names.flatMap((name) =>
    [1, 8, 256].flatMap((lanes) =>
      ([1, 4] as const).map((vec) =>
        reduceRows({ name, dtype: "f32", output: accumulator(name, "f32").type === "i32" ? "i32" : "f32", lanes, vec })
      )
    )
  );
  assert.equal(new Set(kernels.map(({ name }) => name)).size, kernels.length);
  assert.equal(new Set(kernels.map(({ source }) => source)).size, kernels.length);
  assert.notEqual(keyFunction("f32", "argmax"), keyFunction("f32", "argmin"));
});
