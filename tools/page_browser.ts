/** Chromium for the tests, as it is started. */
import { type Browser, chromium } from "npm:playwright-core@1.65.1";
import { findChromium } from "./page_setup.ts";

/** Nothing that reaches for the network by itself. */
const quiet = [
  "--disable-background-networking",
  "--disable-component-update",
  "--disable-sync",
  "--no-first-run",
  "--disable-quic",
];

/** The browser's own software adapter: the same numbers on every machine. */
const software = ["--enable-unsafe-webgpu", "--use-webgpu-adapter=swiftshader"];

/**
 * Starts Chromium.
 * @param webgpu whether pages find an adapter
 */
export async function openBrowser({ webgpu = true }: { webgpu?: boolean } = {}): Promise<Browser> {
  const executablePath = findChromium();
  if (executablePath === null) throw new Error("there is no Chromium here: run deno task test:browser");
  return await chromium.launch({ executablePath, args: [...quiet, ...(webgpu ? software : ["--disable-gpu"])] });
}
