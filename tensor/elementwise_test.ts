import assert from "node:assert/strict";
import { arbBroadcastable, arbTensor, assertClose, compose, float, property } from "../testing/mod.ts";
import { cpu } from "./cpu.ts";
import { tensor, zeros } from "./create.ts";
import type { DType } from "./dtype.ts";
import * as e from "./elementwise.ts";
import { erfcOf, erfOf, geluTanh, sigmoidOf } from "./elementwise.ts";
import { DTypeError, ShapeError, ValueError } from "./errors.ts";
import { transpose } from "./movement.ts";
import type { Tensor } from "./tensor.ts";

const of = (dtype: DType, ...values: number[]) => tensor(values, { dtype });

Deno.test("operands broadcast, views and copies alike", async () => {
  const column = tensor([[1], [2]]), row = tensor([10, 20, 30]);
  assert.deepEqual(await e.add(column, row).array(), [[11, 21, 31], [12, 22, 32]]);
  assert.deepEqual(await e.sub(transpose(tensor([[1, 2], [3, 4]])), tensor([1, 1])).array(), [[0, 2], [1, 3]]);
  assert.deepEqual(e.mul(zeros([0, 1]), zeros([3])).shape, [0, 3]);
  assert.throws(() => e.add(zeros([2]), zeros([3])), /left \[2\], right \[3\] \(2 ≠ 3\)/);
});

const pairs = compose((draw) => draw(arbBroadcastable()).map((shape) => draw(arbTensor({ shape, dtype: "f64" }))));

property("add() and mul() commute, maximum() and minimum() add up to both", [pairs], async ([a, b]) => {
  const same = { atol: 0, rtol: 0 };
  await assertClose(e.add(a, b), e.add(b, a), same);
  await assertClose(e.mul(a, b), e.mul(b, a), same);
  await assertClose(e.add(e.maximum(a, b), e.minimum(a, b)), e.add(a, b), same);
});

Deno.test("maximum() and minimum() give NaN when either is, relu() too", async () => {
  const a = tensor([NaN, 1, 2]), b = tensor([1, NaN, 3]);
  assert.deepEqual(await e.maximum(a, b).array(), [NaN, NaN, 3]);
  assert.deepEqual(await e.minimum(a, b).array(), [NaN, NaN, 2]);
  assert.deepEqual(await e.relu(tensor([NaN, -1, 2])).array(), [NaN, 0, 2]);
});

Deno.test("integers wrap at 32 bits", async () => {
  const large = of("i32", 2 ** 31 - 1);
  assert.deepEqual(await e.add(large, 1).array(), [-(2 ** 31)]);
  assert.deepEqual(await e.mul(large, large).array(), [1]);
  assert.deepEqual(await e.sub(of("u32", 0), 1).array(), [2 ** 32 - 1]);
  assert.deepEqual(await e.mul(of("u32", 2 ** 31), 3).array(), [2 ** 31]);
});

Deno.test("a number takes the tensor's type; a fraction makes integers f32; two tensors meet in the wider", () => {
  assert.equal(e.add(of("f16", 1), 0.5).dtype, "f16");
  assert.equal(e.add(of("i32", 1), 2).dtype, "i32");
  assert.equal(e.add(of("i32", 1), 0.5).dtype, "f32");
  assert.equal(e.add(of("i32", 1), of("bf16", 1)).dtype, "bf16");
  assert.equal(e.div(of("i32", 1), of("i32", 2)).dtype, "f32");
  assert.equal(e.exp(of("u32", 1)).dtype, "f32");
  assert.throws(() => e.add(of("i32", 1), of("u32", 1)), DTypeError);
  assert.throws(
    () => e.add(tensor([true]), tensor([true])),
    new DTypeError("add", "takes numbers, got bool: cast first"),
  );
  assert.throws(() => e.add(1, 2), ValueError);
});

Deno.test("comparisons give bool, and NaN is equal to nothing and beside nothing", async () => {
  const a = tensor([1, 2, NaN]), b = tensor([1, 3, NaN]);
  const all = [e.equal, e.less, e.lessEqual, e.greater, e.greaterEqual].map((f) => f(a, b));
  assert.ok(all.every(({ dtype }) => dtype === "bool"));
  assert.deepEqual(await Promise.all(all.map((y) => y.array())), [[1, 0, 0], [0, 1, 0], [1, 1, 0], [0, 0, 0], [
    1,
    0,
    0,
  ]]);
  assert.deepEqual(await e.equal(tensor([true, false]), true).array(), [1, 0]);
});

