import assert from "node:assert/strict";
import { key } from "../tensor/random.ts";
import { kaimingNormal, kaimingUniform, normal, truncatedNormal, xavierNormal, xavierUniform } from "./mod.ts";

/** Mean, standard deviation and largest magnitude. */
function describe(values: ArrayLike<number>): { mean: number; std: number; most: number } {
  const list = Array.from(values), mean = list.reduce((a, b) => a + b) / list.length;
  const std = Math.sqrt(list.reduce((a, b) => a + (b - mean) ** 2, 0) / list.length);
  return { mean, std, most: list.reduce((a, b) => Math.max(a, Math.abs(b)), 0) };
}

const shape = [300, 200], n = 300 * 200;

const wanted = {
  "normal()": { draw: normal(key(1), shape, { std: 0.3 }), std: 0.3, most: Infinity },
  "truncatedNormal()": { draw: truncatedNormal(key(1), shape, { std: 0.3 }), std: 0.3 * 0.8796, most: 0.6 },
  "xavierUniform()": { draw: xavierUniform(key(1), shape), std: Math.sqrt(2 / 500), most: Math.sqrt(6 / 500) },
  "xavierNormal()": { draw: xavierNormal(key(1), shape, { gain: 2 }), std: 2 * Math.sqrt(2 / 500), most: Infinity },
  "kaimingUniform()": { draw: kaimingUniform(key(1), shape), std: Math.sqrt(2 / 200), most: Math.sqrt(6 / 200) },
  "kaimingNormal()": {
    draw: kaimingNormal(key(1), shape, { nonlinearity: "linear", fan: "out" }),
    std: Math.sqrt(1 / 300),
    most: Infinity,
  },
};

for (const [name, { draw, std, most }] of Object.entries(wanted)) {
  Deno.test(`${name} has mean 0 and the deviation that it promises`, async () => {
    const got = describe(await draw.data());
    assert(Math.abs(got.mean) < 5 * std / Math.sqrt(n), `mean ${got.mean}`);
    assert(Math.abs(got.std / std - 1) < 5 / Math.sqrt(2 * n), `std ${got.std} for ${std}`);
    assert(got.most <= most * (1 + 1e-6), `${got.most} is beyond ${most}`);
  });
}

Deno.test("initialisers refuse shapes without a fan and deviations that are none", () => {
  assert.throws(() => xavierUniform(key(0), [3]), /at least two axes/);
  assert.throws(() => kaimingNormal(key(0), [0, 3]), /none of them empty/);
  assert.throws(() => normal(key(0), [3], { std: -1 }), /std is a number above 0/);
  assert.throws(() => truncatedNormal(key(0), [3], { bound: NaN }), /bound is a number above 0/);
});
