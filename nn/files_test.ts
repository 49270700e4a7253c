import assert from "node:assert/strict";
import { mkdtemp, readdir, readFile, rm, writeFile } from "node:fs/promises";
import { tmpdir } from "node:os";
import { rmSync } from "node:fs";
import { dirname, join } from "node:path";
import { pathToFileURL } from "node:url";
import { array, integer, property } from "../testing/mod.ts";
import { exists, nameOf, openBytes, readText, within, writeAllAtomically, writeAtomically } from "./files.ts";

const bytes = Uint8Array.from({ length: 100 }, (_, i) => i);

const path = join(await mkdtemp(join(tmpdir(), "flashtape-")), "bytes");
await writeFile(path, bytes);
globalThis.addEventListener("unload", () => rmSync(dirname(path), { recursive: true }));

function stream(step: number): ReadableStream<Uint8Array> {
  let at = 0;
  return new ReadableStream({
    pull(controller) {
      controller.enqueue(bytes.slice(at, at += step));
      if (at >= bytes.length) controller.close();
    },
  });
}

property("every kind of source gives the same bytes, whatever the pieces asked for", [
  array(integer(0, 40), { maxLength: 8 }),
  integer(1, 30),
], async (lengths, step) => {
  for (const source of [bytes, new Blob([bytes]), stream(step), path]) {
    const reader = await openBytes("test", source);
    let at = 0;
    for (const [i, length] of lengths.entries()) {
      const want = bytes.slice(at, at + length);
      if (i % 3 === 0) assert.deepEqual(await reader.read(length), want);
      else if (i % 3 === 1) {
        const out = new Uint8Array(length + 1).subarray(1);
        assert.equal(await reader.readInto(out), want.length);
        assert.deepEqual(out.subarray(0, want.length), want);
      } else assert.equal(await reader.skip(length), want.length);
      at = Math.min(at + length, bytes.length);
    }
    await reader.close();
  }
});

Deno.test("a server's answer is read as a stream, with the length that it names", async () => {
  const server = Deno.serve(
    { hostname: "localhost", port: 0, onListen: () => {} },
    (request) =>
      new URL(request.url).pathname === "/there"
        ? new Response(bytes, { headers: { "content-length": "100" } })
        : new Response("no", { status: 404 }),
  );
  try {
    const at = `http://localhost:${server.addr.port}`;
    const reader = await openBytes("test", new URL("/there", at));
    assert.equal(reader.size, 100);
    assert.deepEqual(await reader.read(1000), bytes);
    await reader.close();
    await assert.rejects(openBytes("test", new URL("/missing", at)), /answered 404/);
  } finally {
    await server.shutdown();
  }
});

Deno.test("readText() gives a text, null where there is none, and refuses what is no text", async () => {
  const folder = await mkdtemp(join(tmpdir(), "flashtape-"));
  const server = Deno.serve({ hostname: "localhost", port: 0, onListen: () => {} }, (request) => {
    const { pathname } = new URL(request.url);
    return pathname === "/a/b%20c"
      ? new Response("text")
      : new Response("", { status: pathname === "/a/x" ? 404 : 500 });
  });
  try {
    await writeFile(join(folder, "b c"), "naïve");
    await writeFile(join(folder, "bad"), Uint8Array.of(0xff, 0xfe));
    for (const place of [folder, `${folder}/`, pathToFileURL(folder)]) {
      assert.equal(await readText("test", within(place, "b c")), "naïve");
      assert.equal(await readText("test", within(place, "missing")), null);
      assert.equal(await readText("test", within(within(place, "b c"), "below a file")), null);
      assert.deepEqual([await exists("test", within(place, "b c")), await exists("test", within(place, "x"))], [
        true,
        false,
      ]);
      await assert.rejects(readText("test", within(place, "bad")), /bad: is no UTF-8 text/);
    }
    const url = new URL(`http://localhost:${server.addr.port}/a`);
    assert.equal(await readText("test", within(url, "b c")), "text");
    assert.equal(await readText("test", within(url, "x")), null);
    await assert.rejects(readText("test", within(url, "y")), /answered 500/);
    assert.equal(within("/", "x"), "/x");
  } finally {
    await server.shutdown();
    await rm(folder, { recursive: true });
  }
});

Deno.test("writeAllAtomically() gives no file its name before all are written", async () => {
  const folder = await mkdtemp(join(tmpdir(), "flashtape-")), [a, b] = [join(folder, "a"), join(folder, "b")];
  try {
    await writeFile(a, "old");
    const failing = (function* () {
      yield bytes;
      throw new Error("half-way");
    })();
    await assert.rejects(writeAllAtomically([[a, [bytes]], [b, failing]]), /half-way/);
    assert.deepEqual([await readFile(a, "utf8"), await readdir(folder)], ["old", ["a"]]);
    await writeAllAtomically([[a, [bytes]], [b, [bytes]]]);
    assert.deepEqual(await readFile(a), await readFile(b));
    assert.deepEqual((await readdir(folder)).sort(), ["a", "b"]);
  } finally {
    await rm(folder, { recursive: true });
  }
});

Deno.test("writeAtomically() replaces a file whole, and not at all when a piece fails", async () => {
  const folder = await mkdtemp(join(tmpdir(), "flashtape-")), path = join(folder, "x");
  try {
    await writeFile(path, "old");
    await assert.rejects(
      writeAtomically(
        path,
        (function* () {
          yield bytes;
          throw new Error("half-way");
        })(),
      ),
      /half-way/,
    );
    assert.equal(await readFile(path, "utf8"), "old");
    await writeAtomically(path, [bytes.subarray(0, 50), bytes.subarray(50)]);
    assert.deepEqual(new Uint8Array(await readFile(path)), bytes);
    assert.deepEqual(await readdir(folder), ["x"]);
  } finally {
    await rm(folder, { recursive: true });
  }
});

Deno.test("within() finds a file of a list by its name, and nothing for one that is not there", async () => {
  const files = [new File([bytes], "a"), new File(["{}"], "b.json")];
  assert.equal(within(files, "a"), files[0]);
  assert.equal(within(files, "c"), null);
  assert.deepEqual([await exists("test", within(files, "a")), await exists("test", within(files, "c"))], [true, false]);
  assert.equal(await readText("test", within(files, "b.json")), "{}");
  assert.equal(await readText("test", within(files, "c.json")), null);
  assert.equal(nameOf(files), "2 files");
});
