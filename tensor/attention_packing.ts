/**
 * Sequences without their padding. How many rows are left depends on values, so the host has to know them: a mask or
 * position ids are read with `dataSync()` where they are tensors, or come as host arrays, `await mask.array()` where the
 * runtime cannot wait for a device.
 */
import { tensor, zeros } from "./create.ts";
import { IndexError, ShapeError, show, ValueError } from "./errors.ts";
import { knownRange } from "./attention_options.ts";
import { scatterAdd, take } from "./gather.ts";
import { reshape } from "./movement.ts";
import { scope } from "./scope.ts";
import { type Shape, sizeOf } from "./shape.ts";
import { type NestedArray, Tensor } from "./tensor.ts";

/** Where packed sequences start. */
export interface Packing {
  /** i32 `[sequences + 1]`: where each starts, and where the last one ends. */
  readonly cuSeqlens: Tensor;
  /** The longest sequence's length. */
  readonly maxSeqlen: number;
}

/** What {@linkcode unpadInput} gives. */
export interface Unpadded extends Packing {
  /** The rows that are no padding, `[T, …]`. */
  readonly x: Tensor;
  /** Where each of them stood in `[B · S]`, i32 `[T]`: what {@linkcode padInput} wants. */
  readonly indices: Tensor;
}

/** Values and shape of a tensor, read now, or of a host array. */
function onHost(op: string, x: Tensor | NestedArray, axes: string): { shape: Shape; values: ArrayLike<number> } {
  if (x instanceof Tensor) return { shape: x.shape, values: x.dataSync() };
  const shape: number[] = [];
  for (let level: NestedArray = x; Array.isArray(level); level = level[0]) shape.push(level.length);
  const values = (Array.isArray(x) ? x.flat(Infinity) : [x]).map(Number);
  if (values.length !== sizeOf(shape)) {
    throw new ShapeError(op, `rows of the host array differ in length, expected ${axes}`);
  }
  return { shape, values };
}

function readMask(
  op: string,
  mask: Tensor | NestedArray,
): { batch: number; length: number; values: ArrayLike<number> } {
  const { shape, values } = onHost(op, mask, "[B,S]");
  if (shape.length !== 2) throw new ShapeError(op, `mask is [B,S], true where a token is, got ${show(shape)}`);
  return { batch: shape[0], length: shape[1], values };
}

function packingOf(lengths: readonly number[], backend: Tensor["backend"] | undefined): Packing {
  const starts = new Int32Array(lengths.length + 1);
  lengths.forEach((length, b) => starts[b + 1] = starts[b] + length);
  return { cuSeqlens: tensor(starts, { backend }), maxSeqlen: lengths.reduce((a, b) => Math.max(a, b), 0) };
}

function lengthsOf({ batch, length, values }: ReturnType<typeof readMask>): number[] {
  return Array.from({ length: batch }, (_, b) => {
    let count = 0;
    for (let s = 0; s < length; s++) if (values[b * length + s]) count++;
    return count;
  });
}

/**
 * Where the sequences of a padded batch start once the padding is gone. Empty rows are sequences of length zero.
 *
 * @param mask `[B, S]`, true (or not 0) where a token is: a tensor, read now, or a host array
 * @returns cuSeqlens i32 `[B + 1]`, and the longest length
 * @throws {ShapeError} when the mask has not two axes
 * @throws {UnsupportedError} for a tensor where the runtime cannot wait for a device: pass `await mask.array()`
 */
export function cuSeqlensFromMask(mask: Tensor | NestedArray): Packing {
  const read = readMask("cuSeqlensFromMask", mask);
  return packingOf(lengthsOf(read), mask instanceof Tensor ? mask.backend : undefined);
}

/**
 * Where packed sequences start, from their position ids: a sequence starts where the id is 0.
 *
 * @param positionIds `[T]` or `[B, S]`, taken row after row; the first id is 0: a tensor, read now, or a host array
 * @returns cuSeqlens i32 `[sequences + 1]`, and the longest length
 * @throws {ValueError} when the first id is not 0
 * @throws {UnsupportedError} for a tensor where the runtime cannot wait for a device: pass `await positionIds.array()`
 */
