/** A progress line that redraws itself on a terminal, and plain lines now and then where there is none. */
import process from "node:process";

/** What the line tells. */
export interface Progress {
  /** How much is done, 0 to 1. */
  readonly done: number;
  /** What is known, the most important first; those that do not fit a narrow terminal are left out. */
  readonly fields: readonly string[];
}

/** How many columns a text takes: one for each character that it shows. */
function widthOf(text: string): number {
  return [...text].length;
}

/** The line for a width: a bar, the share done, and as many fields as fit. */
export function line({ done, fields }: Progress, columns: number): string {
  const share = `${Math.floor(100 * done)}%`.padStart(4);
  const barWidth = Math.max(0, Math.min(24, Math.floor(columns / 8)));
  const full = Math.round(barWidth * done);
  let text = barWidth < 4 ? share : `${"━".repeat(full)}${"╌".repeat(barWidth - full)}${share}`;
  for (const field of fields) {
    if (widthOf(text) + 2 + widthOf(field) > columns - 1) break;
    text += `  ${field}`;
  }
  return [...text].slice(0, Math.max(0, columns - 1)).join("");
}

/** `1:05`, or `12 s` below a minute. */
export function duration(seconds: number): string {
  const whole = Math.max(0, Math.round(seconds));
  return whole < 60 ? `${whole} s` : `${Math.floor(whole / 60)}:${String(whole % 60).padStart(2, "0")}`;
}

/** `12.3k`: a number to three digits. */
export function short(value: number): string {
  for (const [unit, letter] of [[1e9, "G"], [1e6, "M"], [1e3, "k"]] as const) {
    if (value >= 0.9995 * unit) return `${Number((value / unit).toPrecision(3))}${letter}`;
  }
  return String(Number(value.toPrecision(3)));
}

type Stream = typeof process.stdout | typeof process.stderr;

/** A progress line on standard output, or where it does not get among what a program writes there: on standard error. */
export class ProgressLine {
  readonly #stream: Stream;
  readonly #live: boolean;
  #last = -Infinity;
  #shown = false;

  constructor(stream: Stream = process.stdout) {
    this.#stream = stream;
    this.#live = stream.isTTY === true;
  }

  /** Draws, if enough time has passed since the last drawing: 0.1 s on a terminal, else 5 s. */
  update(progress: Progress, { force = false }: { readonly force?: boolean } = {}): void {
    const now = performance.now();
    if (!force && now - this.#last < (this.#live ? 100 : 5000)) return;
    this.#last = now;
    if (!this.#live) return void this.#stream.write(`${line(progress, 160)}\n`);
    this.#stream.write(`\r\x1b[2K${line(progress, this.#stream.columns || 80)}`);
    this.#shown = true;
  }

  /** Ends the line, so that what is printed next stands below it. */
  end(): void {
    if (this.#shown) this.#stream.write("\n");
    this.#shown = false;
  }

  /** Takes the line away, so that what is printed next stands in its place. */
  clear(): void {
    if (this.#shown) this.#stream.write("\r\x1b[2K");
    this.#shown = false;
  }
}
