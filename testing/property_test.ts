import assert from "node:assert/strict";
import { execFile } from "node:child_process";
import {
  type Arbitrary,
  type ArbitratedAll,
  array,
  assume,
  boolean,
  compose,
  constant,
  elementOf,
  float,
  integer,
  oneOf,
  record,
  tuple,
} from "./arbitrary.ts";
import type { Law } from "./explore.ts";
import {
  formatPath,
  parsePath,
  property,
  PropertyError,
  type PropertyOptions,
  settingsOf,
  tryLaw,
} from "./property.ts";

/** `check` without the environment, so that these tests mean the same under FLASHTAPE_SEED. */
function run<A extends Arbitrary<unknown>[]>(
  arbitraries: readonly [...A],
  law: Law<ArbitratedAll<A>>,
  options: PropertyOptions = {},
  name?: string,
): Promise<void> {
  return tryLaw(name, arbitraries, law, settingsOf(options, () => undefined));
}

async function failure<A extends Arbitrary<unknown>[]>(
  arbitraries: readonly [...A],
  law: Law<ArbitratedAll<A>>,
  options: PropertyOptions = {},
  name?: string,
): Promise<PropertyError> {
  try {
    await run(arbitraries, law, options, name);
  } catch (error) {
    if (error instanceof PropertyError) return error;
    throw error;
  }
  throw new Error("the law was expected to fail");
}

const SEEDS = Array.from({ length: 20 }, (_, seed) => seed);

/** The counterexamples that the seeds end in, each once. */
async function minima<T>(arbitrary: Arbitrary<T>, law: (value: T) => boolean): Promise<string[]> {
  const found = [];
  for (const seed of SEEDS) found.push((await failure([arbitrary], law, { seed, runs: 1000 })).counterexample[0]);
  return [...new Set(found)];
}

Deno.test("check() accepts a law that holds, and tries it 100 times", async () => {
  let runs = 0;
  await run([integer(0, 9), integer(0, 9)], (a, b) => {
    runs++;
    return a + b === b + a;
  });
  assert.equal(runs, 100);
});

Deno.test("check() shrinks an integer to the smallest that fails", async () => {
  assert.deepEqual(await minima(integer(0, 10_000), (n) => n < 17), ["17"]);
  assert.deepEqual(await minima(integer(-10_000, 10_000), (n) => n > -17), ["-17"]);
  assert.deepEqual(await minima(integer(-10_000, 10_000), (n) => Math.abs(n) < 17), ["17"]);
  assert.deepEqual(await minima(integer(5, 2 ** 52), (n) => n % 2 === 1 || n < 1000), ["1000"]);
});

Deno.test("check() shrinks a float to the simplest that fails", async () => {
  assert.deepEqual(await minima(float(), (x) => x < 3.2), ["4"]);
  assert.deepEqual(await minima(float(), (x) => x > -3.2), ["-4"]);
  assert.deepEqual(await minima(float({ min: 0, max: 1 }), (x) => x <= 0.5 || x >= 0.7), ["0.625"]);
  assert.deepEqual(await minima(float(), (x) => !Object.is(x, -0)), ["-0"]);
});

Deno.test("check() shrinks a list whose sum is too large to one element", async () => {
  const sum = (list: number[]) => list.reduce((total, n) => total + n, 0);
  assert.deepEqual(await minima(array(integer(0, 100)), (list) => sum(list) < 100), ["[100]"]);
  assert.deepEqual(await minima(array(integer(0, 1000)), (list) => list.length < 3), ["[0, 0, 0]"]);
});

Deno.test("check() keeps what makes a list fail when it drops the rest", async () => {
  const distinct = (list: number[]) => new Set(list).size === list.length;
  assert.deepEqual(await minima(array(integer(0, 1000)), distinct), ["[0, 0]"]);
  const ascending = (list: number[]) => list.every((n, i) => i === 0 || list[i - 1] <= n);
  assert.deepEqual(await minima(array(integer(0, 1000)), ascending), ["[1, 0]"]);
  const noSeven = (list: number[]) => list.every((n) => n !== 7);
  assert.deepEqual(await minima(array(integer(0, 9)), noSeven), ["[7]"]);
});

