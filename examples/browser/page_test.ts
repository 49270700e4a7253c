/// <reference lib="dom" />
/** The page in Chromium: every panel to its end, a page that never stutters, and what happens when the GPU is lost. */
import assert from "node:assert/strict";
import { rm } from "node:fs/promises";
import { fileURLToPath } from "node:url";
import * as esbuild from "npm:esbuild@0.28.2";
import type { Browser, BrowserContextOptions, Page } from "npm:playwright-core@1.65.1";
import { buildPage, servePage } from "../../tools/page.ts";
import { cpu, setBackend, webgpu } from "@flashtape/flashtape";
import { readBook } from "../moby_dick.ts";
import { openBrowser } from "../../tools/page_browser.ts";
import { assertSoon } from "./bare_page.ts";
import { TrainingRun } from "./training.ts";

const folder = await Deno.makeTempDir({ prefix: "flashtape-page-" });
await buildPage(folder);
await esbuild.stop();
const server = servePage(folder, { port: 0, host: "localhost" });
const address = `http://localhost:${server.addr.port}/`;

let browser: Browser;

Deno.test.beforeAll(async () => {
  browser = await openBrowser();
});

Deno.test.afterAll(async () => {
  await browser.close();
  await server.shutdown();
  await rm(folder, { recursive: true });
});

/** A page with its device open; `troubles` gathers what it says on the console. */
async function open(
  options: BrowserContextOptions & { query?: string; on?: Browser } = {},
): Promise<{ page: Page; troubles: string[]; [Symbol.asyncDispose]: () => Promise<void> }> {
  const { query = "", on = browser, ...rest } = options;
  const context = await on.newContext({ viewport: { width: 1200, height: 900 }, ...rest });
  const page = await context.newPage(), troubles: string[] = [];
  page.setDefaultTimeout(180_000);
  page.on("console", (message) => ["error", "warning"].includes(message.type()) && troubles.push(message.text()));
  page.on("pageerror", (error) => troubles.push(String(error)));
  await page.goto(`${address}${query}`);
  await page.waitForSelector("html[data-ready]");
  return { page, troubles, [Symbol.asyncDispose]: () => context.close() };
}

const reaches = (page: Page, panel: string, state: string) => page.waitForSelector(`#${panel}[data-state=${state}]`);
const status = async (page: Page, panel: string) => await page.textContent(`#${panel} .status`) ?? "";

/** Bits a byte cost in each step of the page's training, when Deno runs it on one of its backends. */
async function trainHere(backend: ReturnType<typeof cpu>): Promise<number[]> {
  setBackend(backend);
  const losses: number[] = [];
  using run = new TrainingRun(readBook(), "mini", 20, 0, {
    progress: (points) => losses.push(...points.map(([, bits]) => bits)),
    heldOut: () => {},
  });
  await run.run();
  return losses;
}

/** What of Chromium's trace events is looked at. */
interface TraceEvent {
  readonly name: string;
  readonly ph: string;
  readonly pid: number;
  readonly tid: number;
  readonly dur?: number;
  readonly tdur?: number;
  readonly args?: { readonly name?: string };
}

/**
 * The tasks of a page's main thread. Their time is the processor's: by the clock, a task also waits while the software
 * adapter and whatever else this machine does have the processors.
 */
function mainThreadTasks(trace: string): { cpuMs: number; clockMs: number }[] {
  const { traceEvents }: { traceEvents: TraceEvent[] } = JSON.parse(trace);
  const pages = traceEvents.filter((e) => e.name === "thread_name" && e.args?.name === "CrRendererMain");
  const isMain = ({ pid, tid }: TraceEvent) => pages.some((main) => main.pid === pid && main.tid === tid);
  return traceEvents
    .filter((e) => e.name === "RunTask" && e.ph === "X" && e.tdur !== undefined && isMain(e))
    .map(({ dur = 0, tdur = 0 }) => ({ cpuMs: tdur / 1e3, clockMs: dur / 1e3 }));
}

const test = (name: string, fn: () => Promise<void>) =>
  Deno.test({ name, fn, sanitizeOps: false, sanitizeResources: false });

test("the page's server gives its own files, and nothing else", async () => {
  const answers = ["", "worker.js", "..%2fdeno.json", "nothing"].map(async (name) => {
    const response = await fetch(`${address}${name}`);
    await response.body?.cancel();
    return `${response.status} ${response.headers.get("content-type")?.split(";")[0]}`;
  });
  assert.deepEqual(await Promise.all(answers), [
    "200 text/html",
    "200 text/javascript",
    "404 text/plain",
    "404 text/plain",
  ]);
  assert.equal((await fetch(address, { method: "POST", body: "x" })).status, 405);
});

