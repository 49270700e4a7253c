/** Bytes in and out: the one place that knows files, URLs and streams. */
import { FormatError, UnsupportedError } from "../tensor/errors.ts";

/** Where bytes come from: a path or `file:` URL, an http(s) URL, bytes, a Blob (a browser's File too), or a stream. */
export type ByteSource = string | URL | Uint8Array | Blob | ReadableStream<Uint8Array>;

/** A folder: a path, a URL, or its files as a page gets them from a person who picks one. */
export type Folder = string | URL | readonly File[];

/** Bytes read from front to back. */
export interface ByteReader {
  /** What errors call it. */
  readonly name: string;
  /** All its bytes; undefined for a stream, which does not say. */
  readonly size: number | undefined;
  /** The next `length` bytes, fewer only where the bytes end. The caller may keep the result. */
  read(length: number): Promise<Uint8Array>;
  /** Fills `out` with the next bytes, fewer only where the bytes end, and says how many. */
  readInto(out: Uint8Array): Promise<number>;
  /** Goes past the next `length` bytes, fewer only where the bytes end, and says how many. */
  skip(length: number): Promise<number>;
  /** Lets the file or stream go. */
  close(): Promise<void>;
}

/** There is nothing at a place. */
class MissingError extends FormatError {
  static {
    this.prototype.name = "FormatError";
  }
}

/**
 * Opens a source.
 * @throws {FormatError} when there is no such file, or a server answers with an error
 */
export async function openBytes(op: string, source: ByteSource): Promise<ByteReader> {
  if (source instanceof Uint8Array) {
    return pieces(`${source.byteLength} bytes`, source.byteLength, (a, b) => source.slice(a, b));
  }
  if (source instanceof Blob) {
    const name = "name" in source ? String(source.name) : `Blob of ${source.size} bytes`;
    return pieces(name, source.size, async (a, b) => new Uint8Array(await source.slice(a, b).arrayBuffer()));
  }
  if (source instanceof ReadableStream) return streamed("stream", undefined, source);
  if (source instanceof URL && source.protocol !== "file:") return await fetched(op, source);
  return await opened(op, source);
}

function pieces(
  name: string,
  size: number,
  slice: (begin: number, end: number) => Uint8Array | Promise<Uint8Array>,
): ByteReader {
  let at = 0;
  return {
    name,
    size,
    async read(length) {
      const begin = at;
      at = Math.min(size, at + length);
      return await slice(begin, at);
    },
    async readInto(out) {
      const bytes = await this.read(out.byteLength);
      out.set(bytes);
      return bytes.byteLength;
    },
    skip(length) {
      const begin = at;
      at = Math.min(size, at + length);
      return Promise.resolve(at - begin);
    },
    close: () => Promise.resolve(),
  };
}

function streamed(name: string, size: number | undefined, stream: ReadableStream<Uint8Array>): ByteReader {
  const reader = stream.getReader();
  let rest: Uint8Array = new Uint8Array(0), ended = false;
  /** Up to `length` bytes as they come; nothing at the end. */
  const next = async (length: number): Promise<Uint8Array> => {
    while (rest.byteLength === 0 && !ended) {
      const { done, value } = await reader.read();
      if (done) ended = true;
      else rest = value;
    }
    const part = rest.subarray(0, length);
    rest = rest.subarray(part.byteLength);
    return part;
  };
  const forEachPart = async (length: number, f: (part: Uint8Array, at: number) => void): Promise<number> => {
    let at = 0;
    while (at < length) {
      const part = await next(length - at);
      if (part.byteLength === 0) break;
      f(part, at);
      at += part.byteLength;
    }
    return at;
  };
  return {
    name,
    size,
    async read(length) {
      // Grows with what arrives: a header that claims more than the stream holds allocates nothing for the claim.
      const parts: Uint8Array[] = [];
      const out = new Uint8Array(await forEachPart(length, (part) => parts.push(part)));
      let at = 0;
      for (const part of parts) {
        out.set(part, at);
        at += part.byteLength;
      }
      return out;
    },
    readInto: (out) => forEachPart(out.byteLength, (part, at) => out.set(part, at)),
    skip: (length) => forEachPart(length, () => {}),
    async close() {
      if (!ended) await reader.cancel();
      reader.releaseLock();
    },
  };
}

async function fetched(op: string, url: URL): Promise<ByteReader> {
  const response = await fetch(url);
  if (!response.ok || response.body === null) {
    await response.body?.cancel();
    const kind = response.status === 404 ? MissingError : FormatError;
    throw new kind(op, `${url}: the server answered ${response.status} ${response.statusText}`.trimEnd());
  }
  // The length counts bytes on the wire, which an encoding makes another number.
  const length = response.headers.has("content-encoding") ? null : response.headers.get("content-length");
  return streamed(String(url), length === null ? undefined : Number(length), response.body);
}

/**
 * The runtime's files.
 * @throws {UnsupportedError} in a page, which has none
 */
export async function fileSystem(op: string): Promise<typeof import("node:fs/promises")> {
  if (!("process" in globalThis)) {
    throw new UnsupportedError(
      op,
      "a page has no paths: read from new URL(path, location.href), a File or bytes, and write to a WritableStream",
    );
  }
  return await import("node:fs/promises");
}

