/**
 * The safetensors format: a JSON header of names, dtypes, shapes and places, then the bytes of the tensors.
 *
 *   u64 length │ { "name": { dtype, shape, data_offsets: [begin, end] }, … } │ bytes …
 *
 * A header is checked whole before the first tensor is made: files come from strangers.
 * Format: https://huggingface.co/docs/safetensors
 */
import { type Backend, getBackend } from "../tensor/backend.ts";
import { decode, type DType, dtypes, encode, hostArray, isDType, isFloat, roundTo } from "../tensor/dtype.ts";
import { cast } from "../tensor/elementwise.ts";
import { DTypeError, FormatError, LimitError, show, ValueError } from "../tensor/errors.ts";
import { slice } from "../tensor/movement.ts";
import { checkDType } from "../tensor/op.ts";
import { track } from "../tensor/scope.ts";
import { type Shape, sizeOf, stridesOf } from "../tensor/shape.ts";
import { makeTensor, type Tensor } from "../tensor/tensor.ts";
import { type ByteReader, type ByteSource, openBytes, writeAtomically } from "./files.ts";

export type { ByteSource } from "./files.ts";

/** What a file says of one tensor. */
export interface TensorInfo {
  /** Element type. */
  readonly dtype: DType;
  /** Axis lengths. */
  readonly shape: Shape;
  /** Its first byte and the one past its last, counted from the end of the header. */
  readonly offsets: readonly [begin: number, end: number];
}

/** A file's table of contents. */
export interface Header {
  /** Tensors by name. */
  readonly tensors: Readonly<Record<string, TensorInfo>>;
  /** The free text that a file may carry. */
  readonly metadata: Readonly<Record<string, string>>;
}

/** How far a read has come. */
export interface ReadProgress {
  /** The tensor that was just read. */
  readonly name: string;
  /** Tensors read so far. */
  readonly tensors: number;
  /** Tensors to read. */
  readonly totalTensors: number;
  /** Bytes of tensors read so far. */
  readonly bytes: number;
  /** Bytes of all tensors to read. */
  readonly totalBytes: number;
}

/** Options of {@linkcode read}. */
export interface ReadOptions {
  /** Where the tensors go; the current backend when not given. */
  readonly backend?: Backend;
  /** Float tensors are cast to it; the file's own dtypes when not given. Integers and bool stay. */
  readonly dtype?: DType;
  /** Which tensors to read, by their names; all when not given. */
  readonly only?: (name: string) => boolean;
  /** Called after each tensor. */
  readonly onProgress?: (progress: ReadProgress) => void;
}

/** Options of {@linkcode write}. */
export interface WriteOptions {
  /** Free text for the header, such as `{ format: "pt" }`. */
  readonly metadata?: Readonly<Record<string, string>>;
}

/** Files name element types in capitals. */
const fileTypes: Readonly<Record<string, DType>> = {
  F64: "f64",
  F32: "f32",
  F16: "f16",
  BF16: "bf16",
  I32: "i32",
  U32: "u32",
  BOOL: "bool",
};

/** The longest header that the format allows. */
const maxHeader = 100_000_000;

/** What stands on the host at a time, of a file or on the way to one. */
const pieceBytes = 32 * 2 ** 20;

/** Bytes that may wait in the driver for a device to take them. */
const maxWaiting = 128 * 2 ** 20;

/**
 * Reads the tensors of a file, one by one and piece by piece, each straight to the backend: the host holds some two
 * hundred megabytes, however large the file.
 *
 * @param source a path, URL, bytes, Blob or stream
 * @returns the tensors by name
 * @throws {FormatError} naming file, tensor and reason, when the header is not what the format allows or the file is
 * longer or shorter than it says. Nothing is made then; of a stream, which does not tell its length, what was made is
 * freed again
 * @throws {UnsupportedError} when the backend has no such dtype (f64 on a GPU): name a `dtype` to cast to
 * @throws {LimitError} when a tensor is larger than the backend can bind
 *
 * @example
 * ```ts ignore
 * import { safetensors } from "@flashtape/flashtape/nn";
 * const params = await safetensors.read("model.safetensors", { dtype: "f32" });
 * console.log(Object.keys(params));
 * ```
 */