test("the page says what its device can do, and has a result soon after it is there", async () => {
  await assertSoon(browser, address, async () => {
    await using opened = await open();
    const { page, troubles } = opened;
    assert.equal(await page.textContent("#adapter"), "WebGPU on google swiftshader");
    assert.match(await page.textContent("#facts") ?? "", /16-bit arithmetic.*subgroupsof \d+.*largest tensor/);
    assert.deepEqual(troubles, []);
    return await page.evaluate(() => {
      const [navigation] = performance.getEntriesByType("navigation") as PerformanceNavigationTiming[];
      return performance.getEntriesByName("first-result")[0].startTime - navigation.loadEventEnd; // after the load event
    });
  });
});

test("flash and naive attention are timed, agree, and are drawn", async () => {
  await using opened = await open({ query: "?lengths=64,256" });
  const { page, troubles } = opened;
  await page.click("#attention-form button.main");
  await reaches(page, "attention", "done");
  const said = await status(page, "attention");
  const [, apart, smaller] = /Both agree to (\S+)\. .*holds ([\d.]+)× less/.exec(said) ?? assert.fail(said);
  assert.ok(Number(apart) < 1e-4, said);
  assert.ok(Number(smaller) > 4, said);
  const rows = await page.$$eval(
    "#attention-table tbody tr",
    (all) => all.map((row) => [...row.querySelectorAll("td")].map((cell) => cell.textContent ?? "")),
  );
  assert.deepEqual(rows.map(([length]) => length), ["64", "128", "256"]);
  for (const [, ...cells] of rows) {
    assert.match(cells.join("|"), /^[\d.]+ [µm]?s\|[\d.]+ [µm]?s\|[\d.]+ [kM]B\|[\d.]+ [kM]B$/);
  }
  assert.deepEqual(troubles, []);
});

test("a model trains to Deno's losses while the page stays responsive, pauses, goes on, and writes", async () => {
  await using opened = await open();
  const { page, troubles } = opened;
  const losses: number[] = [];
  await page.exposeFunction("hear", (bits: number) => void losses.push(bits));
  await page.evaluate(() => {
    // The curve is a picture: the numbers are taken where they come in.
    const { hear } = globalThis as unknown as { hear: (bits: number) => void };
    globalThis.Worker = class extends Worker {
      constructor(...args: ConstructorParameters<typeof Worker>) {
        super(...args);
        this.addEventListener("message", ({ data }) => {
          if (data.kind === "progress") { for (const [, bits] of data.points) hear(bits); }
        });
      }
    };
  });
  await browser.startTracing(page, { categories: ["disabled-by-default-devtools.timeline"] });
  await page.selectOption("#training-form select[name=size]", "mini");
  await page.selectOption("#training-form select[name=steps]", "20");
  await page.click("#training-form button.main");
  await page.waitForFunction(() => /step [1-9]/.test(document.querySelector("#training .status")?.textContent ?? ""));
  await page.click("#training-form button[name=pause]");
  await reaches(page, "training", "paused");
  const held = await status(page, "training");
  await page.waitForTimeout(1000);
  assert.equal(await status(page, "training"), held);
  await page.click("#training-form button[name=pause]");
  await reaches(page, "training", "writing");
  const said = await status(page, "training");
  assert.match(said, /step 20 of 20 · loss [\d.]+ bits a byte · held-out [\d.]+ · [\d.]+k? tokens\/s/);
  const [, heldOut] = /held-out ([\d.]+)/.exec(said)!;
  assert.ok(Number(heldOut) < 6, said);
  const reference = await trainHere(cpu()), ours = await trainHere(await webgpu());
  const errors = [losses, ours].map((some) => Math.max(...reference.map((x, i) => Math.abs(x - some[i]))));
  console.log(`    errs by ${errors[0].toExponential(1)}, Deno by ${errors[1].toExponential(1)} bits a byte`);
  assert.ok(losses.length === 20 && errors[0] <= 2 * errors[1] + 2 ** -23 * reference[0], `${losses}\n${ours}`);
  await page.waitForFunction(() => (document.querySelector("#written")?.textContent ?? "").length > 30);
  const tasks = mainThreadTasks((await browser.stopTracing()).toString());
  const longest = tasks.reduce((a, b) => b.cpuMs > a.cpuMs ? b : a);
  console.log(`    the longest of ${tasks.length} tasks took ${longest.cpuMs.toFixed(0)} ms`);
  assert.ok(tasks.length > 100 && longest.cpuMs <= 100, JSON.stringify(longest));
  await page.click("#training-form button[name=reset]");
  await reaches(page, "training", "empty");
  assert.deepEqual(troubles, []);
});

