/**
 * Attention out of plain ops: the textbook's, which holds S and P whole, and the two published block algorithms, for study
 * and as oracles. All of them differentiate as often as one likes.
 */
import type { AttentionResult } from "./attention.ts";
import { dropoutMask } from "./attention_dropout.ts";
import {
  type AttentionOptions,
  type AttentionSizes,
  checkOptional,
  denseSizes,
  numbersOf,
  optionalSpecs,
} from "./attention_options.ts";
import { arange, full, zeros } from "./create.ts";
import { type DType, isFloat } from "./dtype.ts";
import {
  abs,
  add,
  cast,
  div,
  equal,
  exp,
  greaterEqual,
  lessEqual,
  log,
  logicalAnd,
  logicalNot,
  maximum,
  mul,
  sub,
  tanh,
  where,
} from "./elementwise.ts";
import { DTypeError, ShapeError, show, ValueError } from "./errors.ts";
import { matmul } from "./matmul.ts";
import { broadcastTo, concat, expandDims, permute, reshape, slice, stack } from "./movement.ts";
import { softmax } from "./norm.ts";
import { logsumexp, max, sum } from "./reduce.ts";
import { scope } from "./scope.ts";
import { sameShape } from "./shape.ts";
import { detach, Tensor } from "./tensor.ts";

/** One call: q `[B,Hk,G,Sq,D]` times scale, k `[B,Hk,1,Sk,D]`, v `[B,Hk,1,Sk,Dv]`, heads in front, and the options. */
interface Eager {
  readonly q: Tensor;
  readonly k: Tensor;
  readonly v: Tensor;
  readonly sizes: AttentionSizes;
  readonly numbers: ReturnType<typeof numbersOf>;
  readonly options: AttentionOptions;
}

/** Queries q0 … q1 − 1 and keys k0 … k1 − 1. */
interface Block {
  readonly q0: number;
  readonly q1: number;
  readonly k0: number;
  readonly k1: number;
}

const rowwise = { axis: -1, keepDims: true } as const;

/** `f` of a tensor that nothing else needs. */
function next(x: Tensor, f: (x: Tensor) => Tensor): Tensor {
  const y = f(x);
  if (y !== x) x.dispose();
  return y;
}

/** In the dtype that sums are kept in. */
function accumulatorOf(dtype: DType): DType {
  return dtype === "f64" ? "f64" : "f32";
}

/** Checks a call and brings heads to the front. */
function prepare(op: string, q: Tensor, k: Tensor, v: Tensor, options: AttentionOptions, dtype: DType): Eager {
  const sizes = denseSizes(op, q, k, v), numbers = numbersOf(op, options, sizes.headDim);
  checkOptional(op, optionalSpecs(options), sizes);
  const { batch, seqlenQ, heads, kvHeads, headDim } = sizes;
  const group = kvHeads === 0 ? 0 : heads / kvHeads;
  // The scale itself is not rounded to 16 bits, only what it gives.
  const exact = cast(q, accumulatorOf(dtype)), product = mul(exact, numbers.scale);
  if (exact !== q) exact.dispose();
  const grouped = reshape(next(product, (x) => cast(x, dtype)), [batch, seqlenQ, kvHeads, group, headDim]);
  const keys = (x: Tensor) => expandDims(permute(cast(x, dtype), [0, 2, 1, 3]), 2);
  return { q: permute(grouped, [0, 2, 3, 1, 4]), k: keys(k), v: keys(v), sizes, numbers, options };
}

/** Rows from `from` to below `to` of the last axis but one. */
function rows(x: Tensor, from: number, to: number): Tensor {
  if (from === 0 && to === x.shape.at(-2)) return x;
  const begin = x.shape.map((_, a) => a === x.rank - 2 ? from : 0);
  return slice(x, begin, x.shape.map((n, a) => a === x.rank - 2 ? to : n));
}

/** A block of a tensor that broadcasts to `[B,H,Sq,Sk]`. */
function blockOf(x: Tensor, { q0, q1, k0, k1 }: Block): Tensor {
  const whole = reshape(x, [...new Array<number>(4 - x.rank).fill(1), ...x.shape]);
  const [, , height, width] = whole.shape;
  const [i0, i1] = height === 1 ? [0, 1] : [q0, q1], [j0, j1] = width === 1 ? [0, 1] : [k0, k1];
  return slice(whole, [0, 0, i0, j0], [whole.shape[0], whole.shape[1], i1, j1]);
}

