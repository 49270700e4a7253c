/**
 * The choices behind a random value. An arbitrary draws integers and opens groups; what it drew is recorded as a tree.
 * Giving a tree back replays the value, and giving an edited tree gives a neighbouring value: that is all shrinking
 * needs to know, so `map`, `chain` and code written by users shrink without being told how.
 */

import { philox4x32 } from "../tensor/philox.ts";

/**
 * What an arbitrary drew, in order. Numbers and groups are kept apart so that an edit in one group never shifts what
 * another group reads; what is missing reads as 0, the simplest choice.
 */
export interface Choices {
  /** The integers drawn directly in this group. */
  readonly numbers: readonly number[];
  /** The groups opened inside this group. */
  readonly groups: readonly Choices[];
}

/** A distribution over the integers 0 to `bound`, inclusive. */
export type Distribution = (random: Random, bound: number) => number;

/** The choices of which every number is 0. */
export const SIMPLEST: Choices = { numbers: [], groups: [] };

const MANTISSA = 2 ** 53;
const WORD = 2 ** 32;
const words = new Uint32Array(4);

/** Random numbers from Philox, keyed by the seed and counted by (draw, case): case 90 needs no case before it. */
export class Random {
  readonly #seed: number;
  readonly #index: number;
  #count = 0;

  /**
   * The start of one stream.
   *
   * @param seed an integer from 0 to 2⁵³ − 1
   * @param index which of the seed's streams, an integer from 0 to 2⁵³ − 1
   */
  constructor(seed: number, index: number) {
    this.#seed = seed;
    this.#index = index;
  }

  /** A multiple of 2⁻⁵³, uniform in [0, 1). */
  unit(): number {
    const [index, seed] = [this.#index, this.#seed];
    philox4x32(this.#count++, 0, low(index), high(index), low(seed), high(seed), words);
    return (words[0] * 2 ** 21 + (words[1] >>> 11)) / MANTISSA;
  }

  /** An integer, uniform in [0, bound]. */
  upTo(bound: number): number {
    return Math.min(bound, Math.floor(this.unit() * (bound + 1)));
  }
}

/** All integers alike. */
const uniform: Distribution = (random, bound) => random.upTo(bound);

/** Small integers more often: every power of two as likely as the next. */
export const small: Distribution = (random, bound) =>
  Math.min(bound, Math.floor(2 ** (random.unit() * Math.log2(bound + 1) + random.unit()) - 1));

/** Where an arbitrary draws from, which is also the record of what it drew. */
export class Source implements Choices {
  /** The integers drawn so far. */
  readonly numbers: number[] = [];
  /** The groups opened so far. */
  readonly groups: Source[] = [];
  readonly #origin: Random | Choices;

  /**
   * A source that has drawn nothing yet.
   *
   * @param origin fresh choices, or choices to replay
   */
  constructor(origin: Random | Choices) {
    this.#origin = origin;
  }

  /**
   * Draws one integer.
   *
   * @param bound the largest integer wanted; 0 is the smallest and counts as the simplest
   * @param pick how to choose when the choice is fresh; what it gives is cut to `bound`, as a replayed choice is
   */
  draw(bound: number, pick: Distribution = uniform): number {
    const origin = this.#origin;
    const wanted = origin instanceof Random ? pick(origin, bound) : origin.numbers[this.numbers.length] ?? 0;
    const value = Math.min(bound, wanted);
    this.numbers.push(value);
    return value;
  }

  /** Draws inside a group of its own, so that edits elsewhere leave it alone and it can be dropped as a whole. */
  group<T>(body: (source: Source) => T): T {
    const origin = this.#origin;
    const inner = new Source(origin instanceof Random ? origin : origin.groups[this.groups.length] ?? SIMPLEST);
    this.groups.push(inner);
    return body(inner);
  }

  /** The record alone, which does not keep the choices alive that it was replayed from. */
  record(): Choices {
    return { numbers: this.numbers, groups: this.groups.map((group) => group.record()) };
  }
}

/** How many choices were made. */
function countChoices(choices: Choices): number {
  return choices.groups.reduce((count, group) => count + 1 + countChoices(group), choices.numbers.length);
}

/** All numbers, a group's own before those of the groups inside it. */
export function flatten(choices: Choices): number[] {
  return [...choices.numbers, ...choices.groups.flatMap(flatten)];
}

/** A text that is equal exactly when the choices are. */
export function fingerprint({ numbers, groups }: Choices): string {
  return `${numbers.join()}(${groups.map(fingerprint).join("")})`;
}

/**
 * Whether `a` is simpler than `b`: its numbers have fewer bits in all; or as many, and there are fewer choices; or as many,
 * and the first that differs is smaller. Zeros cost nothing, so that a value spelled out in zeros is simpler than one that
 * takes a seed.
 */
export function isSimpler(a: Choices, b: Choices): boolean {
  const [left, right] = [flatten(a), flatten(b)];
  const bits = (numbers: readonly number[]) => numbers.reduce((sum, n) => sum + Math.log2(1 + n), 0);
  const difference = bits(left) - bits(right) || countChoices(a) - countChoices(b);
  if (difference !== 0) return difference < 0;
  const at = left.findIndex((value, i) => value !== right[i]);
  return at >= 0 && left[at] < (right[at] ?? Infinity);
}

function low(value: number): number {
  return value % WORD >>> 0;
}

function high(value: number): number {
  return Math.floor(value / WORD) >>> 0;
}
