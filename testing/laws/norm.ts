/** Samples of the layers that scale rows, of gated units and of rotary embedding, with their derivatives. */
import { type DType, roundTo } from "../../tensor/dtype.ts";
import { erfOf, type GeluOptions } from "../../tensor/elementwise.ts";
import { DTypeError, IndexError, ShapeError, ValueError } from "../../tensor/errors.ts";
import { geglu, swiglu } from "../../tensor/gated.ts";
import { accumulatorOf, layerNorm, rmsNorm } from "../../tensor/norm.ts";
import type { NdArray, ParamsOf } from "../../tensor/op.ts";
import { rotaryEmbedding, type rotaryEmbeddingOp, rotaryInputs } from "../../tensor/rotary.ts";
import type { Shape } from "../../tensor/shape.ts";
import type { Tensor } from "../../tensor/tensor.ts";
import { type Arbitrary, boolean, compose, constant, elementOf, integer, oneOf } from "../arbitrary.ts";
import type { TensorData } from "../tensors.ts";
import { arbIndices } from "./movement.ts";
import {
  arbInput,
  arbSmooth,
  type Call,
  callOf,
  clashing,
  floats,
  given,
  type Naive,
  plain,
  type Refusal,
  refuse,
  type Sample,
  shapes,
  smallShapes,
  typeOf,
} from "./sample.ts";
import { f } from "./elementwise.ts";
import { naiveSums, type Sum } from "./reduce.ts";

type NoParams = Record<never, never>;
type Input = (shape: Shape) => Arbitrary<TensorData>;

const finite = { range: [-4, 4], specials: [0] } as const;
const inputOf = (dtype: DType): Input => (shape) => arbInput(shape, dtype, finite);
/** A statistic of rows: positive. */
const statistic = (dtype: DType): Input => (shape) => arbInput(shape, dtype, { range: [0.25, 2], specials: [] });
const rowShapes = shapes({ minRank: 1 });
const smallRows = smallShapes({ minRank: 1, zeros: false });
const epsilons = elementOf(1e-5, 1e-6, 1e-2);
/** For derivatives: with a smaller one, a row near 0 bends within the step of a difference. */
const gentle = elementOf(1e-2, 0.1);

/** Calls `body` with each row of dense tensors of x's shape: offsets of its elements. */
function forEachRow(x: NdArray, body: (row: number, at: number[]) => void): void {
  const length = x.shape.at(-1)!;
  for (let row = 0; row * length < x.data.length; row++) {
    body(row, Array.from({ length }, (_, i) => row * length + i));
  }
}

const by = <P>(make: (sum: Sum) => Naive<P>) => ({ kind: "worst" as const, naive: naiveSums.map(make) });
const square = (x: number) => f(x * x);
const meanBy = (sum: Sum, values: number[]) => f(sum(values) / Math.max(1, values.length));

const naiveRms = (sum: Sum): Naive<{ eps: number }> => ([w, x, residual], { eps }, y, r, total) => {
  const s = residual === undefined ? x.data : total.data;
  if (residual !== undefined) {
    for (let i = 0; i < s.length; i++) s[i] = f(x.data[i] + residual.data[i]);
    roundTo(total.dtype, s);
  }
  if (x.shape.at(-1) === 0) r.data.fill(f(1 / Math.sqrt(eps)));
  forEachRow(x, (row, at) => {
    const scale = f(1 / f(Math.sqrt(f(meanBy(sum, at.map((i) => square(s[i]))) + f(eps)))));
    r.data[row] = scale;
    at.forEach((i, j) => y.data[i] = f(f(s[i] * scale) * w.data[j]));
  });
};

