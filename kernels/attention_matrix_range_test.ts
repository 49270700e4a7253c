import assert from "node:assert/strict";
import { defineOp } from "../mod.ts";
import { tensor } from "../tensor/create.ts";
import { cpu } from "../tensor/cpu.ts";
import { type DType, roundTo } from "../tensor/dtype.ts";
import { key, randn } from "../tensor/random.ts";
import type { Tensor } from "../tensor/tensor.ts";
import { needAdapter } from "../testing/laws/adapter.ts";
import { type AttentionFeatures, plainAttention } from "./attention_common.ts";
import { matrixOperandOf } from "./attention_matrix_operands.ts";
import { attentionRange, type AttentionRangeParams, planAttentionRange } from "./attention_matrix_range.ts";
import { denseStrides } from "./attention_options.ts";
import { rangeWords } from "./attention_matrix_powers.ts";
import { fill } from "./movement.ts";
import { webgpu } from "./webgpu.ts";

const host = cpu(), gpu = await needAdapter(webgpu());

interface Case {
  readonly dtypes: Partial<Readonly<Record<"q" | "k" | "v" | "dOut", DType>>>;
  readonly headDim: number;
  readonly valueDim: number;
  readonly dLse?: boolean;
  readonly features?: Partial<AttentionFeatures>;
  /** Changes the values of an operand, which are random otherwise. */
  readonly change?: (name: string, values: Float32Array) => void;
  /** The keys of a batch row that count. */
  readonly keys?: readonly (readonly [from: number, to: number])[];
}

const batch = 2, seqlenQ = 150, seqlenK = 140, heads = 4, kvHeads = 2;

/** The words of every key head as the device finds them, and as loops do. */
async function ranges(c: Case): Promise<{ found: number[]; wanted: number[] }> {
  const { dtypes, headDim, valueDim, dLse = false, change = () => {}, keys = [[0, seqlenK], [0, seqlenK]] } = c;
  const shape = { batch, seqlenQ, seqlenK, heads, kvHeads, headDim, valueDim };
  const features = { ...plainAttention, ...c.features };
  const at = {
    q: denseStrides(seqlenQ, heads, headDim),
    k: denseStrides(seqlenK, kvHeads, headDim),
    v: denseStrides(seqlenK, kvHeads, valueDim),
    dOut: denseStrides(seqlenQ, heads, valueDim),
  };
  const sizes = { q: headDim, k: headDim, v: valueDim, dOut: valueDim }, tensors: Record<string, Tensor> = {};
  const wanted = new Uint32Array(batch * kvHeads * rangeWords), words = { q: 0, k: 2, v: 4, dOut: 6, dLse: 7 };
  const bits = (x: number): number => new Uint32Array(new Float32Array([x]).buffer)[0];
  const raise = (b: number, g: number, word: number, by: number): void => {
    const i = (b * kvHeads + g) * rangeWords + word;
    wanted[i] = Math.max(wanted[i], by);
  };
  const count = (b: number, g: number, name: keyof typeof words, row: Float32Array): void => {
    const most = row.reduce((most, x) => Number.isFinite(x) ? Math.max(most, Math.abs(x)) : most, 0);
    if (!row.every(Number.isFinite)) raise(b, g, words.v + 1, 0xffffffff);
    raise(b, g, words[name], bits(most));
    if (most > 0 && words[name] < words.dOut) raise(b, g, words[name] + 1, ~bits(most) >>> 0);
  };
  const random = async (name: string, dims: number[], dtype: DType): Promise<Float32Array> => {
    const values = Float32Array.from(await randn(key(name.length + dims.length, { backend: host }), dims).data());
    for (let i = 0; i < values.length; i++) values[i] *= 2 ** (i % 23 - 11);
    change(name, values);
    roundTo(dtype, values);
    tensors[name] = tensor(Array.from(values), { shape: dims, dtype, backend: gpu });
    return values;
  };
  for (const [name, dtype] of Object.entries(dtypes) as ["q" | "k" | "v" | "dOut", DType][]) {
    const own = name === "q" || name === "dOut", [length, all] = own ? [seqlenQ, heads] : [seqlenK, kvHeads];
    const size = sizes[name], values = await random(name, [batch, length, all, size], dtype);
    for (let row = 0; row < batch * length * all; row++) {
      const b = Math.floor(row / all / length), i = Math.floor(row / all) % length, h = row % all;
      if (!own && (i < keys[b][0] || i >= keys[b][1])) continue;
      count(b, own ? Math.floor(h * kvHeads / heads) : h, name, values.subarray(row * size, (row + 1) * size));
    }
  }
  if (dLse) {
    const values = await random("dLse", [batch, heads, seqlenQ], "f32");
    values.forEach((x, i) =>
      count(Math.floor(i / seqlenQ / heads), Math.floor(i / seqlenQ) % heads >> 1, "dLse", Float32Array.of(x))
    );
  }
  const ints = (name: string, values: number[]): void => {
    tensors[name] = tensor(values, { shape: [batch], dtype: "i32", backend: gpu });
  };
  if (features.lengths === "cache") ints("cacheLengths", keys.map(([, to]) => to));
  if (features.leftpad) ints("leftpad", keys.map(([from]) => from));
  const operands = Object.fromEntries(
    Object.entries(dtypes).map(([name, dtype]) => {
      const key = name as keyof typeof at;
      return [name, matrixOperandOf(dtype as "f32" | "f16" | "bf16", sizes[key], at[key])];
    }),
  );
  const params: AttentionRangeParams = {
    ...{ headDim, valueDim, operands, dLse, features, lanes: gpu.capabilities.subgroupSize },
  };
  const kernel = attentionRange(params);
  const find = defineOp({
    name: "attention_ranges",
    infer: () => ({ shape: [batch, kvHeads, rangeWords], dtype: "u32" as const }),
    reference: () => {},
    vjp: null,
    kernel(call) {
      const [y] = call.outputs, { uniforms, workgroups } = planAttentionRange(params, shape, at, { softmaxScale: 1 });
      call.dispatch(fill("u32"), [y], { n: wanted.length / 4, bits: 0 }, [1, 1, 1]);
      call.dispatch(kernel, [...call.inputs, y], uniforms, workgroups);
    },
  });
  const found = await find(kernel.reads.map((name) => tensors[name])).data();
  return { found: Array.from(found), wanted: Array.from(wanted) };
}

