import assert from "node:assert/strict";
import { type Choices, fingerprint, flatten, isSimpler, Random, Source } from "./choices.ts";
import { simplifications } from "./shrink.ts";

const leaf = (...numbers: number[]): Choices => ({ numbers, groups: [] });
const tree = (numbers: number[], ...groups: Choices[]): Choices => ({ numbers, groups });

/** Shrinks choices as the search does: an edit is taken when what is read under it is simpler and still fails. */
function shrunk(
  start: Choices,
  read: (source: Source) => unknown,
  fails: (source: Choices) => boolean,
): { end: Choices; tried: number } {
  const seen = new Set([fingerprint(start)]);
  const edits = simplifications(start);
  let end = start, tried = 0;
  for (let next = edits.next(); !next.done;) {
    assert.ok(++tried < 20_000, "it does not end");
    const source = new Source(next.value);
    read(source);
    const choices = source.record(), isNew = !seen.has(fingerprint(choices)) && isSimpler(choices, end);
    seen.add(fingerprint(choices));
    const found = isNew && fails(choices);
    if (found) end = choices;
    next = edits.next({ fails: found, choices });
  }
  return { end, tried };
}

/** Reads three numbers up to 1000. */
const three = (source: Source) => [1, 2, 3].map(() => source.draw(1000));

/** Reads a list: each element in a group that says first whether there is one. */
const list = (source: Source): number[] => {
  const found: number[] = [];
  while (source.group((s) => s.draw(1) === 1 && found.push(s.draw(1000)) > 0));
  return found;
};
const elements = (choices: Choices) => choices.groups.filter((g) => g.numbers[0] === 1).map((g) => g.numbers[1]);

const random = (read: (source: Source) => unknown, seed: number): Choices => {
  const source = new Source(new Random(seed, 1));
  read(source);
  return source.record();
};

Deno.test("one number ends at the smallest that fails, the others at 0", () => {
  for (const bound of [1, 7, 8, 100, 999]) {
    const { end } = shrunk(leaf(1000, 1000, 1000), three, ({ numbers: [, b] }) => b >= bound);
    assert.deepEqual(end.numbers, [0, bound, 0]);
  }
});

Deno.test("numbers that must stay alike shrink together", () => {
  const { end } = shrunk(leaf(900, 5, 900), three, ({ numbers: [a, , c] }) => a === c && a >= 37);
  assert.deepEqual(end.numbers, [37, 0, 37]);
});

Deno.test("an amount moves from one summand to the other, so that one is 0", () => {
  const { end } = shrunk(leaf(300, 0, 400), three, ({ numbers: [a, , c] }) => a + c >= 500);
  assert.equal(end.numbers.filter((n) => n > 0).length, 1);
  assert.equal(flatten(end).reduce((a, b) => a + b), 500);
});

Deno.test("elements that do not matter are dropped from a list, wherever they stand", () => {
  const start = tree([], ...[3, 800, 4, 900, 5].map((n) => leaf(1, n)), leaf(0));
  const { end } = shrunk(start, list, (c) => elements(c).filter((n) => n >= 100).length >= 2);
  assert.deepEqual(elements(end), [100, 100]);
});

Deno.test("neighbours are put in order where the law does not mind", () => {
  const start = tree([], leaf(1, 9), leaf(1, 2), leaf(1, 5), leaf(0));
  const { end } = shrunk(start, list, (c) => elements(c).toSorted().join() === "2,5,9");
  assert.deepEqual(elements(end), [2, 5, 9]);
});

/** Reads a length and so many numbers in a group; then one number more. */
const counted = (source: Source) => {
  const length = source.draw(20);
  source.group((s) => Array.from({ length }, () => s.draw(1000)));
};

Deno.test("a length shrinks although what makes the law fail stands at the end", () => {
  const start = tree([5], leaf(1, 2, 3, 4, 777));
  const { end } = shrunk(start, counted, ({ groups: [{ numbers }] }) => numbers.some((n) => n >= 500));
  assert.deepEqual(end, tree([1], leaf(500)));
});

Deno.test("the edits depend on the answers alone", () => {
  const run = () => {
    const texts: string[] = [], edits = simplifications(tree([], ...[900, 30, 30, 77].map((n) => leaf(1, n)), leaf(0)));
    for (let next = edits.next(), i = 0; !next.done && i < 300; i++) {
      texts.push(fingerprint(next.value));
      next = edits.next({ fails: i === 9 || i === 20, choices: next.value });
    }
    return texts;
  };
  assert.ok(run().length > 20);
  assert.deepEqual(run(), run());
});

Deno.test("from anywhere, shrinking ends at what no further edit makes simpler", () => {
  for (let seed = 0; seed < 20; seed++) {
    const start = random(three, seed), fails = ({ numbers: [a, b, c] }: Choices) => a > 40 || (b > 30 && c > 2);
    if (!fails(start)) continue;
    const { end } = shrunk(start, three, fails);
    assert.ok(["41,0,0", "0,31,3"].includes(end.numbers.join()), `${end.numbers}`);
    assert.deepEqual(shrunk(end, three, fails).end, end);
  }
});

Deno.test("the simplest choices have no edits that are simpler", () => {
  assert.deepEqual(shrunk(leaf(0, 0, 0), three, () => true).end.numbers, [0, 0, 0]);
});
