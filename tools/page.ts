/**
 * `deno task page`: builds examples/browser into dist/page and serves it on this machine.
 *
 *   --port N   8080 when not given, or the next one that is free
 *   --host H   localhost when not given; WebGPU is there only for localhost and https
 */
import { mkdirSync, rmSync } from "node:fs";
import { join } from "node:path";
import process from "node:process";
import { fileURLToPath } from "node:url";
import { parseArgs } from "node:util";
import * as esbuild from "npm:esbuild@0.28.2";
import { readBook } from "../examples/moby_dick.ts";
import { common } from "./bundle.ts";
import { bundleUsed, denoModules } from "./bundle_plugins.ts";

const source = fileURLToPath(new URL("../examples/browser/", import.meta.url));

/** Builds the page into a folder. */
export async function buildPage(folder: string): Promise<void> {
  rmSync(folder, { recursive: true, force: true });
  mkdirSync(folder, { recursive: true });
  const [page, worker, style] = ["page.ts", "worker.ts", "page.css"].map((file) => join(source, file));
  await bundleUsed({
    ...common,
    entryPoints: { page, worker, style },
    entryNames: "[name]",
    chunkNames: "[name]-[hash]",
    outdir: folder,
    minify: true,
    sourcemap: true,
    plugins: [denoModules()],
  });
  await Deno.copyFile(join(source, "index.html"), join(folder, "index.html"));
  const { train, heldOut } = readBook();
  await Deno.writeFile(join(folder, "moby-dick.txt"), train);
  await Deno.writeFile(join(folder, "held-out.txt"), heldOut);
}

const types: Readonly<Record<string, string>> = {
  html: "text/html; charset=utf-8",
  js: "text/javascript; charset=utf-8",
  css: "text/css; charset=utf-8",
  txt: "text/plain; charset=utf-8",
  map: "application/json",
};

/** Serves the files of a folder, and nothing else. */
export function servePage(
  folder: string,
  { port, host }: { port: number; host: string },
): Deno.HttpServer<Deno.NetAddr> {
  const files = new Set([...Deno.readDirSync(folder)].filter((entry) => entry.isFile).map((entry) => entry.name));
  return Deno.serve({ port, hostname: host, onListen: () => {} }, async ({ method, url }) => {
    const name = decodeURIComponent(new URL(url).pathname.slice(1)) || "index.html";
    if (method !== "GET" && method !== "HEAD") return new Response("only GET", { status: 405 });
    if (!files.has(name)) return new Response(`there is no ${name} here\n`, { status: 404 });
    const type = types[name.slice(name.lastIndexOf(".") + 1)] ?? "application/octet-stream";
    const headers = { "content-type": type, "cache-control": "no-cache", "x-content-type-options": "nosniff" };
    return new Response(await Deno.readFile(join(folder, name)), { headers });
  });
}

/** Serves at the port, or at the next one that is free. */
function serveSomewhere(folder: string, port: number, host: string): Deno.HttpServer<Deno.NetAddr> {
  for (let tries = 0;; tries++) {
    try {
      return servePage(folder, { port: port + tries, host });
    } catch (error) {
      if (!(error instanceof Deno.errors.AddrInUse) || tries === 20) throw error;
    }
  }
}

if (import.meta.main) {
  const { values } = parseArgs({
    args: process.argv.slice(2),
    options: { port: { type: "string" }, host: { type: "string" } },
  });
  const port = Number(values.port ?? 8080), host = values.host ?? "localhost";
  if (!Number.isInteger(port) || port < 0 || port > 65535) {
    console.error(`--port is a number from 0 to 65535, got "${values.port}"`);
    process.exit(2);
  }
  const folder = fileURLToPath(new URL("../dist/page", import.meta.url));
  await buildPage(folder);
  await esbuild.stop();
  const { addr } = values.port === undefined ? serveSomewhere(folder, port, host) : servePage(folder, { port, host });
  console.log(`http://${host}:${addr.port}/`);
}
