/** What esbuild is told about this library: where its imports lie, and which ops a program can reach. */
import { readFileSync } from "node:fs";
import { dirname } from "node:path";
import { fileURLToPath } from "node:url";
import { type Node, parse, type Property } from "npm:acorn@8.19.0";
import * as esbuild from "npm:esbuild@0.28.2";

const root = new URL("../", import.meta.url);
const inRoot = (path: string): string => fileURLToPath(new URL(path, root));

type Config = { name: string; exports: Record<string, string> };
type Package = { name: string; version: string; localPath: string };

/** The npm packages that modules reach, by name, as Deno has them on disk. */
async function packagesOf(entries: readonly string[]): Promise<Map<string, Package>> {
  const found = new Map<string, Package>();
  for (const entry of entries.filter((path) => path.endsWith(".ts"))) {
    const { success, stdout, stderr } = await new Deno.Command(Deno.execPath(), {
      args: ["info", "--json", entry],
      cwd: fileURLToPath(root),
      env: { NO_COLOR: "1" },
    }).output();
    if (!success) throw new Error(`deno info ${entry}: ${new TextDecoder().decode(stderr)}`);
    const { npmPackages }: { npmPackages?: Record<string, Package> } = JSON.parse(new TextDecoder().decode(stdout));
    for (const each of Object.values(npmPackages ?? {})) found.set(each.name, each);
  }
  return found;
}

/**
 * Resolves what Deno resolves: this library by its name, and `npm:` packages from Deno's cache.
 * @param external packages that stay imports; what a page never runs
 */
export function denoModules(external: readonly string[] = []): esbuild.Plugin {
  const { name: library, exports }: Config = JSON.parse(readFileSync(inRoot("deno.json"), "utf8"));
  return {
    name: "deno-modules",
    setup(build) {
      const given = build.initialOptions.entryPoints ?? [];
      const own = Array.isArray(given) ? given.map((e) => typeof e === "string" ? e : e.in) : Object.values(given);
      const entries = [...new Set([...own, exports["."], exports["./nn"]])];
      let packages: Promise<Map<string, Package>> | null = null;
      build.onResolve({ filter: new RegExp(`^${library}(/|$)`) }, ({ path }) => {
        const target = exports[`.${path.slice(library.length)}`];
        return target === undefined ? { errors: [{ text: `${path} is no export` }] } : { path: inRoot(target) };
      });
      build.onResolve({ filter: /^(npm:|[\w@])/ }, async ({ path, kind, importer, resolveDir }) => {
        if (kind === "entry-point" || path.startsWith("node:")) return null;
        const [, name, version, rest = ""] = /^(?:npm:\/?)?((?:@[^/@]+\/)?[^/@]+)(?:@([^/]+))?(\/.*)?$/.exec(path) ??
          [];
        if (name === undefined) return null;
        if (external.includes(name)) return { path, external: true };
        const found = (await (packages ??= packagesOf(entries))).get(name);
        if (found !== undefined && (version === undefined || version === found.version)) {
          const at = { resolveDir: found.localPath, importer, kind };
          return await build.resolve(rest === "" ? "./" : `.${rest}`, at);
        }
        const why = found === undefined ? "is in no module graph of the entries" : `is at ${found.version} there`;
        return path.startsWith("npm:") ? { errors: [{ text: `${path} ${why} (${resolveDir})` }] } : null;
      });
    },
  };
}

/** Tables over the names of all ops: a kernel each, a derivative each. */
const tables: Readonly<Record<string, string>> = { "kernels/lowerings.ts": "lowerings", "autograd/vjps.ts": "vjps" };