export async function read(source: ByteSource, options: ReadOptions = {}): Promise<Record<string, Tensor>> {
  const { backend = getBackend(), dtype: wanted, only = () => true, onProgress } = options;
  if (wanted !== undefined && (!isDType(wanted) || !isFloat(wanted))) {
    throw new DTypeError(op, `dtype is a float type or not given, got "${wanted}"`);
  }
  const file = await openBytes(op, source);
  const made: [string, Tensor][] = [];
  try {
    const { entries } = await tableOf(file);
    const chosen = entries.filter(([name]) => only(name));
    for (const [name, info] of chosen) checkFits(file.name, name, info, target(info.dtype, wanted), backend);
    const lengthOf = ({ offsets: [begin, end] }: TensorInfo) => end - begin;
    const totalBytes = chosen.reduce((sum, [, info]) => sum + lengthOf(info), 0);
    const upload = new Upload(file, backend, chosen.reduce((most, [, info]) => Math.max(most, lengthOf(info)), 0));
    let bytes = 0;
    for (const [name, info] of entries) {
      if (!only(name)) {
        const missing = lengthOf(info) - await file.skip(lengthOf(info));
        if (missing > 0) throw ended(file.name, missing, name);
        continue;
      }
      made.push([name, await upload.place(name, info, target(info.dtype, wanted))]);
      bytes += lengthOf(info);
      onProgress?.({ name, tensors: made.length, totalTensors: chosen.length, bytes, totalBytes });
    }
    if ((await file.read(1)).byteLength > 0) {
      throw refuse(file.name, "there are bytes that belong to no tensor at the end");
    }
    return Object.fromEntries(made);
  } catch (error) {
    for (const [, x] of made) x.dispose();
    throw error;
  } finally {
    await file.close();
  }
}

/**
 * Reads and checks a file's header alone.
 * @throws {FormatError} as {@linkcode read} does
 */
export async function readHeader(source: ByteSource): Promise<Header> {
  const file = await openBytes(op, source);
  try {
    const { entries, metadata } = await tableOf(file);
    return { tensors: Object.fromEntries(entries), metadata };
  } finally {
    await file.close();
  }
}

/**
 * Writes tensors to a file or stream, one by one. A file is written whole or not at all: an interrupt or an error
 * leaves the old one as it was.
 *
 * @param to a path or `file:` URL, or a stream, which is closed at the end
 * @param tensors by name
 * @throws {ValueError} when a name or the metadata cannot stand in the header
 *
 * @example
 * ```ts ignore
 * import { tensor } from "@flashtape/flashtape";
 * import { safetensors } from "@flashtape/flashtape/nn";
 * await safetensors.write("model.safetensors", { weight: tensor([[1, 2], [3, 4]]) });
 * ```
 */
export async function write(
  to: string | URL | WritableStream<Uint8Array>,
  tensors: Readonly<Record<string, Tensor>>,
  options: WriteOptions = {},
): Promise<void> {
  if (!(to instanceof WritableStream)) return await writeAtomically(to, chunks(tensors, options));
  const writer = to.getWriter();
  try {
    for await (const chunk of chunks(tensors, options)) {
      await writer.ready;
      await writer.write(chunk);
    }
    await writer.close();
  } catch (error) {
    await writer.abort(error).catch(() => {}); // the stream may be the one that failed
    throw error;
  }
}

/**
 * The file that {@linkcode write} would write, as bytes.
 *
 * @example
 * ```ts
 * import { tensor } from "@flashtape/flashtape";
 * import { safetensors } from "@flashtape/flashtape/nn";
 * const bytes = await safetensors.toBytes({ weight: tensor([1, 2]) });
 * const { weight } = await safetensors.read(bytes);
 * console.log(await weight.array()); // [1, 2]
 * ```
 */
export async function toBytes(
  tensors: Readonly<Record<string, Tensor>>,
  options: WriteOptions = {},
): Promise<Uint8Array<ArrayBuffer>> {
  const parts: Uint8Array<ArrayBuffer>[] = [];
  for await (const chunk of chunks(tensors, options)) parts.push(chunk as Uint8Array<ArrayBuffer>);
  return new Uint8Array(await new Blob(parts).arrayBuffer());
}

