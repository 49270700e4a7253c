/** Bytes in and out: the one place that knows files, URLs and streams. */
import { FormatError } from "../tensor/errors.ts";

/** Where bytes come from: a path or `file:` URL, an http(s) URL, bytes, a Blob (a browser's File too), or a stream. */
export type ByteSource = string | URL | Uint8Array | Blob | ReadableStream<Uint8Array>;

/** Bytes read from front to back. */
export interface ByteReader {
  /** What errors call it. */
  readonly name: string;
  /** All its bytes; undefined for a stream, which does not say. */
  readonly size: number | undefined;
  /** The next `length` bytes, fewer only where the bytes end. The caller may keep the result. */
  read(length: number): Promise<Uint8Array>;
  /** Lets the file or stream go. */
  close(): Promise<void>;
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
    close: () => Promise.resolve(),
  };
}

function streamed(name: string, size: number | undefined, stream: ReadableStream<Uint8Array>): ByteReader {
  const reader = stream.getReader();
  let rest: Uint8Array = new Uint8Array(0), ended = false;
  return {
    name,
    size,
    async read(length) {
      // Grows with what arrives: a header that claims more than the stream holds allocates nothing for the claim.
      const parts: Uint8Array[] = [];
      let have = 0;
      while (have < length) {
        if (rest.byteLength === 0) {
          const { done, value } = await reader.read();
          if (done) {
            ended = true;
            break;
          }
          rest = value;
          continue;
        }
        const part = rest.subarray(0, length - have);
        rest = rest.subarray(part.byteLength);
        parts.push(part);
        have += part.byteLength;
      }
      const out = new Uint8Array(have);
      let at = 0;
      for (const part of parts) {
        out.set(part, at);
        at += part.byteLength;
      }
      return out;
    },
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
    throw new FormatError(op, `${url}: the server answered ${response.status} ${response.statusText}`.trimEnd());
  }
  // The length counts bytes on the wire, which an encoding makes another number.
  const length = response.headers.has("content-encoding") ? null : response.headers.get("content-length");
  return streamed(String(url), length === null ? undefined : Number(length), response.body);
}

async function opened(op: string, path: string | URL): Promise<ByteReader> {
  const name = nameOf(path);
  const { open } = await import("node:fs/promises");
  const file = await open(path, "r").catch((cause) => {
    if (cause?.code !== "ENOENT") throw cause;
    throw new FormatError(op, `${name}: there is no such file`, { cause });
  });
  const info = await file.stat();
  if (!info.isFile()) {
    await file.close();
    throw new FormatError(op, `${name}: is a directory or device, not a file`);
  }
  return {
    name,
    size: info.size,
    async read(length) {
      const out = new Uint8Array(length);
      let have = 0;
      while (have < length) {
        const { bytesRead } = await file.read(out, have, length - have, null);
        if (bytesRead === 0) break;
        have += bytesRead;
      }
      return have === length ? out : out.slice(0, have);
    },
    close: () => file.close(),
  };
}

/** A path as errors print it. */
export function nameOf(path: string | URL): string {
  return path instanceof URL && path.protocol === "file:" ? decodeURIComponent(path.pathname) : String(path);
}

/**
 * Writes a file whole or not at all: to a neighbour first, which then takes the file's name. An interrupt, a full disk
 * or an error in `chunks` leaves an older file as it was.
 */
export async function writeAtomically(
  path: string | URL,
  chunks: AsyncIterable<Uint8Array> | Iterable<Uint8Array>,
): Promise<void> {
  const { open, rename, rm } = await import("node:fs/promises");
  const target = path instanceof URL ? nameOf(path) : path;
  const draft = `${target}.${crypto.randomUUID().slice(0, 8)}.part`;
  const file = await open(draft, "wx");
  try {
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
    await rename(draft, target);
  } catch (error) {
    await rm(draft, { force: true });
    throw error;
  }
}
