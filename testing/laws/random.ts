/** Samples of random numbers and of optimiser steps. */
import type { DType } from "../../tensor/dtype.ts";
import { DTypeError, ShapeError, ValueError } from "../../tensor/errors.ts";
import { normalTable } from "../../tensor/normal.ts";
import type { ParamsOf } from "../../tensor/op.ts";
import * as random from "../../tensor/random.ts";

import { Arbitrary, boolean, compose, constant, elementOf, float, integer, oneOf } from "../arbitrary.ts";
import { arbTensorData, type TensorData } from "../tensors.ts";
import {
  arbInput,
  arbSmooth,
  callOf,
  floats,
  given,
  plain,
  type Refusal,
  refuse,
  type Sample,
  shapes,
  smallShapes,
  typeOf,
} from "./sample.ts";
import { f } from "./elementwise.ts";
import type { Tensor } from "../../tensor/tensor.ts";

const bits = new Arbitrary((source) => source.draw(2 ** 32 - 1));

/** A key of any two words, a view now and then. */
const arbKey: Arbitrary<TensorData> = arbTensorData({ shape: [2], dtype: "u32", elements: bits, views: true });

/** A sample of an op that draws numbers from one key. */
function drawing<P>(
  params: (held: readonly DType[]) => Arbitrary<P>,
  call: (key: Tensor) => unknown,
  ...refused: Arbitrary<Refusal>[]
): Sample<P> {
  return {
    calls: (held) => compose((draw) => callOf([draw(arbKey)], draw(params(held)))),
    accuracy: { kind: "exact" },
    smooth: null,
    refused: oneOf(
      refuse(DTypeError, [plain([2])], call),
      refuse(ShapeError, [plain([3], "u32")], call),
      refuse(ShapeError, [plain([1, 2], "u32")], call),
      ...refused,
    ),
  };
}

const shape = shapes({ large: 5000 });
const threshold = oneOf(integer(0, 2 ** 31), elementOf(0, 2 ** 31, 2 ** 30));
/** Bounds of whole numbers: narrow ones and the whole of i32. */
const bounds = oneOf(
  compose((draw) => ({ min: draw(integer(-1000, 1000)), range: draw(integer(1, 1000)) })),
  compose((draw) => ({ min: -(2 ** 31), range: draw(elementOf(2 ** 32, 2 ** 32 - 1, 2 ** 31)) })),
);