const naiveRmsBackward = (sum: Sum): Naive<NoParams> => ([dy, s, w, r, dsum], _, ds, dw) => {
  const columns: number[][] = Array.from(w.data, () => []);
  forEachRow(s, (row, at) => {
    const k = r.data[row];
    const m = at.map((i, j) => f(dy.data[i] * w.data[j]));
    const pull = f(f(f(sum(at.map((i, j) => f(m[j] * s.data[i]))) * k) * k) / at.length);
    at.forEach((i, j) => {
      ds.data[i] = f(f(k * f(m[j] - f(s.data[i] * pull))) + (dsum?.data[i] ?? 0));
      columns[j].push(f(dy.data[i] * f(s.data[i] * k)));
    });
  });
  columns.forEach((column, j) => dw.data[j] = sum(column));
};

const naiveLayer = (sum: Sum): Naive<{ eps: number }> => ([x, w, b], { eps }, y, means, r) => {
  if (x.shape.at(-1) === 0) r.data.fill(f(1 / Math.sqrt(eps)));
  forEachRow(x, (row, at) => {
    const mean = meanBy(sum, at.map((i) => x.data[i]));
    const scale = f(1 / f(Math.sqrt(f(meanBy(sum, at.map((i) => square(f(x.data[i] - mean)))) + f(eps)))));
    means.data[row] = mean;
    r.data[row] = scale;
    at.forEach((i, j) => y.data[i] = f(f(f(f(x.data[i] - mean) * scale) * w.data[j]) + b.data[j]));
  });
};

const naiveLayerBackward = (sum: Sum): Naive<NoParams> => ([dy, x, w, means, r], _, dx, dw, db) => {
  const columns: { w: number[]; b: number[] }[] = Array.from(w.data, () => ({ w: [], b: [] }));
  forEachRow(x, (row, at) => {
    const k = r.data[row], n = at.map((i) => f(f(x.data[i] - means.data[row]) * k));
    const m = at.map((i, j) => f(dy.data[i] * w.data[j]));
    const level = meanBy(sum, m), dot = meanBy(sum, m.map((v, j) => f(v * n[j])));
    at.forEach((i, j) => {
      dx.data[i] = f(k * f(f(m[j] - level) - f(n[j] * dot)));
      columns[j].w.push(f(dy.data[i] * n[j]));
      columns[j].b.push(dy.data[i]);
    });
  });
  columns.forEach((column, j) => {
    dw.data[j] = sum(column.w);
    db.data[j] = sum(column.b);
  });
};

function rmsCalls(
  shapes: Arbitrary<number[]>,
  input: Input,
  eps: Arbitrary<number> = epsilons,
): Arbitrary<Call<{ eps: number }>> {
  return compose((draw) => {
    const shape = draw(shapes), residual = draw(boolean());
    const inputs = [[shape.at(-1)!], shape, ...(residual ? [shape] : [])].map((s) => draw(input(s)));
    return callOf(inputs, { eps: draw(eps) });
  });
}

function layerCalls(
  shapes: Arbitrary<number[]>,
  input: Input,
  eps: Arbitrary<number> = epsilons,
): Arbitrary<Call<{ eps: number }>> {
  return compose((draw) => {
    const shape = draw(shapes), columns = [shape.at(-1)!];
    return callOf([shape, columns, columns].map((s) => draw(input(s))), { eps: draw(eps) });
  });
}

/** Activations in f32, and their slopes. */
const activations = {
  silu: {
    value: (a: number) => f(a * sigmoid(a)),
    slope: (a: number) => f(sigmoid(a) * f(1 + f(a * f(1 - sigmoid(a))))),
  },
  none: {
    value: (a: number) => f(f(0.5 * a) * f(1 + f(erfOf(f(a * f(Math.SQRT1_2)))))),
    slope: (a: number) => {
      const density = f(f(Math.exp(f(-0.5 * f(a * a)))) * f(1 / Math.sqrt(2 * Math.PI)));
      return f(f(0.5 * f(1 + f(erfOf(f(a * f(Math.SQRT1_2)))))) + f(a * density));
    },
  },
  tanh: {
    value: (a: number) => f(f(0.5 * a) * f(1 + tanhPart(a))),
    slope: (a: number) => {
      const t = tanhPart(a), c = f(Math.sqrt(2 / Math.PI));
      const inner = f(c * f(1 + f(f(3 * 0.044715) * f(a * a))));
      return f(f(0.5 * f(1 + t)) + f(f(f(0.5 * a) * f(1 - f(t * t))) * inner));
    },
  },
};

