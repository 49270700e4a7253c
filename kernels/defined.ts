/**
 * The dispatches of ops that are not in the table of lowerings. They stand apart from it, so that a program which
 * defines an op loads no kernels before it opens a device.
 */
import type { Op } from "../tensor/op.ts";
import type { Lower } from "./lowering.ts";

const defined = new WeakMap<object, Lower<never>>();

/** Gives an op outside of the table its dispatches. */
export function defineLowering<P>(op: Op<P>, lower: Lower<P>): void {
  defined.set(op, lower as Lower<never>);
}

/** The dispatches of an op outside of the table. */
export function definedLowering<P>(op: Op<P>): Lower<P> | undefined {
  return defined.get(op) as Lower<P> | undefined;
}
