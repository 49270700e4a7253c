/** The library in Chromium: the laws, the same numbers as in Deno, and how soon the first of them is there. */
import assert from "node:assert/strict";
import { fileURLToPath } from "node:url";
import * as esbuild from "npm:esbuild@0.28.2";
import type { Browser, Page } from "npm:playwright-core@1.65.1";
import { cpu, setBackend, webgpu } from "@flashtape/flashtape";
import { bundleLibrary, common } from "../../tools/bundle.ts";
import { denoModules } from "../../tools/bundle_plugins.ts";
import { openBrowser } from "../../tools/page_browser.ts";
import type { Finding } from "../../testing/laws/page.ts";
import { assertSoon } from "./bare_page.ts";
import * as checks from "./checks.ts";

/** What the bundled program leaves on the page. */
interface Loaded {
  readonly checks: typeof checks;
  readonly families: Readonly<Record<string, readonly string[]>>;
  readonly open: () => Promise<{ name: string; f16: boolean }>;
  readonly tryLaws: (name: string, runs: number, seed: number) => Promise<Finding>;
}

const program = `
  import { getBackend, init } from "@flashtape/flashtape";
  import { families, tryLaws } from "../../testing/laws/page.ts";
  import * as checks from "./checks.ts";
  globalThis.loaded = {
    checks,
    families,
    open: async () => {
      const { name, capabilities: { f16 } } = await init();
      return { name, f16 };
    },
    tryLaws: (name, runs, seed) => tryLaws(name, getBackend(), runs, seed),
  };`;

/** Every file that the tests load, by its address. */
async function filesToServe(): Promise<Map<string, Uint8Array | string>> {
  const { outputFiles } = await bundleLibrary({ sourcemap: false });
  const files = new Map<string, Uint8Array | string>(
    outputFiles!.map(({ path, contents }) => [path.slice(path.lastIndexOf("/dist/")), contents]),
  );
  const tests = await esbuild.build({
    ...common,
    splitting: false,
    stdin: { contents: program, loader: "ts", resolveDir: fileURLToPath(new URL("./", import.meta.url)) },
    minify: true,
    write: false,
    plugins: [denoModules()],
  });
  files.set("/program.js", tests.outputFiles[0].contents);
  files.set(
    "/",
    '<!doctype html><title>tests</title><link rel="icon" href="data:,"><script type="module" src="program.js"></script>',
  );
  files.set(
    "/first.html",
    `<!doctype html><title>first</title><link rel="icon" href="data:,"><script type="module">
      import { init, matmul, tensor } from "./dist/flashtape.js";
      await init();
      const x = tensor([[1, 2], [3, 4]]);
      const found = await matmul(x, x).array();
      globalThis.first = { found, ms: performance.now() }; // since the navigation began
    </script>`,
  );
  return files;
}

const files = await filesToServe();
await esbuild.stop();
const server = Deno.serve({ hostname: "localhost", port: 0, onListen: () => {} }, (request) => {
  const { pathname } = new URL(request.url), body = files.get(pathname);
  if (body === undefined) return new Response("no", { status: 404 });
  const type = pathname.endsWith(".js") ? "text/javascript" : "text/html; charset=utf-8";
  return new Response(body as BodyInit, { headers: { "content-type": type } });
});
const base = `http://localhost:${server.addr.port}/`;

let browser: Browser, page: Page;
const troubles: string[] = [];

Deno.test.beforeAll(async () => {
  browser = await openBrowser();
  page = await browser.newPage();
  page.setDefaultTimeout(180_000);
  page.on("console", (message) => ["error", "warning"].includes(message.type()) && troubles.push(message.text()));
  page.on("pageerror", (error) => troubles.push(String(error)));
});

Deno.test.afterAll(async () => {
  await browser.close();
  await server.shutdown();
});

const test = (name: string, fn: () => Promise<void>) =>
  Deno.test({ name, fn, sanitizeOps: false, sanitizeResources: false });

/** Runs one of the checks in the page. */
function inPage<K extends keyof typeof checks>(
  name: K,
  ...args: Parameters<typeof checks[K]>
): Promise<Awaited<ReturnType<typeof checks[K]>>> {
  return page.evaluate(
    ([name, args]) => {
      const { checks } = (globalThis as unknown as { loaded: Loaded }).loaded;
      return (checks[name] as (...args: unknown[]) => unknown)(...args);
    },
    [name, args] as const,
  ) as Promise<Awaited<ReturnType<typeof checks[K]>>>;
}

const gpu = await webgpu();

/** Runs something in Deno, on one of its backends. */
async function inDeno<T>(backend: typeof gpu, f: () => T | Promise<T>): Promise<T> {
  setBackend(backend);
  return await f();
}

