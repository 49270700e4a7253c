/** Samples of attention, its derivative and its cache. The naive computation is the textbook's, in f32. */
import {
  type attentionBackwardOp,
  attentionOp,
  flashAttention,
  flashAttentionVarlen,
  type FlashBackwardParams,
  type FlashParams,
} from "../../tensor/attention.ts";
import { cacheAppendOp, type CacheAppendParams, type CacheAttentionParams } from "../../tensor/attention_cache.ts";
import { flashAttentionWithKvCache } from "../../tensor/attention_cache.ts";
import { dropoutMask } from "../../tensor/attention_dropout.ts";
import { type AttentionOptions, named, type OptionalInput, optionalInputs } from "../../tensor/attention_options.ts";
import { type DType, hostArray, roundTo } from "../../tensor/dtype.ts";
import { isFinite, where } from "../../tensor/elementwise.ts";
import { DTypeError, IndexError, LimitError, ShapeError, ValueError } from "../../tensor/errors.ts";
import { dense, type NdArray, ndarray, type ParamsOf } from "../../tensor/op.ts";
import type { Shape } from "../../tensor/shape.ts";
import type { Tensor } from "../../tensor/tensor.ts";
import { Arbitrary, boolean, compose, constant, elementOf, float, integer, oneOf } from "../arbitrary.ts";
import { arbTensorData, type TensorData } from "../tensors.ts";
import { onHost } from "./accuracy.ts";
import { naiveBackward, naiveForward, problemOf, type Row } from "./attention_naive.ts";
import {
  arbInput,
  arbSmooth,
  type Call,
  callOf,
  few,
  floats,
  given,
  type Naive,
  plain,
  refuse,
  type Sample,
  typeOf,
} from "./sample.ts";
import { f } from "./elementwise.ts";
import { naiveSums, type Sum } from "./reduce.ts";

/** What a kernel is built for. Everything else of a call is only data to it. */
interface Build {
  readonly dtype: DType;
  readonly biasType: DType;
  readonly D: number;
  readonly Dv: number;
  readonly optional: readonly OptionalInput[];
  readonly isCausal: boolean;
  readonly isBounded: boolean;
  readonly softcap: number;
  readonly packed: boolean;
  /** Which of q, k and v may be a view: loads of four at a time are another kernel than single ones. */
  readonly viewed: number;
  /** Whether bias and sinks get gradients. */
  readonly pulls: boolean;
}

const features = ["alibiSlopes", "bias", "mask", "sinks", "key"] as const;

const buildOf = (type: Arbitrary<DType>, dims: readonly number[]): Arbitrary<Build> =>
  compose((draw) => {
    const dtype = draw(type), some = draw(elementOf(0, 1, 1, 2));
    const chosen: OptionalInput[] = Array.from({ length: some }, () => draw(elementOf(...features)));
    const D = draw(elementOf(...dims));
    return {
      dtype,
      biasType: draw(elementOf(dtype, dtype === "f64" ? "f64" : "f32")),
      D,
      Dv: draw(elementOf(D, D, draw(elementOf(...dims)))),
      optional: optionalInputs.filter((name) => chosen.includes(name)),
      isCausal: draw(boolean()),
      isBounded: draw(elementOf(false, false, true)),
      softcap: draw(elementOf(0, 0, 3)),
      packed: draw(elementOf(false, false, true)),
      viewed: draw(integer(0, 3)),
      pulls: draw(boolean()),
    };
  });

const builds = (held: readonly DType[], count: number): Arbitrary<Build> => {
  const free = buildOf(typeOf(held, floats), [4, 8, 8, 3, 16, 64]);
  return held.includes("f64") ? free : few(free, count);
};

/** The numbers of a call: what its build leaves open. */
const numbersOf = ({ isCausal, isBounded, softcap, optional }: Build) =>
  compose((draw) => ({
    scale: draw(elementOf(1, 0.5, 0.25)),
    window: [
      isBounded ? draw(integer(0, 5)) : -1,
      isCausal ? 0 : isBounded ? draw(integer(-1, 5)) : -1,
    ] as const,
    softcap,
    dropout: optional.includes("key") ? draw(elementOf(0.1, 0.5)) : 0,
  }));

const arbKey = arbTensorData({ shape: [2], dtype: "u32", max: 2 ** 32 - 1 });

