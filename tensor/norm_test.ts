import assert from "node:assert/strict";
import { grad } from "../mod.ts";
import { arbShape, arbTensor, assertClose, boolean, checkGradients, compose, float, property } from "../testing/mod.ts";
import { tensor } from "./create.ts";
import { add, cast, mul } from "./elementwise.ts";
import { eager } from "./eager.ts";
import { DTypeError, ShapeError, UnsupportedError, ValueError } from "./errors.ts";
import { layerNorm, rmsNorm } from "./norm.ts";
import { key, randn } from "./random.ts";
import { mean, sum } from "./reduce.ts";
import type { Tensor } from "./tensor.ts";

/** Rows, with vectors and a second tensor that fit them. */
const arbRows = (dtype: "f64" | "f32", zeros = true) =>
  compose((draw) => {
    const shape = draw(arbShape({ minRank: 1, maxRank: 3, maxSize: 60, zeros }));
    const like = (shape: number[]) => draw(arbTensor({ shape, dtype }));
    const D = shape.at(-1)!;
    return {
      x: like(shape),
      weight: like([D]),
      bias: like([D]),
      residual: like(shape),
      eps: draw(float({ min: 1e-3, max: 1 })),
    };
  });

property(
  "rmsNorm() equals its eager twin",
  [arbRows("f64"), boolean()],
  async ({ x, weight, residual, eps }, added) => {
    if (!added) return await assertClose(rmsNorm(x, weight, { eps }), eager.rmsNorm(x, weight, { eps }));
    const fused = rmsNorm(x, weight, { eps, residual }), plain = eager.rmsNorm(x, weight, { eps, residual });
    await assertClose(fused.out, plain.out);
    await assertClose(fused.sum, plain.sum);
    await assertClose(fused.out, rmsNorm(add(x, residual), weight, { eps }));
  },
);

property("layerNorm() equals its eager twin", [arbRows("f64"), boolean()], async ({ x, weight, bias, eps }, biased) => {
  const b = biased ? bias : null;
  await assertClose(layerNorm(x, weight, b, { eps }), eager.layerNorm(x, weight, b, { eps }), {
    rtol: 1e-7,
    atol: 1e-7,
  });
});

property("layerNorm() has mean 0 and variance 1 before weight and bias", [arbRows("f64", false)], async ({ x }) => {
  const D = x.shape.at(-1)!, one = tensor(new Array(D).fill(1), { dtype: "f64" });
  const y = layerNorm(add(x, randn(key(D), x.shape, { dtype: "f64" })), one, null, { eps: 0 });
  if (D < 2) return;
  await assertClose(mean(y, { axis: -1 }), 0, { atol: 1e-7 });
  await assertClose(mean(mul(y, y), { axis: -1 }), 1, { atol: 1e-7 });
});

Deno.test("rmsNorm() and layerNorm() have the gradients of central differences", async () => {
  const draw = (i: number, shape: number[]) => randn(key(i), shape, { dtype: "f64" });
  const x = draw(1, [2, 3, 5]), weight = draw(2, [5]), bias = draw(3, [5]), residual = draw(4, [2, 3, 5]);
  await checkGradients((x, w) => rmsNorm(x, w, { eps: 0.01 }), [x, weight]);
  await checkGradients((x, w, residual) => rmsNorm(x, w, { eps: 0.01, residual }), [x, weight, residual]);
  await checkGradients((x, w, residual) => rmsNorm(x, w, { residual }).out, [x, weight, residual]);
  await checkGradients((x, w, residual) => rmsNorm(x, w, { residual }).sum, [x, weight, residual]);
  await checkGradients((x, w, b) => layerNorm(x, w, b), [x, weight, bias]);
  await checkGradients((x, w) => layerNorm(x, w), [x, weight]);
});

property("rmsNorm() and layerNorm() have the gradients of their eager twins", [arbRows("f64")], async (rows) => {
  const loss = (y: Tensor) => sum(mul(y, add(y, 1)));
  const gradients = (of: Pick<typeof eager, "rmsNorm" | "layerNorm">) =>
    grad(({ x, weight, bias, residual }: Omit<typeof rows, "eps">) => {
      const { out, sum: total } = of.rmsNorm(x, weight, { eps: rows.eps, residual });
      return add(add(loss(out), loss(total)), loss(of.layerNorm(x, weight, bias, { eps: rows.eps })));
    })(rows);
  const fused = gradients({ rmsNorm, layerNorm }), plain = gradients(eager);
  for (const name of ["x", "weight", "bias", "residual"] as const) {
    await assertClose(fused[name], plain[name], { rtol: 1e-6, atol: 1e-6 });
  }
});

Deno.test("rmsNorm() keeps the dtype of x, takes the weight in it, and normalises the sum that it returns", async () => {
  for (const dtype of ["f32", "f16", "bf16"] as const) {
    const x = randn(key(1), [4, 8], { dtype }),
      residual = randn(key(2), [4, 8], { dtype }),
      weight = randn(key(3), [8]);
    const { out, sum: total } = rmsNorm(x, weight, { residual });
    assert.deepEqual([out.dtype, total.dtype], [dtype, dtype]);
    await assertClose(total, add(x, residual), { rtol: 0, atol: 0 });
    await assertClose(out, rmsNorm(add(x, residual), cast(weight, dtype)), { rtol: 0, atol: 0 });
    assert.equal(layerNorm(x, weight).dtype, dtype);
  }
});

Deno.test("rmsNorm() and layerNorm() refuse what does not fit", () => {
  const x = randn(key(1), [2, 3]);
  assert.throws(() => rmsNorm(x, tensor([1, 2])), ShapeError);
  assert.throws(() => rmsNorm(x, tensor([[1, 2, 3]])), ShapeError);
  assert.throws(() => rmsNorm(x, tensor([1, 2, 3]), { residual: tensor([1, 2, 3]) }), ShapeError);
  assert.throws(() => rmsNorm(tensor(1), tensor([1])), ShapeError);
  assert.throws(() => layerNorm(x, tensor([1, 2, 3]), tensor([1, 2])), ShapeError);
  assert.throws(() => rmsNorm(x, tensor([1, 2, 3]), { residual: tensor([1], { dtype: "u32" }) }), ShapeError);
  for (const eps of [-1, NaN, Infinity]) {
    assert.throws(() => rmsNorm(x, tensor([1, 2, 3]), { eps }), ValueError);
    assert.throws(() => layerNorm(x, tensor([1, 2, 3]), null, { eps }), ValueError);
  }
  assert.equal(rmsNorm(tensor([[1, 2]], { dtype: "i32" }), tensor([1, 2])).dtype, "f32");
  assert.throws(
    () => grad((x: Tensor) => sum(rmsNorm(x, tensor([1, 2]))))(tensor([1, 2], { dtype: "i32" })),
    DTypeError,
  );
});

Deno.test("rmsNorm() refuses a second derivative, which its eager twin has", async () => {
  const x = randn(key(1), [2, 3], { dtype: "f64" }), w = randn(key(2), [3], { dtype: "f64" });
  const twice = (norm: typeof rmsNorm) => grad((x: Tensor) => sum(mul(grad((x: Tensor) => sum(norm(x, w)))(x), x)));
  assert.throws(() => twice(rmsNorm)(x), UnsupportedError);
  await checkGradients((x) => grad((x: Tensor) => sum(eager.rmsNorm(x, w)))(x), [x]);
});
