/**
 * Flash attention: softmax(scale·Q·Kᵀ)·V with its options, as one op that keeps nothing of size Sq×Sk.
 *
 * Dao et al. 2022, arXiv:2205.14135; Dao 2023, arXiv:2307.08691. The order of the options is scale, softcap, ALiBi, bias,
 * masks, softmax, dropout. A row that sees no key gives 0, its lse is −∞, its gradients are 0.
 */
import {
  type AttentionOptions,
  type AttentionParams,
  type AttentionSizes,
  checkCuSeqlens,
  checkHeads,
  checkOptional,
  denseSizes,
  named,
  numbersOf,
  type OptionalInput,
  tensorsOf,
} from "./attention_options.ts";
import { attend, attendBackward, type Problem, type Sequence } from "./attention_reference.ts";
import { ShapeError, show, ValueError } from "./errors.ts";
import { dense, expectDType, expectRank, type NdArray, type Op, runAll, type Spec } from "./op.ts";
import { reshape, slice } from "./movement.ts";
import type { Tensor } from "./tensor.ts";

/** Parameters of the attention op. */
export interface FlashParams extends AttentionParams {
  /** The longest sequences' lengths where lengths vary, else null. */
  readonly maxSeqlens: readonly [q: number, k: number] | null;
}

/** The sizes of a call, its shapes checked. */
function sizesOf(
  op: string,
  [q, k, v, ...rest]: readonly Spec[],
  { maxSeqlens, optional }: Pick<FlashParams, "maxSeqlens" | "optional">,
): AttentionSizes {
  const found = named(optional, rest, 0);
  const sizes = maxSeqlens === null ? denseSizes(op, q, k, v) : varlenSizes(op, q, k, v, found, maxSeqlens);
  checkOptional(op, found, sizes);
  return sizes;
}

function varlenSizes(
  op: string,
  q: Spec,
  k: Spec,
  v: Spec,
  { cuSeqlensQ, cuSeqlensK }: Partial<Record<OptionalInput, Spec>>,
  [seqlenQ, seqlenK]: readonly [number, number],
): AttentionSizes {
  for (const [name, x] of [["q", q], ["k", k], ["v", v]] as const) expectRank(op, name, x.shape, 3);
  if (k.shape[0] !== v.shape[0]) {
    throw new ShapeError(
      op,
      `packed rows of k and v differ: k ${show(k.shape)}, v ${show(v.shape)} (${k.shape[0]} ≠ ${v.shape[0]})`,
    );
  }
  if (!cuSeqlensQ || !cuSeqlensK) throw new ValueError(op, "needs cuSeqlensQ and cuSeqlensK");
  for (const [name, x] of [["cuSeqlensQ", cuSeqlensQ], ["cuSeqlensK", cuSeqlensK]] as const) {
    expectDType(op, name, x.dtype, ["i32"]);
    expectRank(op, name, x.shape, 1);
  }
  const [batch, other] = [cuSeqlensQ.shape[0] - 1, cuSeqlensK.shape[0] - 1];
  if (batch !== other || batch < 0) {
    throw new ShapeError(
      op,
      `cuSeqlensQ and cuSeqlensK are both [sequences + 1]: ${show(cuSeqlensQ.shape)}, ${show(cuSeqlensK.shape)}`,
    );
  }
  for (const [name, n] of [["maxSeqlenQ", seqlenQ], ["maxSeqlenK", seqlenK]] as const) {
    if (!Number.isSafeInteger(n) || n < 0) {
      throw new ValueError(op, `${name} is a whole number of at least 0, got ${n}`);
    }
  }
  return { batch, seqlenQ, seqlenK, ...checkHeads(op, q, k, v) };
}

/** Statistics are f32 whatever the storage; f64 computes in f64. */
function lseSpec(q: Spec, { batch, heads, seqlenQ }: AttentionSizes, params: FlashParams): Spec {
  const shape = params.maxSeqlens === null ? [batch, heads, seqlenQ] : [heads, q.shape[0]];
  return { shape, dtype: q.dtype === "f64" ? "f64" : "f32" };
}

