import assert from "node:assert/strict";
import { generate, llama } from "@flashtape/flashtape/nn";
import { readOptions, type Result } from "./generate.ts";
import { UsageError } from "./program.ts";

const program = new URL("./generate.ts", import.meta.url).pathname;
const fixture = new URL("../nn/fixtures/llama-a", import.meta.url).pathname;

/** Runs the program on the CPU. */
async function run(args: readonly string[], input?: string): Promise<{ code: number; out: string; err: string }> {
  const child = new Deno.Command(Deno.execPath(), {
    args: ["run", "--quiet", "--allow-env", "--allow-read", program, ...args, "--backend", "cpu"],
    stdin: input === undefined ? "null" : "piped",
    stdout: "piped",
    stderr: "piped",
    env: { NO_COLOR: "1" },
  }).spawn();
  if (input !== undefined) {
    const writer = child.stdin.getWriter();
    await writer.write(new TextEncoder().encode(input));
    await writer.close();
  }
  const { code, stdout, stderr } = await child.output(),
    decode = (bytes: Uint8Array) => new TextDecoder().decode(bytes);
  return { code, out: decode(stdout), err: decode(stderr) };
}

Deno.test("--json prints one object: what the library writes, and how it came about", async () => {
  const args = [
    "--prompt",
    "Call me",
    "--max-new-tokens",
    "12",
    "--temperature",
    "0.9",
    "--top-k",
    "50",
    "--seed",
    "5",
  ];
  const { code, out, err } = await run([fixture, ...args, "--json"]);
  assert.equal(code, 0, err);
  const result: Result = JSON.parse(out);
  const model = await llama.load(fixture), tokens: number[] = [];
  let text = "";
  const options = { prompt: "Call me", maxNewTokens: 12, temperature: 0.9, topK: 50, seed: 5 };
  for await (const step of generate(model, options)) {
    tokens.push(step.tokens[0]);
    text += step.text[0];
  }
  const { seconds, tokens_per_second, ...rest } = result;
  assert.deepEqual(rest, {
    model: fixture,
    prompt: "Call me",
    prompt_tokens: 6,
    text,
    tokens,
    new_tokens: tokens.length,
    finish_reason: tokens.includes(698) ? "stop" : "length",
    seed: 5,
    backend: "cpu",
  });
  assert(seconds.load > 0 && seconds.first_token > 0 && seconds.total >= seconds.first_token && tokens_per_second > 0);
});

Deno.test("without --json the text alone goes to standard output, from a prompt on standard input", async () => {
  const { code, out, err } = await run([fixture, "--max-new-tokens", "5", "--temperature", "0"], "Call me\n");
  assert.equal(code, 0, err);
  const flagged = await run([fixture, "--max-new-tokens", "5", "--temperature", "0", "--prompt", "Call me", "--json"]);
  const { text, tokens }: Result = JSON.parse(flagged.out);
  assert.equal(out, `${text}\n`);
  assert.equal(tokens.length, 5);
  const stopped = await run([
    fixture,
    "--temperature",
    "0",
    "--prompt",
    "Call me",
    "--stop",
    text.slice(2, 6),
    "--json",
  ]);
  const result: Result = JSON.parse(stopped.out);
  assert.deepEqual([result.finish_reason, result.text], ["stop", text.slice(0, 2)]);
});

Deno.test("--chat puts the message into the model's template", async () => {
  const { code, out, err } = await run(
    [fixture, "--chat", "--system", "You are terse.", "--prompt", "-", "--max-new-tokens", "2", "--json"],
    " Why is the whale white? ",
  );
  assert.equal(code, 0, err);
  const { prompt, prompt_tokens }: Result = JSON.parse(out);
  const expected = await Deno.readTextFile(new URL("../nn/fixtures/llama-a/expected.json", import.meta.url));
  const { chat_text, chat_ids } = JSON.parse(expected.replaceAll("NaN", "null"));
  assert.deepEqual([prompt, prompt_tokens], [chat_text, chat_ids.length]);
});

