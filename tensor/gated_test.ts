import assert from "node:assert/strict";
import { arbShape, arbTensor, assertClose, checkGradients, compose, elementOf, property } from "../testing/mod.ts";
import { tensor } from "./create.ts";
import { eager } from "./eager.ts";
import type { GeluOptions } from "./elementwise.ts";
import { DTypeError, ShapeError, ValueError } from "./errors.ts";
import { geglu, swiglu } from "./gated.ts";
import { key, randn } from "./random.ts";

const arbPair = compose((draw) => {
  const shape = draw(arbShape({ maxRank: 3, maxSize: 60 }));
  return [draw(arbTensor({ shape, dtype: "f64" })), draw(arbTensor({ shape, dtype: "f64" }))] as const;
});

property(
  "swiglu() and geglu() equal their eager twins",
  [arbPair, elementOf("none", "tanh")],
  async ([gate, up], approximate) => {
    await assertClose(swiglu(gate, up), eager.swiglu(gate, up));
    const options = { approximate } as GeluOptions;
    await assertClose(geglu(gate, up, options), eager.geglu(gate, up, options));
  },
);

Deno.test("swiglu() and geglu() have the gradients of central differences", async () => {
  const gate = randn(key(1), [3, 4], { dtype: "f64" }), up = randn(key(2), [3, 4], { dtype: "f64" });
  await checkGradients(swiglu, [gate, up]);
  await checkGradients((a, b) => geglu(a, b), [gate, up]);
  await checkGradients((a, b) => geglu(a, b, { approximate: "tanh" }), [gate, up]);
});

Deno.test("swiglu() and geglu() stay finite at the ends, and have slope 1 and 0 there", async () => {
  const gate = tensor([-1000, -20, 0, 20, 1000]), up = tensor([1, 1, 1, 1, 1]);
  await assertClose(swiglu(gate, up), [0, -4.1e-8, 0, 20, 1000], { atol: 1e-7 });
  await assertClose(geglu(gate, up), [0, 0, 0, 20, 1000]);
  await checkGradients(swiglu, [tensor([-100, 100]), tensor([1, 1])]);
});

Deno.test("swiglu() and geglu() refuse shapes and options that do not fit", () => {
  assert.throws(() => swiglu(tensor([1, 2]), tensor([1])), ShapeError);
  assert.throws(() => geglu(tensor([1, 2]), tensor([[1, 2]])), ShapeError);
  assert.throws(() => swiglu(tensor([1], { dtype: "i32" }), tensor([1], { dtype: "i32" })), DTypeError);
  const wrong = { approximate: "sigmoid" } as unknown as GeluOptions;
  assert.throws(() => geglu(tensor([1]), tensor([1]), wrong), ValueError);
});
