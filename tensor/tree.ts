/** Trees: tensors in plain nested objects and arrays, as parameters and results come. */
import { Tensor } from "./tensor.ts";

/** A tensor, or a plain object or array of trees. Other values ride along untouched. */
export type Tree = Tensor | readonly Tree[] | { readonly [key: string]: Tree };

function isBranch(value: unknown): value is Record<string, unknown> | readonly unknown[] {
  if (typeof value !== "object" || value === null || value instanceof Tensor) return false;
  if (Array.isArray(value)) return true;
  const proto = Object.getPrototypeOf(value);
  return proto === Object.prototype || proto === null;
}

/** Calls `f` with every tensor of a tree and the path to it, such as `layers.0.weight`. */
export function forEachTensor(tree: unknown, f: (x: Tensor, path: string) => void, path = ""): void {
  if (tree instanceof Tensor) return f(tree, path);
  if (!isBranch(tree)) return;
  for (const [key, value] of Object.entries(tree)) forEachTensor(value, f, path === "" ? key : `${path}.${key}`);
}

/** The tensors of a tree, in the order of its keys. */
export function leaves(tree: unknown): Tensor[] {
  const out: Tensor[] = [];
  forEachTensor(tree, (x) => out.push(x));
  return out;
}

/** A tree of the same form with every tensor replaced. What is no tensor stays. */
export function mapTree<T>(tree: T, f: (x: Tensor, path: string) => unknown, path = ""): T {
  if (tree instanceof Tensor) return f(tree, path) as T;
  if (!isBranch(tree)) return tree;
  const at = (key: string | number) => path === "" ? String(key) : `${path}.${key}`;
  if (Array.isArray(tree)) return tree.map((value, i) => mapTree(value, f, at(i))) as T;
  return Object.fromEntries(Object.entries(tree).map(([key, value]) => [key, mapTree(value, f, at(key))])) as T;
}
