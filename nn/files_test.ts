import assert from "node:assert/strict";
import { mkdtemp, readdir, readFile, rm, writeFile } from "node:fs/promises";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { array, integer, property } from "../testing/mod.ts";
import { openBytes, writeAtomically } from "./files.ts";

const bytes = Uint8Array.from({ length: 100 }, (_, i) => i);

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
  for (const source of [bytes, new Blob([bytes]), stream(step)]) {
    const reader = await openBytes("test", source);
    let at = 0;
    for (const length of lengths) {
      assert.deepEqual(await reader.read(length), bytes.slice(at, at += length));
      at = Math.min(at, bytes.length);
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
