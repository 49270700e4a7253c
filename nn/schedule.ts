/** Learning rates that follow the step count. */
import { add, cos, div, maximum, minimum, mul, sub } from "../tensor/elementwise.ts";
import { ValueError } from "../tensor/errors.ts";
import { scope } from "../tensor/scope.ts";
import type { Tensor } from "../tensor/tensor.ts";

/** From the step count, an f32 scalar that is 1 at the first update, to the learning rate, an f32 scalar. */
export type Schedule = (step: Tensor) => Tensor;

/** Options of {@linkcode cosineSchedule}. */
export interface CosineOptions {
  /** The rate at the top. */
  readonly learningRate: number;
  /** The step at which the rate has come down. */
  readonly totalSteps: number;
  /** Steps over which the rate rises in a line from 0 to the top; 0 when not given. */
  readonly warmupSteps?: number;
  /** The rate from `totalSteps` on; 0 when not given. */
  readonly minLearningRate?: number;
}

/**
 * A straight rise, then half a cosine down (Loshchilov and Hutter 2016, arXiv:1608.03983, without restarts).
 *
 * @throws {ValueError} when the steps or rates are not in order
 *
 * @example
 * ```ts
 * import { tensor } from "@flashtape/flashtape";
 * import { cosineSchedule } from "@flashtape/flashtape/nn";
 * const rate = cosineSchedule({ learningRate: 1, warmupSteps: 10, totalSteps: 100 });
 * console.log(await rate(tensor(5)).item()); // 0.5
 * ```
 */
export function cosineSchedule(options: CosineOptions): Schedule {
  const { learningRate: top, totalSteps, warmupSteps = 0, minLearningRate: bottom = 0 } = options;
  if (!(warmupSteps >= 0 && warmupSteps < totalSteps && totalSteps < Infinity)) {
    throw new ValueError("cosineSchedule", `needs 0 ≤ warmupSteps < totalSteps, got ${warmupSteps} and ${totalSteps}`);
  }
  if (!(bottom >= 0 && bottom <= top && top < Infinity)) {
    throw new ValueError("cosineSchedule", `needs 0 ≤ minLearningRate ≤ learningRate, got ${bottom} and ${top}`);
  }
  return (step) =>
    scope(() => {
      const done = div(sub(step, warmupSteps), totalSteps - warmupSteps);
      const wave = cos(mul(minimum(maximum(done, 0), 1), Math.PI));
      const rate = add(mul(add(wave, 1), (top - bottom) / 2), bottom);
      return warmupSteps === 0 ? rate : minimum(rate, mul(step, top / warmupSteps));
    });
}
