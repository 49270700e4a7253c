/** Attention's options: what they are called, what is refused, and how they become an op's parameters. */
import { DTypeError, IndexError, LimitError, ShapeError, show, ValueError } from "./errors.ts";
import { expectDType, expectRank, type Spec } from "./op.ts";
import type { Shape } from "./shape.ts";
import { rangeOf, type Tensor, valuesOf } from "./tensor.ts";

/** Options that all attention functions share. */
export interface AttentionOptions {
  /** What the products q·k are multiplied by; 1/√D when not given. */
  readonly softmaxScale?: number;
  /** Query i sees no key beyond i + Sk − Sq: the last query sees all. */
  readonly causal?: boolean;
  /** Query i sees the keys from i + Sk − Sq − left to i + Sk − Sq + right, both included; −1 is unbounded. */
  readonly window?: readonly [left: number, right: number];
  /** Scores become softcap · tanh(score / softcap); 0 is none. */
  readonly softcap?: number;
  /** Slopes of ALiBi, f32 `[H]` or `[B,H]`: scores lose slope · |i + Sk − Sq − j|. A constant: it gets no gradient. */
  readonly alibiSlopes?: Tensor;
  /** Added to the scores, floats that broadcast to `[B,H,Sq,Sk]`. It gets a gradient. */
  readonly bias?: Tensor;
  /** True where a query may see a key, bool that broadcasts to `[B,H,Sq,Sk]`. */
  readonly mask?: Tensor;
  /** A score for each head that takes its share of the softmax and has no value, f32 `[H]`. It gets a gradient. */
  readonly sinks?: Tensor;
  /** Drops probabilities: p from 0 up to and without 1, key u32 [2]. See {@linkcode dropoutMask}. */
  readonly dropout?: { readonly p: number; readonly key: Tensor };
}

/** The tensors that an attention op may take after q, k and v, in this order; `optional` says which are there. */
export const optionalInputs = [
  "alibiSlopes",
  "bias",
  "mask",
  "sinks",
  "key",
  "cuSeqlensQ",
  "cuSeqlensK",
  "cacheBatchIdx",
  "cacheLeftpad",
  "blockTable",
  "cos",
  "sin",
] as const;

/** The name of an input that may be missing. */
export type OptionalInput = typeof optionalInputs[number];

/** Parameters that all attention ops share: the options without their tensors. */
export interface AttentionParams {
  /** What the products q·k are multiplied by. */
  readonly scale: number;
  /** Keys to the left and right of i + Sk − Sq that query i sees, −1 unbounded; causal has right = 0. */
  readonly window: readonly [left: number, right: number];
  /** 0 is none. */
  readonly softcap: number;
  /** The probability of a drop; with 0 there is no `key` among the inputs. */
  readonly dropout: number;
  /** Which optional inputs there are, in the order of `optionalInputs`. */
  readonly optional: readonly OptionalInput[];
}

/**
 * Keys up to which D is Σ P∘dP rather than Σ dO∘O, the same number but for what O was rounded by. Of one key dS = P∘(dP − D)
 * is nothing but dLSE, and with dropout the rounding of a 16-bit O would pass for a gradient.
 */
export const fewKeys = 4;

/** Sizes of one call. */
export interface AttentionSizes {
  /** Batch rows, or sequences of varying length. */
  readonly batch: number;
  /** Queries of a row; with varying lengths the most of a sequence. */
  readonly seqlenQ: number;
  /** Keys of a row; with varying lengths the most of a sequence. */
  readonly seqlenK: number;
  readonly heads: number;
  readonly kvHeads: number;
  readonly headDim: number;
  readonly valueDim: number;
}

/** The optional inputs by name, from where they start among an op's inputs. */
export function named<T>(
  optional: readonly OptionalInput[],
  inputs: readonly T[],
  from: number,
): Partial<Record<OptionalInput, T>> {
  return Object.fromEntries(optional.map((name, i) => [name, inputs[from + i]]));
}

/** The largest head size that kernels are written for. */
export const maxHeadDim = 256;

const floats = ["f64", "f32", "f16", "bf16"] as const;

/**
 * Checks what queries, keys and values have to do with each other.
 *
 * @param q `[…, H, D]`
 * @param k `[…, Hk, D]`
 * @param v `[…, Hk, Dv]`
 * @param mixed whether k and v may have another dtype than q, as a cache may
 * @throws {ShapeError} when head sizes differ or the heads do not divide
 * @throws {DTypeError} when they are no floats or their dtypes differ
 * @throws {LimitError} for a head size above 256
 */
