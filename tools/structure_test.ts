/**
 * The directions that imports may take, and tests beside their modules.
 *
 * A file's room is its top directory; a file at the root is its own room (mod.ts). The rules read the module graphs that
 * `deno info --json` reports, type-only and dynamic imports included.
 */
import assert from "node:assert/strict";
import { existsSync, readdirSync, readFileSync } from "node:fs";
import { pathToFileURL } from "node:url";

type Room = {
  /** Rooms whose files may be imported, besides one's own. */
  rooms: string[];
  /** Public entries only, by the name that a user imports; never a file of the library. */
  publicOnly?: true;
  /** Packages and node: modules. Published code takes neither, but may load a node: module where it turns out to need it. */
  packages?: true;
};

const library = ["tensor", "autograd", "kernels", "nn", "testing"];

const rules: Record<string, Room> = {
  "tensor": { rooms: [] },
  "autograd": { rooms: ["tensor"] },
  "kernels": { rooms: ["tensor"] },
  "nn": { rooms: ["tensor", "autograd"] },
  "testing": { rooms: ["tensor", "autograd"] },
  "define.ts": { rooms: ["tensor", "autograd", "kernels"] },
  "mod.ts": { rooms: [...library, "define.ts"] },
  "bench": { rooms: [], publicOnly: true, packages: true },
  "examples": { rooms: [], publicOnly: true, packages: true },
  "tools": { rooms: ["examples"], publicOnly: true, packages: true },
};

/** Entries that exist for a package: they alone load it, and where it is needed. */
const entryPackages: Record<string, RegExp> = {
  "kernels/dawn.ts": /^npm:\/?webgpu@[\d.]+$/,
};

/** Entries that are all about packages and import them at once: nothing of the library imports such an entry but on demand. */
const packageEntries: Record<string, RegExp> = {
  "nn/llama/tokenizer.ts": /^npm:\/?@huggingface\/(jinja|tokenizers)@[\d.]+$/,
};

/** What a `_test.ts` may import on top of its room's rule. */
const inTests: Room = { rooms: ["testing", "mod.ts", "tools"], packages: true };

/** One import: the file it stands in and what it names, as written and as resolved; paths are relative to the root. */
type Import = { from: string; written: string; to: string; dynamic?: boolean };

const root = new URL("../", import.meta.url);
const relative = (url: string): string => url.startsWith(root.href) ? url.slice(root.href.length) : url;
/** A test at the root is in its module's room. */
const roomOf = (path: string): string => path.split("/")[0].replace(/_test\.ts$/, ".ts");

const config: { name: string; exports: Record<string, string> } = JSON.parse(
  readFileSync(new URL("deno.json", root), "utf8"),
);
const entries = Object.values(config.exports).map((path) => path.replace("./", ""));

/** Whether a file is a test, or part of tests: testing/laws/ is what the tests of the tables are made of, and is not published. */
const isOfTests = (path: string): boolean => path.endsWith("_test.ts") || path.startsWith("testing/laws/");

/** Why an import is against the rules, or null. */
function objection({ from, written, to, dynamic }: Import): string | null {
  const room = roomOf(from), rule = rules[room], isTest = isOfTests(from);
  if (rule === undefined) return `${room} has no rule`;
  if (/^(npm|jsr|node|https?|data|blob):/.test(to)) {
    if (!/^(npm|node):/.test(to)) return "only npm: and node: can be imported";
    if (rule.packages || isTest || packageEntries[from]?.test(to)) return null;
    if (!to.startsWith("node:") && !entryPackages[from]?.test(to)) return "published code has no dependency";
    return dynamic ? null : "a browser could not load it: await import() it where it is needed";
  }
  if (library.includes(room) && !isTest && Object.hasOwn(packageEntries, to) && !dynamic) {
    return "it has dependencies: await import() it where it is needed";
  }
  const target = roomOf(to);
  if (!isTest && isOfTests(to)) return "a test is nobody's dependency";
  if (target === room) return null;
  if (rule.publicOnly && entries.includes(to)) {
    const byName = written === config.name || written.startsWith(`${config.name}/`);
    return byName ? null : `import it as a user does, from ${config.name}`;
  }
  const allowed = isTest ? [...rule.rooms, ...inTests.rooms] : rule.rooms;
  return allowed.includes(target) ? null : `${room} may import ${allowed.join(", ") || "nothing of the rest"}`;
}

