/** Samples of creation and movement: nothing is computed, so results are exact. */
import { arange, full } from "../../tensor/create.ts";
import type { DType } from "../../tensor/dtype.ts";
import { DTypeError, ShapeError, ValueError } from "../../tensor/errors.ts";
import * as move from "../../tensor/movement.ts";
import type { ParamsOf } from "../../tensor/op.ts";
import { type Shape, sizeOf } from "../../tensor/shape.ts";
import { type Arbitrary, compose, elementOf, integer, oneOf } from "../arbitrary.ts";
import { arbTensorData, type TensorData } from "../tensors.ts";
import {
  arbAny,
  arbSmooth,
  type Call,
  callOf,
  clashing,
  everyType,
  floats,
  numbers,
  plain,
  type Refusal,
  refuse,
  type Sample,
  shapes,
  shapesWithAxis,
  smallShapes,
  typeOf,
  values,
} from "./sample.ts";
import { f } from "./elementwise.ts";

/** A sample of an op that takes any one tensor and moves its elements. */
function moving<P>(
  params: (shape: Shape) => Arbitrary<P>,
  refused: Arbitrary<Refusal>,
  minRank = 0,
): Sample<P> {
  const calls = (shapes: Arbitrary<number[]>, input: (shape: Shape) => Arbitrary<TensorData>) =>
    compose((draw): Call<P> => {
      const shape = draw(shapes);
      return callOf([draw(input(shape))], draw(params(shape)));
    });
  return {
    calls: (held) =>
      typeOf(held, everyType).chain((dtype) => calls(shapes({ minRank }), (shape) => arbAny(shape, dtype))),
    accuracy: { kind: "exact" },
    smooth: calls(smallShapes({ minRank }), (shape) => arbSmooth(shape)),
    refused,
  };
}

/** Another shape of the same size. */
function regrouped(shape: Shape): Arbitrary<number[]> {
  const size = sizeOf(shape);
  return compose((draw) => {
    if (size === 0) return [...shape].reverse();
    const out: number[] = [];
    let left = size;
    while (left > 1 && out.length < 3) {
      const divisors = Array.from({ length: left }, (_, i) => i + 1).filter((n) => left % n === 0);
      const n = draw(elementOf(...divisors));
      out.push(n);
      left /= n;
    }
    if (left > 1) out.push(left);
    if (draw(integer(0, 3)) === 1) out.splice(draw(integer(0, out.length)), 0, 1);
    return out;
  });
}

function shuffled(n: number): Arbitrary<number[]> {
  return compose((draw) => {
    const rest = Array.from({ length: n }, (_, i) => i);
    return rest.map(() => 0).map(() => rest.splice(draw(integer(0, rest.length - 1)), 1)[0]);
  });
}

const some = (shape: Shape) => plain(shape);