function sigmoid(a: number): number {
  return f(1 / f(1 + f(Math.exp(-a))));
}

function tanhPart(a: number): number {
  return f(Math.tanh(f(f(Math.sqrt(2 / Math.PI)) * f(a + f(f(0.044715) * f(f(a * a) * a))))));
}

interface GatedOptions<P> {
  readonly params: Arbitrary<P>;
  readonly call: (gate: Tensor, up: Tensor) => Tensor;
  readonly activation: (params: P) => typeof activations["silu"];
  readonly refused?: readonly Arbitrary<Refusal>[];
}

function gated<P>({ params, call, activation, refused = [] }: GatedOptions<P>): [Sample<P>, Sample<P>] {
  const calls = (count: number) => (held: readonly DType[]) =>
    compose((draw) => {
      const dtype = draw(typeOf(held, floats)), shape = draw(shapes());
      const gate = arbInput(shape, dtype, { range: [-14, 14], specials: [0] });
      const inputs = Array.from({ length: count }, (_, i) => draw(i === count - 2 ? gate : inputOf(dtype)(shape)));
      return callOf(inputs, draw(params));
    });
  const forward: Sample<P> = {
    calls: calls(2),
    accuracy: {
      kind: "each",
      naive: [([gate, up], params, y) => {
        for (let i = 0; i < y.data.length; i++) y.data[i] = f(activation(params).value(gate.data[i]) * up.data[i]);
      }],
    },
    smooth: compose((draw) => {
      const shape = draw(smallShapes());
      return callOf([draw(arbSmooth(shape)), draw(arbSmooth(shape))], draw(params));
    }),
    once: true,
    refused: oneOf(
      clashing().chain(([a, b]) => refuse(ShapeError, [plain(a), plain(b)], call)),
      clashing().chain(([a, b]) => refuse(ShapeError, [plain(a, "f16"), plain(b)], call)),
      refuse(DTypeError, [plain([2], "i32"), plain([2], "i32")], call),
      ...refused,
    ),
  };
  const backward: Sample<P> = {
    calls: calls(3),
    accuracy: {
      kind: "each",
      naive: [([dy, gate, up], params, dgate, dup) => {
        const { value, slope } = activation(params);
        for (let i = 0; i < dy.data.length; i++) {
          dgate.data[i] = f(f(dy.data[i] * up.data[i]) * slope(gate.data[i]));
          dup.data[i] = f(dy.data[i] * value(gate.data[i]));
        }
      }],
    },
    smooth: null,
    refused: null,
  };
  return [forward, backward];
}

const approximations = elementOf("none", "tanh").map((approximate): Required<GeluOptions> => ({ approximate }));
const [swigluSample, swigluBackward] = gated<NoParams>({
  params: constant({}),
  call: swiglu,
  activation: () => activations.silu,
});
const [gegluSample, gegluBackward] = gated<Required<GeluOptions>>({
  params: approximations,
  call: (gate, up) => geglu(gate, up),
  activation: ({ approximate }) => activations[approximate],
  refused: [
    refuse(ValueError, [plain([2]), plain([2])], (gate, up) => geglu(gate, up, { approximate: "fast" as "tanh" })),
  ],
});

type RotaryParams = ParamsOf<typeof rotaryEmbeddingOp>;

