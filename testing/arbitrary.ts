/**
 * Arbitraries: descriptions of the values that a law is tried on. Each draws integers from a {@link Source}; because the
 * integers are recorded, edited and replayed to shrink a counterexample, an arbitrary only ever says how to make a value.
 */

import { ValueError } from "../tensor/errors.ts";
import { type Distribution, type Random, small, type Source } from "./choices.ts";

/** The type of the values that an arbitrary makes. */
export type Arbitrated<A> = A extends Arbitrary<infer T> ? T : never;

/** The types of the values that a list of arbitraries makes. */
export type ArbitratedAll<A extends readonly Arbitrary<unknown>[]> = { -readonly [K in keyof A]: Arbitrated<A[K]> };

/** How many values {@link Arbitrary.filter} tries before it gives the case up. */
const FILTER_TRIES = 20;

/** Thrown to abandon a case: it counts neither as passed nor as failed. */
export class Discard extends Error {
  /** Always `"Discard"`. */
  override readonly name = "Discard";
}

/**
 * A way to make values of type `T`, from simple to complicated.
 *
 * @example
 * ```ts
 * import { check, integer } from "@flashtape/flashtape/testing";
 *
 * const even = integer(0, 50).map((n) => 2 * n);
 * await check([even], (n) => n % 2 === 0);
 * ```
 */
export class Arbitrary<T> {
  readonly #body: (source: Source) => T;

  /**
   * An arbitrary from scratch; {@link compose} is the easier way.
   *
   * @param body makes one value from what it draws; the same draws must give the same value
   */
  constructor(body: (source: Source) => T) {
    this.#body = body;
  }

