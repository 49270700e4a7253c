/**
 * Attention's loops over typed arrays: what every attention op means, and what runs where there is no GPU. Row by row,
 * keys that a row cannot see are never touched, sums in f64, nothing of size Sq×Sk.
 */
import type { NdArray } from "./op.ts";
import { type AttentionParams, type AttentionSizes, fewKeys, type OptionalInput } from "./attention_options.ts";
import { dropThreshold } from "./attention_dropout.ts";
import { philox4x32 } from "./philox.ts";
import { broadcastLayout, type Layout } from "./shape.ts";

/** One batch row: where its queries and keys lie. Query row i is row `qRow + i` of q and of out. */
export interface Sequence {
  readonly b: number;
  readonly sq: number;
  readonly sk: number;
  /** The first key that exists; those before it are padding. */
  readonly first: number;
  readonly qRow: number;
  /** The row of k and v in which key j lies. */
  keyRow(j: number): number;
  /** Where lse of head h and row 0 lies. */
  lseAt(h: number): number;
}

/** What one call works on. Operands are dense, rows of [heads, size]. */
export interface Problem {
  readonly params: AttentionParams;
  readonly sizes: AttentionSizes;
  readonly sequences: readonly Sequence[];
  readonly q: NdArray;
  readonly k: NdArray;
  readonly v: NdArray;
  readonly optional: Partial<Record<OptionalInput, NdArray>>;
}

/** The keys from `from` to below `to` that lengths and window let query i see. */
function keysOf(
  { sq, sk, first }: Sequence,
  [left, right]: AttentionParams["window"],
  i: number,
): [from: number, to: number] {
  const at = i + sk - sq;
  return [Math.max(first, left < 0 ? 0 : at - left), Math.min(sk, right < 0 ? sk : at + right + 1)];
}

/** A tensor that broadcasts to [B,H,Sq,Sk], as strides. */
function scoreLayout(x: NdArray | undefined, { batch, heads, seqlenQ, seqlenK }: AttentionSizes): Layout | undefined {
  return x && broadcastLayout(x, [batch, heads, seqlenQ, seqlenK]);
}

/** One head's rows, one after another, in f64. */
function gatherHead(x: NdArray, heads: number, head: number, count: number, row: (i: number) => number): Float64Array {
  const size = x.shape.at(-1)!, out = new Float64Array(count * size);
  for (let i = 0; i < count; i++) {
    const from = (row(i) * heads + head) * size;
    for (let d = 0; d < size; d++) out[i * size + d] = x.data[from + d];
  }
  return out;
}

/** s_j = a · b_j for rows j of b from `from` to below `to`; four at a time, so that a is read once for them. */
function products(
  a: Float64Array,
  at: number,
  b: Float64Array,
  size: number,
  from: number,
  to: number,
  s: Float64Array,
): void {
  let j = from;
  for (; j + 3 < to; j += 4) {
    let s0 = 0, s1 = 0, s2 = 0, s3 = 0;
    for (let d = 0, r = j * size; d < size; d++, r++) {
      const x = a[at + d];
      s0 += x * b[r];
      s1 += x * b[r + size];
      s2 += x * b[r + 2 * size];
      s3 += x * b[r + 3 * size];
    }
    s[j] = s0;
    s[j + 1] = s1;
    s[j + 2] = s2;
    s[j + 3] = s3;
  }
  for (; j < to; j++) {
    let sum = 0;
    for (let d = 0, r = j * size; d < size; d++, r++) sum += a[at + d] * b[r];
    s[j] = sum;
  }
}

/** y += Σ_j w_j · b_j over rows j of b from `from` to below `to`; four at a time, so that y is written once for them. */
function mix(w: Float64Array, b: Float64Array, size: number, from: number, to: number, y: Float64Array): void {
  let j = from;
  for (; j + 3 < to; j += 4) {
    const w0 = w[j], w1 = w[j + 1], w2 = w[j + 2], w3 = w[j + 3];
    for (let d = 0, r = j * size; d < size; d++, r++) {
      y[d] += w0 * b[r] + w1 * b[r + size] + w2 * b[r + 2 * size] + w3 * b[r + 3 * size];
    }
  }
  for (; j < to; j++) {
    for (let d = 0, r = j * size; d < size; d++, r++) y[d] += w[j] * b[r];
  }
}

/** row j of y += w_j · a for j from `from` to below `to`. */
function spread(
  w: Float64Array,
  a: Float64Array,
  at: number,
  size: number,
  from: number,
  to: number,
  y: Float64Array,
): void {
  for (let j = from; j < to; j++) {
    const factor = w[j];
    if (factor === 0) continue;
    for (let d = 0, r = j * size; d < size; d++, r++) y[r] += factor * a[at + d];
  }
}

