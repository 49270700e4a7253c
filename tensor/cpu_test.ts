import assert from "node:assert/strict";
import { cpu } from "./cpu.ts";
import { tensor, zeros } from "./create.ts";
import { add, div, exp } from "./elementwise.ts";
import { ValueError } from "./errors.ts";
import { transpose } from "./movement.ts";
import { run } from "./op.ts";
import { sum } from "./reduce.ts";
import { makeTensor } from "./tensor.ts";

Deno.test("there is one CPU backend, which holds every type", () => {
  assert.equal(cpu(), cpu());
  assert.deepEqual([...cpu().dtypes].sort(), ["bf16", "bool", "f16", "f32", "f64", "i32", "u32"]);
});

Deno.test("sums of 16-bit numbers are kept wide and rounded once", async () => {
  const x = tensor([2048, 1, 1, 1, 1], { dtype: "f16" }); // in f16, 2048 + 1 is 2048
  assert.equal(await sum(x).item(), 2052);
});

Deno.test("16-bit results are rounded to their type", async () => {
  const third = 1 / 3;
  assert.equal(await div(tensor(1, { dtype: "bf16" }), 3).item(), 0.333984375);
  assert.equal(await div(tensor(1, { dtype: "f16" }), 3).item(), 0.333251953125);
  assert.equal(await div(tensor(1), 3).item(), Math.fround(third));
  assert.equal(await div(tensor(1, { dtype: "f64" }), 3).item(), third);
});

Deno.test("a reference does not run where there is nothing to compute", async () => {
  const never = {
    name: "never",
    infer: () => ({ shape: [0, 3], dtype: "f32" as const }),
    reference: () => assert.fail("it ran"),
  };
  assert.deepEqual(await run(never, [tensor([1])], {}).array(), []);
});

Deno.test("copy() gives a view's elements storage of their own", () => {
  const x = tensor([[1, 2], [3, 4]]), before = cpu().memory().current;
  const copied = cpu().copy(transpose(x));
  assert.equal(cpu().memory().current, before + 16);
  const layout = { shape: [4], strides: [1], offset: 0 };
  assert.deepEqual([...new Float32Array(cpu().readSync(copied, layout, "f32").buffer)], [1, 3, 2, 4]);
  copied.free();
  assert.equal(cpu().memory().current, before);
});

Deno.test("memory counts the bytes that arrays on the host take: 4 for 16-bit types", () => {
  const before = cpu().memory().current;
  using _half = zeros([10], { dtype: "f16" });
  assert.equal(cpu().memory().current, before + 40);
  using _bool = zeros([10], { dtype: "bool" });
  assert.equal(cpu().memory().current, before + 50);
});

Deno.test("a profile lists the ops that ran while it lasted, from time 0, and does not nest", async () => {
  const x = tensor([1, 2]);
  const log = cpu().profile!();
  assert.throws(() => cpu().profile!(), ValueError);
  exp(add(x, x));
  const launches = await log.stop();
  exp(x);
  assert.deepEqual(launches.map(({ op }) => op), ["add", "exp"]);
  assert.equal(launches[0].start, 0);
  assert.ok(launches.every(({ ms }) => ms >= 0) && launches[1].start >= launches[0].ms);
  await cpu().profile!().stop();
});

Deno.test("allocate() and write() fill a tensor piece by piece", async () => {
  const storage = cpu().allocate("bf16", 3);
  const x = makeTensor(cpu(), storage, { shape: [3], strides: [1], offset: 0 }, "bf16", "test");
  const bytes = await tensor([1, 2, 3], { dtype: "bf16" }).bytes();
  cpu().write(storage, "bf16", 2, bytes.subarray(4));
  cpu().write(storage, "bf16", 0, bytes.subarray(0, 4));
  assert.deepEqual(await x.array(), [1, 2, 3]);
});
