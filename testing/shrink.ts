/** Shrinking: edits of recorded choices, tried in an order that asks for large simplifications first. */

import { type Choices, flatten, isSimpler, SIMPLEST } from "./choices.ts";

/** What became of an edit. */
export interface Trial {
  /** Whether the law still fails; the choices are then the new starting point. */
  readonly fails: boolean;
  /** What the arbitraries drew when given the edit: numbers cut to their bounds, missing ones filled in, unread ones gone. */
  readonly choices: Choices;
}

/** Edits still to be tried; each `yield` hands one out and takes back what became of it. */
export type Edits = Generator<Choices, void, Trial>;

/** The way from the root to a group: an index at each level. */
type Address = readonly number[];

/**
 * Hands out edits of `start` until none makes it simpler. The order depends only on the answers, so that a list of
 * answers leads to the same choices again.
 */
export function* simplifications(start: Choices): Edits {
  const shrinker = new Shrinker(start);
  let before;
  do {
    before = shrinker.best;
    yield* shrinker.emptyGroups();
    yield* shrinker.dropGroups();
    yield* shrinker.zeroNumbers();
    yield* shrinker.lowerNumbers();
    yield* shrinker.lowerAlike();
    yield* shrinker.lowerAndRealign();
    yield* shrinker.moveAmounts();
    yield* shrinker.sortGroups();
  } while (shrinker.best !== before);
}

class Shrinker {
  best: Choices;
  #listed: { of: Choices; addresses: Address[] } | undefined;

  constructor(start: Choices) {
    this.best = start;
  }

  /** The addresses of all groups of `best`. */
  #addresses(): readonly Address[] {
    if (this.#listed?.of !== this.best) this.#listed = { of: this.best, addresses: addresses(this.best) };
    return this.#listed.addresses;
  }

  /** Tries whole groups at their simplest, outermost first. */
  *emptyGroups(): Edits {
    for (let i = 0; i < this.#addresses().length; i++) {
      const address = this.#addresses()[i];
      if (flatten(at(this.best, address)).some((n) => n > 0)) yield* this.#try(address, () => SIMPLEST);
    }
  }

  /** Drops runs of groups, long runs first: elements of lists. */
  *dropGroups(): Edits {
    for (let i = 0; i < this.#addresses().length; i++) {
      const address = this.#addresses()[i];
      const length = () => at(this.best, address).groups.length;
      for (let size = length(); size > 0; size = Math.floor(size / 2)) {
        for (let start = length() - size; start >= 0; start -= size) {
          yield* this.#try(address, ({ numbers, groups }) => ({ numbers, groups: without(groups, start, size) }));
        }
      }
    }
  }