Deno.test("a mistake in the flags ends with code 2 and its reason, another error with 1 and one line", async () => {
  const flag = await run([fixture, "--temperature", "hot"]);
  assert.deepEqual([flag.code, flag.out], [2, ""]);
  assert.match(flag.err, /^--temperature is a number from 0, got "hot"\n\ndeno task generate DIR/);
  const missing = await run(["no/such/model", "--prompt", "x"]);
  assert.deepEqual([missing.code, missing.out], [1, ""]);
  assert.equal(missing.err, "[llama.load] no/such/model: there is no config.json: name a model's directory\n");
  const long = await run([fixture, "--prompt", "x ".repeat(600), "--json"]);
  assert.deepEqual([long.code, long.out], [1, ""]);
  assert.match(long.err, /^\[generate\] the prompt has \d+ tokens, the model's context 512: shorten it\n$/);
});

Deno.test("Ctrl-C ends the text early, with what there is of it", async () => {
  const child = new Deno.Command(Deno.execPath(), {
    args: ["run", "--quiet", "--allow-env", "--allow-read", program, fixture, "--backend", "cpu", "--prompt", "a"]
      .concat(
        ["--max-new-tokens", "500", "--temperature", "0"],
      ),
    stdout: "piped",
    stderr: "piped",
  }).spawn();
  let out = "";
  for await (const chunk of child.stdout.pipeThrough(new TextDecoderStream())) {
    if (out === "") child.kill("SIGINT");
    out += chunk;
  }
  await child.stderr.cancel();
  assert.equal((await child.status).code, 130);
  assert(out.length > 0 && out.endsWith("\n"));
});

Deno.test("deno task generate runs it on the best device there is, with the permissions that it needs", async () => {
  const { code, stdout, stderr } = await new Deno.Command(Deno.execPath(), {
    args: ["task", "--quiet", "generate", fixture, "--prompt", "Call me", "--max-new-tokens", "3", "--json"],
    cwd: new URL("../", import.meta.url),
  }).output();
  assert.equal(code, 0, new TextDecoder().decode(stderr));
  const result: Result = JSON.parse(new TextDecoder().decode(stdout));
  assert.deepEqual([result.backend, result.new_tokens], ["webgpu", 3]);
});

Deno.test("readOptions() knows the flags and their defaults", () => {
  const rest = {
    backend: "auto",
    provider: "deno",
    dtype: undefined,
    prompt: undefined,
    chat: false,
    system: undefined,
    json: false,
    stop: [],
  };
  assert.deepEqual(readOptions(["model"]), { dir: "model", ...rest, sampling: {} });
  const all = [
    ...["model", "--prompt", "x", "--json", "--chat", "--system", "s", "--stop", "a", "--stop", "b", "--dtype", "f16"],
    ...[
      "--backend",
      "webgpu",
      "--max-new-tokens",
      "3",
      "--temperature",
      "0",
      "--top-k",
      "4",
      "--top-p",
      "1",
      "--min-p",
    ],
    ...["0.1", "--repetition-penalty", "1.1", "--seed", "0", "--attention", "naive", "--no-setup"],
  ];
  assert.deepEqual(readOptions(all), {
    dir: "model",
    backend: "webgpu",
    provider: "deno",
    dtype: "f16",
    prompt: "x",
    chat: true,
    system: "s",
    json: true,
    stop: ["a", "b"],
    sampling: {
      maxNewTokens: 3,
      temperature: 0,
      topK: 4,
      topP: 1,
      minP: 0.1,
      repetitionPenalty: 1.1,
      seed: 0,
      attention: "naive",
    },
  });
  assert.equal(readOptions(["--help"]), "help");
  const wrong: [string[], RegExp][] = [
    [[], /^name the directory of a model$/],
    [["a", "b"], /one directory, got 2: a b/],
    [["a", "--promt", "x"], /^Unknown option '--promt'$/],
    [["a", "--prompt"], /'--prompt <value>' argument missing/],
    [["a", "--max-new-tokens", "0"], /above 0, got "0"/],
    [["a", "--max-new-tokens", "1e400"], /--max-new-tokens/],
    [["a", "--top-p", "1.5"], /--top-p is above 0 and at most 1, got "1.5"/],
    [["a", "--top-k", "2.5"], /--top-k/],
    [["a", "--min-p", "-1"], /--min-p/],
    [["a", "--seed", ""], /--seed is a whole number from 0, got ""/],
    [["a", "--dtype", "f64"], /--dtype is one of f32, f16, bf16, got "f64"/],
    [["a", "--backend", "cuda"], /--backend is one of/],
    [["a", "--provider", "chrome"], /--provider is one of deno, dawn, got "chrome"/],
    [["a", "--attention", "fast"], /--attention is one of/],
    [["a", "--system", "x"], /--system belongs to --chat/],
    [["a", "--stop", ""], /--stop is a text, got nothing/],
  ];
  for (const [args, form] of wrong) {
    assert.throws(
      () => readOptions(args),
      (error) => error instanceof UsageError && form.test(error.message),
      `${args}`,
    );
  }
});
