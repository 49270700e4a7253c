/** `sweep`: another command over all combinations of lists of flags. */
import { expectWritable, refuseFiles, UsageError, writeAll } from "./files.ts";
import { deviceLine } from "./machine.ts";
import { command, path } from "./options.ts";
import { expectFigures, type Tools } from "./plan.ts";
import { type Result, tflops, toCsv, toJson } from "./record.ts";
import { bytes, digits, ms, table } from "./table.ts";

/** Combinations that one sweep may have. */
const most = 1000;

/** A flag with the values that it takes in turn; `on` and `off` for one without a value. */
interface Axis {
  readonly flag: string;
  readonly values: readonly string[];
}

/** What varies in a command line, and what stays. */
export function axesOf(args: readonly string[]): { fixed: string[]; axes: Axis[] } {
  const fixed: string[] = [], axes: Axis[] = [];
  for (let i = 0; i < args.length; i++) {
    const [, flag, value = args[i + 1]] = /^(--[^=]+)(?:=(.*))?$/.exec(args[i]) ?? [];
    const values = value?.split(",") ?? [];
    if (flag === undefined || values.length < 2) {
      fixed.push(args[i]);
      continue;
    }
    if (!args[i].includes("=")) i++;
    axes.push({ flag, values });
  }
  return { fixed, axes };
}

/** Flags to which on and off are values like others. */
const worded = ["--robustness"];

/** Every combination, as flags and as labels. */
export function combinations(axes: readonly Axis[]): { flags: string[]; labels: Record<string, string> }[] {
  return axes.reduce<{ flags: string[]; labels: Record<string, string> }[]>(
    (all, { flag, values }) =>
      all.flatMap(({ flags, labels }) =>
        values.map((value) => ({
          flags: [...flags, ...flagsOf(flag, value)],
          labels: { ...labels, [flag.slice(2)]: value },
        }))
      ),
    [{ flags: [], labels: {} }],
  );
}

function flagsOf(flag: string, value: string): string[] {
  if (worded.includes(flag) || !["on", "off"].includes(value)) return [flag, value];
  return value === "on" ? [flag] : [];
}

/** The `sweep` command. */
export function sweep({ planOf, execute, io, run }: Tools) {
  return command(
    "sweep",
    "Another command over every combination of lists: sweep attention --seqlen 512,1024 --causal on,off",
  )
    .usage("[options] <command> [flags of that command, with lists]")
    .argument("<command...>", "a command; a flag with commas in its value takes each in turn, on and off set a switch")
    .option("--csv <file>", "write the rows of all runs as CSV", path)
    .option("--json <file>", "write the rows of all runs as one JSON result", path)
    .passThroughOptions()
    .action((args, options) => run(() => sweepAll(args, options)));

  async function sweepAll(args: string[], { csv, json }: { csv?: string; json?: string }): Promise<number> {
    for (const [flag, file] of [["--csv", csv], ["--json", json]] as const) {
      if (file !== undefined) expectWritable(flag, file);
    }
    const merged = await sweepOf(args, { planOf, execute });
    io.out(`${reportSweep(merged)}\n`);
    writeAll({ ...csv && { [csv]: toCsv(merged) }, ...json && { [json]: toJson(merged) } });
    return 0;
  }
}

/**
 * Runs a command once for each combination.
 * @param args the command with its flags, lists among them
 */
export async function sweepOf(
  args: readonly string[],
  { planOf, execute }: Pick<Tools, "planOf" | "execute">,
): Promise<Result> {
  const [name, ...rest] = args, { fixed, axes } = axesOf(rest);
  if (axes.length === 0) {
    throw new UsageError(
      `sweep: no flag of "${args.join(" ")}" has a list. Allowed: values with commas, --seqlen 512,1024`,
    );
  }
  const all = combinations(axes);
  if (all.length > most) throw new UsageError(`sweep: ${all.length} combinations. Allowed: at most ${most}`);
  refuseFiles("sweep", rest, "--csv and --json before the command: sweep --json all.json attention …");
  const plans = all.map(({ flags, labels }) => ({ labels, plan: planOf([name, ...fixed, ...flags]) }));
  const results: Result[] = [];
  for (const { labels, plan } of plans) {
    const says = Object.entries(labels).map(([flag, value]) => `${flag} ${value}`).join(", ");
    const result = await execute(plan);
    results.push({
      ...result,
      rows: result.rows.map((row) => ({ ...row, name: `${row.name} (${says})`, labels: { ...row.labels, ...labels } })),
    });
  }
  const rows = results.flatMap(({ rows }) => rows);
  expectFigures(rows, plans[0].plan);
  return { ...results[0], command: `sweep ${name}`, arguments: ["sweep", ...args], rows };
}

/** The rows of a sweep as text. */
export function reportSweep(result: Result): string {
  const head = ["what", "median ms", "min", "max", "clock", "TFLOP/s", "peak memory"];
  const lines = result.rows.map((row) => {
    const { name, ms: timing, clock, flops, peakBytes, skipped, figures = {} } = row;
    if (skipped !== undefined) return [name, "left out", "", "", "", "", bytes(skipped.predictedBytes)];
    if (timing === null) {
      return [
        name,
        "",
        "",
        "",
        "",
        Object.entries(figures).map(([unit, value]) => `${digits(value)} ${unit}`).join(", "),
        "",
      ];
    }
    const rate = flops === null ? "" : digits(tflops(row, timing.median)!);
    return [name, ms(timing.median), ms(timing.min), ms(timing.max), clock!.split(" ")[0], rate, bytes(peakBytes)];
  });
  return `${deviceLine(result)}\n\n${table(head, lines)}`;
}
