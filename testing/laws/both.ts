/** One computation on two backends: what fused layers and their gradients are held to, at sizes and views that a test picks. */
import assert from "node:assert/strict";
import { grad } from "../../autograd/grad.ts";
import type { Backend } from "../../tensor/backend.ts";
import { cpu } from "../../tensor/cpu.ts";
import { tensor } from "../../tensor/create.ts";
import { type DType, isFloat } from "../../tensor/dtype.ts";
import { add, cast, mul } from "../../tensor/elementwise.ts";
import { key, randn } from "../../tensor/random.ts";
import { sum } from "../../tensor/reduce.ts";
import type { Shape } from "../../tensor/shape.ts";
import type { Tensor } from "../../tensor/tensor.ts";
import { assertClose } from "../close.ts";

/** A few roundings of each type that a GPU computes in or stores. */
const unit: Readonly<Record<string, number>> = { f32: 2 ** -20, f16: 2 ** -9, bf16: 2 ** -6 };

/** The types that are stored as floats on a GPU. */
export const stored: readonly DType[] = ["f32", "f16", "bf16"];

/** Normal numbers on the CPU. */
export function draw(seed: number, shape: Shape, dtype: DType = "f32"): Tensor {
  return randn(key(seed, { backend: cpu() }), shape, { dtype });
}

/**
 * Asserts that a backend gives what the CPU gives from the same inputs: results, and gradients by float inputs.
 *
 * @param f makes what else it needs on the backend of its arguments
 * @param scale how many times a few roundings the results may lie apart
 */
export async function assertSame(
  backend: Backend,
  f: (...xs: Tensor[]) => Tensor | readonly Tensor[],
  inputs: readonly Tensor[],
  scale = 1,
): Promise<void> {
  const floats = inputs.flatMap((x, i) => isFloat(x.dtype) ? [i] : []);
  const weighted = (...xs: Tensor[]) =>
    [f(...xs)].flat().map((y, n) => {
      const weights = tensor(draw(n, y.shape).dataSync(), { shape: y.shape, backend: y.backend });
      return sum(mul(cast(y, "f32"), weights));
    }).reduce(add);
  const [a, b] = [cpu(), backend].map((backend) => {
    const xs = inputs.map((x) => tensor(x.dataSync(), { shape: x.shape, dtype: x.dtype, backend }));
    return [...[f(...xs)].flat(), ...grad(weighted, floats)(...xs) as Tensor[]];
  });
  for (const [i, y] of b.entries()) {
    const expected = await a[i].data(), u = unit[y.dtype];
    assert.deepEqual([y.shape, y.dtype], [a[i].shape, a[i].dtype]);
    // Errors belong to the terms that a number is the sum of: here those of its tensor, or of inputs of size 1.
    const size = Math.sqrt(Array.from(expected).reduce((s, v) => s + v * v, 0) / Math.max(1, expected.length));
    assertClose(await y.data(), expected, { rtol: scale * u, atol: scale * u * Math.max(0.01, size) });
  }
}
