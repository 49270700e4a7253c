import assert from "node:assert/strict";
import { Arbitrary, integer } from "../testing/arbitrary.ts";
import { property } from "../testing/property.ts";
import { kernel } from "./kernel.ts";
import { PooledBuffer } from "./memory.ts";
import { type Plan, planReplay, shareBuffers } from "./plan.ts";
import type { Noted } from "./recorder.ts";

const pool = { give() {} };
const nowhere = {} as GPUBuffer; // plans bind nothing
const buffer = (id: number, bytes = 256) => {
  const made = new PooledBuffer(pool, id, nowhere, bytes);
  made.bytes = bytes;
  return made;
};

/** A dispatch that reads some buffers and writes others. */
function step(name: string, reads: readonly PooledBuffer[], writes: readonly PooledBuffer[]): Noted {
  const named = (letter: string, of: readonly unknown[]) => Object.fromEntries(of.map((_, i) => [letter + i, "f32"]));
  return {
    kernel: kernel(`plan_test_${name}`, { reads: named("x", reads), writes: named("y", writes) }, () => ""),
    buffers: [...reads, ...writes],
    uniforms: [],
    workgroups: [1, 1, 1],
    label: { op: name, kernel: name },
  };
}

function plan(dispatches: readonly Noted[], given: readonly PooledBuffer[], results: readonly PooledBuffer[]): Plan {
  const all = new Set(dispatches.flatMap(({ buffers }) => buffers));
  return planReplay({
    dispatches,
    made: (b) => all.has(b) && !given.includes(b) && b.id < 100,
    given: (b) => given.includes(b),
    results: new Set(results),
    limits: { maxBuffers: 8, maxWorkgroups: 65535 },
  });
}

const names = (list: readonly Noted[]) => list.map(({ label }) => label.op);

const arbLives = new Arbitrary((choices) =>
  Array.from({ length: integer(0, 30).draw(choices) }, (_, id) => {
    const first = integer(0, 40).draw(choices), length = integer(0, 8).draw(choices);
    return [buffer(id, 256 * integer(1, 9).draw(choices)), [first, first + length]] as const;
  })
);

property(
  "shareBuffers() gives values that live at the same time different buffers, each large enough",
  [arbLives],
  (all) => {
    const { slots, slotOf } = shareBuffers(new Map(all));
    for (const [a, [from, to]] of all) {
      assert(slots[slotOf.get(a)!] >= a.bytes);
      for (const [b, [first, last]] of all) {
        if (a !== b && from <= last && first <= to) assert.notEqual(slotOf.get(a), slotOf.get(b));
      }
    }
    const most = Math.max(
      0,
      ...all.map((_, at) => {
        const alive = all.filter(([, [from, to]]) => from <= at && at <= to);
        return alive.reduce((sum, [{ bytes }]) => sum + bytes, 0);
      }),
    );
    assert(slots.reduce((a, b) => a + b, 0) >= most);
  },
);

Deno.test("a chain of values needs two buffers, however long it is", () => {
  const chain = Array.from({ length: 20 }, (_, i) => buffer(i));
  const dispatches = chain.slice(1).map((y, i) => step(`${i}`, [chain[i]], [y]));
  const { slots, each } = plan(dispatches, [chain[0]], [chain[19]]);
  assert.equal(each.length, 19);
  assert.equal(slots.length, 2);
});

Deno.test("dispatches whose results reach nobody are left out", () => {
  const [x, y, z, lost] = [0, 1, 2, 3].map((id) => buffer(id));
  const all = [step("a", [x], [y]), step("lost", [y], [lost]), step("b", [y], [z])];
  assert.deepEqual(names(plan(all, [x], [z]).each), ["a", "b"]);
});

Deno.test("what is written into a given buffer stays, and so does what it is made from", () => {
  const [x, g, other] = [0, 1, 2].map((id) => buffer(id));
  const all = [step("grad", [x], [g]), step("update", [g], [x]), step("other", [x], [other])];
  assert.deepEqual(names(plan(all, [x], []).each), ["grad", "update"]);
});

Deno.test("what depends on captured buffers alone runs once; what is written twice, is a result, or is large does not", () => {
  const captured = buffer(100), x = buffer(0);
  const [a, b, twice, result, y] = [1, 2, 3, 4, 5].map((id) => buffer(id));
  const large = buffer(6, 2 ** 21);
  const all = [
    step("a", [captured], [a]),
    step("b", [a], [b]),
    step("twice1", [], [twice]),
    step("twice2", [b], [twice]),
    step("large", [], [large]),
    step("result", [a], [result]),
    step("y", [x, b, twice, large], [y]),
  ];
  const { once, each, constants } = plan(all, [x], [y, result]);
  assert.deepEqual(names(once), ["a", "b"]);
  assert.deepEqual(names(each), ["twice1", "twice2", "large", "result", "y"]);
  assert.deepEqual([...constants], [a, b]);
});
