import assert from "node:assert/strict";
import { cpu } from "../tensor/cpu.ts";
import { tensor } from "../tensor/create.ts";
import { cos, erf, exp, exp2, gelu, log, maximum, minimum, pow, sigmoid, sin, tanh } from "../tensor/elementwise.ts";
import type { Tensor } from "../tensor/tensor.ts";
import { needAdapter } from "../testing/laws/adapter.ts";
import { mathFunctions } from "./math.ts";
import { webgpu } from "./webgpu.ts";

const gpu = await needAdapter(webgpu());

/** The distance between f32 numbers of the size of x, or between the smallest normal ones. */
const unit = (x: number) => 2 ** (Math.max(-126, Math.floor(Math.log2(Math.abs(x)))) - 23);

/** Asserts that f errs by at most so many units in the last place of the f64 result; infinite and NaN results are equal. */
async function within(units: number, f: (...xs: Tensor[]) => Tensor, ...columns: readonly number[][]): Promise<void> {
  const values = columns.map((column) => Float32Array.from(column));
  const got = await f(...values.map((x) => tensor(x, { backend: gpu }))).data();
  const exact = await f(...values.map((x) => tensor(x, { dtype: "f64", backend: cpu() }))).data();
  exact.forEach((y, i) => {
    const at = () => `f(${values.map((x) => x[i])}) = ${got[i]}, not ${y}`;
    const rounded = Math.fround(y);
    if (!Number.isFinite(rounded)) return assert(Object.is(got[i], rounded), at());
    assert(Math.abs(got[i] - y) <= units * unit(y), `${at()}: ${Math.abs(got[i] - y) / unit(y)} units`);
  });
}

/** n numbers from a to b, which no grid of binary fractions holds. */
const range = (a: number, b: number, n = 3001) => Array.from({ length: n }, (_, i) => a + (b - a) * (i + 0.382) / n);
/** n numbers of all sizes from 2^a to 2^b, of both signs. */
const sizes = (a: number, b: number, n = 3000) =>
  Array.from({ length: n }, (_, i) => (i % 2 ? -1 : 1) * 2 ** (a + (b - a) * (i + 0.382) / n));
const special = [NaN, Infinity, -Infinity, 0, -0, 1, -1, 0.5, -0.5];
const nearZero = sizes(-40, 0);

Deno.test("exp() and exp2() keep to a few units over all that f32 holds", async () => {
  await within(4, exp, range(-87.3, 88.72));
  await within(4, exp, [...nearZero, ...special, 88, -88, 88.722, 88.723, 89, 1e30, -200, -1e30]);
  await within(4, exp2, range(-126, 127.99));
  await within(4, exp2, [...nearZero, ...special, 127, -126, 128, 1e30, -200, -1e30]);
});

Deno.test("log() keeps to a few units from the smallest number to the largest, and near 1", async () => {
  await within(4, log, sizes(-126, 127.9).map(Math.abs));
  await within(4, log, [...range(0.7, 1.42), 1 + 2 ** -23, 1 - 2 ** -24, ...special, -1e-30]);
});

Deno.test("tanh(), sigmoid() and erf() keep to a few units to their ends", async () => {
  for (const [f, units] of [[tanh, 4], [sigmoid, 6], [erf, 6]] as const) {
    await within(units, f, [...range(-9, 9), ...nearZero, ...special, 50, -50, 1e30, -1e30]);
  }
  await within(8, sigmoid, range(-87, -9));
});

Deno.test("gelu() keeps its digits in the lower tail", async () => {
  const tanhs = (x: Tensor) => gelu(x, { approximate: "tanh" });
  for (const f of [(x: Tensor) => gelu(x), tanhs]) {
    await within(12, f, [...range(-1, 9), ...nearZero, NaN, Infinity, 0]);
    // Both fall as e^(−x²/2) there, which makes one rounding of x/√2 or of its square up to x² units.
    await within(25 + 12, f, range(-5, -1));
  }
});

Deno.test("sin() and cos() keep to a few units near 0 and at any size", async () => {
  for (const f of [sin, cos]) {
    await within(4, f, [...range(-0.7, 0.7), ...special, ...nearZero]);
    // Near a zero the error is one of the result's size too, however large the argument.
    for (const [a, b] of [[-10, 10], [-2000, 2000], [1e4, 1e6]]) await within(8, f, range(a, b));
    await within(8, f, [...sizes(20, 127.9), 3.4028234e38, 1e22, 16367173 * 2 ** 72]);
  }
});

Deno.test("pow() has the signs and edge cases of IEEE 754", async () => {
  const bases = [...special, 2, -2, 1e-30], exponents = [...special, 2, 3, -2, -3, 0.25, 1e9];
  const pairs = bases.flatMap((a) => exponents.map((b) => [a, b]));
  await within(64, pow, pairs.map(([a]) => a), pairs.map(([, b]) => b));
  const whole = range(-8, 8, 1000);
  for (const n of [2, 3, 5]) await within(n, pow, whole, whole.map(() => n));
});

Deno.test("maximum() and minimum() give NaN where either is NaN", async () => {
  const pairs = special.flatMap((a) => special.map((b) => [a, b]));
  for (const f of [maximum, minimum]) {
    const [a, b] = [0, 1].map((i) => tensor(Float32Array.from(pairs, (pair) => pair[i]), { backend: gpu }));
    const got = await f(a, b).data(), host = f === maximum ? Math.max : Math.min;
    pairs.forEach(([x, y], i) => assert.equal(got[i] + 0, host(x, y) + 0, `${x}, ${y}`)); // + 0: −0 counts as 0
  }
});

Deno.test("mathFunctions() gives each function that a text calls once, after those that it calls", () => {
  const text = mathFunctions("ft_tanh(ft_exp(x)) + ft_tanh(y) + other(z)");
  const declared = [...text.matchAll(/^(?:var<private> .*)?\s*fn (\w+)/gm)].map(([, name]) => name);
  for (const name of declared) assert.equal(declared.filter((other) => other === name).length, 1, name);
  assert(declared.indexOf("ft_exp") >= 0 && declared.indexOf("ft_exp") < declared.indexOf("ft_tanh"));
  assert(!declared.includes("ft_log"));
  assert.equal(mathFunctions("exp(x)"), "");
});
