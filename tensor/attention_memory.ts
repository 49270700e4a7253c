/** What attention needs of memory, reckoned before it runs. */
import { type DType, dtypes, isDType, isFloat } from "./dtype.ts";
import { DTypeError, ValueError } from "./errors.ts";

/** Sizes of a call, and how it is computed. */
export interface AttentionMemoryOptions {
  /** `"naive"` is {@linkcode naiveAttention}, `"flash"` {@linkcode flashAttention}. */
  readonly algorithm: "naive" | "flash";
  /** B */
  readonly batch: number;
  /** Sq, and Sk unless it is given. */
  readonly seqlen: number;
  /** Sk */
  readonly seqlenK?: number;
  /** H */
  readonly heads: number;
  /** Hk; H when not given. */
  readonly kvHeads?: number;
  /** D */
  readonly headDim: number;
  /** Dv; D when not given. */
  readonly valueDim?: number;
  /** The element type of q, k and v; f32 when not given. */
  readonly dtype?: DType;
  /** Whether the call is causal: the naive one then holds a mask. */
  readonly causal?: boolean;
}

/** Bytes, term by term. */
export interface AttentionMemory {
  /** q, k and v, which are there before. */
  readonly inputs: number;
  /** What the forward call holds at its peak beside its inputs, by name. */
  readonly terms: Readonly<Record<string, number>>;
  /** The sum of the terms: how far `memory().peak` rises. */
  readonly peak: number;
  /** What stays for the backward walk beside the inputs, out among it. */
  readonly saved: number;
}

/**
 * The bytes that a forward call of attention allocates, as `memory()` counts them on a WebGPU backend (on the CPU 16-bit
 * numbers take 4 bytes, bools 1). In 16 bits, sizes that are no multiple of 4 may pass through f32 copies, which are not
 * counted here. Where rows are too few to fill a GPU, flash shares their keys among more of it and holds a few results of
 * parts, f32, until they are joined; neither are these counted. The naive way grows with B·H·Sq·Sk, flash with B·H·Sq.
 *
 * @returns the terms at the peak, their sum, and what a backward walk keeps
 * @throws {ValueError} when a size is no whole number of at least 1, or there is no such algorithm
 * @throws {DTypeError} when the dtype is no float
 *
 * @example
 * ```ts
 * import { attentionMemory } from "@flashtape/flashtape";
 * const sizes = { batch: 4, seqlen: 8192, heads: 12, headDim: 64, causal: true };
 * const naive = attentionMemory({ algorithm: "naive", ...sizes }).peak;
 * const flash = attentionMemory({ algorithm: "flash", ...sizes }).peak;
 * console.log(Math.round(naive / flash)); // 256
 * ```
 */
export function attentionMemory(options: AttentionMemoryOptions): AttentionMemory {
  const op = "attentionMemory", { algorithm, batch, seqlen, heads, headDim, dtype = "f32", causal = false } = options;
  const { seqlenK = seqlen, kvHeads = heads, valueDim = headDim } = options;
  for (const [name, n] of Object.entries({ batch, seqlen, seqlenK, heads, kvHeads, headDim, valueDim })) {
    if (!Number.isSafeInteger(n) || n < 1) {
      throw new ValueError(op, `${name} is a whole number of at least 1, got ${n}`);
    }
  }
  if (!isDType(dtype) || !isFloat(dtype)) throw new DTypeError(op, `attention takes floats, not ${dtype}`);
  const accumulator = dtype === "f64" ? 8 : 4;
  const bytes = (elements: number, size = dtypes[dtype].bytes) => Math.ceil(elements * size / 4) * 4;
  const queries = batch * seqlen * heads * headDim, keys = batch * seqlenK * kvHeads;
  const out = bytes(batch * seqlen * heads * valueDim), lse = bytes(batch * heads * seqlen, accumulator);
  const inputs = bytes(queries) + bytes(keys * headDim) + bytes(keys * valueDim);
  if (algorithm === "flash") return { inputs, terms: { out, lse }, peak: out + lse, saved: out + lse };
  if (algorithm !== "naive") throw new ValueError(op, `algorithm is "naive" or "flash", got "${algorithm}"`);

  const scores = bytes(batch * heads * seqlen * seqlenK), scaled = bytes(queries);
  const mask = causal ? seqlen * seqlenK * 4 : 0;
  const emptied = causal && seqlen > seqlenK; // rows without a key are set apart before the softmax, and put back after it
  const rows = emptied ? batch * heads * seqlen * 4 : 0;
  const wide = accumulator > dtypes[dtype].bytes ? queries * accumulator : 0;
  const stages: Record<string, number>[] = [
    { wide, product: queries * accumulator },
    ...(causal ? [{ scaled, scores, masked: scores, mask }] : []),
    { scaled, scores, probabilities: scores, ...(emptied ? { rows } : {}) },
    { scaled, probabilities: scores, out, ...(emptied ? { rows } : {}) },
  ];
  const total = (terms: Record<string, number>) => Object.values(terms).reduce((a, b) => a + b, 0);
  const terms = stages.reduce((a, b) => total(b) > total(a) ? b : a);
  return { inputs, terms, peak: total(terms), saved: scaled + scores + out + mask + rows };
}
