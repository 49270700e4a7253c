/** What the tests of attention on matrix units share: its errors against the loops in f64. */
import assert from "node:assert/strict";
import { attentionBackwardOp, attentionOp } from "../../tensor/attention.ts";
import { flashAttentionWithKvCache } from "../../tensor/attention_cache.ts";
import { type Backend, matrixUnits } from "../../tensor/backend.ts";
import { compile } from "../../tensor/compile.ts";
import type { DType } from "../../tensor/dtype.ts";
import { runAll } from "../../tensor/op.ts";
import type { Tensor } from "../../tensor/tensor.ts";
import {
  dense,
  dropoutKey,
  everyOption,
  host,
  integers,
  normal,
  on,
  opCall,
  packed,
  type Problem,
} from "./attention_problem.ts";

/** What declares tests that exist where a backend has matrix units; null where it has none. */
export function onUnits(gpu: Backend): ((name: string, test: () => Promise<void>) => void) | null {
  return matrixUnits(gpu.capabilities).length > 0 ? Deno.test : null;
}

/** The largest magnitude. */
const most = (values: ArrayLike<number>): number => Array.from(values).reduce((a, b) => Math.max(a, Math.abs(b)), 0);

/** The largest distance; −∞ equals −∞. */
function distance(actual: ArrayLike<number>, expected: ArrayLike<number>): number {
  return Array.from(expected).reduce(
    (worst, x, i) => actual[i] === x ? worst : Math.max(worst, Math.abs(actual[i] - x)),
    0,
  );
}

/** The results of a call, and the names of the kernels that made them. */
async function traced(f: (...x: Tensor[]) => Tensor[], x: Tensor[]): Promise<{ y: Tensor[]; kernels: string[] }> {
  const compiled = compile((...inputs: Tensor[]) => f(...inputs)), y = compiled(...x);
  await y[0].data();
  return { y, kernels: compiled.recordings[0].kernels.map(({ name }) => name) };
}

function assertUnits(kernels: string[], ...prefixes: string[]): void {
  for (const prefix of prefixes) {
    assert.equal(kernels.filter((name) => name.startsWith(prefix)).length, 1, `${prefix} of ${kernels}`);
  }
}

/** Half of what two neighbouring numbers of a dtype are apart, at 1. */
const rounding: Partial<Record<DType, number>> = { f16: 2 ** -11, bf16: 2 ** -8 };

/** Forward, and backward when asked for, against f64. P and dS are rounded to f16, once each, and results to their dtype. */
export async function check(gpu: Backend, problem: Problem, backward: boolean): Promise<void> {
  const { k, v, sizes } = problem, { params, inputs } = opCall(problem);
  const unit = 2 ** -11, last = rounding[k.dtype]!;
  const least = k.dtype === "f16" ? 2 ** -25 : 0; // half of f16's smallest number
  const [x, exact] = [gpu, host].map((at) => inputs.map((input) => on(at, input)));
  const { y, kernels } = await traced((...x) => runAll(attentionOp, x, params), x);
  assertUnits(kernels, "attention_matrix_forward");
  const wanted = runAll(attentionOp, exact, params), [out, lse] = await Promise.all(wanted.map((t) => t.data()));
  const outError = distance(await y[0].data(), out), lseError = distance(await y[1].data(), lse);
  const outBound = last * most(out) + unit * most(v.values) / (1 - params.dropout);
  assert.ok(outError <= outBound, `out is ${outError} off, ${outBound} allowed`);
  assert.ok(
    lseError <= 1e-5 * Math.max(1, most(Array.from(lse).filter(Number.isFinite)) / 8),
    `lse is ${lseError} off`,
  );
  if (!backward) return;
  const size = { q: 1, k: 1, v: 1, dOut: 1, ...sizes }, slope = size.dOut * size.v;
  const dOut = await normal(y[0].shape, k.dtype, size.dOut), dLse = await normal(y[1].shape, "f32", slope);
  const given = await Promise.all(y.map(async (t) => on(host, { ...t, values: await t.data() })));
  const back = { ...params, gradients: params.optional.includes("sinks") ? ["sinks" as const] : [] };
  const call = (
    at: Backend,
    x: Tensor[],
    y: Tensor[],
  ) => [on(at, dOut), on(at, dLse), ...x.slice(0, 3), ...y, ...x.slice(3)];
  const grads = await traced((...all) => runAll(attentionBackwardOp, all, back), call(gpu, x, y));
  assertUnits(grads.kernels, "attention_matrix_backward_keys", "attention_matrix_backward_queries");
  const wantedGrads = runAll(attentionBackwardOp, call(host, exact, given), back);
  for (
    const [i, [name, usual]] of Object.entries({ dq: slope * size.k, dk: slope * size.q, dv: size.dOut }).entries()
  ) {
    const want = await wantedGrads[i].data(), error = distance(await grads.y[i].data(), want);
    const bound = last * most(want) + 3 * unit * Math.max(usual, most(want)) + least;
    assert.ok(error <= bound, `${name} is ${error} off, ${bound} allowed`);
  }
}

