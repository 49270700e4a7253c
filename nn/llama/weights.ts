/** A model as a directory: Hugging Face's layout in, the same layout out. */
import type { Backend } from "../../tensor/backend.ts";
import { type DType, dtypes, promote } from "../../tensor/dtype.ts";
import { FormatError, UnsupportedError, ValueError } from "../../tensor/errors.ts";
import type { Tensor } from "../../tensor/tensor.ts";
import {
  type ByteSource,
  exists,
  fileSystem,
  type Folder,
  nameOf,
  readText,
  within,
  writeAllAtomically,
} from "../files.ts";
import { chunks, read, readHeader, type ReadProgress, type TensorInfo } from "../safetensors.ts";
import { checkTensors } from "./checkpoint.ts";
import { checkGenerationConfig, dimensions, type GenerationConfig, type LlamaConfig, roundRotary } from "./config.ts";
import { type LlamaParams, parameterShapes } from "./model.ts";
import { missingTokenizer, type Tokenizer } from "./text.ts";

/** A model: what `generate` runs and `save` writes. */
export interface LlamaModel {
  /** What it is. */
  readonly config: LlamaConfig;
  /** Its parameters by the names that checkpoints use. */
  readonly params: LlamaParams;
  /** Between text and ids. */
  readonly tokenizer?: Tokenizer;
  /** How it likes to be sampled. */
  readonly generationConfig?: GenerationConfig;
}

/** A model that came from a directory. */
export interface LoadedLlama extends LlamaModel {
  /** Its parameters by the names that checkpoints use. */
  readonly params: Record<string, Tensor>;
  /** Between text and ids; where the directory has no tokenizer, one of `size` 0 whose calls say so. */
  readonly tokenizer: Tokenizer;
  /** How it likes to be sampled; empty when the directory does not say. */
  readonly generationConfig: GenerationConfig;
}

/** Options of {@linkcode load}. */
export interface LoadOptions {
  /** Where the parameters go; the current backend when not given. */
  readonly backend?: Backend;
  /** What they are cast to; the file's own types when not given. */
  readonly dtype?: DType;
  /** Whether to load the tokenizer, which needs its packages; true when not given. */
  readonly tokenizer?: boolean;
  /**
   * Rounds the rotary frequencies to a 16-bit type, as they are in a model that was cast whole (`model.half()`,
   * `model.to(torch.bfloat16)`); exact when not given, as transformers loads them. The returned config says so in
   * `rope_parameters.inv_freq`.
   */
  readonly rotaryDtype?: "f16" | "bf16";
  /** Called after each tensor. */
  readonly onProgress?: (progress: ReadProgress) => void;
}

/** Options of {@linkcode save}. */
export interface SaveOptions {
  /** The most bytes of tensors in one file: more are split over several behind an index; 5e9 when not given. */
  readonly maxShardBytes?: number;
  /** Called as bytes are written. */
  readonly onProgress?: (progress: { readonly bytes: number; readonly totalBytes: number }) => void;
}

const loading = "llama.load", saving = "llama.save";

/**
 * Loads a model from a directory as Hugging Face keeps them: `config.json`, `model.safetensors` or the files behind
 * `model.safetensors.index.json`, and where there are such `generation_config.json`, `tokenizer.json`,
 * `tokenizer_config.json` and `chat_template.jinja`. Tensors go to the backend piece by piece.
 *
 * The `lm_head.weight` that some files hold although the config ties it to the embedding is not read.
 *
 * @param dir a path, a `file:`, `http:` or `https:` URL, or in a page the files of a directory that a person picked
 * @throws {FormatError} when a file is missing or not what it says
 * @throws {CheckpointError} when the tensors are not those of the config: all of them by name and shape
 * @throws {UnsupportedError} when the model is not of this family, or the tokenizer's packages cannot be loaded
 * @throws {LimitError} when the backend cannot bind one of the tensors
 *
 * @example
 * ```ts ignore
 * import { init } from "@flashtape/flashtape";
 * import { llama } from "@flashtape/flashtape/nn";
 * await init();
 * const model = await llama.load("Llama-3.2-1B-Instruct");
 * console.log(model.tokenizer.encode("Call me Ishmael."));
 * ```
 */
