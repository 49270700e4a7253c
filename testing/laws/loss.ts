/** Samples of the losses and their derivatives. */
import type { DType } from "../../tensor/dtype.ts";
import { DTypeError, IndexError, ShapeError, ValueError } from "../../tensor/errors.ts";
import { crossEntropy, type CrossEntropyOptions, linearCrossEntropy, type RowLoss } from "../../tensor/loss.ts";
import { accumulatorOf } from "../../tensor/norm.ts";
import type { NdArray } from "../../tensor/op.ts";
import type { Shape } from "../../tensor/shape.ts";
import type { Tensor } from "../../tensor/tensor.ts";
import { type Arbitrary, compose, constant, elementOf, integer, oneOf } from "../arbitrary.ts";
import { arbTensorData, type TensorData } from "../tensors.ts";
import {
  type Accuracy,
  arbInput,
  arbSmooth,
  type Call,
  callOf,
  few,
  floats,
  given,
  type Naive,
  onUnits,
  plain,
  refuse,
  type Sample,
  typeOf,
} from "./sample.ts";
import { f } from "./elementwise.ts";
import { naiveSums, type Sum } from "./reduce.ts";

type Input = (shape: Shape) => Arbitrary<TensorData>;

const ignored = -1;
const options: Arbitrary<RowLoss> = compose((draw) => ({
  ignoreIndex: ignored,
  labelSmoothing: draw(elementOf(0, 0, 0.1)),
  zLoss: draw(elementOf(0, 0, 1e-2)),
  softcap: draw(elementOf(0, 0, 5)),
}));

/** Labels of V classes, some ignored, and with `outside` some that are no class. */
function arbLabels(N: number, V: number, outside: boolean): Arbitrary<TensorData> {
  const last = Math.max(0, V - 1) + (outside ? 1 : 0);
  const label = outside ? integer(-2, last) : integer(ignored, last);
  return arbTensorData({ shape: [N], dtype: "i32", elements: label, views: true });
}

interface Row {
  readonly loss: number;
  readonly lse: number;
  readonly slopes: number[];
}

/** tanh out of e^2x, in f32. */
const stepwiseTanh = (x: number) => f(1 - f(2 / f(f(Math.exp(f(2 * x))) + 1)));

/**
 * Loss, lse and slopes by the logits of one row, in f32; with `known`, the row's exact logits, lse comes from a forward
 * pass that was rounded otherwise, so that e^(z − lse) of a sure class is not 1 by luck.
 */
function naiveRow(logits: readonly number[], label: number, params: RowLoss, sum: Sum, known?: readonly number[]): Row {
  const { ignoreIndex, labelSmoothing, zLoss, softcap } = params, V = logits.length;
  const tanh = known ? stepwiseTanh : Math.tanh;
  const bent = softcap > 0 ? logits.map((x) => f(tanh(f(x / softcap)))) : [];
  const z = softcap > 0 ? bent.map((t) => f(t * softcap)) : logits;
  const max = z.reduce((a, b) => Math.max(a, b), -Infinity);
  const lse = V === 0
    ? -Infinity
    : known
    ? f(exactLse(known, params))
    : f(max + f(Math.log(sum(z.map((x) => f(Math.exp(f(x - max))))))));
  if (label === ignoreIndex) return { loss: 0, lse, slopes: z.map(() => 0) };
  const inside = label >= 0 && label < V, keep = f(1 - labelSmoothing), share = f(labelSmoothing / V);
  const smooth = labelSmoothing > 0 ? f(share * sum(z)) : 0;
  const loss = f(f(f(lse - f(keep * (inside ? z[label] : NaN))) - smooth) + f(f(f(zLoss) * lse) * lse));
  const weight = f(1 + f(f(2 * zLoss) * lse));
  const slopes = z.map((x, j) => {
    if (!inside) return NaN;
    const dz = f(f(f(f(Math.exp(f(x - lse))) * weight) - (j === label ? keep : 0)) - share);
    return softcap > 0 ? f(dz * f(1 - f(bent[j] * bent[j]))) : dz;
  });
  return { loss, lse, slopes };
}