  /** Makes one value, in a group of its own. */
  draw(source: Source): T {
    return source.group(this.#body);
  }

  /** The values of `f` over this arbitrary's values. */
  map<U>(f: (value: T) => U): Arbitrary<U> {
    return new Arbitrary((source) => f(this.#body(source)));
  }

  /** For each value, a value of the arbitrary that `f` makes of it. */
  chain<U>(f: (value: T) => Arbitrary<U>): Arbitrary<U> {
    return new Arbitrary((source) => f(this.draw(source)).draw(source));
  }

  /**
   * Each value together with one that depends on it.
   *
   * @example
   * ```ts
   * import { array, check, integer } from "@flashtape/flashtape/testing";
   *
   * const listAndIndex = array(integer(0, 9), { minLength: 1 }).with((list) => integer(0, list.length - 1));
   * await check([listAndIndex], ([list, index]) => list[index] !== undefined);
   * ```
   */
  with<U>(f: (value: T) => Arbitrary<U>): Arbitrary<[T, U]> {
    return new Arbitrary((source) => {
      const value = this.draw(source);
      return [value, f(value).draw(source)];
    });
  }

  /**
   * The values for which `keep` is true. Meant for conditions that most values meet: after 20 values that do not, the
   * whole case is discarded.
   */
  filter(keep: (value: T) => boolean): Arbitrary<T> {
    return new Arbitrary((source) => {
      for (let i = 0; i < FILTER_TRIES; i++) {
        const value = this.draw(source);
        if (keep(value)) return value;
      }
      throw new Discard(`filter() refused ${FILTER_TRIES} values in a row`);
    });
  }
}

/**
 * Abandons the case unless `condition` holds, for laws with a precondition that no arbitrary expresses.
 *
 * @example
 * ```ts
 * import { assume, check, integer } from "@flashtape/flashtape/testing";
 *
 * await check([integer(-9, 9), integer(-9, 9)], (a, b) => {
 *   assume(b !== 0);
 *   return Math.abs(a % b) < Math.abs(b);
 * });
 * ```
 */
export function assume(condition: boolean): asserts condition {
  if (!condition) throw new Discard("assume() was given a condition that does not hold");
}

/**
 * Always the same value. Laws share it: it should not be changed by one of them.
 *
 * @example
 * ```ts
 * import { check, constant } from "@flashtape/flashtape/testing";
 *
 * await check([constant(3)], (three) => three === 3);
 * ```
 */
export function constant<const T>(value: T): Arbitrary<T> {
  return new Arbitrary(() => value);
}

/**
 * `false`, which is the simpler one, or `true`.
 *
 * @example
 * ```ts
 * import { boolean, check } from "@flashtape/flashtape/testing";
 *
 * await check([boolean(), boolean()], (a, b) => (a && b) === !(!a || !b));
 * ```
 */
export function boolean(): Arbitrary<boolean> {
  return new Arbitrary((source) => source.draw(1) === 1);
}

/**
 * An integer from `min` to `max`, both included. Bounds and small values come up more often than others; the simplest is
 * the one nearest to zero, positive before negative.
 *
 * @throws {ValueError} unless both are safe integers, `min` is at most `max`, and they lie less than 2⁵³ apart
 *
 * @example
 * ```ts
 * import { check, integer } from "@flashtape/flashtape/testing";
 *
 * await check([integer(-1000, 1000)], (n) => Math.sign(n) * Math.abs(n) === n);
 * ```
 */
export function integer(min: number, max: number): Arbitrary<number> {
  if (!Number.isSafeInteger(min) || !Number.isSafeInteger(max) || min > max || max - min >= 2 ** 53) {
    throw new ValueError("integer", `needs safe integers min ≤ max less than 2^53 apart: got min ${min}, max ${max}`);
  }
  const origin = nearestToZero(min, max);
  const positives = max - origin;
  const pick: Distribution = (random, bound) => {
    const kind = random.upTo(7);
    if (kind === 0) return positives; // max
    if (kind === 1) return bound; // min, or max where there are no negatives
    if (kind > 4) return random.upTo(bound);
    const distance = small(random, Math.max(positives, bound - positives));
    const negative = random.upTo(1) === 1 ? distance + positives : distance;
    return Math.min(bound, negative);
  };
  return new Arbitrary((source) => {
    const choice = source.draw(max - min, pick);
    return choice <= positives ? origin + choice : origin - (choice - positives);
  });
}

/** The range of {@link float}. */
export interface FloatOptions {
  /** The smallest value, −10⁶ by default. */
  readonly min?: number;
  /** The largest value, 10⁶ by default. */
  readonly max?: number;
}

/**
 * A finite number from `min` to `max`, both included. The bounds, 0, −0, ±1 and the smallest magnitudes come up more often
 * than others. The simplest are integers near zero, then halves, quarters and so on.
 *
 * @throws {ValueError} unless both are finite and `min` is at most `max`
 *
 * @example
 * ```ts
 * import { check, float } from "@flashtape/flashtape/testing";
 *
 * await check([float({ min: 0 })], (x) => Math.abs(Math.sqrt(x) ** 2 - x) <= 1e-15 * x);
 * ```
 */
export function float({ min = -1e6, max = 1e6 }: FloatOptions = {}): Arbitrary<number> {
  if (!Number.isFinite(min) || !Number.isFinite(max) || min > max) {
    throw new ValueError("float", `needs finite min ≤ max: got min ${min}, max ${max}`);
  }
  const tiny = [2 ** -1022, 2 ** -149, 2 ** -24, Number.EPSILON, Number.MIN_VALUE];
  const next = real(min, max, tiny.flatMap((x) => [x, -x]));
  return new Arbitrary(next);
}

const FRACTION_BITS = 30;
const MOST_UNITS = 2 ** 50;

/**
 * Draws numbers in [min, max] as an integer distance from the simplest value, upwards before downwards, a fraction whose
 * bits are read from the back, so that 1, 2, 3 mean ½, ¼, ¾, and, past all of these, one of a few remarkable values.
 */
export function real(min: number, max: number, remarkable: readonly number[]): (source: Source) => number {
  const inside = [Math.ceil(min), Math.floor(max)] as const;
  const origin = (inside[0] <= inside[1] ? nearestToZero(...inside) : nearestToZero(min, max)) + 0;
  // One unit holds a whole range narrower than 1, and grows with ranges whose integers cannot be counted.
  const reach = Math.max(max - origin, origin - min);
  const unit = reach < 1 ? reach : Math.max(1, reach / MOST_UNITS);
  const up = max > origin ? Math.ceil((max - origin) / unit) : 0;
  const down = min < origin ? Math.ceil((origin - min) / unit) : 0;
  const special = [min, max, 1, -1, 0, -0, ...remarkable].filter((x) => x >= min && x <= max);
  const pick: Distribution = (random, bound) => {
    const kind = random.upTo(7);
    if (kind === 0 || up + down === 0) return bound - random.upTo(special.length - 1);
    if (kind > 3) return random.upTo(up + down - 1);
    const upwards = down === 0 || (up > 0 && random.upTo(1) === 0);
    return upwards ? small(random, up - 1) : up + small(random, down - 1);
  };
  return (source) => {
    const choice = source.draw(up + down + special.length - 1, pick);
    // Drawn for remarkable values too: else any other would take more draws, and never count as simpler.
    const fraction = reversed(source.draw(2 ** FRACTION_BITS - 1, zeroOften));
    if (choice >= up + down) return special[choice - up - down];
    const value = choice < up ? origin + (choice + fraction) * unit : origin - (choice - up + fraction) * unit;
    return Math.min(max, Math.max(min, value));
  };
}

/**
 * A value of one of the given arbitraries, each as likely as the next; earlier ones count as simpler.
 *
 * @throws {ValueError} when none is given
 *
 * @example
 * ```ts
 * import { check, constant, integer, oneOf } from "@flashtape/flashtape/testing";
 *
 * await check([oneOf(constant("auto"), integer(1, 8))], (threads) => threads === "auto" || threads >= 1);
 * ```
 */
export function oneOf<const A extends readonly Arbitrary<unknown>[]>(...choices: A): Arbitrary<Arbitrated<A[number]>>;
export function oneOf<T>(...choices: readonly Arbitrary<T>[]): Arbitrary<T> {
  if (choices.length === 0) throw new ValueError("oneOf", "needs at least one arbitrary");
  return new Arbitrary((source) => choices[source.draw(choices.length - 1)].draw(source));
}

/**
 * One of the given values; earlier ones count as simpler.
 *
 * @throws {ValueError} when none is given
 *
 * @example
 * ```ts
 * import { check, elementOf } from "@flashtape/flashtape/testing";
 *
 * await check([elementOf("mean", "sum", "none")], (reduction) => reduction.length > 2);
 * ```
 */
export function elementOf<const T>(...values: readonly T[]): Arbitrary<T> {
  if (values.length === 0) throw new ValueError("elementOf", "needs at least one value");
  return new Arbitrary((source) => values[source.draw(values.length - 1)]);
}

/** The lengths of an {@link array}. */
export interface ArrayOptions {
  /** The least number of elements, 0 by default. */
  readonly minLength?: number;
  /** The greatest number of elements, `minLength + 10` by default. */
  readonly maxLength?: number;
}

/**
 * A list of values of one arbitrary.
 *
 * @throws {ValueError} unless the lengths are integers with 0 ≤ `minLength` ≤ `maxLength`
 *
 * @example
 * ```ts
 * import { array, check, integer } from "@flashtape/flashtape/testing";
 *
 * await check([array(integer(0, 255), { maxLength: 32 })], (bytes) => new Uint8Array(bytes).length === bytes.length);
 * ```
 */
export function array<T>(
  element: Arbitrary<T>,
  { minLength = 0, maxLength = minLength + 10 }: ArrayOptions = {},
): Arbitrary<T[]> {
  if (!Number.isSafeInteger(minLength) || !Number.isSafeInteger(maxLength) || minLength < 0 || minLength > maxLength) {
    throw new ValueError("array", `needs 0 ≤ minLength ≤ maxLength: got ${minLength} and ${maxLength}`);
  }
  const mean = Math.min(Math.max(minLength, 5), (maxLength - minLength) / 2);
  const goOn: Distribution = (random) => random.unit() < mean / (mean + 1) ? 1 : 0;
  return new Arbitrary((source) => {
    const list: T[] = [];
    // The decision to go on stands in the element's own group, so that dropping the group drops the element.
    const more = (inner: Source) => {
      if (list.length >= minLength && inner.draw(1, goOn) === 0) return false;
      list.push(element.draw(inner));
      return true;
    };
    while (list.length < maxLength && source.group(more));
    return list;
  });
}

/**
 * A list of fixed length with an arbitrary for each place.
 *
 * @example
 * ```ts
 * import { check, integer, tuple } from "@flashtape/flashtape/testing";
 *
 * await check([tuple(integer(0, 4), integer(5, 9))], ([low, high]) => low < high);
 * ```
 */
export function tuple<T extends readonly unknown[]>(...places: { [K in keyof T]: Arbitrary<T[K]> }): Arbitrary<T>;
export function tuple(...places: readonly Arbitrary<unknown>[]): Arbitrary<unknown[]> {
  return new Arbitrary((source) => places.map((place) => place.draw(source)));
}

/**
 * An object with an arbitrary for each key.
 *
 * @example
 * ```ts
 * import { boolean, check, float, record } from "@flashtape/flashtape/testing";
 *
 * const options = record({ eps: float({ min: 1e-6, max: 1e-2 }), causal: boolean() });
 * await check([options], ({ eps }) => eps > 0);
 * ```
 */
export function record<T extends Readonly<Record<string, unknown>>>(
  fields: { readonly [K in keyof T]: Arbitrary<T[K]> },
): Arbitrary<T>;
export function record(fields: Readonly<Record<string, Arbitrary<unknown>>>): Arbitrary<Record<string, unknown>> {
  return new Arbitrary((source) =>
    Object.fromEntries(Object.entries(fields).map(([key, field]) => [key, field.draw(source)]))
  );
}

/**
 * A value put together step by step, where later draws may depend on earlier ones.
 *
 * @param body makes the value; all its randomness must come from `draw`
 *
 * @example
 * ```ts
 * import { array, check, compose, float, integer } from "@flashtape/flashtape/testing";
 *
 * const matrix = compose((draw) => {
 *   const [rows, columns] = [draw(integer(0, 4)), draw(integer(0, 4))];
 *   return { rows, columns, values: draw(array(float(), { minLength: rows * columns, maxLength: rows * columns })) };
 * });
 * await check([matrix], ({ rows, columns, values }) => values.length === rows * columns);
 * ```
 */
export function compose<T>(body: (draw: <U>(from: Arbitrary<U>) => U) => T): Arbitrary<T> {
  return new Arbitrary((source) => body((from) => from.draw(source)));
}

function zeroOften(random: Random, bound: number): number {
  return random.upTo(3) === 0 ? 0 : random.upTo(bound);
}

function nearestToZero(min: number, max: number): number {
  return Math.max(min, Math.min(max, 0));
}

/** The fraction in [0, 1) whose binary digits are those of `bits`, last one first. */
function reversed(bits: number): number {
  let fraction = 0;
  for (let place = 0.5; bits > 0; place /= 2) {
    if (bits % 2 === 1) fraction += place;
    bits = Math.floor(bits / 2);
  }
  return fraction;
}