const op = "safetensors";

function refuse(file: string, reason: string, tensor?: string): FormatError {
  return new FormatError(
    op,
    tensor === undefined ? `${file}: ${reason}` : `${file}: tensor ${brief(tensor)}: ${reason}`,
  );
}

/** A value of a stranger's header as errors print it: never long, never deep. */
function brief(value: unknown): string {
  if (typeof value === "string") return JSON.stringify(value.length > 80 ? `${value.slice(0, 80)}…` : value);
  if (Array.isArray(value)) {
    const first = value.slice(0, 8).map((v) => typeof v === "object" && v !== null ? "…" : brief(v));
    return `[${first.join(",")}${value.length > 8 ? ",…" : ""}]`;
  }
  return typeof value === "object" && value !== null ? "{…}" : String(value);
}

function target(dtype: DType, wanted: DType | undefined): DType {
  return wanted !== undefined && isFloat(dtype) ? wanted : dtype;
}

function ended(file: string, missing: number, tensor: string): FormatError {
  return refuse(file, `the file ends ${missing} bytes before its end`, tensor);
}

/** Refuses a tensor that the backend cannot hold: of a type that it lacks, or too large. */
function checkFits(file: string, name: string, { shape, dtype }: TensorInfo, to: DType, backend: Backend): void {
  checkDType(op, backend, to);
  const { maxBinding } = backend.capabilities;
  for (const type of new Set([dtype, to])) {
    const bytes = sizeOf(shape) * (type === "bool" ? 4 : dtypes[type].bytes);
    if (!backend.dtypes.includes(type) || bytes <= maxBinding) continue;
    throw new LimitError(
      op,
      `${file}: tensor ${brief(name)}: ${show(shape)} of ${type} takes ${bytes} bytes, one binding of this device ` +
        `holds ${maxBinding}: use ${
          type === dtype ? "" : `its own dtype ${dtype}, `
        }another device, or the CPU backend`,
    );
  }
}

/** The way of bytes from a file to a backend, through one buffer on the host. */
class Upload {
  readonly #file: ByteReader;
  readonly #backend: Backend;
  readonly #piece: Uint8Array<ArrayBuffer>;
  #waiting = 0;

  constructor(file: ByteReader, backend: Backend, largest: number) {
    this.#file = file;
    this.#backend = backend;
    // A stream may promise what it does not hold: of it, what has arrived is kept, and no place is made before.
    this.#piece = new Uint8Array(file.size === undefined ? 0 : Math.min(pieceBytes, largest));
  }

  /** The next tensor of the file; cast on the backend when that holds the file's dtype, else on the host. */
  async place(name: string, { shape, dtype, offsets: [begin, end] }: TensorInfo, to: DType): Promise<Tensor> {
    const file = this.#file, backend = this.#backend;
    const kept = backend.dtypes.includes(dtype) ? dtype : to;
    const first = file.size === undefined ? await file.read(end - begin) : null;
    if (first !== null && first.byteLength < end - begin) throw ended(file.name, end - begin - first.byteLength, name);
    const layout = { shape, strides: stridesOf(shape), offset: 0 };
    const storage = backend.allocate(kept, sizeOf(shape));
    const x = track(makeTensor(backend, storage, layout, kept, op));
    try {
      for (let at = begin; at < end;) {
        const part = first ?? this.#piece.subarray(0, Math.min(this.#piece.byteLength, end - at));
        const have = first?.byteLength ?? await file.readInto(part);
        if (have < part.byteLength) throw ended(file.name, end - at - have, name);
        const bytes = kept === dtype ? part : converted(part, dtype, to);
        backend.write(storage, kept, (at - begin) / dtypes[dtype].bytes, bytes);
        at += have;
        await this.#sent(bytes.byteLength);
      }
      if (kept === to) return x;
      const y = cast(x, to);
      x.dispose();
      return y;
    } catch (error) {
      x.dispose();
      throw error;
    }
  }

  /** Waits now and then until the device has taken what was written: until then the driver keeps a copy. */
  async #sent(bytes: number): Promise<void> {
    this.#waiting += bytes;
    if (this.#waiting < maxWaiting) return;
    await this.#backend.synchronize();
    this.#waiting = 0;
  }
}