/** i + Sk − Sq − j, `[bq, bk]`: how far a key lies to the left of its query. */
function distances({ sizes, q }: Eager, { q0, q1, k0, k1 }: Block): Tensor {
  return scope(() => {
    const shift = sizes.seqlenK - sizes.seqlenQ, options = { dtype: "i32", backend: q.backend } as const;
    return sub(expandDims(arange(q0 + shift, q1 + shift, options), 1), arange(k0, k1, options));
  });
}

/** Whether window and lengths let any query of the block see any of its keys. */
function isVisible({ sizes, numbers: { window: [left, right] } }: Eager, { q0, q1, k0, k1 }: Block): boolean {
  const shift = sizes.seqlenK - sizes.seqlenQ;
  return (right < 0 || k0 <= q1 - 1 + shift + right) && (left < 0 || k1 - 1 >= q0 + shift - left);
}

/** The scores of a block, −∞ where a query does not see a key: `[B, H, bq, bk]`. */
function scoresOf(call: Eager, block: Block): Tensor {
  return scope(() => {
    const { numbers: { window: [left, right], softcap }, options: { alibiSlopes, bias, mask } } = call;
    const { batch, heads } = call.sizes, { q0, q1, k0, k1 } = block;
    let s = matmul(rows(call.q, q0, q1), rows(call.k, k0, k1), { transposeB: true }); // [B, Hk, G, bq, bk]
    s = next(s, (s) => reshape(s, [batch, heads, q1 - q0, k1 - k0]));
    if (softcap > 0) {
      s = next(s, (s) => div(s, softcap));
      s = next(s, tanh);
      s = next(s, (s) => mul(s, softcap));
    }
    if (alibiSlopes !== undefined) {
      const shape = [alibiSlopes.rank === 1 ? 1 : batch, heads, 1, 1];
      const slopes = cast(reshape(alibiSlopes, shape), accumulatorOf(s.dtype));
      s = next(s, (s) => sub(s, cast(mul(slopes, abs(distances(call, block))), s.dtype)));
    }
    if (bias !== undefined) s = next(s, (s) => add(s, cast(blockOf(bias, block), s.dtype)));
    const seen: Tensor[] = [];
    if (right >= 0) seen.push(next(distances(call, block), (d) => greaterEqual(d, -right)));
    if (left >= 0) seen.push(next(distances(call, block), (d) => lessEqual(d, left)));
    if (mask !== undefined) seen.push(blockOf(mask, block));
    if (seen.length === 0) return s;
    const all = seen.reduce((a, b) => next(a, (a) => next(b, (b) => logicalAnd(a, b))));
    return next(s, (s) => where(all, s, -Infinity));
  });
}

/** Probabilities of a block after dropout; the softmax may still have to be divided by its sum. */
function dropped({ numbers: { dropout }, options, sizes }: Eager, p: Tensor, { q0, q1, k0, k1 }: Block): Tensor {
  if (dropout === 0) return p;
  return scope(() => {
    const { batch, heads, seqlenQ, seqlenK } = sizes;
    const kept = dropoutMask(options.dropout!.key, dropout, [batch, heads, seqlenQ, seqlenK]);
    return where(blockOf(kept, { q0, q1, k0, k1 }), mul(p, 1 / (1 - dropout)), 0);
  });
}

/** P·V for a block of keys, heads apart: `[B, H, bq, Dv]`. */
function mixed({ v, sizes: { batch, heads, kvHeads, valueDim } }: Eager, p: Tensor, { k0, k1 }: Block): Tensor {
  return scope(() => {
    const height = p.shape[2], grouped = reshape(p, [batch, kvHeads, heads / kvHeads, height, k1 - k0]);
    return reshape(matmul(grouped, rows(v, k0, k1)), [batch, heads, height, valueDim]);
  });
}

/** Each head's sink as a column `[1, H, 1, 1]`. */
function sinkOf({ options: { sinks }, sizes: { heads } }: Eager, dtype: DType): Tensor | null {
  return sinks === undefined ? null : cast(reshape(sinks, [1, heads, 1, 1]), dtype);
}

