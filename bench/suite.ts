/** `suite`: memory and time of attention against sequence length, as charts, JSON and CSV. */
import { Option } from "npm:@commander-js/extra-typings@15.1.0";
import type { Backend } from "@flashtape/flashtape";
import { readFileSync } from "node:fs";
import { join } from "node:path";
import { type AttentionCall, attentionCase, type Pass } from "./attention_cases.ts";
import { dashboardChart, memoryChart, performanceChart, seriesOf, type Theme, themes } from "./charts.ts";
import { UsageError } from "./files.ts";
import { deviceLine } from "./machine.ts";
import { dtypes, measures, path, whole } from "./options.ts";
import type { Case, Plan, Take } from "./plan.ts";
import { fromJson, type Result, type Row, tflops, toCsv, toJson } from "./record.ts";
import { draw } from "./render.ts";
import { bytes, digits, ms, table, times } from "./table.ts";

/** Lengths that are measured: up to the longest, each twice the one before. */
export function lengthsUpTo(longest: number): number[] {
  return Array.from({ length: 5 }, (_, i) => longest / 2 ** (4 - i)).filter((n) => Number.isInteger(n) && n >= 16);
}

interface SuiteSizes {
  readonly maxSeqLen: number;
  readonly batchSize: number;
  readonly embedDim: number;
  readonly numHeads: number;
  readonly kvHeads: number;
  readonly causal: boolean;
  readonly dtype: AttentionCall["dtype"];
  readonly blockSize: number;
  readonly grad: boolean;
  readonly seed: number;
}

function casesOf(sizes: SuiteSizes, backend: Backend): Case[] {
  const { maxSeqLen, batchSize, embedDim, numHeads, kvHeads, causal, dtype, blockSize, grad, seed } = sizes;
  const shared = { batch: batchSize, heads: numHeads, headDim: embedDim / numHeads, causal, dtype, blockSize, seed };
  const both: Pass[] = grad ? ["forward", "backward"] : ["forward"];
  // Those that need most memory come last: a card that is short of it is no place to measure the others.
  const kinds: (Pick<AttentionCall, "algorithm" | "kvHeads"> & { readonly passes: readonly Pass[] })[] = [
    { algorithm: "flash", kvHeads: numHeads, passes: both },
    ...kvHeads < numHeads ? [{ algorithm: "flash", kvHeads, passes: both } as const] : [],
    { algorithm: "v2", kvHeads: numHeads, passes: ["forward"] },
    { algorithm: "v1", kvHeads: numHeads, passes: ["forward"] },
    { algorithm: "naive", kvHeads: numHeads, passes: both },
  ];
  return kinds.flatMap(({ passes, ...kind }) =>
    lengthsUpTo(maxSeqLen).flatMap((seqlen) =>
      passes.map((pass) => attentionCase({ ...shared, ...kind, seqlen }, pass, backend))
    )
  );
}

/** By length, then from the textbook's to ours. */
function order({ labels: a }: Row, { labels: b }: Row): number {
  const place = ({ algorithm, heads, kvHeads }: Row["labels"]) =>
    ["naive", "v1", "v2", "flash"].indexOf(String(algorithm)) + (heads === kvHeads ? 0 : 1);
  return Number(a.seqlen) - Number(b.seqlen) || place(a) - place(b);
}

/** The largest quarter, third or half of the heads that divides them. */
function groupedHeads(heads: number): number {
  return [4, 3, 2].map((by) => heads / by).find(Number.isInteger) ?? heads;
}

