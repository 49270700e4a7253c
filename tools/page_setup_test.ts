import assert from "node:assert/strict";
import { type BrowserHost, setUpChromium } from "./page_setup.ts";

/** A machine of our choosing, which writes down what was said and what apt-get was asked to do. */
function machine({ debian = true, root = true, has = false, works = true }): {
  host: BrowserHost;
  said: string[];
  asked: string[][];
} {
  const said: string[] = [], asked: string[][] = [];
  let found = has;
  const host: BrowserHost = {
    os: "linux",
    findChromium: () => found ? "/usr/bin/chromium" : null,
    isRoot: () => root,
    isDebian: () => Promise.resolve(debian),
    aptGet(args) {
      assert.ok(said.some((line) => line.includes("--no-setup")), "said what happens before it does");
      asked.push(args);
      found ||= works && args.includes("install");
      return Promise.resolve({ ok: works, output: "E: no room" });
    },
    say: (line) => void said.push(line),
  };
  return { host, said, asked };
}

Deno.test("setUpChromium() is silent and changes nothing where there is a Chromium", async () => {
  const { host, said, asked } = machine({ has: true });
  assert.equal(await setUpChromium(host, false), true);
  assert.deepEqual([said, asked], [[], []]);
});

Deno.test("setUpChromium() installs Debian's as root, having said so", async () => {
  const { host, asked } = machine({});
  assert.equal(await setUpChromium(host, false), true);
  assert.deepEqual(asked.map((args) => args[2]), ["update", "install"]);
  assert.equal(asked[1].at(-1), "chromium");
});

Deno.test("setUpChromium() installs nothing without root, off Debian or after --no-setup, and says what would help", async () => {
  const cases = [
    { on: { root: false }, noSetup: false, help: /sudo apt-get update && sudo apt-get install .* chromium/ },
    { on: { debian: false }, noSetup: false, help: /Install Chromium or Chrome, or set CHROMIUM/ },
    { on: {}, noSetup: true, help: /apt-get install .* chromium/ },
  ];
  for (const { on, noSetup, help } of cases) {
    const { host, said, asked } = machine(on);
    assert.equal(await setUpChromium(host, noSetup), false);
    assert.match(said.join("\n"), help);
    assert.deepEqual(asked, []);
  }
});

Deno.test("setUpChromium() shows why apt-get failed", async () => {
  const { host, said } = machine({ works: false });
  assert.equal(await setUpChromium(host, false), false);
  assert.match(said.join("\n"), /could not install it:\nE: no room/);
});