  /** Sets runs of numbers to zero, long runs first. */
  *zeroNumbers(): Edits {
    for (let i = 0; i < this.#addresses().length; i++) {
      const address = this.#addresses()[i];
      const numbers = () => at(this.best, address).numbers;
      for (let size = numbers().length; size > 0; size = Math.floor(size / 2)) {
        for (let start = 0; start < numbers().length; start += size) {
          if (numbers().slice(start, start + size).every((n) => n === 0)) continue;
          yield* this.#try(address, (node) => ({
            numbers: node.numbers.map((n, j) => j >= start && j < start + size ? 0 : n),
            groups: node.groups,
          }));
        }
      }
    }
  }

  /**
   * Lowers numbers one by one: the smallest few in order, then without their upper bits, which is how fractions get
   * short, then by bisection.
   */
  *lowerNumbers(): Edits {
    for (let i = 0; i < this.#addresses().length; i++) {
      const address = this.#addresses()[i];
      for (let j = 0; j < at(this.best, address).numbers.length; j++) {
        const value = () => at(this.best, address).numbers[j] ?? 0;
        let passes = 0;
        while (passes + 1 < Math.min(value(), FEW)) {
          passes++;
          if (yield* this.#try(address, (node) => replaced(node, j, passes))) break;
        }
        for (let modulus = FEW; value() > LARGE && modulus < value(); modulus *= 2) {
          const rest = value() % modulus;
          if (rest > passes && (yield* this.#try(address, (node) => replaced(node, j, rest)))) break;
        }
        while (value() - passes > 1) {
          const middle = passes + Math.floor((value() - passes) / 2);
          if (!(yield* this.#try(address, (node) => replaced(node, j, middle)))) passes = middle;
        }
      }
    }
  }

  /** Lowers numbers that are equal and equally deep together: values that must stay alike for the law to fail. */
  *lowerAlike(): Edits {
    const alike = new Map<string, { depth: number; value: number; count: number }>();
    for (const address of this.#addresses()) {
      for (const value of at(this.best, address).numbers) {
        const depth = address.length;
        const found = alike.get(`${depth} ${value}`);
        alike.set(`${depth} ${value}`, { depth, value, count: (found?.count ?? 0) + 1 });
      }
    }
    for (let { depth, value, count } of alike.values()) {
      if (count < 2) continue;
      for (let passes = -1; value - passes > 1;) {
        const middle = passes < 3 ? passes + 1 : passes + Math.floor((value - passes) / 2);
        const lower = (n: number) => n === value ? middle : n;
        if (yield* this.#accept(mapped(this.best, depth, lower))) value = middle;
        else passes = middle;
      }
    }
  }

  /**
   * Lowers a number that says how much is read elsewhere (a length, an axis) and drops, instead of the surplus at the
   * end, as much at another place, so that what makes the law fail survives.
   */
  *lowerAndRealign(): Edits {
    for (let i = 0; i < this.#addresses().length; i++) {
      const address = this.#addresses()[i];
      const count = at(this.best, address).numbers.length;
      if (count > MOST_SIZES) continue;
      for (let j = 0; j < count; j++) {
        const value = at(this.best, address).numbers[j] ?? 0;
        for (const lower of new Set([0, 1, value >> 1, value - 1])) {
          if (lower < 0 || lower >= value || value > LARGEST_SIZE) continue;
          if (yield* this.#realign(edited(this.best, address, (node) => replaced(node, j, lower)))) break;
        }
      }
    }
  }

  *#realign(lowered: Choices): Generator<Choices, boolean, Trial> {
    const { fails, choices } = yield lowered;
    if (fails) {
      this.best = choices;
      return true;
    }
    for (const address of addresses(choices)) {
      const [offered, read] = [find(lowered, address), at(choices, address)];
      if (offered === undefined) return false;
      for (const part of ["numbers", "groups"] as const) {
        const surplus = offered[part].length - read[part].length;
        for (let start = 0; surplus > 0 && start + surplus < offered[part].length; start += surplus) {
          const tried = yield edited(
            lowered,
            address,
            ({ numbers, groups }) =>
              part === "numbers"
                ? { numbers: without(numbers, start, surplus), groups }
                : { numbers, groups: without(groups, start, surplus) },
          );
          if (!tried.fails) continue;
          this.best = tried.choices;
          return true;
        }
      }
    }
    return false;
  }

  /** Moves an amount from one number to a later one nearby: of two summands one becomes 0. */
  *moveAmounts(): Edits {
    const list = () =>
      this.#addresses().flatMap((address) =>
        at(this.best, address).numbers.flatMap((n, index) => n > 0 ? [{ address, index, n }] : [])
      );
    let places = list();
    for (let i = 0; i < places.length; i++) {
      for (let j = i + 1; j <= i + 3 && j < places.length; j++) {
        const [from, to] = [places[i], places[j]];
        for (const amount of new Set([from.n, from.n >> 1, 1])) {
          if (amount < 1) continue;
          const taken = edited(this.best, from.address, (node) => replaced(node, from.index, from.n - amount));
          const moved = edited(taken, to.address, (node) => replaced(node, to.index, to.n + amount));
          if (!(yield* this.#accept(moved))) continue;
          places = list();
          break;
        }
      }
    }
  }

  /** Swaps neighbouring groups of which the later one is simpler. */
  *sortGroups(): Edits {
    for (let i = 0; i < this.#addresses().length; i++) {
      const address = this.#addresses()[i];
      for (let j = 0; j + 1 < at(this.best, address).groups.length; j++) {
        const [first, second] = at(this.best, address).groups.slice(j, j + 2);
        if (!isSimpler(second, first)) continue;
        yield* this.#try(address, ({ numbers, groups }) => ({
          numbers,
          groups: groups.map((group, k) => k === j ? second : k === j + 1 ? first : group),
        }));
      }
    }
  }

  #try(address: Address, change: (node: Choices) => Choices): Generator<Choices, boolean, Trial> {
    return this.#accept(edited(this.best, address, change));
  }

  *#accept(candidate: Choices): Generator<Choices, boolean, Trial> {
    const { fails, choices } = yield candidate;
    if (fails) this.best = choices;
    return fails;
  }
}

const FEW = 8;
const LARGE = 256;

/** Groups with more numbers than this hold data, not sizes. */
const MOST_SIZES = 8;
const LARGEST_SIZE = 4096;

/** All groups, level by level. */
function addresses(root: Choices): Address[] {
  const found: Address[] = [[]];
  for (let i = 0; i < found.length; i++) {
    at(root, found[i]).groups.forEach((_, index) => found.push([...found[i], index]));
  }
  return found;
}

function find(root: Choices, address: Address): Choices | undefined {
  return address.reduce<Choices | undefined>((node, index) => node?.groups[index], root);
}

/** The group at an address; one that an edit made disappear reads as empty. */
function at(root: Choices, address: Address): Choices {
  return find(root, address) ?? SIMPLEST;
}

function edited(root: Choices, address: Address, change: (node: Choices) => Choices): Choices {
  if (address.length === 0) return change(root);
  const [first, ...rest] = address;
  return {
    numbers: root.numbers,
    groups: root.groups.map((group, i) => i === first ? edited(group, rest, change) : group),
  };
}

/** Every number at one depth through `f`. */
function mapped({ numbers, groups }: Choices, depth: number, f: (n: number) => number): Choices {
  return depth === 0
    ? { numbers: numbers.map(f), groups }
    : { numbers, groups: groups.map((group) => mapped(group, depth - 1, f)) };
}

function replaced({ numbers, groups }: Choices, index: number, value: number): Choices {
  return { numbers: numbers.map((n, i) => i === index ? value : n), groups };
}

function without<T>(list: readonly T[], start: number, size: number): T[] {
  return [...list.slice(0, start), ...list.slice(start + size)];
}
