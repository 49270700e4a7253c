import assert from "node:assert/strict";
import { compile } from "../tensor/compile.ts";
import { tensor } from "../tensor/create.ts";
import type { DType } from "../tensor/dtype.ts";
import { matmul } from "../tensor/matmul.ts";
import { broadcastTo, permute, slice, transpose } from "../tensor/movement.ts";
import { type Shape, sizeOf, stridesOf } from "../tensor/shape.ts";
import type { Tensor } from "../tensor/tensor.ts";
import { assertClose } from "../testing/mod.ts";
import { needAdapter } from "../testing/laws/adapter.ts";
import { draw, stored } from "../testing/laws/both.ts";
import { open } from "./device.ts";
import type { Lowering, View } from "./lowering.ts";
import { multiply } from "./matmul_lowering.ts";
import { type MatmulStep, pickMatmul, planMatmul } from "./matmul_plan.ts";
import { BufferPool } from "./memory.ts";
import { Pipelines } from "./pipelines.ts";
import { DispatchQueue } from "./queue.ts";
import { Readback } from "./readback.ts";
import { webgpu } from "./webgpu.ts";

const gpu = await needAdapter(webgpu());

/** Asserts that f's product is the reference's, and returns the kernels that made it. */
async function product(f: (a: Tensor, b: Tensor) => Tensor, a: Tensor, b: Tensor): Promise<string[]> {
  const [x, y] = [a, b].map((x) => tensor(x.dataSync(), { shape: x.shape, dtype: x.dtype, backend: gpu }));
  await assertClose(f(x, y), await f(a, b).data(), { dtype: a.dtype, ...(a.dtype === "f32" ? { atol: 1e-5 } : {}) });
  const compiled = compile(f);
  compiled(x, y);
  return compiled.recordings[0].kernels.map(({ name }) => name.split("_")[0]).sort();
}

for (const dtype of stored) {
  Deno.test(`matmul() reads transposes, slices and repeated ${dtype} batches where they lie`, async () => {
    const even = [[2, 3, 8, 16], [2, 3, 16, 12]].map((shape, i) => draw(i, shape, dtype));
    const lies: ((a: Tensor, b: Tensor) => Tensor)[] = [
      (a, b) => matmul(a, b),
      (a, b) => matmul(transpose(a), b, { transposeA: true }),
      (a, b) => matmul(slice(a, [0, 1], [2, 2]), slice(b, [0, 2], [2, 3])),
      (a, b) => matmul(a, slice(b, [1, 1], [2, 2])),
      (a, b) => matmul(permute(a, [1, 0, 2, 3]), permute(b, [1, 0, 2, 3])),
      (a, b) => matmul(broadcastTo(slice(a, [0, 0], [1, 3]), [4, 3, 8, 16]), slice(b, [0], [1])),
    ];
    for (const f of lies) {
      assert((await product(f, even[0], even[1])).every((name) => name === "matmul"));
    }
  });

  Deno.test(`matmul() copies ${dtype} operands of which no axis is adjacent, and batches of too many strides`, async () => {
    const inner = (a: Tensor, b: Tensor) => matmul(permute(a, [2, 0, 1]), b); // [6, 4, 5], the first axis adjacent
    for (const shape of [[5, 8], [6, 5, 8]]) { // one tall product, and a batch of them
      assert.deepEqual(await product(inner, draw(1, [4, 5, 6], dtype), draw(2, shape, dtype)), ["cast", "matmul"]);
    }
    const many = await product(matmul, draw(1, [2, 1, 2, 1, 3, 4], dtype), draw(2, [1, 3, 1, 2, 4, 2], dtype));
    assert.deepEqual(many, ["cast", "cast", "matmul"]);
  });
}

