/** Samples of attention, its derivative and its cache. The naive computation is the textbook's, op by op in f32. */
import { vjp } from "../../autograd/grad.ts";
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
import { naiveAttentionWithLse } from "../../tensor/attention_eager.ts";
import { type AttentionOptions, named, type OptionalInput, optionalInputs } from "../../tensor/attention_options.ts";
import { cpu } from "../../tensor/cpu.ts";
import { tensor } from "../../tensor/create.ts";
import { type DType, hostArray, roundTo } from "../../tensor/dtype.ts";
import { add, isFinite, where } from "../../tensor/elementwise.ts";
import { DTypeError, IndexError, LimitError, ShapeError, ValueError } from "../../tensor/errors.ts";
import { broadcastTo } from "../../tensor/movement.ts";
import { dense, type NdArray, ndarray, type ParamsOf } from "../../tensor/op.ts";
import { scope } from "../../tensor/scope.ts";
import { broadcastLayout, type Shape, sizeOf } from "../../tensor/shape.ts";
import type { Tensor } from "../../tensor/tensor.ts";
import { Arbitrary, boolean, compose, constant, elementOf, float, integer, oneOf } from "../arbitrary.ts";
import { arbTensorData, type TensorData } from "../tensors.ts";
import { onHost } from "./accuracy.ts";
import { arbInput, arbSmooth, type Call, callOf, floats, given, plain, refuse, type Sample, typeOf } from "./sample.ts";
import { f } from "./elementwise.ts";

/** One batch row: its lengths, and where its queries and keys lie in the operands. */
interface Row {
  readonly sq: number;
  readonly sk: number;
  /** Keys before this one are padding. */
  readonly first: number;
  readonly queryAt: (i: number) => number;
  readonly keyAt: (j: number) => number;
  readonly lseAt: (h: number, i: number) => number;
}

/** What the textbook needs of a call. */
interface Problem {
  readonly rows: readonly Row[];
  readonly q: NdArray;
  readonly k: NdArray;
  readonly v: NdArray;
  readonly found: Partial<Record<OptionalInput, NdArray>>;
  readonly params: Pick<FlashParams, "scale" | "window" | "softcap" | "dropout">;
}

/** The rows of a call of `attention`. */
function problemOf([q, k, v, ...rest]: readonly NdArray[], params: FlashParams): Problem {
  const found = named(params.optional, rest, 0), heads = q.shape.at(-2)!;
  if (params.maxSeqlens === null) {
    const [B, sq] = q.shape, sk = k.shape[1];
    const rows = Array.from({ length: B }, (_, b): Row => ({
      sq,
      sk,
      first: 0,
      queryAt: (i) => b * sq + i,
      keyAt: (j) => b * sk + j,
      lseAt: (h, i) => (b * heads + h) * sq + i,
    }));
    return { rows, q, k, v, found, params };
  }
  const [cuQ, cuK] = [found.cuSeqlensQ!.data, found.cuSeqlensK!.data];
  const rows = Array.from({ length: cuQ.length - 1 }, (_, b): Row => ({
    sq: cuQ[b + 1] - cuQ[b],
    sk: cuK[b + 1] - cuK[b],
    first: 0,
    queryAt: (i) => cuQ[b] + i,
    keyAt: (j) => cuK[b] + j,
    lseAt: (h, i) => h * q.shape[0] + cuQ[b] + i,
  }));
  return { rows, q, k, v, found, params };
}

/** The padded, dense form of a problem: operands `[B, S, H, D]`, and a mask that says all that windows and lengths do. */
class Textbook {
  readonly #problem: Problem;
  readonly #shape: readonly [B: number, H: number, Sq: number, Sk: number];

  constructor(problem: Problem) {
    const { rows, q, params, found } = problem;
    const most = (of: (row: Row) => number) => rows.reduce((n, row) => Math.max(n, of(row)), 0);
    const given = (params as FlashParams).maxSeqlens;
    const sq = given?.[0] ?? most((row) => row.sq), sk = given?.[1] ?? most((row) => row.sk);
    const wide = Math.max(sk, found.bias?.shape.at(-1) ?? 0, found.mask?.shape.at(-1) ?? 0);
    this.#problem = problem;
    this.#shape = [rows.length, q.shape.at(-2)!, sq, wide];
  }

