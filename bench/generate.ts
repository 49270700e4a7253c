/** `generate`: text from a model, token by token: latency of the first and the others, tokens a second. */
import { Option } from "npm:@commander-js/extra-typings@15.1.0";
import { dispose, key, measure, randint, scope } from "@flashtape/flashtape";
import { generate, llama } from "@flashtape/flashtape/nn";
import { existsSync } from "node:fs";
import { join } from "node:path";
import { UsageError } from "./files.ts";
import { deviceLine } from "./machine.ts";
import { summary } from "./measure.ts";
import { configOf, modelNames, parameterCount, sizesOf } from "./model_sizes.ts";
import { type BenchDType, dtypes, listOf, measures, whole } from "./options.ts";
import type { Context, Take } from "./plan.ts";
import { emptyRow, type Result, type Row } from "./record.ts";
import { bytes, digits, ms, table, times } from "./table.ts";

type Model = Parameters<typeof generate>[0];
const ways = ["naive", "flash"] as const;
type Way = typeof ways[number];

interface Asked {
  readonly prompt: number;
  readonly new: number;
  readonly batch: number;
  readonly dtype: BenchDType;
  readonly attention: readonly Way[];
}

/** One text: when its first and its last token came, in milliseconds since it was asked for. */
interface Run {
  readonly first: number;
  readonly last: number;
  readonly tokens: number;
}

async function run(model: Model, rows: readonly (readonly number[])[], attention: Way, asked: Asked): Promise<Run> {
  const start = performance.now();
  let first = 0, last = 0, tokens = 0;
  for await (const _ of generate(model, { inputIds: rows, maxNewTokens: asked.new, temperature: 0, attention })) {
    last = performance.now() - start;
    if (tokens++ === 0) first = last;
  }
  return { first, last, tokens };
}

/** The rows of a prompt: any ids serve, since nothing depends on their meaning. */
async function promptOf({ prompt, batch }: Asked, vocabulary: number, seed: number): Promise<number[][]> {
  const ids = scope(() => randint(key(seed + 1), [batch, prompt], { max: vocabulary }));
  const rows = await ids.array() as number[][];
  ids.dispose();
  return rows;
}

async function rowsOf(model: Model, name: string, asked: Asked, { settings, progress }: Context): Promise<Row[]> {
  const prompt = await promptOf(asked, model.config.vocab_size, settings.seed), rows: Row[] = [];
  progress.start(asked.attention.length);
  try {
    for (const attention of asked.attention) {
      const title =
        `generate ${name} ${asked.dtype} B${asked.batch} prompt ${asked.prompt} + ${asked.new}, ${attention}`;
      progress.on(title);
      for (let i = 0; i <= Math.min(2, settings.warmup); i++) await run(model, prompt, attention, asked);
      const { peakBytes } = await measure(() => run(model, prompt, attention, asked));
      const runs: Run[] = [], begin = performance.now();
      while (runs.length < settings.repeats) {
        runs.push(await run(model, prompt, attention, asked));
        if (runs.length >= 3 && performance.now() - begin > 1000 * settings.budget) break;
      }
      const of = (f: (run: Run) => number) => summary(runs.map(f)).median;
      const { batch, dtype } = asked;
      rows.push({
        ...emptyRow(title, { model: name, attention, batch, prompt: asked.prompt, new: asked.new, dtype }),
        ...{ clock: "wall clock", ms: summary(runs.map(({ last }) => last)), peakBytes },
        figures: {
          "tokens/s": of(({ last, tokens }) => 1000 * batch * tokens / last),
          "ms to the first token": of(({ first }) => first),
          "ms/token": of(({ first, last, tokens }) => tokens > 1 ? (last - first) / (tokens - 1) : last),
        },
      });
      progress.done(rows.at(-1)!);
    }
  } finally {
    progress.stop();
  }
  return rows;
}

/** The `generate` command. */
export function generates(take: Take) {
  return measures("generate", "Text token by token, flash against naive attention: tokens a second, latencies.", {
    repeats: 5,
  })
    .option("--model <dir>", "a checkpoint's directory; random weights when not given")
    .addOption(
      new Option("--preset <name>", "sizes of the random weights").choices(modelNames).default("small" as const),
    )
    .option("--layers <n>", "blocks (default: the preset's)", whole(1, 1000))
    .option("--vocab <n>", "tokens that there are (default: the preset's)", whole(2, 2 ** 20))
    .option("--batch <n>", "texts at a time", whole(1, 4096), 1)
    .option("--prompt <n>", "tokens of the prompt", whole(1, 131_072), 24)
    .option("--new <n>", "tokens to write", whole(1, 131_072), 64)
    .option("--attention <list>", "some of naive,flash", listOf(ways), [...ways])
    .addOption(new Option("--dtype <type>", "element type of the weights").choices(dtypes).default("bf16" as const))
    .action((options) => {
      const { model: directory, preset, seed, dtype } = options, sizes = sizesOf(preset, options);
      if (directory !== undefined && !existsSync(join(directory, "config.json"))) {
        throw new UsageError(`--model ${directory}: no config.json there. Allowed: the directory of a checkpoint`);
      }
      take({
        command: "generate",
        settings: options,
        measure: async (context) => {
          const name = directory ?? `${digits(parameterCount(sizes) / 1e6)} M`;
          const model = directory !== undefined
            ? await llama.load(directory, { dtype })
            : { config: configOf(sizes), params: scope(() => llama.init(key(seed), configOf(sizes), { dtype })) };
          try {
            return await rowsOf(model, name, options, context);
          } finally {
            dispose(model.params);
          }
        },
        report,
      });
    });
}

function report(result: Result): string {
  const head = ["attention", "tokens/s", "first token, ms", "ms/token", "whole text, ms", "peak memory", "faster"];
  const [base] = result.rows, rate = (row: Row) => row.figures!["tokens/s"];
  const lines = result.rows.map((row) => [
    String(row.labels.attention),
    digits(rate(row)),
    ms(row.figures!["ms to the first token"]),
    ms(row.figures!["ms/token"]),
    ms(row.ms!.median),
    bytes(row.peakBytes),
    row === base ? "" : times(rate(row) / rate(base)),
  ]);
  const { model, batch, prompt, dtype } = base.labels;
  return `${model}, ${dtype}, batch ${batch}, prompt ${prompt}; ${deviceLine(result)}; wall clock\n\n${
    table(head, lines)
  }`;
}
