/** Losses. */
import { arange } from "../tensor/create.ts";
import { add, cast, div, greaterEqual, less, maximum, sub, where } from "../tensor/elementwise.ts";
import { IndexError, ShapeError, show } from "../tensor/errors.ts";
import { take } from "../tensor/gather.ts";
import { reshape } from "../tensor/movement.ts";
import { logsumexp, sum } from "../tensor/reduce.ts";
import { scope } from "../tensor/scope.ts";
import { sameShape } from "../tensor/shape.ts";
import { rangeOf, type Tensor } from "../tensor/tensor.ts";

/**
 * The mean of −log softmax(logits)[label] over the labels that count.
 *
 * @param logits `[…, V]`
 * @param labels i32, the shape without the last axis; negative ones are ignored
 * @throws {IndexError} when a label made from host data is not below V; one computed on the device makes the loss NaN
 * @returns an f32 scalar in nats; NaN when every label is ignored
 */
export function crossEntropy(logits: Tensor, labels: Tensor): Tensor {
  const classes = logits.shape.at(-1) ?? 0;
  if (!sameShape(logits.shape.slice(0, -1), labels.shape)) {
    throw new ShapeError(
      "crossEntropy",
      `logits ${show(logits.shape)} need labels without the last axis, got ${show(labels.shape)}`,
    );
  }
  expectLabels(labels, classes);
  return scope(() => {
    const x = logits.dtype === "f64" ? logits : cast(logits, "f32");
    const at = reshape(labels, [-1]), counts = greaterEqual(at, 0);
    const starts = arange(0, at.size * classes, { step: classes, dtype: "i32", backend: x.backend });
    const places = where(less(at, classes), add(starts, maximum(at, 0)), -1); // outside reads NaN
    const chosen = take(reshape(x, [-1]), places);
    const losses = where(counts, sub(logsumexp(reshape(x, [-1, classes]), { axis: -1 }), chosen), 0);
    return div(sum(losses), sum(cast(counts, x.dtype)));
  });
}

/**
 * Refuses labels that the host knows to name no class.
 * @throws {IndexError} naming the largest of them
 */
export function expectLabels(labels: Tensor, classes: number): void {
  const known = rangeOf(labels);
  if (known !== undefined && known[1] >= classes) {
    throw new IndexError("crossEntropy", `label ${known[1]} is outside the ${classes} classes`);
  }
}
