/**
 * Tokenizers and chat templates as Hugging Face keeps them, by Hugging Face's own packages: the one entry of flashtape
 * that has dependencies. `llama.load` imports it when a directory has a tokenizer.
 *
 * @module
 */
import { Template } from "npm:@huggingface/jinja@0.5.11";
import { Tokenizer as Encoder } from "npm:@huggingface/tokenizers@0.2.0";
import { FormatError, IndexError, UnsupportedError, ValueError } from "../../tensor/errors.ts";
import type { ChatOptions, DecodeOptions, EncodeOptions, Message, Tokenizer } from "./text.ts";

export type { ChatOptions, DecodeOptions, EncodeOptions, Message, Tokenizer } from "./text.ts";

/** Options of {@linkcode tokenizer}. */
export interface TokenizerOptions {
  /** How many ids the model has, which may be more than the tokenizer knows; the tokenizer's own when not given. */
  readonly vocabulary?: number;
  /** What errors call the files' place. */
  readonly name?: string;
}

const op = "tokenizer";

/**
 * A tokenizer from its files.
 *
 * @param files texts by name: `tokenizer.json`, and where there are such `tokenizer_config.json`,
 * `special_tokens_map.json` and `chat_template.jinja`, which goes before the config's own template
 * @throws {FormatError} when a file is not what it says
 *
 * @example
 * ```ts ignore
 * import { tokenizer } from "@flashtape/flashtape/tokenizer";
 * const { encode, decode } = tokenizer({ "tokenizer.json": await Deno.readTextFile("tokenizer.json") });
 * console.log(decode(encode("Call me Ishmael.")));
 * ```
 */
export function tokenizer(
  files: Readonly<Record<string, string>>,
  { vocabulary, name = "tokenizer" }: TokenizerOptions = {},
): Tokenizer {
  if (!Object.hasOwn(files, "tokenizer.json")) throw new FormatError(op, `${name}: there is no tokenizer.json`);
  const read = (file: string) => Object.hasOwn(files, file) ? parse(files[file], `${name}/${file}`) : {};
  const config = read("tokenizer_config.json");
  const encoder = encoderOf(read("tokenizer.json"), config, `${name}/tokenizer.json`);
  const special = specialTokens({ ...read("special_tokens_map.json"), ...config }, encoder);
  const size = encoder.get_vocab().size, limit = Math.max(size, vocabulary ?? 0);
  const templates = new Map<string, Template>();
  /** The package trusts its files: what it trips over is a fault of theirs. */
  const guarded = <T>(f: () => T): T => {
    try {
      return f();
    } catch (cause) {
      throw new FormatError(op, `${name}/tokenizer.json: ${messageOf(cause)}`, { cause });
    }
  };
  const sources = templateSources(files, config, name);

  return {
    size,
    files,
    hasChatTemplate: sources.size > 0,
    encode(text: string, { addSpecialTokens = true }: EncodeOptions = {}): number[] {
      if (typeof text !== "string") throw new ValueError("encode", `text is a string, got ${typeof text}`);
      const { ids } = guarded(() => encoder.encode(text, { add_special_tokens: addSpecialTokens }));
      if (!ids.every(Number.isInteger)) {
        throw new FormatError("encode", `${name}: the tokenizer has no id for a part of the text`);
      }
      return ids;
    },
    decode(ids: Iterable<number>, { skipSpecialTokens = false }: DecodeOptions = {}): string {
      const known: number[] = [];
      const left = skipSpecialTokens ? special.ids : none;
      for (const id of ids) {
        if (!Number.isInteger(id) || id < 0 || id >= limit) {
          throw new IndexError("decode", `${id} is no id: there are ${limit}, from 0`);
        }
        // A model may have more ids than have a text.
        if (encoder.id_to_token(id) !== undefined && !left.has(id)) known.push(id);
      }
      if (known.length === 0) return "";
      // The clean-up of spaces was made for tokenizers that lose them; for these it would take some that were there.
      return guarded(() => encoder.decode(known, { clean_up_tokenization_spaces: false }));
    },
    applyChatTemplate(messages: readonly Message[], options: ChatOptions = {}): string {
      checkMessages(messages);
      const { addGenerationPrompt = false, tools, variables = {} } = options;
      const chosen = tools !== undefined && sources.has("tool_use") ? "tool_use" : "default";
      const source = sources.get(chosen);
      if (source === undefined) {
        const others = [...sources.keys()];
        throw new UnsupportedError(
          "applyChatTemplate",
          others.length > 0
            ? `${name}: there is no template "default" among ${others.map((n) => `"${n}"`).join(", ")}`
            : `${name}: there is no chat template in tokenizer_config.json, and no chat_template.jinja: ` +
              `give a prompt instead of messages`,
        );
      }
      let template = templates.get(chosen);
      if (template === undefined) templates.set(chosen, template = templateOf(source.text, source.file));
      try {
        return template.render({
          ...special.names,
          tools: tools ?? null,
          documents: null,
          ...variables,
          messages,
          add_generation_prompt: addGenerationPrompt,
        });
      } catch (cause) {
        throw new ValueError("applyChatTemplate", `${source.file}: ${messageOf(cause)}`, { cause });
      }
    },
    idOf: (token: string): number | undefined => encoder.token_to_id(token),
  };
}

