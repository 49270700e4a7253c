/**
 * Trains a GPT on a text, byte by byte, and saves all that it needs to go on: stop it with Ctrl-C, and
 *
 *     deno run -A examples/gpt.ts --steps 2000
 *     deno run -A examples/gpt.ts --resume
 *
 * goes on where it stopped, to the same bits as if it had never been stopped.
 */
import { Buffer } from "node:buffer";
import { readFile, stat } from "node:fs/promises";
import { dirname } from "node:path";
import process from "node:process";
import { type Tensor, tensor } from "@flashtape/flashtape";
import { deviceOf, type DeviceOptions, deviceUsage, openDevice } from "./device.ts";
import { prepareFolder } from "./folder.ts";
import { type GptConfig, Training, windowsOf } from "./gpt_model.ts";
import { choiceOf, isCount, isSeed, numberOf, parseFlags, runProgram, UsageError } from "./program.ts";
import { duration, ProgressLine, short } from "./progress.ts";

const usage = `deno run -A examples/gpt.ts [options]

  --text FILE          what to learn; Moby-Dick when not given
  --file FILE          the checkpoint; out/gpt.safetensors when not given
  --resume             go on from it: model and training are as they were, --steps alone may be others
  --steps N            how many steps in all; 2000
  --every N            steps between two looks at held-out text, each followed by a save; 250
  --layers N  --heads N  --width N  --context N  --batch N      6, 6, 192, 256, 32
  --learning-rate X    at its top; 0.001
  --dropout P          0.1
  --dtype T            what activations are stored in: f32, bf16 or f16; f32
  --checkpoint         recompute blocks on the way back: less memory, more time
  --seed N             0
${deviceUsage(23)}  --help               this text
`;

/** What was asked for. */
export interface Options extends DeviceOptions {
  readonly text: string | undefined;
  readonly file: string;
  readonly resume: boolean;
  readonly steps: number | undefined;
  readonly every: number;
  readonly config: GptConfig;
}

/**
 * The options of a command line.
 * @throws {UsageError} for one that does not exist, or a value that it cannot have
 */
export function readOptions(args: readonly string[]): Options | "help" {
  const value = { type: "string" } as const, flag = { type: "boolean" } as const;
  const { values: given } = parseFlags(args, {
    text: value,
    file: value,
    resume: flag,
    steps: value,
    every: value,
    layers: value,
    heads: value,
    width: value,
    context: value,
    batch: value,
    "learning-rate": value,
    dropout: value,
    dtype: value,
    checkpoint: flag,
    seed: value,
    backend: value,
    provider: value,
    help: flag,
  }, false);
  if (given.help) return "help";
  const count = (name: keyof typeof given) => numberOf(given, name, isCount, "a whole number above 0");
  const steps = count("steps");
  const config: GptConfig = {
    layers: count("layers") ?? 6,
    heads: count("heads") ?? 6,
    width: count("width") ?? 192,
    context: count("context") ?? 256,
    batch: count("batch") ?? 32,
    dropout: numberOf(given, "dropout", (n) => n >= 0 && n < 1, "at least 0 and below 1") ?? 0.1,
    learningRate: numberOf(given, "learning-rate", (n) => n > 0 && n < Infinity, "a number above 0") ?? 1e-3,
    steps: steps ?? 2000,
    seed: numberOf(given, "seed", isSeed, "a whole number from 0") ?? 0,
    dtype: choiceOf(given, "dtype", ["f32", "bf16", "f16"]) ?? "f32",
    checkpoint: given.checkpoint ?? false,
  };
  if (config.width % (8 * config.heads) !== 0) {
    throw new UsageError(`--width is a multiple of 8 · heads, got ${config.width} and ${config.heads}`);
  }
  return {
    text: given.text,
    file: given.file ?? "out/gpt.safetensors",
    resume: given.resume ?? false,
    steps,
    every: count("every") ?? 250,
    ...deviceOf(given),
    config,
  };
}

/** What to learn from, and what to be judged by. */
async function readText(path: string | undefined): Promise<{ train: Uint8Array; heldOut: Uint8Array }> {
  if (path === undefined) return (await import("./moby_dick.ts")).readBook();
  const bytes = await readFile(path).catch((cause) => {
    throw new UsageError(`--text: cannot read "${path}": ${cause.message}`);
  });
  const end = Math.floor(0.9 * bytes.length);
  return { train: bytes.subarray(0, end), heldOut: bytes.subarray(end) };
}

