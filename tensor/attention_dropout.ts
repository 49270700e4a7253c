/** Attention's dropout: which probabilities fall, from a key and their place alone. */
import { ShapeError, show, ValueError } from "./errors.ts";
import { dense, expectDType, type Op, run } from "./op.ts";
import { philox4x32 } from "./philox.ts";
import { checkShape, type Shape } from "./shape.ts";
import type { Tensor } from "./tensor.ts";

/** The number below which a draw of 32 bits means a drop. */
export function dropThreshold(p: number): number {
  return Math.min(2 ** 32 - 1, Math.round(p * 2 ** 32));
}

/**
 * y[b,h,i,j] = whether word j mod 4 of Philox-4x32-10 at counter [⌊j/4⌋, i, h, b], under the key, is at least
 * `dropThreshold(p)`. Input: key u32 [2].
 */
export const dropoutMaskOp: Op<{ shape: Shape; p: number }> = {
  name: "dropoutMask",
  infer: ([key], { shape }) => {
    expectDType("dropoutMask", "key", key.dtype, ["u32"]);
    if (show(key.shape) !== "[2]") throw new ShapeError("dropoutMask", `a key is u32 [2], got ${show(key.shape)}`);
    return { shape, dtype: "bool" };
  },
  reference: ([key], { shape: [batch, heads, rows, columns], p }, y) => {
    const [k0, k1] = dense(key).data, below = dropThreshold(p), words = new Uint32Array(4);
    let at = 0;
    for (let b = 0; b < batch; b++) {
      for (let h = 0; h < heads; h++) {
        for (let i = 0; i < rows; i++) {
          for (let j = 0; j < columns; j++) {
            if (j % 4 === 0) philox4x32(j / 4, i, h, b, k0, k1, words);
            y.data[at++] = words[j % 4] < below ? 0 : 1;
          }
        }
      }
    }
  },
};

/**
 * The mask that attention's `dropout: { p, key }` stands for: true where a probability stays. Attention itself draws it
 * again wherever it needs it and stores nothing; what stays is divided by 1 − p.
 *
 * @param key u32 [2]
 * @param p the probability of a drop, from 0 up to and without 1
 * @param shape `[B, H, Sq, Sk]`
 * @returns bool; the same on every backend
 * @throws {ValueError} when p is out of its range
 * @throws {ShapeError} when there are not four axes
 */
export function dropoutMask(key: Tensor, p: number, shape: Shape): Tensor {
  if (!(p >= 0 && p < 1)) throw new ValueError("dropoutMask", `p is at least 0 and below 1, got ${p}`);
  checkShape("dropoutMask", shape);
  if (shape.length !== 4) throw new ShapeError("dropoutMask", `the shape is [B, H, Sq, Sk], got ${show(shape)}`);
  return run(dropoutMaskOp, [key], { shape: [...shape], p });
}
