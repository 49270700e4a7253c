/** Samples of products, gathering and scattering. */
import { DTypeError, IndexError, ShapeError } from "../../tensor/errors.ts";
import { scatterAdd, type scatterAddOp, take, takeOp } from "../../tensor/gather.ts";
import { matmul, type MatmulOptions, matmulSizes } from "../../tensor/matmul.ts";
import type { NdArray, ParamsOf } from "../../tensor/op.ts";
import { broadcastLayout, type Shape, sizeOf, stridesOf } from "../../tensor/shape.ts";
import { type Arbitrary, boolean, compose, elementOf, integer, oneOf } from "../arbitrary.ts";
import type { TensorData } from "../tensors.ts";
import { arbIndices } from "./movement.ts";
import {
  arbAny,
  arbInput,
  arbSmooth,
  broadcastable,
  type Call,
  callOf,
  everyType,
  floats,
  given,
  numbers,
  plain,
  refuse,
  type Sample,
  shapesWithAxis,
  typeOf,
} from "./sample.ts";
import { f } from "./elementwise.ts";

type Transposes = Required<MatmulOptions>;

function matmulCalls(
  size: Arbitrary<number>,
  batches: Arbitrary<number[][]>,
  input: (shape: Shape) => Arbitrary<TensorData>,
): Arbitrary<Call<Transposes>> {
  return compose((draw) => {
    const [m, n, k] = [draw(size), draw(size), draw(size)];
    const params = { transposeA: draw(boolean()), transposeB: draw(boolean()) };
    const [a, b] = draw(batches);
    return callOf([
      draw(input([...a, ...(params.transposeA ? [k, m] : [m, k])])),
      draw(input([...b, ...(params.transposeB ? [n, k] : [k, n])])),
    ], params);
  });
}

/** Where batch p of a product starts in an operand. */
function batchStarts(shape: Shape, batch: Shape): number[] {
  const lead = shape.slice(0, -2);
  const { strides } = broadcastLayout({ shape: lead, strides: stridesOf(lead), offset: 0 }, batch);
  const size = shape.at(-1)! * shape.at(-2)!, steps = stridesOf(batch);
  return Array.from(
    { length: sizeOf(batch) },
    (_, p) => size * batch.reduce((at, n, d) => at + Math.floor(p / steps[d]) % n * strides[d], 0),
  );
}

/** A product in f32, one term after another, from either end. */
const naiveMatmul = (backwards: boolean) => ([a, b]: readonly NdArray[], params: Transposes, y: NdArray): void => {
  const { batch, m, n, k } = matmulSizes(a.shape, b.shape, params);
  const [ai, ak] = params.transposeA ? [1, m] : [k, 1];
  const [bk, bj] = params.transposeB ? [1, k] : [n, 1];
  const [sa, sb] = [batchStarts(a.shape, batch), batchStarts(b.shape, batch)];
  let at = 0;
  for (let p = 0; p < sa.length; p++) {
    for (let i = 0; i < m; i++) {
      for (let j = 0; j < n; j++) {
        let dot = 0;
        for (let t = 0; t < k; t++) {
          const x = backwards ? k - 1 - t : t;
          dot = f(dot + f(a.data[sa[p] + i * ai + x * ak] * b.data[sb[p] + x * bk + j * bj]));
        }
        y.data[at++] = dot;
      }
    }
  }
};

/** Sizes around those of tiles: mostly a few, now and then zero, one, or past a tile. */
const sizes = compose((draw) => {
  const kind = draw(integer(0, 15));
  if (kind === 15) return draw(elementOf(0, 63, 64, 65, 100, 130));
  return kind > 11 ? draw(integer(9, 40)) : draw(integer(1, 9));
});

/** Indices that the host knows. */
const indexed = (values: readonly number[]) => given(values, [values.length], "i32");