/** Samples of creation and movement. */
export const movement = {
  full: {
    calls: (held) =>
      compose((draw) => {
        const dtype = draw(typeOf(held, everyType));
        const value = draw(arbAny([], dtype)).data[0];
        return callOf([], { shape: draw(shapes()), dtype, value });
      }),
    accuracy: { kind: "exact" },
    smooth: null,
    refused: oneOf(
      refuse(ShapeError, [], () => full([2, -1], 0)),
      refuse(ShapeError, [], () => full([1.5], 0)),
      refuse(ValueError, [], () => full([2], 0.5, { dtype: "i32" })),
      refuse(ValueError, [], () => full([2], -1, { dtype: "u32" })),
      refuse(DTypeError, [], () => full([2], 0, { dtype: "f24" as DType })),
    ),
  } satisfies Sample<{ shape: Shape; dtype: DType; value: number }>,
  arange: {
    calls: (held) =>
      compose((draw) => {
        const dtype = draw(typeOf(held, numbers));
        const length = draw(integer(0, 300));
        if (floats.includes(dtype)) {
          return callOf([], {
            length,
            start: draw(values({ specials: [] })),
            step: draw(values({ specials: [] })),
            dtype,
          });
        }
        const start = draw(integer(0, 1000)), step = draw(integer(dtype === "u32" ? 0 : -5, 5)) || 1;
        return callOf([], { length, start: dtype === "i32" ? start - 500 : start, step, dtype });
      }),
    accuracy: {
      kind: "worst",
      naive: [(_, { start, step }, y) => {
        for (let i = 0; i < y.data.length; i++) y.data[i] = f(start) + f(i * f(step));
      }],
    },
    smooth: null,
    refused: oneOf(
      refuse(ValueError, [], () => arange(0, 5, { step: 0 })),
      refuse(ValueError, [], () => arange(NaN)),
      refuse(ValueError, [], () => arange(0, Infinity)),
      refuse(DTypeError, [], () => arange(0, 2, { dtype: "bool" })),
      refuse(ValueError, [], () => arange(-1, 2, { dtype: "u32" })),
    ),
  } satisfies Sample<{ length: number; start: number; step: number; dtype: DType }>,
  reshape: moving<ParamsOf<typeof move.reshapeOp>>(
    (shape) => regrouped(shape).map((shape) => ({ shape })),
    oneOf(
      refuse(ShapeError, [some([2, 3])], (x) => move.reshape(x, [7])),
      refuse(ShapeError, [some([2, 3])], (x) => move.reshape(x, [-1, 4])),
      refuse(ShapeError, [some([2, 3])], (x) => move.reshape(x, [-1, -1])),
      refuse(ShapeError, [some([2, 3])], (x) => move.reshape(x, [1.5, 4])),
      refuse(ShapeError, [some([2, 3])], (x) => move.squeeze(x, { axis: 0 })),
      refuse(ShapeError, [some([2, 3])], (x) => move.expandDims(x, 4)),
    ),
  ),
  permute: moving<ParamsOf<typeof move.permuteOp>>(
    (shape) => shuffled(shape.length).map((axes) => ({ axes })),
    oneOf(
      refuse(ShapeError, [some([2, 3])], (x) => move.permute(x, [0])),
      refuse(ShapeError, [some([2, 3])], (x) => move.permute(x, [0, 0])),
      refuse(ShapeError, [some([2, 3])], (x) => move.permute(x, [0, 2])),
      refuse(ShapeError, [some([3])], (x) => move.transpose(x)),
    ),
  ),
  broadcastTo: moving<ParamsOf<typeof move.broadcastToOp>>(
    (shape) =>
      compose((draw) => {
        const lead = draw(elementOf([], [2], [0], [3, 1]));
        return { shape: [...lead, ...shape.map((n) => n === 1 ? draw(integer(0, 3)) : n)] };
      }),
    oneOf(
      clashing().chain(([a, b]) => refuse(ShapeError, [some(a)], (x) => move.broadcastTo(x, b))),
      refuse(ShapeError, [some([2, 3])], (x) => move.broadcastTo(x, [3])),
      refuse(ShapeError, [some([1, 3])], (x) => move.broadcastTo(x, [-1, 3])),
    ),
  ),
  slice: moving<ParamsOf<typeof move.sliceOp>>(
    (shape) =>
      compose((draw) => {
        const begin = shape.map((n) => draw(integer(0, n)));
        const end = shape.map((n, i) => draw(elementOf(n, draw(integer(0, n)), begin[i])));
        return { begin, end, strides: shape.map(() => draw(integer(1, 3))) };
      }),
    oneOf(
      refuse(ShapeError, [some([2, 3])], (x) => move.slice(x, [0, 0, 0])),
      refuse(ValueError, [some([2, 3])], (x) => move.slice(x, [0.5])),
      refuse(ValueError, [some([2, 3])], (x) => move.slice(x, [0], [2], { strides: [0] })),
      refuse(ValueError, [some([2, 3])], (x) => move.slice(x, [0], [2], { strides: [-1] })),
    ),
  ),
  pad: {
    ...moving<ParamsOf<typeof move.padOp>>(
      (shape) =>
        compose((draw) => ({
          before: shape.map(() => draw(integer(0, 3))),
          after: shape.map(() => draw(integer(0, 3))),
          interior: shape.map(() => draw(elementOf(0, 0, 1, 2))),
          value: draw(elementOf(0, 1)),
        })),
      oneOf(
        refuse(ShapeError, [some([2, 3])], (x) => move.pad(x, [[1, 1]])),
        refuse(ValueError, [some([2])], (x) => move.pad(x, [[-1, 1]])),
        refuse(ValueError, [some([2])], (x) => move.pad(x, [[0, 0.5]])),
        refuse(ValueError, [plain([2], "i32")], (x) => move.pad(x, [[0, 1]], { value: 0.5 })),
        refuse(ValueError, [plain([2], "u32")], (x) => move.pad(x, [[0, 1]], { value: -1 })),
      ),
    ),
  },
  concat: {
    calls: (held) =>
      typeOf(held, everyType).chain((dtype) => concatCalls(shapesWithAxis(), (shape) => arbAny(shape, dtype))),
    accuracy: { kind: "exact" },
    smooth: concatCalls(shapesWithAxis({ maxSize: 6, large: 6, maxRank: 3 }), (shape) => arbSmooth(shape)),
    refused: oneOf(
      refuse(ShapeError, [], () => move.concat([])),
      refuse(ShapeError, [], () => move.stack([])),
      refuse(ShapeError, [some([2, 3]), some([2, 4])], (a, b) => move.concat([a, b])),
      refuse(ShapeError, [plain([2, 3], "f16"), some([2, 4])], (a, b) => move.concat([a, b])),
      refuse(ShapeError, [some([2, 3]), some([6])], (a, b) => move.concat([a, b])),
      refuse(ShapeError, [some([2, 3]), some([2, 3])], (a, b) => move.concat([a, b], { axis: 2 })),
      refuse(ShapeError, [some([2, 3]), some([2, 4])], (a, b) => move.stack([a, b])),
      refuse(DTypeError, [plain([2], "i32"), plain([2], "u32")], (a, b) => move.concat([a, b])),
    ),
  } satisfies Sample<{ axis: number }>,
};

function concatCalls(
  shapes: Arbitrary<[shape: number[], axis: number]>,
  input: (shape: Shape) => Arbitrary<TensorData>,
): Arbitrary<Call<{ axis: number }>> {
  return compose((draw) => {
    const [shape, axis] = draw(shapes);
    const lengths = Array.from({ length: draw(integer(1, 4)) }, () => draw(integer(0, Math.max(3, shape[axis]))));
    return callOf(lengths.map((n) => draw(input(shape.with(axis, n)))), { axis });
  });
}

/** Indices of an axis, some of them outside it. */
export function arbIndices(shape: Shape, length: number, outside = true): Arbitrary<TensorData> {
  return elementOf("i32" as DType, "u32" as DType).chain((dtype) => {
    const beyond = outside ? 2 : 0;
    return arbTensorData({
      shape,
      dtype,
      min: dtype === "u32" ? 0 : -beyond,
      max: Math.max(0, length - 1 + beyond),
      views: true,
    });
  });
}
