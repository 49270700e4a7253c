import assert from "node:assert/strict";
import { cp, mkdtemp, readdir, readFile, rm, writeFile } from "node:fs/promises";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { pathToFileURL } from "node:url";
import { webgpu } from "../../mod.ts";
import type { Backend } from "../../tensor/backend.ts";
import { cpu } from "../../tensor/cpu.ts";
import { ones, zeros } from "../../tensor/create.ts";
import type { DType } from "../../tensor/dtype.ts";
import { FormatError, LimitError, UnsupportedError, ValueError } from "../../tensor/errors.ts";
import { key } from "../../tensor/random.ts";
import { dispose } from "../../tensor/scope.ts";
import type { Tensor } from "../../tensor/tensor.ts";
import { boolean, compose, elementOf, integer, property } from "../../testing/mod.ts";
import { needAdapter } from "../../testing/laws/adapter.ts";
import { safetensors } from "../mod.ts";
import { CheckpointError, init, type LlamaConfig, load, parameterShapes, save } from "./mod.ts";

const gpu = await needAdapter(webgpu());
const fixture = new URL("../fixtures/llama-a/", import.meta.url);

async function inFolder(f: (folder: string) => Promise<void>): Promise<void> {
  const folder = await mkdtemp(join(tmpdir(), "flashtape-"));
  try {
    await f(folder);
  } finally {
    await rm(folder, { recursive: true });
  }
}

const tiny: LlamaConfig = {
  vocab_size: 11,
  hidden_size: 8,
  intermediate_size: 12,
  num_hidden_layers: 2,
  num_attention_heads: 2,
  tie_word_embeddings: true,
};

async function bytesOf(params: Readonly<Record<string, Tensor>>): Promise<Record<string, unknown>> {
  const entries = Object.entries(params).map(async ([n, x]) => [n, [x.dtype, x.shape, await x.bytes()]] as const);
  return Object.fromEntries(await Promise.all(entries));
}

for (const backend of [cpu(), gpu]) {
  Deno.test(`load() reads transformers' directory, and save() writes it again, on ${backend.name}`, async () => {
    const heard: safetensors.ReadProgress[] = [];
    const model = await load(fixture, { backend, onProgress: (p) => heard.push(p) });
    const { config, params, tokenizer, generationConfig } = model;
    assert.deepEqual(Object.keys(params), Object.keys(parameterShapes(config)));
    assert(Object.values(params).every((x) => x.dtype === "bf16" && x.backend === backend));
    assert.deepEqual([config.hidden_size, tokenizer.size, generationConfig.eos_token_id], [64, 700, 698]);
    const { name: _, ...last } = heard.at(-1)!;
    assert.deepEqual(last, { tensors: 20, totalTensors: 20, bytes: 262272, totalBytes: last.totalBytes });
    await inFolder(async (folder) => {
      await save(folder, model);
      const read = (place: string | URL, file: string) =>
        readFile(place instanceof URL ? new URL(file, place) : join(place, file), "utf8");
      for (const file of ["tokenizer.json", "tokenizer_config.json", "chat_template.jinja"]) {
        assert.equal(await read(folder, file), await read(fixture, file));
      }
      for (const file of ["config.json", "generation_config.json"]) {
        assert.deepEqual(JSON.parse(await read(folder, file)), JSON.parse(await read(fixture, file)));
      }
      assert.deepEqual(
        await readFile(join(folder, "model.safetensors")),
        await readFile(new URL("model.safetensors", fixture)),
      );
      assert.deepEqual((await readdir(folder)).length, 6);
    });
    dispose(params);
  });
}

const anyModel = compose((draw) => {
  const kvHeads = draw(integer(1, 2)), heads = kvHeads * draw(integer(1, 3)), headDim = 2 * draw(integer(1, 7));
  const config: LlamaConfig = {
    vocab_size: draw(integer(1, 20)),
    hidden_size: draw(integer(1, 20)),
    intermediate_size: draw(integer(1, 20)),
    num_hidden_layers: draw(integer(1, 3)),
    num_attention_heads: heads,
    num_key_value_heads: kvHeads,
    head_dim: headDim,
    tie_word_embeddings: draw(boolean()),
    rms_norm_eps: 1e-5,
    ...draw(elementOf({}, { rope_theta: 500_000 }, { rope_parameters: { rope_type: "default", rope_theta: 1e4 } })),
  };
  const dtype: DType = draw(elementOf("f32", "f16", "bf16"));
  return { config, dtype, maxShardBytes: draw(elementOf(1, 500, 5e9)), seed: draw(integer(0, 1000)) };
});