  /** Rows of an operand, one batch row after another, padded with zeros. */
  gather(x: NdArray, of: "queryAt" | "keyAt"): Tensor {
    const { rows } = this.#problem, [heads, size] = x.shape.slice(-2), width = heads * size;
    const length = this.#shape[of === "queryAt" ? 2 : 3];
    const data = new Float32Array(rows.length * length * width);
    rows.forEach((row, b) => {
      for (let i = 0; i < (of === "queryAt" ? row.sq : row.sk); i++) {
        const from = row[of](i) * width;
        data.set(x.data.subarray(from, from + width), (b * length + i) * width);
      }
    });
    return tensor(data, { shape: [rows.length, length, heads, size], dtype: "f32", backend: cpu() });
  }

  /** The reverse: dense rows written to where they came from. */
  scatter(x: Tensor, of: "queryAt" | "keyAt", to: NdArray): void {
    const { rows } = this.#problem, [, length, heads, size] = x.shape, width = heads * size, data = x.dataSync();
    rows.forEach((row, b) => {
      for (let i = 0; i < (of === "queryAt" ? row.sq : row.sk); i++) {
        const from = (b * length + i) * width;
        to.data.set(data.subarray(from, from + width), row[of](i) * width);
      }
    });
  }

  /** Statistics of rows, `[B, H, Sq]` and back. */
  gatherLse(x: NdArray): Tensor {
    const [B, H, sq] = this.#shape, data = new Float32Array(B * H * sq);
    this.#forEachLse((at, place) => data[at] = x.data[place]);
    return tensor(data, { shape: [B, H, sq], dtype: "f32", backend: cpu() });
  }

  scatterLse(x: Tensor, to: NdArray): void {
    const data = x.dataSync();
    to.data.fill(-Infinity);
    this.#forEachLse((at, place) => to.data[place] = data[at]);
  }

