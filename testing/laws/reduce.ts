/** Samples of reductions, running sums, topK and softmax. */
import { DTypeError, ShapeError, ValueError } from "../../tensor/errors.ts";
import { logSoftmax, softmax } from "../../tensor/norm.ts";
import type { NdArray } from "../../tensor/op.ts";
import * as r from "../../tensor/reduce.ts";
import { type Shape, sizeOf, stridesOf } from "../../tensor/shape.ts";
import type { Tensor } from "../../tensor/tensor.ts";
import { Arbitrary, boolean, compose, elementOf, integer, oneOf } from "../arbitrary.ts";
import {
  type Accuracy,
  apart,
  arbInput,
  arbSmooth,
  type Call,
  callOf,
  floats,
  numbers,
  plain,
  refuse,
  refuseTypes,
  type Sample,
  shapes,
  shapesWithAxis,
  smallShapes,
  typeOf,
  type ValueOptions,
} from "./sample.ts";
import { f } from "./elementwise.ts";

/** Shapes of which one in forty has an axis long enough that its reduction is split in two passes. */
function longShapes(minRank = 0): Arbitrary<number[]> {
  const usual = shapes({ minRank });
  const long = integer(16384, 20000).chain((n) => elementOf<number[]>([n], [1, n], [n, 2], [2, n, 1], [n - n % 4]));
  return new Arbitrary((source) => (source.draw(39) === 39 ? long : usual).draw(source));
}

/** Some of the axes, in order. */
function someAxes(shape: Shape): Arbitrary<number[]> {
  return compose((draw) => {
    const kind = draw(elementOf("last", "some", "all", "first"));
    if (shape.length === 0 || kind === "all") return [...shape.keys()];
    if (kind === "last") return [shape.length - 1];
    return kind === "first" ? [0] : [...shape.keys()].filter(() => draw(boolean()));
  });
}

/** The elements of dense `x` that reduce to each result. */
function groupsOf(x: NdArray, axes: readonly number[]): number[][] {
  const kept = x.shape.map((n, i) => axes.includes(i) ? 1 : n), steps = stridesOf(kept), from = stridesOf(x.shape);
  const groups: number[][] = Array.from({ length: sizeOf(kept) }, () => []);
  for (let i = 0; i < x.data.length; i++) {
    let at = 0;
    for (let d = 0; d < kept.length; d++) if (kept[d] !== 1) at += Math.floor(i / from[d]) % x.shape[d] * steps[d];
    groups[at].push(x.data[i]);
  }
  return groups;
}

/** Adds numbers up in f32. */
export type Sum = (values: readonly number[]) => number;

/** Σ in f32, one after another: a sum has no order, so from either end, and from the largest down. */
export const naiveSums: readonly Sum[] = [
  (values) => values.reduce((sum, x) => f(sum + x), 0),
  (values) => values.toSorted((a, b) => Math.abs(b) - Math.abs(a)).reduce((sum, x) => f(sum + x), 0),
  (values) => values.reduceRight((sum, x) => f(sum + x), 0),
];

const logSumExpBy = (sum: Sum) => (values: readonly number[]): number => {
  const max = values.reduce((a, b) => Math.max(a, b), -Infinity);
  if (!Number.isFinite(max)) return max;
  return f(max + f(Math.log(sum(values.map((x) => f(Math.exp(f(x - max))))))));
};

const worst = (naive: (sum: Sum) => (group: number[]) => number): Accuracy<r.ReduceParams> => ({
  kind: "worst",
  naive: naiveSums.map((sum) => ([x], { axes }, y) =>
    groupsOf(x, axes).forEach((group, i) => y.data[i] = naive(sum)(group))
  ),
});

interface ReductionOptions {
  readonly types?: typeof numbers;
  readonly values?: ValueOptions;
  /** Every reduced axis has an element. */
  readonly needsOne?: true;
}

