/** Law 3, for every op by the table: the derivative is that of central differences in f64, and so is its own. */
import assert from "node:assert/strict";
import { assertClose, checkGradients, property } from "../testing/mod.ts";
import type { Call } from "../testing/laws/sample.ts";
import { samples, subjects } from "../testing/laws/samples.ts";
import { cpu } from "../tensor/cpu.ts";
import { tensor } from "../tensor/create.ts";
import { isFloat } from "../tensor/dtype.ts";
import { add, cast, div, greater, maximum, mul, pow, sign, square, where } from "../tensor/elementwise.ts";
import { UnsupportedError } from "../tensor/errors.ts";
import { runAll } from "../tensor/op.ts";
import { ops } from "../tensor/ops.ts";
import { slice } from "../tensor/movement.ts";
import { argmax, logsumexp, sum, topK } from "../tensor/reduce.ts";
import type { Tensor } from "../tensor/tensor.ts";
import { grad } from "./grad.ts";
import { vjps } from "./vjps.ts";

/** A call as a function of those inputs that have gradients, and these inputs. */
function differentiable(subject: ReturnType<typeof subjects>[number], { inputs, params }: Call<unknown>) {
  const { op, sample } = subject, constants = sample.constants?.(params) ?? [];
  const wanted = [...inputs.keys()].filter((i) => isFloat(inputs[i].dtype) && !constants.includes(i));
  const f = (xs: readonly Tensor[]): readonly Tensor[] => {
    const mixed = inputs.map((x, i) => wanted.includes(i) ? xs[wanted.indexOf(i)] : x.tensor(cpu()));
    const outputs = runAll(op, mixed, params);
    return (sample.results?.(outputs) ?? outputs).filter((y) => isFloat(y.dtype));
  };
  return { f, xs: wanted.map((i) => inputs[i].tensor(cpu())) };
}

/** The gradient of the sum of the results' squares, which has a slope of its own even where the op is linear. */
function slopes(f: (xs: readonly Tensor[]) => readonly Tensor[]): (xs: readonly Tensor[]) => readonly Tensor[] {
  const gradient = grad((xs: readonly Tensor[]) => f(xs).map((y) => sum(square(y))).reduce((a, b) => add(a, b)));
  return gradient;
}

for (const subject of subjects()) {
  const { name, sample } = subject;
  if (sample.smooth === null) continue;

  property(`${name}() has the derivative of central differences`, [sample.smooth], async (call) => {
    const { f, xs } = differentiable(subject, call);
    await checkGradients(f, [xs]);
  });

  if (sample.once) {
    property(`${name}() refuses a second derivative and says where there is one`, [sample.smooth], (call) => {
      const { f, xs } = differentiable(subject, call);
      const twice = grad((xs: readonly Tensor[]) => slopes(f)(xs).map((dx) => sum(square(dx))).reduce(add));
      assert.throws(() => twice(xs), (error) => {
        assert.ok(error instanceof UnsupportedError, `${error}`);
        assert.match(error.message, /no second derivative: take it through (eager|naive)/);
        return true;
      });
    });
  } else {
    property(`${name}() has the second derivative of central differences`, [sample.smooth], async (call) => {
      const { f, xs } = differentiable(subject, call);
      await checkGradients(slopes(f), [xs]);
    });
  }
}

Deno.test("an op is tried here, has no derivative, or refuses to give one", () => {
  assert.deepEqual(Object.keys(vjps).sort(), Object.keys(ops).sort());
  for (const { name, sample } of subjects()) {
    // Of the functions in the table, those that refuse look at no call.
    const vjp = vjps[name] as unknown as (() => () => unknown) | null;
    if (sample.smooth !== null) assert.notEqual(vjp, null, name);
    else if (vjp !== null) assert.throws(() => vjp()(), UnsupportedError, name);
  }
  assert.notEqual(samples.matmul.smooth, null);
});

Deno.test("no gradient goes through comparisons, signs, searches and integers", async () => {
  const x = tensor([3, -1, 2]);
  for (
    const step of [
      (x: Tensor) => cast(greater(x, 0), "f32"),
      (x: Tensor) => sign(x),
      (x: Tensor) => cast(argmax(x), "f32"),
      (x: Tensor) => cast(topK(x, 3).indices, "f32"),
      (x: Tensor) => cast(cast(x, "i32"), "f32"),
    ]
  ) {
    assert.deepEqual(await grad((x: Tensor) => sum(step(x)))(x).array(), [0, 0, 0]);
    const product = grad((x: Tensor) => sum(mul(x, step(x))))(x); // the step is a constant to it
    await assertClose(product, add(mul(x, 0), step(x)));
  }
});

Deno.test("a power's derivatives are finite at base 0 and at exponent 0", async () => {
  const power = (a: Tensor, b: Tensor) => sum(pow(a, b));
  const [da, db] = grad(power, [0, 1])(tensor([0, 0, -2, 5]), tensor([2, 0, 3, 0]));
  await assertClose(da, [0, 0, 12, 0]);
  assert.deepEqual((await db.array() as number[]).slice(0, 2), [0, 0]);
  await assertClose((await db.array() as number[])[3], Math.log(5), { dtype: "f32" });
});

Deno.test("the gradient of logsumexp() sums to 1 in 16 bits too, whatever its rounded value has lost", async () => {
  for (const dtype of ["f16", "bf16"] as const) {
    const x = tensor([[200.5, 200.5], [200.5, -Infinity], [-3, -3]], { dtype, backend: cpu() });
    await assertClose(grad((x: Tensor) => sum(logsumexp(x, { axis: 1 })))(x), [[0.5, 0.5], [1, 0], [0.5, 0.5]]);
    await assertClose(grad((x: Tensor) => logsumexp(x))(slice(x, [0, 0], [1, 2])), [[0.5, 0.5]]);
  }
});

Deno.test("equal operands share the gradient of maximum(), and where() gives nothing to what it does not pick", async () => {
  const [da, db] = grad((a: Tensor, b: Tensor) => sum(maximum(a, b)), [0, 1])(tensor([1, 2]), tensor([1, 5]));
  assert.deepEqual([await da.array(), await db.array()], [[0.5, 0], [0.5, 1]]);
  const inverse = grad((x: Tensor) => sum(where(greater(x, 1), div(1, x), x)));
  assert.deepEqual(await inverse(tensor([2, 0.5])).array(), [-0.25, 1]);
});
