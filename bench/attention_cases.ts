/** Attention as cases: algorithms, passes, and what each needs. */
import {
  arange,
  attentionMemory,
  type AttentionOptions,
  type Backend,
  cast,
  concat,
  expandDims,
  flashAttention,
  flashAttentionV1,
  flashAttentionV2,
  lessEqual,
  matmul,
  mul,
  naiveAttention,
  permute,
  scope,
  slice,
  softmax,
  type Tensor,
  vjp,
  where,
} from "@flashtape/flashtape";
import { attentionBackward, attentionForward, type AttentionSizes } from "./flops.ts";
import type { BenchDType } from "./options.ts";
import { type Case, normal } from "./plan.ts";

/** The algorithms, by the names that flags give them. */
export const algorithms = ["flash", "naive", "v1", "v2"] as const;
/** One of {@linkcode algorithms}. */
export type Algorithm = typeof algorithms[number];

/** One call of attention. */
export interface AttentionCall {
  readonly batch: number;
  readonly seqlen: number;
  readonly heads: number;
  readonly kvHeads: number;
  readonly headDim: number;
  readonly causal: boolean;
  /** Keys to the left and right that a query sees. */
  readonly window?: readonly [left: number, right: number];
  readonly dtype: BenchDType;
  readonly algorithm: Algorithm;
  /** Rows of a block, for v1 and v2. */
  readonly blockSize: number;
  readonly seed: number;
}

/** A pass of a call. */
export type Pass = "forward" | "backward";

type Attend = (q: Tensor, k: Tensor, v: Tensor) => Tensor;

/** How many parts naive attention is computed in: more than one where its scores are more than one binding holds. */
export function partsOf(call: AttentionCall, { capabilities: { maxBinding } }: Backend): number {
  const { algorithm, batch, heads, kvHeads, window } = call, ofHead = scoresOfHead(call);
  const whole = batch * heads * ofHead <= maxBinding, plain = kvHeads === heads && window === undefined;
  if (algorithm !== "naive" || whole || !plain || ofHead > maxBinding) return 1;
  return batch * Math.ceil(heads / Math.floor(maxBinding / ofHead));
}

/** The function that an algorithm is. */
export function attentionOf(call: AttentionCall, parts = 1): Attend {
  const { algorithm, causal, window, blockSize } = call, options: AttentionOptions = { causal, window };
  if (parts > 1) return inParts(call, parts);
  if (algorithm === "naive") return (q, k, v) => naiveAttention(q, k, v, options);
  if (algorithm === "v1") return (q, k, v) => flashAttentionV1(q, k, v, { ...options, blockSize });
  if (algorithm === "v2") return (q, k, v) => flashAttentionV2(q, k, v, { ...options, blockSize });
  return (q, k, v) => flashAttention(q, k, v, options);
}

function sizesOf({ batch, heads, seqlen, headDim, causal, window }: AttentionCall): AttentionSizes {
  return { batch, heads, seqlenQ: seqlen, seqlenK: seqlen, headDim, causal, window };
}

/** Tensors of the size of the scores that naive attention's forward and backward pass hold at their peak, as measured. */
const scoresAtOnce = 5;

/** Bytes of q, k, v and all that the call holds beside them; an estimate for backward passes. */
export function predictedBytes(call: AttentionCall, pass: Pass): number {
  const { batch, seqlen, heads, kvHeads, headDim, dtype, causal, algorithm } = call;
  const sizes = { batch, seqlen, heads, kvHeads, headDim, dtype, causal };
  const { inputs, peak, saved } = attentionMemory({ ...sizes, algorithm: algorithm === "naive" ? "naive" : "flash" });
  if (pass === "forward") return inputs + peak;
  if (algorithm !== "naive") return 3 * inputs + saved;
  const width = dtype === "f32" ? 4 : 2, scores = batch * heads * seqlen ** 2 * width;
  return inputs + scoresAtOnce * scores + 4 * batch * seqlen * heads * headDim * width;
}

/** Bytes of the scores of one head of one sequence, which naive attention holds in one tensor at the least. */
function scoresOfHead({ seqlen, dtype }: AttentionCall): number {
  return seqlen ** 2 * (dtype === "f32" ? 4 : 2);
}