const bf16 = { q: "bf16", k: "bf16", v: "bf16" } as const;

/** A test that exists where there are subgroups. */
function testOnSubgroups(name: string, test: () => Promise<void>): void {
  if (gpu.capabilities.subgroupSize > 0) Deno.test(name, test);
}

testOnSubgroups("ranges are the largest number of a key head and that of its smallest row", async () => {
  for (
    const c of [
      { dtypes: bf16, headDim: 24, valueDim: 64 },
      { dtypes: bf16, headDim: 20, valueDim: 7 },
      { dtypes: { ...bf16, q: "f32" }, headDim: 40, valueDim: 200 },
      { dtypes: { ...bf16, q: "f32" }, headDim: 7, valueDim: 8 },
      { dtypes: { ...bf16, dOut: "bf16" }, headDim: 16, valueDim: 16, dLse: true },
      { dtypes: { v: "f16", dOut: "f16" }, headDim: 16, valueDim: 20, dLse: true },
    ] satisfies Case[]
  ) {
    const { found, wanted } = await ranges(c);
    assert.deepEqual(found, wanted, JSON.stringify(c));
  }
});

testOnSubgroups("rows of zeros and numbers that are none do not count; these are told", async () => {
  const zero = (name: string, values: Float32Array): void => {
    if (name === "k") values.fill(0);
    if (name === "q") values.fill(0, 0, values.length / 2);
  };
  const odd = (name: string, values: Float32Array): void => {
    if (name === "k") values[5 * 48 + 30] = NaN;
    if (name === "q") values[values.length - 1] = -Infinity;
  };
  for (const change of [zero, odd]) {
    const { found, wanted } = await ranges({ dtypes: bf16, headDim: 24, valueDim: 16, change });
    assert.deepEqual(found, wanted);
  }
});

testOnSubgroups("keys of a cache that a batch row does not have are not read", async () => {
  const keys = [[5, 131], [0, 30]] as const;
  const change = (name: string, values: Float32Array): void => {
    if (name !== "k" && name !== "v") return;
    const size = values.length / batch / seqlenK;
    for (let i = 0; i < values.length; i++) {
      const b = Math.floor(i / size / seqlenK), j = Math.floor(i / size) % seqlenK;
      if (j < keys[b][0] || j >= keys[b][1]) values[i] = NaN;
    }
  };
  const features = { lengths: "cache", leftpad: true } as const;
  const { found, wanted } = await ranges({ dtypes: bf16, headDim: 24, valueDim: 16, change, keys, features });
  assert.deepEqual(found, wanted);
  assert.ok(wanted.every((word) => word !== 0xffffffff));
});

Deno.test("a ranges kernel's name changes with everything that its text depends on", () => {
  const operand = { storage: "bf16", unit: 8 } as const, operands = { q: operand, k: operand, v: operand };
  const base: AttentionRangeParams = {
    ...{ headDim: 64, valueDim: 64, operands, dLse: false, lanes: 32, features: plainAttention },
  };
  const kernels = [
    base,
    { ...base, headDim: 200 },
    { ...base, valueDim: 200 },
    { ...base, operands: { ...operands, q: { ...operand, unit: 2 } } },
    { ...base, operands: { ...operands, q: { storage: "f32", unit: 4 } } },
    { ...base, operands: { ...operands, dOut: operand } },
    { ...base, operands: { v: operand } },
    { ...base, dLse: true },
    { ...base, lanes: 8 },
    { ...base, features: { ...plainAttention, lengths: "varlen" } },
    { ...base, features: { ...plainAttention, lengths: "cache" } },
    { ...base, features: { ...plainAttention, lengths: "cache", leftpad: true } },
    { ...base, features: { ...plainAttention, lengths: "cache", cacheIndex: true } },
    { ...base, features: { ...plainAttention, lengths: "cache", paged: true } },
  ].map((params) => attentionRange(params as AttentionRangeParams));
  assert.equal(new Set(kernels.map(({ name }) => name)).size, kernels.length);
  assert.equal(new Set(kernels.map(({ source }) => source)).size, kernels.length);
  for (const { source } of kernels) assert.doesNotMatch(source, /undefined|NaN\b|enable |\[object|\d\.\d+u/);
  assert.equal(attentionRange({ ...base, features: { ...plainAttention, softcap: true } }), kernels[0]);
});
