import assert from "node:assert/strict";
import { cpu } from "../tensor/cpu.ts";
import { scope } from "../tensor/scope.ts";
import { arbAttention, type AttentionBounds, type AttentionProblem } from "./attention.ts";
import { arbDType } from "./tensors.ts";
import { Random, SIMPLEST, Source } from "./choices.ts";

const all = ["softmaxScale", "causal", "window", "softcap", "alibiSlopes", "bias", "mask", "sinks"] as const;

/** What `read` sees of a number of problems. */
function samples<T>(bounds: AttentionBounds, read: (problem: AttentionProblem) => T, count = 200): T[] {
  const arbitrary = arbAttention({ ...bounds, backend: cpu() });
  return Array.from(
    { length: count },
    (_, i) => scope(() => read(arbitrary.draw(new Source(new Random(1, i))))),
  );
}

Deno.test("arbAttention() makes q, k and v of the sizes that it names", () => {
  samples({ views: true, dtype: arbDType("f32", "f16", "bf16") }, ({ q, k, v, B, Sq, Sk, H, Hk, D, Dv }) => {
    assert.deepEqual([q.shape, k.shape, v.shape], [[B, Sq, H, D], [B, Sk, Hk, D], [B, Sk, Hk, Dv]]);
    assert.equal(H % Hk, 0);
    assert.deepEqual([k.dtype, v.dtype], [q.dtype, q.dtype]);
  });
});

Deno.test("arbAttention() covers empty, single and unequal sequences, groups, and head sizes", () => {
  const drawn = samples({}, ({ B, Sq, Sk, H, Hk, D, Dv }) => ({ B, Sq, Sk, H, Hk, D, Dv }));
  const some = (holds: (sizes: typeof drawn[number]) => boolean) => assert.ok(drawn.some(holds), `${holds}`);
  some(({ Sq }) => Sq === 0);
  some(({ Sk }) => Sk === 0);
  some(({ Sq }) => Sq === 1);
  some(({ Sq, Sk }) => Sq > Sk && Sk > 0);
  some(({ Sq, Sk }) => Sq < Sk && Sq > 0);
  some(({ H, Hk }) => H > Hk && Hk > 1);
  some(({ D, Dv }) => D < Dv);
  some(({ D, Dv }) => D > Dv);
  assert.ok(drawn.every(({ B, Sq, Sk, Hk, D }) => B <= 2 && Sq <= 12 && Sk <= 12 && Hk <= 2 && D <= 12));
  const solid = samples({ zeros: false, maxSeqlen: 3 }, ({ Sq, Sk }) => [Sq, Sk]).flat();
  assert.deepEqual([...new Set(solid)].toSorted(), [1, 2, 3]);
});

Deno.test("arbAttention() turns on the features asked for, and no others", () => {
  const plain = samples({ features: [] }, ({ options }) => Object.keys(options)).flat();
  assert.deepEqual(plain, []);
  const usual = new Set(samples({}, ({ options }) => Object.keys(options)).flat());
  assert.deepEqual(usual, new Set(["causal", "window", "softcap"]));
  const every = samples({ features: all }, ({ options, B, H, Sq, Sk }) => {
    const fits = (shape: readonly number[], whole: readonly number[]) =>
      shape.length === whole.length && shape.every((n, i) => n === 1 || n === whole[i]);
    const { bias, mask, alibiSlopes, sinks, window } = options;
    assert.ok(bias === undefined || fits(bias.shape, [B, H, Sq, Sk]));
    assert.ok(mask === undefined || (mask.dtype === "bool" && fits(mask.shape, [B, H, Sq, Sk])));
    assert.ok(alibiSlopes === undefined || ["" + [H], "" + [B, H]].includes(String(alibiSlopes.shape)));
    assert.ok(sinks === undefined || String(sinks.shape) === String(H));
    assert.ok(window === undefined || window.every((n) => n >= -1));
    return Object.keys(options);
  });
  assert.deepEqual(new Set(every.flat()), new Set(all));
});

Deno.test("arbAttention() is simplest with one query, one key and no options", () => {
  scope(() => {
    const { B, Sq, Sk, H, Hk, D, Dv, options } = arbAttention({ backend: cpu() }).draw(new Source(SIMPLEST));
    assert.deepEqual([B, Sq, Sk, H, Hk, D, Dv], [1, 1, 1, 1, 1, 1, 1]);
    assert.deepEqual(options, {});
  });
});

Deno.test("arbAttention() refuses bounds and features that mean nothing", () => {
  assert.throws(() => arbAttention({ maxSeqlen: 0 }), { name: "ValueError", message: /maxSeqlen .* got 0/ });
  assert.throws(() => arbAttention({ maxHeads: NaN }), { name: "ValueError", message: /maxHeads/ });
  const features = JSON.parse('["causl"]');
  assert.throws(() => arbAttention({ features }), {
    name: "ValueError",
    message: /"causl" is no feature: softmaxScale/,
  });
});
