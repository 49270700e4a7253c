import assert from "node:assert/strict";
import { getBackend } from "../tensor/backend.ts";
import { tensor } from "../tensor/create.ts";
import { UnsupportedError, ValueError } from "../tensor/errors.ts";
import { needAdapter } from "../testing/laws/adapter.ts";
import { init } from "./init.ts";

const none = { requestAdapter: () => Promise.resolve(null) } as Partial<GPU> as GPU;

Deno.test("init() makes the backend that it opens the one that creators use", async () => {
  const gpu = await needAdapter(init({ backend: "webgpu" }));
  assert.equal(getBackend(), gpu);
  assert.equal(gpu.name, "webgpu");
  assert.equal(tensor([1]).backend, gpu);
  const cpu = await init({ backend: "cpu" });
  assert.equal(getBackend(), cpu);
  assert.equal(tensor([1]).backend.name, "cpu");
  gpu.dispose();
});

Deno.test('init({ backend: "auto" }) takes WebGPU where there is an adapter, else the CPU', async () => {
  const gpu = await needAdapter(init());
  assert.equal(gpu.name, "webgpu");
  assert.equal((await init({ gpu: none })).name, "cpu");
  assert.equal(getBackend().name, "cpu");
  gpu.dispose();
});

Deno.test('init({ backend: "webgpu" }) without an adapter is refused, and the default stays', async () => {
  const before = await init({ backend: "cpu" });
  await assert.rejects(init({ backend: "webgpu", gpu: none }), UnsupportedError);
  assert.equal(getBackend(), before);
});

Deno.test('init({ backend: "auto" }) does not hide an error that is no lack of an adapter', async () => {
  const broken = { requestAdapter: () => Promise.reject(new RangeError("broken")) } as Partial<GPU> as GPU;
  await assert.rejects(init({ gpu: broken }), RangeError);
});

Deno.test("init() refuses a backend that it does not know, by name", async () => {
  const options: Record<string, string> = { backend: "cuda" };
  await assert.rejects(init(options), (error: Error) => {
    assert(error instanceof ValueError);
    assert.match(error.message, /^\[init\] .*"auto", "webgpu" or "cpu", got "cuda"/);
    return true;
  });
});
