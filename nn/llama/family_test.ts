/**
 * Small checkpoints as transformers 5.17 writes them, with random weights, and the logits that it computes from each
 * directory in f64.
 */
import assert from "node:assert/strict";
import { cp, mkdtemp, readFile, rm, writeFile } from "node:fs/promises";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { webgpu } from "../../mod.ts";
import type { Backend } from "../../tensor/backend.ts";
import { cpu } from "../../tensor/cpu.ts";
import { needAdapter } from "../../testing/laws/adapter.ts";
import { safetensors } from "../mod.ts";
import { forward, type LlamaConfig, load, type LoadOptions } from "./mod.ts";

const gpu = await needAdapter(webgpu());
const fixtures = new URL("../fixtures/", import.meta.url);

const family = [
  { name: "llama-f16-sharded", what: "f16, untied, three heads of 10 on one key/value head, in five files" },
  { name: "llama-bf16-linear", what: "bf16, tied, grouped heads, positions stretched in a line" },
  { name: "llama-f32-llama3", what: "f32, untied, five heads of 6, Llama 3.2's stretched positions" },
];

/** How far the logits of a directory are from its fixture's. */
async function distance(dir: string | URL, backend: Backend, options: LoadOptions = {}): Promise<number> {
  const { params, config } = await load(dir, { ...options, backend });
  const place = dir instanceof URL ? new URL("expected.safetensors", dir) : join(dir, "expected.safetensors");
  const expected = await safetensors.read(place, { backend });
  const [got, want] = await Promise.all(
    [forward(params, config, expected.input_ids).logits, expected.logits].map((x) => x.data()),
  );
  assert.equal(got.length, want.length);
  return Array.from(want, (x, i) => Math.abs(x - got[i])).reduce((a, b) => Math.max(a, b));
}

for (const { name, what } of family) {
  Deno.test(`${name} gives transformers' logits: ${what}`, async () => {
    const dir = new URL(`${name}/`, fixtures);
    for (const [backend, dtype] of [[cpu(), "f32"], [gpu, "f32"], [gpu, undefined]] as const) {
      const off = await distance(dir, backend, { dtype });
      assert(off < 2e-5, `${backend.name} in ${dtype ?? "its own type"} is off by ${off}`);
    }
  });
}

Deno.test("the older keys of a config say the same", async () => {
  const folder = await mkdtemp(join(tmpdir(), "flashtape-"));
  try {
    for (const { name } of family) {
      const dir = join(folder, name);
      await cp(new URL(name, fixtures), dir, { recursive: true });
      const { rope_parameters, ...config }: LlamaConfig = JSON.parse(await readFile(join(dir, "config.json"), "utf8"));
      const { rope_theta, rope_type, ...scaling } = rope_parameters!;
      const older = rope_type === "default" ? null : { type: rope_type, ...scaling };
      await writeFile(join(dir, "config.json"), JSON.stringify({ ...config, rope_theta, rope_scaling: older }));
      const off = await distance(dir, cpu(), { dtype: "f32" });
      assert(off < 2e-5, `${name} is off by ${off}`);
    }
  } finally {
    await rm(folder, { recursive: true });
  }
});