Deno.test("check() shrinks through chain(), compose() and filter()", async () => {
  const rectangle = compose((draw) => {
    const [rows, columns] = [draw(integer(0, 6)), draw(integer(0, 6))];
    return draw(array(array(integer(0, 99), { minLength: columns, maxLength: columns }), {
      minLength: rows,
      maxLength: rows,
    }));
  });
  const noLarge = (rows: number[][]) => rows.every((row) => row.every((n) => n < 50));
  assert.deepEqual(await minima(rectangle, noLarge), ["[[50]]"]);
  const flat = integer(0, 30).chain((n) => array(integer(0, 99), { minLength: n, maxLength: n }));
  assert.deepEqual(await minima(flat, (list) => list.every((n) => n < 50)), ["[50]"]);
  const odd = integer(0, 1000).filter((n) => n % 2 === 1);
  assert.deepEqual(await minima(odd, (n) => n < 100), ["101"]);
});

Deno.test("check() shrinks choices, records and tuples", async () => {
  const value = oneOf(constant("none"), record({ size: integer(1, 64), causal: boolean() }), elementOf("all", "some"));
  assert.deepEqual(await minima(value, (v) => typeof v === "string" || v.size < 8), ["{ size: 8, causal: false }"]);
  assert.deepEqual(await minima(tuple(integer(0, 99), integer(0, 99)), ([a, b]) => a + b < 60), ["[0, 60]"]);
});

Deno.test("check() shrinks arguments apart from each other", async () => {
  const lists = array(integer(0, 99), { maxLength: 20 });
  const error = await failure([lists, integer(0, 99), lists], (a, n, b) => a.length + b.length < 3 || n < 10);
  const [a, n, b] = error.counterexample;
  assert.equal(n, "10");
  assert.equal([...JSON.parse(a), ...JSON.parse(b)].join(), "0,0,0");
});

Deno.test("check() waits for async laws", async () => {
  const later = <T>(value: T) => new Promise<T>((resolve) => setTimeout(() => resolve(value), 0));
  await run([integer(0, 9)], async (n) => await later(n < 10), { runs: 5 });
  const error = await failure([integer(0, 999)], async (n) => {
    if (await later(n) >= 17) throw new TypeError(`${n} is too large`);
  });
  assert.deepEqual(error.counterexample, ["17"]);
  assert.match(error.message, /TypeError: 17 is too large/);
  assert.ok(error.cause instanceof TypeError);
});

Deno.test("check() does not take another error for the one it shrinks", async () => {
  const error = await failure([integer(0, 9999)], (n) => {
    if (n >= 100) throw new RangeError("large");
    if (n >= 10) throw new TypeError("medium");
  }, { seed: 3 });
  const first = error.cause instanceof RangeError ? "100" : "10";
  assert.deepEqual(error.counterexample, [first]);
});

Deno.test("a failure's seed and path reproduce exactly its counterexample, without shrinking", async () => {
  const lists = array(array(float(), { maxLength: 4 }), { maxLength: 4 });
  const law = (list: number[][], n: number) => list.flat().every((x) => x < 900.5 || n < 3);
  for (const seed of SEEDS) {
    const found = await failure([lists, integer(0, 9)], law, { seed, runs: 2000 });
    const tried: unknown[] = [];
    const again = await failure([lists, integer(0, 9)], (list, n) => {
      tried.push([list, n]);
      return law(list, n);
    }, { seed: found.seed, path: found.path });
    assert.deepEqual(again.counterexample, found.counterexample);
    assert.equal(again.path, found.path);
    assert.equal(new Set(tried.map((values) => JSON.stringify(values))).size, 1);
  }
});

Deno.test("a path is exact even where shrinking was cut short", async () => {
  for (const maxShrinks of [0, 1, 5, 20]) {
    const law = (list: number[]) => list.length < 3 || list[1] < 50;
    const found = await failure([array(integer(0, 99))], law, { seed: 9, maxShrinks, runs: 1000 });
    const again = await failure([array(integer(0, 99))], law, { seed: 9, path: found.path });
    assert.deepEqual(again.counterexample, found.counterexample);
  }
});