for (const [backend, runs] of [[cpu(), 20], [gpu, 5]] as const) {
  property(
    `whatever the sizes, types and shards, load() gives back what save() was given, on ${backend.name}`,
    [anyModel],
    async ({ config, dtype, maxShardBytes, seed }) => {
      const on = seed % 2 === 0 ? backend : cpu(), params = init(key(seed, { backend: on }), config, { dtype });
      await inFolder(async (folder) => {
        const sent: number[] = [];
        await save(folder, { config, params }, { maxShardBytes, onProgress: (p) => sent.push(p.bytes / p.totalBytes) });
        assert.equal(sent.at(-1), 1);
        const bytes = Object.values(params).reduce((sum, x) => sum + x.size * (dtype === "f32" ? 4 : 2), 0);
        const many = bytes > maxShardBytes, files = await readdir(folder);
        assert.equal(files.includes("model.safetensors.index.json"), many, `${files}`);
        const back = await load(pathToFileURL(folder), { backend });
        assert.deepEqual(await bytesOf(back.params), await bytesOf(params));
        const { dtype: type, ...rest } = back.config;
        assert.deepEqual([type, rest.model_type], [
          { f32: "float32", f16: "float16", bf16: "bfloat16" }[dtype],
          "llama",
        ]);
        assert.deepEqual({ ...rest, ...config }, rest);
        const narrow = await load(folder, { backend, dtype: "f16" });
        assert(Object.values(narrow.params).every((x) => x.dtype === "f16"));
        dispose([back.params, narrow.params]);
      });
      dispose(params);
    },
    { runs },
  );
}

/** A directory of a small model whose files are then spoilt, and the error that names what is wrong. */
async function refused(
  spoil: (folder: string) => Promise<unknown>,
  form: RegExp,
  kind: new (...args: never[]) => Error = FormatError,
  options?: Parameters<typeof load>[1],
): Promise<void> {
  await inFolder(async (folder) => {
    const params = init(key(1), tiny);
    await save(folder, { config: tiny, params }, { maxShardBytes: 1000 });
    dispose(params);
    await spoil(folder);
    const before = cpu().memory().current;
    await assert.rejects(load(folder, options), (error) => {
      assert(error instanceof kind, `${error}`);
      assert.match(error.message, form);
      return true;
    });
    assert(cpu().memory().current <= before, "left tensors behind");
  });
}

/** Writes other fields over those of a JSON file. */
const change = (file: string, fields: Record<string, unknown>) => async (folder: string): Promise<void> => {
  const path = join(folder, file);
  await writeFile(path, JSON.stringify({ ...JSON.parse(await readFile(path, "utf8")), ...fields }));
};
const put = (file: string, text: string) => (folder: string): Promise<void> => writeFile(join(folder, file), text);
const index = "model.safetensors.index.json";