const distance = (a: readonly number[], b: readonly number[]): number => {
  assert.equal(a.length, b.length);
  return a.reduce((most, x, i) => Math.max(most, Math.abs(x - b[i])), 0);
};

/** The accuracy rule: no further from the reference than twice the naive computation, plus one rounding. */
function assertNear(
  found: checks.Numbers,
  reference: checks.Numbers,
  naive: readonly checks.Numbers[],
  rounding: number,
): void {
  for (const [name, expected] of Object.entries(reference)) {
    const largest = distance(expected, expected.map(() => 0));
    const error = distance(found[name], expected);
    const bound = 2 * Math.max(...naive.map((each) => distance(each[name], expected))) + rounding * largest;
    assert.ok(error <= bound, `${name} errs by ${error}, more than ${bound}`);
  }
}

test("the first result is there within 300 ms of the page's load", async () => {
  await assertSoon(browser, base, async () => {
    await page.goto(`${base}first.html`);
    const handle = await page.waitForFunction(() => (globalThis as { first?: { found: unknown; ms: number } }).first);
    const { found, ms } = (await handle.jsonValue())!;
    assert.deepEqual(found, [[7, 10], [15, 22]]);
    return ms;
  });
});

test("a page finds an adapter, and the one of these tests does not compute in f16", async () => {
  await page.goto(base);
  await page.waitForFunction(() => "loaded" in globalThis);
  const opened = await page.evaluate(() => (globalThis as unknown as { loaded: Loaded }).loaded.open());
  assert.deepEqual(opened, { name: "webgpu", f16: false });
});

test("dataSync() is refused by name in a page and works in Deno", async () => {
  assert.match(await inPage("sync"), /^UnsupportedError: \[dataSync\] .* use await data\(\)$/);
  assert.equal(await inDeno(gpu, checks.sync), "webgpu: 1,2");
});

test("paths are refused by name in a page, with what takes their place", async () => {
  const [read, write] = await inPage("paths");
  for (const said of [read, write]) {
    assert.match(said, /^UnsupportedError: \[.*a page has no paths: .* a File or bytes/);
  }
  assert.match((await checks.paths())[0], /^FormatError: .*nothing-of-this-name: there is no such file/);
});

test("flash attention and its gradients are as accurate in a page as in Deno", async () => {
  const reference = await inDeno(cpu(), () => checks.attention("naive", "f64"));
  const naive = await inDeno(gpu, () => checks.attention("naive", "f32"));
  const ours = await inDeno(gpu, () => checks.attention("flash", "f32"));
  const found = await inPage("attention", "flash", "f32");
  assertNear(ours, reference, [naive], 2 ** -23);
  assertNear(found, reference, [naive], 2 ** -23);
});

test("f16 storage works without shader-f16: the same bits, and attention as accurate as the naive one", async () => {
  assert.deepEqual(await inPage("halves"), await inDeno(gpu, checks.halves));
  // From the same rounded inputs, in f32 on the host.
  const reference = await inDeno(cpu(), () => checks.attention("flash", "f16"));
  const naive = await inDeno(gpu, () => checks.attention("naive", "f16"));
  assertNear(await inPage("attention", "flash", "f16"), reference, [naive], 2 ** -10);
});

test("a lost device is a DeviceLostError for whoever waits for it and for every later call", async () => {
  const [waiting, ...later] = await inPage("lost");
  assert.match(waiting, /^(read$|DeviceLostError: )/); // it may have been done before
  for (const said of later) assert.match(said, /^DeviceLostError: .*lost \(destroyed\)/);
});

test("the four laws hold in a page for ops of every family", async () => {
  const families = await page.evaluate(() => (globalThis as unknown as { loaded: Loaded }).loaded.families);
  const failures: string[] = [], limits: string[] = [], tried = new Set<number>();
  for (const op of Object.values(families).flat()) {
    const finding = await page.evaluate(
      ([op]) => (globalThis as unknown as { loaded: Loaded }).loaded.tryLaws(op, 2, 20261121),
      [op],
    );
    finding.laws.forEach((law) => tried.add(law));
    failures.push(...finding.failures);
    limits.push(...finding.limits);
  }
  assert.deepEqual(failures, []);
  assert.deepEqual([...tried].sort(), [1, 2, 3, 4]);
  // A browser binds fewer buffers at once than a driver: attention with all its options at once may need more.
  for (const limit of limits) {
    assert.match(limit, /reads and writes \d+ buffers, and this device binds \d+ at once$/);
  }
  assert.ok(limits.length <= 1, limits.join("\n"));
});

test("nothing was said on the console", () => {
  assert.deepEqual(troubles, []);
  return Promise.resolve();
});
