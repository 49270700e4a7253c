import assert from "node:assert/strict";
import { cpu } from "./cpu.ts";
import { tensor } from "./create.ts";
import { erf } from "./elementwise.ts";
import { normalOf, normalTable } from "./normal.ts";

/** The normal distribution, in f64. */
function normal(z: number[]): number[] {
  const halves = tensor(z.map((v) => v * Math.SQRT1_2), { dtype: "f64", backend: cpu() });
  return Array.from(erf(halves).dataSync(), (v) => 0.5 * (1 + v));
}

Deno.test("normalOf() is the normal distribution's inverse to 1.1e-7 and f32's rounding, out to six deviations", () => {
  const draws = Array.from({ length: 4001 }, (_, i) => Math.floor(2 ** (31 * i / 4000)) - 1);
  const below = normal(draws.map((m) => normalOf(m)));
  draws.forEach((m, i) => {
    const z = normalOf(m), q = (2 * m + 1) * 2 ** -33;
    const slope = Math.exp(-z * z / 2) / Math.sqrt(2 * Math.PI);
    // Further out 1 − Φ has too few digits left to judge by.
    if (z < 4) assert(Math.abs((1 - below[i] - q) / slope) < 1.1e-7 + (z < 2 ? 2 ** -24 : 2 ** -23), `m = ${m}`);
    assert.equal(normalOf(m + 2 ** 31), z === 0 ? 0 : -z);
  });
  assert(Math.abs(normalOf(0) - 6.3379568) < 1e-5);
});

Deno.test("normalOf() never falls as the tail shrinks", () => {
  let before = 7;
  for (let m = 0; m < 2 ** 31; m += 4099) {
    const z = normalOf(m);
    assert(z <= before, `m = ${m}: ${z} after ${before}`);
    before = z;
  }
});

Deno.test("normalTable() keeps its integers: a change would change every seeded run", () => {
  let hash = 0;
  for (const c of normalTable()) hash = Math.imul(hash ^ c, 0x01000193) >>> 0;
  assert.equal(normalTable().length, 256);
  assert.equal(hash.toString(16), "326adc9b");
});
