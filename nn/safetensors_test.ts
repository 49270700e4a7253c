import assert from "node:assert/strict";
import { mkdtemp, readdir, readFile, rm, stat, truncate, writeFile } from "node:fs/promises";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { pathToFileURL } from "node:url";
import type { Backend } from "../tensor/backend.ts";
import { cpu } from "../tensor/cpu.ts";
import { ones, tensor, zeros } from "../tensor/create.ts";
import type { DType } from "../tensor/dtype.ts";
import { DTypeError, FormatError, LimitError, UnsupportedError, ValueError } from "../tensor/errors.ts";
import { transpose } from "../tensor/movement.ts";
import { dispose } from "../tensor/scope.ts";
import type { Tensor } from "../tensor/tensor.ts";
import { array, boolean, compose, elementOf, integer, property, tuple } from "../testing/mod.ts";
import { safetensors } from "./mod.ts";

const dtypes: readonly DType[] = ["f64", "f32", "f16", "bf16", "i32", "u32", "bool"];

/** A file from a header, which may lie, and so many bytes of tensors. */
function file(header: unknown, bytes = 0, length?: number): Uint8Array<ArrayBuffer> {
  const text = header instanceof Uint8Array
    ? header
    : new TextEncoder().encode(typeof header === "string" ? header : JSON.stringify(header));
  const out = new Uint8Array(8 + text.byteLength + bytes);
  new DataView(out.buffer).setBigUint64(0, BigInt(length ?? text.byteLength), true);
  out.set(text, 8);
  return out;
}

function stream(bytes: Uint8Array, step = 3): ReadableStream<Uint8Array> {
  let at = 0;
  return new ReadableStream({
    pull(controller) {
      if (at >= bytes.byteLength) return controller.close();
      controller.enqueue(bytes.slice(at, at += step));
    },
  });
}

async function inFolder(f: (folder: string) => Promise<void>): Promise<void> {
  const folder = await mkdtemp(join(tmpdir(), "flashtape-"));
  try {
    await f(folder);
  } finally {
    await rm(folder, { recursive: true });
  }
}

/** The call is refused, with a message of this form, and leaves nothing on the backend. */
async function refused(form: RegExp, source: safetensors.ByteSource, kind = FormatError): Promise<void> {
  const before = cpu().memory().current;
  cpu().resetPeak();
  await assert.rejects(safetensors.read(source), (error) => {
    assert(error instanceof kind, `${error}`);
    assert.match(error.message, form);
    return true;
  });
  assert.equal(cpu().memory().current, before);
  assert.equal(cpu().memory().peak, before, "allocated before it refused");
}

const one = { dtype: "F32", shape: [2], data_offsets: [0, 8] };

const anyTensors = compose((draw) => {
  const names = draw(array(elementOf("a", "b.weight", "10", "9", "1", "ключ", 'qu"o\\te', "__proto__", "", "\u0000"), {
    maxLength: 6,
  }));
  return [...new Set(names)].map((name) => ({
    name,
    dtype: draw(elementOf(...dtypes)),
    shape: draw(array(integer(0, 4), { maxLength: 3 })),
  }));
});

property("what write() writes, read() reads, bit for bit", [anyTensors], async (specs) => {
  const tensors: [string, Tensor][] = specs.map(({ name, dtype, shape }) => {
    const size = shape.reduce((a, b) => a * b, 1);
    const values = Float64Array.from({ length: size }, (_, i) => dtype === "bool" ? i % 2 : (i * 7 + size) % 11);
    return [name, tensor(values, { shape, dtype })];
  });
  const bytes = await safetensors.toBytes(Object.fromEntries(tensors), { metadata: { format: "pt" } });
  for (const source of [bytes, stream(bytes), new Blob([bytes])]) {
    const back = await safetensors.read(source);
    assert.equal(Object.keys(back).length, tensors.length);
    for (const [name, x] of tensors) {
      const y = Object.entries(back).find(([n]) => n === name)![1];
      assert.deepEqual([y.dtype, y.shape], [x.dtype, x.shape]);
      assert.deepEqual(await y.bytes(), await x.bytes());
    }
    dispose(Object.values(back));
  }
  dispose(tensors);
});

