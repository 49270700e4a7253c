/** Parameter trees and their flat form: `{ a: { b: x } }` ⇄ `{ "a.b": x }`, as checkpoints name tensors. */
import { ShapeError, show, ValueError } from "../tensor/errors.ts";
import { sameShape } from "../tensor/shape.ts";
import type { Tensor } from "../tensor/tensor.ts";
import { forEachTensor, mapTree, type Tree } from "../tensor/tree.ts";

/**
 * The tensors of a tree under dotted names.
 * @throws {ValueError} when two tensors come to the same name
 *
 * @example
 * ```ts
 * import { ones } from "@flashtape/flashtape";
 * import { flatten } from "@flashtape/flashtape/nn";
 * console.log(Object.keys(flatten({ layers: [{ weight: ones([2]) }], bias: ones([1]) })));
 * // ["layers.0.weight", "bias"]
 * ```
 */
export function flatten(tree: Tree): Record<string, Tensor> {
  const entries = new Map<string, Tensor>();
  forEachTensor(tree, (x, path) => {
    if (entries.has(path)) throw new ValueError("flatten", `two tensors are named "${path}"`);
    entries.set(path, x);
  });
  return Object.fromEntries(entries);
}

/**
 * The tree that dotted names describe: of the form of `like`, when one is given; else names that count 0, 1, 2, … make
 * an array and all others objects.
 *
 * @throws {ValueError} when a name is both a tensor and a branch, or the names are not those of `like`
 * @throws {ShapeError} when a tensor has another shape than in `like`
 *
 * @example
 * ```ts
 * import { ones } from "@flashtape/flashtape";
 * import { unflatten } from "@flashtape/flashtape/nn";
 * const tree = unflatten({ "layers.0.weight": ones([2]), bias: ones([1]) });
 * console.log(Object.keys(tree)); // ["layers", "bias"]
 * ```
 */
export function unflatten<T extends Tree>(flat: Readonly<Record<string, Tensor>>, like: T): T;
/** Without a form to follow. */
export function unflatten(flat: Readonly<Record<string, Tensor>>): Tree;
export function unflatten(flat: Readonly<Record<string, Tensor>>, like?: Tree): Tree {
  return like === undefined ? grow(flat) : fit(flat, like);
}

function fit<T extends Tree>(flat: Readonly<Record<string, Tensor>>, like: T): T {
  const rest = new Map(Object.entries(flat));
  const tree = mapTree(like, (old, name) => {
    const x = rest.get(name);
    if (x === undefined) throw new ValueError("unflatten", `there is no tensor "${name}"`);
    if (!sameShape(x.shape, old.shape)) {
      throw new ShapeError("unflatten", `"${name}" is ${show(x.shape)}, expected ${show(old.shape)}`);
    }
    rest.delete(name);
    return x;
  });
  for (const name of rest.keys()) throw new ValueError("unflatten", `"${name}" has no place in the tree`);
  return tree;
}

function grow(flat: Readonly<Record<string, Tensor>>): Tree {
  type Branch = Map<string, Branch | Tensor>;
  const root: Branch = new Map();
  for (const [name, x] of Object.entries(flat)) {
    const keys = name.split(".");
    let at = root;
    keys.forEach((key, i) => {
      const next = at.get(key);
      const last = i === keys.length - 1;
      if (next === undefined) at.set(key, last ? x : new Map());
      else if (last || !(next instanceof Map)) {
        throw new ValueError("unflatten", `"${name}" meets another tensor at "${keys.slice(0, i + 1).join(".")}"`);
      }
      if (!last) at = at.get(key) as Branch;
    });
  }
  const build = (branch: Branch | Tensor): Tree => {
    if (!(branch instanceof Map)) return branch;
    const isList = branch.size > 0 && [...branch.keys()].every((_, i) => branch.has(String(i)));
    if (isList) return Array.from({ length: branch.size }, (_, i) => build(branch.get(String(i))!));
    return Object.fromEntries([...branch].map(([key, value]) => [key, build(value)]));
  };
  return build(root);
}