/** What makes each input that changes scores, for scores of that shape. */
function makersOf(
  draw: <T>(arb: Arbitrary<T>) => T,
  input: (shape: Shape, of: DType, range?: readonly [number, number]) => TensorData,
  { dtype, biasType }: Build,
  scores: readonly number[],
): Partial<Record<OptionalInput, () => TensorData>> {
  const [B, H] = scores, wide: DType = dtype === "f64" ? "f64" : "f32";
  const some = () => scores.map((n) => draw(integer(0, 3)) === 1 ? 1 : n);
  return {
    alibiSlopes: () => input(draw(boolean()) ? [B, H] : [H], wide, [0, 0.5]),
    bias: () => input(some(), biasType),
    mask: () => draw(arbInput(some(), "bool")),
    sinks: () => input([H], wide),
    key: () => draw(arbKey),
  };
}

/** Lengths of sequences as their prefix sums. */
const prefix = (lengths: readonly number[]) =>
  given(lengths.reduce((sums, n) => [...sums, sums.at(-1)! + n], [0]), [lengths.length + 1], "i32");

interface BuiltCall {
  readonly built: Build;
  readonly call: Call<FlashParams>;
}

function attentionCalls(build: Arbitrary<Build>, most: number, smooth = false): Arbitrary<BuiltCall> {
  return compose((draw) => {
    const built = draw(build), { dtype, D, Dv, packed, optional, viewed } = built;
    const input = (shape: Shape, of = dtype, range: readonly [number, number] = [-2, 2], views = true) =>
      draw(smooth ? arbSmooth(shape, range, false) : arbInput(shape, of, { range, specials: [0], views }));
    const operand = (shape: Shape, i: number) => input(shape, dtype, [-2, 2], i === viewed);
    const numbers = draw(numbersOf(built)), least = smooth ? 1 : 0;
    const [B, Hk] = [draw(integer(1, 2)), draw(integer(1, 2))], H = Hk * draw(integer(1, smooth ? 2 : 3));
    const length = () => draw(integer(least, most));
    const [qs, ks] = [0, 1].map(() => packed ? Array.from({ length: B }, length) : [length()]);
    const [Sq, Sk] = [qs, ks].map((lengths) => Math.max(...lengths));
    const total = (lengths: readonly number[]) => lengths.reduce((a, b) => a + b, 0) + draw(integer(0, smooth ? 0 : 2));
    const lead = packed ? [[total(qs)], [total(ks)]] : [[B, Sq], [B, Sk]];
    const make = makersOf(draw, input, built, [B, H, Sq, Sk]);
    const tensors = optional.map((name) => make[name]!());
    const starts = packed ? [draw(prefix(qs)), draw(prefix(ks))] : [];
    const qkv = [[...lead[0], H, D], [...lead[1], Hk, D], [...lead[1], Hk, Dv]].map(operand);
    const call = callOf([...qkv, ...tensors, ...starts], {
      ...numbers,
      optional: packed ? [...optional, "cuSeqlensQ" as const, "cuSeqlensK" as const] : optional,
      maxSeqlens: packed ? [Sq, Sk] as const : null,
    });
    return { built, call };
  });
}

/** Mostly short sequences. */
const arbCalls = (held: readonly DType[], count: number) => {
  const [short, long] = [9, 70].map((most) => attentionCalls(builds(held, count), most));
  return new Arbitrary((source) => (source.draw(19) === 19 ? long : short).draw(source));
};

/** A call of the derivative: what the forward pass gave, and gradients of it. */
function backwardCall({ built, call: { inputs, params } }: BuiltCall): Arbitrary<Call<FlashBackwardParams>> {
  return compose((draw) => {
    const [q] = inputs, specs = attentionOp.infer(inputs, params) as readonly { shape: Shape; dtype: DType }[];
    const results = specs.map(({ shape }) => ndarray({ shape, dtype: "f64" }));
    if (results.some((y) => y.data.length > 0)) {
      attentionOp.reference(inputs.map((x) => onHost(x, true)), params, results[0], results[1]);
    }
    const made = specs.map(({ shape, dtype }, i) => {
      const data = hostArray(dtype, results[i].data.length);
      data.set(results[i].data);
      roundTo(dtype, data);
      return draw(given(Array.from(data), shape, dtype));
    });
    const cotangents = specs.map(({ shape, dtype }) =>
      draw(arbInput(shape, dtype, { range: [-1, 1], specials: [0], views: built.viewed === 3 }))
    );
    const gradients = (["bias", "sinks"] as const).filter((name) => built.pulls && params.optional.includes(name));
    return callOf([...cotangents, q, ...inputs.slice(1, 3), ...made, ...inputs.slice(3)], { ...params, gradients });
  });
}

