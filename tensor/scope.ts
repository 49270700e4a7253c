/** Lifetimes: a scope frees what was made inside it and not returned. */
import { guard, storageOf, type Tensor } from "./tensor.ts";
import { forEachTensor } from "./tree.ts";

type Made = Set<Tensor>;

const open: Made[] = [];

/** Notes a new handle in the innermost scope, which will free it; outside all scopes the finaliser may. */
export function track<T extends Tensor>(x: T): T {
  const made = open.at(-1);
  if (made === undefined) guard(x);
  else made.add(x);
  return x;
}

/** Something that stands in the place of a device for a while. */
export interface Detour {
  enter(): void;
  leave(): void;
}

const detours: Detour[] = [];

/** Runs `f` under a detour. */
export function detour<T>(by: Detour, f: () => T): T {
  detours.push(by);
  by.enter();
  try {
    return f();
  } finally {
    by.leave();
    detours.splice(detours.lastIndexOf(by), 1);
  }
}

/** Whether calls run under a detour now. */
export function detoured(): boolean {
  return detours.length > 0;
}

/** Runs `f` outside every scope and detour: what it makes is real, and lives until it is disposed. */
export function unscoped<T>(f: () => T): T {
  const kept = open.splice(0), left = detours.splice(0);
  for (const by of left) by.leave();
  try {
    return f();
  } finally {
    open.push(...kept);
    detours.push(...left);
    for (const by of left) by.enter();
  }
}

/** How many scopes are open. */
export function depth(): number {
  return open.length;
}

/** Takes a handle out of the scope that made it, if that was opened at `from` or later: then the caller disposes it. */
export function untrack(x: Tensor, from: number): boolean {
  return open.some((made, i) => i >= from && made.delete(x));
}

function close(made: Made, result: unknown): void {
  open.splice(open.lastIndexOf(made), 1);
  forEachTensor(result, (x) => {
    if (!made.delete(x)) return;
    storageOf(x, "scope");
    track(x);
  });
  for (const x of made) x.dispose();
}

/**
 * Runs `f` and frees every tensor that it made, but for those in what it returns: a tensor, or plain objects and
 * arrays of them.
 *
 * With an async `f` the scope closes when its promise settles; what other code makes meanwhile belongs to it too, so
 * async scopes do not run side by side.
 *
 * @param f makes tensors
 * @returns what `f` returns
 * @throws {DisposedError} when `f` returns a tensor that it disposed
 *
 * @example
 * ```ts
 * import { add, mul, scope, tensor } from "@flashtape/flashtape";
 * const y = scope(() => {
 *   const x = tensor([1, 2]);
 *   return add(mul(x, x), 1); // x and x² are freed
 * });
 * ```
 */
export function scope<T>(f: () => T): T {
  const made: Made = new Set();
  open.push(made);
  let result: T;
  try {
    result = f();
  } catch (error) {
    close(made, undefined);
    throw error;
  }
  if (!(result instanceof Promise)) {
    close(made, result);
    return result;
  }
  return result.then(
    (value) => (close(made, value), value),
    (error) => {
      close(made, undefined);
      throw error;
    },
  ) as T;
}

/** Disposes every tensor of a tree. */
export function dispose(tree: unknown): void {
  forEachTensor(tree, (x) => x.dispose());
}
