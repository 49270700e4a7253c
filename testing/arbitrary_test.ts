import assert from "node:assert/strict";
import { Random, SIMPLEST, Source } from "./choices.ts";
import {
  type Arbitrary,
  array,
  assume,
  boolean,
  compose,
  constant,
  Discard,
  elementOf,
  float,
  integer,
  oneOf,
  record,
  tuple,
} from "./arbitrary.ts";

function samples<T>(arbitrary: Arbitrary<T>, count = 500): T[] {
  return Array.from({ length: count }, (_, i) => arbitrary.draw(new Source(new Random(1, i))));
}

function simplest<T>(arbitrary: Arbitrary<T>): T {
  return arbitrary.draw(new Source(SIMPLEST));
}

Deno.test("integer() stays in range and reaches both ends", () => {
  for (const [min, max] of [[-3, 3], [5, 900], [-900, -5], [0, 0], [-(2 ** 52), 2 ** 52 - 1], [0, 2 ** 53 - 1]]) {
    const drawn = samples(integer(min, max));
    assert.ok(drawn.every((n) => Number.isSafeInteger(n) && n >= min && n <= max));
    assert.ok(drawn.includes(min) && drawn.includes(max), `${min} ${max}`);
  }
});

Deno.test("integer() is simplest nearest to zero", () => {
  assert.deepEqual([[-3, 3], [5, 9], [-9, -5]].map(([min, max]) => simplest(integer(min, max))), [0, 5, -5]);
});

Deno.test("integer() refuses ranges that it cannot count", () => {
  for (const [min, max] of [[1, 0], [0, 0.5], [NaN, 1], [0, Infinity], [-(2 ** 53 - 1), 2 ** 53 - 1]]) {
    assert.throws(() => integer(min, max), { name: "ValueError", message: /^\[integer\] .*got min/ });
  }
});

Deno.test("float() stays in range, finite, and reaches its edges", () => {
  const biggest = Number.MAX_VALUE;
  for (
    const [min, max] of [[-1e6, 1e6], [0, 1], [0.1, 0.2], [-0.2, -0.1], [3, 3], [-biggest, biggest], [1e-9, 1e9]]
  ) {
    const drawn = samples(float({ min, max }), 1500);
    assert.ok(drawn.every((x) => Number.isFinite(x) && x >= min && x <= max), `${min} ${max}`);
    assert.ok(drawn.includes(min) && drawn.includes(max), `${min} ${max}`);
    assert.ok(min === max || new Set(drawn).size > 100, `${min} ${max}`);
  }
  const drawn = samples(float(), 2000);
  assert.ok(drawn.some((x) => Object.is(x, -0)));
  assert.ok(drawn.some((x) => Object.is(x, 0)));
  assert.ok(drawn.some((x) => x !== 0 && Math.abs(x) < 1e-30));
  assert.ok(drawn.some((x) => x < 0 && !Number.isInteger(x)));
});

Deno.test("float() is simplest at the simplest number of its range", () => {
  const ranges = [[-1, 1], [0.5, 10], [0.25, 0.75], [-9.5, -2.5]];
  assert.deepEqual(ranges.map(([min, max]) => simplest(float({ min, max }))), [0, 1, 0.25, -3]);
});

Deno.test("float() refuses bounds that are not finite or out of order", () => {
  assert.throws(() => float({ min: NaN }), { name: "ValueError", message: /^\[float\]/ });
  assert.throws(() => float({ max: Infinity }), { name: "ValueError" });
  assert.throws(() => float({ min: 2, max: 1 }), { name: "ValueError" });
});

Deno.test("array() keeps its lengths and varies them", () => {
  const lengths = samples(array(boolean(), { minLength: 2, maxLength: 5 })).map((list) => list.length);
  assert.deepEqual([...new Set(lengths)].toSorted(), [2, 3, 4, 5]);
  assert.deepEqual(simplest(array(boolean(), { minLength: 2 })), [false, false]);
  assert.throws(() => array(boolean(), { minLength: 3, maxLength: 2 }), { name: "ValueError", message: /^\[array\]/ });
});

Deno.test("oneOf() and elementOf() draw every choice and are simplest at the first", () => {
  assert.deepEqual(new Set(samples(oneOf(constant(1), constant("two"), boolean()))), new Set([1, "two", true, false]));
  assert.deepEqual(new Set(samples(elementOf("a", "b"))), new Set(["a", "b"]));
  assert.equal(simplest(oneOf(constant(1), constant("two"))), 1);
  assert.throws(() => oneOf(), { name: "ValueError" });
  assert.throws(() => elementOf(), { name: "ValueError" });
});

Deno.test("tuple() and record() draw their parts independently", () => {
  const pairs = samples(tuple(boolean(), boolean()));
  assert.equal(new Set(pairs.map(String)).size, 4);
  const options: { causal: boolean; size: number }[] = samples(record({ causal: boolean(), size: integer(1, 2) }));
  assert.equal(new Set(options.map((value) => JSON.stringify(value))).size, 4);
});

Deno.test("map(), chain(), with(), filter() and compose() derive arbitraries", () => {
  assert.ok(samples(integer(0, 9).map((n) => 2 * n)).every((n) => n % 2 === 0));
  assert.ok(
    samples(integer(1, 5).chain((n) => array(constant(n), { minLength: n, maxLength: n })))
      .every((list) => list.length === list[0]),
  );
  assert.ok(samples(integer(1, 5).with((n) => integer(0, n - 1))).every(([n, below]) => below < n));
  assert.ok(samples(integer(0, 9).filter((n) => n % 2 === 1)).every((n) => n % 2 === 1));
  const ordered = compose((draw) => {
    const low = draw(integer(0, 9));
    return { low, high: draw(integer(low, 9)) };
  });
  assert.ok(samples(ordered).every(({ low, high }) => low <= high));
});

Deno.test("filter() and assume() discard a case that cannot be met", () => {
  assert.throws(() => simplest(integer(0, 9).filter(() => false)), Discard);
  assert.throws(() => assume(false), Discard);
  assume(true);
});
