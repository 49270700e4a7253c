/**
 * `deno task bundle`: the library as ES modules for a page, minified, with source maps, in dist/.
 *
 *   flashtape.js   mod.ts: tensors, gradients, the CPU backend ─┐
 *   nn.js          ./nn                                         ├─ share chunks/…, so both see the same tensors
 *   chunks/        the kernels, which init() loads where there ─┘
 *                  is WebGPU; tokenizers, which llama.load() loads
 *
 * Prints the sizes and keeps them in docs/browser.md. `deno task bundle page.ts --out=page.js` bundles a program of
 * yours instead, with the kernels and derivatives alone that it can reach.
 */
import { rmSync } from "node:fs";
import { relative, resolve } from "node:path";
import process from "node:process";
import { fileURLToPath } from "node:url";
import { parseArgs } from "node:util";
import { gzipSync } from "node:zlib";
import * as esbuild from "npm:esbuild@0.28.2";
import { bundleUsed, denoModules } from "./bundle_plugins.ts";

const root = fileURLToPath(new URL("../", import.meta.url));

/** What all bundles have in common. */
export const common = {
  absWorkingDir: root,
  bundle: true,
  format: "esm",
  target: "es2022",
  platform: "browser",
  splitting: true,
  metafile: true,
  external: ["node:*"], // only behind import(), which a page never reaches
  logLevel: "warning",
} as const satisfies esbuild.BuildOptions;

/** The library's bundle; nothing is written unless asked. */
export async function bundleLibrary(options: esbuild.BuildOptions = {}): Promise<esbuild.BuildResult> {
  return await esbuild.build({
    ...common,
    entryPoints: { flashtape: "mod.ts", nn: "nn/mod.ts" },
    outdir: "dist",
    chunkNames: "chunks/[name]-[hash]",
    minify: true,
    sourcemap: true,
    write: false,
    plugins: [denoModules()],
    ...options,
  });
}

/** What a page loads for one purpose. */
export interface Part {
  readonly name: string;
  readonly files: readonly string[];
  readonly bytes: number;
  /** The same as it travels. */
  readonly gzip: number;
}

/** Splits a library bundle by what makes a page load it; each file counts where it comes first. */
export function partsOf({ metafile, outputFiles }: esbuild.BuildResult): Part[] {
  const { outputs } = metafile!;
  const counted = new Set<string>();
  const closure = (path: string): string[] => {
    if (counted.has(path) || outputs[path] === undefined) return [];
    counted.add(path);
    const loads = outputs[path].imports.filter(({ kind }) => kind === "import-statement");
    return [path, ...loads.flatMap((each) => closure(each.path))];
  };
  const find = (what: (path: string) => boolean) => Object.keys(outputs).filter((p) => p.endsWith(".js") && what(p));
  const entry = (source: string) => find((path) => outputs[path].entryPoint === source);
  const part = (name: string, roots: readonly string[]): Part => {
    const files = roots.flatMap(closure);
    const contents = files.map((path) => outputFiles!.find((f) => relative(root, f.path) === path)!.contents);
    return {
      name,
      files,
      bytes: contents.reduce((sum, { length }) => sum + length, 0),
      gzip: contents.reduce((sum, bytes) => sum + gzipSync(bytes).length, 0),
    };
  };
  return [
    part("core: `flashtape.js`", entry("mod.ts")),
    part("WebGPU kernels, loaded by `init()` where there is WebGPU", entry("kernels/webgpu.ts")),
    part("`nn.js`", entry("nn/mod.ts")),
    part("tokenizers, loaded by `llama.load()`", find(() => true)),
  ].filter(({ files }) => files.length > 0);
}

/** The most that a page may load to have tensors and gradients, in bytes. */
export const coreLimit = 120_000;

const kilo = (bytes: number): string => `${(bytes / 1e3).toFixed(1)} kB`;

/** The parts as a Markdown table. */
export function tableOf(parts: readonly Part[]): string {
  const rows = [["part", "minified", "gzip"], ...parts.map((p) => [p.name, kilo(p.bytes), kilo(p.gzip)])];
  const widths = [0, 1, 2].map((column) => Math.max(...rows.map((row) => row[column].length)));
  const line = (row: readonly string[], fill = " ") =>
    `| ${row.map((cell, i) => i === 0 ? cell.padEnd(widths[i], fill) : cell.padStart(widths[i], fill)).join(" | ")} |`;
  const rule = `| ${widths.map((w, i) => i === 0 ? "-".repeat(w) : `${"-".repeat(w - 1)}:`).join(" | ")} |`;
  return [line(rows[0]), rule, ...rows.slice(1).map((row) => line(row))].join("\n");
}

const [opening, closing] = ["<!-- sizes: written by deno task bundle -->", "<!-- end of sizes -->"];

/** A text with the table between its marks. */
export function withTable(text: string, table: string): string {
  const [before, rest] = text.split(opening), after = rest?.split(closing)[1];
  if (after === undefined) throw new Error(`there are no marks "${opening}" and "${closing}"`);
  return `${before}${opening}\n\n${table}\n\n${closing}${after}`;
}

async function main(): Promise<void> {
  const { values, positionals } = parseArgs({
    args: process.argv.slice(2),
    allowPositionals: true,
    options: { out: { type: "string" } },
  });
  if (positionals.length > 0) {
    const outfile = resolve(values.out ?? "dist/page.js");
    const { splitting: _, ...rest } = common;
    const { result, ops } = await bundleUsed({
      ...rest,
      entryPoints: [resolve(positionals[0])],
      outfile,
      minify: true,
      sourcemap: true,
      plugins: [denoModules()],
    });
    const output = result.metafile!.outputs[relative(root, outfile)];
    console.log(`${outfile}: ${kilo(output.bytes)}, with ${ops.length} ops: ${ops.join(" ")}`);
    return;
  }
  rmSync(new URL("../dist/chunks", import.meta.url), { recursive: true, force: true });
  const result = await bundleLibrary();
  for (const { path, contents } of result.outputFiles!) {
    await Deno.mkdir(resolve(path, ".."), { recursive: true });
    await Deno.writeFile(path, contents);
  }
  const parts = partsOf(result), table = tableOf(parts);
  console.log(`dist/\n\n${table}`);
  const doc = new URL("../docs/browser.md", import.meta.url);
  const text = await Deno.readTextFile(doc), now = withTable(text, table);
  if (now !== text) await Deno.writeTextFile(doc, now);
  if (parts[0].bytes > coreLimit) {
    console.error(`the core is ${kilo(parts[0].bytes)}, more than ${kilo(coreLimit)}`);
    process.exitCode = 1;
  }
}

if (import.meta.main) {
  await main();
  await esbuild.stop();
}
