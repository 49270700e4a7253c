import assert from "node:assert/strict";
import { attentionBackwardOp, attentionOp } from "../tensor/attention.ts";
import type { Backend } from "../tensor/backend.ts";
import { runAll } from "../tensor/op.ts";
import type { Tensor } from "../tensor/tensor.ts";
import { needAdapter } from "../testing/laws/adapter.ts";
import { dense, type Input, normal, on, type Problem } from "../testing/laws/attention_problem.ts";
import { check, onUnits, testAttention } from "../testing/laws/attention_units.ts";
import { plainAttention } from "./attention_common.ts";
import { rangeText, scoreScale, withoutPower } from "./attention_matrix_powers.ts";
import { webgpu } from "./webgpu.ts";

const gpu = await needAdapter(webgpu()), testOnUnits = onUnits(gpu) ?? (() => {});
const portable = await needAdapter(webgpu());
Object.assign(portable.capabilities, { subgroupMatrix: [] });

Deno.test("kernels without ranges have no text of theirs", () => {
  assert.equal(rangeText(plainAttention), "");
  assert.equal(scoreScale(plainAttention), "u.scale");
  assert.equal(withoutPower(plainAttention, "x", "v", "slope"), "x");
  const slopes = { ...plainAttention, range: "slopes" } as const;
  assert.equal(withoutPower(slopes, "x", "q", "slope"), "range_without(x, slopeExponent)");
  assert.equal(withoutPower(slopes, "x", "dOut"), "x");
});

testAttention(gpu, "bf16");

const dims = [2, 37, 45, 4, 2, 16, 24];

testOnUnits("numbers of bf16 that f16 does not hold, large and small, cost no digits", async () => {
  for (
    const sizes of [
      { q: 2 ** 70, k: 2 ** -70, v: 2 ** 90, dOut: 2 ** -100 },
      { q: 2 ** -60, k: 2 ** 60, v: 2 ** -100, dOut: 2 ** 60 },
      { q: 2 ** -70, k: 2 ** -70, v: 2 ** -20, dOut: 2 ** -20 },
    ]
  ) await check(gpu, { ...await dense(dims, "bf16", sizes), window: [-1, 0] }, true);
});

testOnUnits("gradients of bf16 are finite where lse is rounded by more than a power holds", async () => {
  const problem = await dense(dims, "bf16", { q: 2 ** 20, k: 2 ** 20, v: 1, dOut: 1 });
  const dOut = await normal([2, 37, 4, 24], "bf16");
  const { grads } = await resultsOf(gpu, { ...problem, window: [-1, 0] }, dOut);
  for (const dx of grads) assert.ok(Array.from(await dx.data()).every(Number.isFinite));
});

testOnUnits("gradients are exact where dOut·vᵀ is beyond f16, and where it is below", async () => {
  for (
    const sizes of [
      { q: 2 ** -6, k: 2 ** -6, v: 64, dOut: 1024 },
      { q: 2, k: 2, v: 2 ** -9, dOut: 2 ** -9 },
    ]
  ) await check(gpu, { ...await dense(dims, "f16", sizes), window: [3, 0] }, true);
});

testOnUnits("an operand that is all zero gives the mean of the values, or zeros", async () => {
  for (const name of ["q", "k", "v"] as const) {
    await check(gpu, await dense(dims, "bf16", { [name]: 0 }), true);
  }
});

/** out, lse, and dq, dk, dv for the portable kernels' out and lse. */
async function resultsOf(
  backend: Backend,
  { q, k, v, window = [-1, -1] }: Problem,
  dOut: Input,
): Promise<{ y: Tensor[]; grads: Tensor[] }> {
  const params = { scale: 0.25, window, softcap: 0, dropout: 0, maxSeqlens: null, optional: [] };
  const [x, same] = [backend, portable].map((at) => [q, k, v].map((input) => on(at, input)));
  const y = runAll(attentionOp, x, params);
  const given = await Promise.all(
    runAll(attentionOp, same, params).map(async (t) => on(backend, { ...t, values: await t.data() })),
  );
  const dLse = on(backend, { shape: y[1].shape, dtype: "f32", values: new Float32Array(y[1].size) });
  const back = { ...params, gradients: [] };
  return { y, grads: runAll(attentionBackwardOp, [on(backend, dOut), dLse, ...x, ...given], back) };
}

/** Bytes of {@linkcode resultsOf}: a list for each key head of a batch row. */
async function bytesOfHeads(backend: Backend, problem: Problem, dOut: Input): Promise<string[][]> {
  const { q, k } = problem, { y, grads } = await resultsOf(backend, problem, dOut);
  const [batch, , heads] = q.shape, kvHeads = k.shape[2], group = heads / kvHeads;
  const found = Array.from({ length: batch * kvHeads }, (): string[] => []);
  for (const [t, of] of [[y[0], group], [y[1], group], [grads[0], group], [grads[1], 1], [grads[2], 1]] as const) {
    const bytes = await t.bytes(), [, a, b] = t.shape, isLse = t === y[1], [rows, all] = isLse ? [b, a] : [a, b];
    const width = bytes.length / (batch * rows * all);
    for (let i = 0; i < batch * rows * all; i++) {
      const at = Math.floor(i / (rows * all)), head = isLse ? Math.floor(i / rows) % all : i % all;
      found[at * kvHeads + Math.floor(head / of)].push(bytes.slice(i * width, (i + 1) * width).join());
    }
  }
  return found;
}

testOnUnits("a key head of bf16 that f16 does not hold is left to the portable kernels, and no other", async () => {
  const problem = await dense(dims, "bf16"), { q, k, v } = problem, dOut = await normal([2, 37, 4, 24], "bf16");
  const changed = (x: Input, change: (values: Float32Array) => void): Input => {
    const values = Float32Array.from(x.values);
    change(values);
    return { ...x, values };
  };
  // Rows are [batch, seqlen, heads, size]: batch row 1, row 40 or 3, head 1 or 2.
  const row = (x: Input, i: number, head: number, f: (v: number) => number) =>
    changed(x, (values) => {
      const [, length, heads, size] = x.shape, from = ((length + i) * heads + head) * size;
      for (let d = 0; d < size; d++) values[from + d] = f(values[from + d]);
    });
  const large = (x: number): number => x * 2 ** 20;
  const cases: Record<string, [Problem, Input]> = {
    "a key far beyond the others": [{ q, k: row(k, 44, 1, large), v }, dOut],
    "a value far beyond the others": [{ q, k, v: row(v, 44, 1, large) }, dOut],
    "a query far below the others": [{ q: row(q, 3, 2, (x) => x * 2 ** -20), k, v }, dOut],
    "NaN in a key": [{ q, k: row(k, 40, 1, () => NaN), v }, dOut],
    "an infinite value": [{ q, k, v: row(v, 40, 1, () => Infinity) }, dOut],
    "an infinite gradient": [problem, row(dOut, 3, 2, () => -Infinity)],
  };
  for (const [name, [problem, dOut]] of Object.entries(cases)) {
    const all = { ...problem, window: [-1, 0] } as const, isGradient = name.includes("gradient");
    const [ours, theirs] = [await bytesOfHeads(gpu, all, dOut), await bytesOfHeads(portable, all, dOut)];
    const equal = ours.map((head, i) => head.every((bytes, n) => isGradient && n < 37 * 4 || bytes === theirs[i][n]));
    assert.deepEqual(equal, [false, false, false, true], name);
  }
});
