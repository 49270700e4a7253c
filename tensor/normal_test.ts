import assert from "node:assert/strict";
import { assertClose, integer, property } from "../testing/mod.ts";
import { erfcOf } from "./elementwise.ts";
import { normalOf, normalTable } from "./normal.ts";
import { philox4x32 } from "./philox.ts";

const density = (z: number) => Math.exp(-z * z / 2) / Math.sqrt(2 * Math.PI);

/** What a draw may be off by: the polynomial, and rounding to f32. */
const error = (z: number) => 1.2e-7 + Math.abs(z) * 2 ** -24;

Deno.test("normalOf() gives the quantiles of the normal distribution", () => {
  const tails = [0.4, 0.25, 0.1, 0.025, 1e-3, 1e-6];
  const quantiles = [0.2533471031, 0.6744897502, 1.2815515655, 1.9599639845, 3.0902323062, 4.7534243088];
  tails.forEach((q, i) => {
    const z = quantiles[i], nearest = 2 ** -33 / density(z); // no 32 bits stand for q itself
    assertClose(normalOf(Math.round(q * 2 ** 32 - 0.5)), z, { rtol: 0, atol: error(z) + nearest });
  });
});

const bits = integer(0, 2 ** 31 - 1);

property("normalOf() inverts the upper tail: ½ erfc(z/√2) = q", [bits], (m) => {
  const q = (2 * m + 1) * 2 ** -33, z = normalOf(m);
  const off = Math.abs(0.5 * erfcOf(z / Math.SQRT2) - q) / density(z); // in units of z
  assert.ok(off < error(z), `z = ${z} is off by ${off}`);
}, { runs: 1000 });

property("normalOf() falls as the tail grows, and the first bit is the sign", [bits], (m) => {
  if (m > 0) assert.ok(normalOf(m) <= normalOf(m - 1) + 2e-7);
  const z = normalOf(m);
  assert.equal(normalOf(m | 0x80000000), z === 0 ? 0 : -z);
  assert.equal(Math.fround(z), z);
});

Deno.test("normalOf() reaches ±6.3 and no infinity, and 0 from the middle", () => {
  assertClose([normalOf(0), normalOf(0x80000000)], [6.33766, -6.33766], { atol: 1e-3 });
  assertClose(normalOf(0x7fffffff), 0, { atol: 1e-7 });
  assert.equal(Object.is(normalOf(0xffffffff), -0), false);
});

Deno.test("100,000 draws have the moments of the normal distribution", () => {
  const n = 100_000;
  const draws = Array.from({ length: n / 4 }, (_, i) => [...philox4x32(i, 0, 0, 0, 7, 0)]).flat().map((w) =>
    normalOf(w)
  );
  const moment = (p: number) => draws.reduce((sum, z) => sum + z ** p, 0) / n;
  // Five standard errors of each: √(Var zᵖ / n).
  for (const [p, expected, variance] of [[1, 0, 1], [2, 1, 2], [3, 0, 15], [4, 3, 96]]) {
    assertClose(moment(p), expected, { rtol: 0, atol: 5 * Math.sqrt(variance / n) });
  }
});

Deno.test("the table is made once, and its octaves meet", () => {
  assert.equal(normalTable(), normalTable());
  for (let c = 1; c < 30; c++) {
    const edge = 2 ** (31 - c); // q crosses 2^−(c+1) between m − 1 and m
    assertClose(normalOf(edge - 1), normalOf(edge), { rtol: 0, atol: 2e-7 + 2 ** -32 * 2 ** (c + 1) });
  }
});