function problemOf(inputs: readonly NdArray[], params: FlashParams): Problem {
  const sizes = sizesOf("attention", inputs, params);
  const [q, k, v, ...rest] = inputs.map(dense), optional = named(params.optional, rest, 0);
  const sequences = Array.from({ length: sizes.batch }, (_, b) => params.maxSeqlens === null ? row(b) : piece(b));
  return { params, sizes, sequences, q, k, v, optional };

  function row(b: number): Sequence {
    const { seqlenQ: sq, seqlenK: sk, heads } = sizes;
    return { b, sq, sk, first: 0, qRow: b * sq, keyRow: (j) => b * sk + j, lseAt: (h) => (b * heads + h) * sq };
  }

  function piece(b: number): Sequence {
    const cuQ = optional.cuSeqlensQ!.data, cuK = optional.cuSeqlensK!.data, qRow = cuQ[b];
    const sq = Math.min(cuQ[b + 1] - qRow, sizes.seqlenQ), sk = Math.min(cuK[b + 1] - cuK[b], sizes.seqlenK);
    return { b, sq, sk, first: 0, qRow, keyRow: (j) => cuK[b] + j, lseAt: (h) => h * q.shape[0] + qRow };
  }
}

/**
 * out and lse of attention.
 *
 * Inputs: q `[B,Sq,H,D]`, k `[B,Sk,Hk,D]`, v `[B,Sk,Hk,Dv]`; with `maxSeqlens` q `[Tq,H,D]`, k `[Tk,Hk,D]`,
 * v `[Tk,Hk,Dv]`; all of one float dtype. Then those that `params.optional` names, in its order:
 * alibiSlopes f32 `[H]` or `[B,H]` · bias of any float dtype and mask bool, both of up to four axes that broadcast to
 * `[B,H,Sq,Sk]` (`[B,H,maxSeqlenQ,maxSeqlenK]`) · sinks f32 `[H]` · key u32 `[2]`, there when `params.dropout` > 0 ·
 * cuSeqlensQ and cuSeqlensK i32 `[B+1]`, there when `maxSeqlens` is not null.
 *
 * Outputs: out in q's dtype, `[B,Sq,H,Dv]` (`[Tq,H,Dv]`), and lse f32 (f64 for f64), `[B,H,Sq]` (`[H,Tq]`).
 * Packed rows of no sequence give 0 and −∞ as well; sequences longer than their maximum are cut to it.
 */
export const attentionOp: Op<FlashParams> = {
  name: "attention",
  infer: (inputs, params) => {
    const [q] = inputs, sizes = sizesOf("attention", inputs, params);
    return [{ shape: [...q.shape.slice(0, -1), sizes.valueDim], dtype: q.dtype }, lseSpec(q, sizes, params)];
  },
  reference: (inputs, params, out, lse) => attend(problemOf(inputs, params), out, lse),
};

/** Parameters of the derivative. */
export interface FlashBackwardParams extends FlashParams {
  /** Which of the optional inputs' gradients are computed, in this order. */
  readonly gradients: readonly ("bias" | "sinks")[];
}

/**
 * The gradients of attention.
 *
 * Inputs: dOut like out, dLse like lse, then q, k, v, then out and lse, then the optional ones of `attention`.
 * Outputs: dq, dk, dv like q, k, v; then those that `params.gradients` names: dBias like bias, dSinks like sinks.
 */
export const attentionBackwardOp: Op<FlashBackwardParams> = {
  name: "attentionBackward",
  infer: ([dOut, dLse, q, k, v, out, lse, ...rest], params) => {
    sizesOf("attentionBackward", [q, k, v, ...rest], params);
    for (const [name, d, y] of [["out", dOut, out], ["lse", dLse, lse]] as const) {
      if (d.dtype !== y.dtype || show(d.shape) !== show(y.shape)) {
        throw new ShapeError(
          "attentionBackward",
          `${name} is ${y.dtype} ${show(y.shape)}, its gradient ${d.dtype} ${show(d.shape)}`,
        );
      }
    }
    const found = named(params.optional, rest, 0);
    return [q, k, v, ...params.gradients.map((name) => found[name]!)].map(({ shape, dtype }) => ({ shape, dtype }));
  },
  reference: ([dOut, dLse, q, k, v, out, lse, ...rest], params, dq, dk, dv, ...others) => {
    const at = (name: "bias" | "sinks") => others[params.gradients.indexOf(name)] as NdArray | undefined;
    const given = { dOut: dense(dOut), dLse: dense(dLse), out: dense(out), lse: dense(lse) };
    attendBackward(problemOf([q, k, v, ...rest], params), given, {
      dq,
      dk,
      dv,
      dBias: at("bias"),
      dSinks: at("sinks"),
    });
  },
};

