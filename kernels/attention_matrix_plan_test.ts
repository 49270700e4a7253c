/** Attention of f16 on matrix units against the loops in f64, where the adapter has such units; and which calls go there. */
import assert from "node:assert/strict";
import { attentionBackwardOp, attentionOp } from "../tensor/attention.ts";
import { flashAttentionWithKvCache } from "../tensor/attention_cache.ts";
import type { OptionalInput } from "../tensor/attention_options.ts";
import type { Backend } from "../tensor/backend.ts";
import { compile } from "../tensor/compile.ts";
import { cpu } from "../tensor/cpu.ts";
import { tensor } from "../tensor/create.ts";
import { type DType, isFloat } from "../tensor/dtype.ts";
import { runAll } from "../tensor/op.ts";
import { key, randn } from "../tensor/random.ts";
import type { Tensor } from "../tensor/tensor.ts";
import { needAdapter } from "../testing/laws/adapter.ts";
import { plainAttention } from "./attention_common.ts";
import { attentionMatrixBackwardMemory } from "./attention_matrix_backward.ts";
import { attentionMatrixForwardMemory } from "./attention_matrix_forward.ts";
import { pickAttentionMatrixBackward, pickAttentionMatrixForward } from "./attention_matrix_plan.ts";
import { matrixThreads } from "./attention_matrix_tiles.ts";
import { denseStrides } from "./attention_options.ts";
import { webgpu } from "./webgpu.ts";

const host = cpu(), gpu = await needAdapter(webgpu());

const hasUnits = gpu.capabilities.subgroupMatrix.some(({ ab, acc }) => ab === "f16" && acc === "f32");
if (!hasUnits) console.log("This adapter has no matrix units: attention on them is not among the tests of this run.");

/** A test that exists where there are matrix units. */
function testOnUnits(name: string, test: () => Promise<void>): void {
  if (hasUnits) Deno.test(name, test);
}

interface Input {
  readonly shape: readonly number[];
  readonly dtype: DType;
  readonly values: ArrayLike<number>;
}

let seed = 1;

async function normal(shape: readonly number[], dtype: DType = "f16", scale = 1): Promise<Input> {
  const values = await randn(key(seed++, { backend: host }), shape, { dtype }).data();
  return { shape, dtype, values: Float32Array.from(values, (x) => x * scale) };
}

function on(backend: Backend, { shape, dtype, values }: Input): Tensor {
  const type = backend === host && isFloat(dtype) ? "f64" : dtype;
  return tensor(Array.from(values), { shape, dtype: type, backend });
}

interface Problem {
  readonly q: Input;
  readonly k: Input;
  readonly v: Input;
  readonly optional?: Partial<Record<OptionalInput, Input>>;
  readonly window?: readonly [number, number];
  readonly softcap?: number;
  readonly dropout?: number;
  readonly maxSeqlens?: readonly [number, number];
}

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

/** Forward, and backward when asked for, against f64. P and dS are rounded to f16, once each. */
async function check(problem: Problem, backward: boolean): Promise<void> {
  const { q, k, v, optional = {}, window = [-1, -1], softcap = 0, dropout = 0, maxSeqlens = null } = problem;
  const names = Object.keys(optional) as OptionalInput[], unit = 2 ** -11;
  const params = { scale: q.shape.at(-1)! ** -0.5, window, softcap, dropout, maxSeqlens, optional: names };
  const inputs = [q, k, v, ...names.map((name) => optional[name]!)];
  const [x, exact] = [gpu, host].map((at) => inputs.map((input) => on(at, input)));
  const { y, kernels } = await traced((...x) => runAll(attentionOp, x, params), x);
  assertUnits(kernels, "attention_matrix_forward");
  const wanted = runAll(attentionOp, exact, params), [out, lse] = await Promise.all(wanted.map((t) => t.data()));
  const outError = distance(await y[0].data(), out), lseError = distance(await y[1].data(), lse);
  const outBound = unit * (most(out) + most(v.values) / (1 - dropout));
  assert.ok(outError <= outBound, `out is ${outError} off, ${outBound} allowed`);
  assert.ok(
    lseError <= 1e-5 * Math.max(1, most(Array.from(lse).filter(Number.isFinite)) / 8),
    `lse is ${lseError} off`,
  );
  if (!backward) return;
  const dOut = await normal(y[0].shape), dLse = await normal(y[1].shape, "f32");
  const given = await Promise.all(y.map(async (t) => on(host, { ...t, values: await t.data() })));
  const back = { ...params, gradients: names.includes("sinks") ? ["sinks" as const] : [] };
  const call = (
    at: Backend,
    x: Tensor[],
    y: Tensor[],
  ) => [on(at, dOut), on(at, dLse), ...x.slice(0, 3), ...y, ...x.slice(3)];
  const grads = await traced((...all) => runAll(attentionBackwardOp, all, back), call(gpu, x, y));
  assertUnits(grads.kernels, "attention_matrix_backward_keys", "attention_matrix_backward_queries");
  const wantedGrads = runAll(attentionBackwardOp, call(host, exact, given), back);
  for (const [i, name] of ["dq", "dk", "dv"].entries()) {
    const want = await wantedGrads[i].data(), error = distance(await grads.y[i].data(), want);
    const bound = 4 * unit * Math.max(1, most(want));
    assert.ok(error <= bound, `${name} is ${error} off, ${bound} allowed`);
  }
}