const short = (D = 4) => [plain([1, 3, 2, D]), plain([1, 4, 2, D]), plain([1, 4, 2, D])] as const;
const opt = (options: AttentionOptions) => (q: Tensor, k: Tensor, v: Tensor) => flashAttention(q, k, v, options);

const naiveCached = (sum: Sum): Naive<CacheAttentionParams> => (inputs, params, out, lse) => {
  const [q, k, v, lengths, ...rest] = inputs, found = named(params.optional, rest, 0), { blockTable } = found;
  const [B, sq, heads] = q.shape, page = k.shape[1], pages = blockTable?.shape[1] ?? 1;
  const turns = params.window.some((n) => n >= 0);
  const queries = turned(q, (b, t) => lengths.data[b] + (turns ? t : 0), found, params.interleaved);
  const rows = Array.from({ length: B }, (_, b): Row => ({
    sq,
    sk: Math.min(lengths.data[b] + params.added, page * pages),
    first: found.cacheLeftpad?.data[b] ?? 0,
    queryAt: (i) => b * sq + i,
    keyAt: (j) =>
      blockTable
        ? blockTable.data[b * pages + Math.floor(j / page)] * page + j % page
        : (found.cacheBatchIdx?.data[b] ?? b) * page + j,
    lseAt: (h, i) => (b * heads + h) * sq + i,
  }));
  naiveForward({ rows, q: queries, k, v, found, params }, sum, out, lse);
};