export function cuSeqlensFromPositionIds(positionIds: Tensor | NestedArray): Packing {
  const op = "cuSeqlensFromPositionIds", { values } = onHost(op, positionIds, "[T] or [B,S]");
  if (values.length > 0 && values[0] !== 0) throw new ValueError(op, `the first position id is 0, got ${values[0]}`);
  const lengths: number[] = [];
  for (let i = 0; i < values.length; i++) {
    if (values[i] === 0) lengths.push(0);
    lengths[lengths.length - 1]++;
  }
  return packingOf(lengths, positionIds instanceof Tensor ? positionIds.backend : undefined);
}

/**
 * A padded batch without its padding. Where the padding lies does not matter, left, right or between.
 *
 * @param x `[B, S, …]`
 * @param mask `[B, S]`, true (or not 0) where a token is: a tensor, read now, or a host array
 * @returns x `[T, …]` with its gradient, indices i32 `[T]`, cuSeqlens i32 `[B + 1]`, and the longest length
 * @throws {ShapeError} when the mask is not `[B, S]`
 * @throws {UnsupportedError} for a mask tensor where the runtime cannot wait for a device: pass `await mask.array()`
 *
 * @example
 * ```ts
 * import { flashAttentionVarlen, key, padInput, randn, unpadInput } from "@flashtape/flashtape";
 * const mask = [[true, true, false], [true, true, true]];
 * const { x, indices, cuSeqlens, maxSeqlen } = unpadInput(randn(key(0), [2, 3, 4, 8]), mask); // x is [5, 4, 8]
 * const lengths = { cuSeqlensQ: cuSeqlens, cuSeqlensK: cuSeqlens, maxSeqlenQ: maxSeqlen, maxSeqlenK: maxSeqlen };
 * const out = padInput(flashAttentionVarlen(x, x, x, lengths), indices, 2, 3); // [2, 3, 4, 8]
 * ```
 */
export function unpadInput(x: Tensor, mask: Tensor | NestedArray): Unpadded {
  const op = "unpadInput", read = readMask(op, mask), { batch, length, values } = read;
  if (x.rank < 2 || x.shape[0] !== batch || x.shape[1] !== length) {
    throw new ShapeError(op, `x is [B,S,…] of the mask [B,S]: x ${show(x.shape)}, mask ${show([batch, length])}`);
  }
  const places: number[] = [];
  for (let i = 0; i < values.length; i++) if (values[i]) places.push(i);
  return scope(() => {
    const indices = tensor(Int32Array.from(places), { backend: x.backend });
    const rows = take(reshape(x, [batch * length, ...x.shape.slice(2)]), indices);
    return { x: rows, indices, ...packingOf(lengthsOf(read), x.backend) };
  });
}

/**
 * Packed rows back in their padded places; padding is 0.
 *
 * @param x `[T, …]`
 * @param indices i32 `[T]`, as {@linkcode unpadInput} gave them
 * @param batch B
 * @param seqlen S
 * @returns `[B, S, …]`, with its gradient
 * @throws {ShapeError} when there is not one index for each row
 * @throws {IndexError} when the host knows an index outside B · S
 */
export function padInput(x: Tensor, indices: Tensor, batch: number, seqlen: number): Tensor {
  const op = "padInput";
  if (x.rank < 1 || indices.rank !== 1 || indices.shape[0] !== x.shape[0]) {
    throw new ShapeError(op, `indices are [T] of x [T,…]: x ${show(x.shape)}, indices ${show(indices.shape)}`);
  }
  for (const n of [batch, seqlen]) {
    if (!Number.isSafeInteger(n) || n < 0) {
      throw new ValueError(op, `B and S are whole numbers of at least 0, got ${n}`);
    }
  }
  const bad = knownRange(indices)?.find((i) => i < 0 || i >= batch * seqlen);
  if (bad !== undefined) throw new IndexError(op, `index ${bad} is outside B·S = ${batch * seqlen}`);
  return scope(() => {
    const rest = x.shape.slice(1), empty = zeros([batch * seqlen, ...rest], { dtype: x.dtype, backend: x.backend });
    return reshape(scatterAdd(empty, indices, x), [batch, seqlen, ...rest]);
  });
}