/** Bytes of a header that was right before something hit it. */
const damaged = compose((draw) => {
  const a = { dtype: draw(elementOf("F32", "BF16", "I32")), shape: [draw(integer(0, 3))], data_offsets: [0, 0] };
  a.data_offsets[1] = a.shape[0] * (a.dtype === "BF16" ? 2 : 4);
  const b = { dtype: "BOOL", shape: [2, 2], data_offsets: [a.data_offsets[1], a.data_offsets[1] + 4] };
  const bytes = file({ a, b }, b.data_offsets[1]);
  const hits = draw(array(tuple(integer(0, bytes.byteLength - 1), integer(0, 255)), { maxLength: 4 }));
  const cut = draw(boolean()) ? draw(integer(0, bytes.byteLength)) : bytes.byteLength;
  for (const [at, value] of hits) bytes[at] = value;
  return bytes.slice(0, cut);
});

property(
  "a damaged file is read as something whole, or refused with a FormatError that leaves nothing",
  [damaged],
  async (bytes) => {
    const before = cpu().memory().current;
    try {
      const tensors = await safetensors.read(bytes);
      const { tensors: infos } = await safetensors.readHeader(bytes);
      const total = Object.values(infos).reduce((sum, { offsets: [a, b] }) => sum + b - a, 0);
      assert.equal(8 + Number(new DataView(bytes.buffer).getBigUint64(0, true)) + total, bytes.byteLength);
      dispose(tensors);
    } catch (error) {
      assert(error instanceof FormatError, `${error}`);
      await assert.rejects(safetensors.read(stream(bytes)), FormatError);
    }
    assert.equal(cpu().memory().current, before);
  },
  { runs: 500 },
);

property("read() refuses every proper beginning of a file before it allocates", [integer(0, 200)], async (at) => {
  const bytes = await safetensors.toBytes({ a: zeros([3, 2]), b: ones([5], { dtype: "bool" }) });
  await refused(/bytes/, bytes.slice(0, at % bytes.byteLength));
});

Deno.test("read() names the file, the tensor and the reason", async () => {
  await inFolder(async (folder) => {
    const path = join(folder, "model.safetensors");
    await writeFile(path, file({ "layers.0.weight": { ...one, data_offsets: [0, 4] } }, 4));
    await refused(/model\.safetensors: tensor "layers\.0\.weight": \[2\] of F32 needs 8 bytes, its place has 4/, path);
    await refused(/there is no such file/, join(folder, "nothing"));
    await refused(/is a directory/, folder);
  });
});