function reduction(
  op: (x: Tensor, options: r.ReduceOptions) => Tensor,
  accuracy: Accuracy<r.ReduceParams>,
  { types = numbers, values = {}, needsOne }: ReductionOptions = {},
): Sample<r.ReduceParams> {
  const params = (shape: Shape) => compose((draw) => ({ axes: draw(someAxes(shape)), keepDims: draw(boolean()) }));
  const filled = (shape: Shape, { axes }: r.ReduceParams) =>
    needsOne ? shape.map((n, i) => axes.includes(i) ? Math.max(1, n) : n) : shape;
  const calls = (from: Arbitrary<number[]>, input: (shape: Shape) => Arbitrary<Call<unknown>["inputs"][number]>) =>
    compose((draw): Call<r.ReduceParams> => {
      const shape = draw(from), chosen = draw(params(shape));
      return callOf([draw(input(filled(shape, chosen)))], chosen);
    });
  return {
    calls: (held) =>
      typeOf(held, types).chain((dtype) => calls(longShapes(), (shape) => arbInput(shape, dtype, values))),
    accuracy,
    smooth: calls(smallShapes({ zeros: false }), (shape) => arbSmooth(shape, [-2, 2], !needsOne))
      .filter(({ inputs: [x] }) => !needsOne || apart(x.data)),
    refused: oneOf(
      refuse(ShapeError, [plain([2, 3])], (x) => op(x, { axis: 2 })),
      refuse(ShapeError, [plain([2, 3])], (x) => op(x, { axis: -3 })),
      refuse(ShapeError, [plain([2, 3])], (x) => op(x, { axis: [0, -2] })),
      refuse(ShapeError, [plain([2, 3])], (x) => op(x, { axis: 0.5 })),
      refuse(ShapeError, [plain([], "i32")], (x) => op(x, { axis: 0 })),
      ...(needsOne
        ? [
          refuse(ShapeError, [plain([2, 0])], (x) => op(x, { axis: 1 })),
          refuse(ShapeError, [plain([0])], (x) => op(x, {})),
          refuseTypes(["bool"], DTypeError, (x) => op(x, {})),
        ]
        : []),
    ),
  };
}

function search(op: (x: Tensor, options: r.ArgOptions) => Tensor): Sample<{ axis: number; keepDims: boolean }> {
  return {
    calls: (held) =>
      compose((draw) => {
        const [drawn, axis] = draw(longShapes(1).with((shape) => elementOf(...shape.keys())));
        const shape = drawn.with(axis, Math.max(1, drawn[axis]));
        const coarse = draw(boolean()); // with many equal elements, or few
        const range = coarse ? [-2, 2] as const : [-8, 8] as const;
        return callOf([draw(arbInput(shape, draw(typeOf(held, numbers)), { range }))], {
          axis,
          keepDims: draw(boolean()),
        });
      }),
    accuracy: { kind: "exact" },
    smooth: null,
    refused: oneOf(
      refuse(ShapeError, [plain([2, 0])], (x) => op(x, { axis: 1 })),
      refuse(ShapeError, [plain([0])], (x) => op(x, {})),
      refuse(ShapeError, [plain([2, 3])], (x) => op(x, { axis: 2 })),
      refuseTypes(["bool"], DTypeError, (x) => op(x, {})),
    ),
  };
}

function alongAxis(
  op: (x: Tensor, options: { axis?: number }) => Tensor,
  naive: (sum: Sum) => (group: number[]) => number[],
): Sample<{ axis: number }> {
  return {
    calls: (held) =>
      compose((draw) => {
        const [shape, axis] = draw(shapesWithAxis());
        return callOf([draw(arbInput(shape, draw(typeOf(held, floats)), { range: [-20, 20] }))], { axis });
      }),
    accuracy: {
      kind: "worst",
      naive: naiveSums.map((sum) => ([x], { axis }, y) => writeGroups(y, axis, groupsOf(x, [axis]).map(naive(sum)))),
    },
    smooth: shapesWithAxis({ maxSize: 10, large: 10, maxRank: 3 }).chain(([shape, axis]) =>
      arbSmooth(shape).map((x) => callOf([x], { axis }))
    ),
    refused: oneOf(
      refuse(ShapeError, [plain([2, 3])], (x) => op(x, { axis: 2 })),
      refuse(ShapeError, [plain([2, 3])], (x) => op(x, { axis: -3 })),
      refuse(ShapeError, [plain([])], (x) => op(x, {})),
    ),
  };
}

