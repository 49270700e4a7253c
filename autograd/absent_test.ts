import assert from "node:assert/strict";
import { cpu } from "../tensor/cpu.ts";
import { tensor } from "../tensor/create.ts";
import { rmsNorm } from "../tensor/norm.ts";
import { key, randn } from "../tensor/random.ts";
import { sum } from "../tensor/reduce.ts";
import { alias, type Tensor } from "../tensor/tensor.ts";
import { assertClose } from "../testing/mod.ts";
import { absent, isAbsent, isOne, knownAsOne } from "./absent.ts";
import { grad } from "./grad.ts";

Deno.test("an absent gradient is zeros of a shape in the bytes of one number", async () => {
  const backend = cpu(), before = backend.memory().current;
  const zeros = absent([100, 200], "f32", backend);
  assert.equal(backend.memory().current, before + 4);
  assert(isAbsent(zeros) && isAbsent(absent([], "f64", backend)) && !isAbsent(tensor([0])));
  await assertClose(sum(zeros), 0);
  assert.deepEqual(zeros.shape, [100, 200]);
});

Deno.test("a result that nothing depends on adds nothing to the gradient", async () => {
  const x = randn(key(1), [3, 4], { dtype: "f64" }), w = randn(key(2), [4], { dtype: "f64" });
  const residual = randn(key(3), [3, 4], { dtype: "f64" });
  const [both, one] = [
    (x: Tensor) => sum(rmsNorm(x, w, { residual }).out),
    (x: Tensor) => sum(rmsNorm(x, w, { residual }).sum),
  ].map((f) => grad(f)(x));
  assert.notDeepEqual(await both.array(), await one.array());
  await assertClose(one, 1);
});

Deno.test("the gradient that a value starts with is known to be 1 while the walk lasts, and others are not", () => {
  const seed = tensor(1), other = tensor(1);
  knownAsOne(seed, () => {
    assert(isOne(seed) && isOne(alias(seed)) && !isOne(other));
  });
  assert(!isOne(seed));
});
