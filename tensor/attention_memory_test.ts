import assert from "node:assert/strict";
import { attentionMemory, cpu, flashAttention, naiveAttention, setBackend, zeros } from "../mod.ts";

/** How far the CPU's memory rises in a call. */
function risen(f: typeof flashAttention, B: number, S: number, Sk: number, H: number, D: number, Dv: number): number {
  setBackend(cpu());
  using q = zeros([B, S, H, D]), k = zeros([B, Sk, H, D]), v = zeros([B, Sk, H, Dv]);
  f(q, k, v).dispose(); // constants are made once
  const before = cpu().memory().current;
  cpu().resetPeak();
  f(q, k, v).dispose();
  return cpu().memory().peak - before;
}

Deno.test("attentionMemory() is what the calls allocate at their peak", () => {
  for (const [B, S, Sk, H, D, Dv] of [[2, 64, 64, 3, 8, 8], [1, 40, 90, 2, 16, 5], [1, 8, 8, 2, 128, 128]]) {
    const sizes = { batch: B, seqlen: S, seqlenK: Sk, heads: H, headDim: D, valueDim: Dv };
    const predicted = (algorithm: "naive" | "flash") => attentionMemory({ algorithm, ...sizes }).peak;
    assert.equal(risen(naiveAttention, B, S, Sk, H, D, Dv), predicted("naive"));
    assert.equal(risen(flashAttention, B, S, Sk, H, D, Dv), predicted("flash"));
  }
});

Deno.test("attentionMemory() sums its terms, and flash stays 104 times below naive at 8,192 positions", () => {
  const sizes = { batch: 4, seqlen: 8192, heads: 12, headDim: 64, causal: true };
  const [naive, flash] = (["naive", "flash"] as const).map((algorithm) => attentionMemory({ algorithm, ...sizes }));
  for (const { terms, peak } of [naive, flash]) assert.equal(Object.values(terms).reduce((a, b) => a + b), peak);
  assert.equal(flash.terms.out, 4 * 8192 * 12 * 64 * 4);
  assert.equal(flash.terms.lse, 4 * 12 * 8192 * 4);
  assert.equal(naive.terms.scores, 4 * 12 * 8192 * 8192 * 4);
  assert.ok(naive.peak / flash.peak > 104);
});

Deno.test("attentionMemory() refuses sizes and names that mean nothing", () => {
  const sizes = { batch: 1, seqlen: 1, heads: 1, headDim: 1 };
  assert.throws(
    () => attentionMemory({ algorithm: "naive", ...sizes, seqlen: NaN }),
    /\[attentionMemory\] seqlen .* NaN/,
  );
  assert.throws(
    () => attentionMemory({ algorithm: "flash", ...sizes, dtype: "i32" }),
    /attention takes floats, not i32/,
  );
  assert.throws(() => attentionMemory({ algorithm: JSON.parse('"fast"'), ...sizes }), /algorithm is .* got "fast"/);
});