/** Ctrl-C: training ends after the step that is running. A second one ends the program at once. */
let stopped = 0;
function listen(): void {
  const hear = () => {
    // A terminal and a task runner may both pass one Ctrl-C on.
    if (stopped > 0 && performance.now() - stopped > 500) process.exit(130);
    stopped ||= performance.now();
  };
  process.on("SIGINT", hear);
  if (process.platform !== "win32") process.on("SIGTERM", hear);
}

/** Finds out, before any work is done, whether the file can be written. */
async function prepareFile(file: string): Promise<void> {
  await prepareFolder(dirname(file));
  const there = await stat(file).catch(() => undefined);
  if (there?.isDirectory()) throw new Error("it is a folder");
}

async function main(options: Options): Promise<number> {
  const { file, every } = options;
  listen();
  await prepareFile(file).catch((cause) => {
    throw new UsageError(`--file: cannot write "${file}": ${cause.message}`);
  });
  const backend = await openDevice(options);
  const { train, heldOut } = await readText(options.text);
  const { context } = options.config;
  if (Math.min(train.length, heldOut.length) <= context) {
    throw new UsageError(`the text has ${train.length + heldOut.length} bytes: too few for a context of ${context}`);
  }
  const text = tensor(train, { dtype: "i32" });
  using training = options.resume
    ? await Training.resume(file, text, { steps: options.steps })
    : Training.start(options.config, text);
  const { config } = training;
  const count = Object.values(training.params).reduce((sum, x) => sum + x.size, 0);
  console.log(`${backend.name}: ${backend.description}`);
  console.log(
    `${
      short(count)
    } parameters, ${config.layers} layers of ${config.width}, ${config.batch} × ${config.context} bytes ` +
      `a step${options.resume ? `, from step ${training.steps} of ${file}` : ""}`,
  );
  using windows = windowsOf(heldOut, config.context, 4 * config.batch);
  await run(training, windows, { file, every });
  if (stopped > 0) {
    console.log(`stopped after step ${training.steps}: --resume goes on from ${file}`);
    return 130;
  }
  process.stdout.write("\nCall me Ishmael.");
  for await (const byte of training.write("Call me Ishmael.", 300)) {
    process.stdout.write(Buffer.from([byte]));
    if (stopped > 0) break;
  }
  console.log(`\n\nsaved ${file}`);
  return 0;
}

/** Trains to the end, or to Ctrl-C; saves then, and after each look at held-out text. */
async function run(
  training: Training,
  windows: Tensor,
  { file, every }: { readonly file: string; readonly every: number },
): Promise<void> {
  const { steps, batch, context } = training.config;
  const bar = new ProgressLine(), begin = performance.now(), first = training.steps;
  let mean: number | undefined, heldOut: number | undefined, read = first, lastRead = begin;
  const show = (force = false) => {
    const seconds = (performance.now() - begin) / 1e3, made = training.steps - first;
    bar.update({
      done: training.steps / steps,
      fields: [
        mean === undefined ? "" : `loss ${mean.toFixed(3)}`,
        heldOut === undefined ? "" : `held-out ${(heldOut / Math.LN2).toFixed(3)} bits/byte`,
        `${short(made * batch * context / Math.max(1e-3, seconds))} bytes/s`,
        made === 0 ? "" : `${duration((steps - training.steps) * seconds / made)} left`,
        `step ${training.steps} of ${steps}`,
      ].filter((field) => field !== ""),
    }, { force });
  };
  while (training.steps < steps && stopped === 0) {
    using loss = training.step();
    // Reading waits for the device, and lets Ctrl-C in: often enough for both, seldom enough to cost nothing.
    if (performance.now() - lastRead > 100 || training.steps - read >= 16) {
      const nats = await loss.item();
      mean = mean === undefined ? nats : 0.9 * mean + 0.1 * nats;
      [read, lastRead] = [training.steps, performance.now()];
      await new Promise((resolve) => setTimeout(resolve, 0));
    }
    if (training.steps % every === 0 || training.steps === steps) {
      heldOut = await training.evaluate(windows);
      await training.save(file);
    }
    show();
  }
  if (stopped > 0) await training.save(file);
  show(true);
  bar.end();
}

if (import.meta.main) await runProgram(readOptions, main, usage);