/** Rows of logits: given, or products of hidden and weight. */
function logitsOf(hidden: NdArray, weight: NdArray | null, sum: Sum): number[][] {
  const [N, D] = hidden.shape;
  const row = (i: number) => Array.from(hidden.data.subarray(i * D, (i + 1) * D));
  if (weight === null) return Array.from({ length: N }, (_, i) => row(i));
  const [V] = weight.shape;
  return Array.from({ length: N }, (_, i) => {
    const h = row(i);
    return Array.from({ length: V }, (_, j) => sum(h.map((x, d) => f(x * weight.data[j * D + d]))));
  });
}

/** The same in f64. */
function exactLogitsOf({ shape: [N, D], data: h }: NdArray, { shape: [V], data: w }: NdArray): number[][] {
  const dot = (i: number, j: number) =>
    Array.from(h.subarray(i * D, (i + 1) * D)).reduce((sum, x, d) => sum + x * w[j * D + d], 0);
  return Array.from({ length: N }, (_, i) => Array.from({ length: V }, (_, j) => dot(i, j)));
}

/** dhidden and dweight from slopes by the logits. */
function pull(
  exactly: number[][],
  hidden: NdArray,
  weight: NdArray,
  sum: Sum,
  dhidden: NdArray,
  dweight: NdArray,
  units: boolean,
): void {
  const [N, D] = hidden.shape, [V] = weight.shape;
  const slopes = units ? exactly.map((row) => row.map((g) => onUnits(weight.dtype, g))) : exactly;
  for (let i = 0; i < N; i++) {
    for (let d = 0; d < D; d++) {
      dhidden.data[i * D + d] = sum(slopes[i].map((g, j) => f(g * weight.data[j * D + d])));
    }
  }
  for (let j = 0; j < V; j++) {
    for (let d = 0; d < D; d++) {
      dweight.data[j * D + d] = sum(slopes.map((row, i) => f(row[j] * hidden.data[i * D + d])));
    }
  }
}

type Make = (sum: Sum, apart: boolean, units: boolean) => Naive<RowLoss>;

const by = (make: Make, aparts = [false], units = false): Accuracy<RowLoss> => ({
  kind: "worst",
  naive: aparts.flatMap((apart) => naiveSums.map((sum) => make(sum, apart, units))),
});

const bothGradients: Make = (sum, apart, units) => ([dloss, x, w, labels], params, dx, dw) => {
  const known = apart ? exactLogitsOf(x, w) : [];
  const slopes = logitsOf(x, w, sum).map((z, i) =>
    naiveRow(z, labels.data[i], params, sum, known[i]).slopes.map((s) => f(dloss.data[i] * s))
  );
  pull(slopes, x, w, sum, dx, dw, units);
};

const scaledSum: Make = (sum, _, units) => ([x, w, labels, scale], params, total, dx, dw) => {
  const rows = logitsOf(x, w, sum).map((z, i) => naiveRow(z, labels.data[i], params, sum));
  total.data[0] = f(scale.data[0] * sum(rows.map(({ loss }) => loss)));
  pull(rows.map(({ slopes }) => slopes.map((s) => f(scale.data[0] * s))), x, w, sum, dx, dw, units);
};

const forward = (sum: Sum, linear: boolean): Naive<RowLoss> => (inputs, params, losses, lses) => {
  const [x, w] = inputs, labels = inputs[linear ? 2 : 1];
  logitsOf(x, linear ? w : null, sum).forEach((z, i) => {
    const { loss, lse } = naiveRow(z, labels.data[i], params, sum);
    losses.data[i] = loss;
    lses.data[i] = lse;
  });
};

const sizes = compose((draw) => ({
  N: draw(oneOf(integer(0, 6), integer(0, 40))),
  V: draw(oneOf(integer(1, 12), elementOf(1, 64, 65, 300))),
  D: draw(oneOf(integer(1, 9), elementOf(1, 16, 33))),
}));
/** Products of a few sizes on a device: each is a kernel of its own, or several. */
const builds = (held: readonly DType[]) => {
  const free = compose((draw) => ({ dtype: draw(typeOf(held, floats)), of: constant(draw(sizes)) }));
  return held.includes("f64") ? free : few(free, 24);
};
const smallSizes = compose((draw) => ({ N: draw(integer(1, 3)), V: draw(integer(1, 4)), D: draw(integer(1, 3)) }));
const logitsRange = { range: [-8, 8], specials: [0] } as const;
const weightRange = { range: [-2, 2], specials: [0] } as const;

