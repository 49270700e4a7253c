import assert from "node:assert/strict";
import { type Backend, cpu } from "@flashtape/flashtape";
import { UsageError } from "./files.ts";
import { scaleOn } from "./ground.ts";

const gib = 2 ** 30;

function context(description: string, maxBinding: number, memoryLimit?: number): Parameters<typeof scaleOn>[0] {
  const host = cpu();
  const name: Backend["name"] = description === host.description ? "cpu" : "webgpu";
  return {
    backend: { name, description, capabilities: { ...host.capabilities, maxBinding } },
    settings: { memoryLimit },
  };
}

Deno.test("scaleOn() shrinks the large cases to what one binding and the memory hold", () => {
  assert.equal(scaleOn(context("A card", 4 * gib), undefined), 1);
  assert.equal(scaleOn(context("A card", gib / 8), undefined), 1 / 8);
  assert.equal(scaleOn(context("A card", 4 * gib, 1), undefined), 1 / 4);
  assert.equal(scaleOn(context("A card", gib / 8), 1 / 16), 1 / 16);
});

Deno.test("scaleOn() spares processors that play the GPU", () => {
  const host = cpu();
  assert.equal(scaleOn(context("Mesa llvmpipe (256 bits)", gib / 8, 16), undefined), 1 / 64);
  assert.equal(scaleOn(context(host.description, Infinity, 16), undefined), 1 / 1024);
});

Deno.test("scaleOn() refuses a scale that does not fit, with what does", () => {
  assert.throws(() => scaleOn(context("A card", gib / 8), 1), (error) => {
    assert(error instanceof UsageError);
    assert.match(error.message, /--scale 1 needs 4\.0 GiB in all, 1\.0 GiB in one tensor\. Allowed .*: at most 0\.125/);
    return true;
  });
});
