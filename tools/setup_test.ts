import assert from "node:assert/strict";
import { fileURLToPath } from "node:url";
import { type Host, parseArguments, setUp } from "./setup.ts";

/** A machine of our choosing, which writes down what was said and what apt-get was asked to do. */
function machine(
  { os = "linux", debian = true, root = true, adapters = [null], apt = () => true }: {
    os?: string;
    debian?: boolean;
    root?: boolean;
    /** What each look for an adapter finds; the last one stays. */
    adapters?: (string | null)[];
    apt?: (args: string[]) => boolean;
  },
): { host: Host; said: string[]; installed: string[] } {
  const said: string[] = [], installed: string[] = [];
  const host: Host = {
    os,
    findAdapter: () => Promise.resolve(adapters.length > 1 ? adapters.shift() ?? null : adapters[0]),
    isRoot: () => root,
    isDebian: () => Promise.resolve(debian),
    aptGet(args) {
      assert.ok(said.some((line) => line.includes("--no-setup")), "said what happens before it does");
      const ok = apt(args);
      if (ok && args.includes("install")) installed.push(...args.slice(args.indexOf("--no-install-recommends") + 1));
      return Promise.resolve({ ok, output: `E: no ${args.includes("update") ? "list" : "package"}` });
    },
    say: (line) => void said.push(line),
  };
  return { host, said, installed };
}

const demo = { requireGpu: false, noSetup: false, command: [] };
const test = { requireGpu: true, noSetup: false, command: [] };

Deno.test("parseArguments() takes --no-setup from wherever it stands and passes the rest on", () => {
  assert.deepEqual(parseArguments(["--require-gpu", "deno", "test", "--filter", "x", "--no-setup"]), {
    requireGpu: true,
    noSetup: true,
    command: ["deno", "test", "--filter", "x"],
  });
  assert.deepEqual(parseArguments(["deno", "run", "a.ts", "--require-gpu"]), {
    requireGpu: false,
    noSetup: false,
    command: ["deno", "run", "a.ts", "--require-gpu"],
  });
});

Deno.test("parseArguments() lets a program load native modules when it is told --provider dawn", () => {
  const commandOf = (...args: string[]) => parseArguments(args).command;
  const given = ["deno", "run", "--allow-read", "a.ts"], may = ["deno", "run", "--allow-ffi", "--allow-read", "a.ts"];
  for (const dawn of [["--provider", "dawn"], ["--provider=dawn"]]) {
    assert.deepEqual(commandOf(...given, ...dawn), [...may, ...dawn]);
  }
  for (const other of [["--provider", "deno"], ["dawn"], ["--text", "dawn", "--provider"]]) {
    assert.deepEqual(commandOf(...given, ...other), [...given, ...other]);
  }
  assert.deepEqual(commandOf("deno", "test", "--provider=dawn"), ["deno", "test", "--provider=dawn"]);
});

Deno.test("setUp() is silent and changes nothing where there is an adapter", async () => {
  const { host, said, installed } = machine({ adapters: ["a card"] });
  assert.equal(await setUp(host, test), true);
  assert.deepEqual([said, installed], [[], []]);
});

Deno.test("setUp() installs Mesa's driver on Debian as root, having said so", async () => {
  for (const options of [demo, test]) {
    const { host, said, installed } = machine({ adapters: [null, "llvmpipe"] });
    assert.equal(await setUp(host, options), true);
    assert.deepEqual(installed, ["mesa-vulkan-drivers", "libvulkan1"]);
    assert.match(said.join("\n"), /Ready: llvmpipe/);
  }
});

Deno.test("setUp() installs even when a package list could not be read", async () => {
  const { host, installed } = machine({ adapters: [null, "llvmpipe"], apt: (args) => !args.includes("update") });
  assert.equal(await setUp(host, test), true);
  assert.equal(installed.length, 2);
});

Deno.test("setUp() shows why apt-get failed; the demo goes on, the tests do not", async () => {
  for (const options of [demo, test]) {
    const { host, said } = machine({ apt: () => false });
    assert.equal(await setUp(host, options), !options.requireGpu);
    assert.match(said.join("\n"), /E: no list\nE: no package/);
  }
});

Deno.test("setUp() installs nothing without root, off Debian, on other systems, or after --no-setup", async () => {
  const cases = [
    { on: { root: false }, help: /sudo apt-get update && sudo apt-get install .* mesa-vulkan-drivers libvulkan1/ },
    { on: { debian: false }, help: /Install a Vulkan driver/ },
    { on: { os: "darwin" }, help: /Update the graphics driver/ },
    { on: { os: "windows" }, help: /Update the graphics driver/ },
    { on: {}, noSetup: true, help: /apt-get update && apt-get install .* mesa-vulkan-drivers libvulkan1/ },
  ];
  for (const { on, noSetup = false, help } of cases) {
    const tests = machine(on);
    assert.equal(await setUp(tests.host, { ...test, noSetup }), false);
    assert.match(tests.said.join("\n"), help);
    const run = machine(on);
    assert.equal(await setUp(run.host, { ...demo, noSetup }), true);
    assert.match(run.said.join("\n"), /CPU backend/);
    assert.deepEqual([tests.installed, run.installed], [[], []]);
  }
});

/** The whole program on this machine, where the Vulkan loader is told to find nothing if `blind`. */
async function setupProgram(args: string[], blind: boolean): Promise<{ code: number; output: string }> {
  const { code, stdout, stderr } = await new Deno.Command(Deno.execPath(), {
    args: [
      ...["run", "--quiet", "--allow-run", "--allow-env", "--allow-read", "--allow-sys=uid"],
      fileURLToPath(new URL("./setup.ts", import.meta.url)),
      ...args,
    ],
    env: blind ? { VK_DRIVER_FILES: "/none", VK_ICD_FILENAMES: "/none", DENO_WEBGPU_BACKEND: "vulkan" } : {},
  }).output();
  return { code, output: new TextDecoder().decode(stdout) + new TextDecoder().decode(stderr) };
}

Deno.test("setup.ts hands the command its arguments, and hands back its exit code", async () => {
  const { code, output } = await setupProgram([
    "deno",
    "eval",
    "console.log(Deno.args.join()); Deno.exit(7)",
    "a",
    "b c",
  ], false);
  assert.deepEqual({ code, output: output.trim() }, { code: 7, output: "a,b c" });
});

Deno.test("setup.ts --require-gpu refuses to run a command without an adapter", async () => {
  const { code, output } = await setupProgram(
    ["--require-gpu", "deno", "eval", "console.log('ran')", "--no-setup"],
    true,
  );
  assert.equal(code, 1);
  assert.match(output, /No WebGPU adapter was found/);
  assert.doesNotMatch(output, /ran$/m);
});

Deno.test("setup.ts runs a command that can do without an adapter, and says so", async () => {
  const { code, output } = await setupProgram(["deno", "eval", "console.log('ran')", "--no-setup"], true);
  assert.equal(code, 0);
  assert.match(output, /CPU backend/);
  assert.match(output, /^ran$/m);
});
