/** What programs share: what their flags say, how signals get in, and how they end that were asked for something wrong. */
import process from "node:process";
import { parseArgs, type ParseArgsConfig } from "node:util";
import { FlashtapeError } from "@flashtape/flashtape";

/** A mistake in what was asked for. */
export class UsageError extends Error {}

/**
 * Parses a command line.
 * @param allowPositionals whether there may be words that belong to no flag
 * @throws {UsageError} for a flag that does not exist or lacks its value
 */
export function parseFlags<T extends NonNullable<ParseArgsConfig["options"]>>(
  args: readonly string[],
  options: T,
  allowPositionals = true,
): ReturnType<typeof parseArgs<{ args: string[]; options: T; allowPositionals: true }>> {
  try {
    return parseArgs({ args: [...args], options, allowPositionals: allowPositionals as true });
  } catch (error) {
    // Node's message goes on to explain how to name files that begin with a dash.
    throw new UsageError(error instanceof Error ? error.message.split(". ")[0] : String(error));
  }
}

/** Values of flags by their names. */
export type FlagValues = Readonly<Record<string, unknown>>;

/**
 * The number that a flag has.
 * @throws {UsageError} when it is no such number
 */
export function numberOf(
  values: FlagValues,
  flag: string,
  good: (n: number) => boolean,
  what: string,
): number | undefined {
  const given = values[flag];
  if (given === undefined) return undefined;
  const n = typeof given === "string" && given.trim() !== "" ? Number(given) : NaN;
  if (!good(n)) throw new UsageError(`--${flag} is ${what}, got "${given}"`);
  return n;
}

/**
 * One of some words.
 * @throws {UsageError} when it is none of them
 */
export function choiceOf<T extends string>(values: FlagValues, flag: string, choices: readonly T[]): T | undefined {
  const given = values[flag];
  if (given === undefined) return undefined;
  const found = choices.find((c) => c === given);
  if (found === undefined) throw new UsageError(`--${flag} is one of ${choices.join(", ")}, got "${given}"`);
  return found;
}

/** A whole number from 1. */
export const isCount = (n: number): boolean => Number.isSafeInteger(n) && n > 0;

/** A whole number from 0. */
export const isSeed = (n: number): boolean => Number.isSafeInteger(n) && n >= 0;

let lastBreath = 0;

/** Lets signals in, which come only when nothing else is waiting to run; seldom enough to cost nothing. */
export async function breathe(): Promise<void> {
  if (performance.now() - lastBreath < 50) return;
  await new Promise((resolve) => setTimeout(resolve, 0));
  lastBreath = performance.now();
}

/**
 * Runs a program with the options of its command line, and ends the process: with what it returns, 2 for a mistake in what was
 * asked for, 1 for another expected error.
 */
export async function runProgram<O>(
  readOptions: (args: readonly string[]) => O | "help",
  main: (options: O) => Promise<number>,
  usage: string,
): Promise<never> {
  // Who reads our output may stop doing so: `| head`.
  process.stdout.on("error", (error: NodeJS.ErrnoException) => {
    if (error.code === "EPIPE") process.exit(0);
    throw error;
  });
  try {
    const options = readOptions(process.argv.slice(2));
    if (options === "help") console.log(usage);
    process.exit(options === "help" ? 0 : await main(options));
  } catch (error) {
    const expected = error instanceof UsageError || error instanceof FlashtapeError ||
      error instanceof Deno.errors.NotCapable;
    if (!expected) throw error;
    console.error(error instanceof UsageError ? `${error.message}\n\n${usage}` : error.message);
    process.exit(error instanceof UsageError ? 2 : 1);
  }
}