/** The entries of an object that a module exports, in its source. */
function entriesOf(source: string, name: string): { from: number; to: number; properties: readonly Property[] } {
  for (const node of parse(source, { ecmaVersion: "latest", sourceType: "module" }).body) {
    const declared = node.type === "ExportNamedDeclaration" ? node.declaration : node;
    if (declared?.type !== "VariableDeclaration") continue;
    const { init } = declared.declarations.find(({ id }) => id.type === "Identifier" && id.name === name) ?? {};
    if (init?.type !== "ObjectExpression") continue;
    const properties = init.properties.filter((p) => p.type === "Property");
    if (properties.length < init.properties.length) throw new Error(`${name} is spread together: list its entries`);
    return { from: init.start, to: init.end, properties };
  }
  throw new Error(`there is no object ${name}`);
}

function keyOf({ key }: Property): string {
  if (key.type !== "Identifier") throw new Error("a table's keys are plain names");
  return key.name;
}

async function stripped(path: string): Promise<string> {
  const source = await Deno.readTextFile(inRoot(path));
  return (await esbuild.transform(source, { loader: "ts", target: "esnext" })).code;
}

/** The name of the constant that holds each op's record, from the table of all ops. */
async function records(): Promise<Map<string, string>> {
  const { properties } = entriesOf(await stripped("tensor/ops.ts"), "ops");
  const constant = (value: Node): string => {
    const { type, name, property } = value as Node & { name?: string; property?: { name?: string } };
    const found = type === "MemberExpression" ? property?.name : name;
    return found ?? fail(`the table of ops holds a ${type}`);
  };
  return new Map(properties.map((p) => [keyOf(p), constant(p.value)]));
}

function fail(message: string): never {
  throw new Error(message);
}

/** Leaves only the given ops in the two tables. */
function onlyOps(alive: ReadonlySet<string>): esbuild.Plugin {
  return {
    name: "only-ops",
    setup(build) {
      for (const [path, name] of Object.entries(tables)) {
        const file = inRoot(path);
        const filter = new RegExp(`${path.replaceAll(".", "\\.")}$`);
        build.onLoad({ filter }, async (args) => {
          if (args.path !== file) return null;
          const source = await stripped(path);
          const { from, to, properties } = entriesOf(source, name);
          const kept = properties.filter((p) => alive.has(keyOf(p))).map((p) => source.slice(p.start, p.end));
          const contents = `${source.slice(0, from)}{\n${kept.join(",\n")}\n}${source.slice(to)}`;
          return { contents, loader: "js", resolveDir: dirname(file) };
        });
      }
    },
  };
}

/** Constants at the top of a module. */
function constantsOf(source: string): Set<string> {
  const names = new Set<string>();
  for (const node of parse(source, { ecmaVersion: "latest", sourceType: "module" }).body) {
    if (node.type !== "VariableDeclaration") continue;
    // esbuild numbers a name that stands in two modules.
    for (const { id } of node.declarations) if (id.type === "Identifier") names.add(id.name.replace(/\d+$/, ""));
  }
  return names;
}

/**
 * Bundles a program with the kernels and derivatives of those ops alone that it can reach.
 *
 * Ops meet their kernels and derivatives by name, in tables over all ops; a bundler that sees a table sees all of it.
 * So the tables start out empty, and each round adds the entries of the ops whose records the bundle now holds,
 * until a round adds none: derivatives may reach further ops.
 */
export async function bundleUsed(
  options: esbuild.BuildOptions,
): Promise<{ result: esbuild.BuildResult; ops: string[] }> {
  const constants = await records(), { plugins = [] } = options;
  let alive = new Set<string>();
  for (;;) {
    const draft = await esbuild.build({
      ...options,
      write: false,
      minify: false,
      sourcemap: false,
      plugins: [onlyOps(alive), ...plugins],
    });
    const held = new Set(
      draft.outputFiles.filter((f) => !f.path.endsWith(".css")).flatMap((f) => [...constantsOf(f.text)]),
    );
    const next = new Set([...constants].flatMap(([op, constant]) => held.has(constant) ? [op] : []));
    if (next.size === alive.size) break;
    alive = next;
  }
  const result = await esbuild.build({ ...options, plugins: [onlyOps(alive), ...plugins] });
  return { result, ops: [...alive].sort() };
}
