/** Matrix products, batched and broadcast. */
import { type DType, promote } from "./dtype.ts";
import { runAs } from "./elementwise.ts";
import { ShapeError, show } from "./errors.ts";
import { dense, expectDType, type Op, type Spec } from "./op.ts";
import { reshape, squeeze } from "./movement.ts";
import { broadcastLayout, broadcastShapes, type Shape, sizeOf, stridesOf } from "./shape.ts";
import type { Tensor } from "./tensor.ts";

const floats: readonly DType[] = ["f64", "f32", "f16", "bf16"];

/** Which operands are read with their last two axes swapped. */
export interface MatmulOptions {
  /** Reads a as `[…, K, M]`. */
  readonly transposeA?: boolean;
  /** Reads b as `[…, N, K]`. */
  readonly transposeB?: boolean;
}

/** The sizes of a product: batch shape, and M, N, K. */
export interface MatmulSizes {
  readonly batch: Shape;
  readonly m: number;
  readonly n: number;
  readonly k: number;
}

/**
 * The sizes of a · b.
 * @throws {ShapeError} when the inner sizes differ or the batch axes do not broadcast
 */
export function matmulSizes(a: Shape, b: Shape, { transposeA, transposeB }: Required<MatmulOptions>): MatmulSizes {
  const [m, k] = transposeA ? [a.at(-1)!, a.at(-2)!] : [a.at(-2)!, a.at(-1)!];
  const [kb, n] = transposeB ? [b.at(-1)!, b.at(-2)!] : [b.at(-2)!, b.at(-1)!];
  if (k !== kb) {
    const side = (s: Shape, t: boolean) => show(s) + (t ? " transposed" : "");
    throw new ShapeError(
      "matmul",
      `inner sizes differ: left ${side(a, transposeA)}, right ${side(b, transposeB)} (${k} ≠ ${kb})`,
    );
  }
  return { batch: broadcastShapes("matmul", a.slice(0, -2), b.slice(0, -2)), m, n, k };
}

/** y[…, i, j] = Σ_k a[…, i, k] · b[…, k, j], either operand read transposed in place. */
export const matmulOp: Op<Required<MatmulOptions>> = {
  name: "matmul",
  infer: ([a, b], params): Spec => {
    expectDType("matmul", "left", a.dtype, floats);
    expectDType("matmul", "right", b.dtype, [a.dtype]);
    const { batch, m, n } = matmulSizes(a.shape, b.shape, params);
    return { shape: [...batch, m, n], dtype: a.dtype };
  },
  reference: ([a, b], params, y) => {
    const { batch, m, n, k } = matmulSizes(a.shape, b.shape, params);
    const left = dense(a).data, right = dense(b).data;
    const starts = (shape: Shape) => {
      const lead = shape.slice(0, -2);
      return broadcastLayout({ shape: lead, strides: stridesOf(lead), offset: 0 }, batch).strides;
    };
    const sa = starts(a.shape), sb = starts(b.shape), steps = stridesOf(batch);
    const [ai, ak] = params.transposeA ? [1, m] : [k, 1];
    const row = new Float64Array(n);
    for (let p = 0; p < sizeOf(batch); p++) {
      let pa = 0, pb = 0;
      for (let d = 0; d < batch.length; d++) {
        const i = Math.floor(p / steps[d]) % batch[d];
        pa += i * sa[d];
        pb += i * sb[d];
      }
      const a0 = pa * m * k, b0 = pb * k * n, y0 = p * m * n;
      for (let i = 0; i < m; i++) {
        if (params.transposeB) { // both run along k
          for (let j = 0; j < n; j++) {
            let dot = 0;
            for (let x = 0, at = a0 + i * ai, bt = b0 + j * k; x < k; x++, at += ak, bt++) dot += left[at] * right[bt];
            y.data[y0 + i * n + j] = dot;
          }
          continue;
        }
        row.fill(0); // one row of y gathers rows of b, so that b is read in order
        for (let x = 0; x < k; x++) {
          const scale = left[a0 + i * ai + x * ak], bt = b0 + x * n;
          for (let j = 0; j < n; j++) row[j] += scale * right[bt + j];
        }
        y.data.set(row, y0 + i * n);
      }
    }
  },
};

/**
 * The matrix product over the last two axes; the axes before them broadcast. A vector stands for a row on the left
 * and a column on the right, and its axis is dropped from the result.
 *
 * @param a `[…, M, K]`, or `[…, K, M]` with `transposeA`
 * @param b `[…, K, N]`, or `[…, N, K]` with `transposeB`
 * @returns `[…, M, N]` in the wider dtype of the two; sums are kept in f32 (f64 for f64)
 * @throws {ShapeError} when the inner sizes differ or the batch axes do not broadcast
 *
 * @example
 * ```ts
 * import { matmul, tensor } from "@flashtape/flashtape";
 * const y = matmul(tensor([[1, 2]]), tensor([[3], [4]]));
 * console.log(await y.array()); // [[11]]
 * ```
 */
export function matmul(a: Tensor, b: Tensor, options: MatmulOptions = {}): Tensor {
  const { transposeA = false, transposeB = false } = options;
  if (a.rank === 0 || b.rank === 0) {
    throw new ShapeError("matmul", `needs at least one axis a side: left ${show(a.shape)}, right ${show(b.shape)}`);
  }
  const dtype = promote("matmul", a.dtype, b.dtype), params = { transposeA, transposeB };
  const left = a.rank === 1 ? reshape(a, transposeA ? [-1, 1] : [1, -1]) : a;
  const right = b.rank === 1 ? reshape(b, transposeB ? [1, -1] : [-1, 1]) : b;
  if (left.rank > 2 && right.rank === 2 && !transposeA) { // one tall product, whose gradient needs no sum over batches
    const { m, n, k } = matmulSizes(left.shape, right.shape, params);
    expectDType("matmul", "left", dtype, floats);
    const rows = reshape(left, [sizeOf(left.shape.slice(0, -2)) * m, k]);
    const [y] = runAs(matmulOp, [rows, right], dtype, params);
    return reshape(y, b.rank === 1 ? left.shape.slice(0, -1) : [...left.shape.slice(0, -1), n]);
  }
  const [y] = runAs(matmulOp, [left, right], dtype, params);
  const dropped = [...(a.rank === 1 ? [-2] : []), ...(b.rank === 1 ? [-1] : [])];
  return dropped.length === 0 ? y : squeeze(y, { axis: dropped });
}
