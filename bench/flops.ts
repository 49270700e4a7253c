/**
 * Floating-point operations, counted in one place. A multiplication and an addition are two; softmax, norms and what is
 * computed again on the way back are not counted, so that the same work has the same count whoever does it.
 */

/** Sizes of an attention call. */
export interface AttentionSizes {
  readonly batch: number;
  readonly heads: number;
  readonly seqlenQ: number;
  readonly seqlenK: number;
  readonly headDim: number;
  readonly causal?: boolean;
  /** Keys to the left and right that a query sees; −1 is all. */
  readonly window?: readonly [left: number, right: number];
}

/** How many (query, key) pairs see each other, in one head. */
export function visiblePairs({ seqlenQ, seqlenK, causal = false, window = [-1, -1] }: AttentionSizes): number {
  const [left, right] = [window[0], causal ? 0 : window[1]], shift = seqlenK - seqlenQ;
  let pairs = 0;
  for (let i = 0; i < seqlenQ; i++) {
    const first = left < 0 ? 0 : Math.max(0, i + shift - left);
    const last = right < 0 ? seqlenK - 1 : Math.min(seqlenK - 1, i + shift + right);
    pairs += Math.max(0, last - first + 1);
  }
  return pairs;
}

/** Q·Kᵀ and P·V over the pairs that see each other: 4·B·H·pairs·D. */
export function attentionForward(sizes: AttentionSizes): number {
  return 4 * sizes.batch * sizes.heads * visiblePairs(sizes) * sizes.headDim;
}

/** Five products where the forward pass has two. */
export function attentionBackward(sizes: AttentionSizes): number {
  return 2.5 * attentionForward(sizes);
}

/** [M, K] · [K, N] */
export function matmul(m: number, n: number, k: number): number {
  return 2 * m * n * k;
}

/** Sizes of a transformer. */
export interface TransformerSizes {
  readonly layers: number;
  readonly size: number;
  readonly hidden: number;
  readonly heads: number;
  readonly kvHeads: number;
  readonly headDim: number;
  readonly vocabulary: number;
}

/** The products of a forward pass over `batch` sequences of `length` tokens, the last layer's among them. */
export function transformerForward(model: TransformerSizes, batch: number, length: number): number {
  const { layers, size, hidden, heads, kvHeads, headDim, vocabulary } = model, tokens = batch * length;
  const projections = matmul(tokens, (2 * heads + 2 * kvHeads) * headDim, size), mlp = 3 * matmul(tokens, hidden, size);
  const attention = attentionForward({ batch, heads, seqlenQ: length, seqlenK: length, headDim, causal: true });
  return layers * (projections + mlp + attention) + matmul(tokens, vocabulary, size);
}

/** Forward and backward: each product has two on the way back, attention's two have five. */
export function transformerStep(model: TransformerSizes, batch: number, length: number): number {
  const { layers, heads, headDim } = model;
  const attention = layers *
    attentionForward({ batch, heads, seqlenQ: length, seqlenK: length, headDim, causal: true });
  return 3 * (transformerForward(model, batch, length) - attention) + 3.5 * attention;
}
