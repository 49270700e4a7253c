/** The search for a counterexample: random cases, then shrinking of the first that fails. */

import { type Arbitrary, type ArbitratedAll, Discard } from "./arbitrary.ts";
import { type Choices, fingerprint, isSimpler, Random, SIMPLEST, Source } from "./choices.ts";
import { ValueError } from "../tensor/errors.ts";
import { scope } from "../tensor/scope.ts";
import { show } from "./show.ts";
import { simplifications } from "./shrink.ts";

/** A law over values; it fails by throwing, rejecting, or returning `false`. */
export type Law<T extends unknown[]> = (...values: T) => void | boolean | Promise<void | boolean>;

/** A case by its number, and the simplifications to accept, each counted in candidates after the one before. */
export interface Path {
  readonly index: number;
  readonly steps: readonly number[];
}

/** Everything that decides which cases are tried. */
export interface Settings {
  readonly runs: number;
  readonly seed: number;
  /** Try this case alone. */
  readonly path?: Path;
  readonly maxShrinks: number;
  readonly shrinkMs: number;
}

/** What went wrong, and where to find it again. */
export interface Failure {
  readonly path: Path;
  /** Cases that passed before. */
  readonly passed: number;
  /** Simplifications tried. */
  readonly tried: number;
  /**
   * Who is at fault: the law; an arbitrary, which threw; chance, where the case that failed passes or differs when it is
   * made again.
   */
  readonly culprit: "law" | "arbitrary" | "chance";
  /** The arguments as text; none when an arbitrary threw. */
  readonly shown: readonly string[];
  readonly error: unknown;
}

type Verdict = "passed" | "failed" | "discarded" | "skipped" | "broken";

interface Outcome {
  readonly choices: Choices;
  readonly verdict: Verdict;
  readonly error?: unknown;
}

/** A law's error is this one when it returned `false`. */
class LawError extends Error {
  override readonly name = "LawError";
}

/**
 * Tries a law and returns how it failed, or undefined when it held.
 *
 * @throws {ValueError} when nearly all cases are discarded, or `path` leads nowhere
 */
export async function explore<A extends Arbitrary<unknown>[]>(
  arbitraries: readonly [...A],
  law: Law<ArbitratedAll<A>>,
  settings: Settings,
): Promise<Failure | undefined> {
  const { runs, seed, path } = settings;
  const search = new Search(arbitraries, law);
  if (path !== undefined) return await search.replay(seed, path);
  let passed = 0;
  for (let index = 0; passed < runs; index++) {
    if (index - passed > 10 * runs + 100) {
      throw new ValueError(
        "property",
        `discarded ${index - passed} of ${index} cases: make the values that the law wants instead of ` +
          "filtering for them",
      );
    }
    const outcome = await search.run(firstChoices(seed, index));
    if (outcome.verdict === "passed") passed++;
    if (outcome.verdict === "broken") return broken({ index, steps: [] }, passed, outcome.error);
    if (outcome.verdict === "failed") return await search.shrink(outcome, index, passed, settings);
  }
}

/** Where a case starts: the first of each seed is the simplest of all, the others are random. */
function firstChoices(seed: number, index: number): Choices | Random {
  return index === 0 ? SIMPLEST : new Random(seed, index);
}

function broken(path: Path, passed: number, error: unknown): Failure {
  return { path, passed, tried: 0, culprit: "arbitrary", shown: [], error };
}

class Search<A extends Arbitrary<unknown>[]> {
  readonly #arbitraries: readonly [...A];
  readonly #law: Law<ArbitratedAll<A>>;

  constructor(arbitraries: readonly [...A], law: Law<ArbitratedAll<A>>) {
    this.#arbitraries = arbitraries;
    this.#law = law;
  }

