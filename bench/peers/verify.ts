/** Whether a peer did its work: results against flashtape's reference on the CPU, row by row, and what is left as a whole. */
import {
  cpu,
  flashAttention,
  grad,
  matmul,
  mul,
  naiveAttention,
  scope,
  sum,
  type Tensor,
  tensor,
} from "@flashtape/flashtape";
import { type AttentionWork, inputsOf, type PeerDType, type Work } from "./work.ts";

/** How far rounding may lead, as ‖result − reference‖ / ‖reference‖. */
export const tolerance: Readonly<Record<PeerDType, number>> = { f32: 1e-3, f16: 1e-2 };

/** Rows that are compared one by one. */
const sampled = 48;

/** Adds up how far numbers are apart. */
class Distance {
  #apart = 0;
  #size = 0;
  add(found: ArrayLike<number>, expected: ArrayLike<number>): void {
    for (let i = 0; i < expected.length; i++) {
      this.#apart += (found[i] - expected[i]) ** 2;
      this.#size += expected[i] ** 2;
    }
  }
  get relative(): number {
    return Math.sqrt(this.#apart / this.#size);
  }
}

/** Every so many-th of `count`, the last one among them. */
function spread(count: number, most: number): number[] {
  const n = Math.min(count, most);
  return Array.from({ length: n }, (_, i) => count - 1 - Math.floor(i * count / n));
}

/** The rows of one head, `[rows, D]`, out of `[B, S, H, D]`. */
function headOf(
  x: Float32Array,
  { seqlen, heads, headDim }: AttentionWork,
  b: number,
  h: number,
  rows = seqlen,
): Float32Array {
  const out = new Float32Array(rows * headDim);
  for (let i = 0; i < rows; i++) {
    const at = ((b * seqlen + i) * heads + h) * headDim;
    out.set(x.subarray(at, at + headDim), i * headDim);
  }
  return out;
}

/** The dot products, or what they are distances of: largest first. */
export interface Finding {
  /** ‖result − reference‖ / ‖reference‖ over what was compared. */
  readonly error: number;
  /** What is wrong; null when nothing is. */
  readonly objection: string | null;
}

/**
 * Compares a peer's results with the reference.
 * @param results `[B, S, H, D]` each: out, or dq, dk and dv; of `matmul` the product
 */
export async function verify(work: Work, seed: number, results: readonly Float32Array[]): Promise<Finding> {
  const inputs = inputsOf(work, seed), distance = new Distance();
  const size = inputs[0].length, expected = work.kind === "gradients" ? 3 : 1;
  if (results.length !== expected || results.some((x) => x.length !== size)) {
    const lengths = results.map((x) => x.length).join(", ");
    return { error: Infinity, objection: `expected ${expected} results of ${size} numbers, got ${lengths}` };
  }
  for (const [i, x] of results.entries()) {
    const bad = x.findIndex((value) => !Number.isFinite(value));
    if (bad >= 0) return { error: Infinity, objection: `number ${bad} of result ${i} is ${x[bad]}` };
  }
  if (work.kind === "matmul") await compareMatmul(work.n, inputs, results[0], distance);
  else if (work.kind === "forward") await compareForward(work, inputs, results[0], distance);
  else await compareGradients(work, inputs, results, distance);
  const error = distance.relative, allowed = tolerance[work.dtype];
  const objection = error <= allowed
    ? null
    : `its result is ${error.toExponential(1)} from the reference, allowed is ${allowed}`;
  return { error, objection };
}

const backend = cpu();
const host = (values: Float32Array, shape: number[]) => tensor(values, { shape, backend });

async function compareMatmul(
  n: number,
  [a, b]: Float32Array[],
  product: Float32Array,
  distance: Distance,
): Promise<void> {
  const right = host(b, [n, n]);
  for (const row of spread(n, 4)) {
    const expected = scope(() => matmul(host(a.slice(row * n, (row + 1) * n), [1, n]), right));
    distance.add(product.subarray(row * n, (row + 1) * n), await expected.data() as Float32Array);
    expected.dispose();
  }
  right.dispose();
}

/** Queries spread over sequences, heads and places. */
function* queries({ batch, heads, seqlen }: AttentionWork, most: number) {
  for (const n of spread(batch * heads * seqlen, most)) {
    yield { i: n % seqlen, h: Math.floor(n / seqlen) % heads, b: Math.floor(n / seqlen / heads) };
  }
}

async function compareForward(work: AttentionWork, inputs: Float32Array[], out: Float32Array, distance: Distance) {
  const { headDim, heads, seqlen, causal } = work;
  for (const { b, h, i } of queries(work, sampled)) {
    const at = ((b * seqlen + i) * heads + h) * headDim, keys = causal ? i + 1 : seqlen;
    const expected = scope(() => {
      const q = host(inputs[0].slice(at, at + headDim), [1, 1, 1, headDim]);
      const [k, v] = [inputs[1], inputs[2]].map((x) => host(headOf(x, work, b, h, keys), [1, keys, 1, headDim]));
      return flashAttention(q, k, v);
    });
    distance.add(out.subarray(at, at + headDim), await expected.data() as Float32Array);
    expected.dispose();
  }
}

/** dq by the reference, query by query; all three gradients of one head through naive attention's ops. */
async function compareGradients(
  work: AttentionWork,
  inputs: Float32Array[],
  results: readonly Float32Array[],
  distance: Distance,
) {
  const { headDim, heads, seqlen, causal, batch } = work;
  for (const { b, h, i } of queries(work, 12)) {
    const at = ((b * seqlen + i) * heads + h) * headDim, keys = causal ? i + 1 : seqlen;
    const expected = scope(() => {
      const [q, w] = [inputs[0], inputs[3]].map((x) => host(x.slice(at, at + headDim), [1, 1, 1, headDim]));
      const [k, v] = [inputs[1], inputs[2]].map((x) => host(headOf(x, work, b, h, keys), [1, keys, 1, headDim]));
      return grad((q: Tensor) => sum(mul(flashAttention(q, k, v), w)))(q);
    });
    distance.add(results[0].subarray(at, at + headDim), await expected.data() as Float32Array);
    expected.dispose();
  }
  const [b, h] = [batch - 1, heads - 1];
  const whole = scope(() => {
    const [q, k, v, w] = inputs.map((x) => tensor(headOf(x, work, b, h), { shape: [1, seqlen, 1, headDim] }));
    const loss = (q: Tensor, k: Tensor, v: Tensor) => sum(mul(naiveAttention(q, k, v, { causal }), w));
    return [...grad(loss, [0, 1, 2])(q, k, v)];
  });
  for (const [n, x] of whole.entries()) {
    distance.add(headOf(results[n], work, b, h), await x.data() as Float32Array);
    x.dispose();
  }
}
