/** `report`: a page of results with its charts, by running the other commands; or again from what they left. */
import { readFileSync } from "node:fs";
import { join } from "node:path";
import { expectWritable, UsageError, writeAll } from "./files.ts";
import { deviceLine } from "./machine.ts";
import { command, path } from "./options.ts";
import type { Tools } from "./plan.ts";
import { fromJson, type Result, toJson } from "./record.ts";
import { reportSweep, sweepOf } from "./sweep.ts";

/** A part of the page: a command line, and a small one for trying the page out. */
interface Section {
  readonly name: string;
  readonly title: string;
  readonly line: string;
  readonly quick: string;
  /** What a reader should look at. */
  readonly text: string;
  readonly pictures?: readonly string[];
}

const sections: readonly Section[] = [
  {
    name: "suite",
    title: "Memory and time against length",
    line: "suite --max-seq-len 8192 --batch-size 4 --embed-dim 768 --num-heads 12",
    quick: "suite --max-seq-len 64 --batch-size 1 --embed-dim 32 --num-heads 4 --block-size 32",
    text: "Peak memory is what a call holds beside q, k and v; naive attention's grows with the square of the length.",
    pictures: ["dashboard", "memory", "performance"],
  },
  {
    name: "compare",
    title: "Flash against naive attention",
    line: "compare --batch 4 --nheads 12 --seqlen 2048 --causal",
    quick: "compare --batch 1 --nheads 2 --seqlen 32 --causal --no-grad",
    text: "The same inputs through both; the differences are between their results, gradients in the backward rows.",
  },
  {
    name: "blocks",
    title: "Block sizes",
    line:
      "sweep attention --batch 4 --nheads 12 --seqlen 2048 --causal --no-grad --algorithm v1,v2 --block-size 64,128,256,512",
    quick: "sweep attention --batch 1 --nheads 1 --seqlen 32 --no-grad --algorithm v1,v2 --block-size 16,32",
    text:
      "The published block algorithms op by op. A larger block is fewer, larger products, and more memory for its scores.",
  },
  {
    name: "layers",
    title: "Layers",
    line: "layers --vocab 128256 --dtype bf16 --torch",
    quick: "layers --only rmsNorm --batch 1 --seqlen 8 --hidden 16 --intermediate 24 --vocab 40 --nheads 2 --no-grad",
    text:
      "Each layer fused and op by op, plain and compiled; GPU ms is the sum of its kernels, wall ms what a program waits.",
  },
  {
    name: "model",
    title: "A transformer",
    line: "model --preset medium --batch 4 --seqlen 1024",
    quick: "model --preset tiny --layers 1 --vocab 32 --batch 1 --seqlen 8 --only loss",
    text: "Random weights. The eager model is made of eager layers and naive attention over the same parameters.",
  },
  {
    name: "generate",
    title: "Generating text",
    line: "generate --preset medium --prompt 512 --new 128",
    quick: "generate --preset tiny --layers 1 --vocab 32 --prompt 4 --new 4",
    text: "Random weights, greedy, the first token and the prompt counted in.",
  },
  {
    name: "peers",
    title: "Other libraries",
    line: "peers --sizes 4096 --seqlens 2048,4096",
    quick: "peers --only flashtape,jax --work forward --dtypes f32 --seqlens 16 --batch 1 --nheads 1 --headdim 8",
    text: "Each in a process of its own; a row is there only if its result was right.",
  },
];
const names = sections.map(({ name }) => name);

/** The `report` command. */
export function reports({ planOf, execute, io, run }: Tools) {
  return command(
    "report",
    "Runs suite, compare, layers, model, generate, peers and a sweep, and writes a page of it all.",
  )
    .option("--save-dir <dir>", "where page, charts and JSON go", path, "out/bench/report")
    .option("--from <dir>", "write the page again from the JSON files of an earlier report, measure nothing")
    .option("--no-plots", "leave out the charts")
    .option("--quick", "tiny sizes: whether it works, not how fast")
    .option("--only <list>", `some of ${names.join(",")}`)
    .option("--flags <flags>", "flags for each of the commands, such as '--provider dawn --budget 2'", "")
    .action((options) => run(() => reportAll(options)));

  interface Options {
    readonly saveDir: string;
    readonly from?: string;
    readonly plots: boolean;
    readonly quick?: true;
    readonly only?: string;
    readonly flags: string;
  }

  async function reportAll({ saveDir, from, plots, quick, only, flags }: Options): Promise<number> {
    const chosen = only?.split(",") ?? names, wrong = chosen.find((name) => !names.includes(name));
    if (wrong !== undefined) throw new UsageError(`--only: '${wrong}' is invalid. Allowed: ${names.join(", ")}`);
    expectWritable("--save-dir", join(saveDir, "results.md"));
    const more = flags.split(" ").filter((flag) => flag !== "");
    const files: Record<string, string | Uint8Array> = {}, parts: string[] = [];
    let latest: Result | undefined;
    for (const section of sections.filter(({ name }) => chosen.includes(name))) {
      const line = quick ? section.quick : section.line, [command, ...rest] = line.split(" ");
      const args = [...rest, ...more], sweeps = command === "sweep";
      const plan = sweeps ? null : planOf([command, ...args]);
      const result = from === undefined
        ? plan === null ? await sweepOf(args, { planOf, execute }) : await execute({ ...plan, writes: [] })
        : read(join(from, `${section.name}.json`));
      latest = result;
      writeAll({ [join(saveDir, `${section.name}.json`)]: toJson(result) }); // at once: a long run may be ended
      for (const [file, content] of Object.entries(plots ? await plan?.files?.(result) ?? {} : {})) {
        if (/\.(png|svg)$/.test(file)) files[join(saveDir, file.replace(/^.*[\\/]/, ""))] = content;
      }
      const pictures = plots ? section.pictures ?? [] : [];
      const shown = pictures.map((name) => `\n![${section.title}: ${name}](benchmark_${name}.png)\n`);
      const text = plan === null ? reportSweep(result) : plan.report(result);
      parts.push(
        `## ${section.title}\n\n${section.text}\n${shown.join("")}\n\`\`\`text\n$ deno task bench ` +
          `${result.arguments.join(" ")}\n\n${text}\n\`\`\`\n`,
      );
    }
    const { machine, date } = latest!;
    const head = `# Measured results\n\n${deviceLine(latest!)}, ${date.slice(0, 10)}; ${machine.processor}, ` +
      `${machine.os}, ${machine.runtime}. Written by \`deno task bench report\`; every row with all its samples is in the JSON ` +
      `files beside this page.\n`;
    files[join(saveDir, "results.md")] = [head, ...parts].join("\n");
    writeAll(files);
    io.out(
      `${parts.join("\n")}\nwritten: ${join(saveDir, "results.md")} and ${
        Object.keys(files).length - 1
      } files beside it\n`,
    );
    return 0;
  }
}

function read(file: string): Result {
  try {
    return fromJson(readFileSync(file, "utf8"));
  } catch (error) {
    throw new UsageError(`--from: ${file}: ${(error as Error).message}`);
  }
}