Deno.test("products go to a row of their target, and add what it holds or what lies elsewhere, also where k is split", async () => {
  const opened = await open(), { device, capabilities } = opened;
  const fail = (error: Error) => {
    throw error;
  };
  const queue = new DispatchQueue(device), pipelines = new Pipelines(opened, queue.uniforms, fail);
  const pool = new BufferPool(device, capabilities.maxBinding, () => {}, fail), readback = new Readback(device, queue);
  const temporary = (shape: Shape, dtype: DType): View => {
    const buffer = pool.take(4 * sizeOf(shape), "test");
    return { buffer, shape, strides: stridesOf(shape), offset: 0, dtype };
  };
  const call: Pick<Lowering<unknown>, "dispatch" | "temporary" | "capabilities"> = {
    capabilities,
    temporary,
    dispatch: (kernel, views, uniforms, groups) =>
      queue.dispatch(pipelines, kernel, views.map((v) => v.buffer), uniforms, groups),
  };
  const upload = (data: Float32Array<ArrayBuffer>, shape: Shape) => {
    const view = temporary(shape, "f32");
    queue.write(view.buffer, new Uint8Array(data.buffer));
    return view;
  };
  const read = async (y: View) =>
    new Float32Array((await readback.read(y.buffer.buffer, 0, 4 * sizeOf(y.shape))).buffer);
  for (const [m, k, n] of [[2, 3, 4], [5, 64, 7], [1, 600, 12], [33, 20, 66], [1, 4096, 4]]) {
    const [a, b, c] = [[m, k], [k, n], [m + 9, n]].map((shape, i) => draw(i, shape));
    const held = c.dataSync() as Float32Array<ArrayBuffer>, ab = matmul(a, b).dataSync();
    const [x, w] = [a, b].map((t) => upload(t.dataSync() as Float32Array<ArrayBuffer>, t.shape));
    for (const row of [0, 3, 9]) {
      for (const accumulate of [false, true]) {
        const y = upload(held, [m + 9, n]);
        multiply(call, x, w, { transposeA: false, transposeB: false }, y, { row, accumulate });
        const inside = (i: number) => i >= row * n && i < (row + m) * n;
        const expected = held.map((v, i) => inside(i) ? ab[i - row * n] + (accumulate ? v : 0) : v);
        assertClose(await read(y), expected, { rtol: 1e-5, atol: 1e-6 * k ** 0.5 * 4 });
        y.buffer.free();
      }
      const y = upload(held, [m + 9, n]), residual = { ...upload(held, [m + 9, n]), offset: 4 };
      multiply(call, x, w, { transposeA: false, transposeB: false }, y, { row, residual });
      const expected = held.map((v, i) =>
        i >= row * n && i < (row + m) * n ? ab[i - row * n] + held[i - row * n + 4] : v
      );
      assertClose(await read(y), expected, { rtol: 1e-5, atol: 1e-6 * k ** 0.5 * 4 });
    }
    for (const adds of [{ accumulate: true }, { offsetR: 4 }]) {
      const y = upload(held, [m + 9, n]), r = upload(held, [m + 9, n]), at = { transposed: false, batchStrides: [] };
      const plan = planMatmul(capabilities, {
        ...{ m, n, k, batch: [], out: "f32", offsetC: 8, ...adds },
        a: { ...at, dtype: "f32", offset: 0, stride: k },
        b: { ...at, dtype: "f32", offset: 0, stride: n },
      }, (device, problem) => ({ ...pickMatmul(device, problem), splits: 3 }));
      const run = ({ kernel, uniforms, workgroups }: MatmulStep, views: View[]) =>
        call.dispatch(kernel, views, uniforms, workgroups);
      const added = "offsetR" in adds ? [r] : [];
      if (plan.sum === undefined) run(plan, [x, w, ...added, y]);
      else {
        const parts = temporary([plan.scratchBytes / 4], "f32");
        run(plan, [x, w, parts]);
        run(plan.sum, [parts, ...added, y]);
      }
      const from = adds.offsetR ?? 8;
      const expected = held.map((v, i) => i >= 8 && i < 8 + m * n ? ab[i - 8] + held[i - 8 + from] : v);
      assertClose((await read(y)).subarray(0, 8 + m * n), expected.subarray(0, 8 + m * n), {
        ...{ rtol: 1e-5, atol: 1e-6 * k ** 0.5 * 4 },
      });
    }
  }
  device.destroy();
});