  #forEachLse(body: (at: number, place: number) => void): void {
    const [, H, sq] = this.#shape;
    this.#problem.rows.forEach((row, b) => {
      for (let h = 0; h < H; h++) {
        for (let i = 0; i < row.sq; i++) body((b * H + h) * sq + i, row.lseAt(h, i));
      }
    });
  }

  /** The options: everything but bias and sinks. */
  options(): AttentionOptions {
    const { params: { scale, softcap, dropout }, found: { key } } = this.#problem;
    return {
      softmaxScale: scale,
      softcap,
      mask: this.#mask(),
      dropout: key && { p: dropout, key: tensor(key.data, { shape: [2], dtype: "u32", backend: cpu() }) },
    };
  }

  /** ALiBi's part of the bias. */
  alibi(): Tensor {
    const { found: { alibiSlopes } } = this.#problem, [, H] = this.#shape;
    return this.#scores("f32", (row, b, h, i, j) => {
      if (alibiSlopes === undefined) return 0;
      const slope = alibiSlopes.data[(alibiSlopes.shape.length === 2 ? b * H : 0) + h];
      return -f(slope * Math.abs(i + row.sk - row.sq - j));
    });
  }

  get scoreShape(): Shape {
    return this.#shape;
  }

  #mask(): Tensor {
    const { params: { window: [left, right] }, found: { mask } } = this.#problem;
    const layout = mask && broadcastLayout(mask, this.#shape);
    return this.#scores("bool", (row, b, h, i, j) => {
      const at = i + row.sk - row.sq;
      const inside = i < row.sq && j >= row.first && j < row.sk;
      if (!inside || (left >= 0 && j < at - left) || (right >= 0 && j > at + right)) return 0;
      if (!mask || !layout) return 1;
      const [sb, sh, si, sj] = layout.strides;
      return mask.data[layout.offset + b * sb + h * sh + i * si + j * sj];
    });
  }

  #scores(dtype: DType, value: (row: Row, b: number, h: number, i: number, j: number) => number): Tensor {
    const [B, H, sq, sk] = this.#shape, data = hostArray(dtype, B * H * sq * sk);
    let at = 0;
    for (let b = 0; b < B; b++) {
      for (let h = 0; h < H; h++) {
        for (let i = 0; i < sq; i++) {
          for (let j = 0; j < sk; j++) data[at++] = value(this.#problem.rows[b], b, h, i, j);
        }
      }
    }
    return tensor(data, { shape: this.#shape, dtype, backend: cpu() });
  }
}

const onCpu = ({ data, shape }: NdArray): Tensor => tensor(data, { shape, dtype: "f32", backend: cpu() });

/** out and lse by the textbook, in f32. */
function naiveForward(problem: Problem, out: NdArray, lse: NdArray): void {
  lse.data.fill(-Infinity);
  scope(() => {
    const book = new Textbook(problem), { q, k, v, found: { bias, sinks } } = problem;
    if (sizeOf(book.scoreShape) === 0) return;
    const result = naiveAttentionWithLse(book.gather(q, "queryAt"), book.gather(k, "keyAt"), book.gather(v, "keyAt"), {
      ...book.options(),
      bias: bias ? add(broadcastTo(onCpu(bias), book.scoreShape), book.alibi()) : book.alibi(),
      sinks: sinks && onCpu(sinks),
    });
    book.scatter(result.out, "queryAt", out);
    book.scatterLse(result.lse, lse);
  });
}

/** The gradients of the textbook, by the tape. */
function naiveBackward(
  problem: Problem,
  [dOut, dLse]: readonly NdArray[],
  gradients: FlashBackwardParams["gradients"],
  [dq, dk, dv, ...others]: readonly NdArray[],
): void {
  scope(() => {
    const book = new Textbook(problem), { q, k, v, found } = problem;
    if (sizeOf(book.scoreShape) === 0) return;
    const alibi = book.alibi(), options = book.options();
    const more = gradients.map((name) => onCpu(found[name]!));
    const fixed = (name: "bias" | "sinks") => found[name] && !gradients.includes(name) ? onCpu(found[name]) : undefined;
    const [bias, sinks] = [fixed("bias"), fixed("sinks")];
    const [, pullback] = vjp(
      (q: Tensor, k: Tensor, v: Tensor, ...rest: Tensor[]) => {
        const given = { bias, sinks, ...Object.fromEntries(gradients.map((name, i) => [name, rest[i]])) };
        return naiveAttentionWithLse(q, k, v, {
          ...options,
          bias: given.bias ? add(broadcastTo(given.bias, book.scoreShape), alibi) : alibi,
          sinks: given.sinks,
        });
      },
      book.gather(q, "queryAt"),
      book.gather(k, "keyAt"),
      book.gather(v, "keyAt"),
      ...more,
    );
    const [gq, gk, gv, ...rest] = pullback({ out: book.gather(dOut, "queryAt"), lse: book.gatherLse(dLse) });
    book.scatter(gq, "queryAt", dq);
    book.scatter(gk, "keyAt", dk);
    book.scatter(gv, "keyAt", dv);
    rest.forEach((x, i) => others[i].data.set(x.dataSync()));
  });
}

/** How large the problems are. */
interface Sizes {
  readonly most: number;
  readonly dims: readonly number[];
  readonly smooth: boolean;
}

const usual: Sizes = { most: 9, dims: [4, 4, 8, 3, 16], smooth: false };
const long: Sizes = { most: 70, dims: [4, 16, 64], smooth: false };
const tiny: Sizes = { most: 3, dims: [1, 2, 3], smooth: true };

const features = ["alibiSlopes", "bias", "mask", "sinks", "key"] as const;

/** Numbers of a call, and which optional tensors it has. */
const arbOptions = compose((draw) => {
  const some = draw(integer(0, 2));
  const optional = new Set(Array.from({ length: some }, () => draw(elementOf(...features))));
  const causal = draw(elementOf(false, true)), bounded = draw(integer(0, 3)) === 3;
  const left = bounded ? draw(integer(0, 5)) : -1, right = bounded ? draw(integer(-1, 5)) : -1;
  return {
    scale: draw(elementOf(1, 0.5, 0.25)),
    window: [left, causal ? 0 : right] as const,
    softcap: draw(elementOf(0, 0, 3)),
    dropout: optional.has("key") ? draw(elementOf(0.1, 0.5)) : 0,
    optional: optionalInputs.filter((name) =>
      (features as readonly string[]).includes(name) && optional.has(name as "key")
    ),
  };
});

const arbKey = arbTensorData({ shape: [2], dtype: "u32", max: 2 ** 32 - 1 });

/** Lengths of sequences as their prefix sums. */
const prefix = (lengths: readonly number[]) =>
  given(lengths.reduce((sums, n) => [...sums, sums.at(-1)! + n], [0]), [lengths.length + 1], "i32");

function attentionCalls(type: Arbitrary<DType>, { most, dims, smooth }: Sizes): Arbitrary<Call<FlashParams>> {
  return compose((draw) => {
    const dtype = draw(type), wide: DType = dtype === "f64" ? "f64" : "f32";
    const input = (shape: Shape, of = dtype, range: readonly [number, number] = [-2, 2]) =>
      draw(smooth ? arbSmooth(shape, range, false) : arbInput(shape, of, { range, specials: [0] }));
    const options = draw(arbOptions), least = smooth ? 1 : 0;
    const [B, Hk] = [draw(integer(1, 2)), draw(integer(1, 2))], H = Hk * draw(integer(1, smooth ? 2 : 3));
    const D = draw(elementOf(...dims)), Dv = draw(integer(0, 3)) === 3 ? draw(elementOf(...dims)) : D;
    const length = () => draw(integer(least, most));
    const packed = draw(integer(0, 3)) === 3;
    const [qs, ks] = [0, 1].map(() => packed ? Array.from({ length: B }, length) : [length()]);
    const [Sq, Sk] = [qs, ks].map((lengths) => Math.max(...lengths));
    const total = (lengths: readonly number[]) => lengths.reduce((a, b) => a + b, 0) + draw(integer(0, smooth ? 0 : 2));
    const lead = packed ? [[total(qs)], [total(ks)]] : [[B, Sq], [B, Sk]];
    const score = () => [B, H, Sq, Sk].map((n) => draw(integer(0, 3)) === 1 ? 1 : n);
    const make: Partial<Record<OptionalInput, () => TensorData>> = {
      alibiSlopes: () => input(draw(boolean()) ? [B, H] : [H], wide, [0, 0.5]),
      bias: () => input(score(), draw(elementOf(dtype, wide))),
      mask: () => draw(arbInput(score(), "bool")),
      sinks: () => input([H], wide),
      key: () => draw(arbKey),
    };
    const tensors = options.optional.map((name) => make[name]!());
    const starts = packed ? [draw(prefix(qs)), draw(prefix(ks))] : [];
    return callOf(
      [input([...lead[0], H, D]), input([...lead[1], Hk, D]), input([...lead[1], Hk, Dv]), ...tensors, ...starts],
      {
        ...options,
        optional: packed ? [...options.optional, "cuSeqlensQ" as const, "cuSeqlensK" as const] : options.optional,
        maxSeqlens: packed ? [Sq, Sk] as const : null,
      },
    );
  });
}

/** Mostly short sequences. */
const arbCalls = (held: readonly DType[]) => {
  const [short, longer] = [usual, long].map((sizes) => attentionCalls(typeOf(held, floats), sizes));
  return new Arbitrary((source) => (source.draw(19) === 19 ? longer : short).draw(source));
};

/** A call of the derivative: what the forward pass gave, and gradients of it. */
function backwardCall({ inputs, params }: Call<FlashParams>): Arbitrary<Call<FlashBackwardParams>> {
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
    const cotangents = specs.map(({ shape, dtype }) => draw(arbInput(shape, dtype, { range: [-1, 1], specials: [0] })));
    const gradients = (["bias", "sinks"] as const).filter((name) => params.optional.includes(name) && draw(boolean()));
    return callOf([...cotangents, q, ...inputs.slice(1, 3), ...made, ...inputs.slice(3)], { ...params, gradients });
  });
}