export async function load(dir: Folder, options: LoadOptions = {}): Promise<LoadedLlama> {
  const { backend, dtype, tokenizer: wantsTokenizer = true, rotaryDtype, onProgress } = options;
  const name = nameOf(dir);
  const text = await readText(loading, within(dir, "config.json"));
  if (text === null) throw new FormatError(loading, `${name}: there is no config.json: name a model's directory`);
  const given = parse(text, `${name}/config.json`) as unknown as LlamaConfig;
  const { vocabulary } = dimensions(given);
  if (rotaryDtype !== undefined && rotaryDtype !== "f16" && rotaryDtype !== "bf16") {
    throw new ValueError(loading, `rotaryDtype is "f16", "bf16" or not given, got "${rotaryDtype}"`);
  }
  const sampling = await readText(loading, within(dir, "generation_config.json"));
  const generationConfig = sampling === null
    ? {}
    : checkGenerationConfig(parse(sampling, `${name}/generation_config.json`));
  const files = await filesOf(dir, name);
  const tokenizer = wantsTokenizer
    ? await loadTokenizer(dir, name, vocabulary)
    : missingTokenizer(`${name} was loaded without its tokenizer: load it with { tokenizer: true }`);
  const params = await readParams(files, given, name, { backend, dtype, onProgress });
  const config = rotaryDtype === undefined ? given : roundRotary(given, rotaryDtype);
  return { config, params, tokenizer, generationConfig };
}

/**
 * Saves a model as a directory that {@linkcode load} and transformers read back: `model.safetensors` (or several files
 * behind an index), `config.json`, `generation_config.json` and the tokenizer's files. No file takes its name before all
 * are written: an interrupt or an error leaves an older model as it was.
 *
 * @param dir a path or `file:` URL; made when it is not there
 * @throws {CheckpointError} when the parameters are not those of the config
 * @throws {ValueError} when there is a file where the directory is to be
 *
 * @example
 * ```ts ignore
 * import { key } from "@flashtape/flashtape";
 * import { llama } from "@flashtape/flashtape/nn";
 * const config = {
 *   vocab_size: 256, hidden_size: 32, intermediate_size: 64, num_hidden_layers: 2, num_attention_heads: 4,
 * };
 * await llama.save("out/fresh", { config, params: llama.init(key(0), config) });
 * ```
 */
export async function save(
  dir: string | URL,
  { config, params, tokenizer, generationConfig }: LlamaModel,
  { maxShardBytes = 5e9, onProgress }: SaveOptions = {},
): Promise<void> {
  if (dir instanceof URL && dir.protocol !== "file:") {
    throw new UnsupportedError(saving, `${dir}: only directories can be written to`);
  }
  if (!(maxShardBytes > 0)) throw new ValueError(saving, `maxShardBytes is a number above 0, got ${maxShardBytes}`);
  const found = Object.entries(params).map(([name, { dtype, shape }]) => [name, { dtype, shape }] as const);
  checkTensors(saving, "params", new Map(found), config);
  const shards = split(params, maxShardBytes);
  const totalBytes = Object.values(params).reduce((sum, x) => sum + bytesOf(x), 0);
  let bytes = 0;
  const counted = async function* (tensors: Record<string, Tensor>): AsyncGenerator<Uint8Array> {
    for await (const chunk of chunks(tensors, { metadata: { format: "pt" } })) {
      yield chunk;
      bytes += chunk.byteLength;
      onProgress?.({ bytes: Math.min(bytes, totalBytes), totalBytes });
    }
  };
  const files: [string, AsyncIterable<Uint8Array> | Iterable<Uint8Array>][] = [];
  const texts: Record<string, string> = { ...tokenizer?.files };
  for (const [file, tensors] of shards) files.push([file, counted(tensors)]);
  if (shards.size > 1) {
    const weight_map: Record<string, string> = {};
    for (const [file, tensors] of shards) for (const name of Object.keys(tensors)) weight_map[name] = file;
    texts["model.safetensors.index.json"] = toJson({ metadata: { total_size: totalBytes }, weight_map });
  }
  texts["config.json"] = toJson(savedConfig(config, params));
  if (generationConfig !== undefined && Object.keys(generationConfig).length > 0) {
    texts["generation_config.json"] = toJson(generationConfig);
  }
  for (const [file, text] of Object.entries(texts)) files.push([file, [new TextEncoder().encode(text)]]);
  const { mkdir, readdir, rm } = await fileSystem(saving);
  await mkdir(dir, { recursive: true }).catch((error: Error & { code?: string }) => {
    if (error.code !== "EEXIST" && error.code !== "ENOTDIR") throw error;
    throw new ValueError(saving, `${dir} is a file or lies below one: a checkpoint is a directory`);
  });
  await writeAllAtomically(files.map(([file, pieces]) => [within(dir, file), pieces]));
  // What an older model left would be read in place of this one, or along with it.
  const written = new Set(files.map(([file]) => file));
  const ours = tokenizer === undefined || tokenizer.size === 0 ? weightFile : new RegExp(
    `${weightFile.source}|^(${tokenizerFiles.join("|").replaceAll(".", "\\.")})$`,
  );
  for (const file of await readdir(dir)) if (ours.test(file) && !written.has(file)) await rm(within(dir, file));
}