/** The `suite` command. */
export function suite(take: Take) {
  return measures("suite", "Memory and time of attention against sequence length: charts, JSON, CSV.", { repeats: 10 })
    .option("--max-seq-len <n>", "the longest sequence; four halves of it come before", whole(32, 2 ** 20), 8192)
    .option("--batch-size <n>", "sequences", whole(1, 65_536), 4)
    .option("--embed-dim <n>", "size of all heads together", whole(1, 2 ** 20), 768)
    .option("--num-heads <n>", "query heads, which divide it", whole(1, 4096), 12)
    .option("--kv-heads <n>", "key/value heads of the grouped row (default: a quarter)", whole(1, 4096))
    .option("--non-causal", "every query sees every key")
    .addOption(new Option("--dtype <type>", "element type").choices(dtypes).default("f32" as const))
    .option("--block-size <n>", "rows of a block, for v1 and v2", whole(1, 8192), 128)
    .option("--no-grad", "leave out the backward passes")
    .addOption(new Option("--theme <name>", "of the charts").choices(themes).default("light" as const))
    .option("--no-plots", "leave out the charts")
    .option("--save-dir <dir>", "where the files go", path, "out/bench")
    .option("--from <file>", "draw the charts of an earlier benchmark_results.json, measure nothing")
    .action((options) => {
      const { embedDim, numHeads, kvHeads = groupedHeads(numHeads), saveDir, theme, plots } = options;
      if (embedDim % numHeads !== 0 || embedDim / numHeads > 256) {
        throw new UsageError(`--num-heads ${numHeads}: divides --embed-dim ${embedDim} into heads of at most 256`);
      }
      if (numHeads % kvHeads !== 0) {
        throw new UsageError(`--kv-heads ${kvHeads}: divides --num-heads ${numHeads}`);
      }
      const sizes: SuiteSizes = { ...options, kvHeads, causal: options.nonCausal !== true };
      const file = (name: string) => join(saveDir, name);
      const base: Omit<Plan, "arguments"> = {
        command: "suite",
        settings: options,
        sizedBy: ["--max-seq-len", "--batch-size", "--embed-dim"],
        order,
        writes: [["--save-dir", file("benchmark_results.json")]],
        report,
        files: (result) => filesOf(result, file, plots ? theme : null),
      };
      if (options.from === undefined) return take({ ...base, cases: (backend) => casesOf(sizes, backend) });
      take({ ...base, earlier: read(options.from) });
    });
}

function read(file: string): Result {
  try {
    const result = fromJson(readFileSync(file, "utf8"));
    if (result.command !== "suite") throw new Error(`it is a result of ${result.command}, not of suite`);
    return result;
  } catch (error) {
    throw new UsageError(`--from ${file}: ${(error as Error).message}`);
  }
}

async function filesOf(result: Result, file: (name: string) => string, theme: Theme | null) {
  const files: Record<string, string | Uint8Array> = {
    [file("benchmark_results.json")]: toJson(result),
    [file("benchmark_results.csv")]: toCsv(result),
  };
  if (theme === null) return files;
  const charts = { memory: memoryChart, performance: performanceChart, dashboard: dashboardChart };
  for (const [name, chart] of Object.entries(charts)) {
    const { svg, png } = await draw(chart(result, theme));
    files[file(`benchmark_${name}.svg`)] = svg;
    files[file(`benchmark_${name}.png`)] = png;
  }
  return files;
}

function report(result: Result): string {
  const head = ["algorithm", "pass", "length", "median ms", "TFLOP/s", "clock", "peak memory", "faster", "less memory"];
  const lines = result.rows.map((row) => {
    const { labels: at, skipped, ms: timing, peakBytes } = row;
    const name = [seriesOf(row), String(at.pass), String(at.seqlen)];
    if (skipped !== undefined) {
      return [...name, "does not fit", "", "", `(${bytes(skipped.predictedBytes)})`, "", ""];
    }
    const naive = result.rows.find(({ labels: other }) =>
      other.algorithm === "naive" && other.pass === at.pass && other.seqlen === at.seqlen
    );
    const against = naive === row || !naive?.ms ? ["", ""] : [
      times(naive.ms.median / timing!.median),
      times(naive.peakBytes! / peakBytes!),
    ];
    const clock = row.clock === "gpu timestamps" ? "GPU" : "wall";
    return [...name, ms(timing!.median), digits(tflops(row, timing!.median)!), clock, bytes(peakBytes), ...against];
  });
  const left = result.rows.filter(({ skipped }) => skipped !== undefined);
  const notes = left.map(({ name, skipped }) => `\n${name} does not fit: ${skipped!.reason}`);
  return `${deviceLine(result)}\n\n${table(head, lines, 2)}${notes.join("")}`;
}
