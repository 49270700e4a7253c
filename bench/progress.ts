/** How far a run is: a bar on a terminal, a line for each figure elsewhere; on standard error, results go to standard output. */
import process from "node:process";
import cliProgress from "npm:cli-progress@3.12.0";
import type { Row } from "./record.ts";
import { bytes, ms } from "./table.ts";

/** Where text goes. */
export interface Io {
  readonly out: (text: string) => void;
  readonly err: (text: string) => void;
  /** Whether `err` is a terminal. */
  readonly live: boolean;
}

/** Told what happens. */
export interface Progress {
  start(total: number): void;
  on(name: string): void;
  done(row: Row): void;
  stop(): void;
}

/** A row in a few words. */
export function inShort({ name, ms: times, clock, figures, skipped, peakBytes }: Row): string {
  if (skipped !== undefined) return `${name}: left out, ${skipped.reason}`;
  const parts = times === null ? Object.entries(figures ?? {}).map(([unit, value]) => `${ms(value)} ${unit}`) : [];
  if (times !== null) parts.push(`${ms(times.median)} ms (${clock})`);
  if (peakBytes !== null) parts.push(bytes(peakBytes));
  return `${name}: ${parts.join(", ")}`;
}

/** Lines for files and pipes. */
class Lines implements Progress {
  readonly #io: Io;
  #total = 0;
  #finished = 0;
  constructor(io: Io) {
    this.#io = io;
  }
  start(total: number): void {
    this.#total = total;
    this.#finished = 0;
  }
  on(): void {}
  done(row: Row): void {
    this.#io.err(`[${++this.#finished}/${this.#total}] ${inShort(row)}\n`);
  }
  stop(): void {}
}

/** What the bar takes for a terminal. */
function terminal(err: Io["err"]): NodeJS.WritableStream {
  const stream = { isTTY: true, write: (text: string) => (err(text), true) };
  Object.defineProperty(stream, "columns", { get: () => process.stderr.columns ?? 80 });
  return stream as unknown as NodeJS.WritableStream;
}

/** A bar that redraws itself. */
class Bar implements Progress {
  readonly #bar: cliProgress.SingleBar;
  constructor({ err }: Io) {
    this.#bar = new cliProgress.SingleBar({
      format: "{bar} {value}/{total}  {duration_formatted}  {name}",
      barCompleteChar: "━",
      barIncompleteChar: "╌",
      barsize: 24,
      // A terminal is as it was whenever Ctrl-C comes: its cursor stays, and it wraps; lines are cut instead.
      linewrap: true,
      clearOnComplete: true,
      stream: terminal(err),
    });
  }
  start(total: number): void {
    this.#bar.start(total, 0, { name: "" });
  }
  on(name: string): void {
    this.#bar.update({ name });
  }
  done(): void {
    this.#bar.increment();
  }
  stop(): void {
    this.#bar.stop();
  }
}

/** What fits the place that text goes to. */
export function progressOn(io: Io): Progress {
  return io.live ? new Bar(io) : new Lines(io);
}