function rotaryCalls(
  type: (held: readonly DType[]) => Arbitrary<DType>,
  input: (shape: Shape, dtype: DType) => Arbitrary<TensorData>,
  small = false,
): (held: readonly DType[]) => Arbitrary<Call<RotaryParams>> {
  return (held) =>
    compose((draw) => {
      const dtype = draw(type(held)), table: DType = dtype === "f64" ? "f64" : "f32";
      const [B, S] = [draw(integer(small ? 1 : 0, 2)), draw(integer(small ? 1 : 0, small ? 2 : 9))];
      const width = draw(integer(1, small ? 2 : 8)), D = 2 * width + draw(elementOf(0, 0, 1, 4));
      const positioned = draw(boolean());
      const length = S + draw(integer(positioned ? 1 : 0, 4));
      const tables = [0, 1].map(() => draw(arbInput([length, width], table, { range: [-1, 1], specials: [0] })));
      const at = draw(elementOf([S], [B, S]));
      const positions = positioned ? [draw(arbIndices(at, length, !small).filter(({ dtype }) => dtype === "i32"))] : [];
      const xs = Array.from({ length: draw(integer(1, 2)) }, () => draw(input([B, S, draw(integer(1, 3)), D], dtype)));
      return callOf([...tables, ...positions, ...xs], {
        interleaved: draw(boolean()),
        reverse: draw(boolean()),
        positioned,
      });
    });
}

const naiveRotary: Naive<RotaryParams> = (inputs, params, ...outputs) => {
  const { cos, sin, positions, xs } = rotaryInputs(inputs, params), [length, width] = cos.shape;
  outputs.forEach((y, n) => {
    const [B, S, H, D] = y.shape, x = xs[n].data;
    y.data.set(x);
    for (let row = 0; row < B * S * H; row++) {
      const s = Math.floor(row / H) % S, b = Math.floor(row / H / S);
      const at = positions === undefined ? s : positions.data[positions.shape.length === 2 ? b * S + s : s];
      const inside = at >= 0 && at < length;
      for (let i = 0; i < width; i++) {
        const first = row * D + (params.interleaved ? 2 * i : i), second = first + (params.interleaved ? 1 : width);
        const c = inside ? cos.data[at * width + i] : NaN, t = inside ? sin.data[at * width + i] : NaN;
        const turn = params.reverse ? -t : t;
        y.data[first] = f(f(x[first] * c) - f(x[second] * turn));
        y.data[second] = f(f(x[second] * c) + f(x[first] * turn));
      }
    }
  });
};