Deno.test("read() refuses headers that lie", async () => {
  const bad = (info: unknown) => file({ x: info }, 8);
  await refused(/claims 100000001 bytes, more than/, file({ x: one }, 8, 100_000_001));
  await refused(/claims 18446744073709551615/, new Uint8Array(20).fill(255));
  await refused(/claims 99 bytes, the file has/, file({ x: one }, 8, 99));
  await refused(/begins with 8/, new Uint8Array(3));
  await refused(/not JSON/, file("{ x: 1 }"));
  await refused(/not JSON/, file(new Uint8Array([0x7b, 0x22, 0xff, 0x22, 0x3a, 0x31, 0x7d])));
  await refused(/not JSON/, file("\ufeff{}"));
  await refused(/not an object/, file("[]"));
  await refused(/not an object/, file("null"));
  await refused(/not described by an object/, bad(3));
  await refused(/not described by an object/, bad([one]));
  await refused(/dtype "I64" is none of F64 F32 F16 BF16 I32 U32 BOOL/, bad({ ...one, dtype: "I64" }));
  await refused(/dtype "toString" is none/, bad({ ...one, dtype: "toString" }));
  await refused(/dtype undefined is none/, bad({ shape: [2], data_offsets: [0, 8] }));
  await refused(/shape \[-2\] is not/, bad({ ...one, shape: [-2] }));
  await refused(/shape \[2\.5\] is not/, bad({ ...one, shape: [2.5] }));
  await refused(/shape \["2"\] is not/, bad({ ...one, shape: ["2"] }));
  await refused(/shape \[9007199254740992\] is not/, bad({ ...one, shape: [2 ** 53] }));
  await refused(/shape undefined is not/, bad({ dtype: "F32", data_offsets: [0, 8] }));
  await refused(/needs [\d.e+]+ bytes, its place has 8/, bad({ ...one, shape: Array(9).fill(2 ** 52) }));
  await refused(/needs Infinity bytes/, bad({ ...one, shape: Array(99).fill(2 ** 52) }));
  await refused(/two whole numbers/, bad({ ...one, data_offsets: [0, 8, 16] }));
  await refused(/two whole numbers/, bad({ ...one, data_offsets: [-8, 0] }));
  await refused(/before they begin/, bad({ ...one, data_offsets: [8, 0] }));
  await refused(/"strides", which is not of the format/, bad({ ...one, strides: [1] }));
  await refused(/the tensors take 8 bytes, the file has 7/, file({ x: one }, 7));
  await refused(/the tensors take 8 bytes, the file has 9/, file({ x: one }, 9));
  await refused(/tensor "y": its bytes begin at 4, inside/, file({ x: one, y: { ...one, data_offsets: [4, 12] } }, 12));
  await refused(/tensor "y": 4 bytes before it/, file({ x: one, y: { ...one, data_offsets: [12, 20] } }, 20));
  await refused(/tensor "x": 4 bytes before it, from 0/, bad({ ...one, shape: [1], data_offsets: [4, 8] }));
  await refused(/key "x" twice/, file(`{"x":${JSON.stringify(one)},"\\u0078":${JSON.stringify(one)}}`, 8));
  await refused(/key "dtype" twice/, file(`{"x":{"dtype":"F32","dtype":"F32","shape":[2],"data_offsets":[0,8]}}`, 8));
  await refused(/object of strings/, file({ __metadata__: { a: 1 }, x: one }, 8));
  await refused(/object of strings/, file({ __metadata__: "pt", x: one }, 8));
});

Deno.test("a hostile header of megabytes is refused in a short message", async () => {
  const long = "x".repeat(8e6);
  await assert.rejects(safetensors.read(file({ [long]: 1 })), (error: Error) => error.message.length < 300);
  await assert.rejects(safetensors.read(file(`{"a":{"dtype":${"[".repeat(1e6)}${"]".repeat(1e6)}}}`)), FormatError);
  await assert.rejects(safetensors.read(file(`{"a":1,"a":"${'\\"'.repeat(2e6)}"}`)), /key "a" twice/);
});

Deno.test("read() refuses a stream that ends early or late, and frees what it had made", async () => {
  const bytes = await safetensors.toBytes({ a: ones([4]), b: ones([4]) });
  const before = cpu().memory().current;
  await assert.rejects(safetensors.read(stream(bytes.slice(0, -2))), /tensor "b": the file ends 2 bytes before/);
  await assert.rejects(safetensors.read(stream(new Uint8Array([...bytes, 0]))), /belong to no tensor at the end/);
  assert.equal(cpu().memory().current, before);
});

Deno.test("read() casts floats to the dtype asked for and leaves integers", async () => {
  const bytes = await safetensors.toBytes({ w: tensor([1, 2.5], { dtype: "bf16" }), n: tensor([3], { dtype: "i32" }) });
  const { w, n } = await safetensors.read(bytes, { dtype: "f32" });
  assert.deepEqual([w.dtype, await w.array(), n.dtype], ["f32", [1, 2.5], "i32"]);
  await assert.rejects(safetensors.read(bytes, { dtype: "i32" }), DTypeError);
});

Deno.test("read() refuses a dtype that the backend lacks before it makes anything, or casts it on the host", async () => {
  const narrow = Object.create(cpu(), {
    dtypes: { value: dtypes.filter((d) => d !== "f64") },
    name: { value: "narrow" },
  });
  const upload: DType[] = [];
  const backend = new Proxy(cpu(), {
    get: (target, key) => {
      if (key === "dtypes" || key === "name") return narrow[key];
      if (key === "upload") {
        return (dtype: DType, bytes: Uint8Array) => {
          upload.push(dtype);
          return target.upload(dtype, bytes);
        };
      }
      const value = Reflect.get(target, key, target);
      return typeof value === "function" ? value.bind(target) : value;
    },
  });
  const bytes = await safetensors.toBytes({ a: ones([2]), x: tensor([0.1, 2], { dtype: "f64" }) });
  await assert.rejects(safetensors.read(bytes, { backend }), UnsupportedError);
  assert.deepEqual(upload, []);
  const { x } = await safetensors.read(bytes, { backend, dtype: "f16" });
  assert.deepEqual(await x.array(), await tensor([0.1, 2], { dtype: "f16" }).array());
});

