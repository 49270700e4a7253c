/** `check`: is anything slower or larger than in an earlier result, by more than the noise of the run? */
import { readFileSync } from "node:fs";
import { UsageError } from "./files.ts";
import { deviceLine } from "./machine.ts";
import { command, whole, within } from "./options.ts";
import type { Plan, Tools } from "./plan.ts";
import { sweepOf } from "./sweep.ts";
import { fromJson, type Result, type Row } from "./record.ts";
import { bytes, ms, table } from "./table.ts";

/** What became of one figure. */
export interface Verdict {
  readonly name: string;
  readonly figure: "time" | "memory" | "row";
  readonly before: number;
  readonly now: number;
  /** How far the samples of this run lie apart, as a part of their median. */
  readonly noise: number;
  readonly outcome: "worse" | "same" | "better" | "missing";
}

function medianOf(values: readonly number[]): number {
  const sorted = [...values].sort((a, b) => a - b), half = sorted.length >> 1;
  return sorted.length % 2 === 1 ? sorted[half] : (sorted[half - 1] + sorted[half]) / 2;
}

/**
 * Compares rows of the same name. The noise of a time is the larger of two spreads in this run: between the medians of
 * its rounds, and between the quarters of all samples.
 * @param tolerance what may be lost on top of the noise, as a part
 */
export function compareRuns(
  baseline: readonly Row[],
  rounds: readonly (readonly Row[])[],
  tolerance: number,
): Verdict[] {
  return baseline.filter(({ ms }) => ms !== null).flatMap((old): Verdict[] => {
    const found = rounds.flatMap((rows) => rows.filter(({ name, ms }) => name === old.name && ms !== null));
    if (found.length === 0) {
      return [{ name: old.name, figure: "row", before: old.ms!.median, now: NaN, noise: 0, outcome: "missing" }];
    }
    const medians = found.map(({ ms }) => ms!.median), now = medianOf(medians);
    const samples = found.flatMap(({ ms }) => ms!.each).sort((a, b) => a - b);
    const quarters = samples[Math.floor(0.75 * (samples.length - 1))] - samples[Math.ceil(0.25 * (samples.length - 1))];
    const noise = now === 0 ? 0 : Math.max(Math.max(...medians) - Math.min(...medians), quarters) / now;
    const verdicts: Verdict[] = [{
      ...{ name: old.name, figure: "time", before: old.ms!.median, now, noise },
      outcome: outcomeOf(old.ms!.median, now, noise + tolerance),
    }];
    const peak = found[0].peakBytes;
    if (old.peakBytes !== null && peak !== null && peak !== old.peakBytes) {
      const outcome = outcomeOf(old.peakBytes, peak, tolerance);
      verdicts.push({ name: old.name, figure: "memory", before: old.peakBytes, now: peak, noise: 0, outcome });
    }
    return verdicts;
  });
}

function outcomeOf(before: number, now: number, slack: number): Verdict["outcome"] {
  if (now > before * (1 + slack)) return "worse";
  return now < before * (1 - slack) ? "better" : "same";
}

/** The `check` command. */
export function check({ planOf, execute, io, run }: Tools) {
  return command(
    "check",
    "Measures what a baseline holds once more; exit code 1 when something is worse by more than noise.",
  )
    .requiredOption("--baseline <file>", "a JSON result of an earlier run")
    .option("--rounds <n>", "runs whose medians are compared: noise shows between them", whole(2, 100), 3)
    .option("--tolerance <part>", "what may be lost on top of the noise, as a part", within(0, 10), 0)
    .action((options) => run(() => checkAll(options)));

  async function checkAll(
    { baseline: file, rounds, tolerance }: { baseline: string; rounds: number; tolerance: number },
  ) {
    const baseline = read(file), [name, ...args] = baseline.arguments, results: Result[] = [];
    const again = name === "sweep" ? () => sweepOf(args, { planOf, execute }) : once(planOf(baseline.arguments));
    for (let i = 0; i < rounds; i++) results.push(await again());
    if (results[0].device.name !== baseline.device.name) {
      io.err(`warning: the baseline is of ${deviceLine(baseline)}, this is ${deviceLine(results[0])}\n`);
    }
    const verdicts = compareRuns(baseline.rows, results.map(({ rows }) => rows), tolerance);
    if (verdicts.length === 0) throw new UsageError(`--baseline ${file}: it has no times to compare`);
    io.out(`${report(baseline, results[0], verdicts)}\n`);
    const bad = verdicts.filter(({ outcome }) => outcome === "worse" || outcome === "missing").length;
    io.out(bad === 0 ? "\nnothing is worse\n" : `\n${bad} of ${verdicts.length} figures are worse\n`);
    return bad === 0 ? 0 : 1;
  }

  /** Measures a plan without the files that its own run wrote. */
  function once(plan: Plan): () => Promise<Result> {
    const { csv: _, json: __, ...settings } = plan.settings;
    return () => execute({ ...plan, settings, writes: [] });
  }
}

function read(file: string): Result {
  try {
    return fromJson(readFileSync(file, "utf8"));
  } catch (error) {
    throw new UsageError(`--baseline ${file}: ${(error as Error).message}`);
  }
}

function report(baseline: Result, now: Result, verdicts: readonly Verdict[]): string {
  const lines = verdicts.map(({ name, figure, before, now, noise, outcome }) => {
    const show = figure === "memory" ? bytes : (value: number) => `${ms(value)} ms`;
    const change = `${now >= before ? "+" : ""}${(100 * (now / before - 1)).toFixed(1)} %`;
    return [
      name,
      figure,
      show(before),
      outcome === "missing" ? "" : show(now),
      change,
      `${(100 * noise).toFixed(1)} %`,
      outcome,
    ];
  });
  const head = ["what", "figure", "before", "now", "change", "noise", ""];
  return `${deviceLine(now)}, against ${baseline.date.slice(0, 10)}\n\n${table(head, lines, 2)}`;
}