async function dense(
  [batch, seqlenQ, seqlenK, heads, kvHeads, headDim, valueDim]: readonly number[],
  scale = 1,
): Promise<Pick<Problem, "q" | "k" | "v">> {
  return {
    q: await normal([batch, seqlenQ, heads, headDim], "f16", scale),
    k: await normal([batch, seqlenK, kvHeads, headDim]),
    v: await normal([batch, seqlenK, kvHeads, valueDim]),
  };
}

testOnUnits(
  "attention of f16 is exact to the rounding of p, with grouped heads, causal, ragged on every side",
  async () => {
    await check({ ...await dense([2, 37, 45, 4, 2, 16, 24]), window: [-1, 0] }, true);
  },
);

testOnUnits("a row that sees no key gives 0, and so do its gradients", async () => {
  await check({ ...await dense([1, 45, 37, 4, 2, 16, 24]), window: [-1, 0] }, true);
});

testOnUnits("scores far beyond the first ones start their tile again", async () => {
  const { q, k, v } = await dense([2, 37, 45, 4, 2, 16, 24]);
  const values = Float32Array.from(k.values, (x, i) => Math.floor(i / 32) % 45 < 20 ? x : x * 32);
  await check({ q, k: { ...k, values }, v }, false);
});

testOnUnits("attention's options together are exact on f16, with odd head sizes", async () => {
  const allowed = (await normal([2, 1, 37, 45])).values;
  const options = {
    alibiSlopes: await normal([2, 4], "f32", 0.1),
    bias: await normal([4, 1, 45], "f32"),
    mask: { shape: [2, 1, 37, 45], dtype: "bool", values: Array.from(allowed, (x) => x < 0.5 ? 1 : 0) },
    sinks: await normal([4], "f32"),
  } as const;
  const problem = { ...await dense([2, 37, 45, 4, 2, 15, 10]), window: [20, 4], softcap: 3 } as const;
  await check({ ...problem, optional: options }, true);
  const dropoutKey = { shape: [2], dtype: "u32", values: [123456789, 987654321] } as const;
  await check({ ...problem, optional: { ...options, key: dropoutKey }, dropout: 0.3 }, false);
});

testOnUnits("attention of f16 over sequences of varying length leaves rows of no sequence empty", async () => {
  const starts = (values: number[]): Input => ({ shape: [values.length], dtype: "i32", values });
  const lengths = { cuSeqlensQ: starts([0, 13, 13, 40, 44]), cuSeqlensK: starts([0, 20, 29, 29, 66]) };
  const packed = { q: await normal([50, 4, 16]), k: await normal([70, 2, 16]), v: await normal([70, 2, 16]) };
  await check({ ...packed, optional: lengths, maxSeqlens: [27, 37], window: [-1, 0] }, true);
});

testOnUnits(
  "many queries over a cache of f16, in pages, padded and turned, read nothing that is not theirs",
  async () => {
    const [pages, page] = [9, 8], dims = [pages, page, 2, 16];
    const [k, v] = [await normal(dims), await normal(dims)].map((x) => ({ ...x, values: Float32Array.from(x.values) }));
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
    const q = await normal([2, T, 4, 16]), news = [await normal([2, T, 2, 16]), await normal([2, T, 2, 16])];
    const turns = [await normal([32, 8], "f32"), await normal([32, 8], "f32")];
    const ints = (at: Backend, values: number[], shape = [values.length]) =>
      tensor(values, { shape, dtype: "i32", backend: at });
    const results = (rotary: boolean) =>
      [gpu, host].map((at) =>
        flashAttentionWithKvCache(on(at, q), { k: on(at, k), v: on(at, v) }, {
          causal: true,
          k: on(at, news[0]),
          v: on(at, news[1]),
          cacheSeqlens: ints(at, lengths),
          cacheLeftpad: ints(at, leftpad),
          blockTable: ints(at, table.flat(), [2, 4]),
          ...(rotary && { rotary: { cos: on(at, turns[0]), sin: on(at, turns[1]) } }),
        })
      );
    for (const rotary of [false, true]) {
      const [{ out, lse }, wanted] = results(rotary), want = await wanted.out.data();
      const error = distance(await out.data(), want);
      // Turned numbers are rounded to f16 too, with cos and sin of several units.
      assert.ok(error <= 2 ** -10 * most(want) * (rotary ? 16 : 2), `out is ${error} off, rotary ${rotary}`);
      assert.equal([...await lse.data()].some(Number.isNaN), false);
    }
  },
);