/** The reverse of {@linkcode groupsOf} for one axis. */
function writeGroups(y: NdArray, axis: number, groups: readonly number[][]): void {
  const inner = sizeOf(y.shape.slice(axis + 1)), length = y.shape[axis];
  groups.forEach((group, i) =>
    group.forEach((value, j) => y.data[(Math.floor(i / inner) * length + j) * inner + i % inner] = value)
  );
}

function naiveRunning(group: readonly number[]): number[] {
  let sum = 0;
  return group.map((x) => sum = f(sum + x));
}

/** Samples of reductions, running sums, topK and softmax. */
export const reduce = {
  sum: reduction(r.sum, worst((sum) => sum)),
  mean: reduction(r.mean, worst((sum) => (group) => f(sum(group) / group.length)), { types: floats }),
  max: reduction(r.max, { kind: "each", naive: [r.maxOp.reference] }, { needsOne: true }),
  min: reduction(r.min, { kind: "each", naive: [r.minOp.reference] }, { needsOne: true }),
  logsumexp: reduction(r.logsumexp, worst(logSumExpBy), { types: floats, values: { range: [-90, 90] } }),
  argmax: search(r.argmax),
  argmin: search(r.argmin),
  cumsum: {
    calls: (held) =>
      compose((draw) => {
        const [shape, axis] = draw(longShapes(1).with((shape) => elementOf(...shape.keys())));
        return callOf([draw(arbInput(shape, draw(typeOf(held, numbers))))], { axis, reverse: draw(boolean()) });
      }),
    accuracy: {
      kind: "worst",
      naive: [([x], { axis, reverse }, y) => {
        const flip = (group: number[]) => reverse ? [...group].reverse() : group;
        writeGroups(y, axis, groupsOf(x, [axis]).map((group) => flip(naiveRunning(flip(group)))));
      }],
    },
    smooth: shapesWithAxis({ maxSize: 10, large: 10, maxRank: 3 }).chain(([shape, axis]) =>
      compose((draw) => callOf([draw(arbSmooth(shape))], { axis, reverse: draw(boolean()) }))
    ),
    refused: oneOf(
      refuse(ShapeError, [plain([2, 3])], (x) => r.cumsum(x, { axis: 2 })),
      refuse(ShapeError, [plain([])], (x) => r.cumsum(x)),
      refuseTypes(["bool"], DTypeError, (x) => r.cumsum(x)),
    ),
  } satisfies Sample<{ axis: number; reverse: boolean }>,
  topK: {
    calls: (held) =>
      compose((draw) => {
        const shape = draw(longShapes(1)), n = shape.at(-1)!;
        const coarse = draw(boolean());
        const range = coarse ? [-2, 2] as const : [-8, 8] as const;
        return callOf([draw(arbInput(shape, draw(typeOf(held, numbers)), { range }))], {
          k: draw(integer(0, Math.min(n, 12))),
        });
      }),
    accuracy: { kind: "each", naive: [r.topKOp.reference] },
    smooth: smallShapes({ minRank: 1 }).chain((shape) =>
      compose((draw) => callOf([draw(arbSmooth(shape, [-2, 2], false))], { k: draw(integer(0, shape.at(-1)!)) }))
    ).filter(({ inputs: [x] }) => apart(x.data)),
    refused: oneOf(
      refuse(ValueError, [plain([2, 3])], (x) => r.topK(x, 4)),
      refuse(ValueError, [plain([2, 3])], (x) => r.topK(x, -1)),
      refuse(ValueError, [plain([2, 3])], (x) => r.topK(x, 1.5)),
      refuse(ShapeError, [plain([])], (x) => r.topK(x, 0)),
      refuseTypes(["bool"], DTypeError, (x) => r.topK(x, 1)),
    ),
  } satisfies Sample<{ k: number }>,
  softmax: alongAxis(softmax, (sum) => (group) => {
    const max = group.reduce((a, b) => Math.max(a, b), -Infinity);
    const powers = group.map((x) => f(Math.exp(f(x - max))));
    const total = sum(powers);
    return powers.map((p) => f(p / total));
  }),
  logSoftmax: alongAxis(logSoftmax, (sum) => (group) => {
    const lse = logSumExpBy(sum)(group);
    return group.map((x) => f(x - lse));
  }),
};
