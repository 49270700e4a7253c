import assert from "node:assert/strict";
import { fingerprint, isSimpler, Random, SIMPLEST, small, Source } from "./choices.ts";

Deno.test("Random gives Philox-4x32-10's known first words", () => {
  // 0x6627e8d5 and 0xe169c58d, for a counter and a key of zeros.
  assert.equal(new Random(0, 0).unit(), (0x6627e8d5 * 2 ** 21 + (0xe169c58d >>> 11)) / 2 ** 53);
});

Deno.test("Random tells apart seeds and cases that differ only above 32 bits", () => {
  const first = (seed: number, index: number) => new Random(seed, index).unit();
  const seen = [first(1, 1), first(1 + 2 ** 32, 1), first(1, 1 + 2 ** 32), first(1 + 2 ** 52, 1), first(2, 1)];
  assert.equal(new Set(seen).size, seen.length);
});

Deno.test("Random.upTo() reaches every value and nothing else", () => {
  const random = new Random(3, 0);
  const counts = new Array(5).fill(0);
  for (let i = 0; i < 5000; i++) counts[random.upTo(4)]++;
  assert.equal(counts.length, 5);
  for (const count of counts) assert.ok(Math.abs(count - 1000) < 150, `${counts}`);
});

Deno.test("small() stays within its bound and prefers small values", () => {
  const random = new Random(4, 0);
  const drawn = Array.from({ length: 1000 }, () => small(random, 1000));
  assert.ok(drawn.every((n) => Number.isInteger(n) && n >= 0 && n <= 1000));
  assert.ok(drawn.filter((n) => n < 32).length > 300);
  assert.ok(drawn.some((n) => n > 500));
  assert.equal(small(random, 0), 0);
});

Deno.test("Source replays what it recorded", () => {
  const make = (source: Source): number[] => [source.draw(9), ...source.group((s) => [s.draw(99), s.draw(5)])];
  const fresh = new Source(new Random(5, 0));
  const made = make(fresh);
  const again = new Source(fresh.record());
  assert.deepEqual(make(again), made);
  assert.deepEqual(again.record(), fresh.record());
});

Deno.test("Source cuts replayed numbers to their bound and reads missing ones as 0", () => {
  const source = new Source({ numbers: [7], groups: [] });
  assert.deepEqual([source.draw(3), source.draw(3), source.group((s) => s.draw(3))], [3, 0, 0]);
  assert.deepEqual(source.record(), { numbers: [3, 0], groups: [{ numbers: [0], groups: [] }] });
});

Deno.test("isSimpler() puts fewer bits first, then fewer choices, then smaller ones", () => {
  const one = (...numbers: number[]) => ({ numbers, groups: [] });
  assert.ok(isSimpler(one(0, 0, 7), one(9)));
  assert.ok(isSimpler(one(9), one(9, 0)));
  assert.ok(isSimpler(one(0, 9), one(9, 0)));
  assert.ok(!isSimpler(one(1, 0), one(1, 0)));
  assert.ok(isSimpler(SIMPLEST, { numbers: [], groups: [SIMPLEST] }));
});

Deno.test("fingerprint() tells different trees apart", () => {
  const leaf = (...numbers: number[]) => ({ numbers, groups: [] });
  const prints = [
    leaf(1, 2),
    leaf(12),
    { numbers: [1], groups: [leaf(2)] },
    { numbers: [], groups: [leaf(1), leaf(2)] },
    { numbers: [], groups: [{ numbers: [1], groups: [leaf(2)] }] },
  ].map(fingerprint);
  assert.equal(new Set(prints).size, prints.length);
});
