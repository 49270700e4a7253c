import assert from "node:assert/strict";
import "./cpu.ts";
import { tensor } from "./create.ts";
import type { Tensor } from "./tensor.ts";
import { forEachTensor, leaves, mapTree } from "./tree.ts";

const model = () => {
  const [embedding, first, second, scale] = [1, 2, 3, 4].map((n) => tensor(n));
  return { embedding, layers: [{ weight: first }, { weight: second, bias: null }], eps: 1e-5, norm: { scale } };
};

Deno.test("forEachTensor() names each tensor by its dotted path, in the order of the keys", () => {
  const paths: string[] = [];
  forEachTensor(model(), (_, path) => paths.push(path));
  assert.deepEqual(paths, ["embedding", "layers.0.weight", "layers.1.weight", "norm.scale"]);
});

Deno.test("a tensor alone is a tree with an empty path", () => {
  const x = tensor(1);
  forEachTensor(x, (found, path) => assert.deepEqual([found, path], [x, ""]));
  assert.deepEqual(leaves(x), [x]);
  assert.equal(mapTree(x, () => 5), 5);
});

Deno.test("mapTree() keeps the form, replaces tensors, and leaves the rest and the original alone", () => {
  const before = model(), { embedding } = before;
  const after = mapTree(before, (x, path) => `${path} was ${x.dtype}`);
  assert.deepEqual(after, {
    embedding: "embedding was f32",
    layers: [{ weight: "layers.0.weight was f32" }, { weight: "layers.1.weight was f32", bias: null }],
    eps: 1e-5,
    norm: { scale: "norm.scale was f32" },
  });
  assert.equal(before.embedding, embedding);
});

Deno.test("only plain objects and arrays are branches: class instances, maps and text ride along", () => {
  class Layer {
    readonly weight: Tensor = tensor(1);
  }
  const tree = { layer: new Layer(), map: new Map([["x", tensor(1)]]), name: "ab", bare: Object.create(null) };
  tree.bare.x = tensor(2);
  assert.deepEqual(leaves(tree), [tree.bare.x]);
  assert.equal(mapTree(tree, (x) => x).layer, tree.layer);
});

Deno.test("a tensor that stands in two places is found in both", () => {
  const x = tensor(1);
  assert.deepEqual(leaves([x, { again: x }]), [x, x]);
});
