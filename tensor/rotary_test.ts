import assert from "node:assert/strict";
import {
  arbTensor,
  assertClose,
  boolean,
  checkGradients,
  compose,
  elementOf,
  integer,
  property,
} from "../testing/mod.ts";
import { grad } from "../mod.ts";
import { tensor } from "./create.ts";
import { add, cos, mul, neg, sin, square } from "./elementwise.ts";
import { eager } from "./eager.ts";
import { DTypeError, IndexError, ShapeError } from "./errors.ts";
import { slice } from "./movement.ts";
import { key, randint, randn, uniform } from "./random.ts";
import { sum } from "./reduce.ts";
import { rotaryEmbedding } from "./rotary.ts";
import type { Tensor } from "./tensor.ts";

const arbProblem = compose((draw) => {
  const [B, S, H, R] = [integer(0, 3), integer(0, 5), integer(1, 3), integer(0, 3)].map((n) => draw(n));
  const D = 2 * R + draw(integer(0, 3)), length = S + draw(integer(1, 3)), seed = draw(integer(0, 999));
  const angles = uniform(key(seed), [length, R], { dtype: "f64", max: 6 });
  const shape = draw(elementOf("none", "row", "batch"));
  return {
    x: draw(arbTensor({ shape: [B, S, H, D], dtype: "f64" })),
    keys: draw(arbTensor({ shape: [B, S, 1, D], dtype: "f64" })),
    angles,
    options: {
      interleaved: draw(boolean()),
      positions: shape === "none" ? undefined : randint(key(seed), shape === "row" ? [S] : [B, S], { max: length }),
    },
  };
});

property(
  "rotaryEmbedding() equals its eager twin, for one tensor and for two",
  [arbProblem],
  async ({ x, keys, angles, options }) => {
    const c = cos(angles), s = sin(angles);
    const plain = eager.rotaryEmbedding([x, keys], c, s, options), fused = rotaryEmbedding([x, keys], c, s, options);
    await assertClose(rotaryEmbedding(x, c, s, options), plain[0]);
    await assertClose(fused[0], plain[0]);
    await assertClose(fused[1], plain[1]);
  },
);

property("rotaryEmbedding() keeps lengths, and turns back by −sin", [arbProblem], async ({ x, angles, options }) => {
  const c = cos(angles), s = sin(angles), y = rotaryEmbedding(x, c, s, options);
  await assertClose(sum(square(y), { axis: -1 }), sum(square(x), { axis: -1 }));
  await assertClose(rotaryEmbedding(y, c, neg(s), options), x);
});

Deno.test("rotaryEmbedding() makes products of queries and keys depend on their distance alone", async () => {
  const rate = tensor([1, 0.1], { dtype: "f64" });
  const angles = mul(tensor([[0], [1], [2], [3], [4], [5]], { dtype: "f64" }), rate);
  const q = randn(key(1), [1, 1, 1, 4], { dtype: "f64" }), k = randn(key(2), [1, 1, 1, 4], { dtype: "f64" });
  const at = (x: Tensor, position: number, interleaved: boolean) =>
    rotaryEmbedding(x, cos(angles), sin(angles), { interleaved, positions: tensor([position], { dtype: "i32" }) });
  for (const interleaved of [false, true]) {
    const dot = (i: number, j: number) => sum(mul(at(q, i, interleaved), at(k, j, interleaved)));
    await assertClose(dot(3, 1), dot(5, 3));
    await assertClose(dot(0, 4), dot(1, 5));
  }
});

Deno.test("rotaryEmbedding() turns Llama's halves: y1 = x1·c − x2·s, y2 = x2·c + x1·s", async () => {
  const x = tensor([1, 2, 3, 4, 9], { shape: [1, 1, 1, 5] });
  const c = tensor([[0.6, 0.8]]), s = tensor([[0.8, 0.6]]);
  await assertClose(rotaryEmbedding(x, c, s), [[[[0.6 - 2.4, 1.6 - 2.4, 1.8 + 0.8, 3.2 + 1.2, 9]]]]);
  await assertClose(rotaryEmbedding(x, c, s, { interleaved: true }), [[[[
    0.6 - 1.6,
    1.2 + 0.8,
    2.4 - 2.4,
    3.2 + 1.8,
    9,
  ]]]]);
});

Deno.test("rotaryEmbedding() has the gradients of central differences, and a second derivative", async () => {
  const x = randn(key(1), [2, 3, 2, 5], { dtype: "f64" }), y = randn(key(2), [2, 3, 1, 5], { dtype: "f64" });
  const angles = uniform(key(3), [4, 2], { dtype: "f64", max: 6 });
  const positions = tensor([[0, 3, 1], [2, 2, 0]], { dtype: "i32" });
  for (const interleaved of [false, true]) {
    const turn = (x: Tensor, y: Tensor) =>
      rotaryEmbedding([x, y], cos(angles), sin(angles), { interleaved, positions });
    await checkGradients(turn, [x, y]);
    await checkGradients((x) => grad((x: Tensor) => sum(square(square(turn(x, y)[0]))))(x), [x]);
    await checkGradients((x) => rotaryEmbedding(x, cos(angles), sin(angles), { interleaved }), [x]);
  }
});

Deno.test("rotaryEmbedding() reads NaN for a position computed on the device that is outside the tables", async () => {
  const x = tensor([1, 2], { shape: [1, 1, 1, 2] }), c = tensor([[1]]), s = tensor([[0]]);
  const outside = add(tensor([0], { dtype: "i32" }), 1);
  await assertClose(rotaryEmbedding(x, c, s, { positions: outside }), [[[[NaN, NaN]]]]);
});

Deno.test("rotaryEmbedding() refuses what does not fit", () => {
  const x = randn(key(1), [2, 3, 1, 4]), table = randn(key(2), [3, 2]);
  const i32 = (values: number[]) => tensor(values, { dtype: "i32" });
  assert.throws(() => rotaryEmbedding(slice(x, [0], [1]), randn(key(1), [3, 3]), randn(key(1), [3, 3])), ShapeError);
  assert.throws(() => rotaryEmbedding(x, table, randn(key(2), [3, 1])), ShapeError);
  assert.throws(() => rotaryEmbedding(x, randn(key(2), [2, 2]), randn(key(2), [2, 2])), IndexError);
  assert.throws(() => rotaryEmbedding(x, table, table, { positions: i32([0, 1, 3]) }), IndexError);
  assert.throws(() => rotaryEmbedding(x, table, table, { positions: i32([0, 1]) }), ShapeError);
  assert.throws(() => rotaryEmbedding(x, table, table, { positions: tensor([0, 1, 2]) }), DTypeError);
  assert.throws(() => rotaryEmbedding(tensor([1, 2]), table, table), ShapeError);
  assert.throws(() => rotaryEmbedding([], table, table), ShapeError);
});