/** Samples of random numbers. */
export const randomness = {
  split: drawing<ParamsOf<typeof random.splitOp>>(
    () => integer(1, 300).map((count) => ({ count })),
    (key) => random.split(key),
    refuse(ValueError, [plain([2], "u32")], (key) => random.split(key, 0)),
    refuse(ValueError, [plain([2], "u32")], (key) => random.split(key, 1.5)),
  ),
  foldIn: {
    calls: () =>
      compose((draw) => {
        const dtype = draw(elementOf("i32", "u32"));
        return callOf([draw(arbKey), draw(arbInput([], dtype))], {});
      }),
    accuracy: { kind: "exact" },
    smooth: null,
    refused: oneOf(
      refuse(ShapeError, [plain([2], "u32"), plain([1], "i32")], random.foldIn),
      refuse(DTypeError, [plain([2], "u32"), plain([])], random.foldIn),
      refuse(DTypeError, [plain([2]), plain([], "i32")], random.foldIn),
      refuse(ValueError, [plain([2], "u32")], (key) => random.foldIn(key, 0.5)),
      refuse(ValueError, [plain([2], "u32")], (key) => random.foldIn(key, 2 ** 32)),
    ),
  } satisfies Sample<Record<never, never>>,
  uniform: drawing<ParamsOf<typeof random.uniformOp>>(
    (held) =>
      compose((draw) => {
        const min = f(draw(float({ min: -8, max: 8 }))), range = f(draw(float({ min: 0.125, max: 8 })));
        const unit = draw(boolean());
        return { shape: draw(shape), dtype: draw(typeOf(held, floats)), min: unit ? 0 : min, range: unit ? 1 : range };
      }),
    (key) => random.uniform(key, [2]),
    refuse(ValueError, [plain([2], "u32")], (key) => random.uniform(key, [2], { min: 1, max: 1 })),
    refuse(ValueError, [plain([2], "u32")], (key) => random.uniform(key, [2], { min: NaN })),
    refuse(ValueError, [plain([2], "u32")], (key) => random.uniform(key, [2], { max: Infinity })),
    refuse(DTypeError, [plain([2], "u32")], (key) => random.uniform(key, [2], { dtype: "i32" })),
    refuse(ShapeError, [plain([2], "u32")], (key) => random.uniform(key, [-2])),
  ),
  randn: {
    ...drawing<ParamsOf<typeof random.randnOp>>(
      () => constant({ shape: [], dtype: "f32" }),
      (key) => random.randn(key, [2]),
      refuse(DTypeError, [plain([2], "u32")], (key) => random.randn(key, [2], { dtype: "bool" })),
      refuse(ShapeError, [plain([2], "u32")], (key) => random.randn(key, [1.5])),
    ),
    calls: (held) =>
      compose((draw) => {
        const table = draw(given(Array.from(normalTable()), [32, 8], "i32"));
        return callOf([draw(arbKey), table], { shape: draw(shape), dtype: draw(typeOf(held, floats)) });
      }),
  } satisfies Sample<ParamsOf<typeof random.randnOp>>,
  randint: drawing<ParamsOf<typeof random.randintOp>>(
    () => compose((draw) => ({ shape: draw(shape), ...draw(bounds) })),
    (key) => random.randint(key, [2], { max: 3 }),
    refuse(ValueError, [plain([2], "u32")], (key) => random.randint(key, [2], { max: 0 })),
    refuse(ValueError, [plain([2], "u32")], (key) => random.randint(key, [2], { max: 2.5 })),
    refuse(ValueError, [plain([2], "u32")], (key) => random.randint(key, [2], { max: 2 ** 31 + 1 })),
  ),
  bernoulli: drawing<ParamsOf<typeof random.bernoulliOp>>(
    () => compose((draw) => ({ shape: draw(shape), threshold: draw(threshold) })),
    (key) => random.bernoulli(key, [2]),
    refuse(ValueError, [plain([2], "u32")], (key) => random.bernoulli(key, [2], { p: 1.5 })),
    refuse(ValueError, [plain([2], "u32")], (key) => random.bernoulli(key, [2], { p: NaN })),
  ),
  dropout: {
    calls: (held) =>
      compose((draw) => {
        const dtype = draw(typeOf(held, floats)), p = draw(float({ min: 0.01, max: 0.95 }));
        const params = { threshold: random.thresholdOf("dropout", p), scale: 1 / (1 - p) };
        return callOf([draw(arbKey), draw(arbInput(draw(shape), dtype))], params);
      }),
    accuracy: { kind: "each", naive: [random.dropoutOp.reference] },
    smooth: compose((draw) => {
      const params = { threshold: 2 ** 30, scale: 2 };
      return callOf([draw(arbKey), draw(arbSmooth(draw(smallShapes())))], params);
    }),
    refused: oneOf(
      refuse(ValueError, [plain([2], "u32"), plain([3])], (key, x) => random.dropout(x, { p: 1, key })),
      refuse(ValueError, [plain([2], "u32"), plain([3])], (key, x) => random.dropout(x, { p: -0.1, key })),
      refuse(ShapeError, [plain([4], "u32"), plain([3])], (key, x) => random.dropout(x, { p: 0.5, key })),
      refuse(ShapeError, [plain([4], "u32"), plain([3], "i32")], (key, x) => random.dropout(x, { p: 0.5, key })),
      refuse(DTypeError, [plain([2]), plain([3])], (key, x) => random.dropout(x, { p: 0.5, key })),
    ),
  } satisfies Sample<ParamsOf<typeof random.dropoutOp>>,
};
