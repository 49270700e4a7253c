/** What a command line asks for: cases to measure, and what to say of them. */
import {
  abs,
  type Backend,
  cast,
  dispose,
  key,
  LimitError,
  max,
  mean,
  measure,
  OutOfMemoryError,
  randn,
  scope,
  sub,
  type Tensor,
} from "@flashtape/flashtape";
import { expectWritable, UsageError } from "./files.ts";
import { describe, memoryLimit, openBackend } from "./machine.ts";
import { type Outputs, tensorsOf, timed, timedByWall } from "./measure.ts";
import type { BenchDType, Settings } from "./options.ts";
import type { Io, Progress } from "./progress.ts";
import { emptyRow, type Result, type Row } from "./record.ts";
import { bytes } from "./table.ts";

/** Another way to the same results. */
export interface Against {
  readonly name: string;
  readonly call: () => Outputs;
}

/** A case with its inputs made. */
export interface Prepared {
  /** What is measured. */
  readonly call: () => Outputs;
  /** Whether the call keeps tensors from one time to the next; else what it makes and does not return is freed. */
  readonly keeps?: boolean;
  /** What memory is measured of, where that is more: of a backward pass, the forward pass with it. */
  readonly whole?: () => unknown;
  /** Bytes that stay from one call to the next and belong to it: what a compiled function keeps. */
  readonly kept?: () => number;
  /** Runs between the measuring of memory and that of time. */
  readonly begin?: () => void;
  readonly against?: Against;
  /** Freed afterwards. */
  readonly inputs: unknown;
  /** Lets go of what is no tensor. */
  readonly end?: () => void;
}

/** One thing to measure. */
export interface Case {
  readonly name: string;
  readonly labels: Row["labels"];
  readonly flops?: number;
  /** The least bytes that a call has to move. */
  readonly bytes?: number;
  /** What it will need, inputs included. */
  readonly predictedBytes?: number;
  /** Whether the wall clock is read too: where the host's part matters. */
  readonly wall?: boolean;
  /** Whether the wall clock alone is read: of calls of so many kernels that the host is what takes time. */
  readonly byWall?: boolean;
  readonly prepare: () => Prepared;
}

/** What measuring works with. */
export interface Context {
  readonly backend: Backend;
  readonly settings: Settings;
  readonly io: Io;
  readonly progress: Progress;
}

/** What a command line asks for. */
export interface Plan {
  readonly command: string;
  /** The command line again. */
  readonly arguments: readonly string[];
  readonly settings: Settings;
  /** Files that will be written, with the flags that named them: refused before anything is measured if they cannot be. */
  readonly writes?: readonly (readonly [flag: string, file: string])[];
  /** What to measure; a plan that measures otherwise has `measure`. */
  readonly cases?: (backend: Backend) => readonly Case[];
  /** A result that there already is: nothing is measured. */
  readonly earlier?: Result;
  /** The order of the rows in the result, where it is not that of the measuring. */
  readonly order?: (a: Row, b: Row) => number;
  /** The flags that say how large it is: named where nothing fits. */
  readonly sizedBy?: readonly string[];
  readonly measure?: (context: Context) => Promise<Row[]>;
  /** Rows that come after those of the cases. */
  readonly more?: (context: Context) => Promise<Row[]>;
  /** The result as text. */
  readonly report: (result: Result) => string;
  /** Files beside those of `--json` and `--csv`, by path. */
  readonly files?: (result: Result) => Promise<Record<string, string | Uint8Array>>;
}

/** Where a command puts what its line asks for. */
export type Take = (plan: Omit<Plan, "arguments">) => void;

/** What commands that use others work with. */
export interface Tools {
  readonly io: Io;
  /** What a command line asks for. */
  readonly planOf: (args: readonly string[]) => Plan;
  readonly execute: (plan: Plan) => Promise<Result>;
  /** Says what is to be done; the number is the exit code. */
  readonly run: (task: () => Promise<number>) => void;
}

/** Normal numbers; equal seeds and places give equal numbers. */
export function normal(seed: number, shape: readonly number[], dtype: BenchDType = "f32"): Tensor {
  return scope(() => randn(key(seed), shape, { dtype }));
}

/** Runs all of a plan. */
export async function execute(plan: Plan, io: Io, progress: Progress): Promise<Result> {
  const { csv, json } = plan.settings, named = [["--csv", csv], ["--json", json], ...plan.writes ?? []] as const;
  for (const [flag, file] of named) if (file !== undefined) expectWritable(flag, file);
  if (plan.earlier !== undefined) return plan.earlier;
  const backend = await openBackend(plan.settings, io);
  const context = { backend, settings: plan.settings, io, progress };
  const rows = plan.measure === undefined
    ? await measureAll(plan.cases!(backend), context)
    : await plan.measure(context);
  rows.push(...await plan.more?.(context) ?? []);
  if (plan.order !== undefined) rows.sort(plan.order);
  const { warmup, ramp, repeats, seed, budget } = plan.settings;
  return {
    format: "flashtape-bench/1",
    command: plan.command,
    arguments: [...plan.arguments],
    date: new Date().toISOString(),
    ...describe(backend, plan.settings),
    settings: { warmup, ramp, repeats, seed, budget },
    rows,
  };
}