export function checkHeads(
  op: string,
  q: Spec,
  k: Spec,
  v: Spec,
  mixed = false,
): Pick<AttentionSizes, "heads" | "kvHeads" | "headDim" | "valueDim"> {
  expectDType(op, "q", q.dtype, floats);
  expectDType(op, "k", k.dtype, mixed ? floats : [q.dtype]);
  expectDType(op, "v", v.dtype, [k.dtype]);
  const [heads, headDim] = q.shape.slice(-2),
    [kvHeads, kDim] = k.shape.slice(-2),
    [vHeads, valueDim] = v.shape.slice(-2);
  const both = `q ${show(q.shape)}, k ${show(k.shape)}, v ${show(v.shape)}`;
  if (kDim !== headDim) throw new ShapeError(op, `head sizes of q and k differ: ${both} (${headDim} ≠ ${kDim})`);
  if (vHeads !== kvHeads) throw new ShapeError(op, `heads of k and v differ: ${both} (${kvHeads} ≠ ${vHeads})`);
  if (heads !== kvHeads && !(kvHeads > 0 && heads % kvHeads === 0)) {
    throw new ShapeError(op, `query heads are no multiple of key/value heads: ${both} (${heads} and ${kvHeads})`);
  }
  for (const [name, size] of [["D", headDim], ["Dv", valueDim]] as const) {
    if (size < 1 || size > maxHeadDim) {
      throw new LimitError(op, `${name} goes from 1 to ${maxHeadDim}, got ${size}: ${both}`);
    }
  }
  return { heads, kvHeads, headDim, valueDim };
}

/**
 * Checks q `[B,Sq,H,D]`, k `[B,Sk,Hk,D]` and v `[B,Sk,Hk,Dv]`.
 * @throws as {@linkcode checkHeads} does
 */
export function denseSizes(op: string, q: Spec, k: Spec, v: Spec): AttentionSizes {
  expectRank(op, "q", q.shape, 4);
  expectRank(op, "k", k.shape, 4);
  expectRank(op, "v", v.shape, 4);
  const [batch, seqlenQ] = q.shape, seqlenK = k.shape[1];
  const both = `q ${show(q.shape)}, k ${show(k.shape)}, v ${show(v.shape)}`;
  if (k.shape[0] !== batch || v.shape[0] !== batch) {
    throw new ShapeError(op, `batch sizes differ: ${both} (${batch}, ${k.shape[0]}, ${v.shape[0]})`);
  }
  if (v.shape[1] !== seqlenK) {
    throw new ShapeError(op, `lengths of k and v differ: ${both} (${seqlenK} ≠ ${v.shape[1]})`);
  }
  return { batch, seqlenQ, seqlenK, ...checkHeads(op, q, k, v) };
}

function checkBroadcast(op: string, name: string, shape: Shape, sizes: AttentionSizes): void {
  const full = [sizes.batch, sizes.heads, sizes.seqlenQ, sizes.seqlenK];
  const fits = shape.length <= 4 && shape.every((n, i) => n === 1 || n === full[4 - shape.length + i]);
  if (!fits) throw new ShapeError(op, `${name} ${show(shape)} does not broadcast to [B,H,Sq,Sk] = ${show(full)}`);
}

/**
 * Checks the optional tensors against a call's sizes.
 * @throws {ShapeError} and {DTypeError} in the name of `op`
 */
export function checkOptional(op: string, found: Partial<Record<OptionalInput, Spec>>, sizes: AttentionSizes): void {
  const { alibiSlopes, bias, mask, sinks, key } = found, { batch, heads } = sizes;
  if (alibiSlopes) {
    expectDType(op, "alibiSlopes", alibiSlopes.dtype, ["f32", "f64"]);
    const shape = show(alibiSlopes.shape);
    if (shape !== show([heads]) && shape !== show([batch, heads])) {
      throw new ShapeError(op, `alibiSlopes ${shape} are neither [H] = [${heads}] nor [B,H] = [${batch},${heads}]`);
    }
  }
  if (bias) {
    expectDType(op, "bias", bias.dtype, floats);
    checkBroadcast(op, "bias", bias.shape, sizes);
  }
  if (mask) {
    if (mask.dtype !== "bool") throw new DTypeError(op, `mask is ${mask.dtype}, expected bool, true = may attend`);
    checkBroadcast(op, "mask", mask.shape, sizes);
  }
  if (sinks) {
    expectDType(op, "sinks", sinks.dtype, ["f32", "f64"]);
    if (show(sinks.shape) !== show([heads])) {
      throw new ShapeError(op, `sinks ${show(sinks.shape)} are not [H] = [${heads}]`);
    }
  }
  if (key && (key.dtype !== "u32" || show(key.shape) !== "[2]")) {
    throw new ShapeError(op, `dropout's key is u32 [2], got ${key.dtype} ${show(key.shape)}: make one by key(seed)`);
  }
}

