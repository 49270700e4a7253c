/** The laws of the library's own ops, held by this one. */
import { DTypeError, init, tensor } from "@flashtape/flashtape";
import { arbShape, arbTensorData, checkOp, elementOf } from "@flashtape/flashtape/testing";
import assert from "node:assert/strict";
import { squaredRelu, squaredReluOp } from "./custom_op.ts";

await init();

Deno.test("squaredRelu() obeys the laws of ops", () => {
  // At 0 the second derivative has a kink: elements stay away from it.
  const elements = elementOf(-7.5, -2, -0.5, 0.25, 1, 3, 6.5);
  const calls = arbTensorData({ shape: arbShape(), elements, views: true }).map((x) => ({ inputs: [x], params: {} }));
  return checkOp(squaredReluOp, calls, { runs: 20, refused: [() => squaredRelu(tensor([1], { dtype: "i32" }))] });
});

Deno.test("squaredRelu() names the type that it does not take", () => {
  assert.throws(() => squaredRelu(tensor([true])), new DTypeError("squaredRelu", "x is bool, expected f32"));
});
