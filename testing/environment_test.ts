import assert from "node:assert/strict";
import { commandFor, mayRead, readVariable, testRunner } from "./environment.ts";

const here = import.meta.resolve("./environment.ts");

/** What a program prints in a Deno of its own, with these permissions and nobody to answer a prompt. */
async function output(permissions: readonly string[], program: string, variables = {}): Promise<string> {
  const text = `import * as e from ${JSON.stringify(here)}; ${program}`;
  const args = ["run", "--no-prompt", ...permissions, `data:text/javascript,${encodeURIComponent(text)}`];
  // Not by node:child_process, which starts Deno with all permissions.
  const { success, stdout, stderr } = await new Deno.Command(Deno.execPath(), {
    args,
    env: { NO_COLOR: "1", ...variables },
  }).output();
  assert.ok(success, new TextDecoder().decode(stderr));
  return new TextDecoder().decode(stdout).trim();
}

Deno.test("readVariable() gives what is set, and undefined for what is unset or empty", () => {
  const name = "FLASHTAPE_RUNS", before = Deno.env.get(name);
  try {
    Deno.env.set(name, "12");
    assert.equal(readVariable(name), "12");
    Deno.env.set(name, "");
    assert.equal(readVariable(name), undefined);
    Deno.env.delete(name);
    assert.equal(readVariable(name), undefined);
  } finally {
    if (before !== undefined) Deno.env.set(name, before);
  }
});

Deno.test("a variable that may not be read is undefined, without a prompt or an error", async () => {
  const program = 'console.log(e.mayRead("FLASHTAPE_SEED"), e.readVariable("FLASHTAPE_SEED"))';
  assert.equal(await output([], program, { FLASHTAPE_SEED: "7" }), "false undefined");
  assert.equal(await output(["--allow-env=FLASHTAPE_SEED"], program, { FLASHTAPE_SEED: "7" }), "true 7");
});

Deno.test("commandFor() quotes a name for the shell", async () => {
  const name = 'it\'s 2 · $HOME "x" `y`';
  assert.ok(mayRead("FLASHTAPE_SEED"));
  const command = commandFor(name), quoted = command.slice("deno test --filter ".length);
  assert.equal(command, `deno test --filter ${quoted}`);
  const { stdout } = await new Deno.Command("sh", { args: ["-c", `printf %s ${quoted}`] }).output();
  assert.equal(new TextDecoder().decode(stdout), name);
});

Deno.test("commandFor() asks for the permission that a replay needs where it is not there", async () => {
  const command = await output([], 'console.log(e.commandFor("x"))');
  assert.equal(command, "deno test --allow-env=FLASHTAPE_SEED,FLASHTAPE_PATH,FLASHTAPE_RUNS --filter 'x'");
});

Deno.test("without Deno, a global test is the runner, or it, or node:test, and commands are Node's", async () => {
  const program = `
    const log = [], register = (runner) => (name) => log.push(runner + " " + name);
    globalThis.process; // made with Deno at first sight
    delete globalThis.Deno;
    globalThis.it = register("it");
    e.testRunner()("one");
    globalThis.test = register("test");
    e.testRunner()("two");
    delete globalThis.it, delete globalThis.test;
    log.push(e.testRunner() === process.getBuiltinModule("node:test"));
    console.log(log.join(), e.commandFor("a (b)"));
  `;
  const expected = "it one,test two,true node --test --test-name-pattern='a \\(b\\)'";
  assert.equal(await output(["--allow-env", "--allow-read"], program), expected);
});

let ran = false;
testRunner()("testRunner() registers a test that runs", () => {
  ran = true;
  return Promise.resolve();
});

Deno.test("a test that testRunner() registered before has run", () => assert.ok(ran));