function converted(bytes: Uint8Array, dtype: DType, to: DType): Uint8Array {
  const from = decode(dtype, bytes), values = hostArray(to, from.length);
  values.set(from);
  roundTo(to, values);
  return encode(to, values);
}

/** A header with its tensors in the order of their bytes, which an object with keys such as "1" would not keep. */
interface Table {
  readonly entries: readonly (readonly [name: string, info: TensorInfo])[];
  readonly metadata: Readonly<Record<string, string>>;
}

/** The header of a file that stands at its beginning, checked; the file then stands at the first tensor. */
async function tableOf(file: ByteReader): Promise<Table> {
  const first = await file.read(8);
  if (first.byteLength < 8) {
    throw refuse(file.name, `${first.byteLength} bytes are no safetensors file: it begins with 8`);
  }
  const length = new DataView(first.buffer, first.byteOffset).getBigUint64(0, true);
  if (length > maxHeader) throw refuse(file.name, `the header claims ${length} bytes, more than ${maxHeader}`);
  if (file.size !== undefined && length > file.size - 8) {
    throw refuse(file.name, `the header claims ${length} bytes, the file has ${file.size - 8} after its first 8`);
  }
  const bytes = await file.read(Number(length));
  if (bytes.byteLength < Number(length)) {
    throw refuse(file.name, `the header claims ${length} bytes, the file ends after ${bytes.byteLength} of them`);
  }
  const table = parseHeader(bytes, file.name);
  const end = table.entries.at(-1)?.[1].offsets[1] ?? 0;
  if (file.size !== undefined && file.size - 8 - Number(length) !== end) {
    throw refuse(file.name, `the tensors take ${end} bytes, the file has ${file.size - 8 - Number(length)} for them`);
  }
  return table;
}

/** A header's bytes as a table, or the reason why they are none. */
function parseHeader(bytes: Uint8Array, file: string): Table {
  let text: string, json: unknown;
  try {
    text = new TextDecoder("utf-8", { fatal: true, ignoreBOM: true }).decode(bytes);
    json = JSON.parse(text);
  } catch (cause) {
    throw new FormatError(op, `${file}: the header is not JSON: ${cause instanceof Error ? cause.message : cause}`, {
      cause,
    });
  }
  if (!isObject(json)) throw refuse(file, "the header is JSON, but not an object");
  const twice = repeatedKey(text);
  if (twice !== undefined) throw refuse(file, `the header has the key ${brief(twice)} twice`);
  const entries: [string, TensorInfo][] = [];
  let metadata: Record<string, string> = {};
  for (const [name, value] of Object.entries(json)) {
    if (name !== "__metadata__") entries.push([name, parseInfo(value, name, file)]);
    else if (isObject(value) && Object.values(value).every((v) => typeof v === "string")) {
      metadata = value as Record<string, string>;
    } else throw refuse(file, "__metadata__ is not an object of strings");
  }
  entries.sort(([, a], [, b]) => a.offsets[0] - b.offsets[0] || a.offsets[1] - b.offsets[1]);
  let end = 0;
  for (const [name, { offsets: [begin, after] }] of entries) {
    if (begin < end) throw refuse(file, `its bytes begin at ${begin}, inside another tensor that ends at ${end}`, name);
    if (begin > end) throw refuse(file, `${begin - end} bytes before it, from ${end}, belong to no tensor`, name);
    end = after;
  }
  return { entries, metadata };
}

function parseInfo(value: unknown, name: string, file: string): TensorInfo {
  const bad = (reason: string) => refuse(file, reason, name);
  if (!isObject(value)) throw bad("is not described by an object");
  const { dtype: type, shape, data_offsets: offsets, ...others } = value;
  for (const key of Object.keys(others)) throw bad(`has ${brief(key)}, which is not of the format`);
  if (typeof type !== "string" || !Object.hasOwn(fileTypes, type)) {
    throw bad(`dtype ${brief(type)} is none of ${Object.keys(fileTypes).join(" ")}`);
  }
  if (!Array.isArray(shape) || !shape.every(isCount)) {
    throw bad(`shape ${brief(shape)} is not a list of whole numbers from 0`);
  }
  if (!Array.isArray(offsets) || offsets.length !== 2 || !offsets.every(isCount)) {
    throw bad(`data_offsets ${brief(offsets)} are not two whole numbers from 0`);
  }
  const [begin, end] = offsets, dtype = fileTypes[type];
  if (end < begin) throw bad(`its bytes end at ${end}, before they begin at ${begin}`);
  // A zero anywhere makes it empty, however large the other axes; else the product only grows.
  let need: number = dtypes[dtype].bytes;
  if (shape.includes(0)) need = 0;
  else for (const n of shape) need *= n;
  if (need !== end - begin) throw bad(`${show(shape)} of ${type} needs ${need} bytes, its place has ${end - begin}`);
  return { dtype, shape, offsets: [begin, end] };
}

