import assert from "node:assert/strict";
import { ones, zeros } from "../tensor/create.ts";
import { array, check, elementOf } from "../testing/mod.ts";
import { flatten, unflatten } from "./mod.ts";

Deno.test("flatten() names tensors by their path, and unflatten() takes them back to it", () => {
  const tree = { layers: [{ weight: ones([2]) }, { weight: ones([3]) }], bias: ones([1]) };
  const flat = flatten(tree);
  assert.deepEqual(Object.keys(flat), ["layers.0.weight", "layers.1.weight", "bias"]);
  assert.deepEqual(unflatten(flat), tree);
  assert.deepEqual(unflatten(flat, tree), tree);
});

Deno.test("unflatten() after flatten() gives any tree of names back", async () => {
  await check(
    [array(array(elementOf("a", "b", "0", "1"), { minLength: 1, maxLength: 3 }), { maxLength: 5 })],
    (paths) => {
      const names = [...new Set(paths.map((p) => p.join(".")))];
      const clash = names.some((a) => names.some((b) => b !== a && b.startsWith(`${a}.`)));
      const flat = Object.fromEntries(names.map((name) => [name, zeros([1])]));
      if (clash) assert.throws(() => unflatten(flat), /meets another tensor/);
      else assert.deepEqual(Object.keys(flatten(unflatten(flat))).sort(), names.sort());
    },
  );
});

Deno.test("unflatten() like a tree keeps dotted keys, and refuses other names and shapes", () => {
  const like = { step: zeros([]), m: { "a.b": zeros([2]) } }, flat = flatten(like);
  assert.deepEqual(unflatten(flat, like), like);
  assert.throws(() => unflatten({ ...flat, other: zeros([]) }, like), /"other" has no place/);
  assert.throws(() => unflatten({ step: zeros([]) }, like), /no tensor "m\.a\.b"/);
  assert.throws(() => unflatten({ ...flat, "m.a.b": zeros([3]) }, like), /"m\.a\.b" is \[3\], expected \[2\]/);
});

Deno.test("flatten() refuses two tensors of one name", () => {
  assert.throws(() => flatten({ "a.b": ones([1]), a: { b: ones([1]) } }), /two tensors are named "a\.b"/);
});