function crossCalls(of: typeof sizes, input: Input, outside: boolean): Arbitrary<Call<RowLoss>> {
  return compose((draw) => {
    const { N, V } = draw(of);
    return callOf([draw(input([N, V])), draw(arbLabels(N, V, outside))], draw(options));
  });
}

function linearCalls(of: typeof sizes, input: Input, outside: boolean, scale?: Input): Arbitrary<Call<RowLoss>> {
  return compose((draw) => {
    const { N, V, D } = draw(of);
    const inputs = [draw(input([N, D])), draw(input([V, D])), draw(arbLabels(N, V, outside))];
    return callOf([...inputs, ...(scale === undefined ? [] : [draw(scale([]))])], draw(options));
  });
}

function exactLse(logits: readonly number[], { softcap }: RowLoss): number {
  const z = logits.map((x) => softcap > 0 ? softcap * Math.tanh(x / softcap) : x);
  const max = Math.max(-Infinity, ...z);
  return max + Math.log(z.reduce((sum, x) => sum + Math.exp(x - max), 0));
}

/** The lse that the forward pass gave, for calls of a derivative. */
function lseOf(logits: number[][], params: RowLoss, dtype: DType): Arbitrary<TensorData> {
  return given(logits.map((row) => exactLse(row, params)), [logits.length], dtype);
}

const exactSum: Sum = (values) => values.reduce((a, b) => a + b, 0);
const asArray = (x: TensorData): NdArray => ({ ...x, data: x.data, strides: [], offset: 0 });
const cotangent = (dtype: DType): Input => (shape) =>
  arbInput(shape, accumulatorOf(dtype), { range: [-1, 1], specials: [0] });

const wrongOptions: readonly CrossEntropyOptions[] = [
  { labelSmoothing: 1 },
  { labelSmoothing: NaN },
  { zLoss: -1 },
  { softcap: -1 },
  { softcap: Infinity },
  { ignoreIndex: 0.5 },
  { reduction: "max" as "mean" },
];
const labels = (...values: number[]) => given(values, [values.length], "i32");

const crossRefused = oneOf(
  ...wrongOptions.map((wrong) =>
    refuse(ValueError, [plain([2, 3]), labels(0, 1)], (x, t) => crossEntropy(x, t, wrong))
  ),
  refuse(IndexError, [plain([2, 3]), labels(0, 3)], (x, t) => crossEntropy(x, t)),
  refuse(IndexError, [plain([2, 3]), labels(-1, 2)], (x, t) => crossEntropy(x, t)),
  refuse(ShapeError, [plain([2, 3]), labels(0)], (x, t) => crossEntropy(x, t)),
  refuse(ShapeError, [plain([]), labels(0)], (x, t) => crossEntropy(x, t)),
  refuse(DTypeError, [plain([2, 3]), plain([2])], (x, t) => crossEntropy(x, t)),
);

const linear = (x: Tensor, w: Tensor, t: Tensor) => linearCrossEntropy(x, w, t);
const linearRefused = oneOf(
  ...wrongOptions.map((wrong) =>
    refuse(
      ValueError,
      [plain([2, 4]), plain([3, 4]), labels(0, 1)],
      (x, w, t) => linearCrossEntropy(x, w, t, wrong),
    )
  ),
  refuse(IndexError, [plain([2, 4]), plain([3, 4]), labels(0, 3)], linear),
  refuse(ShapeError, [plain([2, 4]), plain([4, 3]), labels(0, 1)], linear),
  refuse(ShapeError, [plain([2, 4], "bf16"), plain([4, 3]), labels(0, 1)], linear),
  refuse(ShapeError, [plain([2, 4]), plain([3, 4]), labels(0)], linear),
  refuse(DTypeError, [plain([2, 4], "i32"), plain([3, 4], "i32"), labels(0, 1)], linear),
  refuse(DTypeError, [plain([2, 4]), plain([3, 4]), plain([2])], linear),
);