const backwardInputs = <T>([dOut, dLse, q, k, v, out, lse, ...rest]: readonly T[]) => ({
  cotangents: [dOut, dLse],
  made: [out, lse],
  forward: [q, k, v, ...rest],
});

const short = (D = 4) => [plain([1, 3, 2, D]), plain([1, 4, 2, D]), plain([1, 4, 2, D])] as const;
const opt = (options: AttentionOptions) => (q: Tensor, k: Tensor, v: Tensor) => flashAttention(q, k, v, options);

/** Samples of attention. */
export const attending = {
  attention: {
    leavesZeros: true,
    calls: arbCalls,
    accuracy: {
      kind: "worst",
      naive: [(inputs, params, out, lse) => naiveForward(problemOf(inputs, params), out, lse)],
    },
    smooth: attentionCalls(constant("f64"), tiny),
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
    calls: (held) => arbCalls(held).chain(backwardCall),
    accuracy: {
      kind: "worst",
      naive: [(inputs, params, ...outputs) => {
        const { cotangents, forward } = backwardInputs(inputs);
        naiveBackward(problemOf(forward, params), cotangents, params.gradients, outputs);
      }],
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
    accuracy: { kind: "worst", naive: [naiveCached] },
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
  return compose((draw) => {
    const dtype = draw(typeOf(held, floats)), wide: DType = dtype === "f64" ? "f64" : "f32";
    const cacheType = dtype === "f64" ? dtype : draw(elementOf(dtype, dtype, "f32", "f16", "bf16"));
    const input = (shape: Shape, of = dtype, range: readonly [number, number] = [-2, 2]) =>
      draw(arbInput(shape, of, { range, specials: [0] }));
    const whole = (values: readonly number[], shape: Shape = [values.length]) => draw(given(values, shape, "i32"));
    const [B, T, Sq] = [draw(integer(1, 3)), draw(integer(1, 3)), draw(integer(1, 3))];
    const Hk = draw(integer(1, 2)), H = Hk * draw(integer(1, 3)), D = draw(elementOf(4, 8, 16, 64));
    const Dv = draw(integer(0, 3)) === 3 ? draw(elementOf(4, 8)) : D;
    const paged = draw(boolean()), page = draw(elementOf(1, 4, 16)), pages = draw(integer(1, 4));
    const chosen = !paged && draw(boolean());
    const capacity = paged ? page * pages : draw(integer(1, draw(integer(0, 5)) === 5 ? 300 : 12));
    const rows = paged ? B * pages + draw(integer(0, 2)) : B + (chosen ? draw(integer(0, 2)) : 0);
    const order = draw(shuffled(rows));
    const lengths = Array.from({ length: B }, () => draw(integer(0, Math.max(0, capacity - T))));
    const { optional, ...numbers } = draw(arbOptions);
    const rotary = draw(boolean()), width = rotary ? draw(integer(1, D / 2)) : 0;
    const reach = Math.max(...lengths) + Math.max(T, Sq) + 1;
    const places: Partial<Record<OptionalInput, TensorData>> = {
      ...(chosen ? { cacheBatchIdx: whole(order.slice(0, B)) } : {}),
      ...(paged ? { blockTable: whole(order.slice(0, B * pages), [B, pages]) } : {}),
      ...(rotary ? { cos: input([reach, width], wide, [-1, 1]), sin: input([reach, width], wide, [-1, 1]) } : {}),
    };
    const score = () => [B, H, Sq, capacity].map((n) => draw(integer(0, 3)) === 1 ? 1 : n);
    const make: Partial<Record<OptionalInput, () => TensorData>> = {
      alibiSlopes: () => input(draw(boolean()) ? [B, H] : [H], wide, [0, 0.5]),
      bias: () => input(score(), draw(elementOf(dtype, wide))),
      mask: () => draw(arbInput(score(), "bool")),
      sinks: () => input([H], wide),
      key: () => draw(arbKey),
    };
    const found: Partial<Record<OptionalInput, TensorData>> = {
      ...Object.fromEntries(optional.map((name) => [name, make[name]!()])),
      ...places,
      ...(draw(integer(0, 3)) === 3 ? { cacheLeftpad: whole(lengths.map((n) => draw(integer(0, n)))) } : {}),
    };
    const listed = (of: Partial<Record<OptionalInput, TensorData>>) => {
      const names = optionalInputs.filter((name) => of[name] !== undefined);
      return { names, tensors: names.map((name) => of[name]!) };
    };
    const cache = [input([rows, paged ? page : capacity, Hk, D], cacheType)];
    cache.push(input([rows, paged ? page : capacity, Hk, Dv], cacheType));
    const before = whole(lengths), interleaved = draw(boolean());
    const appended = listed(places), attended = listed(found);
    const newType = draw(elementOf(dtype, cacheType));
    const fresh = [input([B, T, Hk, D], newType), input([B, T, Hk, Dv], newType)];
    const numSplits = draw(elementOf(0, 0, 1, 2, 3));
    const added = Math.min(draw(elementOf(0, T)), capacity);
    return {
      append: callOf([...cache, ...fresh, before, ...appended.tensors], { optional: appended.names, interleaved }),
      attend: callOf([input([B, Sq, H, D]), ...cache, before, ...attended.tensors], {
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

function naiveCached(inputs: readonly NdArray[], params: CacheAttentionParams, out: NdArray, lse: NdArray): void {
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
  naiveForward({ rows, q: queries, k, v, found, params }, out, lse);
}