/** q, k and v. */
export function inputsOf({ batch, seqlen, heads, kvHeads, headDim, dtype, seed }: AttentionCall): Tensor[] {
  return [heads, kvHeads, kvHeads].map((count, i) => normal(seed + i, [batch, seqlen, count, headDim], dtype));
}

/** `flash forward B2 S1024 H8 D64 f32 causal` */
export function nameOf(call: AttentionCall, pass: Pass): string {
  const { algorithm, batch, seqlen, heads, kvHeads, headDim, dtype, causal, window } = call;
  const grouped = kvHeads === heads ? "" : `/${kvHeads}`;
  const seen = `${causal ? " causal" : ""}${window === undefined ? "" : ` window ${window.join(":")}`}`;
  return `${algorithm} ${pass} B${batch} S${seqlen} H${heads}${grouped} D${headDim} ${dtype}${seen}`;
}

/** One pass of a call as a case. */
export function attentionCase(call: AttentionCall, pass: Pass, backend: Backend): Case {
  const { batch, seqlen, heads, kvHeads, headDim, dtype, causal, window, algorithm } = call;
  const parts = pass === "forward" ? partsOf(call, backend) : 1;
  const attend = attentionOf(call, parts), sizes = sizesOf(call);
  const labels = { algorithm, pass, batch, seqlen, heads, kvHeads, headDim, dtype, causal };
  return {
    name: `${nameOf(call, pass)}${parts > 1 ? ` in ${parts} parts` : ""}`,
    labels: { ...labels, ...(window && { window: window.join(":") }), ...(parts > 1 && { parts }) },
    flops: pass === "forward" ? attentionForward(sizes) : attentionBackward(sizes),
    predictedBytes: predictedBytes(call, pass),
    byWall: algorithm === "v1" || algorithm === "v2", // hundreds to thousands of small kernels
    prepare: () => {
      const inputs = inputsOf(call), [q, k, v] = inputs;
      if (pass === "forward") return { inputs, call: () => attend(q, k, v) };
      const dOut = normal(call.seed + 3, [batch, seqlen, heads, headDim], dtype);
      let pulled: ReturnType<typeof forward> | undefined;
      const forward = () => vjp(attend, q, k, v);
      return {
        inputs: [...inputs, dOut],
        whole: () => forward()[1](dOut),
        begin: () => {
          pulled = forward();
          pulled[0].dispose();
        },
        call: () => pulled![1](dOut, { retain: true }),
        end: () => pulled?.[1][Symbol.dispose](),
      };
    },
  };
}

/**
 * Naive attention over groups of heads, each stage over all groups before the next, so that S and P are held whole like
 * in the one-tensor form.
 */
function inParts({ batch, seqlen, heads, headDim, dtype, causal }: AttentionCall, parts: number): Attend {
  const perPart = Math.ceil(heads * batch / parts);
  const places = Array.from({ length: parts }, (_, i) => {
    const b = Math.floor(i * batch / parts), h = (i % (parts / batch)) * perPart;
    return { b, h, end: Math.min(heads, h + perPart) };
  });
  const part = (x: Tensor, { b, h, end }: typeof places[number]) =>
    permute(slice(x, [b, 0, h, 0], [b + 1, seqlen, end, headDim]), [0, 2, 1, 3]); // [1, h, S, D]
  const stage = (from: Tensor[], f: (x: Tensor, i: number) => Tensor) => {
    const to = from.map((x, i) => scope(() => f(x, i)));
    for (const x of from) x.dispose();
    return to;
  };
  return (q, k, v) =>
    scope(() => {
      let x = places.map((at) => scope(() => mul(part(q, at), headDim ** -0.5)));
      x = stage(x, (x, i) => matmul(x, part(k, places[i]), { transposeB: true })); // S
      if (causal) {
        using seen = lowerTriangle(seqlen);
        x = stage(x, (s) => where(seen, s, -Infinity));
      }
      x = stage(x, (s) => cast(softmax(s), dtype)); // P
      x = stage(x, (p, i) => matmul(p, part(v, places[i])));
      const rows = Array.from({ length: batch }, (_, b) => concat(x.filter((_, i) => places[i].b === b), { axis: 1 }));
      return permute(concat(rows, { axis: 0 }), [0, 2, 1, 3]);
    });
}

/** True where key j ≤ query i, `[S, S]`. */
function lowerTriangle(length: number): Tensor {
  return scope(() => {
    const place = arange(length);
    return lessEqual(place, expandDims(place, 1));
  });
}
