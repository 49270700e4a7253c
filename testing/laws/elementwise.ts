/** Samples of the elementwise ops. The naive formulas round to f32 after every step. */
import type { DType } from "../../tensor/dtype.ts";
import * as e from "../../tensor/elementwise.ts";
import { DTypeError, ShapeError, ValueError } from "../../tensor/errors.ts";
import type { Tensor } from "../../tensor/tensor.ts";
import { compose, elementOf, oneOf } from "../arbitrary.ts";
import {
  apart,
  arbAny,
  arbInput,
  arbSmooth,
  broadcastable,
  type Call,
  callOf,
  clashing,
  everyType,
  exponentsOf,
  floats,
  numbers,
  plain,
  refuse,
  refuseTypes,
  type Sample,
  shapes,
  smallShapes,
  typeOf,
  type ValueOptions,
} from "./sample.ts";

type NoParams = Record<never, never>;
type Range = readonly [min: number, max: number];

/** To f32. */
export const f = Math.fround;
const half = (dtype: DType) => ({ exponents: exponentsOf(dtype) });

/** Values over the whole range of the type, and between `range` most of the time. */
const within = (range: Range, dtype: DType): ValueOptions => ({ range, ...half(dtype) });

interface UnaryOptions {
  readonly types?: readonly DType[];
  /** Where most values lie. */
  readonly range?: Range;
  /** What the op is in f32, before the last rounding; exact when not given. */
  readonly naive?: (x: number) => number;
  /** Where the derivative is tried; null when there is none. */
  readonly smooth?: Range | null;
}

function unary(op: (x: Tensor) => Tensor, options: UnaryOptions = {}): Sample<NoParams> {
  const { types = floats, range = [-8, 8], naive, smooth = [-2, 2] } = options;
  return {
    calls: (held) =>
      compose((draw) => {
        const dtype = draw(typeOf(held, types));
        return callOf([draw(arbInput(draw(shapes()), dtype, within(range, dtype)))], {});
      }),
    accuracy: naive === undefined ? { kind: "exact" } : { kind: "elementwise", naive: () => (x) => f(naive(x)) },
    smooth: smooth === null ? null : compose((draw) => callOf([draw(arbSmooth(draw(smallShapes()), smooth))], {})),
    // Functions of floats take integers and bool too, as f32.
    refused: types === numbers ? refuseTypes(["bool"], DTypeError, op) : null,
  };
}

interface BinaryOptions {
  readonly types?: readonly DType[];
  readonly left?: Range;
  readonly right?: Range;
  readonly naive?: (a: number, b: number) => number;
  readonly smooth?: readonly [left: Range, right: Range] | null;
  /** The derivative has a kink where operands are equal. */
  readonly kink?: true;
}

function binary(operands: e.BinaryFunction, options: BinaryOptions = {}): Sample<NoParams> {
  const op = (a: Tensor, b: Tensor) => operands(a, b);
  const { types = numbers, left = [-8, 8], right = [-8, 8], naive, smooth = [[-2, 2], [-2, 2]], kink } = options;
  const ends = [left, right];
  const smoothCalls = smooth === null ? null : compose((draw) => {
    const pair = draw(broadcastable(2, { maxSize: 10, large: 10, maxRank: 3 }));
    return callOf(pair.map((shape, i) => draw(arbSmooth(shape, smooth[i], !kink))), {});
  });
  const differ = ({ inputs: [a, b] }: Call<NoParams>) => apart([...a.data, ...b.data]);
  return {
    calls: (held) =>
      compose((draw) => {
        const dtype = draw(typeOf(held, types));
        const pair = draw(broadcastable(2));
        return callOf(pair.map((shape, i) => draw(arbInput(shape, dtype, within(ends[i], dtype)))), {});
      }),
    accuracy: naive === undefined ? { kind: "exact" } : { kind: "elementwise", naive: () => (a, b) => f(naive(a, b)) },
    smooth: kink ? smoothCalls!.filter(differ) : smoothCalls,
    refused: oneOf(
      clashing().chain(([a, b]) => refuse(ShapeError, [plain(a), plain(b)], op)),
      // What does not fit is refused before the narrower side is cast.
      clashing().chain(([a, b]) => refuse(ShapeError, [plain(a, "bf16"), plain(b)], op)),
      refuse(DTypeError, [plain([2], "i32"), plain([2], "u32")], op),
      refuse(ValueError, [], () => operands(1, 2)),
      ...(types === numbers ? [refuse(DTypeError, [plain([2], "bool"), plain([2], "bool")], op)] : []),
    ),
  };
}

/** Derivatives are tried away from 0. */
function withoutKink(sample: Sample<NoParams>): Sample<NoParams> {
  return { ...sample, smooth: sample.smooth!.filter(({ inputs: [x] }) => x.data.every((v) => Math.abs(v) > 0.01)) };
}

/** Both operands bool. */
function logical(op: e.BinaryFunction): Sample<NoParams> {
  return {
    ...binary(op, { types: ["bool"], smooth: null }),
    refused: oneOf(
      clashing().chain(([a, b]) => refuse(ShapeError, [plain(a, "bool"), plain(b)], (a, b) => op(a, b))),
      refuse(ValueError, [], () => op(true, false)),
    ),
  };
}

/** |a|ᵇ by way of logarithms, with the sign that a negative base gives to odd powers. */
function powNaive(a: number, b: number): number {
  const whole = Math.pow(a, b);
  if (!Number.isFinite(whole) || whole === 0) return whole;
  return Math.sign(whole) * Math.exp(f(b * f(Math.log(Math.abs(a)))));
}