/** What stands between the product and the softmax, for one head of one batch row. */
class Scores {
  readonly #problem: Problem;
  readonly #sequence: Sequence;
  readonly #slope: number;
  readonly #bias: {
    readonly data: ArrayLike<number>;
    readonly at: number;
    readonly row: number;
    readonly column: number;
  } | null;
  readonly #mask: {
    readonly data: ArrayLike<number>;
    readonly at: number;
    readonly row: number;
    readonly column: number;
  } | null;
  readonly #key: ArrayLike<number> | null;
  readonly #words = new Uint32Array(4);
  readonly #head: number;
  /** The head's sink, −∞ without. */
  readonly sink: number;
  /** 1 − tanh² of the row's scores, with softcap. */
  readonly slopes: Float64Array | null;

  constructor(problem: Problem, sequence: Sequence, head: number) {
    const { optional: { alibiSlopes, bias, mask, sinks, key }, sizes, params } = problem, { b } = sequence;
    this.#problem = problem;
    this.#sequence = sequence;
    this.#head = head;
    this.#slope = alibiSlopes ? alibiSlopes.data[(alibiSlopes.shape.length === 2 ? b * sizes.heads : 0) + head] : 0;
    const place = (x: NdArray | undefined) => {
      const layout = scoreLayout(x, sizes);
      if (!x || !layout) return null;
      const [batch, heads, row, column] = layout.strides;
      return { data: x.data, at: layout.offset + b * batch + head * heads, row, column };
    };
    this.#bias = place(bias);
    this.#mask = place(mask);
    this.#key = key?.data ?? null;
    this.sink = sinks?.data[head] ?? -Infinity;
    this.slopes = params.softcap > 0 ? new Float64Array(sequence.sk) : null;
  }

  /** Where the bias of (i, j) lies is `biasAt(i) + j · biasStep`. */
  biasAt(i: number): number {
    return this.#bias ? this.#bias.at + i * this.#bias.row : 0;
  }

  get biasStep(): number {
    return this.#bias?.column ?? 0;
  }

  /** Products q·k of row i become scores: scale, softcap, ALiBi, bias, mask. */
  finish(i: number, from: number, to: number, s: Float64Array): void {
    const { scale, softcap } = this.#problem.params, { sq, sk } = this.#sequence;
    for (let j = from; j < to; j++) s[j] *= scale;
    if (this.slopes !== null) {
      for (let j = from; j < to; j++) {
        const t = Math.tanh(s[j] / softcap);
        s[j] = softcap * t;
        this.slopes[j] = 1 - t * t;
      }
    }
    if (this.#slope !== 0) { for (let j = from; j < to; j++) s[j] -= this.#slope * Math.abs(i + sk - sq - j); }
    if (this.#bias !== null) {
      const { data, at, row, column } = this.#bias;
      for (let j = from; j < to; j++) s[j] += data[at + i * row + j * column];
    }
    if (this.#mask !== null) {
      const { data, at, row, column } = this.#mask;
      for (let j = from; j < to; j++) if (!data[at + i * row + j * column]) s[j] = -Infinity;
    }
  }

  /** What dropout multiplies the probabilities of row i by, 0 or 1/(1−p); without dropout `factors` is left alone. */
  drop(i: number, from: number, to: number, factors: Float64Array): void {
    if (this.#key === null) return;
    const { dropout } = this.#problem.params, below = dropThreshold(dropout), keep = 1 / (1 - dropout);
    for (let j = from - from % 4; j < to; j += 4) {
      philox4x32(j / 4, i, this.#head, this.#sequence.b, this.#key[0], this.#key[1], this.#words);
      for (let n = 0; n < 4; n++) if (j + n < to) factors[j + n] = this.#words[n] < below ? 0 : keep;
    }
  }
}

/** out = softmax(scores) · v, lse = log Σ e^score. Rows that see nothing: 0 and −∞. */
export function attend(problem: Problem, out: NdArray, lse: NdArray): void {
  const { params, sizes, sequences, q, k, v } = problem, { heads, kvHeads, headDim, valueDim } = sizes;
  const group = heads / kvHeads, sum = new Float64Array(valueDim);
  lse.data.fill(-Infinity);
  for (const sequence of sequences) {
    const { sq, sk, qRow } = sequence;
    const s = new Float64Array(sk), factors = new Float64Array(sk).fill(1);
    for (let g = 0; g < (sq > 0 ? kvHeads : 0); g++) {
      const keys = gatherHead(k, kvHeads, g, sk, sequence.keyRow),
        values = gatherHead(v, kvHeads, g, sk, sequence.keyRow);
      for (let h = g * group; h < (g + 1) * group; h++) {
        const queries = gatherHead(q, heads, h, sq, (i) => qRow + i), scores = new Scores(problem, sequence, h);
        const lseAt = sequence.lseAt(h);
        for (let i = 0; i < sq; i++) {
          const [from, to] = keysOf(sequence, params.window, i);
          products(queries, i * headDim, keys, headDim, from, to, s);
          scores.finish(i, from, to, s);
          let max = -Infinity, total = 0;
          for (let j = from; j < to; j++) max = Math.max(max, s[j]);
          if (max === -Infinity) continue;
          max = Math.max(max, scores.sink);
          for (let j = from; j < to; j++) total += s[j] = Math.exp(s[j] - max);
          total += Math.exp(scores.sink - max);
          lse.data[lseAt + i] = max + Math.log(total);
          scores.drop(i, from, to, factors);
          for (let j = from; j < to; j++) s[j] *= factors[j] / total;
          sum.fill(0);
          mix(s, values, valueDim, from, to, sum);
          out.data.set(sum, ((qRow + i) * heads + h) * valueDim);
        }
      }
    }
  }
}

/** What comes back from the gradients of out and lse. */
export interface AttentionGradients {
  readonly dq: NdArray;
  readonly dk: NdArray;
  readonly dv: NdArray;
  readonly dBias?: NdArray;
  readonly dSinks?: NdArray;
}

/**
 * The gradients, P again from lse: D_i = Σ dO∘O − dLSE_i (see {@linkcode fewKeys}); dV = Pᵀ·dO; dS = P∘(dO·Vᵀ − D);
 * dQ = scale·dS·K; dK = scale·dSᵀ·Q.
 */
export function attendBackward(
  problem: Problem,
  { dOut, dLse, out, lse }: {
    readonly dOut: NdArray;
    readonly dLse: NdArray;
    readonly out: NdArray;
    readonly lse: NdArray;
  },
  { dq, dk, dv, dBias, dSinks }: AttentionGradients,
): void {
  const { params, sizes, sequences, q, k, v } = problem, { heads, kvHeads, headDim, valueDim } = sizes;
  const group = heads / kvHeads, row = new Float64Array(headDim);
  const biasSum = dBias && new Float64Array(dBias.data.length), sinkSum = new Float64Array(heads);
  for (const sequence of sequences) {
    const { sq, sk, qRow } = sequence;
    const s = new Float64Array(sk), p = new Float64Array(sk), factors = new Float64Array(sk).fill(1);
    for (let g = 0; g < (sq > 0 ? kvHeads : 0); g++) {
      const keys = gatherHead(k, kvHeads, g, sk, sequence.keyRow),
        values = gatherHead(v, kvHeads, g, sk, sequence.keyRow);
      const keySum = new Float64Array(keys.length), valueSum = new Float64Array(values.length);
      for (let h = g * group; h < (g + 1) * group; h++) {
        const rowOf = (i: number) => qRow + i, lseAt = sequence.lseAt(h);
        const queries = gatherHead(q, heads, h, sq, rowOf), scores = new Scores(problem, sequence, h);
        const dOuts = gatherHead(dOut, heads, h, sq, rowOf), outs = gatherHead(out, heads, h, sq, rowOf);
        for (let i = 0; i < sq; i++) {
          const norm = lse.data[lseAt + i];
          if (norm === -Infinity) continue;
          const [from, to] = keysOf(sequence, params.window, i);
          products(queries, i * headDim, keys, headDim, from, to, s);
          scores.finish(i, from, to, s);
          scores.drop(i, from, to, factors);
          // lse may be rounded, far from zero by much: no probability is above 1.
          for (let j = from; j < to; j++) p[j] = Math.exp(Math.min(0, s[j] - norm));
          products(dOuts, i * valueDim, values, valueDim, from, to, s);
          for (let j = from; j < to; j++) s[j] *= factors[j]; // s is now dP
          const sink = Math.exp(scores.sink - norm);
          let delta = 0;
          if (sizes.seqlenK <= fewKeys) {
            let total = sink;
            for (let j = from; j < to; j++) [delta, total] = [delta + p[j] * s[j], total + p[j]];
            if (total > 0) delta /= total;
          } else for (let d = i * valueDim; d < (i + 1) * valueDim; d++) delta += dOuts[d] * outs[d];
          delta -= dLse.data[lseAt + i];
          sinkSum[h] -= sink * delta;
          for (let j = from; j < to; j++) {
            s[j] = p[j] * (s[j] - delta);
            p[j] *= factors[j];
          }
          spread(p, dOuts, i * valueDim, valueDim, from, to, valueSum);
          if (biasSum) {
            for (let j = from, at = scores.biasAt(i); j < to; j++) biasSum[at + j * scores.biasStep] += s[j];
          }
          if (scores.slopes !== null) { for (let j = from; j < to; j++) s[j] *= scores.slopes[j]; }
          for (let j = from; j < to; j++) s[j] *= params.scale;
          spread(s, queries, i * headDim, headDim, from, to, keySum);
          row.fill(0);
          mix(s, keys, headDim, from, to, row);
          dq.data.set(row, ((qRow + i) * heads + h) * headDim);
        }
      }
      for (let j = 0; j < sk; j++) {
        const at = sequence.keyRow(j) * kvHeads + g;
        dk.data.set(keySum.subarray(j * headDim, (j + 1) * headDim), at * headDim);
        dv.data.set(valueSum.subarray(j * valueDim, (j + 1) * valueDim), at * valueDim);
      }
    }
  }
  if (biasSum) dBias.data.set(biasSum);
  dSinks?.data.set(sinkSum);
}
