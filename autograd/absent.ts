/** Gradients whose values a derivative may know: none, of a result that nothing depends on, and the 1 of the value itself. */
import { full } from "../tensor/create.ts";
import type { Backend } from "../tensor/backend.ts";
import type { DType } from "../tensor/dtype.ts";
import { broadcastTo } from "../tensor/movement.ts";
import type { Shape } from "../tensor/shape.ts";
import type { Tensor } from "../tensor/tensor.ts";

const marked = new WeakSet<Tensor>();

/** Zeros of a shape: one number, seen everywhere. */
export function absent(shape: Shape, dtype: DType, backend: Backend): Tensor {
  const zero = full([], 0, { dtype, backend });
  if (shape.length === 0) {
    marked.add(zero);
    return zero;
  }
  const zeros = broadcastTo(zero, shape);
  zero.dispose();
  marked.add(zeros);
  return zeros;
}

/** Whether a gradient stands for none. */
export function isAbsent(gradient: Tensor): boolean {
  return marked.has(gradient);
}

const units = new Set<number>();

/** Runs `f` while a gradient, whatever handle shows it, is known to be 1. */
export function knownAsOne<T>(gradient: Tensor, f: () => T): T {
  units.add(gradient.id);
  try {
    return f();
  } finally {
    units.delete(gradient.id);
  }
}

/** Whether a gradient is known to be 1. */
export function isOne(gradient: Tensor): boolean {
  return units.has(gradient.id);
}