testOnUnits("attention of f16 on this adapter is bit-equal from run to run", async () => {
  const { q, k, v } = await dense([2, 37, 45, 4, 2, 16, 24]), x = [q, k, v].map((input) => on(gpu, input));
  const params = { scale: 0.25, window: [-1, 0], softcap: 0, dropout: 0, maxSeqlens: null, optional: [] } as const;
  const dOut = on(gpu, await normal([2, 37, 4, 24])), dLse = on(gpu, await normal([2, 4, 37], "f32"));
  const once = async () => {
    const y = runAll(attentionOp, x, params);
    const grads = runAll(attentionBackwardOp, [dOut, dLse, ...x, ...y], { ...params, gradients: [] });
    return await Promise.all([...y, ...grads].map((t) => t.bytes()));
  };
  const first = await once();
  for (let i = 0; i < 10; i++) assert.deepEqual(await once(), first);
});

const storage = { q: "f16", k: "f16", v: "f16", out: "f16", dOut: "f16", grad: "f16" } as const;
const units = {
  nvidia: { lanes: 32, memory: 49152, shapes: [[16, 16, 16], [16, 8, 16], [16, 8, 8]] },
  software: { lanes: 8, memory: 32768, shapes: [[8, 8, 8]] },
  apple: { lanes: 32, memory: 32768, shapes: [[8, 8, 8]] },
};

function callOf(size: number, valueDim = size) {
  const shape = { batch: 4, seqlenQ: 2048, seqlenK: 4096, heads: 8, kvHeads: 2, headDim: size, valueDim };
  const at = { q: denseStrides(2048, 8, size), k: denseStrides(4096, 2, size), v: denseStrides(4096, 2, valueDim) };
  return { shape, at };
}

function capabilitiesOf({ lanes, memory, shapes }: typeof units.nvidia) {
  return {
    f16: true,
    subgroupSize: lanes,
    subgroupMatrix: shapes.map(([m, n, k]) => ({ m, n, k, ab: "f16", acc: "f32" })),
    maxWorkgroupMemory: memory,
    maxInvocations: 1024,
  };
}

Deno.test("every head size to 256 finds tiles in the threads and the workgroup memory of each kind of adapter", () => {
  for (const [name, adapter] of Object.entries(units)) {
    const capabilities = capabilitiesOf(adapter);
    for (let size = 1; size <= 256; size++) {
      const { shape, at } = callOf(size, 257 - size);
      const forward = pickAttentionMatrixForward(capabilities, shape, at, storage, plainAttention, 0.1);
      assert.ok(forward !== null, `no forward tile for ${size} on ${name}`);
      assert.ok(attentionMatrixForwardMemory(forward) <= adapter.memory && matrixThreads(forward.tile) <= 1024);
      const square = callOf(size);
      const backward = pickAttentionMatrixBackward(
        capabilities,
        square.shape,
        square.at,
        storage,
        plainAttention,
        0.1,
      );
      assert.equal(backward !== null, size <= 128, `backward tiles for ${size} on ${name}`);
      for (const params of backward === null ? [] : [backward.keys, backward.queries]) {
        assert.ok(attentionMatrixBackwardMemory(params) <= adapter.memory && matrixThreads(params.tile) <= 1024);
      }
    }
  }
});

Deno.test("calls that the matrix kernels do not take are left to the portable ones", () => {
  const capabilities = capabilitiesOf(units.nvidia), { shape, at } = callOf(64);
  const forward = (changes: { q?: "bf16"; scale?: number; seqlenQ?: number; f16?: boolean }) =>
    pickAttentionMatrixForward(
      { ...capabilities, f16: changes.f16 ?? true },
      { ...shape, seqlenQ: changes.seqlenQ ?? 2048 },
      at,
      { ...storage, q: changes.q ?? "f16" },
      plainAttention,
      changes.scale ?? 0.125,
    );
  assert.ok(forward({}) !== null);
  for (
    const changes of [{ q: "bf16" }, { scale: -0.1 }, { scale: 1e-9 }, { scale: 2 }, { seqlenQ: 8 }, {
      f16: false,
    }] as const
  ) {
    assert.equal(forward(changes), null, JSON.stringify(changes));
  }
  const dropout = { ...plainAttention, dropout: true };
  assert.equal(pickAttentionMatrixBackward(capabilities, shape, at, storage, dropout, 0.125), null);
});
