/**
 * Trains a model of a Hugging Face directory on a text file and saves it as another such directory.
 *
 *     deno task finetune Llama-3.2-1B book.txt --out out/llama-on-a-book
 *
 * Blocks are computed again on the way back instead of being kept (gradient checkpointing), so that memory holds the
 * parameters, their gradients and AdamW's two moments, and little more.
 */
import { readFile } from "node:fs/promises";
import { resolve } from "node:path";
import {
  add,
  arange,
  cast,
  compile,
  dispose,
  foldIn,
  key,
  randint,
  reshape,
  scope,
  slice,
  take,
  type Tensor,
  tensor,
  valueAndGrad,
} from "@flashtape/flashtape";
import { adamw, type AdamwState, clipGradNorm, cosineSchedule, llama } from "@flashtape/flashtape/nn";
import { prepareFolder } from "./folder.ts";
import {
  contextOf,
  describe,
  hearInterrupts,
  interruptible,
  modelFlags,
  modelUsage,
  openModel,
  type OpenOptions,
  openOptionsOf,
} from "./model_options.ts";
import { breathe, choiceOf, isCount, numberOf, parseFlags, runProgram, UsageError } from "./program.ts";
import { duration, ProgressLine, short } from "./progress.ts";

const usage = `deno task finetune DIR TEXT --out OUT [options]

  --out OUT               the directory that the trained model goes to
  --steps N               100 when not given
  --batch N               windows a step; 4 when not given
  --context N             tokens a window; 512 when not given, or the model's context
  --learning-rate R       1e-5 when not given
  --seed N                which windows come when; 0 when not given
  --save-dtype T          f32, f16 or bf16; the checkpoint's own when not given
${modelUsage.replace("the checkpoint's own when not given", "what is trained in; f32 when not given")}`;

/** How to train. */
export interface Training {
  readonly steps: number;
  readonly batch: number;
  readonly context: number;
  readonly learningRate: number;
  readonly seed: number;
}

/** What was asked for. */
export interface Options extends OpenOptions, Training {
  readonly text: string;
  readonly out: string;
  readonly saveDType: "f32" | "f16" | "bf16" | undefined;
}

/**
 * The options of a command line.
 * @throws {UsageError} for one that does not exist, or a value that it cannot have
 */
export function readOptions(args: readonly string[]): Options | "help" {
  const text = { type: "string" } as const;
  const own = { out: text, steps: text, batch: text, context: text, "learning-rate": text, seed: text };
  const { values, positionals } = parseFlags(args, { ...own, "save-dtype": text, ...modelFlags });
  if (values.help) return "help";
  const [dir, file, ...rest] = positionals;
  if (file === undefined || rest.length > 0) {
    throw new UsageError(`name a model's directory and a text file, got ${positionals.join(" ") || "nothing"}`);
  }
  const opened = openOptionsOf(values, [dir]), { out } = values;
  if (out === undefined || out === "") throw new UsageError("--out names the directory that the trained model goes to");
  if (resolve(out) === resolve(dir)) throw new UsageError(`--out is the model itself: name another directory`);
  const count = (flag: string) => numberOf(values, flag, isCount, "a whole number above 0");
  return {
    ...opened,
    dtype: opened.dtype ?? "f32",
    text: file,
    out,
    steps: count("steps") ?? 100,
    batch: count("batch") ?? 4,
    context: count("context") ?? 512,
    learningRate: numberOf(values, "learning-rate", (n) => n > 0 && n < Infinity, "a number above 0") ?? 1e-5,
    seed: numberOf(values, "seed", (n) => Number.isSafeInteger(n) && n >= 0, "a whole number from 0") ?? 0,
    saveDType: choiceOf(values, "save-dtype", ["f32", "f16", "bf16"]),
  };
}

type Params = Record<string, Tensor>;

/** What a step takes over and gives back. */
interface Now {
  readonly params: Params;
  readonly state: AdamwState;
}

/** The mean loss over the windows of a text, which are read one after the other. */
export async function evaluate(
  params: Params,
  config: llama.LlamaConfig,
  ids: Tensor,
  context: number,
): Promise<number> {
  const windows = Math.min(16, Math.floor(ids.size / context));
  let total = 0;
  for (let i = 0; i < windows; i++) {
    using loss = scope(() => {
      const window = reshape(slice(ids, [i * context], [(i + 1) * context]), [1, context]);
      return llama.loss(params, config, window, window);
    });
    total += await loss.item();
  }
  return total / windows;
}

/**
 * Trains.
 *
 * @param params consumed
 * @param ids the text, i32 `[n]`
 * @param onStep hears of each step whose loss was read
 * @returns the trained parameters, after fewer steps when `signal` came
 */