  /** Makes one case and, if `wanted`, tries the law on it. The case's tensors are gone afterwards. */
  run(
    origin: Choices | Random,
    wanted: (choices: Choices, values: ArbitratedAll<A>) => boolean | Promise<boolean> = () => true,
  ): Promise<Outcome> {
    return scope(async (): Promise<Outcome> => {
      const source = new Source(origin);
      let values: ArbitratedAll<A>;
      try {
        // A mapped tuple type is not seen through `map`.
        values = this.#arbitraries.map((arbitrary) => arbitrary.draw(source)) as ArbitratedAll<A>;
      } catch (error) {
        return { choices: source.record(), verdict: error instanceof Discard ? "discarded" : "broken", error };
      }
      const choices = source.record();
      if (!(await wanted(choices, values))) return { choices, verdict: "skipped" };
      try {
        if (await this.#law(...values) === false) throw new LawError("the law returned false");
        return { choices, verdict: "passed" };
      } catch (error) {
        return { choices, verdict: error instanceof Discard ? "discarded" : "failed", error };
      }
    });
  }

  /** Simplifies a failing case as far as time allows. */
  async shrink(first: Outcome, index: number, passed: number, settings: Settings): Promise<Failure> {
    const deadline = performance.now() + settings.shrinkMs;
    const walk = new Walk(first.choices);
    let [failing, tried] = [first, 0];
    while (!walk.done && tried < settings.maxShrinks && performance.now() < deadline) {
      const outcome = await this.run(walk.candidate, (choices) => walk.meets(choices));
      if (walk.fresh) tried++;
      const fails = outcome.verdict === "failed" && kindOf(outcome.error) === kindOf(first.error);
      if (fails) failing = outcome;
      walk.answer(fails, outcome.choices);
    }
    return await this.#report(walk.choices, { index, steps: walk.steps }, passed, tried, failing.error);
  }

  /** Goes straight to the case that a path names. */
  async replay(seed: number, path: Path): Promise<Failure | undefined> {
    const first = await this.run(firstChoices(seed, path.index), () => path.steps.length === 0);
    if (first.verdict === "broken") return broken(path, 0, first.error);
    if (first.verdict === "passed" || first.verdict === "discarded") return undefined;
    const walk = new Walk(first.choices);
    while (walk.steps.length < path.steps.length) {
      if (walk.done || walk.rejected > path.steps[walk.steps.length]) {
        throw new ValueError("property", "the path leads to no case: it belongs to another seed or property");
      }
      const { choices } = await this.run(walk.candidate, (made) => walk.meets(made) && false);
      walk.answer(walk.fresh && walk.rejected === path.steps[walk.steps.length], choices);
    }
    const last = await this.run(walk.choices);
    if (last.verdict === "broken") return broken(path, 0, last.error);
    return last.verdict === "failed" ? await this.#report(walk.choices, path, 0, 0, last.error) : undefined;
  }

  /** Makes the case again, to show its values and to see that it fails every time. */
  async #report(choices: Choices, path: Path, passed: number, tried: number, error: unknown): Promise<Failure> {
    const shown: string[] = [];
    const again = await this.run(choices, async (made, values) => {
      for (const value of values) shown.push(await show(value));
      return fingerprint(made) === fingerprint(choices);
    });
    let steady = again.verdict === "failed";
    for (let i = 1; i < CONFIRMATIONS && steady; i++) steady = (await this.run(choices)).verdict === "failed";
    const culprit = steady ? "law" : "chance";
    return { path, passed, tried, culprit, shown, error: steady ? again.error : error };
  }
}

/** How often a case must fail again before the law is blamed rather than chance. */
const CONFIRMATIONS = 3;

/** The walk through the simplifications of a case, which the list of accepted steps retraces. */
class Walk {
  /** The simplest choices known to fail. */
  choices: Choices;
  /** How many candidates were refused before each that was accepted. */
  readonly steps: number[] = [];
  /** Candidates refused since the last that was accepted. */
  rejected = 0;
  /** Whether the candidate led to a case that is simpler than the best one and was not seen before. */
  fresh = false;
  readonly #edits;
  readonly #seen: Set<string>;
  #next: IteratorResult<Choices, void>;

  constructor(start: Choices) {
    this.choices = start;
    this.#seen = new Set([fingerprint(start)]);
    this.#edits = simplifications(start);
    this.#next = this.#edits.next();
  }

  get done(): boolean {
    return this.#next.done === true;
  }

  /** The next edit to try. */
  get candidate(): Choices {
    if (this.#next.done) throw new Error("no candidate is left");
    return this.#next.value;
  }

  /** Notes what the candidate led to, and says whether it is worth trying. */
  meets(choices: Choices): boolean {
    const print = fingerprint(choices);
    this.fresh = !this.#seen.has(print) && isSimpler(choices, this.choices);
    this.#seen.add(print);
    return this.fresh;
  }

  /** Moves on to the next candidate. */
  answer(fails: boolean, choices: Choices): void {
    if (fails) {
      this.choices = choices;
      this.steps.push(this.rejected);
      this.rejected = 0;
    } else if (this.fresh) this.rejected++;
    this.fresh = false;
    this.#next = this.#edits.next({ fails, choices });
  }
}

/** Errors of one kind are taken for the same failure, so that shrinking does not wander off to another. */
function kindOf(error: unknown): string {
  return error instanceof Error ? error.name : typeof error;
}