/** Samples of attention. */
export const attending = {
  attention: {
    leavesZeros: true,
    calls: (held) => arbCalls(held, 14).map(({ call }) => call),
    accuracy: {
      kind: "worst",
      naive: naiveSums.map((sum) => (inputs, params, out, lse) =>
        naiveForward(problemOf(inputs, params), sum, out, lse)
      ),
    },
    smooth: attentionCalls(buildOf(constant("f64"), [1, 2, 3]), 3, true).map(({ call }) => call),
    constants: ({ optional }) => optional.includes("alibiSlopes") ? [3 + optional.indexOf("alibiSlopes")] : [],
    // A row that sees no key has lse −∞, of which no sum can be taken.
    results: ([out, lse]) => [out, where(isFinite(lse), lse, 0)],
    once: true,
    refused: oneOf(
      refuse(ShapeError, [plain([1, 3, 2, 4]), plain([1, 4, 2, 5]), plain([1, 4, 2, 5])], opt({})),
      refuse(ShapeError, [plain([1, 3, 3, 4]), plain([1, 4, 2, 4]), plain([1, 4, 2, 4])], opt({})),
      refuse(ShapeError, [plain([2, 3, 2, 4]), plain([1, 4, 2, 4]), plain([1, 4, 2, 4])], opt({})),
      refuse(ShapeError, [plain([1, 3, 2, 4]), plain([1, 4, 2, 4]), plain([1, 5, 2, 4])], opt({})),
      refuse(ShapeError, [plain([3, 2, 4]), plain([4, 2, 4]), plain([4, 2, 4])], opt({})),
      refuse(DTypeError, [plain([1, 3, 2, 4], "f16"), plain([1, 4, 2, 4]), plain([1, 4, 2, 4])], opt({})),
      refuse(DTypeError, [plain([1, 3, 2, 4], "i32"), plain([1, 4, 2, 4], "i32"), plain([1, 4, 2, 4], "i32")], opt({})),
      refuse(LimitError, short(257), opt({})),
      refuse(ValueError, short(), opt({ softmaxScale: NaN })),
      refuse(ValueError, short(), opt({ softcap: -1 })),
      refuse(ValueError, short(), opt({ window: [-2, 0] })),
      refuse(ValueError, short(), opt({ window: [0.5, 0] })),
      refuse(ValueError, [...short(), plain([2], "u32")], (q, k, v, key) => opt({ dropout: { p: 1, key } })(q, k, v)),
      refuse(ShapeError, [...short(), plain([3], "u32")], (q, k, v, key) => opt({ dropout: { p: 0.5, key } })(q, k, v)),
      refuse(ShapeError, [...short(), plain([3])], (q, k, v, sinks) => opt({ sinks })(q, k, v)),
      refuse(ShapeError, [...short(), plain([3, 5])], (q, k, v, bias) => opt({ bias })(q, k, v)),
      refuse(DTypeError, [...short(), plain([3, 4])], (q, k, v, mask) => opt({ mask })(q, k, v)),
      refuse(ShapeError, [...short(), plain([3])], (q, k, v, alibiSlopes) => opt({ alibiSlopes })(q, k, v)),
      refuse(
        ValueError,
        [plain([3, 2, 4]), plain([3, 2, 4]), plain([3, 2, 4]), given([0, 2, 1], [3], "i32")],
        (q, k, v, cu) => varlen(q, k, v, cu, 3),
      ),
      refuse(
        ValueError,
        [plain([3, 2, 4]), plain([3, 2, 4]), plain([3, 2, 4]), given([0, 3], [2], "i32")],
        (q, k, v, cu) => varlen(q, k, v, cu, 2),
      ),
      refuse(
        IndexError,
        [plain([3, 2, 4]), plain([3, 2, 4]), plain([3, 2, 4]), given([0, 4], [2], "i32")],
        (q, k, v, cu) => varlen(q, k, v, cu, 4),
      ),
    ),
  } satisfies Sample<FlashParams>,
  attentionBackward: {
    leavesZeros: true,
    calls: (held) => arbCalls(held, 8).chain(backwardCall),
    accuracy: {
      kind: "worst",
      naive: naiveSums.map((sum, n) => ([dOut, dLse, q, k, v, out, lse, ...rest], params, ...outputs) =>
        naiveBackward(
          problemOf([q, k, v, ...rest], params),
          [dOut, dLse, out, lse],
          params.gradients,
          [sum, naiveSums[(n + 1) % naiveSums.length]],
          outputs,
        )
      ),
    },
    smooth: null,
    refused: null,
  } satisfies Sample<ParamsOf<typeof attentionBackwardOp>>,
  cacheAppend: {
    calls: (held) => cacheCalls(held).map(({ append }) => append),
    accuracy: { kind: "each", naive: [naiveAppend] },
    smooth: null,
    refused: oneOf(
      refuse(
        IndexError,
        [...cached(5), ...fresh(2), given([4], [1], "i32")],
        (q, k, v, newK, newV, cacheSeqlens) =>
          flashAttentionWithKvCache(q, { k, v }, { k: newK, v: newV, cacheSeqlens }),
      ),
      refuse(ShapeError, [...cached(5), plain([1, 1, 2, 3]), plain([1, 1, 2, 4]), given([0], [1], "i32")], (
        q,
        k,
        v,
        newK,
        newV,
        cacheSeqlens,
      ) => flashAttentionWithKvCache(q, { k, v }, { k: newK, v: newV, cacheSeqlens })),
      refuse(
        ValueError,
        [...cached(5), ...fresh(1)],
        (q, k, v, newK) => flashAttentionWithKvCache(q, { k, v }, { k: newK, cacheSeqlens: 0 }),
      ),
    ),
  } satisfies Sample<CacheAppendParams>,
  cacheAttention: {
    leavesZeros: true,
    calls: (held) => cacheCalls(held).map(({ attend }) => attend),
    accuracy: { kind: "worst", naive: naiveSums.map(naiveCached) },
    smooth: null,
    refused: oneOf(
      refuse(
        IndexError,
        [...cached(5), given([6], [1], "i32")],
        (q, k, v, cacheSeqlens) => flashAttentionWithKvCache(q, { k, v }, { cacheSeqlens }),
      ),
      refuse(
        IndexError,
        [...cached(5), given([-1], [1], "i32")],
        (q, k, v, cacheSeqlens) => flashAttentionWithKvCache(q, { k, v }, { cacheSeqlens }),
      ),
      refuse(
        IndexError,
        [...cached(5), ...seqlens(2), given([1], [1], "i32")],
        (q, k, v, cacheSeqlens, cacheBatchIdx) =>
          flashAttentionWithKvCache(q, { k, v }, { cacheSeqlens, cacheBatchIdx }),
      ),
      refuse(
        IndexError,
        [...cached(5), ...seqlens(3), given([1], [1, 1], "i32")],
        (q, k, v, cacheSeqlens, blockTable) => flashAttentionWithKvCache(q, { k, v }, { cacheSeqlens, blockTable }),
      ),
      refuse(
        ShapeError,
        [...cached(5), ...seqlens(1, 1)],
        (q, k, v, cacheSeqlens) => flashAttentionWithKvCache(q, { k, v }, { cacheSeqlens }),
      ),
      refuse(
        DTypeError,
        [...cached(5), plain([1])],
        (q, k, v, cacheSeqlens) => flashAttentionWithKvCache(q, { k, v }, { cacheSeqlens }),
      ),
      refuse(
        ValueError,
        [...cached(5), ...seqlens(1)],
        (q, k, v, cacheSeqlens) => flashAttentionWithKvCache(q, { k, v }, { cacheSeqlens, numSplits: -1 }),
      ),
    ),
  } satisfies Sample<CacheAttentionParams>,
  dropoutMask: {
    calls: () =>
      compose((draw) => {
        const shape = [integer(0, 3), integer(1, 3), integer(0, 9), integer(0, 30)].map(draw);
        return callOf([draw(arbKey)], { shape, p: draw(oneOf(elementOf(0, 0.5), float({ min: 0, max: 0.99 }))) });
      }),
    accuracy: { kind: "exact" },
    smooth: null,
    refused: oneOf(
      refuse(ValueError, [plain([2], "u32")], (key) => dropoutMask(key, 1, [1, 1, 1, 1])),
      refuse(ValueError, [plain([2], "u32")], (key) => dropoutMask(key, NaN, [1, 1, 1, 1])),
      refuse(ShapeError, [plain([2], "u32")], (key) => dropoutMask(key, 0.5, [1, 1, 1])),
      refuse(ShapeError, [plain([3], "u32")], (key) => dropoutMask(key, 0.5, [1, 1, 1, 1])),
      refuse(DTypeError, [plain([2])], (key) => dropoutMask(key, 0.5, [1, 1, 1, 1])),
    ),
  } satisfies Sample<{ shape: Shape; p: number }>,
};