async function opened(op: string, path: string | URL): Promise<ByteReader> {
  const name = nameOf(path);
  const { open } = await fileSystem(op);
  const file = await open(path, "r").catch((cause) => {
    if (cause?.code !== "ENOENT" && cause?.code !== "ENOTDIR") throw cause;
    throw new MissingError(op, `${name}: there is no such file`, { cause });
  });
  const info = await file.stat();
  if (!info.isFile()) {
    await file.close();
    throw new FormatError(op, `${name}: is a directory or device, not a file`);
  }
  let at = 0;
  const readInto = async (out: Uint8Array): Promise<number> => {
    let have = 0;
    while (have < out.byteLength) {
      const { bytesRead } = await file.read(out, have, out.byteLength - have, at);
      if (bytesRead === 0) break;
      have += bytesRead;
      at += bytesRead;
    }
    return have;
  };
  return {
    name,
    size: info.size,
    async read(length) {
      const out = new Uint8Array(length), have = await readInto(out);
      return have === length ? out : out.slice(0, have);
    },
    readInto,
    skip(length) {
      const begin = at;
      at = Math.min(info.size, at + length);
      return Promise.resolve(at - begin);
    },
    close: () => file.close(),
  };
}

/** Whether there is something at a place. */
export async function exists(op: string, source: ByteSource | null): Promise<boolean> {
  if (source === null) return false;
  try {
    const file = await openBytes(op, source);
    await file.close();
    return true;
  } catch (error) {
    if (error instanceof MissingError) return false;
    throw error;
  }
}

/** The longest text that is read whole. */
const maxText = 2 ** 28;

/**
 * A text file, or null when there is none.
 * @throws {FormatError} when it is no UTF-8
 */
export async function readText(op: string, source: ByteSource | null): Promise<string | null> {
  if (source === null) return null;
  let file: ByteReader;
  try {
    file = await openBytes(op, source);
  } catch (error) {
    if (error instanceof MissingError) return null;
    throw error;
  }
  try {
    if (file.size !== undefined && file.size > maxText) {
      throw new FormatError(op, `${file.name}: ${file.size} bytes are too long for a text`);
    }
    const bytes = await file.read(file.size ?? maxText);
    return new TextDecoder("utf-8", { fatal: true }).decode(bytes);
  } catch (cause) {
    if (!(cause instanceof TypeError)) throw cause;
    throw new FormatError(op, `${file.name}: is no UTF-8 text`, { cause });
  } finally {
    await file.close();
  }
}

/**
 * The place of a file in a folder; null for one that is not among the files of a list.
 * @param folder a path, a URL with or without a slash at its end, or a list of files
 */
export function within(folder: string | URL, file: string): string | URL;
export function within(folder: Folder, file: string): ByteSource | null;
export function within(folder: Folder, file: string): ByteSource | null {
  if (isList(folder)) return folder.find((each) => each.name === file) ?? null;
  if (!(folder instanceof URL)) return /[/\\]$/.test(folder) ? folder + file : `${folder || "."}/${file}`;
  const base = new URL(folder);
  if (!base.pathname.endsWith("/")) base.pathname += "/";
  return new URL(encodeURIComponent(file), base);
}

function isList(folder: Folder): folder is readonly File[] {
  return Array.isArray(folder);
}

/** A path as errors print it; for a list of files the folder that they were picked from, where they say. */
export function nameOf(path: Folder): string {
  if (isList(path)) return path[0]?.webkitRelativePath?.split("/")[0] || `${path.length} files`;
  return path instanceof URL && path.protocol === "file:" ? decodeURIComponent(path.pathname) : String(path);
}

/** A piece of a file after the other. */
type Chunks = AsyncIterable<Uint8Array> | Iterable<Uint8Array>;

/**
 * Writes a file whole or not at all: to a neighbour first, which then takes the file's name. An interrupt, a full disk
 * or an error in `chunks` leaves an older file as it was.
 */
export async function writeAtomically(path: string | URL, chunks: Chunks): Promise<void> {
  await writeAllAtomically([[path, chunks]]);
}

/**
 * Writes files that belong together: no file takes its name before all are written. They take their names in the order
 * given.
 */
export async function writeAllAtomically(files: readonly (readonly [path: string | URL, Chunks])[]): Promise<void> {
  const { open, rename, rm } = await fileSystem("write");
  const moves: { readonly draft: string; readonly target: string }[] = [];
  try {
    for (const [path, chunks] of files) {
      const target = path instanceof URL ? nameOf(path) : path;
      const draft = `${target}.${crypto.randomUUID().slice(0, 8)}.part`;
      const file = await open(draft, "wx");
      moves.push({ draft, target });
      try {
        for await (const chunk of chunks) {
          for (let at = 0; at < chunk.byteLength;) {
            at += (await file.write(chunk, at, chunk.byteLength - at, null)).bytesWritten;
          }
        }
        await file.sync();
      } finally {
        await file.close();
      }
    }
    for (const { draft, target } of moves) await rename(draft, target);
  } catch (error) {
    for (const { draft } of moves) await rm(draft, { force: true });
    throw error;
  }
}