const notOurs = /^(\..*|node_modules|out|dist|coverage)$/;

/** The source files under a directory, by their paths from the root. */
function sources(directory: string): string[] {
  return readdirSync(new URL(directory, root), { withFileTypes: true }).flatMap((entry) => {
    const path = `${directory}${entry.name}`;
    if (entry.isDirectory()) return notOurs.test(entry.name) ? [] : sources(`${path}/`);
    return path.endsWith(".ts") ? [path] : [];
  });
}

const everyFile = sources("");

type Dependency = {
  specifier: string;
  isDynamic?: boolean;
  code?: { specifier: string };
  type?: { specifier: string };
};
type Info = { modules: { specifier: string; error?: string; dependencies?: Dependency[] }[] };

/** All imports of the given files. One graph covers everything that its root reaches, so most files cost no call. */
async function importsOf(files: string[]): Promise<Import[]> {
  const imports = new Map<string, Import[]>();
  for (const file of files) {
    if (imports.has(file)) continue;
    const { success, stdout, stderr } = await new Deno.Command(Deno.execPath(), {
      args: ["info", "--json", new URL(file, root).href],
      cwd: root,
    }).output();
    assert.ok(success, `deno info ${file}: ${new TextDecoder().decode(stderr)}`);
    const { modules }: Info = JSON.parse(new TextDecoder().decode(stdout));
    for (const { specifier, error, dependencies = [] } of modules) {
      const from = relative(specifier);
      assert.equal(error, undefined, from);
      const resolved = (each: Dependency) => relative((each.code ?? each.type)?.specifier ?? each.specifier);
      imports.set(
        from,
        dependencies.map((each) => ({
          from,
          written: each.specifier,
          to: resolved(each),
          dynamic: each.isDynamic ?? false,
        })),
      );
    }
  }
  return files.flatMap((file) => imports.get(file) ?? assert.fail(`no graph holds ${file}`));
}

Deno.test("objection() lets imports go one way only", () => {
  const { name } = config;
  const allowed: Import[] = [
    { from: "tensor/norm.ts", written: "./op.ts", to: "tensor/op.ts" },
    { from: "autograd/vjps.ts", written: "../tensor/ops.ts", to: "tensor/ops.ts" },
    { from: "nn/llama/model.ts", written: "../linear.ts", to: "nn/linear.ts" },
    { from: "mod.ts", written: "./kernels/device.ts", to: "kernels/device.ts" },
    { from: "examples/a.ts", written: name, to: "mod.ts" },
    { from: "bench/a.ts", written: `${name}/nn`, to: "nn/mod.ts" },
    { from: "examples/a.ts", written: "@stdlib/x", to: "npm:@stdlib/x@1" },
    { from: "kernels/dawn.ts", written: "npm:webgpu@0.6.2", to: "npm:/webgpu@0.6.2", dynamic: true },
    { from: "nn/files.ts", written: "node:fs/promises", to: "node:fs/promises", dynamic: true },
    { from: "nn/llama/tokenizer.ts", written: "npm:@huggingface/jinja@1.0.0", to: "npm:@huggingface/jinja@1.0.0" },
    { from: "nn/llama/weights.ts", written: "./tokenizer.ts", to: "nn/llama/tokenizer.ts", dynamic: true },
    { from: "tensor/norm_test.ts", written: "../testing/property.ts", to: "testing/property.ts" },
    { from: "tools/page.ts", written: "../examples/moby_dick.ts", to: "examples/moby_dick.ts" },
    { from: "examples/browser/page_test.ts", written: "../../tools/page.ts", to: "tools/page.ts" },
    { from: "kernels/norm_test.ts", written: "../mod.ts", to: "mod.ts" },
    { from: "tensor/norm_test.ts", written: "node:assert/strict", to: "node:assert/strict" },
    { from: "tensor/ops_test.ts", written: "../testing/laws/samples.ts", to: "testing/laws/samples.ts" },
    { from: "testing/laws/loss.ts", written: "node:assert/strict", to: "node:assert/strict" },
  ];
  const refused: Import[] = [
    { from: "tensor/norm.ts", written: "../autograd/tape.ts", to: "autograd/tape.ts" },
    { from: "tensor/norm.ts", written: "../mod.ts", to: "mod.ts" },
    { from: "tensor/norm.ts", written: name, to: "mod.ts" },
    { from: "tensor/norm.ts", written: "./norm_test.ts", to: "tensor/norm_test.ts" },
    { from: "testing/mod.ts", written: "./laws/samples.ts", to: "testing/laws/samples.ts" },
    { from: "testing/laws/loss.ts", written: "../../kernels/loss.ts", to: "kernels/loss.ts" },
    { from: "tensor/norm.ts", written: "node:fs", to: "node:fs" },
    { from: "nn/linear.ts", written: "npm:ms", to: "npm:ms@2", dynamic: true },
    { from: "kernels/device.ts", written: "npm:webgpu@0.6.2", to: "npm:/webgpu@0.6.2", dynamic: true },
    { from: "kernels/dawn.ts", written: "npm:webgpu@0.6.2", to: "npm:/webgpu@0.6.2" },
    { from: "kernels/dawn.ts", written: "npm:ms@2.1.3", to: "npm:/ms@2.1.3", dynamic: true },
    { from: "nn/llama/tokenizer.ts", written: "npm:ms@2", to: "npm:ms@2" },
    { from: "nn/llama/weights.ts", written: "./tokenizer.ts", to: "nn/llama/tokenizer.ts" },
    { from: "kernels/norm.ts", written: "../autograd/tape.ts", to: "autograd/tape.ts" },
    { from: "autograd/vjps.ts", written: "../kernels/norm.ts", to: "kernels/norm.ts" },
    { from: "nn/linear.ts", written: "../kernels/norm.ts", to: "kernels/norm.ts" },
    { from: "tensor/norm_test.ts", written: "../kernels/norm.ts", to: "kernels/norm.ts" },
    { from: "examples/a.ts", written: "../mod.ts", to: "mod.ts" },
    { from: "examples/a.ts", written: "../tools/page.ts", to: "tools/page.ts" },
    { from: "examples/a.ts", written: "../tensor/op.ts", to: "tensor/op.ts" },
    { from: "examples/a.ts", written: "jsr:@std/fs", to: "jsr:@std/fs" },
    { from: "attic/a.ts", written: "../mod.ts", to: "mod.ts" },
  ];
  for (const each of allowed) assert.equal(objection(each), null, JSON.stringify(each));
  for (const each of refused) assert.notEqual(objection(each), null, JSON.stringify(each));
});

