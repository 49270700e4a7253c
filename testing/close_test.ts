import assert from "node:assert/strict";
import { cpu } from "../tensor/cpu.ts";
import { tensor } from "../tensor/create.ts";
import type { DType } from "../tensor/dtype.ts";
import { assertClose, AssertionError, type HostNumbers } from "./close.ts";

const on = (values: Parameters<typeof tensor>[0], dtype?: DType) => tensor(values, { dtype, backend: cpu() });

function message(f: () => void): string {
  try {
    f();
  } catch (error) {
    if (error instanceof AssertionError) return error.message;
    throw error;
  }
  throw new Error("the numbers were expected to differ");
}

Deno.test("assertClose() takes numbers, typed and nested arrays, and compares one number with all", () => {
  assertClose(0.1 + 0.2, 0.3);
  assertClose([[1, 2], [3, 4]], [[1, 2], [3, 4]]);
  assertClose(new Float32Array([1, 2, 3, 4]), [[1, 2], [3, 4]]);
  assertClose(new Float32Array([1, 1]), 1);
  assertClose(1, [1, 1]);
  assertClose([], new Float64Array(0));
  assertClose([true, false], [1, 0]);
});

Deno.test("assertClose() takes tensors on either side", async () => {
  await assertClose(on([[1, 2], [3, 4]]), on([[1, 2], [3, 4]]));
  await assertClose(on([1, 2]), [1, 2.000001]);
  await assertClose(new Float32Array([1, 2]), on([1, 2]));
  await assertClose(on([2, 2]), 2);
  await assert.rejects(assertClose(on([1, 2]), [1, 2.1]), AssertionError);
  await assert.rejects(assertClose([1, 2.1], on([1, 2])), AssertionError);
});

Deno.test("assertClose() names the worst element, both values, the error and the bound", () => {
  const actual = [[1, 2, 3], [4, 5.5, 6.001]];
  assert.equal(
    message(() => assertClose(actual, [[1, 2, 3], [4, 5, 6]], { atol: 0.001, rtol: 0 })),
    "[assertClose] 2 of 6 elements are too far off; the worst is [1,1]: actual 5.5, expected 5, error 0.5, " +
      "bound 0.001 (f64: atol 0.001, rtol 0)",
  );
  assert.match(
    message(() => assertClose(1, 2)),
    /^\[assertClose\] 1 of 1 element is too far off: actual 1, expected 2/,
  );
});

Deno.test("assertClose() judges an element by its own bound", () => {
  const text = message(() => assertClose([1000.5, 1.1], [1000, 1], { atol: 0, rtol: 1e-3 }));
  assert.match(text, /1 of 2 .* worst is \[1\]/);
});

Deno.test("assertClose() takes NaN for NaN alone, and infinities by their sign", () => {
  assertClose([NaN, Infinity, -Infinity], [NaN, Infinity, -Infinity]);
  const wide = { atol: Infinity, rtol: 1 };
  const pairs: [number, number][] = [[NaN, 1], [1, NaN], [Infinity, -Infinity], [1, Infinity], [Infinity, 1]];
  for (const [a, e] of pairs) {
    assert.throws(() => assertClose(a, e), AssertionError, `${a} ${e}`);
    assert.throws(() => assertClose([0, a], [0, e], wide), AssertionError, `${a} ${e}`);
  }
  assert.match(message(() => assertClose([0.5, NaN], [0, 0])), /worst is \[1\]: actual NaN, expected 0, error NaN/);
});

Deno.test("assertClose() widens the tolerance with the coarser type", async () => {
  const off = 1 + 5e-3;
  assert.throws(() => assertClose(off, 1), AssertionError);
  await assert.rejects(assertClose(on([off], "f32"), 1), AssertionError);
  await assertClose(on([off], "bf16"), 1);
  await assertClose(on([1], "bf16"), on([off], "f32"));
  await assert.rejects(assertClose(on([1 + 2 ** -8], "f16"), 1), AssertionError);
  assertClose(new Float32Array([off]), 1, { dtype: "bf16" });
  assertClose(new Float32Array([1 + 5e-6]), 1);
  assert.throws(() => assertClose(new Float64Array([1 + 5e-6]), 1), AssertionError);
  for (const dtype of ["i32", "u32"] as const) {
    await assert.rejects(assertClose(on([100_000_000], dtype), on([100_000_001], dtype)), AssertionError);
  }
});

Deno.test("assertClose() refuses other shapes, and lets a typed array have any", async () => {
  assert.match(message(() => assertClose([1, 2], [[1, 2]])), /shapes differ: actual \[2\], expected \[1,2\]/);
  assert.throws(() => assertClose(new Float32Array(3), new Float32Array(2)), /shapes differ/);
  assert.throws(() => assertClose([], [1]), /shapes differ/);
  await assert.rejects(assertClose(on([[1], [2]]), on([1, 2])), /shapes differ: actual \[2,1\], expected \[2\]/);
  await assertClose(on([[1], [2]]), new Float32Array([1, 2]));
  const uneven: HostNumbers = [[1, 2], [3]];
  assert.throws(() => assertClose(uneven, [1, 2, 3]), { name: "ShapeError", message: /rows differ/ });
});

Deno.test("assertClose() refuses tolerances that are negative or NaN", () => {
  assert.throws(() => assertClose(1, 1, { rtol: NaN }), { name: "ValueError", message: /rtol/ });
  assert.throws(() => assertClose(1, 1, { atol: -1 }), { name: "ValueError", message: /atol/ });
});
