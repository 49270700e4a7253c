import assert from "node:assert/strict";
import { aptOptions, build, mirrorOf, type Run } from "./software_tensor_cores.ts";

Deno.test("mirrorOf() reads either format of apt's sources", () => {
  assert.equal(
    mirrorOf("Types: deb\nURIs: http://mirror.example/debian\nSuites: bookworm"),
    "http://mirror.example/debian",
  );
  assert.equal(
    mirrorOf("# deb http://no/\ndeb [arch=amd64] https://a.example/debian bookworm main"),
    "https://a.example/debian",
  );
  assert.equal(mirrorOf("deb http://b.example/debian bookworm main"), "http://b.example/debian");
  for (const none of ["", "deb http://security.example/debian-security bookworm main"]) {
    assert.equal(mirrorOf(none), "http://deb.debian.org/debian");
  }
});

Deno.test("aptOptions() keep everything that apt writes in one folder", () => {
  const written = aptOptions("/x").filter((option) => /^Dir::(State|Cache|Etc::sourcelist)/.test(option));
  assert.equal(written.length, 5);
  for (const option of written) assert.match(option, /=\/x(\/|$)/);
});

/** A machine whose programs do nothing but fail at one step; what ran is noted. */
function pretended(fails: string, ran: string[]): Run {
  return (program, args) => {
    const step = `${program} ${args.at(-1)}`;
    ran.push(step);
    return Promise.resolve(
      step === fails
        ? { ok: false, output: "no route to host" }
        : { ok: true, output: program === "dpkg" ? "amd64\n" : "" },
    );
  };
}

Deno.test("build() unpacks once, and says which step failed", async () => {
  const root = await Deno.makeTempDir();
  await assert.rejects(build(root, pretended("apt-get update", [])), /apt-get update failed: no route to host/);
  await assert.rejects(build(root, pretended("dpkg --print-architecture", [])), /dpkg --print-architecture failed/);
  const other: Run = () => Promise.resolve({ ok: true, output: "s390x" });
  await assert.rejects(build(root, other), /only amd64 and arm64 are known/);
  const [first, second]: string[][] = [[], []];
  const made = await build(root, pretended("", first));
  assert.deepEqual(first, ["dpkg --print-architecture", "apt-get update", "apt-get libstdc++6"]);
  assert.deepEqual(await build(root, pretended("", second)), made);
  assert.deepEqual(second, ["dpkg --print-architecture"]);
  assert.equal(made.loader, `${root}/usr/lib/x86_64-linux-gnu/ld-linux-x86-64.so.2`);
  await Deno.remove(root, { recursive: true });
});
