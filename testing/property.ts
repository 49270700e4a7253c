/** Properties: laws tried on random values, as tests. */

import { ValueError } from "../tensor/errors.ts";
import type { Arbitrary, ArbitratedAll } from "./arbitrary.ts";
import { commandFor, readVariable, testRunner } from "./environment.ts";
import { explore, type Failure, type Law, type Path, type Settings } from "./explore.ts";

/** How a law is tried. The environment variables, where they may be read and are set, win over these. */
export interface PropertyOptions {
  /** How many cases must pass, 100 by default; `FLASHTAPE_RUNS`. */
  readonly runs?: number;
  /** Decides every case: an integer from 0 to 2⁵³ − 1, by default a new one each time; `FLASHTAPE_SEED`. */
  readonly seed?: number;
  /** Tries one case alone, as a failure names it; `FLASHTAPE_PATH`. Needs the seed that belongs to it. */
  readonly path?: string;
  /** The most simpler cases to try once one has failed, 2,000 by default. */
  readonly maxShrinks?: number;
  /** The longest time to look for simpler cases, in milliseconds, 10,000 by default. */
  readonly shrinkMs?: number;
}

/** Thrown by {@link check}: a law does not hold. Its `cause` is what the law threw. */
export class PropertyError extends Error {
  /** Always `"PropertyError"`. */
  override readonly name = "PropertyError";
  /** The seed of the run. */
  readonly seed: number;
  /** The failing case, as `path` takes it. */
  readonly path: string;
  /** The arguments with which the law fails, as text. */
  readonly counterexample: readonly string[];

  /**
   * Made by {@link check}.
   *
   * @param message what is printed
   * @param failure the seed, the path and the arguments of the failing case
   */
  constructor(
    message: string,
    { seed, path, counterexample, cause }: {
      readonly seed: number;
      readonly path: string;
      readonly counterexample: readonly string[];
      readonly cause?: unknown;
    },
  ) {
    super(message, { cause });
    this.seed = seed;
    this.path = path;
    this.counterexample = counterexample;
  }
}

/**
 * Registers a test that tries a law on random values: with `Deno.test`, a global `test` or `it`, or `node:test`.
 *
 * The seed is a new one each time unless an option or the environment fixes it. A law that fails is tried on simpler and
 * simpler values; the error shows the simplest that fails and a line that replays exactly that case. Tensors made by a
 * case are disposed when it ends.
 *
 * @param name what holds, as a sentence
 * @param arbitraries one for each argument of the law
 * @param law fails by throwing, by rejecting, or by returning `false`
 * @throws {ValueError} when an option or an environment variable cannot be used
 *
 * @example
 * ```ts ignore
 * import { integer, property } from "@flashtape/flashtape/testing";
 *
 * property("addition commutes", [integer(-99, 99), integer(-99, 99)], (a, b) => a + b === b + a);
 * ```
 */
export function property<A extends Arbitrary<unknown>[]>(
  name: string,
  arbitraries: readonly [...A],
  law: Law<ArbitratedAll<A>>,
  options: PropertyOptions = {},
): void {
  testRunner()(name, () => tryLaw(name, arbitraries, law, settingsOf(options)));
}

/**
 * Tries a law on random values inside a test of your own. Await one check before the next: a case owns every tensor
 * that is made while it runs.
 *
 * @param arbitraries one for each argument of the law
 * @param law fails by throwing, by rejecting, or by returning `false`
 * @returns when the law held on every case
 * @throws {PropertyError} with the simplest counterexample found, and how to replay it
 * @throws {ValueError} when an option or an environment variable cannot be used
 *
 * @example
 * ```ts
 * import { array, check, integer } from "@flashtape/flashtape/testing";
 *
 * await check([array(integer(0, 99))], (list) => {
 *   const sorted = list.toSorted((a, b) => a - b);
 *   return sorted.length === list.length;
 * });
 * ```
 */
export function check<A extends Arbitrary<unknown>[]>(
  arbitraries: readonly [...A],
  law: Law<ArbitratedAll<A>>,
  options: PropertyOptions = {},
): Promise<void> {
  return tryLaw(undefined, arbitraries, law, settingsOf(options));
}