Deno.test("a path passes once the law is mended, and is refused where it leads nowhere", async () => {
  const found = await failure([integer(0, 999)], (n) => n < 17, { seed: 1 });
  await run([integer(0, 999)], () => true, { seed: 1, path: found.path.split(":")[0] });
  await assert.rejects(run([integer(0, 1)], () => false, { seed: 1, path: "3:0.0.0.0.0.0" }), {
    name: "ValueError",
    message: /the path leads to no case/,
  });
});

Deno.test("the replay line names seed, path and test, quoted for a shell", async () => {
  const error = await failure([integer(0, 99)], (n) => n < 17, { seed: 5 }, "it's never large");
  const line = error.message.split("\n").at(-1) ?? "";
  assert.match(line, /^ {2}FLASHTAPE_SEED=5 FLASHTAPE_PATH=\d+(:[\d.]+)? deno test .*--filter 'it'\\''s never large'$/);
  assert.ok(line.includes(`FLASHTAPE_PATH=${error.path} `));
});

Deno.test("the message shows the law's name, the counterexample and the error", async () => {
  const error = await failure(
    [array(integer(0, 9)), constant("x")],
    (list) => {
      if (list.length > 1) throw new Error("too long\nby far");
    },
    { seed: 2 },
    "lists are short",
  );
  assert.match(error.message, /^"lists are short" does not hold: it failed after \d+ cases? passed/);
  assert.match(error.message, /counterexample\n {2}0: \[0, 0\]\n {2}1: "x"\n/);
  assert.match(error.message, /error\n {2}Error: too long\n {2}by far\n/);
});

Deno.test("check() says so when an arbitrary throws", async () => {
  const bad = integer(0, 99).map((n) => {
    if (n > 50) throw new TypeError("no such value");
    return n;
  });
  const error = await failure([bad], () => true, { seed: 1 });
  assert.match(error.message, /an arbitrary threw after \d+ cases? passed/);
  assert.match(error.message, /TypeError: no such value/);
  const again = await failure([bad], () => true, { seed: error.seed, path: error.path });
  assert.match(again.message, /an arbitrary threw in the case that was replayed/);
});

Deno.test("check() does not shrink into values that an arbitrary cannot make", async () => {
  const picky = integer(0, 999).map((n) => {
    if (n > 0 && n < 20) throw new TypeError("too small to make");
    return n;
  });
  let lawsFault = 0;
  for (const seed of SEEDS) {
    const error = await failure([picky], (n) => n < 25, { seed, runs: 1000 });
    if (error.message.includes("an arbitrary threw")) continue;
    lawsFault++;
    assert.deepEqual(error.counterexample, ["25"]);
    assert.deepEqual((await failure([picky], (n) => n < 25, { seed, path: error.path })).counterexample, ["25"]);
  }
  assert.ok(lawsFault > 0);
});

Deno.test("check() reports a law that is not deterministic", async () => {
  let calls = 0;
  const error = await failure([integer(0, 99)], () => ++calls !== 7);
  assert.match(error.message, /is not deterministic/);
  let draws = 0;
  const unsteady = integer(0, 9).map((n) => n + 100 * draws++);
  const other = await failure([unsteady], (n) => n < 500 || n > 600, { runs: 1000 });
  assert.match(other.message, /is not deterministic/);
});

Deno.test("check() does not count cases that assume() or filter() discard", async () => {
  let held = 0;
  await run([integer(0, 9)], (n) => {
    assume(n > 4);
    held++;
  }, { runs: 50 });
  assert.equal(held, 50);
  await assert.rejects(run([integer(0, 9)], () => assume(false)), { name: "ValueError", message: /discarded/ });
});

Deno.test("settingsOf() puts the environment over options, and options over defaults", () => {
  const settings = (options: PropertyOptions, variables: Record<string, string>) =>
    settingsOf(options, (name) => variables[name]);
  assert.equal(settings({}, {}).runs, 100);
  assert.equal(settings({ runs: 7 }, {}).runs, 7);
  assert.equal(settings({ runs: 7 }, { FLASHTAPE_RUNS: "9" }).runs, 9);
  const { seed, path } = settings({ seed: 1 }, { FLASHTAPE_SEED: "9007199254740991", FLASHTAPE_PATH: "4:0.2" });
  assert.deepEqual([seed, path], [2 ** 53 - 1, { index: 4, steps: [0, 2] }]);
  assert.notEqual(settings({}, {}).seed, settings({}, {}).seed);
});

Deno.test("settingsOf() refuses variables and options that it cannot use", () => {
  const read = (variables: Record<string, string>) => () => settingsOf({}, (name) => variables[name]);
  assert.throws(read({ FLASHTAPE_RUNS: "many" }), { name: "ValueError", message: /FLASHTAPE_RUNS .*"many"/ });
  assert.throws(read({ FLASHTAPE_RUNS: "0" }), { name: "ValueError", message: /runs/ });
  assert.throws(read({ FLASHTAPE_SEED: "9007199254740992" }), { name: "ValueError", message: /seed/ });
  assert.throws(read({ FLASHTAPE_PATH: "4" }), { name: "ValueError", message: /without the seed/ });
  assert.throws(read({ FLASHTAPE_SEED: "1", FLASHTAPE_PATH: "4:" }), { name: "ValueError", message: /path/ });
  assert.throws(() => settingsOf({ seed: NaN }, () => undefined), { name: "ValueError", message: /seed/ });
});

Deno.test("parsePath() reverses formatPath()", () => {
  for (const text of ["0", "17", "17:0", "3:0.12.5"]) assert.equal(formatPath(parsePath(text)), text);
});

Deno.test("property() registers a test whose replay line fails with the same counterexample", async () => {
  const file = await Deno.makeTempFile({ suffix: "_test.ts" });
  try {
    await Deno.writeTextFile(
      file,
      `import { property } from ${JSON.stringify(new URL("./property.ts", import.meta.url))};
       import { array, integer } from ${JSON.stringify(new URL("./arbitrary.ts", import.meta.url))};
       property("sums are small", [array(integer(0, 99))], (list) => {
         console.log("tried", JSON.stringify(list));
         return list.reduce((a, b) => a + b, 0) < 150;
       });`,
    );
    const first = await deno(["test", "--no-config", "--no-lock", "--allow-env", file], { FLASHTAPE_RUNS: "2000" });
    assert.notEqual(first.code, 0);
    const [, seed, path, filter] =
      /FLASHTAPE_SEED=(\d+) FLASHTAPE_PATH=(\S+) deno test --filter '(.*)'/.exec(first.stdout) ?? [];
    const shown = /counterexample\n\s+0: (.*)/.exec(first.stdout)?.[1];
    assert.equal(filter, "sums are small", first.stdout);
    const second = await deno(["test", "--no-config", "--no-lock", "--allow-env", "--filter", filter, file], {
      FLASHTAPE_SEED: seed,
      FLASHTAPE_PATH: path,
    });
    assert.notEqual(second.code, 0);
    assert.equal(/counterexample\n\s+0: (.*)/.exec(second.stdout)?.[1], shown);
    assert.deepEqual(new Set(second.stdout.match(/tried .*/g)).size, 1);
  } finally {
    await Deno.remove(file);
  }
});

property("property() runs its law", [integer(0, 9)], (n) => n < 10);

function deno(
  parameters: string[],
  variables: Record<string, string> = {},
): Promise<{ code: number; stdout: string; stderr: string }> {
  return new Promise((resolve) => {
    const inherited = Object.entries(Deno.env.toObject()).filter(([name]) => !name.startsWith("FLASHTAPE_"));
    const env = { ...Object.fromEntries(inherited), NO_COLOR: "1", ...variables };
    execFile(Deno.execPath(), parameters, { env }, (error, stdout, stderr) => {
      resolve({ code: error === null ? 0 : Number(error.code), stdout, stderr });
    });
  });
}