/** What a call gives when there is no key, or nothing to compute. */
function nothing(q: Tensor, { batch, seqlenQ, heads, valueDim }: AttentionSizes): AttentionResult {
  const { dtype, backend } = q;
  return {
    out: zeros([batch, seqlenQ, heads, valueDim], { dtype, backend }),
    lse: full([batch, heads, seqlenQ], -Infinity, { dtype: accumulatorOf(dtype), backend }),
  };
}

function naive(
  op: string,
  q: Tensor,
  k: Tensor,
  v: Tensor,
  options: AttentionOptions,
  withLse: boolean,
): { out: Tensor; lse?: Tensor } {
  return scope((): { out: Tensor; lse?: Tensor } => {
    const call = prepare(op, q, k, v, options, q.dtype), { sizes, numbers } = call;
    const { batch, heads, seqlenQ, seqlenK } = sizes, block = { q0: 0, q1: seqlenQ, k0: 0, k1: seqlenK };
    if (seqlenK === 0 || heads === 0) return nothing(q, sizes);
    let s = scoresOf(call, block); // [B, H, Sq, Sk]
    // A row of −∞ alone has no softmax: it becomes zeros before, and its probabilities zeros after.
    const [, right] = numbers.window;
    const mayBeEmpty = options.mask || options.bias || (right >= 0 && seqlenK - seqlenQ + right < 0);
    const alive = mayBeEmpty ? aliveRows(s) : null; // [B, H, Sq, 1]
    if (alive) s = next(s, (s) => where(alive, s, 0));
    const sink = sinkOf(call, s.dtype);
    if (sink) s = next(s, (s) => concat([s, broadcastTo(sink, [batch, heads, seqlenQ, 1])], { axis: -1 }));
    let lse: Tensor | undefined;
    if (withLse) {
      lse = logsumexp(cast(s, accumulatorOf(s.dtype)), { axis: -1 });
      if (alive) lse = where(reshape(alive, lse.shape), lse, -Infinity);
    }
    let p = next(s, softmax);
    if (sink) p = next(p, (p) => slice(p, [0, 0, 0, 0], [batch, heads, seqlenQ, seqlenK]));
    if (alive) p = next(p, (p) => where(alive, p, 0));
    p = next(p, (p) => dropped(call, p, block));
    return { out: permute(mixed(call, p, block), [0, 2, 1, 3]), lse };
  });
}

/** Rows whose scores are not all −∞. The maximum is only looked at: no gradient goes through it, so nothing is kept. */
function aliveRows(s: Tensor): Tensor {
  using looked = detach(s);
  return logicalNot(equal(max(looked, rowwise), -Infinity));
}

/**
 * Attention as the textbook has it: S = scale·q·kᵀ and P = softmax(S) are held whole, `[B,H,Sq,Sk]`, in the dtype of q. The
 * same options as {@linkcode flashAttention}, with all derivatives, the slopes of ALiBi included.
 *
 * @param q queries, `[B, Sq, H, D]`
 * @param k keys, `[B, Sk, Hk, D]`
 * @param v values, `[B, Sk, Hk, Dv]`
 * @returns `[B, Sq, H, Dv]`
 * @throws as {@linkcode flashAttention} does
 */
export function naiveAttention(q: Tensor, k: Tensor, v: Tensor, options: AttentionOptions = {}): Tensor {
  return naive("naiveAttention", q, k, v, options, false).out;
}

/**
 * {@linkcode naiveAttention}, and the logarithm of each row's softmax sum.
 * @returns out `[B, Sq, H, Dv]` and lse f32 `[B, H, Sq]`
 */
export function naiveAttentionWithLse(
  q: Tensor,
  k: Tensor,
  v: Tensor,
  options: AttentionOptions = {},
): AttentionResult {
  const { out, lse } = naive("naiveAttentionWithLse", q, k, v, options, true);
  return { out, lse: lse! };
}

/** Options of the block algorithms. */
export interface BlockAttentionOptions extends AttentionOptions {
  /** Rows of a block of queries, and of a block of keys; 64 when not given. */
  readonly blockSize?: number;
}

function blocksOf(length: number, size: number): [from: number, to: number][] {
  return Array.from({ length: Math.ceil(length / size) }, (_, i) => [i * size, Math.min(length, (i + 1) * size)]);
}

