import assert from "node:assert/strict";
import { cpu } from "./cpu.ts";
import { ones } from "./create.ts";
import { add, exp } from "./elementwise.ts";
import { ValueError } from "./errors.ts";
import { matmul } from "./matmul.ts";
import { measure, Profile, profile } from "./profile.ts";
import { sum } from "./reduce.ts";

const launches = [
  { op: "matmul", kernel: "matmul_a", start: 0, ms: 2, bytes: 4e9, flops: 6e12 },
  { op: "exp", kernel: "exp_linear", start: 3, ms: 5, bytes: 1e9 },
  { op: "matmul", kernel: "matmul_a", start: 9, ms: 1, bytes: 2e9, flops: 3e12 },
];

Deno.test("a profile adds up the launches of each kernel, the longest time first", () => {
  const { kernels, ms } = new Profile(null, launches, "a device");
  assert.equal(ms, 8);
  assert.deepEqual(kernels, [
    { op: "exp", kernel: "exp_linear", calls: 1, ms: 5, share: 5 / 8, bytes: 1e9, flops: null },
    { op: "matmul", kernel: "matmul_a", calls: 2, ms: 3, share: 3 / 8, bytes: 6e9, flops: 9e12 },
  ]);
});

Deno.test("a profile's table shows the rates that each kernel reached", () => {
  const [device, head, first, second, total] = new Profile(null, launches, "a device").table().split("\n");
  assert.equal(device, "a device");
  assert.match(head, /kernel +op +calls +ms +share +µs\/call +GB\/s +TFLOP\/s/);
  assert.match(first, /exp_linear +exp +1 +5\.000 +62\.5 % +5000\.0 +200$/);
  assert.match(second, /matmul_a +matmul +2 +3\.000 +37\.5 % +1500\.0 +2000 +3000$/);
  assert.match(total, /total +3 +8\.000 +2666\.7 +875 +1125$/);
});

Deno.test("a profile's table shows rates of slow devices too", () => {
  const slow = [{ op: "matmul", kernel: "matmul_a", start: 0, ms: 100, bytes: 2e7, flops: 1.2e9 }];
  assert.match(new Profile(null, slow, "a device").table(), /matmul_a .* 0\.20 +0\.012\n/);
});

Deno.test("chromeTrace() is the Trace Event Format: complete events in microseconds", () => {
  const { traceEvents } = JSON.parse(new Profile(null, launches, "a device").chromeTrace());
  assert.deepEqual(traceEvents[0].args, { name: "a device" });
  const events = traceEvents.slice(1);
  assert.deepEqual(events.map((e: { ts: number; dur: number }) => [e.ts, e.dur]), [[0, 2000], [3000, 5000], [
    9000,
    1000,
  ]]);
  assert.equal(events[1].ph, "X");
  assert.equal(events[1].name, "exp_linear");
});

Deno.test("a profile of nothing is empty, and its table still a table", async () => {
  const found = await profile(() => 7);
  assert.equal(found.value, 7);
  assert.deepEqual(found.kernels, []);
  assert.match(found.table(), /total +0 +0\.000$/);
});

Deno.test("profile() times each op on the CPU, asynchronous functions too", async () => {
  const x = ones([64, 64], { backend: cpu() });
  const found = await profile(async () => {
    const y = exp(matmul(x, x));
    await y.data();
    return sum(y);
  });
  assert.deepEqual(found.launches.map(({ op }) => op), ["matmul", "exp", "sum"]);
  assert(found.ms > 0);
  const starts = found.launches.map(({ start }) => start);
  assert.deepEqual(starts, [...starts].sort((a, b) => a - b));
});

Deno.test("profile() ends when the function throws, and does not nest", async () => {
  await assert.rejects(profile(() => profile(() => 1)), ValueError);
  await assert.rejects(profile(() => Promise.reject(new RangeError("no"))), RangeError);
  assert.equal((await profile(() => 1)).value, 1);
});

Deno.test("measure() gives the most bytes that a block held", async () => {
  const x = ones([256], { backend: cpu() });
  const { value, ms, peakBytes } = await measure(() => {
    using y = add(x, 1);
    using z = add(y, 1);
    return z.shape;
  });
  assert.deepEqual(value, [256]);
  assert(ms >= 0);
  assert(peakBytes >= 2 * 256 * 4 && peakBytes < 3 * 256 * 4);
});
