/** Samples of optimiser steps, which are in place. */
import type { DType } from "../../tensor/dtype.ts";
import { DTypeError, ShapeError, ValueError } from "../../tensor/errors.ts";
import type { NdArray, ParamsOf } from "../../tensor/op.ts";
import type { Shape } from "../../tensor/shape.ts";
import * as update from "../../tensor/update.ts";
import { type Arbitrary, boolean, compose, elementOf, float, integer, oneOf } from "../arbitrary.ts";
import type { TensorData } from "../tensors.ts";
import { arbInput, callOf, floats, given, plain, refuse, type Sample, shapes, typeOf } from "./sample.ts";
import { f } from "./elementwise.ts";

const finite = { range: [-2, 2], specials: [0] } as const;

/** A learning rate that f32 holds. */
const arbRate = (param: DType): Arbitrary<TensorData> =>
  float({ min: 1e-5, max: 0.5 }).chain((rate) => given([f(rate)], [], param === "f64" ? "f64" : "f32"));

/** A parameter and its gradient, with the dtype and shape that state has. */
const arbStep = (held: readonly DType[]) =>
  compose((draw) => {
    const dtype = draw(typeOf(held, floats)), shape = draw(shapes());
    const gradType = draw(elementOf(dtype, dtype === "f64" ? "f64" : "f32"));
    const inputs = [draw(arbInput(shape, dtype, finite)), draw(arbInput(shape, gradType, finite))];
    return { dtype, shape, inputs, state: update.stateDType(dtype), rate: draw(arbRate(dtype)) };
  });

const decay = oneOf(elementOf(0), float({ min: 0, max: 0.2 }));
const one = given([1], [], "i32"), rate = given([0.5], [], "f32");
const tensors = (shape: Shape, count: number) => Array.from({ length: count }, () => plain(shape));

/** Samples of optimiser steps. */
export const updates = {
  adamwUpdate: {
    calls: (held) =>
      compose((draw) => {
        const { shape, inputs, state, rate } = draw(arbStep(held));
        const m = draw(arbInput(shape, state, finite)),
          v = draw(arbInput(shape, state, { range: [0, 2], specials: [0] }));
        const step = draw(oneOf(integer(1, 20), integer(1, 100000)).chain((n) => given([n], [], "i32")));
        return callOf([...inputs, m, v, step, rate], {
          beta1: draw(float({ min: 0, max: 0.95 })),
          beta2: draw(float({ min: 0, max: 0.999 })),
          eps: draw(elementOf(1e-8, 1e-6, 1e-3)),
          weightDecay: draw(decay),
        });
      }),
    accuracy: { kind: "worst", naive: [naiveAdamw] },
    smooth: null,
    refused: oneOf(
      refuse(ShapeError, [plain([3]), plain([2]), ...tensors([3], 2), one, rate], adamw()),
      refuse(ShapeError, [...tensors([3], 3), plain([3, 1]), one, rate], adamw()),
      refuse(ShapeError, [...tensors([3], 4), one, plain([1])], adamw()),
      refuse(ShapeError, [...tensors([3], 4), plain([1], "i32"), rate], adamw()),
      refuse(DTypeError, [...tensors([3], 4), plain([]), rate], adamw()),
      refuse(DTypeError, [plain([3], "i32"), ...tensors([3], 3), one, rate], adamw()),
      refuse(DTypeError, [...tensors([3], 2), plain([3], "f16"), plain([3]), one, rate], adamw()),
      refuse(ValueError, [...tensors([3], 4), one, rate], adamw({ beta1: 1 })),
      refuse(ValueError, [...tensors([3], 4), one, rate], adamw({ beta2: NaN })),
      refuse(ValueError, [...tensors([3], 4), one, rate], adamw({ eps: -1 })),
      refuse(ValueError, [...tensors([3], 4), one, rate], adamw({ weightDecay: Infinity })),
    ),
  } satisfies Sample<ParamsOf<typeof update.adamwUpdateOp>>,
  sgdUpdate: {
    calls: (held) =>
      compose((draw) => {
        const { inputs, rate } = draw(arbStep(held));
        return callOf([...inputs, rate], { weightDecay: draw(decay) });
      }),
    accuracy: {
      kind: "worst",
      naive: [([p, g, rate], { weightDecay }, y) => {
        for (let i = 0; i < y.data.length; i++) {
          y.data[i] = f(p.data[i] - f(rate.data[0] * slope(p, g, weightDecay, i)));
        }
      }],
    },
    smooth: null,
    refused: oneOf(
      refuse(ShapeError, [plain([3]), plain([2]), rate], sgd()),
      refuse(ShapeError, [plain([3]), plain([3]), plain([1])], sgd()),
      refuse(DTypeError, [plain([3], "i32"), plain([3]), rate], sgd()),
      refuse(DTypeError, [plain([3]), plain([3], "bool"), rate], sgd()),
      refuse(ValueError, [plain([3]), plain([3]), rate], sgd({ weightDecay: -1 })),
      refuse(ValueError, [plain([3]), plain([3]), rate], sgd({ momentum: 0.9 })),
    ),
  } satisfies Sample<ParamsOf<typeof update.sgdUpdateOp>>,
  momentumUpdate: {
    calls: (held) =>
      compose((draw) => {
        const { shape, inputs, state, rate } = draw(arbStep(held));
        return callOf([...inputs, draw(arbInput(shape, state, finite)), rate], {
          momentum: draw(float({ min: 0, max: 0.99 })),
          nesterov: draw(boolean()),
          weightDecay: draw(decay),
        });
      }),
    accuracy: {
      kind: "worst",
      naive: [([p, g, v, rate], { momentum, nesterov, weightDecay }, newP, newV) => {
        for (let i = 0; i < newP.data.length; i++) {
          const u = slope(p, g, weightDecay, i), speed = f(f(f(momentum) * v.data[i]) + u);
          const step = nesterov ? f(u + f(f(momentum) * speed)) : speed;
          newP.data[i] = f(p.data[i] - f(rate.data[0] * step));
          newV.data[i] = speed;
        }
      }],
    },
    smooth: null,
    refused: oneOf(
      refuse(ShapeError, [plain([3]), plain([3]), plain([2]), rate], momentum()),
      refuse(DTypeError, [plain([3]), plain([3]), plain([3], "bf16"), rate], momentum()),
      refuse(ValueError, [plain([3]), plain([3]), plain([3]), rate], momentum(1)),
      refuse(ValueError, [plain([3]), plain([3]), plain([3]), rate], momentum(NaN)),
    ),
  } satisfies Sample<ParamsOf<typeof update.momentumUpdateOp>>,
};