function varlen(q: Tensor, k: Tensor, v: Tensor, cu: Tensor, most: number): Tensor {
  return flashAttentionVarlen(q, k, v, { cuSeqlensQ: cu, cuSeqlensK: cu, maxSeqlenQ: most, maxSeqlenK: most });
}

/** A query and a cache of so many positions. */
function cached(length: number): readonly [Arbitrary<TensorData>, Arbitrary<TensorData>, Arbitrary<TensorData>] {
  return [plain([1, 1, 2, 4]), plain([1, length, 2, 4]), plain([1, length, 2, 4])];
}

function fresh(count: number): readonly [Arbitrary<TensorData>, Arbitrary<TensorData>] {
  return [plain([1, count, 2, 4]), plain([1, count, 2, 4])];
}

function seqlens(...lengths: number[]): readonly [Arbitrary<TensorData>] {
  return [given(lengths, [lengths.length], "i32")];
}

interface CacheCalls {
  readonly append: Call<CacheAppendParams>;
  readonly attend: Call<CacheAttentionParams>;
}

/** A cache, dense or in pages, what is appended to it, and the attention that follows. */
function cacheCalls(held: readonly DType[]): Arbitrary<CacheCalls> {
  const free = compose((draw) => {
    const built = draw(buildOf(typeOf(held, floats), [4, 8, 16, 64])), { dtype } = built, paged = draw(boolean());
    const narrow = dtype === "f64" ? dtype : draw(elementOf(dtype, dtype, "f32", "f16", "bf16"));
    return {
      ...built,
      paged,
      cacheType: narrow,
      newType: draw(elementOf(dtype, narrow)),
      rotary: draw(boolean()),
      padded: draw(integer(0, 3)) === 3,
      chosen: !paged && draw(boolean()),
      interleaved: draw(boolean()),
      numSplits: draw(elementOf(0, 0, 1, 2, 3)),
      Sq: draw(integer(1, 3)),
      group: draw(integer(1, 3)),
      turned: draw(elementOf(1, 0.5)),
    };
  });
  const build = held.includes("f64") ? free : few(free, 12);
  return compose((draw) => {
    const built = draw(build), { dtype, cacheType, newType, D, Dv, optional } = built;
    const { paged, rotary, padded, chosen, interleaved, numSplits, Sq, group, turned, viewed } = built;
    const wide: DType = dtype === "f64" ? "f64" : "f32";
    const input = (shape: Shape, of = dtype, range: readonly [number, number] = [-2, 2], views = true) =>
      draw(arbInput(shape, of, { range, specials: [0], views }));
    const operand = (shape: Shape, i: number) => input(shape, i === 0 ? dtype : cacheType, [-2, 2], i === viewed);
    const whole = (values: readonly number[], shape: Shape = [values.length]) => draw(given(values, shape, "i32"));
    const [B, T, Hk] = [draw(integer(1, 3)), draw(integer(1, 3)), draw(integer(1, 2))], H = Hk * group;
    const page = draw(elementOf(1, 4, 16)), pages = draw(integer(1, 4));
    const capacity = paged ? page * pages : draw(integer(1, draw(integer(0, 5)) === 5 ? 300 : 12));
    const rows = paged ? B * pages + draw(integer(0, 2)) : B + (chosen ? draw(integer(0, 2)) : 0);
    const order = draw(shuffled(rows));
    const lengths = Array.from({ length: B }, () => draw(integer(0, Math.max(0, capacity - T))));
    const numbers = draw(numbersOf(built));
    const width = rotary ? turned * D / 2 : 0;
    const reach = Math.max(...lengths) + Math.max(T, Sq) + 1;
    const places: Partial<Record<OptionalInput, TensorData>> = {
      ...(chosen ? { cacheBatchIdx: whole(order.slice(0, B)) } : {}),
      ...(paged ? { blockTable: whole(order.slice(0, B * pages), [B, pages]) } : {}),
      ...(rotary ? { cos: input([reach, width], wide, [-1, 1]), sin: input([reach, width], wide, [-1, 1]) } : {}),
    };
    const make = makersOf(draw, input, built, [B, H, Sq, capacity]);
    const found: Partial<Record<OptionalInput, TensorData>> = {
      ...Object.fromEntries(optional.map((name) => [name, make[name]!()])),
      ...places,
      ...(padded ? { cacheLeftpad: whole(lengths.map((n) => draw(integer(0, n)))) } : {}),
    };
    const listed = (of: Partial<Record<OptionalInput, TensorData>>) => {
      const names = optionalInputs.filter((name) => of[name] !== undefined);
      return { names, tensors: names.map((name) => of[name]!) };
    };
    const lead = [rows, paged ? page : capacity, Hk];
    const cache = [operand([...lead, D], 1), operand([...lead, Dv], 2)];
    const before = whole(lengths);
    const appended = listed(places), attended = listed(found);
    const fresh = [input([B, T, Hk, D], newType), input([B, T, Hk, Dv], newType)];
    const added = Math.min(draw(elementOf(0, T)), capacity);
    return {
      append: callOf([...cache, ...fresh, before, ...appended.tensors], { optional: appended.names, interleaved }),
      attend: callOf([operand([B, Sq, H, D], 0), ...cache, before, ...attended.tensors], {
        ...numbers,
        optional: attended.names,
        interleaved,
        added,
        numSplits,
      }),
    };
  });
}