/**
 * What does not fit is left out and the rest measured; but where nothing is left there is no result.
 * @throws {UsageError} then, naming the flags that say how large it is
 */
export function expectFigures(rows: readonly Row[], { sizedBy = [] }: Pick<Plan, "sizedBy">): void {
  const out = rows.find(({ skipped }) => skipped !== undefined);
  if (out === undefined || sizedBy.length === 0 || rows.some(({ skipped }) => skipped === undefined)) return;
  throw new UsageError(
    `nothing of this fits. ${out.name}: ${out.skipped!.reason}\nAllowed: smaller sizes (${sizedBy.join(", ")})`,
  );
}

async function measureAll(cases: readonly Case[], context: Context): Promise<Row[]> {
  const { progress } = context, rows: Row[] = [];
  progress.start(cases.length);
  try {
    for (const each of cases) {
      progress.on(each.name);
      const row = await measureCase(each, context);
      rows.push(row);
      progress.done(row);
    }
  } finally {
    progress.stop();
  }
  return rows;
}

/** Measures one case; where it does not fit, says so. */
export async function measureCase(it: Case, context: Context): Promise<Row> {
  const { backend, settings } = context, limit = memoryLimit(backend, settings);
  const row: Row = { ...emptyRow(it.name, it.labels), flops: it.flops ?? null, bytes: it.bytes ?? null };
  const skipped = (reason: string): Row => ({
    ...row,
    skipped: { reason, predictedBytes: it.predictedBytes ?? null },
  });
  if (it.predictedBytes !== undefined && it.predictedBytes > limit) {
    const way = settings.memoryLimit === undefined ? "raise it with --memory-limit" : "--memory-limit says so";
    return skipped(`would need ${bytes(it.predictedBytes)} of at most ${bytes(limit)} (${way})`);
  }
  try {
    return { ...row, ...await figuresOf(it, context) };
  } catch (error) {
    if (!(error instanceof LimitError || error instanceof OutOfMemoryError)) throw error;
    await settle(backend);
    return skipped(error.message);
  }
}

async function figuresOf({ prepare, wall, byWall }: Case, { backend, settings }: Context): Promise<Partial<Row>> {
  const prepared = prepare(), call = callOf(prepared);
  const { call: bare, keeps = false, whole = bare, kept, begin, against, inputs, end } = prepared;
  const once = () => keeps && whole === bare ? dispose(bare()) : scope(() => void whole());
  try {
    // Twice: what the first call makes once and keeps is no part of a call's memory.
    await measure(once);
    const { peakBytes: risen } = await measure(once), peakBytes = risen + (kept?.() ?? 0);
    begin?.();
    const difference = against && await differenceOf(call, against);
    const options = { ...settings, budget: 1000 * settings.budget };
    const found = await timed(backend, call, { ...options, peakBytes, byWall });
    const clock = wall && found.clock !== "wall clock" ? { wall: await timedByWall(backend, call, options) } : {};
    return { ...found, ...clock, peakBytes, ...(difference && { difference }) };
  } finally {
    end?.();
    dispose(inputs);
  }
}

/** Largest and mean difference between the results of two calls; none where the other one does not fit. */
async function differenceOf(call: () => Outputs, { name, call: other }: Against): Promise<Row["difference"]> {
  let theirs: Tensor[];
  try {
    theirs = scope(() => tensorsOf(other()));
  } catch (error) {
    if (error instanceof LimitError) return undefined;
    throw error;
  }
  const ours = tensorsOf(call());
  const found = scope(() =>
    ours.map((x, i) => {
      const apart = abs(sub(cast(x, "f32"), cast(theirs[i], "f32")));
      return { max: max(apart), mean: mean(apart), size: x.size };
    })
  );
  dispose([ours, theirs]);
  let largest = 0, total = 0, count = 0;
  for (const { max, mean, size } of found) {
    largest = Math.max(largest, await max.item());
    total += await mean.item() * size;
    count += size;
  }
  dispose(found);
  if (!Number.isFinite(largest + total)) throw new Error(`the results of ${name} differ without bounds: NaN or ∞`);
  return { against: name, max: largest, mean: total / count };
}

/** After the device has run out of memory, what was queued fails too: lets that pass. */
export async function settle(backend: Backend): Promise<void> {
  for (let i = 0; i < 8; i++) {
    try {
      return await backend.synchronize();
    } catch (error) {
      if (i === 7) throw error;
    }
  }
}

/** What a profile or another measurement of a case needs: its call, wrapped like it is when it is timed. */
export function callOf({ call, keeps = false }: Prepared): () => Outputs {
  return keeps ? call : () => scope(call);
}

/** Bytes that a compiled function keeps between calls. */
export function keptBy(compiled: { readonly recordings: readonly { readonly bytes: number }[] } | null): number {
  return compiled?.recordings.reduce((sum, { bytes }) => sum + bytes, 0) ?? 0;
}