/** What a block of queries knows after some blocks of keys. */
interface Running {
  /** The largest score so far, −∞ before the first: `[B, H, bq, 1]`. */
  readonly m: Tensor;
  /** Σ e^(s − m) so far: `[B, H, bq, 1]`. */
  readonly l: Tensor;
  /** Σ e^(s − m)·v so far, divided by l in V1: `[B, H, bq, Dv]`. */
  readonly o: Tensor;
}

/** m where it is finite, else 0, so that e^(−∞ − m) is 0 and not NaN. */
function finite(m: Tensor): Tensor {
  return where(equal(m, -Infinity), 0, m);
}

/** Any finite m gives the same result, so no gradient goes through it. */
function rowMax(s: Tensor): Tensor {
  using looked = detach(s);
  return max(looked, rowwise);
}

function blockwise(
  op: string,
  q: Tensor,
  k: Tensor,
  v: Tensor,
  options: BlockAttentionOptions,
  algorithm: (call: Eager, queries: [number, number][], keys: [number, number][]) => Running[],
  divided: boolean,
): Tensor {
  const { blockSize = 64 } = options;
  if (!Number.isSafeInteger(blockSize) || blockSize < 1) {
    throw new ValueError(op, `blockSize is a whole number of at least 1, got ${blockSize}`);
  }
  return scope(() => {
    const dtype = accumulatorOf(q.dtype), call = prepare(op, q, k, v, options, dtype), { sizes } = call;
    if (sizes.seqlenQ === 0 || sizes.seqlenK === 0 || sizes.heads === 0) return nothing(q, sizes).out;
    const running = algorithm(call, blocksOf(sizes.seqlenQ, blockSize), blocksOf(sizes.seqlenK, blockSize));
    const sink = sinkOf(call, dtype);
    const rows = running.map(({ m, l, o }) => {
      const alive = logicalNot(equal(m, -Infinity)), before = divided ? mul(o, l) : o; // Σ e^(s − m)·v
      const top = sink ? where(alive, maximum(m, sink), 0) : finite(m), shrink = exp(sub(finite(m), top));
      const total = sink ? add(mul(l, shrink), exp(sub(sink, top))) : l;
      return where(alive, div(mul(before, shrink), where(alive, total, 1)), 0);
    });
    return cast(permute(concat(rows, { axis: 2 }), [0, 2, 1, 3]), q.dtype);
  });
}

/** The state before the first block of keys. */
function start({ sizes: { batch, heads, valueDim }, q: { dtype, backend } }: Eager, rows: number): Running {
  const column = [batch, heads, rows, 1];
  return {
    m: full(column, -Infinity, { dtype, backend }),
    l: zeros(column, { dtype, backend }),
    o: zeros([batch, heads, rows, valueDim], { dtype, backend }),
  };
}

/**
 * FlashAttention as first published (Dao et al. 2022, arXiv:2205.14135, algorithm 1), in plain ops: the outer loop goes
 * over keys, and every block of them rescales O so that it is always a finished softmax over the keys seen so far.
 *
 * @param q queries, `[B, Sq, H, D]`
 * @param k keys, `[B, Sk, Hk, D]`
 * @param v values, `[B, Sk, Hk, Dv]`
 * @param options those of {@linkcode flashAttention}, and the size of a block
 * @returns `[B, Sq, H, Dv]`
 * @throws as {@linkcode flashAttention} does
 */
export function flashAttentionV1(q: Tensor, k: Tensor, v: Tensor, options: BlockAttentionOptions = {}): Tensor {
  return blockwise("flashAttentionV1", q, k, v, options, (call, queries, keys) => {
    const running = queries.map(([q0, q1]) => start(call, q1 - q0));
    for (const [k0, k1] of keys) {
      for (const [i, [q0, q1]] of queries.entries()) {
        const block = { q0, q1, k0, k1 }, { m, l, o } = running[i];
        if (!isVisible(call, block)) continue;
        running[i] = scope(() => {
          const s = scoresOf(call, block); // [B, H, bq, bk]
          const mBlock = rowMax(s), p = exp(sub(s, finite(mBlock))), lBlock = sum(p, rowwise);
          const mNew = maximum(m, mBlock), safe = finite(mNew);
          const oldShare = mul(exp(sub(m, safe)), l), newShare = exp(sub(mBlock, safe)); // e^(m − m_new)·l, e^(m~ − m_new)
          const lNew = add(oldShare, mul(newShare, lBlock));
          const pv = mixed(call, dropped(call, p, block), block);
          const oNew = div(add(mul(oldShare, o), mul(newShare, pv)), where(equal(mNew, -Infinity), 1, lNew));
          return { m: mNew, l: lNew, o: oNew };
        });
      }
    }
    return running;
  }, true);
}

