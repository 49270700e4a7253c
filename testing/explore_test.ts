import assert from "node:assert/strict";
import { cpu } from "../tensor/cpu.ts";
import { tensor } from "../tensor/create.ts";
import { array, assume, compose, integer } from "./arbitrary.ts";
import { explore, type Law, type Settings } from "./explore.ts";
import { arbTensor } from "./tensors.ts";

const settings = (changes: Partial<Settings> = {}): Settings => ({
  runs: 100,
  seed: 1,
  maxShrinks: 2000,
  shrinkMs: 10_000,
  ...changes,
});
const numbers = [integer(0, 1000)] as const;
type NumberLaw = Law<[number]>;
const below = (bound: number): NumberLaw => (n) => n < bound;

Deno.test("a law that holds is tried as often as asked, and nothing is returned", async () => {
  let count = 0;
  const failure = await explore([...numbers], () => void count++, settings({ runs: 30 }));
  assert.deepEqual([failure, count], [undefined, 30]);
});

Deno.test("a law fails by false, by throwing and by rejecting", async () => {
  const laws: NumberLaw[] = [() => false, () => assert.fail("no"), () => Promise.reject(new RangeError("no"))];
  for (const law of laws) assert.equal((await explore([...numbers], law, settings()))?.culprit, "law");
});

Deno.test("the failure shows the simplest case that was found, and how many passed before", async () => {
  const failure = await explore([...numbers], below(17), settings());
  assert.deepEqual([failure?.shown, failure?.culprit], [["17"], "law"]);
  assert.equal(failure?.passed, failure?.path.index);
});

Deno.test("the path leads straight back to the case that was shown", async () => {
  const lists = [array(integer(0, 99))];
  const law: Law<[number[]]> = (list) => list.reduce((a, b) => a + b, 0) < 100;
  const failure = await explore(lists, law, settings());
  assert.ok(failure !== undefined && failure.path.steps.length > 0);
  const tried: number[][] = [];
  const again = await explore(lists, (list) => (tried.push(list), law(list)), settings({ path: failure.path }));
  assert.deepEqual([again?.shown, again?.path], [failure.shown, failure.path]);
  assert.ok(tried.every((list) => JSON.stringify(list) === JSON.stringify(tried[0])), "only that case is tried");
});

Deno.test("a path to a case that passes now says nothing, one that leads nowhere is refused", async () => {
  assert.equal(await explore([...numbers], () => true, settings({ path: { index: 3, steps: [] } })), undefined);
  const wrong = settings({ path: { index: 1, steps: [100_000] } });
  await assert.rejects(explore([...numbers], () => false, wrong), /leads to no case/);
});

Deno.test("the first case of every seed is the simplest, and seeds decide the others", async () => {
  const seen = async (seed: number) => {
    const values: number[] = [];
    await explore([integer(-1000, 1000)], (n) => void values.push(n), settings({ seed, runs: 20 }));
    return values;
  };
  const [one, again, two] = [await seen(1), await seen(1), await seen(2)];
  assert.deepEqual([one[0], two[0]], [0, 0]);
  assert.deepEqual(one, again);
  assert.notDeepEqual(one, two);
});

Deno.test("discarded cases count as nothing, and too many of them are refused", async () => {
  let count = 0;
  const even: NumberLaw = (n) => {
    assume(n % 2 === 0);
    count++;
  };
  assert.equal(await explore([...numbers], even, settings({ runs: 20 })), undefined);
  assert.equal(count, 20);
  await assert.rejects(explore([...numbers], () => assume(false), settings({ runs: 5 })), /discarded 1\d\d of/);
});

Deno.test("an arbitrary that throws is blamed, and so is chance where a case fails once", async () => {
  const broken = compose((): number => assert.fail("broken"));
  const failure = await explore([broken], () => true, settings());
  assert.deepEqual([failure?.culprit, failure?.shown], ["arbitrary", []]);
  let calls = 0;
  const once = await explore([...numbers], () => ++calls !== 3, settings());
  assert.equal(once?.culprit, "chance");
});

Deno.test("shrinking stays with errors of the first kind", async () => {
  const firsts = new Set<string>();
  for (let seed = 0; seed < 10; seed++) {
    let first: string | undefined;
    const law: NumberLaw = (n) => {
      if (n < 3) return;
      const error = n >= 500 ? new RangeError("large") : new TypeError("middle");
      first ??= error.name;
      throw error;
    };
    const failure = await explore([...numbers], law, settings({ seed }));
    assert.deepEqual(failure?.shown, [first === "RangeError" ? "500" : "3"]);
    firsts.add(first!);
  }
  assert.equal(firsts.size, 2);
});

Deno.test("shrinking stops when it is told to", async () => {
  const failure = await explore([...numbers], below(17), settings({ maxShrinks: 0 }));
  assert.deepEqual([failure?.tried, failure?.path.steps], [0, []]);
  const late = await explore([...numbers], below(17), settings({ shrinkMs: 0 }));
  assert.equal(late?.tried, 0);
});

Deno.test("tensors of a case are gone when it ends, those that the law made too", async () => {
  const before = cpu().memory().current, seen: number[] = [];
  await explore([arbTensor({ shape: [100] })], (x) => {
    tensor([...x.dataSync()]);
    seen.push(cpu().memory().current - before);
  }, settings({ runs: 10 }));
  assert.deepEqual([...new Set(seen)], [800]);
  assert.equal(cpu().memory().current, before);
});