/** Samples of products, gathering and scattering. */
export const multiply = {
  matmul: {
    calls: (held) =>
      typeOf(held, floats).chain((dtype) =>
        matmulCalls(
          sizes,
          broadcastable(2, { maxRank: 2, maxSize: 4, large: 4 }),
          (shape) => arbInput(shape, dtype, { range: [-4, 4], specials: [0] }),
        )
      ),
    accuracy: { kind: "worst", naive: [naiveMatmul(false), naiveMatmul(true)] },
    smooth: matmulCalls(
      integer(0, 3),
      broadcastable(2, { maxRank: 1, maxSize: 2, large: 2 }),
      (shape) => arbSmooth(shape),
    ),
    refused: oneOf(
      refuse(ShapeError, [plain([2, 3]), plain([2, 3])], matmul),
      refuse(ShapeError, [plain([2, 3], "f16"), plain([2, 3])], matmul),
      refuse(ShapeError, [plain([2, 3]), plain([3, 2])], (a, b) => matmul(a, b, { transposeB: true })),
      refuse(ShapeError, [plain([2, 3]), plain([3, 2])], (a, b) => matmul(a, b, { transposeA: true })),
      refuse(ShapeError, [plain([2, 2, 3]), plain([3, 3, 2])], matmul),
      refuse(ShapeError, [plain([]), plain([2, 3])], matmul),
      refuse(ShapeError, [plain([3]), plain([2])], matmul),
      refuse(DTypeError, [plain([2, 2], "i32"), plain([2, 2], "i32")], matmul),
      refuse(DTypeError, [plain([2, 2], "bool"), plain([2, 2], "bool")], matmul),
    ),
  } satisfies Sample<Transposes>,
  take: {
    calls: (held) =>
      typeOf(held, everyType).chain((dtype) => gatherCalls(true, shapesWithAxis(), (shape) => arbAny(shape, dtype))),
    accuracy: { kind: "exact" },
    smooth: gatherCalls(false, shapesWithAxis({ maxSize: 8, large: 8, maxRank: 3, zeros: false }), (s) => arbSmooth(s)),
    refused: oneOf(
      refuse(IndexError, [plain([2, 3]), indexed([2])], take),
      refuse(IndexError, [plain([2, 3]), indexed([-1])], take),
      refuse(IndexError, [plain([2, 3]), indexed([1, 3])], (x, i) => take(x, i, { axis: 1 })),
      refuse(DTypeError, [plain([2, 3]), plain([2])], take),
      refuse(ShapeError, [plain([2, 3]), indexed([0])], (x, i) => take(x, i, { axis: 2 })),
    ),
  } satisfies Sample<ParamsOf<typeof takeOp>>,
  scatterAdd: {
    calls: (held) =>
      typeOf(held, numbers).chain((dtype) =>
        scattering(
          gatherCalls(true, shapesWithAxis(), (shape) => arbInput(shape, dtype)),
          (shape) => arbInput(shape, dtype),
        )
      ),
    accuracy: { kind: "worst", naive: [naiveScatter] },
    smooth: scattering(
      gatherCalls(false, shapesWithAxis({ maxSize: 8, large: 8, maxRank: 3, zeros: false }), (s) => arbSmooth(s)),
      (shape) => arbSmooth(shape),
    ),
    refused: oneOf(
      refuse(IndexError, [plain([2, 3]), indexed([2]), plain([1, 3])], scatterAdd),
      refuse(ShapeError, [plain([2, 3]), indexed([1]), plain([2, 3])], scatterAdd),
      refuse(DTypeError, [plain([2, 3]), indexed([1]), plain([1, 3], "f16")], scatterAdd),
      refuse(DTypeError, [plain([2, 3]), plain([1]), plain([1, 3])], scatterAdd),
      refuse(ShapeError, [plain([2, 3]), indexed([0]), plain([1, 3])], (x, i, u) => scatterAdd(x, i, u, { axis: 2 })),
    ),
  } satisfies Sample<ParamsOf<typeof scatterAddOp>>,
};

function gatherCalls(
  outside: boolean,
  shapes: Arbitrary<[shape: number[], axis: number]>,
  input: (shape: Shape) => Arbitrary<TensorData>,
): Arbitrary<Call<{ axis: number }>> {
  return compose((draw) => {
    const [shape, axis] = draw(shapes);
    const at = draw(elementOf([], [1], [0], [draw(integer(1, 7))], [2, draw(integer(1, 3))]));
    return callOf([draw(input(shape)), draw(arbIndices(at, shape[axis], outside))], { axis });
  });
}

function scattering(
  calls: Arbitrary<Call<{ axis: number }>>,
  input: (shape: Shape) => Arbitrary<TensorData>,
): Arbitrary<Call<{ axis: number }>> {
  return calls.chain(({ inputs, params }) => {
    const { shape } = takeOp.infer(inputs, params) as { shape: Shape };
    return input(shape).map((updates) => callOf([...inputs, updates], params));
  });
}

function naiveScatter(inputs: readonly NdArray[], { axis }: { axis: number }, y: NdArray): void {
  const [x, indices, updates] = inputs;
  const inner = sizeOf(x.shape.slice(axis + 1)), outer = sizeOf(x.shape.slice(0, axis)), length = x.shape[axis];
  const float = floats.includes(x.dtype);
  y.data.set(x.data);
  for (let o = 0; o < outer; o++) {
    for (let i = 0; i < indices.data.length; i++) {
      const index = indices.data[i];
      if (index < 0 || index >= length) continue;
      for (let j = 0; j < inner; j++) {
        const to = (o * length + index) * inner + j;
        const sum = y.data[to] + updates.data[(o * indices.data.length + i) * inner + j];
        y.data[to] = float ? f(sum) : sum;
      }
    }
  }
}
