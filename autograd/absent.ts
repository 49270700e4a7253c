/** Gradients of results that nothing depends on: zeros that take no memory, and that a derivative can tell. */
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
