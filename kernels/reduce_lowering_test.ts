import assert from "node:assert/strict";
import { grad } from "../mod.ts";
import { compile } from "../tensor/compile.ts";
import { cpu } from "../tensor/cpu.ts";
import { tensor } from "../tensor/create.ts";
import type { DType } from "../tensor/dtype.ts";
import { square } from "../tensor/elementwise.ts";
import { broadcastTo, permute, slice, transpose } from "../tensor/movement.ts";
import { key, randn } from "../tensor/random.ts";
import { argmax, argmin, cumsum, logsumexp, max, mean, min, sum, topK } from "../tensor/reduce.ts";
import type { Tensor } from "../tensor/tensor.ts";
import { assertClose } from "../testing/mod.ts";
import { needAdapter } from "../testing/laws/adapter.ts";
import { webgpu } from "./webgpu.ts";

const gpu = await needAdapter(webgpu());
const draw = (shape: number[], dtype: DType = "f32") => randn(key(1, { backend: gpu }), shape, { dtype });
const onCpu = (x: Tensor) => tensor(x.dataSync(), { shape: x.shape, dtype: x.dtype, backend: cpu() });

/** The kernels that `f` runs, in alphabetical order, each once. */
function kernelsOf(f: (x: Tensor) => Tensor, x: Tensor): string[] {
  const compiled = compile(f);
  compiled(x);
  return compiled.recordings[0].kernels.map(({ name }) => name).sort();
}

/** Asserts which kernels run, that the result is the reference's, and that it is equal to the bit each time. */
async function runs(f: (x: Tensor) => Tensor, x: Tensor, kernels: readonly RegExp[]): Promise<void> {
  const names = kernelsOf(f, x);
  assert.equal(names.length, kernels.length, `${names}`);
  kernels.forEach((kernel, i) => assert.match(names[i], kernel));
  const y = f(x), expected = f(onCpu(x));
  assert.deepEqual([y.shape, y.dtype], [expected.shape, expected.dtype]);
  await assertClose(y, expected, { rtol: 1e-4, atol: 1e-4, ...(x.dtype === "f32" ? {} : { dtype: x.dtype }) });
  assert.deepEqual(await f(x).bytes(), await y.bytes());
}

Deno.test("rows are summed where they lie, four elements a load where they are aligned", async () => {
  const last = (x: Tensor) => sum(x, { axis: -1 });
  await runs(last, draw([9, 64]), [/^sum_rows_l16_v4_f32_f32$/]);
  await runs(last, draw([9, 63]), [/^sum_rows_l64_v1_f32_f32$/]);
  await runs(last, slice(draw([9, 68]), [1, 2], [8, 66]), [/^sum_rows_l64_v1_/]); // offset 70
  await runs(last, slice(draw([9, 68]), [1, 0], [8, 64]), [/^sum_rows_l16_v4_/]);
  await runs(last, permute(draw([4, 3, 5, 8]), [2, 0, 1, 3]), [/^sum_rows_l2_v4_/]);
  await runs((x) => sum(x), draw([6, 8]), [/^sum_rows_l16_v4_/]); // dense axes are one
});

Deno.test("columns are summed downwards without a copy", async () => {
  await runs((x) => sum(x, { axis: 0 }), draw([40, 12]), [/^sum_columns_v4_f32_f32$/]);
  await runs((x) => max(x, { axis: 1 }), draw([3, 40, 7]), [/^max_columns_v1_f32_f32$/]);
  await runs((x) => mean(x, { axis: -1 }), transpose(draw([40, 12])), [/^mean_columns_v4_/]);
});

Deno.test("long rows and columns are reduced in parts, then the parts", async () => {
  await runs((x) => mean(x, { axis: -1 }), draw([2, 40_003]), [/^mean_rows_/, /^sum_rows_l256_v1_/]);
  await runs((x) => logsumexp(x, { axis: -1 }), draw([1, 32_768]), [
    /^logsumexp_rows_l1_v4_/,
    /^logsumexp_rows_l256_v4_/,
  ]);
  await runs((x) => mean(x, { axis: 0 }), draw([3000, 5]), [/^mean_columns_v1_/, /^sum_columns_v1_/]);
});

Deno.test("axes with others between them are gathered first", async () => {
  await runs((x) => sum(x, { axis: [0, 2] }), draw([3, 4, 5, 6]), [/^cast_strided/, /^sum_rows_/]);
  await runs((x) => min(x, { axis: [1, 3] }), draw([3, 4, 5, 8]), [/^cast_strided/, /^min_rows_/]);
  await runs((x) => sum(x, { axis: [0, 1] }), broadcastTo(draw([1, 4, 1]), [3, 4, 5]), [/^cast_strided/, /^sum_rows_/]);
});

Deno.test("argmax(), argmin() and logsumexp() step through rows of any stride", async () => {
  for (const [f, name] of [[argmax, /^argmax_rows_.*v1/], [argmin, /^argmin_rows_.*v1/]] as const) {
    await runs((x) => f(x, { axis: 0 }), draw([40, 12]), [name]);
  }
  await runs((x) => logsumexp(x, { axis: 1 }), draw([3, 40, 7]), [/^logsumexp_rows_.*v1/]);
});

Deno.test("16-bit elements are summed in f32 and rounded once", async () => {
  for (const dtype of ["f16", "bf16"] as const) {
    await runs((x) => sum(x, { axis: -1 }), draw([5, 64], dtype), [/^cast_/, new RegExp(`^sum_rows_.*_${dtype}_f32$`)]);
    const ones = tensor(Array(4099).fill(1), { dtype, backend: gpu });
    assert.equal(await sum(ones).item(), dtype === "f16" ? 4100 : 4096); // 4099 to the nearest; a bf16 sum stops at 256
  }
});

Deno.test("a reduction over no elements is the empty value, over no rows nothing", async () => {
  const none = draw([3, 0]);
  assert.deepEqual([...await sum(none, { axis: 1 }).data()], [0, 0, 0]);
  assert.deepEqual([...await logsumexp(none, { axis: 1 }).data()], Array(3).fill(-Infinity));
  assert.deepEqual([...await mean(none, { axis: 1 }).data()], [NaN, NaN, NaN]);
  assert.deepEqual([...await sum(none, { axis: 0 }).data()], []);
});

Deno.test("cumsum() and topK() agree with their references along every axis and from views", async () => {
  for (const axis of [0, 1, 2]) {
    const x = permute(draw([300, 3, 4]), [1, 0, 2]), forwards = (x: Tensor) => cumsum(x, { axis });
    const backwards = grad((x: Tensor) => sum(square(forwards(x)))); // its gradient sums from the end
    for (const f of [forwards, backwards]) {
      await assertClose(f(x), await f(onCpu(x)).data(), { rtol: 1e-4, atol: f === forwards ? 1e-4 : 1e-2 }); // gradients go into the thousands
    }
  }
  const x = transpose(draw([301, 3]));
  const [got, expected] = [topK(x, 7), topK(onCpu(x), 7)];
  assert.deepEqual(await got.values.data(), await expected.values.data());
  assert.deepEqual(await got.indices.data(), await expected.indices.data());
});
