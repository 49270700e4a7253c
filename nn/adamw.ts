/** AdamW: Adam with weight decay that does not pass through the gradient (Loshchilov and Hutter 2017, arXiv:1711.05101). */
import { add } from "../tensor/elementwise.ts";
import { scope } from "../tensor/scope.ts";
import { consume, type Tensor } from "../tensor/tensor.ts";
import { mapTree, type Tree } from "../tensor/tree.ts";
import { adamwUpdate } from "../tensor/update.ts";
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

/** Options of {@linkcode adamw}. */
export interface AdamwOptions {
  /** A number, or a function of the step count. */
  readonly learningRate: number | Schedule;
  /** How much of the old means of g and g² stays at each step; [0.9, 0.999] when not given. */
  readonly betas?: readonly [number, number];
  /** Added to √(mean g²); 1e-8 when not given. */
  readonly eps?: number;
  /** The part of a parameter, times the learning rate, that goes at each step; 0.01 when not given. */
  readonly weightDecay?: number;
  /** Which parameters decay, by dotted name; all when not given. */
  readonly decays?: (name: string, param: Tensor) => boolean;
}

/** What AdamW remembers: tensors, the step count too. A tree, so that `flatten` names what a checkpoint holds. */
export type AdamwState = {
  /** Updates done, an i32 scalar. */
  readonly step: Tensor;
  /** Running means of the gradients, by name, f32. */
  readonly m: Readonly<Record<string, Tensor>>;
  /** Running means of their squares, by name, f32. */
  readonly v: Readonly<Record<string, Tensor>>;
};

/**
 * The AdamW optimiser.
 *
 * @throws {ValueError} when an option is out of its range
 *
 * @example
 * ```ts
 * import { mul, sum, tensor, valueAndGrad } from "@flashtape/flashtape";
 * import { adamw } from "@flashtape/flashtape/nn";
 * const optimizer = adamw({ learningRate: 0.1 });
 * let params = { w: tensor([1, -2]) };
 * let state = optimizer.init(params);
 * for (let i = 0; i < 100; i++) {
 *   const [loss, grads] = valueAndGrad((p: typeof params) => sum(mul(p.w, p.w)))(params);
 *   ({ params, state } = optimizer.update(params, grads, state));
 *   loss.dispose();
 * }
 * ```
 */
export function adamw(options: AdamwOptions): Optimizer<AdamwState> {
  const { learningRate, betas: [beta1, beta2] = [0.9, 0.999], eps = 1e-8, weightDecay = 0.01, decays } = options;
  expectRate("adamw", learningRate);
  expectRange("adamw", "betas[0]", beta1, 0, 1);
  expectRange("adamw", "betas[1]", beta2, 0, 1);
  expectRange("adamw", "eps", eps, 0, Infinity);
  expectRange("adamw", "weightDecay", weightDecay, 0, Infinity);
  return {
    init(params) {
      return { step: firstStep(params), m: zerosFor("adamw", params), v: zerosFor("adamw", params) };
    },
    update<P extends Tree>(params: P, grads: P, state: AdamwState) {
      const { pairs, spend } = updating("adamw", params, grads);
      expectState("adamw", "m", pairs.values(), state.m);
      expectState("adamw", "v", pairs.values(), state.v);
      // Asked of all before any is written: what a person's function throws costs no parameter.
      const kept = new Set(
        [...pairs].filter(([name, { param }]) => decays && !decays(name, param)).map(([name]) => name),
      );
      return scope(() => {
        const step = add(state.step, 1), rate = rateAt(learningRate, step);
        const m: Record<string, Tensor> = {}, v: Record<string, Tensor> = {};
        const next = mapTree(params, (param, name) => {
          const pair = pairs.get(name)!, { grad } = pair;
          const decay = kept.has(name) ? 0 : weightDecay;
          const inputs = { param, grad, m: state.m[name], v: state.v[name], step, learningRate: rate };
          const done = adamwUpdate(inputs, { beta1, beta2, eps, weightDecay: decay });
          m[name] = done.m;
          v[name] = done.v;
          spend(pair);
          return done.param;
        });
        consume(state.step, "adamw");
        return { params: next, state: { step, m, v } };
      });
    },
  };
}
