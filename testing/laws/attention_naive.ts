/** Attention as the textbook has it, in plain loops that round to f32 after every step. */
import type { FlashBackwardParams, FlashParams } from "../../tensor/attention.ts";
import { dropoutMaskOp } from "../../tensor/attention_dropout.ts";
import { named, type OptionalInput } from "../../tensor/attention_options.ts";
import { type NdArray, ndarray } from "../../tensor/op.ts";
import { stridesOf } from "../../tensor/shape.ts";
import { f } from "./elementwise.ts";
import type { Sum } from "./reduce.ts";

/** One batch row: its lengths, and where its queries and keys lie in the operands. */
export interface Row {
  readonly sq: number;
  readonly sk: number;
  /** Keys before this one are padding. */
  readonly first: number;
  readonly queryAt: (i: number) => number;
  readonly keyAt: (j: number) => number;
  readonly lseAt: (h: number, i: number) => number;
}

/** What the textbook needs of a call. */
export interface Problem {
  readonly rows: readonly Row[];
  readonly q: NdArray;
  readonly k: NdArray;
  readonly v: NdArray;
  readonly found: Partial<Record<OptionalInput, NdArray>>;
  readonly params: Pick<FlashParams, "scale" | "window" | "softcap" | "dropout">;
}

/** The rows of a call of `attention`. */
export function problemOf([q, k, v, ...rest]: readonly NdArray[], params: FlashParams): Problem {
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

/** What every query makes of every key that it sees, in f32 and plain loops. */
class Textbook {
  readonly #problem: Problem;
  readonly #sum: Sum;
  readonly #kept: NdArray | null;
  readonly #group: number;
  readonly heads: number;

  constructor(problem: Problem, sum: Sum) {
    const { rows, q, k, params, found: { key } } = problem;
    this.#problem = problem;
    this.#sum = sum;
    this.heads = q.shape.at(-2)!;
    this.#group = this.heads / k.shape.at(-2)!;
    const most = (of: (row: Row) => number) => rows.reduce((n, row) => Math.max(n, of(row)), 0);
    const shape = [rows.length, this.heads, most((row) => row.sq), most((row) => row.sk)];
    this.#kept = key === undefined ? null : ndarray({ shape, dtype: "bool" });
    if (key !== undefined && this.#kept !== null) {
      dropoutMaskOp.reference([key], { shape, p: params.dropout }, this.#kept);
    }
  }

  /** Where head h of a query, and of the key that belongs to it, starts in an operand. */
  query(x: NdArray, row: Row, h: number, i: number): number {
    return (row.queryAt(i) * this.heads + h) * x.shape.at(-1)!;
  }

  key(x: NdArray, row: Row, h: number, j: number): number {
    return (row.keyAt(j) * (this.heads / this.#group) + Math.floor(h / this.#group)) * x.shape.at(-1)!;
  }

  dot(a: NdArray, at: number, b: NdArray, bt: number): number {
    return this.#sum(Array.from({ length: a.shape.at(-1)! }, (_, d) => f(a.data[at + d] * b.data[bt + d])));
  }

  /** The keys that query i sees, with their scores, and the slope of a score by its product. */
  scores(b: number, h: number, i: number): { j: number; score: number; slope: number }[] {
    const { rows, q, k, params, found: { bias, mask, alibiSlopes } } = this.#problem, row = rows[b];
    const { scale, softcap, window: [left, right] } = params, at = i + row.sk - row.sq;
    const seen = [];
    for (let j = row.first; j < row.sk; j++) {
      if ((left >= 0 && j < at - left) || (right >= 0 && j > at + right)) continue;
      if (mask !== undefined && !this.place(mask, b, h, i, j).value) continue;
      let score = f(this.dot(q, this.query(q, row, h, i), k, this.key(k, row, h, j)) * f(scale)), slope = f(scale);
      if (softcap > 0) {
        const t = f(Math.tanh(f(score / softcap)));
        score = f(softcap * t);
        slope = f(slope * f(1 - f(t * t)));
      }
      if (alibiSlopes !== undefined) {
        const steep = alibiSlopes.data[(alibiSlopes.shape.length === 2 ? b * this.heads : 0) + h];
        score = f(score - f(steep * Math.abs(at - j)));
      }
      if (bias !== undefined) score = f(score + this.place(bias, b, h, i, j).value);
      seen.push({ j, score, slope });
    }
    return seen;
  }

  /** The element of a tensor that broadcasts to `[B, H, Sq, Sk]`. */
  place(x: NdArray, ...index: [b: number, h: number, i: number, j: number]): { at: number; value: number } {
    const lead = 4 - x.shape.length, strides = stridesOf(x.shape);
    const at = x.shape.reduce((at, n, axis) => at + (n === 1 ? 0 : index[axis + lead] * strides[axis]), 0);
    return { at, value: x.data[at] };
  }

  /** What dropout multiplies a probability by. */
  factor(b: number, h: number, i: number, j: number): number {
    if (this.#kept === null) return 1;
    return this.place(this.#kept, b, h, i, j).value ? f(1 / (1 - this.#problem.params.dropout)) : 0;
  }

  /** Calls `body` for every head of every query. */
  forEachQuery(body: (row: Row, b: number, h: number, i: number) => void): void {
    this.#problem.rows.forEach((row, b) => {
      for (let h = 0; h < this.heads; h++) for (let i = 0; i < row.sq; i++) body(row, b, h, i);
    });
  }
}

/** out and lse in f32. */
export function naiveForward(problem: Problem, sum: Sum, out: NdArray, lse: NdArray): void {
  const { v, found: { sinks } } = problem, book = new Textbook(problem, sum), size = v.shape.at(-1)!;
  lse.data.fill(-Infinity);
  book.forEachQuery((row, b, h, i) => {
    const seen = book.scores(b, h, i), sink = sinks?.data[h];
    if (seen.every(({ score }) => score === -Infinity)) return;
    const max = seen.reduce((max, { score }) => Math.max(max, score), sink ?? -Infinity);
    const powers = seen.map(({ score }) => f(Math.exp(f(score - max))));
    const total = sum(sink === undefined ? powers : [...powers, f(Math.exp(f(sink - max)))]);
    lse.data[row.lseAt(h, i)] = f(max + f(Math.log(total)));
    const shares = powers.map((p, n) => f(f(p / total) * book.factor(b, h, i, seen[n].j)));
    for (let d = 0; d < size; d++) {
      const terms = seen.map(({ j }, n) => f(shares[n] * v.data[book.key(v, row, h, j) + d]));
      out.data[book.query(v, row, h, i) + d] = sum(terms);
    }
  });
}

/** The gradients in f32, from what the forward pass gave. */
export function naiveBackward(
  problem: Problem,
  [dOut, dLse, out, lse]: readonly NdArray[],
  gradients: FlashBackwardParams["gradients"],
  sums: readonly [Sum, Sum],
  [dq, dk, dv, ...others]: readonly NdArray[],
): void {
  const { q, k, v, found: { sinks } } = problem,
    book = new Textbook(problem, sums[0]),
    other = new Textbook(problem, sums[1]);
  const add = (to: NdArray, at: number, value: number) => to.data[at] = f(to.data[at] + value);
  const [dBias, dSinks] = (["bias", "sinks"] as const).map((name) => others[gradients.indexOf(name)]);
  book.forEachQuery((row, b, h, i) => {
    const norm = lse.data[row.lseAt(h, i)];
    if (norm === -Infinity) return;
    const at = book.query(dOut, row, h, i), from = book.query(q, row, h, i);
    const delta = f(other.dot(dOut, at, out, at) - dLse.data[row.lseAt(h, i)]);
    if (dSinks && sinks) add(dSinks, h, -f(f(Math.exp(f(sinks.data[h] - norm))) * delta));
    for (const { j, score, slope } of book.scores(b, h, i)) {
      const p = f(Math.exp(f(score - norm))), factor = book.factor(b, h, i, j);
      const ds = f(p * f(f(book.dot(dOut, at, v, book.key(v, row, h, j)) * factor) - delta));
      if (dBias) add(dBias, book.place(problem.found.bias!, b, h, i, j).at, ds);
      const [toK, toV] = [book.key(k, row, h, j), book.key(v, row, h, j)];
      for (let d = 0; d < q.shape.at(-1)!; d++) {
        add(dq, from + d, f(f(ds * slope) * k.data[toK + d]));
        add(dk, toK + d, f(f(ds * slope) * q.data[from + d]));
      }
      for (let d = 0; d < v.shape.at(-1)!; d++) add(dv, toV + d, f(f(p * factor) * dOut.data[at + d]));
    }
  });
}