/**
 * FlashAttention-2 (Dao 2023, arXiv:2307.08691, algorithm 1), in plain ops: the outer loop goes over queries, O is kept
 * undivided, and one division ends a row.
 *
 * @param q queries, `[B, Sq, H, D]`
 * @param k keys, `[B, Sk, Hk, D]`
 * @param v values, `[B, Sk, Hk, Dv]`
 * @param options those of {@linkcode flashAttention}, and the size of a block
 * @returns `[B, Sq, H, Dv]`
 * @throws as {@linkcode flashAttention} does
 */
export function flashAttentionV2(q: Tensor, k: Tensor, v: Tensor, options: BlockAttentionOptions = {}): Tensor {
  return blockwise("flashAttentionV2", q, k, v, options, (call, queries, keys) =>
    queries.map(([q0, q1]) => {
      let running = start(call, q1 - q0);
      for (const [k0, k1] of keys) {
        const block = { q0, q1, k0, k1 }, { m, l, o } = running;
        if (!isVisible(call, block)) continue;
        running = scope(() => {
          const s = scoresOf(call, block); // [B, H, bq, bk]
          const mNew = maximum(m, rowMax(s)), safe = finite(mNew);
          const p = exp(sub(s, safe)), shrink = exp(sub(m, safe));
          const pv = mixed(call, dropped(call, p, block), block);
          return { m: mNew, l: add(mul(shrink, l), sum(p, rowwise)), o: add(mul(shrink, o), pv) };
        });
      }
      return running;
    }), false);
}

/**
 * Attention over all keys, from attention over parts of them: each part weighs e^lse. Parts that saw nothing (lse −∞)
 * weigh nothing; a row that no part saw gives 0 and −∞.
 *
 * @param outs partial results over disjoint keys, `[N, B, Sq, H, Dv]` (packed `[N, T, H, Dv]`), or a list of N
 * @param lses their `[N, B, H, Sq]` (packed `[N, H, T]`), or a list of N
 * @returns out `[B, Sq, H, Dv]` in the dtype of `outs` and lse `[B, H, Sq]`, both differentiable
 * @throws {ShapeError} when the shapes do not belong together
 */
export function combineAttention(
  outs: Tensor | readonly Tensor[],
  lses: Tensor | readonly Tensor[],
): AttentionResult {
  const op = "combineAttention";
  return scope(() => {
    const o = outs instanceof Tensor ? outs : stack(outs), l = lses instanceof Tensor ? lses : stack(lses);
    const both = `outs ${show(o.shape)}, lses ${show(l.shape)}`;
    if (o.rank !== 4 && o.rank !== 5) throw new ShapeError(op, `outs are [N,B,S,H,D] or packed [N,T,H,D]: ${both}`);
    const rows = o.shape.slice(0, -1), swap = rows.map((_, a) => a);
    swap.splice(-2, 2, rows.length - 1, rows.length - 2);
    if (!sameShape(l.shape, swap.map((a) => rows[a])) || rows[0] === 0) {
      throw new ShapeError(op, `lses are [N,B,H,S] of outs [N,B,S,H,D], N ≥ 1: ${both}`);
    }
    if (!isFloat(o.dtype) || !isFloat(l.dtype)) throw new DTypeError(op, `takes floats, got ${o.dtype} and ${l.dtype}`);
    const first = { axis: 0 } as const;
    using looked = detach(l);
    const m = max(looked, first), alive = logicalNot(equal(m, -Infinity)), top = where(alive, m, 0);
    const weights = exp(sub(l, top)); // [N, B, H, S]
    const total = where(alive, sum(weights, first), 1);
    const shares = expandDims(permute(div(weights, total), swap), -1); // [N, B, S, H, 1]
    return {
      out: cast(sum(mul(shares, o), first), o.dtype),
      lse: where(alive, add(top, log(total)), -Infinity),
    };
  });
}