/** What attention gives when lse is asked for. */
export interface AttentionResult {
  /** The mixed values. */
  readonly out: Tensor;
  /** log Σ e^score of every row, f32; −∞ where a row sees no key. */
  readonly lse: Tensor;
}

function flash(op: string, q: Tensor, k: Tensor, v: Tensor, options: AttentionOptions): AttentionResult {
  for (const [name, x] of [["q", q], ["k", k], ["v", v]] as const) expectRank(op, name, x.shape, 4);
  const numbers = numbersOf(op, options, q.shape[3]);
  const { optional, tensors } = tensorsOf({ ...options, key: numbers.dropout > 0 ? options.dropout!.key : undefined });
  const params: FlashParams = { ...numbers, optional, maxSeqlens: null };
  sizesOf(op, [q, k, v, ...tensors], params);
  const [out, lse] = runAll(attentionOp, [q, k, v, ...tensors], params);
  return { out, lse };
}

/**
 * Attention, out = softmax(q·kᵀ/√D)·v, without the scores ever in memory: what it needs grows with Sq + Sk, forward and
 * backward. Scores of f16 may pass 65,504, where {@linkcode naiveAttention} is NaN; beyond 4·10⁸ their gradients may be infinite.
 *
 * @param q queries, `[B, Sq, H, D]`
 * @param k keys, `[B, Sk, Hk, D]`, H a multiple of Hk: query head h reads key/value head ⌊h / (H/Hk)⌋
 * @param v values, `[B, Sk, Hk, Dv]`
 * @returns `[B, Sq, H, Dv]` in the dtype of q
 * @throws {ShapeError} when sizes do not fit each other
 * @throws {DTypeError} when q, k and v are not of one float dtype, or the mask is not bool
 * @throws {ValueError} when an option is out of its range
 * @throws {LimitError} when D or Dv is above 256
 * @throws {UnsupportedError} for a second derivative, which {@linkcode naiveAttention} has
 *
 * @example
 * ```ts
 * import { flashAttention, key, randn, split } from "@flashtape/flashtape";
 * const [a, b, c] = split(key(0), 3);
 * const q = randn(a, [1, 128, 8, 64]), k = randn(b, [1, 128, 2, 64]), v = randn(c, [1, 128, 2, 64]);
 * const out = flashAttention(q, k, v, { causal: true });
 * console.log(out.shape); // [1, 128, 8, 64]
 * ```
 */
export function flashAttention(q: Tensor, k: Tensor, v: Tensor, options: AttentionOptions = {}): Tensor {
  return outOf(flash("flashAttention", q, k, v, options));
}

function outOf({ out, lse }: AttentionResult): Tensor {
  lse.dispose();
  return out;
}

/**
 * {@linkcode flashAttention}, and the logarithm of each row's softmax sum. Both have gradients.
 *
 * @returns out `[B, Sq, H, Dv]` and lse f32 `[B, H, Sq]`
 * @throws as {@linkcode flashAttention} does
 */
export function flashAttentionWithLse(
  q: Tensor,
  k: Tensor,
  v: Tensor,
  options: AttentionOptions = {},
): AttentionResult {
  return flash("flashAttentionWithLse", q, k, v, options);
}

/** Part `i` of axis `axis`, which is dropped: a view. */
function part(x: Tensor, axis: number, i: number): Tensor {
  using one = slice(x, x.shape.map((_, a) => a === axis ? i : 0), x.shape.map((n, a) => a === axis ? i + 1 : n));
  return reshape(one, x.shape.toSpliced(axis, 1));
}

/**
 * {@linkcode flashAttention} over queries, keys and values in one tensor, read in place; its gradient is one tensor too.
 *
 * @param qkv `[B, S, 3, H, D]`
 * @returns `[B, S, H, D]`
 * @throws as {@linkcode flashAttention} does
 */