function messageOf(cause: unknown): string {
  return cause instanceof Error ? cause.message : String(cause);
}

function isObject(value: unknown): value is Record<string, unknown> {
  return typeof value === "object" && value !== null && !Array.isArray(value);
}

function parse(text: string, name: string): Record<string, unknown> {
  let json: unknown;
  try {
    json = JSON.parse(text);
  } catch (cause) {
    throw new FormatError(op, `${name}: is not JSON: ${messageOf(cause)}`, { cause });
  }
  if (!isObject(json)) throw new FormatError(op, `${name}: is JSON, but not an object`);
  return json;
}

function encoderOf(json: Record<string, unknown>, config: Record<string, unknown>, name: string): Encoder {
  const { model, added_tokens: added } = json;
  if (!isObject(model)) throw new FormatError(op, `${name}: has no "model"`);
  if (!Array.isArray(added ?? [])) throw new FormatError(op, `${name}: "added_tokens" is not a list`);
  // What files may leave out, the package wants as null.
  const whole = { normalizer: null, pre_tokenizer: null, post_processor: null, decoder: null, ...json };
  try {
    return new Encoder({ ...whole, added_tokens: added ?? [] }, config);
  } catch (cause) {
    throw new FormatError(op, `${name}: ${messageOf(cause)}`, { cause });
  }
}

const none: ReadonlySet<number> = new Set();

/** `bos_token`, `eos_token` and their like, which stand as texts or as objects with a `content`; and all special ids. */
function specialTokens(
  config: Record<string, unknown>,
  encoder: Encoder,
): { readonly names: Record<string, string>; readonly ids: ReadonlySet<number> } {
  const names: Record<string, string> = {}, ids = new Set<number>();
  const contentOf = (value: unknown) => isObject(value) ? value.content : value;
  for (const [key, value] of Object.entries(config)) {
    const content = contentOf(value);
    if (key.endsWith("_token") && typeof content === "string") names[key] = content;
  }
  for (const [id, { special }] of encoder.get_added_tokens_decoder()) if (special) ids.add(id);
  const { additional_special_tokens: more } = config;
  for (const content of [...Object.values(names), ...(Array.isArray(more) ? more.map(contentOf) : [])]) {
    const id = typeof content === "string" ? encoder.token_to_id(content) : undefined;
    if (id !== undefined) ids.add(id);
  }
  return { names, ids };
}

interface Source {
  readonly file: string;
  readonly text: string;
}

/** Templates by name: most tokenizers have one, `default`. */
function templateSources(
  files: Readonly<Record<string, string>>,
  config: Record<string, unknown>,
  name: string,
): Map<string, Source> {
  const sources = new Map<string, Source>();
  const file = `${name}/tokenizer_config.json`, given = config.chat_template;
  if (typeof given === "string") sources.set("default", { file, text: given });
  else if (Array.isArray(given)) {
    for (const each of given) {
      if (!isObject(each) || typeof each.name !== "string" || typeof each.template !== "string") {
        throw new FormatError(op, `${file}: a chat_template of the list is not { name, template }`);
      }
      sources.set(each.name, { file, text: each.template });
    }
  } else if (given !== undefined && given !== null) {
    throw new FormatError(op, `${file}: chat_template is neither a text nor a list of templates`);
  }
  if (Object.hasOwn(files, "chat_template.jinja")) {
    sources.set("default", { file: `${name}/chat_template.jinja`, text: files["chat_template.jinja"] });
  }
  return sources;
}

function templateOf(text: string, file: string): Template {
  try {
    return new Template(text);
  } catch (cause) {
    throw new FormatError("applyChatTemplate", `${file}: is no template: ${messageOf(cause)}`, { cause });
  }
}

function checkMessages(messages: readonly Message[]): void {
  if (!Array.isArray(messages)) throw new ValueError("applyChatTemplate", "messages are a list of { role, content }");
  messages.forEach((message: unknown, i) => {
    if (!isObject(message) || typeof message.role !== "string") {
      throw new ValueError("applyChatTemplate", `message ${i} has no role: it is { role, content }`);
    }
    if (message.content === undefined) throw new ValueError("applyChatTemplate", `message ${i} has no content`);
  });
}
