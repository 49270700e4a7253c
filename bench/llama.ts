/** `llama`: a checkpoint beside PyTorch, part by part; what fails is said and the rest goes on. */
import { existsSync, statSync } from "node:fs";
import { join } from "node:path";
import { fileURLToPath } from "node:url";
import { UsageError } from "./files.ts";
import {
  type Baseline,
  baselineOf,
  type LlamaPart,
  llamaParts,
  LlamaRun,
  type LlamaSizes,
  type TimedWork,
  worksOf,
} from "./llama_parts.ts";
import { deviceLine } from "./machine.ts";
import { summary } from "./measure.ts";
import { listOf, measures } from "./options.ts";
import { type Context, settle, type Take } from "./plan.ts";
import { emptyRow, type Result, type Row } from "./record.ts";
import { bytes, digits, ms, table } from "./table.ts";

const sizes: LlamaSizes = { long: 1024, new: 64, contexts: [1024, 32_768] };
const usual = llamaParts.filter((part) => part !== "static");
const own = "flashtape";

interface LlamaOptions {
  readonly only: readonly LlamaPart[];
  /** The Python that has torch and transformers; null for none. */
  readonly python: string | null;
}

/** Parts that PyTorch has, and none of those that were asked for is on record. */
function missing({ only }: LlamaOptions, baseline: Baseline | null, of: LlamaSizes): LlamaPart[] {
  const known = only.filter((part) => part !== "load" && part !== "contexts");
  if (baseline === null) return known;
  const { ways, agreement, failed } = baseline;
  return known.filter((part) => {
    if (Object.keys(failed).some((name) => name.startsWith(`${part} `))) return true;
    if (part === "agreement") return agreement === undefined;
    if (part === "static") return ways.static === undefined;
    return worksOf([part], of).some(({ key }) => ways.eager?.[key] === undefined || ways.sdpa?.[key] === undefined);
  });
}

/** Has PyTorch measure what it has not measured yet, and make the checkpoint if there is none; says what went wrong. */
async function measureTorch(
  directory: string,
  options: LlamaOptions,
  { io, settings }: Context,
  of: LlamaSizes,
): Promise<string | null> {
  const checkpoint = existsSync(join(directory, "config.json"));
  const parts = missing(options, baselineOf(directory), of);
  if (options.python === null || (checkpoint && parts.length === 0)) return null;
  const script = fileURLToPath(new URL("./baselines/llama.py", import.meta.url));
  const args = [script, directory, "--only", parts.join(",") || "none", "--repeats", String(settings.repeats)];
  args.push("--warmup", String(settings.warmup), "--ramp", String(settings.ramp));
  try {
    const child = new Deno.Command(options.python, { args, stdin: "null", stdout: "piped", stderr: "piped" }).spawn();
    const said = new Response(child.stderr).text();
    for await (const text of child.stdout.pipeThrough(new TextDecoderStream())) io.err(text);
    const { success, code, signal } = await child.status;
    if (success) return null;
    const last = (await said).trim().split("\n").at(-1);
    return `${options.python} ended with ${signal ?? `exit code ${code}`}: ${
      last?.slice(0, 300) || "it did not say why"
    }`;
  } catch (error) {
    return `${options.python} could not be started: ${(error as Error).message}`;
  }
}

/** A row of a work; `way` is whose. */
function rowOf({ title, part, rate = false }: TimedWork, way: string, more: Row["labels"] = {}): Row {
  return emptyRow(`${title} ${way}`, { work: title, part, way, unit: rate ? "tokens/s" : "ms", ...more });
}

const because = (reason: string): Pick<Row, "skipped"> => ({ skipped: { reason, predictedBytes: null } });

function timed(each: readonly number[], tokens: number, peakBytes: number | undefined): Partial<Row> {
  const found = summary(each);
  return {
    ...{ clock: "wall clock", ms: found },
    figures: {
      ...tokens > 0 && { "tokens/s": 1000 * tokens / found.median },
      ...peakBytes !== undefined && { "bytes held at most": peakBytes },
    },
  };
}

/** What PyTorch left, as rows. */
function torchRows({ only }: LlamaOptions, { torch, device, ways, failed }: Baseline, of: LlamaSizes): Row[] {
  const rows: Row[] = [];
  for (const way of ["eager", "sdpa", "static"]) {
    // A static cache is another way to decode, in the script a part of sdpa's.
    const parts = way !== "static" ? only : only.includes("static") ? ["decode" as const] : [];
    for (const work of worksOf(parts, of)) {
      const each = ways[way]?.[work.key], peak = ways[way]?.[`${work.key}_peak_bytes`];
      const reason = failed[way === "static" ? "static sdpa" : `${work.part} ${way}`];
      const row = rowOf(work, `PyTorch ${way}`, { torch, device });
      if (reason !== undefined) rows.push({ ...row, ...because(reason) });
      else if (Array.isArray(each)) rows.push({ ...row, ...timed(each, work.tokens, peak as number | undefined) });
    }
  }
  return rows;
}

