/** `attention`: one call of attention, forward and backward. */
import { Option } from "npm:@commander-js/extra-typings@15.1.0";
import { type Algorithm, algorithms, type AttentionCall, attentionCase } from "./attention_cases.ts";
import { deviceLine } from "./machine.ts";
import { dtypes, measures, whole, windowOf } from "./options.ts";
import type { Take } from "./plan.ts";
import { type Result, type Row, tflops } from "./record.ts";
import { bytes, digits, pairs } from "./table.ts";
import { UsageError } from "./files.ts";

type Sizes = Pick<AttentionCall, "batch" | "seqlen" | "heads" | "headDim" | "causal">;

/** Known models' attention, and lengths to try. */
export const presets: Readonly<Record<string, Sizes>> = {
  "gpt2": { batch: 8, seqlen: 1024, heads: 12, headDim: 64, causal: true },
  "gpt3": { batch: 1, seqlen: 2048, heads: 96, headDim: 128, causal: true },
  "bert-base": { batch: 16, seqlen: 512, heads: 12, headDim: 64, causal: false },
  "bert-large": { batch: 16, seqlen: 512, heads: 16, headDim: 64, causal: false },
  "short": { batch: 32, seqlen: 256, heads: 8, headDim: 64, causal: false },
  "long": { batch: 2, seqlen: 4096, heads: 8, headDim: 64, causal: true },
  "very-long": { batch: 1, seqlen: 16384, heads: 8, headDim: 64, causal: true },
};
const presetNames = Object.keys(presets);
const base: Sizes = { batch: 2, seqlen: 1024, heads: 8, headDim: 64, causal: false };

/** A command with the flags that say which call of attention. */
export function attends<Name extends string>(name: Name, description: string) {
  return measures(name, description)
    .addOption(new Option("--preset <name>", "sizes of a known kind; other flags go before it").choices(presetNames))
    .option("--batch <n>", "sequences (default: 2)", whole(1, 65_536))
    .option("--seqlen <n>", "queries and keys (default: 1024)", whole(1, 2 ** 24))
    .option("--nheads <n>", "query heads (default: 8)", whole(1, 4096))
    .option("--kv-heads <n>", "key/value heads, which divide the query heads (default: as many)", whole(1, 4096))
    .option("--headdim <n>", "size of a head (default: 64)", whole(1, 256))
    .option("--causal", "a query sees only what is not after it")
    .option("--no-causal", "every query sees every key (default, but for presets)")
    .option("--window <l[:r]>", "keys that a query sees on its left and right, -1 for all", windowOf)
    .addOption(new Option("--dtype <type>", "element type").choices(dtypes).default("f32" as const))
    .option("--block-size <n>", "rows of a block, for v1 and v2", whole(1, 8192), 128);
}

/** The flags of `attends()`, as they were given. */
export interface AttendsOptions {
  readonly preset?: string;
  readonly batch?: number;
  readonly seqlen?: number;
  readonly nheads?: number;
  readonly kvHeads?: number;
  readonly headdim?: number;
  readonly causal?: boolean;
  readonly window?: readonly [number, number];
  readonly dtype: AttentionCall["dtype"];
  readonly blockSize: number;
  readonly seed: number;
}

/**
 * The call that flags ask for.
 * @throws {UsageError} when they do not fit each other
 */
export function callOf(options: AttendsOptions, algorithm: Algorithm): AttentionCall {
  const preset = options.preset === undefined ? base : presets[options.preset];
  const { batch = preset.batch, seqlen = preset.seqlen, nheads = preset.heads, headdim = preset.headDim } = options;
  const { causal = preset.causal, window, dtype, blockSize, seed, kvHeads = nheads } = options;
  if (nheads % kvHeads !== 0) {
    const allowed = Array.from({ length: nheads }, (_, i) => i + 1).filter((n) => nheads % n === 0);
    throw new UsageError(`--kv-heads ${kvHeads} does not divide --nheads ${nheads}. Allowed: ${allowed.join(", ")}`);
  }
  return { batch, seqlen, heads: nheads, kvHeads, headDim: headdim, causal, window, dtype, algorithm, blockSize, seed };
}

/** The `attention` command. */
export function attention(take: Take) {
  return attends("attention", "One call of attention: forward and backward, time, rate and memory.")
    .addOption(new Option("--algorithm <name>", "which").choices(algorithms).default("flash" as const))
    .option("--no-grad", "leave out the backward pass")
    .action((options) => {
      const call = callOf(options, options.algorithm);
      take({
        command: "attention",
        settings: options,
        sizedBy: ["--batch", "--seqlen", "--nheads", "--headdim"],
        cases: (backend) => [
          attentionCase(call, "forward", backend),
          ...(options.grad ? [attentionCase(call, "backward", backend)] : []),
        ],
        report,
      });
    });
}

function report(result: Result): string {
  const titles = { forward: "Forward Pass Results", backward: "Backward Pass Results" };
  return result.rows.map((row) => {
    const title = titles[row.labels.pass as keyof typeof titles];
    if (row.skipped !== undefined) return `${title}: ${row.name}\n  left out: ${row.skipped.reason}`;
    return `${title}: ${row.name}\n${pairs(linesOf(row, result))}`;
  }).join("\n\n");
}

function linesOf(row: Row, result: Result): [string, string][] {
  const { ms: times, clock, launches } = row;
  const rate = (ms: number) => digits(tflops(row, ms)!);
  const kernels = launches === null ? "" : `, ${launches} ${launches === 1 ? "kernel" : "kernels"} a call`;
  return [
    ["Time (min)", `${times!.min.toFixed(4)} ms`],
    ["Time (avg)", `${times!.avg.toFixed(4)} ms`],
    ["Time (median)", `${times!.median.toFixed(4)} ms`],
    ["Time (max)", `${times!.max.toFixed(4)} ms`],
    ["TFLOPs/s (peak)", rate(times!.min)],
    ["TFLOPs/s (avg)", rate(times!.avg)],
    ["Peak memory", bytes(row.peakBytes)],
    ["Clock", `${clock}, ${times!.each.length} calls${kernels}`],
    ["Device", deviceLine(result)],
  ];
}