/**
 * The numbers among the options, checked.
 * @throws {ValueError} naming the option that is out of its range, NaN included
 */
export function numbersOf(
  op: string,
  options: AttentionOptions,
  headDim: number,
): Pick<AttentionParams, "scale" | "window" | "softcap" | "dropout"> {
  const { softmaxScale = 1 / Math.sqrt(headDim), causal = false, window = [-1, -1], softcap = 0, dropout } = options;
  if (!Number.isFinite(softmaxScale)) throw new ValueError(op, `softmaxScale is a finite number, got ${softmaxScale}`);
  if (!(softcap >= 0 && softcap < Infinity)) {
    throw new ValueError(op, `softcap is finite and at least 0 (0 is none), got ${softcap}`);
  }
  if (typeof causal !== "boolean") throw new ValueError(op, `causal is true or false, got ${causal}`);
  const [left, right] = window ?? [];
  if (window?.length !== 2 || ![left, right].every((n) => Number.isSafeInteger(n) && n >= -1 && n < 2 ** 30)) {
    throw new ValueError(op, `window is [left, right], whole numbers from −1 (unbounded) to 2³⁰ − 1, got [${window}]`);
  }
  const p = dropout?.p ?? 0;
  if (!(p >= 0 && p < 1)) throw new ValueError(op, `dropout's p is at least 0 and below 1, got ${p}`);
  if (p > 0 && !dropout?.key) throw new ValueError(op, `dropout of ${p} needs a key: make one by key(seed)`);
  return { scale: softmaxScale, window: [left, causal ? 0 : right], softcap, dropout: p };
}

/** The optional tensors of a call in the ops' order; with p = 0 there is no key. */
export function tensorsOf(
  options: Partial<Record<OptionalInput, Tensor | undefined>>,
): { readonly optional: readonly OptionalInput[]; readonly tensors: readonly Tensor[] } {
  const optional = optionalInputs.filter((name) => options[name] !== undefined);
  return { optional, tensors: optional.map((name) => options[name]!) };
}

/** The optional tensors among a call's options, by the ops' names for them. */
export function optionalSpecs(options: AttentionOptions): Partial<Record<OptionalInput, Spec>> {
  const { alibiSlopes, bias, mask, sinks, dropout } = options;
  return { alibiSlopes, bias, mask, sinks, key: dropout?.key };
}

/** Smallest and largest element of an integer tensor where the host knows them; undefined for no elements. */
export function knownRange(x: Tensor): readonly [min: number, max: number] | undefined {
  const range = rangeOf(x), values = range ?? valuesOf(x);
  if (values === undefined || values.length === 0) return undefined;
  let min = Infinity, max = -Infinity;
  for (let i = 0; i < values.length; i++) {
    min = Math.min(min, values[i]);
    max = Math.max(max, values[i]);
  }
  return [min, max];
}

/**
 * Checks prefix sums of lengths: 0, then never falling, none above `total`, no step above `most`.
 * @throws {ValueError} when the host can see that they are not
 */
export function checkCuSeqlens(op: string, name: string, x: Tensor, total: number, most: number): void {
  const range = knownRange(x);
  if (range !== undefined && (range[0] < 0 || range[1] > total)) {
    throw new IndexError(op, `${name} goes from 0 to at most the ${total} packed rows, got ${range[0]} to ${range[1]}`);
  }
  const values = valuesOf(x);
  for (let b = 0; values !== undefined && b + 1 < values.length; b++) {
    const length = values[b + 1] - values[b];
    if (length < 0) throw new ValueError(op, `${name} falls from ${values[b]} to ${values[b + 1]} at sequence ${b}`);
    if (length > most) {
      throw new ValueError(op, `sequence ${b} of ${name} has ${length} rows, the given maximum is ${most}`);
    }
  }
}