test("a checkpoint is opened from disk and chats", async () => {
  await using opened = await open();
  const { page, troubles } = opened;
  await page.setInputFiles("#folder", fileURLToPath(new URL("../../nn/fixtures/llama-a", import.meta.url)));
  await reaches(page, "chat", "ready");
  assert.match(await status(page, "chat"), /131k parameters · 2 layers of 64 .* 700 tokens$/);
  await page.fill("#chat-form input[name=text]", "Call me Ishmael.");
  await page.fill("#chat-form input[name=temperature]", "0");
  await page.selectOption("#chat-form select[name=maxNewTokens]", "32");
  await page.press("#chat-form input[name=text]", "Enter");
  await reaches(page, "chat", "writing");
  await reaches(page, "chat", "ready");
  assert.match(await status(page, "chat"), /\d+ tokens, [\d.]+ a second$/);
  const turns = await page.$$eval("#conversation .turn", (all) => all.map((turn) => turn.textContent ?? ""));
  assert.equal(turns[0], "Call me Ishmael.");
  assert.ok(turns[1].length > 0);
  assert.deepEqual(troubles, []);
});

test("a GPU that is lost shows a message, and a button that starts again", async () => {
  await using opened = await open({ query: "?lengths=64,4096" });
  const { page, troubles } = opened;
  await page.click("#attention-form button.main");
  await page.waitForFunction(() => document.querySelectorAll("#attention-table tbody tr").length > 0);
  await page.click("#lose");
  await reaches(page, "attention", "lost");
  assert.match(await page.textContent("#attention .lost span") ?? "", /The GPU was lost/);
  await page.evaluate(() => history.replaceState(null, "", "?lengths=64,64"));
  await page.click("#attention .lost button");
  await reaches(page, "attention", "done");
  assert.equal(await page.isVisible("#attention .lost"), false);
  assert.deepEqual(troubles, []);
});

test("everything can be reached by keyboard, and a phone's screen is wide enough", async () => {
  await using opened = await open({ viewport: { width: 360, height: 740 }, colorScheme: "dark" });
  const { page, troubles } = opened;
  assert.ok(await page.evaluate(() => document.documentElement.scrollWidth <= innerWidth), "nothing sticks out");
  const reached = new Set<string>();
  for (let i = 0; i < 40; i++) {
    await page.keyboard.press("Tab");
    reached.add(
      await page.evaluate(() => {
        const at = document.activeElement;
        return at === null ? "" : at.id || at.getAttribute("name") || (at.textContent ?? "").trim();
      }),
    );
  }
  for (
    const what of ["choice", "causal", "Measure", "size", "steps", "Train", "prompt", "open-folder", "lose", "theme"]
  ) {
    assert.ok(reached.has(what), `${what} is not among ${[...reached].join(", ")}`);
  }
  const ground = () => page.evaluate(() => getComputedStyle(document.body).backgroundColor);
  const dark = await ground();
  await page.click("#theme");
  assert.notEqual(await ground(), dark);
  assert.deepEqual(troubles, []);
});

test("without an adapter the page says so, and works on the CPU", async () => {
  const without = await openBrowser({ webgpu: false });
  try {
    await using opened = await open({ on: without, query: "?lengths=16,32" });
    const { page } = opened;
    assert.equal(await page.textContent("#adapter"), "The CPU: plain loops");
    assert.match(await page.textContent("#no-webgpu") ?? "", /WebGPU.*on the CPU and at small sizes/);
    await page.click("#attention-form button.main");
    await reaches(page, "attention", "done");
    assert.equal(await page.inputValue("#training-form select[name=size]"), "mini");
    await page.selectOption("#training-form select[name=steps]", "20");
    await page.click("#training-form button.main");
    await page.waitForFunction(() => /step [1-9]/.test(document.querySelector("#training .status")?.textContent ?? ""));
  } finally {
    await without.close();
  }
});