function shuffled(n: number): Arbitrary<number[]> {
  return compose((draw) => {
    const rest = Array.from({ length: n }, (_, i) => i);
    return Array.from({ length: n }, () => rest.splice(draw(integer(0, rest.length - 1)), 1)[0]);
  });
}

/** Rows `[B, T, H, D]` turned to their positions, in f32. */
function turned(
  x: NdArray,
  positionOf: (b: number, t: number) => number,
  { cos, sin }: Partial<Record<OptionalInput, NdArray>>,
  interleaved: boolean,
): NdArray {
  if (!cos || !sin) return x;
  const [, T, H, D] = x.shape, width = cos.shape[1], data = Float32Array.from(x.data);
  for (let row = 0; row * D < data.length; row++) {
    const position = positionOf(Math.floor(row / H / T), Math.floor(row / H) % T);
    for (let i = 0; i < width; i++) {
      const first = row * D + (interleaved ? 2 * i : i), second = first + (interleaved ? 1 : width);
      const c = cos.data[position * width + i] ?? NaN, s = sin.data[position * width + i] ?? NaN;
      data[first] = f(f(x.data[first] * c) - f(x.data[second] * s));
      data[second] = f(f(x.data[second] * c) + f(x.data[first] * s));
    }
  }
  return { ...x, data };
}

function naiveAppend(
  inputs: readonly NdArray[],
  { optional, interleaved }: CacheAppendParams,
  ...out: NdArray[]
): void {
  const [kCache, vCache, k, v, lengths, ...rest] = inputs.map(dense), found = named(optional, rest, 0);
  const keys = turned(k, (b, t) => lengths.data[b] + t, found, interleaved);
  const places = optional.filter((name) => name !== "cos" && name !== "sin");
  const tensors = places.map((name) => found[name]!);
  const params = { optional: places, interleaved };
  cacheAppendOp.reference([kCache, vCache, keys, v, lengths, ...tensors], params, out[0], out[1]);
}
