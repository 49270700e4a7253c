/** Attention of f16 on matrix units, where the adapter has such units; and which calls go there. */
import assert from "node:assert/strict";
import { needAdapter } from "../testing/laws/adapter.ts";
import { onUnits, testAttention } from "../testing/laws/attention_units.ts";
import { plainAttention } from "./attention_common.ts";
import { attentionMatrixBackwardMemory } from "./attention_matrix_backward.ts";
import { attentionMatrixForwardMemory } from "./attention_matrix_forward.ts";
import { attentionRangeOf, pickAttentionMatrixBackward, pickAttentionMatrixForward } from "./attention_matrix_plan.ts";
import { matrixThreads } from "./attention_matrix_tiles.ts";
import { denseStrides } from "./attention_options.ts";
import { webgpu } from "./webgpu.ts";

const gpu = await needAdapter(webgpu());
if (onUnits(gpu) === null) {
  console.log("This adapter has no matrix units: attention on them is not among this run's tests.");
}
testAttention(gpu, "f16");

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
      if (backward === null) continue;
      assert.ok(attentionMatrixBackwardMemory(backward) <= adapter.memory && matrixThreads(backward.tile) <= 1024);
    }
  }
});

Deno.test("calls that the matrix kernels do not take are left to the portable ones", () => {
  const capabilities = capabilitiesOf(units.nvidia), { shape, at } = callOf(64);
  const forward = (changes: { q?: "bf16"; k?: "f32"; scale?: number; seqlenQ?: number; f16?: boolean }) =>
    pickAttentionMatrixForward(
      { ...capabilities, f16: changes.f16 ?? true },
      { ...shape, seqlenQ: changes.seqlenQ ?? 2048 },
      at,
      { ...storage, q: changes.q ?? "f16", k: changes.k ?? "f16" },
      plainAttention,
      changes.scale ?? 0.125,
    );
  assert.ok(forward({}) !== null);
  for (
    const changes of [{ q: "bf16" }, { k: "f32" }, { scale: -0.1 }, { scale: 1e-9 }, { scale: 2 }, { seqlenQ: 8 }, {
      f16: false,
    }] as const
  ) {
    assert.equal(forward(changes), null, JSON.stringify(changes));
  }
  const dropout = { ...plainAttention, dropout: true };
  assert.equal(pickAttentionMatrixBackward(capabilities, shape, at, storage, dropout, 0.125), null);
});

Deno.test("bf16 calls too small to pay for their ranges are left to the portable kernel, on a GPU", () => {
  const { at } = callOf(64), bf16 = { ...storage, q: "f32", k: "bf16", v: "bf16" } as const;
  const taken = (adapter: typeof units.nvidia, seqlen: number, kinds: typeof bf16 | typeof storage) => {
    const shape = { batch: 1, seqlenQ: seqlen, seqlenK: seqlen, heads: 32, kvHeads: 8, headDim: 64, valueDim: 64 };
    return pickAttentionMatrixForward(capabilitiesOf(adapter), shape, at, kinds, plainAttention, 0.1) !== null;
  };
  assert.deepEqual([24, 256, 1024].map((n) => taken(units.nvidia, n, bf16)), [false, false, true]);
  assert.deepEqual([24, 256, 1024].map((n) => taken(units.nvidia, n, storage)), [true, true, true]);
  assert.ok(taken(units.software, 24, bf16));
});

Deno.test("bf16 takes the ranges of all operands, f16 those of dS in the backward alone", () => {
  const capabilities = capabilitiesOf(units.nvidia), { shape, at } = callOf(64);
  const picked = (dtype: "f16" | "bf16", q: "f16" | "bf16" | "f32" = dtype) => {
    const all = { q, k: dtype, v: dtype, out: dtype, dOut: dtype, grad: dtype };
    return [
      pickAttentionMatrixForward(capabilities, shape, at, all, plainAttention, 0.125)!,
      pickAttentionMatrixBackward(capabilities, shape, at, all, plainAttention, 0.125) ?? undefined,
    ].map((params) => params && Object.keys(attentionRangeOf(params)?.operands ?? {}).join());
  };
  assert.deepEqual(picked("f16"), ["", "v,dOut"]);
  assert.deepEqual(picked("bf16"), ["q,k,v", "q,k,v,dOut"]);
  assert.deepEqual(picked("bf16", "f32"), ["q,k,v", undefined]);
  assert.deepEqual(picked("f16", "f32"), ["", undefined]);
});