Deno.test("read() takes from a stream no more than the tensor it is at, and tells how far it is", async () => {
  const tensors = Object.fromEntries(Array.from({ length: 8 }, (_, i) => [`t${i}`, ones([1 << 10])]));
  const bytes = await safetensors.toBytes(tensors);
  const header = bytes.byteLength - (1 << 15), step = 512;
  let taken = 0;
  const source = new ReadableStream<Uint8Array>({
    pull(controller) {
      controller.enqueue(bytes.slice(taken, taken += step));
      if (taken >= bytes.byteLength) controller.close();
    },
  });
  const heard: safetensors.ReadProgress[] = [];
  await safetensors.read(source, {
    onProgress: (progress) => {
      heard.push(progress);
      assert(taken <= header + progress.bytes + 2 * step, `took ${taken} bytes for ${progress.bytes}`);
    },
  });
  assert.deepEqual(heard.map((p) => p.tensors), [1, 2, 3, 4, 5, 6, 7, 8]);
  assert.deepEqual(heard.at(-1), { name: "t7", tensors: 8, totalTensors: 8, bytes: 1 << 15, totalBytes: 1 << 15 });
});

Deno.test("tensors larger than a piece are written and read piece by piece", async () => {
  const rows = 2049, columns = 4099, values = Uint32Array.from({ length: rows * columns }, (_, i) => i);
  const x = tensor(values, { shape: [rows, columns] }), y = transpose(x);
  const chunks: Uint8Array[] = [];
  await safetensors.write(new WritableStream({ write: (chunk) => void chunks.push(chunk) }), { y });
  assert(chunks.length > 2 && chunks.every((chunk) => chunk.byteLength <= 2 ** 25), `${chunks.map((c) => c.length)}`);
  const file = new Blob(chunks as Uint8Array<ArrayBuffer>[]);
  for (const source of [file, file.stream()]) {
    const back = await safetensors.read(source);
    using again = transpose(back.y);
    assert.deepEqual(await again.data(), values);
    dispose(back);
  }
  dispose([x, y]);
});

Deno.test("read() hands over pieces, and waits for the device before too many of them pile up", async () => {
  await inFolder(async (folder) => {
    const path = join(folder, "large.safetensors"), each = 41 * 2 ** 20, count = 5;
    const header = Object.fromEntries(
      Array.from(
        { length: count },
        (_, i) => [`t${i}`, { dtype: "BF16", shape: [each / 2], data_offsets: [i * each, (i + 1) * each] }],
      ),
    );
    await writeFile(path, file(header));
    await truncate(path, (await stat(path)).size + count * each); // zeros that take no room
    let waiting = 0, most = 0, largest = 0, total = 0;
    const still = { refs: 0, free: () => {} };
    const backend: Backend = Object.create(cpu(), {
      allocate: { value: () => ({ ...still }) },
      write: {
        value: (_storage: unknown, _dtype: DType, _at: number, bytes: Uint8Array) => {
          largest = Math.max(largest, bytes.byteLength);
          most = Math.max(most, waiting += bytes.byteLength);
          total += bytes.byteLength;
        },
      },
      synchronize: { value: () => Promise.resolve(waiting = 0) },
    });
    dispose(await safetensors.read(path, { backend }));
    assert.equal(total, count * each);
    assert(largest <= 2 ** 25 && most < 2 ** 27 + largest && most > largest, `pieces of ${largest}, ${most} waiting`);
  });
});

Deno.test("read() goes past tensors that nobody asked for", async () => {
  const bytes = await safetensors.toBytes({ a: ones([4]), b: zeros([2]), c: tensor([7]) });
  for (const source of [bytes, stream(bytes)]) {
    const heard: safetensors.ReadProgress[] = [];
    const back = await safetensors.read(source, { only: (n) => n !== "b", onProgress: (p) => heard.push(p) });
    assert.deepEqual(Object.keys(back), ["a", "c"]);
    assert.deepEqual(await back.c.array(), [7]);
    assert.deepEqual(heard.at(-1), { name: "c", tensors: 2, totalTensors: 2, bytes: 20, totalBytes: 20 });
  }
  await assert.rejects(
    safetensors.read(stream(bytes.slice(0, -1)), { only: (n) => n === "a" }),
    /tensor "c": the file ends 1 bytes before/,
  );
});