const tokenizerFiles = ["tokenizer.json", "tokenizer_config.json", "special_tokens_map.json", "chat_template.jinja"];
const weightFile = /^model(-\d{5}-of-\d{5})?\.safetensors$|^model\.safetensors\.index\.json$/;

/** The files of a model's tensors, and which of them the index places in each. */
interface ShardFile {
  readonly name: string;
  readonly place: ByteSource;
  readonly indexed?: ReadonlySet<string>;
}

async function filesOf(dir: Folder, name: string): Promise<ShardFile[]> {
  const single = within(dir, "model.safetensors");
  if (single !== null && await exists(loading, single)) return [{ name: "model.safetensors", place: single }];
  const indexName = "model.safetensors.index.json", text = await readText(loading, within(dir, indexName));
  if (text === null) {
    const pickled = await exists(loading, within(dir, "pytorch_model.bin")) ||
      await exists(loading, within(dir, "pytorch_model.bin.index.json"));
    throw new FormatError(
      loading,
      `${name}: there is neither model.safetensors nor ${indexName}` +
        (pickled ? ": pytorch_model.bin is not read, convert it to safetensors" : ""),
    );
  }
  const bad = (reason: string) => new FormatError(loading, `${name}/${indexName}: ${reason}`);
  const { weight_map: map } = parse(text, `${name}/${indexName}`);
  if (typeof map !== "object" || map === null || Array.isArray(map) || Object.keys(map).length === 0) {
    throw bad("weight_map is not an object from tensors to files");
  }
  const shards = new Map<string, Set<string>>();
  for (const [tensor, file] of Object.entries(map)) {
    if (typeof file !== "string" || !/^[^/\\:]+\.safetensors$/.test(file)) {
      throw bad(
        `${JSON.stringify(tensor)} is in ${JSON.stringify(file)}, which is no safetensors file beside the index`,
      );
    }
    if (!shards.has(file)) shards.set(file, new Set());
    shards.get(file)!.add(tensor);
  }
  const missing: string[] = [], found: ShardFile[] = [];
  for (const [file, indexed] of shards) {
    const place = within(dir, file);
    if (place !== null && await exists(loading, place)) found.push({ name: file, place, indexed });
    else missing.push(file);
  }
  if (missing.length > 0) throw bad(`of ${shards.size} files there are missing: ${missing.join(", ")}`);
  return found;
}

/** Reads the tensors of all files, once all headers have been checked. */
async function readParams(
  files: readonly ShardFile[],
  config: LlamaConfig,
  name: string,
  { backend, dtype, onProgress }: Pick<LoadOptions, "backend" | "dtype" | "onProgress">,
): Promise<Record<string, Tensor>> {
  const found = new Map<string, TensorInfo>();
  for (const file of files) {
    const { tensors } = await readHeader(file.place), where = `${name}/${file.name}`;
    for (const [tensor, info] of Object.entries(tensors)) {
      if (found.has(tensor)) throw new FormatError(loading, `${where}: ${JSON.stringify(tensor)} is in two files`);
      if (file.indexed?.has(tensor) === false) {
        throw new FormatError(
          loading,
          `${where}: holds ${JSON.stringify(tensor)}, which the index does not place there`,
        );
      }
      found.set(tensor, info);
    }
    for (const tensor of file.indexed ?? []) {
      if (!Object.hasOwn(tensors, tensor)) {
        throw new FormatError(loading, `${where}: the index places ${JSON.stringify(tensor)} there, it is not`);
      }
    }
  }
  checkTensors(loading, name, found, config);
  const shapes = parameterShapes(config), names = Object.keys(shapes);
  const totalBytes = names.reduce((sum, n) => sum + lengthOf(found.get(n)!), 0);
  const params: Record<string, Tensor> = {};
  let doneBytes = 0, done = 0;
  try {
    for (const { place } of files) {
      const onRead = (progress: ReadProgress) =>
        onProgress?.({
          ...progress,
          tensors: done + progress.tensors,
          totalTensors: names.length,
          bytes: doneBytes + progress.bytes,
          totalBytes,
        });
      const part = await read(place, { backend, dtype, only: (n) => Object.hasOwn(shapes, n), onProgress: onRead });
      Object.assign(params, part);
      done = Object.keys(params).length;
      doneBytes = Object.keys(params).reduce((sum, n) => sum + lengthOf(found.get(n)!), 0);
    }
  } catch (error) {
    for (const x of Object.values(params)) x.dispose();
    throw error;
  }
  return Object.fromEntries(names.map((n) => [n, params[n]]));
}

