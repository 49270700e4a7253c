import assert from "node:assert/strict";
import { cpu } from "../tensor/cpu.ts";
import { full, ones, tensor } from "../tensor/create.ts";
import { exp, greater, mul, sin } from "../tensor/elementwise.ts";
import { scope } from "../tensor/scope.ts";
import { detach, type Tensor } from "../tensor/tensor.ts";
import { Tape } from "./tape.ts";

const size = 1000;
/** How many tensors of that size there are room for in what is held now. */
const tensorsHeld = () => Math.floor(cpu().memory().current / (4 * size));
const some = () => full([size], 0.5);

/** A step that does nothing but look around when the walk passes. */
function probe(tape: Tape, x: Tensor, look: () => void): Tensor {
  const y = detach(x);
  tape.record("probe", [x], [y], (dy) => {
    look();
    return [dy];
  });
  return y;
}

const repeat = (n: number, f: (x: Tensor) => Tensor, x: Tensor) => Array.from({ length: n }).reduce<Tensor>(f, x);

Deno.test("what is saved is freed as the walk passes", () => {
  const x = some(), tape = new Tape([x]), atStart = tensorsHeld();
  const seen: number[] = [];
  const y = scope(() =>
    tape.during(() => {
      const first = probe(tape, x, () => seen.push(tensorsHeld() - atStart));
      const middle = probe(tape, repeat(10, sin, first), () => seen.push(tensorsHeld() - atStart));
      return repeat(10, sin, middle);
    })
  );
  assert.ok(tensorsHeld() - atStart >= 20);
  const [dx] = scope(() => tape.walk([[y, ones([size])]], [x]));
  assert.equal(seen.length, 2);
  // Beside what is saved: the result, the seed, the gradient that arrives.
  assert.ok(seen[0] >= 10 && seen[0] <= 14, `${seen[0]} tensors half way`);
  assert.ok(seen[1] <= 4, `${seen[1]} tensors at the end`);
  assert.ok(!dx.disposed);
});

Deno.test("a walk that keeps what is saved can be walked again, and free() ends it", () => {
  const x = tensor([1, 2]), tape = new Tape([x]);
  const y = scope(() => tape.during(() => exp(mul(x, x))));
  const walk = (keep: boolean) => [...tape.walk([[y, ones([2])]], [x], { keep })[0].dataSync()];
  const first = walk(true);
  assert.deepEqual(walk(true), first);
  tape.free();
  assert.deepEqual(walk(false), [0, 0]);
});

Deno.test("what depends on no watched value costs nothing", () => {
  const x = some(), w = some(), tape = new Tape([x]), before = cpu().memory().current;
  scope(() => void tape.during(() => repeat(5, sin, w)));
  assert.equal(cpu().memory().current, before);
  assert.ok(tape.tracks(x) && !tape.tracks(w));
});

Deno.test("a branch that the result does not use is not walked, and what it saved is freed", () => {
  const x = some(), tape = new Tape([x]);
  const before = tensorsHeld();
  const y = scope(() =>
    tape.during(() => {
      repeat(5, sin, probe(tape, x, () => assert.fail("it was walked")));
      return mul(x, 2);
    })
  );
  const [dx] = tape.walk([[y, ones([size])]], [x]);
  y.dispose();
  dx.dispose();
  assert.ok(tensorsHeld() - before <= 1, "only the seed is left");
});

Deno.test("a tape tracks results of floats, and nothing made after it stopped listening", () => {
  const x = tensor([1, 2]), tape = new Tape([x]);
  const [y, condition] = tape.during(() => [sin(x), greater(x, 1)]);
  assert.deepEqual([tape.tracks(y), tape.tracks(condition), tape.tracks(sin(y))], [true, false, false]);
  tape.free();
});

Deno.test("gradients that arrive by several ways add up, and seeds of several results too", () => {
  const x = tensor([3]), tape = new Tape([x]);
  const [a, b] = tape.during(() => [mul(x, x), mul(x, 5)]);
  const [dx] = tape.walk([[a, tensor([1])], [b, tensor([10])], [x, tensor([100])]], [x]);
  assert.deepEqual([...dx.dataSync()], [6 + 50 + 100]);
});

Deno.test("a watched value in the middle has its own gradient, beside that of what it comes from", () => {
  const x = tensor([3]), tape = new Tape([x]);
  const y = tape.during(() => mul(x, x)), z = tape.during(() => mul(y, y));
  const [dx, dy] = tape.walk([[z, tensor([1])]], [x, y]);
  assert.deepEqual([dy.dataSync()[0], dx.dataSync()[0]], [2 * 9, 2 * 9 * 6]);
});

Deno.test("the same gradient handed to two inputs is disposed by each on its own", () => {
  const a = tensor([1]), b = tensor([2]), tape = new Tape([a, b]), y = tensor([0]);
  tape.record("pair", [a, b], [y], (dy) => [dy, dy]);
  const [da, db] = tape.walk([[y, tensor([7])]], [a, b]);
  da.dispose();
  assert.deepEqual([...db.dataSync()], [7]);
});

Deno.test("pin() keeps what a scope under the tape would free, until the tape is freed", () => {
  const pinned = scope(() => {
    const tape = new Tape([]);
    const x = scope(() => {
      const made = tensor([1]);
      tape.pin(made);
      return () => made;
    })();
    assert.ok(!x.disposed);
    tape.free();
    return () => x;
  })();
  assert.ok(pinned.disposed);
});
