import assert from "node:assert/strict";
import { fileURLToPath } from "node:url";

/** What `bench` says with these arguments, and its exit code. */
async function bench(...args: string[]): Promise<{ code: number; out: string; err: string }> {
  const main = fileURLToPath(new URL("./main.ts", import.meta.url));
  const { code, stdout, stderr } = await new Deno.Command(Deno.execPath(), {
    args: ["run", "--quiet", "--no-check", "--allow-all", main, ...args],
  }).output();
  const [out, err] = [stdout, stderr].map((bytes) => new TextDecoder().decode(bytes));
  return { code, out, err };
}

Deno.test("soak trains as many steps as it is told, and says how memory went", async () => {
  const { code, out, err } = await bench("soak", "20");
  assert.equal(code, 0, err);
  assert.equal(out.match(/^ +\d+ +\d\.\d{4} +\d+ +\d+ +\d+\.\d$/gm)?.length, 10, out);
  assert.match(out, /^ +20 /m);
  assert.match(out, /bytes of tensors, -?\d+\.\d MB of process memory/);
});

Deno.test("programs that are commands are given their arguments, and their exit code is the command's", async () => {
  const few = await bench("soak", "19");
  assert.equal(few.code, 2);
  assert.match(few.err, /steps is "19"\. Allowed: whole numbers from 20\./);
  const unknown = await bench("compile", "tiny", "huge");
  assert.equal(unknown.code, 2);
  assert.match(unknown.err, /"?huge"?.*tiny, small/s);
});