/** Measures a checkpoint part by part, after PyTorch has. */
export async function llamaRows(
  context: Context,
  directory: string,
  options: LlamaOptions,
  of: LlamaSizes = sizes,
): Promise<Row[]> {
  const { backend, settings, progress } = context, rows: Row[] = [];
  const trouble = await measureTorch(directory, options, context, of);
  if (!existsSync(join(directory, "config.json"))) {
    const why = trouble ?? "--no-python";
    throw new UsageError(`${directory}: no checkpoint there (no config.json), and none could be made: ${why}`);
  }
  const baseline = baselineOf(directory), wanted = (part: LlamaPart) => options.only.includes(part);
  const run = new LlamaRun(backend, directory, of, { ...settings, budget: 1000 * settings.budget });
  /** Memory that runs out in one part is free for the next. */
  const attempt = async (row: Row, measure: () => Promise<Partial<Row>>): Promise<Row> => {
    progress.on(row.name);
    try {
      return { ...row, ...await measure() };
    } catch (error) {
      await settle(backend).catch(() => {}); // a device that is lost says so at the next part too
      return { ...row, ...because(error instanceof Error ? error.message : String(error)) };
    }
  };
  const keep = (row: Row) => {
    rows.push(row);
    progress.done(row);
  };
  const measured = (work: TimedWork) =>
    attempt(rowOf(work, own), async () => {
      const { each, peakBytes } = await run.times(work, baseline);
      return timed(each, work.tokens, peakBytes);
    });
  const [loading] = worksOf(["load"], of), works = worksOf(options.only.filter((part) => part !== "load"), of);
  progress.start(works.length + Number(wanted("load")) + Number(wanted("agreement")));
  try {
    const loaded = await measured(loading);
    if (wanted("load") || loaded.skipped !== undefined) keep(loaded);
    for (const work of works) {
      // Training replaces the weights: it comes last.
      if (work.part === "train") await agreement();
      keep(await measured(work));
    }
    if (!wanted("train")) await agreement();
  } finally {
    progress.stop();
    run.end();
  }
  if (baseline !== null) rows.push(...torchRows(options, baseline, of));
  if (trouble !== null) {
    rows.push({ ...emptyRow("PyTorch", { work: "", part: "", way: "PyTorch" }), ...because(trouble) });
  }
  return rows;

  async function agreement(): Promise<void> {
    if (!wanted("agreement")) return;
    const labels = { work: "agreement", part: "agreement", way: own };
    keep(
      await attempt(emptyRow(`agreement ${own}`, labels), async () => {
        if (baseline === null) throw new Error("PyTorch left no tokens to compare with");
        const { f32, bf16, short, long } = await run.agreement(baseline);
        return { labels: { ...labels, f32, bf16 }, figures: { "short prompt": short, "long prompt": long } };
      }),
    );
  }
}

/** The `llama` command. */
export function llama(take: Take) {
  return measures("llama", "A Llama checkpoint beside PyTorch: reading, writing, training, agreement.", { repeats: 5 })
    .argument(
      "<directory>",
      "a checkpoint's; PyTorch makes one of Llama-3.2-1B's shape with random weights if there is none",
    )
    .option("--only <list>", `some of ${llamaParts.join(",")}; static takes PyTorch minutes`, listOf(llamaParts), usual)
    .option("--python <program>", "the Python that has torch and transformers (default: python3)")
    .option("--no-python", "without PyTorch, but for what it left in the directory before")
    .action((directory, options) => {
      const python = options.python === false ? null : options.python ?? "python3";
      const at = existsSync(directory) ? statSync(directory) : undefined;
      if (at?.isDirectory() === false) {
        throw new UsageError(`${directory} is a file. Allowed: the directory of a checkpoint`);
      }
      take({
        command: "llama",
        settings: options,
        measure: (context) => llamaRows(context, directory, { only: options.only, python }),
        report: llamaReport,
      });
    });
}

/** The table: a line a work, a column a way; then memory, agreement, and what failed. */
export function llamaReport(result: Result): string {
  const { rows } = result, timings = rows.filter(({ labels }) => labels.unit !== undefined);
  const ways = [...new Set(timings.map(({ labels }) => String(labels.way)))].sort((a) => a === own ? -1 : 0);
  const works = [...new Set(timings.map(({ labels }) => String(labels.work)))];
  const cell = (row: Row | undefined) => {
    if (row === undefined) return "";
    if (row.skipped !== undefined) return "failed";
    return row.labels.unit === "ms" ? ms(row.ms!.median) : digits(row.figures!["tokens/s"]);
  };
  const lines = works.flatMap((work) => {
    const found = ways.map((way) => timings.find(({ labels }) => labels.work === work && labels.way === way));
    const unit = String(found.find((row) => row !== undefined)!.labels.unit);
    const held = found.map((row) => row?.figures?.["bytes held at most"]);
    return [
      [work, unit, ...found.map(cell)],
      ...held.every((x) => x === undefined) ? [] : [[`${work}, memory`, "", ...held.map(bytes)]],
    ];
  });
  const notes = rows.flatMap(({ name, labels, figures, skipped }) => {
    if (skipped !== undefined) return [`${name} failed: ${skipped.reason}`];
    if (labels.part !== "agreement") return [];
    const [short, long] = [figures!["short prompt"], figures!["long prompt"]].map((x) => x.toExponential(1));
    return [
      `greedy tokens where the margin is above 0.01: ${labels.f32} (f32), ${labels.bf16} (bf16)`,
      `scores: at most ${short} from f32 after the short prompt, ${long} after the long one`,
    ];
  });
  const theirs = rows.find(({ labels }) => labels.torch !== undefined)?.labels;
  const where = `${deviceLine(result)}${theirs ? `; PyTorch ${theirs.torch}, ${theirs.device}` : ""}; wall clock`;
  return [where, "", table(["work", "unit", ...ways], lines, 2), "", ...notes].join("\n").trimEnd();
}
