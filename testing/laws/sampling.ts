/** Samples of the choice of tokens. */
import type { DType } from "../../tensor/dtype.ts";
import { DTypeError, ShapeError, ValueError } from "../../tensor/errors.ts";
import { type SampleParams, sampleTokens } from "../../tensor/sample.ts";
import type { Tensor } from "../../tensor/tensor.ts";
import { Arbitrary, compose, constant, float, integer, oneOf } from "../arbitrary.ts";
import { arbTensorData } from "../tensors.ts";
import { arbInput, callOf, floats, plain, refuse, type Sample, typeOf } from "./sample.ts";

/** A number that does nothing, or one of a range. */
const sometimes = (nothing: number, min: number, max: number): Arbitrary<number> =>
  oneOf(constant(nothing), float({ min, max }));

/** Whole numbers as i32. */
const whole = (shape: readonly number[], min: number, max: number) =>
  arbTensorData({ shape, dtype: "i32", elements: integer(min, max), views: true });

const bits = new Arbitrary((source) => source.draw(2 ** 32 - 1));
const key = arbTensorData({ shape: [2], dtype: "u32", elements: bits, views: true });

const calls = (held: readonly DType[]) =>
  compose((draw) => {
    const batch = draw(integer(0, 3)), size = draw(oneOf(integer(1, 70), integer(1, 1500))), room = draw(integer(0, 9));
    // Draws, so that no sum of odds is a share exactly, and no infinite score, whose odds are no number.
    const scores = arbInput([batch, size], draw(typeOf(held, floats)), { specials: [NaN, -Infinity, 0, -0] });
    return callOf([
      draw(whole([batch, room], -1, size)),
      draw(whole([batch], -2, room)),
      draw(whole([batch], 0, 1)),
      draw(scores),
      draw(key),
      draw(whole([draw(integer(0, 3))], -1, size)),
    ], {
      repetitionPenalty: draw(sometimes(1, 0.5, 2)),
      temperature: draw(sometimes(0, 0.3, 2)),
      topK: draw(oneOf(constant(0), integer(1, size + 2))),
      topP: draw(sometimes(1, 0.02, 0.99)),
      minP: draw(sometimes(0, 0.01, 0.9)),
      pad: draw(integer(-1, 9)),
    });
  });

const plainly = { repetitionPenalty: 1, temperature: 1, topK: 0, topP: 1, minP: 0, pad: 0 };
const by =
  (params: Partial<SampleParams> = {}) =>
  (ids: Tensor, places: Tensor, finished: Tensor, logits: Tensor, key: Tensor, stops: Tensor) =>
    sampleTokens(logits, { ids, places, finished }, { ...plainly, ...params, key, stops });
const i32 = (...shape: number[]) => plain(shape, "i32"), seed = plain([2], "u32");

/** Samples of the choice of tokens. */
export const sampling = {
  sample: {
    calls,
    accuracy: { kind: "exact" },
    smooth: null,
    refused: oneOf(
      refuse(ShapeError, [i32(3, 4), i32(2), i32(2), plain([2, 5]), seed, i32(1)], by()),
      refuse(ShapeError, [i32(2, 4), i32(3), i32(2), plain([2, 5]), seed, i32(1)], by()),
      refuse(ShapeError, [i32(2, 4), i32(2), i32(1), plain([2, 5]), seed, i32(1)], by()),
      refuse(ShapeError, [i32(2, 4), i32(2), i32(2), plain([2, 0]), seed, i32(1)], by()),
      refuse(ShapeError, [i32(2, 4), i32(2), i32(2), plain([2, 1, 5]), seed, i32(1)], by()),
      refuse(ShapeError, [i32(2, 4), i32(2), i32(2), plain([2, 5]), plain([3], "u32"), i32(1)], by()),
      refuse(DTypeError, [plain([2, 4]), i32(2), i32(2), plain([2, 5]), seed, i32(1)], by()),
      refuse(DTypeError, [i32(2, 4), i32(2), i32(2), i32(2, 5), seed, i32(1)], by()),
      refuse(DTypeError, [i32(2, 4), i32(2), i32(2), plain([2, 5]), i32(2), i32(1)], by()),
      ...[
        { temperature: -1 },
        { temperature: NaN },
        { topK: 1.5 },
        { topK: -1 },
        { topP: 0 },
        { topP: 1.1 },
        { minP: -0.1 },
        { minP: NaN },
        { repetitionPenalty: 0 },
      ].map((params) => refuse(ValueError, [i32(2, 4), i32(2), i32(2), plain([2, 5]), seed, i32(1)], by(params))),
    ),
  } satisfies Sample<SampleParams>,
};