Deno.test("read() refuses a tensor that one binding cannot hold, by name, before it makes anything", async () => {
  const backend: Backend = Object.create(cpu(), { capabilities: { value: { ...cpu().capabilities, maxBinding: 16 } } });
  const bytes = await safetensors.toBytes({ a: ones([4]), b: ones([6], { dtype: "bf16" }) });
  const before = cpu().memory().current;
  await assert.rejects(safetensors.read(bytes, { backend, dtype: "f32" }), (error) => {
    assert(error instanceof LimitError);
    assert.match(
      error.message,
      /tensor "b": \[6\] of f32 takes 24 bytes, one binding of this device holds 16: use its/,
    );
    return true;
  });
  assert.equal(cpu().memory().current, before);
});

Deno.test("write() goes to a path, a URL and a stream, and leaves no other file", async () => {
  await inFolder(async (folder) => {
    const x = tensor([[1, 2], [3, 4]]);
    const path = join(folder, "a b.safetensors"), url = pathToFileURL(join(folder, "c d.safetensors"));
    await safetensors.write(path, { x: transpose(x) }, { metadata: { note: "view" } });
    await safetensors.write(url, { x: transpose(x) }, { metadata: { note: "view" } });
    assert.deepEqual((await readdir(folder)).sort(), ["a b.safetensors", "c d.safetensors"]);
    assert.deepEqual(await readFile(path), await readFile(url));
    assert.deepEqual(await (await safetensors.read(url)).x.array(), [[1, 3], [2, 4]]);
    assert.deepEqual((await safetensors.readHeader(path)).metadata, { note: "view" });
    const { readable, writable } = new TransformStream<Uint8Array, Uint8Array>();
    const [back] = await Promise.all([safetensors.read(readable), safetensors.write(writable, { x })]);
    assert.deepEqual(await back.x.array(), [[1, 2], [3, 4]]);
  });
});

Deno.test("write() that fails half-way leaves the old file as it was", async () => {
  await inFolder(async (folder) => {
    const path = join(folder, "model.safetensors");
    await safetensors.write(path, { x: ones([3]) });
    const before = await readFile(path);
    const gone = ones([4]);
    gone.dispose();
    await assert.rejects(safetensors.write(path, { a: zeros([5]), b: gone }), /disposed/);
    assert.deepEqual(await readFile(path), before);
    assert.deepEqual(await readdir(folder), ["model.safetensors"]);
  });
});

Deno.test("write() refuses what a header cannot hold", async () => {
  await assert.rejects(safetensors.toBytes({ __metadata__: ones([1]) }), ValueError);
  const metadata = { a: 1 } as unknown as Record<string, string>;
  await assert.rejects(safetensors.toBytes({}, { metadata }), /metadata "a" is number/);
});

Deno.test("write() places every tensor at a multiple of its element", async () => {
  const bytes = await safetensors.toBytes({
    a: ones([3], { dtype: "bool" }),
    b: ones([3], { dtype: "bf16" }),
    c: ones([1], { dtype: "f64" }),
    d: ones([1]),
  });
  const { tensors } = await safetensors.readHeader(bytes);
  assert.deepEqual(Object.fromEntries(Object.entries(tensors).map(([n, t]) => [n, t.offsets])), {
    c: [0, 8],
    d: [8, 12],
    b: [12, 18],
    a: [18, 21],
  });
});

Deno.test("a checkpoint of transformers is read with its dtypes and shapes", async () => {
  const path = new URL("./fixtures/llama-a/model.safetensors", import.meta.url);
  const params = await safetensors.read(path);
  assert.deepEqual(params["model.embed_tokens.weight"].shape, [700, 64]);
  assert.equal(params["model.layers.1.self_attn.k_proj.weight"].dtype, "bf16");
  assert.equal((await safetensors.readHeader(path)).metadata.format, "pt");
});