function lengthOf({ offsets: [begin, end] }: TensorInfo): number {
  return end - begin;
}

async function loadTokenizer(dir: Folder, name: string, vocabulary: number): Promise<Tokenizer> {
  const files: Record<string, string> = {};
  for (const file of tokenizerFiles) {
    const text = await readText(loading, within(dir, file));
    if (text !== null) files[file] = text;
    else if (file === "tokenizer.json") return missingTokenizer(`${name} has no tokenizer.json: give token ids`);
  }
  let entry: typeof import("./tokenizer.ts");
  try {
    entry = await import("./tokenizer.ts");
  } catch (cause) {
    throw new UnsupportedError(
      loading,
      `${name} has a tokenizer, whose packages npm:@huggingface/tokenizers and npm:@huggingface/jinja cannot be ` +
        `loaded here: load with { tokenizer: false } and give token ids. ${String(cause).split("\n")[0]}`,
      { cause },
    );
  }
  return entry.tokenizer(files, { vocabulary, name });
}

function parse(text: string, name: string): Record<string, unknown> {
  let json: unknown;
  try {
    json = JSON.parse(text);
  } catch (cause) {
    throw new FormatError(loading, `${name}: is not JSON: ${cause instanceof Error ? cause.message : cause}`, {
      cause,
    });
  }
  if (typeof json !== "object" || json === null || Array.isArray(json)) {
    throw new FormatError(loading, `${name}: is JSON, but not an object`);
  }
  return json as Record<string, unknown>;
}

/** Fields of floats that happen to be whole: Python tells 8 from 8.0, and transformers warns of the one. */
const floats =
  /^( *"(?:attention_dropout|(?:high_freq_|low_freq_)?factor|rope_theta|temperature|min_p|top_p|repetition_penalty)": \d+)(?=,?$)/gm;

function toJson(value: unknown): string {
  return `${JSON.stringify(value, null, 2).replace(floats, "$1.0")}\n`;
}

function bytesOf(x: Tensor): number {
  return x.size * dtypes[x.dtype].bytes;
}

/** Parameters by the files that they go to, in the order of the model. */
function split(params: LlamaParams, maxBytes: number): Map<string, Record<string, Tensor>> {
  const parts: Record<string, Tensor>[] = [{}];
  let bytes = 0;
  for (const [name, x] of Object.entries(params)) {
    if (bytes > 0 && bytes + bytesOf(x) > maxBytes) {
      parts.push({});
      bytes = 0;
    }
    parts.at(-1)![name] = x;
    bytes += bytesOf(x);
  }
  if (parts.length === 1) return new Map([["model.safetensors", parts[0]]]);
  const digits = (n: number) => String(n).padStart(5, "0");
  return new Map(parts.map((part, i) => [`model-${digits(i + 1)}-of-${digits(parts.length)}.safetensors`, part]));
}

/** The config with what transformers needs to find the model's class, and the type that the tensors now have. */
function savedConfig(config: LlamaConfig, params: LlamaParams): Record<string, unknown> {
  const types = Object.values(params).map((x) => x.dtype);
  const names: Partial<Record<DType, string>> = { f64: "float64", f32: "float32", f16: "float16", bf16: "bfloat16" };
  const dtype = names[types.reduce((a, b) => promote(saving, a, b))];
  return {
    architectures: ["LlamaForCausalLM"],
    model_type: "llama",
    ...config,
    dtype,
    ...(config.torch_dtype === undefined ? {} : { torch_dtype: dtype }),
  };
}