type T = Parameters<typeof update.adamwUpdate>[0]["param"];

function adamw(options: update.AdamwOptions = {}) {
  return (...[param, grad, m, v, step, learningRate]: readonly T[]) =>
    update.adamwUpdate({ param, grad, m, v, step, learningRate }, options);
}

function sgd(options: update.SgdOptions = {}) {
  return (param: T, grad: T, learningRate: T) => update.sgdUpdate({ param, grad, learningRate }, options);
}

function momentum(momentum = 0.9) {
  return (param: T, grad: T, velocity: T, learningRate: T) =>
    update.sgdUpdate({ param, grad, velocity, learningRate }, { momentum });
}

/** The gradient with the decay that is added to it. */
function slope(p: NdArray, g: NdArray, weightDecay: number, i: number): number {
  return f(g.data[i] + f(f(weightDecay) * p.data[i]));
}

function naiveAdamw(
  [p, g, m, v, { data: [step] }, { data: [rate] }]: readonly NdArray[],
  params: Required<update.AdamwOptions>,
  newP: NdArray,
  newM: NdArray,
  newV: NdArray,
): void {
  const [b1, b2, eps, decay] = [params.beta1, params.beta2, params.eps, params.weightDecay].map(f);
  const [unbias1, unbias2] = [b1, b2].map((b) => f(1 - f(b ** step)));
  for (let i = 0; i < newP.data.length; i++) {
    const gi = g.data[i];
    const mean = f(f(b1 * m.data[i]) + f(f(1 - b1) * gi));
    const square = f(f(b2 * v.data[i]) + f(f(f(1 - b2) * gi) * gi));
    const direction = f(f(mean / unbias1) / f(f(Math.sqrt(f(square / unbias2))) + eps));
    newP.data[i] = f(p.data[i] - f(rate * f(f(decay * p.data[i]) + direction)));
    newM.data[i] = mean;
    newV.data[i] = square;
  }
}