/** Samples of the fused layers. */
export const layers = {
  rmsNorm: {
    calls: (held) => typeOf(held, floats).chain((dtype) => rmsCalls(rowShapes, inputOf(dtype))),
    accuracy: by(naiveRms),
    smooth: rmsCalls(smallRows, (shape) => arbSmooth(shape), gentle),
    roundsBetween: true,
    // The reciprocal root is for the way back alone.
    results: ([y, , sum]) => sum === undefined ? [y] : [y, sum],
    once: true,
    refused: oneOf(
      refuse(ShapeError, [plain([2, 3]), plain([2])], (x, w) => rmsNorm(x, w)),
      refuse(ShapeError, [plain([2, 3]), plain([1, 3])], (x, w) => rmsNorm(x, w)),
      refuse(ShapeError, [plain([2, 3]), plain([2], "f16")], (x, w) => rmsNorm(x, w)),
      refuse(ShapeError, [plain([]), plain([])], (x, w) => rmsNorm(x, w)),
      refuse(ShapeError, [plain([2, 3]), plain([3]), plain([3, 3])], (x, w, residual) => rmsNorm(x, w, { residual })),
      refuse(ValueError, [plain([2, 3]), plain([3])], (x, w) => rmsNorm(x, w, { eps: -1 })),
      refuse(ValueError, [plain([2, 3]), plain([3])], (x, w) => rmsNorm(x, w, { eps: NaN })),
    ),
  } satisfies Sample<{ eps: number }>,
  rmsNormBackward: {
    calls: (held) =>
      compose((draw) => {
        const dtype = draw(typeOf(held, floats)), shape = draw(rowShapes), input = inputOf(dtype);
        const inputs = [input(shape), input(shape), input([shape.at(-1)!])].map(draw);
        const r = draw(statistic(accumulatorOf(dtype))(shape.slice(0, -1)));
        return callOf([...inputs, r, ...(draw(boolean()) ? [draw(input(shape))] : [])], {});
      }),
    accuracy: by(naiveRmsBackward),
    smooth: null,
    refused: null,
  } satisfies Sample<NoParams>,
  layerNorm: {
    calls: (held) => typeOf(held, floats).chain((dtype) => layerCalls(rowShapes, inputOf(dtype))),
    accuracy: by(naiveLayer),
    // A row of one element has variance 0, where the curvature is all eps.
    smooth: layerCalls(
      smallRows.filter((shape) => shape.at(-1)! > 1),
      (shape) => arbSmooth(shape, [-2, 2], false),
      gentle,
    ),
    results: ([y]) => [y],
    once: true,
    refused: oneOf(
      refuse(ShapeError, [plain([2, 3]), plain([2])], (x, w) => layerNorm(x, w)),
      refuse(ShapeError, [plain([2, 3]), plain([3]), plain([2])], (x, w, b) => layerNorm(x, w, b)),
      refuse(ShapeError, [plain([2, 3], "i32"), plain([2])], (x, w) => layerNorm(x, w)),
      refuse(ShapeError, [plain([]), plain([])], (x, w) => layerNorm(x, w)),
      refuse(ValueError, [plain([2, 3]), plain([3])], (x, w) => layerNorm(x, w, null, { eps: -1 })),
    ),
  } satisfies Sample<{ eps: number }>,
  layerNormBackward: {
    calls: (held) =>
      compose((draw) => {
        const dtype = draw(typeOf(held, floats)), shape = draw(rowShapes), input = inputOf(dtype);
        const row = accumulatorOf(dtype), lead = shape.slice(0, -1);
        const inputs = [input(shape), input(shape), input([shape.at(-1)!]), inputOf(row)(lead), statistic(row)(lead)];
        return callOf(inputs.map(draw), {});
      }),
    accuracy: by(naiveLayerBackward),
    smooth: null,
    refused: null,
  } satisfies Sample<NoParams>,
  rotaryEmbedding: {
    calls: rotaryCalls((held) => typeOf(held, floats), (shape, dtype) => inputOf(dtype)(shape)),
    accuracy: { kind: "each", naive: [naiveRotary] },
    smooth: rotaryCalls(() => constant("f64"), (shape) => arbSmooth(shape), true)(["f64"]),
    constants: () => [0, 1],
    refused: oneOf(
      refuse(ShapeError, [plain([1, 2, 1, 2]), ...tables([4, 2])], rotaryEmbedding),
      refuse(IndexError, [plain([1, 5, 1, 4]), ...tables([4, 2])], rotaryEmbedding),
      refuse(ShapeError, [plain([5, 1, 4]), ...tables([4, 2])], rotaryEmbedding),
      refuse(ShapeError, [plain([1, 2, 1, 4]), plain([4, 2]), plain([4, 1])], rotaryEmbedding),
      refuse(DTypeError, [plain([1, 2, 1, 4], "i32"), ...tables([4, 2])], rotaryEmbedding),
      refuse(
        IndexError,
        [plain([1, 2, 1, 4]), ...tables([4, 2]), given([0, 4], [2], "i32")],
        (x, cos, sin, positions) => rotaryEmbedding(x, cos, sin, { positions }),
      ),
      refuse(
        ShapeError,
        [plain([1, 2, 1, 4]), ...tables([4, 2]), given([0, 1, 2], [3], "i32")],
        (x, cos, sin, positions) => rotaryEmbedding(x, cos, sin, { positions }),
      ),
      refuse(
        DTypeError,
        [plain([1, 2, 1, 4]), ...tables([4, 2]), plain([2])],
        (x, cos, sin, positions) => rotaryEmbedding(x, cos, sin, { positions }),
      ),
    ),
  } satisfies Sample<RotaryParams>,
  swiglu: swigluSample,
  swigluBackward,
  geglu: gegluSample,
  gegluBackward,
};

function tables(shape: Shape): readonly [Arbitrary<TensorData>, Arbitrary<TensorData>] {
  return [plain(shape), plain(shape)];
}