export function flashAttentionQkvPacked(qkv: Tensor, options: AttentionOptions = {}): Tensor {
  const op = "flashAttentionQkvPacked";
  expectRank(op, "qkv", qkv.shape, 5);
  if (qkv.shape[2] !== 3) throw new ShapeError(op, `qkv is [B,S,3,H,D], got ${show(qkv.shape)} (${qkv.shape[2]} ≠ 3)`);
  using q = part(qkv, 2, 0), k = part(qkv, 2, 1), v = part(qkv, 2, 2);
  return outOf(flash(op, q, k, v, options));
}

/**
 * {@linkcode flashAttention} over keys and values in one tensor, read in place; its gradient is one tensor too.
 *
 * @param q `[B, Sq, H, D]`
 * @param kv `[B, Sk, 2, Hk, D]`
 * @returns `[B, Sq, H, D]`
 * @throws as {@linkcode flashAttention} does
 */
export function flashAttentionKvPacked(q: Tensor, kv: Tensor, options: AttentionOptions = {}): Tensor {
  const op = "flashAttentionKvPacked";
  expectRank(op, "kv", kv.shape, 5);
  if (kv.shape[2] !== 2) throw new ShapeError(op, `kv is [B,S,2,Hk,D], got ${show(kv.shape)} (${kv.shape[2]} ≠ 2)`);
  using k = part(kv, 2, 0), v = part(kv, 2, 1);
  return outOf(flash(op, q, k, v, options));
}

/** Options of attention over packed sequences. */
export interface VarlenOptions extends AttentionOptions {
  /** Where each sequence's queries start, and where the last one ends: i32 `[B+1]`, the first 0. */
  readonly cuSeqlensQ: Tensor;
  /** The same of keys and values. */
  readonly cuSeqlensK: Tensor;
  /** The most queries that a sequence has. */
  readonly maxSeqlenQ: number;
  /** The most keys that a sequence has. */
  readonly maxSeqlenK: number;
}

function varlen(op: string, q: Tensor, k: Tensor, v: Tensor, options: VarlenOptions): AttentionResult {
  for (const [name, x] of [["q", q], ["k", k], ["v", v]] as const) expectRank(op, name, x.shape, 3);
  const { cuSeqlensQ, cuSeqlensK, maxSeqlenQ, maxSeqlenK } = options;
  const numbers = numbersOf(op, options, q.shape[2]);
  const { optional, tensors } = tensorsOf({ ...options, key: numbers.dropout > 0 ? options.dropout!.key : undefined });
  const params: FlashParams = { ...numbers, optional, maxSeqlens: [maxSeqlenQ, maxSeqlenK] };
  sizesOf(op, [q, k, v, ...tensors], params);
  checkCuSeqlens(op, "cuSeqlensQ", cuSeqlensQ, q.shape[0], maxSeqlenQ);
  checkCuSeqlens(op, "cuSeqlensK", cuSeqlensK, k.shape[0], maxSeqlenK);
  const [out, lse] = runAll(attentionOp, [q, k, v, ...tensors], params);
  return { out, lse };
}

/**
 * {@linkcode flashAttention} over sequences of different lengths, one after another without padding. Sequences of length
 * zero are legal on either side.
 *
 * @param q `[Tq, H, D]`, the queries of all sequences
 * @param k `[Tk, Hk, D]`
 * @param v `[Tk, Hk, Dv]`
 * @param options where the sequences start, and the options of {@linkcode flashAttention}; bias and mask broadcast to
 * `[B, H, maxSeqlenQ, maxSeqlenK]`
 * @returns `[Tq, H, Dv]`
 * @throws as {@linkcode flashAttention} does, and {ValueError} or {IndexError} when the host knows the sequences' starts
 * and they are not in order, exceed the rows or a maximum
 */
export function flashAttentionVarlen(q: Tensor, k: Tensor, v: Tensor, options: VarlenOptions): Tensor {
  return outOf(varlen("flashAttentionVarlen", q, k, v, options));
}

/**
 * {@linkcode flashAttentionVarlen}, and the logarithm of each row's softmax sum.
 * @returns out `[Tq, H, Dv]` and lse f32 `[H, Tq]`
 * @throws as {@linkcode flashAttentionVarlen} does
 */
export function flashAttentionVarlenWithLse(q: Tensor, k: Tensor, v: Tensor, options: VarlenOptions): AttentionResult {
  return varlen("flashAttentionVarlenWithLse", q, k, v, options);
}