function isObject(value: unknown): value is Record<string, unknown> {
  return typeof value === "object" && value !== null && !Array.isArray(value);
}

function isCount(value: unknown): value is number {
  return Number.isSafeInteger(value) && (value as number) >= 0;
}

/** The first key that stands twice in one object of valid JSON, which JSON.parse would not tell. */
function repeatedKey(json: string): string | undefined {
  const open: (Set<string> | null)[] = []; // the keys of each object that is open, null for an array
  const tokens = /"[^"\\]*(?:\\.[^"\\]*)*"(\s*:)?|[{}[\]]/g;
  for (const [token, colon] of json.matchAll(tokens)) {
    if (token === "{") open.push(new Set());
    else if (token === "[") open.push(null);
    else if (token === "}" || token === "]") open.pop();
    else if (colon !== undefined) {
      const key: string = JSON.parse(token.slice(0, -colon.length));
      const keys = open.at(-1);
      if (keys?.has(key)) return key;
      keys?.add(key);
    }
  }
}

/**
 * The file that {@linkcode write} would write, in pieces: the header, then the tensors, read from the backend when their
 * turn comes.
 * @throws as {@linkcode write} does
 */
export async function* chunks(
  tensors: Readonly<Record<string, Tensor>>,
  { metadata = {} }: WriteOptions = {},
): AsyncGenerator<Uint8Array> {
  for (const [key, value] of Object.entries(metadata)) {
    if (typeof value !== "string") throw new ValueError(op, `metadata "${key}" is ${typeof value}, expected a string`);
  }
  // The widest first, so that every tensor begins at a multiple of its element.
  const order = Object.entries(tensors).sort(([a, x], [b, y]) =>
    dtypes[y.dtype].bytes - dtypes[x.dtype].bytes || (a < b ? -1 : 1)
  );
  const names = Object.fromEntries(Object.entries(fileTypes).map(([type, dtype]) => [dtype, type]));
  const header: [string, unknown][] = Object.keys(metadata).length > 0 ? [["__metadata__", metadata]] : [];
  let end = 0;
  for (const [name, x] of order) {
    if (name === "__metadata__") throw new ValueError(op, `"__metadata__" is the format's own and names no tensor`);
    const begin = end;
    end += x.size * dtypes[x.dtype].bytes;
    header.push([name, { dtype: names[x.dtype], shape: x.shape, data_offsets: [begin, end] }]);
  }
  const json = JSON.stringify(Object.fromEntries(header));
  const text = new TextEncoder().encode(json);
  const length = Math.ceil(text.byteLength / 8) * 8;
  if (length > maxHeader) throw new ValueError(op, `the header takes ${length} bytes, the format allows ${maxHeader}`);
  const first = new Uint8Array(8 + length).fill(0x20);
  new DataView(first.buffer).setBigUint64(0, BigInt(length), true);
  first.set(text, 8);
  yield first;
  for (const [, x] of order) yield* piecesOf(x);
}

/** A tensor's bytes, some rows at a time when it is large. */
async function* piecesOf(x: Tensor): AsyncGenerator<Uint8Array> {
  const bytes = x.size * dtypes[x.dtype].bytes;
  if (bytes <= pieceBytes) return yield await x.bytes();
  const step = Math.max(1, Math.floor(x.shape[0] * pieceBytes / bytes));
  for (let row = 0; row < x.shape[0]; row += step) {
    using rows = slice(x, [row], [Math.min(x.shape[0], row + step)]);
    yield await rows.bytes();
  }
}
