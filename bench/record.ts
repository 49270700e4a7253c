/** What a benchmark leaves: rows of figures with how they came about, as JSON and CSV. */
import { stringify } from "npm:csv-stringify@6.9.0/sync";
import { z } from "npm:zod@4.6.7";

const ClockSchema = z.enum(["gpu timestamps", "wall clock"]);
/** Which clock took a time. */
export type Clock = z.infer<typeof ClockSchema>;

const milliseconds = z.number().nonnegative();
const TimesSchema = z.strictObject({
  median: milliseconds,
  min: milliseconds,
  avg: milliseconds,
  max: milliseconds,
  /** Every sample, in the order of the run. */
  each: z.array(milliseconds).min(1),
});
/** Samples of one call's time, in milliseconds. */
export type Times = z.infer<typeof TimesSchema>;

const LabelSchema = z.union([z.string(), z.number(), z.boolean()]);

const RowSchema = z.strictObject({
  /** One of its kind in the file; what `check` compares by. */
  name: z.string().min(1),
  /** What was measured: sizes, algorithm, pass. */
  labels: z.record(z.string(), LabelSchema),
  /** Whose clock `ms` is of; null for a row without times. */
  clock: ClockSchema.nullable(),
  ms: TimesSchema.nullable(),
  /** The same call by the wall clock, called again and again, where both were taken. */
  wall: TimesSchema.optional(),
  /** Kernels of one call. */
  launches: z.number().int().nonnegative().nullable(),
  /** Floating-point operations of one call. */
  flops: z.number().nonnegative().nullable(),
  /** The least bytes that one call has to move. */
  bytes: z.number().nonnegative().nullable(),
  /** How far the bytes held by tensors rose during one call, results included, beside its inputs. */
  peakBytes: z.number().int().nullable(),
  /** How far the results are from those of another way to compute them. */
  difference: z.strictObject({ against: z.string(), max: z.number(), mean: z.number() }).optional(),
  /** Other figures, by name with their unit. */
  figures: z.record(z.string(), z.number()).optional(),
  /** Why there are no times. */
  skipped: z.strictObject({ reason: z.string(), predictedBytes: z.number().nonnegative().nullable() }).optional(),
});
/** One figure with its circumstances. */
export type Row = z.infer<typeof RowSchema>;

/** The form of every JSON file that the benchmarks write. */
export const ResultSchema = z.strictObject({
  format: z.literal("flashtape-bench/1"),
  command: z.string(),
  /** The command line that measures the same again. */
  arguments: z.array(z.string()),
  date: z.iso.datetime(),
  machine: z.strictObject({ processor: z.string(), os: z.string(), runtime: z.string() }),
  device: z.strictObject({
    name: z.string(),
    backend: z.string(),
    provider: z.string().nullable(),
    /** Of Dawn: whether kernels had bounds checks. */
    robustness: z.boolean().optional(),
    /** Of Dawn: whether products on matrix units had the tiles that `tune` found on this card. */
    tunedTiles: z.boolean().optional(),
    timestamps: z.boolean(),
    f16: z.boolean(),
    subgroups: z.number(),
    matrixUnits: z.boolean(),
    maxBinding: z.number(),
  }),
  settings: z.strictObject({
    warmup: z.number(),
    ramp: z.number(),
    repeats: z.number(),
    seed: z.number(),
    budget: z.number(),
  }),
  rows: z.array(RowSchema),
});
/** A run of one command. */
export type Result = z.infer<typeof ResultSchema>;

/** A row without times or figures yet. */
export function emptyRow(name: string, labels: Row["labels"]): Row {
  return { name, labels, clock: null, ms: null, launches: null, flops: null, bytes: null, peakBytes: null };
}

/** TFLOP/s of a row at a time in milliseconds. */
export function tflops({ flops }: Row, ms: number): number | null {
  return flops === null || ms === 0 ? null : flops / ms / 1e9;
}

/** The result as JSON text, samples on one line each. */
export function toJson(result: Result): string {
  const text = JSON.stringify(ResultSchema.parse(result), null, 2);
  return text.replace(/\[[\s\d.,e+-]*\]/g, (list) => list.replace(/\s+/g, " ")) + "\n";
}

/**
 * Reads a result.
 * @throws {Error} saying where the text is not one
 */
export function fromJson(text: string): Result {
  let value: unknown;
  try {
    value = JSON.parse(text);
  } catch (error) {
    throw new Error(`it is not JSON: ${(error as Error).message}`);
  }
  const parsed = ResultSchema.safeParse(value);
  if (!parsed.success) throw new Error(`it is no result of these benchmarks:\n${z.prettifyError(parsed.error)}`);
  return parsed.data;
}

/** One line a row; a column for each label and figure that any row has. */
export function toCsv({ device, date, rows }: Result): string {
  const labels = [...new Set(rows.flatMap(({ labels }) => Object.keys(labels)))];
  const figures = [...new Set(rows.flatMap(({ figures = {} }) => Object.keys(figures)))];
  const records = rows.map((row) => ({
    name: row.name,
    ...Object.fromEntries(labels.map((label) => [label, row.labels[label]])),
    clock: row.clock,
    median_ms: row.ms?.median,
    min_ms: row.ms?.min,
    avg_ms: row.ms?.avg,
    max_ms: row.ms?.max,
    samples: row.ms?.each.length,
    wall_median_ms: row.wall?.median,
    tflops_median: row.ms === null ? null : tflops(row, row.ms.median),
    tflops_peak: row.ms === null ? null : tflops(row, row.ms.min),
    flops: row.flops,
    bytes: row.bytes,
    peak_bytes: row.peakBytes,
    max_difference: row.difference?.max,
    mean_difference: row.difference?.mean,
    ...Object.fromEntries(figures.map((figure) => [figure, row.figures?.[figure]])),
    skipped: row.skipped?.reason,
    predicted_bytes: row.skipped?.predictedBytes,
    device: device.name,
    date,
  }));
  const columns = Object.keys(records[0] ?? { name: "" });
  return stringify(records, { header: true, columns, cast: { boolean: String } });
}
