import assert from "node:assert/strict";
import {
  attentionMemory,
  type Backend,
  cpu,
  type DType,
  flashAttention,
  naiveAttention,
  webgpu,
  zeros,
} from "../mod.ts";
import { needAdapter } from "../testing/laws/adapter.ts";

const problems = [[2, 64, 64, 3, 8, 8], [1, 300, 256, 4, 64, 64], [1, 40, 92, 2, 15, 8], [1, 8, 8, 2, 128, 128]];

/** True for the CPU and for software adapters, which have no processors to split keys for. */
function isSoftware({ name, capabilities: { subgroupSize } }: Backend): boolean {
  return name === "cpu" || (subgroupSize > 0 && subgroupSize < 16);
}

/** Asserts that memory rises in a call as far as predicted, or by whole results of parts more where flash splits keys. */
async function assertRises(backend: Backend, dtype: DType, causal: boolean): Promise<void> {
  for (const [B, S, Sk, H, D, Dv] of problems) {
    const sizes = { batch: B, seqlen: S, seqlenK: Sk, heads: H, headDim: D, valueDim: Dv, dtype, causal };
    const shapes = [[B, S, H, D], [B, Sk, H, D], [B, Sk, H, Dv]];
    const [q, k, v] = shapes.map((shape) => zeros(shape, { dtype, backend }));
    for (const [algorithm, f] of [["naive", naiveAttention], ["flash", flashAttention]] as const) {
      f(q, k, v, { causal }).dispose(); // constants are made once
      await backend.synchronize();
      const before = backend.memory().current;
      backend.resetPeak();
      f(q, k, v, { causal }).dispose();
      const { peak } = attentionMemory({ algorithm, ...sizes }), rest = backend.memory().peak - before - peak;
      const part = B * S * H * (Dv + 1) * 4, parts = algorithm === "flash" && !isSoftware(backend) ? rest / part : 0;
      assert.equal(rest, Math.min(12, Math.floor(parts)) * part, `${algorithm} ${dtype} ${[B, S, Sk, H, D, Dv]}`);
    }
    for (const x of [q, k, v]) x.dispose();
  }
}

Deno.test("attentionMemory() is what the calls allocate at their peak on the CPU", () =>
  assertRises(cpu(), "f32", false));

Deno.test("attentionMemory() is what the calls allocate at their peak on WebGPU, causal and in 16 bits too", async () => {
  const backend = await needAdapter(webgpu());
  for (const dtype of ["f32", "f16"] as const) {
    for (const causal of [false, true]) await assertRises(backend, dtype, causal);
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