Deno.test("a config that contradicts its tensors is refused with every tensor's name and shape", async () => {
  await refused(change("config.json", { intermediate_size: 13 }), /mlp\.up_proj\.weight" f32 \[12,8\], .* \[13,8\]/);
  await refused(change("config.json", { num_hidden_layers: 3 }), /missing: "model\.layers\.2\..*" \[8\]/);
  await refused(change("config.json", { num_hidden_layers: 1 }), /unknown: "model\.layers\.1\..*" f32 \[8\]/);
  await refused(change("config.json", { num_hidden_layers: 1e9 }), /says 1000000000 layers, there are 20 tensors/);
  await refused(change("config.json", { tie_word_embeddings: false }), /missing: "lm_head\.weight" \[11,8\]/);
  await refused(change("config.json", { vocab_size: 2 ** 40 }), /f32 \[11,8\], the config says \[1099511627776,8\]/);
  await refused(change("config.json", { head_dim: 6 }), CheckpointErrorForm, CheckpointError);
  await inFolder(async (folder) => {
    const params = { ...init(key(1), tiny), extra: zeros([3, 1]), "model.norm.weight": ones([8], { dtype: "i32" }) };
    await safetensors.write(join(folder, "model.safetensors"), params);
    await writeFile(join(folder, "config.json"), JSON.stringify({ ...tiny, num_hidden_layers: 20 }));
    const error = await load(folder).catch((error: unknown) => error);
    assert(error instanceof CheckpointError && error.name === "CheckpointError");
    assert.equal(error.tensors.length, 18 * 9 + 2);
    assert.deepEqual(error.tensors.at(-1), { name: "extra", dtype: "f32", found: [3, 1] });
    assert.match(error.message, /missing: 142 more/);
    assert.match(error.message, /"model\.norm\.weight" i32 \[8\], the config says \[8\]/);
    assert(error.message.split("\n").length < 30);
    dispose(params);
  });
});

const CheckpointErrorForm = /the tensors are not those of the config\n {2}wrong: "model\.layers\.0\.self_attn\.q_proj/;

Deno.test("files that are missing or lie are refused by name", async () => {
  const shard = (folder: string, n: number) => join(folder, `model-0000${n}-of-00006.safetensors`);
  await refused((f) => rm(join(f, "config.json")), /there is no config\.json: name a model's directory/);
  await refused((f) => rm(join(f, index)), /neither model\.safetensors nor model\.safetensors\.index\.json/);
  await refused(async (f) => {
    await rm(join(f, index));
    await writeFile(join(f, "pytorch_model.bin"), "");
  }, /pytorch_model\.bin is not read, convert it/);
  await refused((f) => rm(shard(f, 2)), /of 6 files there are missing: model-00002-of-00006\.safetensors/);
  await refused((f) => cp(shard(f, 1), shard(f, 2)), /00002-of-00006\.safetensors: "model\.embed_.*" is in two files/);
  await refused((f) => writeFile(shard(f, 3), "short"), /00003-of-00006\.safetensors: 5 bytes are no safetensors file/);
  await refused(async (f) => {
    const bytes = await readFile(shard(f, 6));
    await writeFile(shard(f, 6), bytes.subarray(0, -4));
  }, /00006-of-00006\.safetensors: the tensors take \d+ bytes, the file has \d+/);
  await refused(put("config.json", '{"vocab_size": NaN}'), /config\.json: is not JSON/);
  await refused(put("config.json", "[]"), /config\.json: is JSON, but not an object/);
  await refused(put("config.json", "{}"), /hidden_size is undefined/);
  await refused(put("generation_config.json", "{"), /generation_config\.json: is not JSON/);
  await refused(put("generation_config.json", '{"temperature":"hot"}'), /temperature is "hot"/);
  await refused(put("tokenizer.json", "{"), /tokenizer\.json: is not JSON/);
  await refused(change("config.json", { rope_scaling: { type: "yarn" } }), /"yarn"/, UnsupportedError);
});

Deno.test("an index that lies or leaves its directory is refused", async () => {
  const map = async (f: string): Promise<Record<string, string>> =>
    JSON.parse(await readFile(join(f, index), "utf8")).weight_map;
  const edit = (fields: Record<string, unknown>) => async (f: string) =>
    await change(index, { weight_map: { ...await map(f), ...fields } })(f);
  for (const path of ["../model.safetensors", "a/b.safetensors", "..\\x.safetensors", "C:x.safetensors", "x.bin", 5]) {
    await refused(edit({ "model.norm.weight": path }), /is in .*, which is no safetensors file beside the index/);
  }
  await refused(put(index, "{}"), /weight_map is not an object/);
  await refused(put(index, '{"weight_map":[]}'), /weight_map is not an object/);
  await refused(
    edit({ "model.norm.weight": "model-00001-of-00006.safetensors" }),
    /00001-of-00006\.safetensors: the index places "model\.norm\.weight" there, it is not/,
  );
  await refused(edit({ other: "model-00001-of-00006.safetensors" }), /the index places "other" there/);
  await refused(async (f) => {
    const { "model.norm.weight": _, ...rest } = await map(f);
    await change(index, { weight_map: rest })(f);
  }, /00006-of-00006\.safetensors: holds "model\.norm\.weight", which the index does not place there/);
});

Deno.test("a tensor that one binding cannot hold is refused by name, and so are options that are none", async () => {
  const small: Backend = Object.create(cpu(), { capabilities: { value: { ...cpu().capabilities, maxBinding: 300 } } });
  const nothing = () => Promise.resolve();
  await refused(nothing, /"model\.embed_tokens\.weight": \[11,8\] of f32 takes 352 bytes/, LimitError, {
    backend: small,
  });
  const wrong = { rotaryDtype: "f32" } as unknown as Parameters<typeof load>[1];
  await refused(nothing, /rotaryDtype is "f16", "bf16" or not given, got "f32"/, ValueError, wrong);
});

Deno.test("what tied and old checkpoints hold beside their parameters is not read", async () => {
  await inFolder(async (folder) => {
    const params = init(key(1), tiny), old = "model.layers.0.self_attn.rotary_emb.inv_freq";
    const more = { ...params, "lm_head.weight": zeros([11, 8]), [old]: ones([2]) };
    await safetensors.write(join(folder, "model.safetensors"), more);
    await writeFile(join(folder, "config.json"), JSON.stringify(tiny));
    const back = await load(folder);
    assert.deepEqual(await bytesOf(back.params), await bytesOf(params));
    assert.deepEqual([back.tokenizer.size, back.generationConfig], [0, {}]);
    assert.throws(() => back.tokenizer.encode("a"), /has no tokenizer\.json: give token ids/);
    dispose([more, back.params]);
  });
});

Deno.test("save() that fails leaves the old model as it was, and one that succeeds leaves nothing of it", async () => {
  await inFolder(async (folder) => {
    const a = init(key(1), tiny), b = init(key(2), tiny, { dtype: "bf16" });
    const whole = await load(fixture);
    await save(folder, { ...whole, config: tiny, params: a }, { maxShardBytes: 1000 });
    await writeFile(join(folder, "notes.txt"), "mine");
    for (const place of ["notes.txt", "notes.txt/model"]) {
      await assert.rejects(
        save(join(folder, place), { config: tiny, params: b }),
        /notes.txt.* is a file or lies below/,
      );
    }
    const before = await readdir(folder);
    const gone = { ...b, "model.norm.weight": ones([8]) };
    gone["model.norm.weight"].dispose();
    await assert.rejects(save(folder, { config: tiny, params: gone }), /disposed/);
    assert.deepEqual(await readdir(folder), before);
    const kept = await load(folder);
    assert.deepEqual(await bytesOf(kept.params), await bytesOf(a));
    await save(folder, { config: { ...tiny, torch_dtype: "float32" }, params: b });
    const back = await load(folder);
    assert.deepEqual(await bytesOf(back.params), await bytesOf(b));
    assert.deepEqual([back.config.dtype, back.config.torch_dtype], ["bfloat16", "bfloat16"]);
    assert.deepEqual((await readdir(folder)).filter((f) => f.includes("model-0") || f === index), []);
    assert.equal(back.tokenizer.size, 700, "a model without a tokenizer leaves the one that is there");
    const { "chat_template.jinja": _, ...files } = whole.tokenizer.files;
    await save(folder, { ...back, tokenizer: { ...back.tokenizer, files } });
    assert.equal((await load(folder)).tokenizer.hasChatTemplate, false);
    assert.equal(await readFile(join(folder, "notes.txt"), "utf8"), "mine");
    dispose([a, whole.params, kept.params, back.params]);
  });
});

Deno.test("save() writes numbers that Python reads as floats where transformers expects them", async () => {
  await inFolder(async (folder) => {
    const params = init(key(1), tiny), rope_parameters = { rope_type: "linear", factor: 8, rope_theta: 10_000 };
    const config = { ...tiny, rope_parameters, attention_dropout: 0, bos_token_id: 1 };
    await save(folder, { config, params, generationConfig: { temperature: 1, top_k: 50 } });
    const text = await readFile(join(folder, "config.json"), "utf8");
    for (
      const form of [/"factor": 8\.0,/, /"rope_theta": 10000\.0\n/, /"attention_dropout": 0\.0/, /"bos_token_id": 1,/]
    ) {
      assert.match(text, form);
    }
    assert.match(
      await readFile(join(folder, "generation_config.json"), "utf8"),
      /"temperature": 1\.0,\n {2}"top_k": 50\n/,
    );
    dispose(params);
  });
});

Deno.test("save() refuses parameters that are not the config's, and places that it cannot write to", async () => {
  const params = init(key(1), tiny), { "model.norm.weight": _, ...less } = params;
  await inFolder(async (folder) => {
    await assert.rejects(save(folder, { config: tiny, params: less }), /missing: "model\.norm\.weight" \[8\]/);
    await assert.rejects(save(folder, { config: tiny, params: { ...params, more: ones([2]) } }), /unknown: "more" f32/);
    await assert.rejects(save(folder, { config: tiny, params }, { maxShardBytes: NaN }), /above 0, got NaN/);
    assert.deepEqual(await readdir(folder), []);
  });
  await assert.rejects(save(new URL("https://localhost/x"), { config: tiny, params }), UnsupportedError);
  dispose(params);
});

Deno.test("where the tokenizer's packages cannot be loaded, load() says so, and loads without it", async () => {
  await inFolder(async (folder) => {
    const entry = JSON.stringify(new URL("../mod.ts", import.meta.url).href), place = JSON.stringify(fixture.href);
    const program = `import { llama } from ${entry};
      const { params, tokenizer } = await llama.load(new URL(${place}), { tokenizer: false });
      console.log(Object.keys(params).length, tokenizer.size);
      await llama.load(new URL(${place})).catch((error) => console.log(error.name, error.message));`;
    await writeFile(join(folder, "program.ts"), program);
    const { stdout, stderr } = await new Deno.Command(Deno.execPath(), {
      args: ["run", "--quiet", "--no-npm", "--no-lock", "--no-check", "--allow-read", join(folder, "program.ts")],
    }).output();
    const out = new TextDecoder().decode(stdout);
    assert.equal(new TextDecoder().decode(stderr), "");
    assert.match(
      out,
      /^20 0\nUnsupportedError \[llama\.load\] .*llama-a\/ has a tokenizer, whose packages npm:@huggingface/,
    );
    assert.match(out, /cannot be loaded here: load with \{ tokenizer: false \}/);
  });
});

Deno.test("load() reads a directory behind a URL", async () => {
  const server = Deno.serve({ hostname: "localhost", port: 0, onListen: () => {} }, async (request) => {
    const file = new URL(request.url).pathname.replace("/models/a/", "");
    const bytes = await readFile(new URL(file, fixture)).catch(() => null);
    return bytes === null ? new Response("no", { status: 404 }) : new Response(new Uint8Array(bytes));
  });
  try {
    const { params, tokenizer } = await load(new URL(`http://localhost:${server.addr.port}/models/a`));
    assert.deepEqual([Object.keys(params).length, tokenizer.encode("Call")], [20, [693, 34, 275, 75]]);
    const local = await load(fixture, { tokenizer: false });
    assert.deepEqual(await bytesOf(params), await bytesOf(local.params));
    assert.throws(() => local.tokenizer.decode([1]), /loaded without its tokenizer/);
    dispose([params, local.params]);
  } finally {
    await server.shutdown();
  }
});

Deno.test("load() reads the files of a directory as a page gets them, and names one that is missing", async () => {
  const names = ["config.json", "model.safetensors", "tokenizer.json", "tokenizer_config.json"];
  const read = async (name: string) => new File([new Uint8Array(await readFile(new URL(name, fixture)))], name);
  const files = await Promise.all(names.map(read));
  const { params, tokenizer } = await load(files), local = await load(fixture, { tokenizer: false });
  assert.deepEqual(tokenizer.encode("Call"), [693, 34, 275, 75]);
  assert.deepEqual(await bytesOf(params), await bytesOf(local.params));
  dispose([params, local.params]);
  await assert.rejects(load(files.slice(1)), /3 files: there is no config.json/);
  await assert.rejects(load([files[0]]), /neither model.safetensors nor/);
});