Deno.test("importsOf() sees type-only, dynamic and re-exporting imports", async () => {
  const directory = Deno.makeTempDirSync();
  try {
    const at = (name: string) => pathToFileURL(`${directory}/${name}.ts`).href;
    const text = 'import type { A } from "./a.ts"; export type B = A; await import("./b.ts"); export * from "./c.ts";';
    for (const name of ["a", "b", "c"]) Deno.writeTextFileSync(new URL(at(name)), "export type A = 1;");
    Deno.writeTextFileSync(new URL(at("all")), text);
    const seen = (await importsOf([at("all")])).map(({ to, dynamic }) => `${dynamic ? "dynamic " : ""}${to}`);
    assert.deepEqual(seen, [at("a"), `dynamic ${at("b")}`, at("c")]);
  } finally {
    Deno.removeSync(directory, { recursive: true });
  }
});

Deno.test("every import goes the way that its room allows", async () => {
  const objections = (await importsOf(everyFile)).flatMap((each) => {
    const reason = objection(each);
    return reason === null ? [] : [`${each.from} imports ${each.to}: ${reason}`];
  });
  assert.deepEqual(objections, []);
});

Deno.test("every public entry is exported, and exists", () => {
  for (const entry of entries) assert.ok(everyFile.includes(entry), entry);
});

/**
 * A module needs no test of its own when nothing of it is left at run time (types), when it only passes on the names of other modules (every
 * mod.ts), or when it is part of tests.
 */
async function needsTest(file: string): Promise<boolean> {
  if (isOfTests(file) || file.endsWith("/mod.ts")) return false;
  const names: Record<string, unknown> = await import(new URL(file, root).href);
  return Object.keys(names).length > 0;
}

Deno.test("every x.ts of the library has its x_test.ts beside it", async () => {
  const missing: string[] = [];
  for (const file of everyFile.filter((path) => [...library, "define.ts"].includes(roomOf(path)))) {
    if (!existsSync(new URL(file.replace(/\.ts$/, "_test.ts"), root)) && await needsTest(file)) missing.push(file);
  }
  assert.deepEqual(missing, []);
});