/** {@link check} with the settings decided, under the name of a property if it has one. */
export async function tryLaw<A extends Arbitrary<unknown>[]>(
  name: string | undefined,
  arbitraries: readonly [...A],
  law: Law<ArbitratedAll<A>>,
  settings: Settings,
): Promise<void> {
  const failure = await explore(arbitraries, law, settings);
  if (failure === undefined) return;
  throw new PropertyError(describe(name, failure, settings), {
    seed: settings.seed,
    path: formatPath(failure.path),
    counterexample: failure.shown,
    cause: failure.error,
  });
}

/**
 * Options, under the environment, over the defaults.
 *
 * @param read looks a variable up
 */
export function settingsOf(
  { runs = 100, seed, path, maxShrinks = 2000, shrinkMs = 10_000 }: PropertyOptions,
  read: (name: string) => string | undefined = readVariable,
): Settings {
  const variable = (name: string) => {
    const text = read(name);
    if (text === undefined) return undefined;
    if (!/^\d+$/.test(text)) throw new ValueError("property", `${name} must be a whole number: got "${text}"`);
    return Number(text);
  };
  const chosenSeed = variable("FLASHTAPE_SEED") ?? seed;
  const chosen = read("FLASHTAPE_PATH") ?? path;
  if (chosen !== undefined && chosenSeed === undefined) {
    throw new ValueError("property", `a path means nothing without the seed it was found with: got "${chosen}" alone`);
  }
  return {
    runs: whole("runs", variable("FLASHTAPE_RUNS") ?? runs, 1),
    seed: whole("seed", chosenSeed ?? freshSeed(), 0),
    path: chosen === undefined ? undefined : parsePath(chosen),
    maxShrinks: whole("maxShrinks", maxShrinks, 0),
    shrinkMs: whole("shrinkMs", shrinkMs, 0),
  };
}

function whole(name: string, value: number, least: number): number {
  if (Number.isSafeInteger(value) && value >= least) return value;
  throw new ValueError("property", `${name} must be an integer from ${least} to 2^53 - 1: got ${value}`);
}

/** Ten digits at most, so that it can be typed. */
function freshSeed(): number {
  return crypto.getRandomValues(new Uint32Array(1))[0];
}

/** `17:3.0.2`: case 17, simplified three times; `17` alone: as it was made. */
export function formatPath({ index, steps }: Path): string {
  return steps.length === 0 ? `${index}` : `${index}:${steps.join(".")}`;
}

/** The reverse of {@link formatPath}. */
export function parsePath(text: string): Path {
  if (!/^\d+(:\d+(\.\d+)*)?$/.test(text)) {
    throw new ValueError("property", `a path looks like 17 or 17:3.0.2: got "${text}"`);
  }
  const [index, steps] = text.split(":");
  return { index: Number(index), steps: steps === undefined ? [] : steps.split(".").map(Number) };
}

function describe(name: string | undefined, failure: Failure, { seed, path: given }: Settings): string {
  const { path, passed, tried, culprit, shown, error } = failure;
  const replayed = given !== undefined;
  const after = replayed
    ? "in the case that was replayed"
    : `after ${passed} ${passed === 1 ? "case" : "cases"} passed`;
  const effort = replayed ? "" : `, and was simplified in ${path.steps.length} of ${tried} tries`;
  const what = {
    law: `does not hold: it failed ${after}${effort}`,
    arbitrary: `cannot be tried: an arbitrary threw ${after}`,
    chance: "is not deterministic: the case below failed, and then passed or changed when it was made again",
  }[culprit];
  const fixed = formatPath(path);
  const replay = name === undefined
    ? `check(…, { seed: ${seed}, path: "${fixed}" })`
    : `FLASHTAPE_SEED=${seed} FLASHTAPE_PATH=${fixed} ${commandFor(name)}`;
  return [
    `${name === undefined ? "the law" : `"${name}"`} ${what}`,
    ...(culprit === "arbitrary" ? [] : ["", "counterexample", ...shown.map((text, i) => `  ${i}: ${text}`)]),
    "",
    "error",
    ...messageOf(error).split("\n").map((line) => `  ${line}`.trimEnd()),
    "",
    "replay",
    `  ${replay}`,
  ].join("\n");
}

function messageOf(error: unknown): string {
  return error instanceof Error ? `${error.name}: ${error.message}` : String(error);
}
