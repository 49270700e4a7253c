import assert from "node:assert/strict";
import { getBackend } from "@flashtape/flashtape";
import { deviceUsage, openDevice } from "./device.ts";

Deno.test("openDevice() opens what was asked for, and makes it the default", async () => {
  for (const provider of ["deno", "dawn"] as const) {
    assert.equal((await openDevice({ backend: "cpu", provider })).name, "cpu");
    assert.equal(getBackend().name, "cpu");
  }
  const opened = await openDevice({ backend: "auto", provider: "deno" });
  assert.equal(getBackend(), opened);
});

Deno.test("openDevice() by Dawn reaches the adapter that Dawn finds, with its matrix units, or says that there is none", async () => {
  const { dawn } = await import("@flashtape/flashtape/dawn");
  const adapter = await dawn().requestAdapter();
  const opening = openDevice({ backend: "webgpu", provider: "dawn" });
  if (adapter === null) return await assert.rejects(opening, /no WebGPU adapter/);
  const { name, capabilities } = await opening;
  assert.equal(name, "webgpu");
  const has = adapter.features.has("chromium-experimental-subgroup-matrix" as GPUFeatureName);
  assert.equal(capabilities.subgroupMatrix.length > 0, has);
});

Deno.test("deviceUsage() explains in the column of a program's other flags", () => {
  for (const line of deviceUsage(26).trimEnd().split("\n")) assert.match(line, /^.{25} \S/);
});