export async function train(
  params: Params,
  config: llama.LlamaConfig,
  ids: Tensor,
  { steps, batch, context, learningRate, seed }: Training,
  onStep: (step: number, loss: number) => void = () => {},
  signal?: AbortSignal,
): Promise<{ params: Params; steps: number }> {
  const optimizer = adamw({
    learningRate: cosineSchedule({
      learningRate,
      minLearningRate: learningRate / 10,
      warmupSteps: Math.min(20, Math.floor(steps / 10)),
      totalSteps: steps,
    }),
    betas: [0.9, 0.95],
    weightDecay: 0.1,
    decays: (_, x) => x.rank > 1,
  });
  using start = key(seed, { backend: ids.backend });
  // Recorded at the first call and replayed from then on: what changes comes in as tensors.
  using step = compile(({ params, state }: Now) => {
    const starts = randint(foldIn(start, state.step), [batch, 1], { max: ids.size - context + 1 });
    const rows = take(ids, add(starts, arange(context))); // [batch, context]
    const [loss, grads] = valueAndGrad((p: Params) => llama.loss(p, config, rows, rows, { checkpoint: true }))(params);
    return { loss, ...optimizer.update(params, clipGradNorm(grads, 1).grads, state) };
  });
  let now: Now = { params, state: optimizer.init(params) }, done = 0, lastRead = -Infinity;
  while (done < steps && !signal?.aborted) {
    const { loss, ...next } = step(now);
    now = next;
    done++;
    // Reading waits for the device: often enough to draw, seldom enough not to slow it down.
    if (performance.now() - lastRead > 100 || done === steps) {
      onStep(done, await loss.item());
      lastRead = performance.now();
    }
    loss.dispose();
    await breathe();
  }
  dispose(now.state);
  return { params: now.params, steps: done };
}

async function main(options: Options): Promise<number> {
  hearInterrupts();
  const text = await readFile(options.text, "utf8").catch((cause) => {
    throw new UsageError(`cannot read "${options.text}": ${cause.message}`);
  });
  const opened = await openModel(options), { model } = opened;
  const saved = options.saveDType ?? dtypeOf(model.config);
  console.log(`${describe(options.dir, opened)}, loaded in ${opened.seconds.toFixed(1)} s`);
  const context = Math.min(options.context, contextOf(model));
  const all = model.tokenizer.encode(text), heldOut = Math.floor(all.length / 20 / context) * context;
  if (all.length - heldOut < context + 1) {
    throw new UsageError(`"${options.text}" has ${all.length} tokens, too few for windows of ${context}: --context`);
  }
  await prepareFolder(options.out).catch((cause) => {
    throw new UsageError(`--out: cannot write to "${options.out}": ${cause.message}`);
  });
  using ids = tensor(all.slice(0, all.length - heldOut), { dtype: "i32" });
  using held = tensor(heldOut > 0 ? all.slice(-heldOut) : all.slice(0, context), { dtype: "i32" });
  const what = heldOut > 0 ? "held-out text" : "the text's beginning";
  console.log(`${short(ids.size)} tokens to learn from, ${short(heldOut)} held out`);
  const before = await evaluate(model.params, model.config, held, context);
  const bar = new ProgressLine(), begin = performance.now();
  let mean: number | undefined;
  const { params, steps } = await interruptible((signal) =>
    train(model.params, model.config, ids, { ...options, context }, (step, loss) => {
      mean = mean === undefined ? loss : 0.9 * mean + 0.1 * loss;
      const elapsed = (performance.now() - begin) / 1e3;
      bar.update({
        done: step / options.steps,
        fields: [
          `loss ${mean.toFixed(3)}`,
          `${short(step * options.batch * context / elapsed)} tok/s`,
          `${duration(elapsed / step * (options.steps - step))} left`,
          `step ${step}`,
        ],
      }, { force: step === options.steps });
    }, signal)
  );
  bar.end();
  const after = await evaluate(params, model.config, held, context);
  console.log(`loss on ${what}: ${before.toFixed(4)} before, ${after.toFixed(4)} after ${steps} steps`);
  const stored = scope(() => Object.fromEntries(Object.entries(params).map(([name, x]) => [name, cast(x, saved)])));
  await llama.save(options.out, { ...model, params: stored });
  console.log(`saved ${options.out}, in ${saved}`);
  return steps < options.steps ? 130 : 0;
}

/** The type of a checkpoint, as its config says. */
function dtypeOf({ dtype, torch_dtype }: llama.LlamaConfig): "f32" | "f16" | "bf16" {
  const name = dtype ?? torch_dtype;
  return name === "bfloat16" ? "bf16" : name === "float16" ? "f16" : "f32";
}

if (import.meta.main) await runProgram(readOptions, main, usage);
