import assert from "node:assert/strict";
import { ValueError } from "../tensor/errors.ts";
import { dawn } from "./dawn.ts";

// The tests' process goes on after this file.
globalThis.addEventListener("unload", (event) => event.stopImmediatePropagation());

Deno.test("dawn() gives a GPU that answers, with or without robustness", async () => {
  for (const robustness of [true, false]) {
    const adapter = await dawn({ robustness }).requestAdapter(); // null where Dawn finds the driver too old
    assert.ok(adapter === null || adapter.limits.maxComputeWorkgroupStorageSize > 0);
  }
});

Deno.test("dawn() refuses options that are none", () => {
  for (const options of [{ robustness: 1 }, { robustness: null }, { backend: "opengl" }, { backend: "" }]) {
    assert.throws(() => dawn(options as unknown as Parameters<typeof dawn>[0]), (error: Error) => {
      assert.ok(error instanceof ValueError);
      assert.match(
        error.message,
        /^\[dawn\] (robustness is true or false|backend is "vulkan", "metal" or "d3d12"), got/,
      );
      return true;
    });
  }
});

/** Runs a program that imports dawn. */
async function program(body: string, env: Record<string, string> = {}): Promise<{ code: number; text: string }> {
  const file = await Deno.makeTempFile({ suffix: ".ts" });
  await Deno.writeTextFile(file, `import { dawn } from ${JSON.stringify(import.meta.resolve("./dawn.ts"))};\n${body}`);
  const { code, stdout, stderr } = await new Deno.Command(Deno.execPath(), {
    args: [
      "run",
      "--quiet",
      "--no-check",
      "--no-lock",
      "--no-prompt",
      "--allow-env",
      "--allow-read",
      "--allow-ffi",
      file,
    ],
    env,
  }).output();
  await Deno.remove(file);
  return { code, text: new TextDecoder().decode(stdout) + new TextDecoder().decode(stderr) };
}

Deno.test("a program that used Dawn ends by itself with its exit code", async () => {
  const { code, text } = await program("await dawn().requestAdapter(); console.log('done'); Deno.exitCode = 7;");
  assert.deepEqual([code, text.match(/done/)?.[0]], [7, "done"], text);
});

Deno.test("dawn() says why there is no native module, naming DAWN_NODE's file, and how to install one", async () => {
  const { code, text } = await program("dawn();", { DAWN_NODE: "/nowhere/dawn.node" });
  assert.equal(code, 1);
  assert.match(text, /UnsupportedError: \[dawn\] .*\/nowhere\/dawn\.node/);
  assert.match(text, /npm install webgpu@\d.*--allow-ffi.*DAWN_NODE/s);
});
