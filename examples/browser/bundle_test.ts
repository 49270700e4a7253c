/** What a page loads: nothing of Deno or Node, no more than is promised, and only the kernels that it can reach. */
import assert from "node:assert/strict";
import { fileURLToPath } from "node:url";
import * as esbuild from "npm:esbuild@0.28.2";
import { bundleLibrary, common, coreLimit, partsOf, tableOf, withTable } from "../../tools/bundle.ts";
import { bundleUsed, denoModules } from "../../tools/bundle_plugins.ts";

const folder = fileURLToPath(new URL("./", import.meta.url));

/** Bundles the text of a program that lies in this folder. */
async function bundleProgram(contents: string): Promise<{ text: string; ops: string[]; inputs: Map<string, number> }> {
  const { splitting: _, ...rest } = common;
  const { result, ops } = await bundleUsed({
    ...rest,
    stdin: { contents, loader: "ts", resolveDir: folder, sourcefile: "program.ts" },
    minify: true,
    write: false,
    plugins: [denoModules()],
  });
  const [output] = Object.values(result.metafile!.outputs);
  const inputs = new Map(Object.entries(output.inputs).map(([path, { bytesInOutput }]) => [path, bytesInOutput]));
  return { text: result.outputFiles![0].text, ops, inputs };
}

Deno.test("the library's bundle is small enough, and names nothing of Deno or Node that a page would load", async () => {
  const result = await bundleLibrary();
  const parts = partsOf(result), [core, kernels, nn] = parts;
  assert.ok(core.bytes < coreLimit, `the core is ${core.bytes} bytes, the limit ${coreLimit}`);
  assert.ok(core.files.includes("dist/flashtape.js") && nn.files.includes("dist/nn.js"));
  assert.ok(kernels.bytes > core.bytes / 2, "the kernels are a part of their own");
  for (const [path, { imports }] of Object.entries(result.metafile!.outputs)) {
    const outside = imports.filter((each) => each.external);
    for (const { kind, path: to } of outside) {
      assert.ok(kind === "dynamic-import" && to.startsWith("node:"), `${path} has an ${kind} of ${to}`);
    }
  }
  const sources = Object.keys(result.metafile!.inputs);
  assert.deepEqual(sources.filter((path) => /_test\.ts$|^testing\/|^bench\/|dawn/.test(path)), []);
  assert.match(
    withTable("a\n<!-- sizes: written by deno task bundle -->\n<!-- end of sizes -->\nb", tableOf(parts)),
    /kB/,
  );
});

Deno.test("a page that only uses matmul and grad leaves the attention kernels out, and works", async () => {
  const program = `
    import { cpu, grad, init, matmul, sum, type Tensor, tensor } from "@flashtape/flashtape";
    const { name } = await init();
    const x = tensor([[1, 2], [3, 4]]);
    console.log(name, JSON.stringify(await grad((x: Tensor) => sum(matmul(x, x)))(x).array()));
    Deno.exit();`;
  const { text, ops, inputs } = await bundleProgram(program);
  assert.ok(ops.includes("matmul") && !ops.includes("attention") && !ops.includes("linearCrossEntropy"), ops.join());
  for (const [path, bytes] of inputs) {
    // A constant or two at the top of a module may stay.
    if (/attention|loss|rotary|update/.test(path)) assert.ok(bytes < 200, `${path} has ${bytes} bytes`);
  }
  const everything = partsOf(await bundleLibrary()).slice(0, 2).reduce((sum, { bytes }) => sum + bytes, 0);
  assert.ok(text.length < 0.6 * everything, `${text.length} of ${everything} bytes`);
  const file = Deno.makeTempFileSync({ suffix: ".js" });
  try {
    Deno.writeTextFileSync(file, text);
    const { stdout } = await new Deno.Command(Deno.execPath(), { args: ["run", "--quiet", "--no-config", file] })
      .output();
    assert.equal(new TextDecoder().decode(stdout).trim(), "webgpu [[7,11],[9,13]]");
  } finally {
    Deno.removeSync(file);
  }
});

Deno.test("a page that uses attention and its gradient has their kernels, and those alone of the heavy ones", async () => {
  const { ops, inputs } = await bundleProgram(`
    import { flashAttention, grad, init, sum, tensor } from "@flashtape/flashtape";
    await init();
    const q = tensor([[[[1, 2]]]]);
    await grad((q) => sum(flashAttention(q, q, q)))(q).array();`);
  assert.ok(ops.includes("attention") && ops.includes("attentionBackward") && !ops.includes("adamwUpdate"), ops.join());
  assert.ok(inputs.get("kernels/attention_forward.ts")! > 1000);
});

Deno.test("a program that asks for a package or an entry that is not there does not bundle", async () => {
  for (const missing of ["npm:nothing-of-this-name@1.0.0", "@flashtape/flashtape/nothing"]) {
    const build = esbuild.build({
      ...common,
      stdin: { contents: `import "${missing}"`, resolveDir: folder },
      outdir: "dist",
      write: false,
      logLevel: "silent",
      plugins: [denoModules()],
    });
    await assert.rejects(build, (error: Error) => error.message.includes(missing));
  }
});

globalThis.addEventListener("unload", () => void esbuild.stop());
