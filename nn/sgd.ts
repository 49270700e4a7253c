/** Stochastic gradient descent with momentum. */
import { add } from "../tensor/elementwise.ts";
import { scope } from "../tensor/scope.ts";
import { consume, type Tensor } from "../tensor/tensor.ts";
import { mapTree, type Tree } from "../tensor/tree.ts";
import { sgdUpdate } from "../tensor/update.ts";
import {
  expectRange,
  expectRate,
  expectState,
  firstStep,
  type Optimizer,
  rateAt,
  updating,
  zerosFor,
} from "./optimizer.ts";
import type { Schedule } from "./schedule.ts";

/** Options of {@linkcode sgd}. */
export interface SgdOptions {
  /** A number, or a function of the step count. */
  readonly learningRate: number | Schedule;
  /** How much of the old step stays at each; 0 when not given. */
  readonly momentum?: number;
  /** Looks ahead along the momentum (Nesterov 1983); false when not given. */
  readonly nesterov?: boolean;
  /** Added to the gradient, times the parameter; 0 when not given. */
  readonly weightDecay?: number;
}

/** What SGD remembers. */
export type SgdState = {
  /** Updates done, an i32 scalar. */
  readonly step: Tensor;
  /** Running sums of the gradients, by name; empty without momentum. */
  readonly momentum: Readonly<Record<string, Tensor>>;
};

/**
 * Stochastic gradient descent.
 * @throws {ValueError} when an option is out of its range
 *
 * @example
 * ```ts
 * import { tensor } from "@flashtape/flashtape";
 * import { sgd } from "@flashtape/flashtape/nn";
 * const optimizer = sgd({ learningRate: 0.5 });
 * const start = { w: tensor([1]) };
 * const { params } = optimizer.update(start, { w: tensor([1]) }, optimizer.init(start));
 * console.log(await params.w.array()); // [0.5]
 * ```
 */
export function sgd(options: SgdOptions): Optimizer<SgdState> {
  const { learningRate, momentum = 0, nesterov = false, weightDecay = 0 } = options;
  expectRate("sgd", learningRate);
  expectRange("sgd", "momentum", momentum, 0, 1);
  expectRange("sgd", "weightDecay", weightDecay, 0, Infinity);
  return {
    init(params) {
      const still = momentum === 0 && !nesterov;
      return { step: firstStep(params), momentum: still ? {} : zerosFor("sgd", params) };
    },
    update<P extends Tree>(params: P, grads: P, state: SgdState) {
      const { pairs, spend } = updating("sgd", params, grads);
      if (momentum !== 0 || nesterov) expectState("sgd", "momentum", pairs.values(), state.momentum);
      return scope(() => {
        const step = add(state.step, 1);
        const rate = rateAt(learningRate, step);
        const kept: Record<string, Tensor> = {};
        const next = mapTree(params, (param, name) => {
          const pair = pairs.get(name)!, { grad } = pair, old = state.momentum[name];
          const inputs = { param, grad, velocity: old, learningRate: rate };
          const done = sgdUpdate(inputs, { momentum, nesterov, weightDecay });
          if (done.velocity !== undefined) kept[name] = done.velocity;
          spend(pair);
          return done.param;
        });
        consume(state.step, "sgd");
        return { params: next, state: { step, momentum: kept } };
      });
    },
  };
}