/** Attention over a cache whose places that hold no key are NaN. */
async function checkCache(gpu: Backend, dtype: DType): Promise<void> {
  const [pages, page] = [9, 8], dims = [pages, page, 2, 16];
  const [k, v] = [await normal(dims, dtype), await normal(dims, dtype)].map((x) => ({
    ...x,
    values: Float32Array.from(x.values),
  }));
  const table = [[7, 2, 5, 0], [1, 8, 3, 0]], lengths = [3, 7], leftpad = [5, 0], T = 17;
  const used = new Set<number>(); // places of the cache that hold a key; all others are NaN
  table.forEach((row, b) => {
    for (let at = leftpad[b]; at < lengths[b]; at++) used.add(row[Math.floor(at / page)] * page + at % page);
  });
  for (const { values } of [k, v]) {
    for (let i = 0; i < values.length; i++) {
      if (!used.has(Math.floor(i / 32))) values[i] = NaN;
    }
  }
  const q = await normal([2, T, 4, 16], dtype);
  const news = [await normal([2, T, 2, 16], dtype), await normal([2, T, 2, 16], dtype)];
  const turns = [await normal([32, 8], "f32"), await normal([32, 8], "f32")];
  const results = (rotary: boolean) =>
    [gpu, host].map((at) =>
      flashAttentionWithKvCache(on(at, q), { k: on(at, k), v: on(at, v) }, {
        causal: true,
        k: on(at, news[0]),
        v: on(at, news[1]),
        cacheSeqlens: on(at, integers(lengths)),
        cacheLeftpad: on(at, integers(leftpad)),
        blockTable: on(at, integers(table.flat(), [2, 4])),
        ...(rotary && { rotary: { cos: on(at, turns[0]), sin: on(at, turns[1]) } }),
      })
    );
  for (const rotary of [false, true]) {
    const [{ out, lse }, wanted] = results(rotary), want = await wanted.out.data();
    const error = distance(await out.data(), want);
    // Turned numbers are rounded too, with cos and sin of several units.
    const last = rounding[dtype]! * most(want);
    const bound = rotary
      ? 32 * last
      : last + 2 ** -11 * most([v, news[1]].flatMap(({ values }) => Array.from(values)).filter(Number.isFinite));
    assert.ok(error <= bound, `out is ${error} off, ${bound} allowed, rotary ${rotary}`);
    assert.equal([...await lse.data()].some(Number.isNaN), false);
  }
}

/** Attention of a dtype on the matrix units that a backend has: every kind of call that the kernels take. */
export function testAttention(gpu: Backend, dtype: "f16" | "bf16"): void {
  const test = onUnits(gpu) ?? (() => {});
  test(
    `attention of ${dtype} is exact to the rounding of p, with grouped heads, causal, ragged on every side`,
    async () => {
      await check(gpu, { ...await dense([2, 37, 45, 4, 2, 16, 24], dtype), window: [-1, 0] }, true);
    },
  );

  test(`a row of ${dtype} that sees no key gives 0, and so do its gradients`, async () => {
    await check(gpu, { ...await dense([1, 45, 37, 4, 2, 16, 24], dtype), window: [-1, 0] }, true);
  });

  test(`scores of ${dtype} far beyond the first ones start their tile again`, async () => {
    const { q, k, v } = await dense([2, 37, 45, 4, 2, 16, 24], dtype);
    const values = Float32Array.from(k.values, (x, i) => Math.floor(i / 32) % 45 < 20 ? x : x * 32);
    await check(gpu, { q, k: { ...k, values }, v }, false);
  });

  test(`attention's options together are exact on ${dtype}, with odd head sizes`, async () => {
    const options = await everyOption();
    const problem = { ...await dense([2, 37, 45, 4, 2, 15, 10], dtype), window: [20, 4], softcap: 3 } as const;
    await check(gpu, { ...problem, optional: options }, true);
    await check(gpu, { ...problem, optional: { ...options, key: dropoutKey }, dropout: 0.3 }, false);
  });

  test(`attention of ${dtype} over sequences of varying length leaves rows of no sequence empty`, async () => {
    await check(gpu, { ...await packed(dtype), window: [-1, 0] }, true);
  });

  test(
    `many queries over a cache of ${dtype}, in pages, padded and turned, read nothing that is not theirs`,
    async () => {
      await checkCache(gpu, dtype);
    },
  );

  test(`attention of ${dtype} on this adapter is bit-equal from run to run`, async () => {
    const { q, k, v } = await dense([2, 37, 45, 4, 2, 16, 24], dtype), x = [q, k, v].map((input) => on(gpu, input));
    const params = { scale: 0.25, window: [-1, 0], softcap: 0, dropout: 0, maxSeqlens: null, optional: [] } as const;
    const dOut = on(gpu, await normal([2, 37, 4, 24], dtype)), dLse = on(gpu, await normal([2, 4, 37], "f32"));
    const once = async () => {
      const y = runAll(attentionOp, x, params);
      const grads = runAll(attentionBackwardOp, [dOut, dLse, ...x, ...y], { ...params, gradients: [] });
      return await Promise.all([...y, ...grads].map((t) => t.bytes()));
    };
    const first = await once();
    for (let i = 0; i < 10; i++) assert.deepEqual(await once(), first);
  });
}
