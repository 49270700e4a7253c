/**
 * Makes sure that there is a Chromium and, to compare it with, an adapter for Deno; then runs a command:
 *
 *     page_setup.ts [--no-setup] COMMAND …
 *
 * Debian's Chromium brings a software adapter of its own, so pages need no driver.
 */
import { existsSync } from "node:fs";
import process from "node:process";
import { type Host, parseArguments, runCommand, setUp, thisMachine } from "./setup.ts";

/** Where a browser that can be driven usually lies. */
const places = [
  "/usr/bin/chromium",
  "/usr/bin/chromium-browser",
  "/usr/bin/google-chrome",
  "/Applications/Chromium.app/Contents/MacOS/Chromium",
  "/Applications/Google Chrome.app/Contents/MacOS/Google Chrome",
  "C:\\Program Files\\Google\\Chrome\\Application\\chrome.exe",
];

/** The browser's program, or null. `CHROMIUM` in the environment names another. */
export function findChromium(): string | null {
  const named = process.env.CHROMIUM;
  if (named !== undefined && named !== "") return existsSync(named) ? named : null;
  return places.find((path) => existsSync(path)) ?? null;
}

/** What this set-up asks of the machine, besides. */
export type BrowserHost = Omit<Host, "findAdapter"> & { findChromium(): string | null };

/** Installs Chromium where that is needed and possible. Returns whether there is one. */
export async function setUpChromium(host: BrowserHost, noSetup: boolean): Promise<boolean> {
  if (host.findChromium() !== null) return true;
  const debian = host.os === "linux" && await host.isDebian();
  if (!debian || !host.isRoot() || noSetup) {
    host.say("No Chromium was found, and these tests run in one.");
    const sudo = host.isRoot() ? "" : "sudo ";
    host.say(
      debian
        ? `This installs it:\n\n    ${sudo}apt-get update && ${sudo}apt-get install -y --no-install-recommends chromium\n`
        : "Install Chromium or Chrome, or set CHROMIUM to the path of its program.",
    );
    return false;
  }
  host.say(
    "Installing Chromium from this machine's own apt sources: chromium. --no-setup leaves the machine as it is.",
  );
  let outputs = "";
  for (const [name, args] of [["reading the package lists", ["update"]], ["installing", install]] as const) {
    host.say(`  ${name} …`);
    const { ok, output } = await host.aptGet(["-o", "DPkg::Lock::Timeout=120", ...args]);
    if (!ok) outputs += `\n${output.trimEnd()}`;
  }
  if (host.findChromium() !== null) return true;
  host.say(`apt-get could not install it:${outputs || " it says that it did, and there is no Chromium"}`);
  return false;
}

const install = ["install", "-y", "--no-install-recommends", "chromium"];

if (import.meta.main) {
  const { noSetup, command } = parseArguments(Deno.args);
  const ready = await setUp(thisMachine, { requireGpu: true, noSetup, command }) &&
    await setUpChromium({ ...thisMachine, findChromium }, noSetup);
  process.exit(ready ? await runCommand(command) : 1);
}