Deno.test("logic takes numbers as true when they are not 0", async () => {
  const a = tensor([0, 2, 0, -1]), b = tensor([false, false, true, true]);
  assert.deepEqual(await e.logicalAnd(a, b).array(), [0, 0, 0, 1]);
  assert.deepEqual(await e.logicalOr(a, b).array(), [0, 1, 1, 1]);
  assert.deepEqual(await e.logicalNot(a).array(), [1, 0, 1, 0]);
});

Deno.test("where() picks by the condition, broadcasts all three, and keeps bool when both sides are", async () => {
  const condition = tensor([[true], [false]]);
  assert.deepEqual(await e.where(condition, tensor([1, 2]), -1).array(), [[1, 2], [-1, -1]]);
  assert.deepEqual(await e.where(tensor([1, 0]), 5, NaN).array(), [5, NaN]);
  assert.equal(e.where(condition, true, false).dtype, "bool");
  assert.equal(e.where(condition, of("i32", 1), 0.5).dtype, "f32");
  assert.throws(() => e.where(zeros([2]), zeros([3]), 0), ShapeError);
});

Deno.test("cast() goes towards zero, holds at the ends, and takes NaN as 0", async () => {
  const x = tensor([1.9, -1.9, 1e20, -1e20, NaN]);
  assert.deepEqual(await e.cast(x, "i32").array(), [1, -1, 2 ** 31 - 1, -(2 ** 31), 0]);
  assert.deepEqual(await e.cast(x, "u32").array(), [1, 0, 2 ** 32 - 1, 0, 0]);
  assert.deepEqual(await e.cast(x, "bool").array(), [1, 1, 1, 1, 1]);
  assert.deepEqual(await e.cast(of("i32", -1), "u32").array(), [2 ** 32 - 1]);
  assert.deepEqual(await e.cast(tensor([65520]), "f16").array(), [Infinity]);
  assert.equal(e.cast(x, "f32"), x);
  assert.throws(() => e.cast(x, "f8" as "f16"), DTypeError);
});

Deno.test("runAs() refuses before it casts, and frees the casts that it made", () => {
  const a = of("bf16", 1, 2), b = zeros([2]), bad = zeros([3]), held = () => cpu().memory().current;
  e.add(a, b).dispose();
  const before = held();
  assert.throws(() => e.add(a, bad), ShapeError);
  assert.equal(held(), before);
  e.add(a, b).dispose();
  assert.equal(held(), before);
});

Deno.test("erf, its complement and GELU have their known values, far out too", () => {
  assertClose([erfOf(0.5), erfOf(1), erfOf(2)], [0.5204998778130465, 0.8427007929497149, 0.9953222650189527], {
    atol: 1e-15,
  });
  assertClose([erfcOf(2), erfcOf(5), erfcOf(10)], [
    4.677734981047266e-3,
    1.5374597944280349e-12,
    2.088487583762545e-45,
  ], { atol: 0, rtol: 1e-12 });
  assertClose([geluTanh(1), geluTanh(-1)], [0.8411919906082768, -0.1588080093917232], { atol: 1e-14 });
});

property("erf is odd and erf + erfc is 1; sigmoid(x) + sigmoid(−x) is 1", [float({ min: -30, max: 30 })], (x) => {
  assert.equal(erfOf(-x), -erfOf(x));
  assertClose([erfOf(x) + erfcOf(x), sigmoidOf(x) + sigmoidOf(-x)], [1, 1], { atol: 1e-14 });
});

Deno.test("activations are 0 or the identity far out, without NaN", async () => {
  const x = tensor([-1e4, 1e4], { dtype: "f64" });
  for (const f of [e.relu, e.silu, e.gelu, (x: Tensor) => e.gelu(x, { approximate: "tanh" })]) {
    assert.deepEqual((await f(x).array() as number[]).map((v) => v + 0), [0, 1e4]);
  }
  assert.deepEqual(await e.sigmoid(x).array(), [0, 1]);
  assert.deepEqual(await e.gelu(tensor([-Infinity])).array(), [0]);
  assert.throws(() => e.gelu(x, { approximate: "fast" as "tanh" }), ValueError);
});

Deno.test("isFinite() tells infinities and NaN from numbers", async () => {
  assert.deepEqual(await e.isFinite(tensor([1, NaN, Infinity, -Infinity])).array(), [1, 0, 0, 0]);
});