const geluNaive = {
  none: (x: number) => f(f(0.5 * x) * f(1 + f(e.erfOf(f(x * f(Math.SQRT1_2)))))),
  tanh: (x: number) => {
    const cube = f(f(x * x) * x);
    const inner = f(f(Math.sqrt(2 / Math.PI)) * f(x + f(f(0.044715) * cube)));
    return f(f(0.5 * x) * f(1 + f(Math.tanh(inner))));
  },
};

/** Samples of the elementwise ops. */
export const elementwise = {
  add: binary(e.add, { naive: (a, b) => a + b }),
  sub: binary(e.sub, { naive: (a, b) => a - b }),
  mul: binary(e.mul, { naive: (a, b) => a * b }),
  div: binary(e.div, { types: floats, naive: (a, b) => a / b, smooth: [[-2, 2], [0.3, 2]] }),
  pow: binary(e.pow, { types: floats, left: [-1, 9], right: [-5, 5], naive: powNaive, smooth: [[0.3, 2], [-2, 2]] }),
  maximum: binary(e.maximum, { naive: Math.max, kink: true }),
  minimum: binary(e.minimum, { naive: Math.min, kink: true }),
  equal: binary(e.equal, { types: everyType, left: [-2, 2], right: [-2, 2], smooth: null }),
  less: binary(e.less, { smooth: null }),
  lessEqual: binary(e.lessEqual, { left: [-2, 2], right: [-2, 2], smooth: null }),
  logicalAnd: logical(e.logicalAnd),
  logicalOr: logical(e.logicalOr),
  logicalNot: unary(e.logicalNot, { types: ["bool"], smooth: null }),
  isFinite: {
    ...unary(e.isFinite, { smooth: null }),
    refused: refuseTypes(["i32", "u32", "bool"], DTypeError, e.isFinite),
  },
  neg: unary(e.neg, { types: numbers }),
  abs: withoutKink(unary(e.abs, { types: numbers })),
  sign: unary(e.sign, { types: numbers, naive: Math.sign, smooth: null }),
  square: unary(e.square, { naive: (x) => x * x }),
  relu: withoutKink(unary(e.relu, { types: numbers, naive: (x) => x < 0 ? 0 : x })),
  exp: unary(e.exp, { range: [-110, 95], naive: Math.exp }),
  exp2: unary(e.exp2, { range: [-155, 135], naive: (x) => 2 ** x }),
  log: unary(e.log, { range: [0, 8], naive: Math.log, smooth: [0.3, 2] }),
  sqrt: unary(e.sqrt, { range: [0, 8], naive: Math.sqrt, smooth: [0.3, 2] }),
  rsqrt: unary(e.rsqrt, { range: [0, 8], naive: (x) => 1 / f(Math.sqrt(x)), smooth: [0.3, 2] }),
  tanh: unary(e.tanh, { range: [-12, 12], naive: Math.tanh }),
  sigmoid: unary(e.sigmoid, { range: [-100, 100], naive: (x) => 1 / f(1 + f(Math.exp(-x))) }),
  silu: unary(e.silu, { range: [-100, 100], naive: (x) => x * f(1 / f(1 + f(Math.exp(-x)))) }),
  erf: unary(e.erf, { range: [-5, 5], naive: e.erfOf }),
  sin: unary(e.sin, { range: [-2000, 2000], naive: Math.sin }),
  cos: unary(e.cos, { range: [-2000, 2000], naive: Math.cos }),
  gelu: {
    calls: (held) =>
      compose((draw) => ({
        ...draw(unary(e.gelu, { range: [-14, 14] }).calls(held)),
        params: { approximate: draw(elementOf("none", "tanh")) },
      })),
    accuracy: { kind: "elementwise", naive: ({ approximate }) => geluNaive[approximate] },
    smooth: compose((draw) => ({
      ...draw(unary(e.gelu).smooth!),
      params: { approximate: draw(elementOf("none", "tanh")) },
    })),
    refused: refuse(ValueError, [plain([2])], (x) => e.gelu(x, { approximate: "fast" as "tanh" })),
  } satisfies Sample<Required<e.GeluOptions>>,
  where: {
    calls: (held) =>
      compose((draw) => {
        const dtype = draw(typeOf(held, everyType));
        const [condition, a, b] = draw(broadcastable(3));
        return callOf([draw(arbInput(condition, "bool")), draw(arbAny(a, dtype)), draw(arbAny(b, dtype))], {});
      }),
    accuracy: { kind: "exact" },
    smooth: compose((draw) => {
      const [condition, a, b] = draw(broadcastable(3, { maxSize: 10, large: 10, maxRank: 3 }));
      return callOf([draw(arbInput(condition, "bool")), draw(arbSmooth(a)), draw(arbSmooth(b))], {});
    }),
    refused: oneOf(
      clashing().chain(([a, b]) => refuse(ShapeError, [plain([], "bool"), plain(a), plain(b)], e.where)),
      clashing().chain(([a, b]) => refuse(ShapeError, [plain(a), plain(b), plain(b, "bf16")], e.where)),
      refuse(DTypeError, [plain([], "bool"), plain([2], "i32"), plain([2], "u32")], e.where),
    ),
  } satisfies Sample<NoParams>,
  cast: {
    calls: (held) =>
      compose((draw) => {
        const from = draw(typeOf(held, everyType)), dtype = draw(typeOf(held, everyType));
        return callOf([draw(arbAny(draw(shapes()), from))], { dtype });
      }),
    accuracy: { kind: "exact" },
    smooth: compose((draw) => callOf([draw(arbSmooth(draw(smallShapes())))], { dtype: "f64" as DType })),
    refused: refuse(DTypeError, [plain([2])], (x) => e.cast(x, "f24" as DType)),
  } satisfies Sample<{ dtype: DType }>,
};