/** Samples of the losses. */
export const losses = {
  crossEntropy: {
    calls: (held) =>
      typeOf(held, floats).chain((dtype) => crossCalls(sizes, (s) => arbInput(s, dtype, logitsRange), true)),
    accuracy: by((sum) => forward(sum, false)),
    smooth: crossCalls(smallSizes, (s) => arbSmooth(s), false),
    results: ([loss]) => [loss],
    once: true,
    refused: crossRefused,
  } satisfies Sample<RowLoss>,
  crossEntropyBackward: {
    calls: (held) =>
      compose((draw) => {
        const dtype = draw(typeOf(held, floats));
        const { inputs: [x, t], params } = draw(crossCalls(sizes, (s) => arbInput(s, dtype, logitsRange), true));
        const lse = lseOf(logitsOf(asArray(x), null, exactSum), params, accumulatorOf(dtype));
        return callOf([draw(cotangent(dtype)([x.shape[0]])), x, t, draw(lse)], params);
      }),
    accuracy: by(
      (sum, apart) => ([dloss, x, labels], params, dx) =>
        logitsOf(x, null, sum).forEach((z, i) =>
          naiveRow(z, labels.data[i], params, sum, apart ? z : undefined).slopes.forEach((s, j) =>
            dx.data[i * z.length + j] = f(dloss.data[i] * s)
          )
        ),
      [false, true],
    ),
    smooth: null,
    refused: null,
  } satisfies Sample<RowLoss>,
  linearCrossEntropy: {
    calls: (held) =>
      builds(held).chain(({ dtype, of }) => linearCalls(of, (s) => arbInput(s, dtype, weightRange), true)),
    accuracy: by((sum) => forward(sum, true)),
    smooth: linearCalls(smallSizes, (s) => arbSmooth(s), false),
    results: ([loss]) => [loss],
    once: true,
    refused: linearRefused,
  } satisfies Sample<RowLoss>,
  linearCrossEntropyBackward: {
    calls: (held) =>
      compose((draw) => {
        const { dtype, of } = draw(builds(held));
        const { inputs, params } = draw(linearCalls(of, (s) => arbInput(s, dtype, weightRange), true));
        const lse = lseOf(exactLogitsOf(asArray(inputs[0]), asArray(inputs[1])), params, accumulatorOf(dtype));
        return callOf([draw(cotangent(dtype)([inputs[0].shape[0]])), ...inputs, draw(lse)], params);
      }),
    accuracy: by(bothGradients, [false, true]),
    onUnits: by(bothGradients, [false, true], true),
    smooth: null,
    refused: null,
  } satisfies Sample<RowLoss>,
  linearCrossEntropySum: {
    calls: (held) =>
      builds(held).chain(({ dtype, of }) =>
        linearCalls(of, (s) => arbInput(s, dtype, weightRange), true, cotangent(dtype))
      ),
    accuracy: by(scaledSum),
    onUnits: by(scaledSum, [false], true),
    smooth: linearCalls(smallSizes, (s) => arbSmooth(s), false, () => given([0.75], [], "f64")),
    results: ([total]) => [total],
    constants: () => [3],
    once: true,
    refused: linearRefused,
  } satisfies Sample<RowLoss>,
  linearCrossEntropySumBackward: {
    calls: (held) =>
      compose((draw) => {
        const dtype = draw(typeOf(held, floats)), { N, V, D } = draw(sizes);
        const made = [[N, D], [V, D]].map((shape) => draw(arbInput(shape, dtype, weightRange)));
        return callOf([draw(cotangent(dtype)([])), ...made], {});
      }),
    accuracy: {
      kind: "each",
      naive: [
        ([g, ...made], _, ...outputs) =>
          made.forEach((x, n) => outputs[n].data.set(x.data.map((v) => f(g.data[0] * v)))),
      ],
    },
    smooth: null,
    refused: null,
  } satisfies Sample<Record<never, never>>,
};
