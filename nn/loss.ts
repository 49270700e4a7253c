/** The loss of language models. */
import { full } from "../tensor/create.ts";
import { IndexError, ShapeError, show } from "../tensor/errors.ts";
import { linearCrossEntropy } from "../tensor/loss.ts";
import { concat, slice } from "../tensor/movement.ts";
import { scope } from "../tensor/scope.ts";
import { sameShape } from "../tensor/shape.ts";
import { rangeOf, type Tensor } from "../tensor/tensor.ts";
import type { LinearParams } from "./linear.ts";

/** What a label has that does not count. */
const ignored = -100;

/**
 * The mean loss of predicting each next token: −log softmax(hidden·Wᵀ)[label], without ever holding all the logits.
 *
 * @param params the last layer, weight `[V, size]`, or the embedding that it shares
 * @param hidden `[B, S, size]`
 * @param labels i32 `[B, S]`, often the ids themselves: they are shifted here, so that place i predicts label i + 1. −100
 * is ignored
 * @returns an f32 scalar in nats; NaN when nothing counts
 * @throws {ShapeError} when labels and hidden do not fit each other
 * @throws {IndexError} when a label made from host data is neither −100 nor below V
 */
export function nextTokenLoss({ weight }: LinearParams, hidden: Tensor, labels: Tensor): Tensor {
  if (hidden.rank !== 3 || !sameShape(hidden.shape.slice(0, 2), labels.shape)) {
    throw new ShapeError(
      "nextTokenLoss",
      `hidden is [B, S, size], labels [B, S]: ${show(hidden.shape)}, ${show(labels.shape)}`,
    );
  }
  const classes = weight.shape[0];
  const bad = rangeOf(labels)?.find((label) => label !== ignored && (label < 0 || label >= classes));
  if (bad !== undefined) throw new IndexError("nextTokenLoss", `label ${bad} is outside the vocabulary of ${classes}`);
  const [batch, length] = labels.shape;
  return scope(() => {
    // The labels move, not the hidden rows, which are wider; the last place predicts nothing that is known.
    const last = full([batch, Math.min(1, length)], ignored, { dtype: labels.dtype, backend: labels.backend });
    const next = concat([slice(labels, [0, Math.min(1, length)], [batch, length]), last], { axis: 1 });
    return linearCrossEntropy(hidden, weight, next, { ignoreIndex: ignored });
  });
}
