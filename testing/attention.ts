/** Arbitrary attention problems. */

import type { AttentionOptions } from "../tensor/attention_options.ts";
import type { Backend } from "../tensor/backend.ts";
import type { DType } from "../tensor/dtype.ts";
import { ValueError } from "../tensor/errors.ts";
import type { Tensor } from "../tensor/tensor.ts";
import { Arbitrary, constant } from "./arbitrary.ts";
import { type Random, small, type Source } from "./choices.ts";
import { arbTensor, drawLength } from "./tensors.ts";

/** An option of attention that {@link arbAttention} can turn on. */
export type AttentionFeature = Exclude<keyof AttentionOptions, "dropout">;

/** The problems of {@link arbAttention}. */
export interface AttentionBounds {
  /** The most batch rows, 2 by default. */
  readonly maxBatch?: number;
  /** The most queries and the most keys, 12 each by default. */
  readonly maxSeqlen?: number;
  /** The most key/value heads, 2 by default. */
  readonly maxHeads?: number;
  /** The most query heads a key/value head, 3 by default. */
  readonly maxGroup?: number;
  /** The largest head size, 12 by default. */
  readonly maxHeadDim?: number;
  /** Whether there may be no queries or no keys, as is the default. */
  readonly zeros?: boolean;
  /** The options that may be on; each is on in about a third of the cases. Causal, window and softcap by default. */
  readonly features?: readonly AttentionFeature[];
  /** The element type of q, k, v and bias, or what draws it; f32 by default. */
  readonly dtype?: DType | Arbitrary<DType>;
  /** Where the tensors live; the current backend by default. */
  readonly backend?: Backend;
  /** Whether the tensors may be views; false by default. */
  readonly views?: boolean;
}

/** Attention's inputs, options and sizes. */
export interface AttentionProblem {
  /** Queries, `[B,Sq,H,D]`. */
  readonly q: Tensor;
  /** Keys, `[B,Sk,Hk,D]`. */
  readonly k: Tensor;
  /** Values, `[B,Sk,Hk,Dv]`. */
  readonly v: Tensor;
  /** What is turned on; what is off is absent. */
  readonly options: AttentionOptions;
  /** Batch rows. */
  readonly B: number;
  /** Queries. */
  readonly Sq: number;
  /** Keys. */
  readonly Sk: number;
  /** Query heads, a multiple of `Hk`. */
  readonly H: number;
  /** Key/value heads. */
  readonly Hk: number;
  /** Head size of queries and keys. */
  readonly D: number;
  /** Head size of values; differs from `D` in a quarter of the cases. */
  readonly Dv: number;
}

const everyFeature: readonly AttentionFeature[] = [
  "softmaxScale",
  "causal",
  "window",
  "softcap",
  "alibiSlopes",
  "bias",
  "mask",
  "sinks",
];

/**
 * An attention problem: sizes, queries, keys, values between −2 and 2, and options. Sequences of length zero, one, and
 * unequal ones, groups of query heads, and rows that see no key all come up.
 *
 * @throws {ValueError} when a bound is no whole number of at least 1, or a feature is unknown
 *
 * @example
 * ```ts
 * import { arbAttention, check } from "@flashtape/flashtape/testing";
 * import { matmul, permute, type Tensor } from "@flashtape/flashtape";
 *
 * const problems = arbAttention({ maxGroup: 1, features: [] });
 * await check([problems], ({ q, k, B, H, Sq, Sk }) => {
 *   const heads = (x: Tensor) => permute(x, [0, 2, 1, 3]); // [B, H, S, D]
 *   const scores = matmul(heads(q), heads(k), { transposeB: true });
 *   return scores.shape.join() === [B, H, Sq, Sk].join();
 * }, { runs: 20 });
 * ```
 */
export function arbAttention(
  {
    maxBatch = 2,
    maxSeqlen = 12,
    maxHeads = 2,
    maxGroup = 3,
    maxHeadDim = 12,
    zeros = true,
    features = ["causal", "window", "softcap"],
    dtype = "f32",
    backend,
    views = false,
  }: AttentionBounds = {},
): Arbitrary<AttentionProblem> {
  for (const [name, value] of Object.entries({ maxBatch, maxSeqlen, maxHeads, maxGroup, maxHeadDim })) {
    if (Number.isSafeInteger(value) && value >= 1) continue;
    throw new ValueError("arbAttention", `${name} must be a whole number of at least 1: got ${value}`);
  }
  const unknown = features.find((feature) => !everyFeature.includes(feature));
  if (unknown !== undefined) {
    throw new ValueError("arbAttention", `"${unknown}" is no feature: ${everyFeature.join(", ")}`);
  }
  const types = dtype instanceof Arbitrary ? dtype : constant(dtype);
  return new Arbitrary((source) => {
    const type = types.draw(source);
    const upTo = (bound: number) => 1 + source.draw(bound - 1);
    // None at all, one, and the most come up more often than others.
    const pick = (random: Random) => {
      const kind = random.upTo(15);
      if (kind < 4) return [0, 1, maxSeqlen, maxSeqlen][kind];
      return 1 + random.upTo(maxSeqlen - 1);
    };
    const length = () => drawLength(source, maxSeqlen, zeros, pick);
    const [B, Sq, Sk, Hk] = [upTo(maxBatch), length(), length(), upTo(maxHeads)];
    const H = Hk * upTo(maxGroup);
    const D = upTo(maxHeadDim);
    const other = source.draw(3) === 1;
    const Dv = other ? upTo(maxHeadDim) : D;
    const make = (shape: readonly number[], min = -2, max = 2, of: DType = type) =>
      arbTensor({ shape, dtype: of, min, max, backend, views }).draw(source);
    const q = make([B, Sq, H, D]);
    const k = make([B, Sk, Hk, D]);
    const v = make([B, Sk, Hk, Dv]);

    const broadcastable = (inner: Source) => [B, H, Sq, Sk].map((n) => inner.draw(3) === 1 ? 1 : n);
    const draws: Readonly<Record<AttentionFeature, (inner: Source) => unknown>> = {
      softmaxScale: (inner) => (1 + inner.draw(15)) / 16,
      causal: () => true,
      window: (inner) => [inner.draw(maxSeqlen + 1, small) - 1, inner.draw(maxSeqlen + 1, small) - 1],
      softcap: (inner) => (1 + inner.draw(63)) / 8,
      alibiSlopes: (inner) => make(inner.draw(1) === 1 ? [B, H] : [H], 0, 1, "f32"),
      bias: (inner) => make(broadcastable(inner)),
      mask: (inner) => make(broadcastable(inner), 0, 1, "bool"),
      sinks: () => make([H], -2, 2, "f32"),
    };
    const options: AttentionOptions = Object.fromEntries(
      features.flatMap((feature) =>
        source.group((inner) => inner.draw(2) === 1 ? [[feature, draws[feature](inner)]] : [])
      ),
    );
    return { q, k, v, options, B, Sq, Sk, H, Hk, D, Dv };
  });
}
