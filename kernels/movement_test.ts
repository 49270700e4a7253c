import assert from "node:assert/strict";
import { setBackend } from "../tensor/backend.ts";
import { arange, full, tensor } from "../tensor/create.ts";
import type { DType } from "../tensor/dtype.ts";
import { cast } from "../tensor/elementwise.ts";
import { concat, pad, reshape, slice, transpose } from "../tensor/movement.ts";
import { profile } from "../tensor/profile.ts";
import type { Tensor } from "../tensor/tensor.ts";
import { needAdapter } from "../testing/laws/adapter.ts";
import { webgpu } from "./webgpu.ts";

const gpu = await needAdapter(webgpu());
setBackend(gpu);
const dtypes: DType[] = ["f32", "f16", "bf16", "i32", "u32", "bool"];

const count = (n: number, dtype: DType) => cast(arange(n, undefined, { backend: gpu }), dtype);
const list = async (x: Tensor) => [...await x.data()];

for (const dtype of dtypes) {
  const one = dtype === "bool";

  Deno.test(`full() on the device fills ${dtype} tensors of any size, and no more`, async () => {
    const value = one ? 1 : 7;
    for (const n of [0, 1, 3, 4, 255, 1027]) {
      const before = full([n], value, { dtype, backend: gpu });
      assert.deepEqual(await list(before), Array(n).fill(value));
      assert.deepEqual(await list(full([n], 0, { dtype, backend: gpu })), Array(n).fill(0));
      assert.deepEqual(await list(before), Array(n).fill(value));
    }
  });

  Deno.test(`concat() and pad() on the device place ${dtype} elements beside each other, from any view`, async () => {
    const x = count(15, dtype), value = (i: number) => one ? Number(i > 0) : i;
    const turned = transpose(reshape(x, [3, 5])); // [5, 3], element (r, c) is 5c + r
    const tail = slice(x, [1], [5]);
    assert.deepEqual(await list(concat([tail, x, tail])), [1, 2, 3, 4, ...Array(15).keys(), 1, 2, 3, 4].map(value));
    const joined = concat([turned, slice(turned, [0, 1])], { axis: 1 });
    const expected = [...Array(5).keys()].flatMap((r) => [r, 5 + r, 10 + r, 5 + r, 10 + r].map(value));
    assert.deepEqual(await list(joined), expected);
    const border = one ? 1 : 9;
    const padded = await pad(slice(turned, [0, 0], [2, 3]), [[1, 0], [0, 2]], { value: border }).array();
    const [a, b] = [[0, 5, 10], [1, 6, 11]].map((row) => row.map(value));
    const nine = Array(5).fill(border);
    assert.deepEqual(JSON.parse(JSON.stringify(padded), (_, v) => typeof v === "boolean" ? Number(v) : v), [
      nine,
      [...a, border, border],
      [...b, border, border],
    ]);
  });
}

for (const dtype of ["f32", "f16", "bf16", "i32", "u32"] as const) {
  Deno.test(`arange() on the device counts in ${dtype}`, async () => {
    for (const n of [1, 4, 7, 250]) {
      assert.deepEqual(await list(arange(n, undefined, { dtype, backend: gpu })), [...Array(n).keys()]);
      const down = arange(250, 250 - n, { step: -1, dtype, backend: gpu });
      assert.deepEqual(await list(down), Array.from({ length: n }, (_, i) => 250 - i));
    }
  });
}

Deno.test("arange() on the device keeps whole numbers exact to the ends of their types", async () => {
  const last = async (start: number, stop: number, dtype: DType) =>
    (await list(arange(start, stop, { dtype, backend: gpu }))).at(-1);
  assert.equal(await last(2 ** 31 - 9, 2 ** 31, "i32"), 2 ** 31 - 1);
  assert.equal(await last(-(2 ** 31), -(2 ** 31) + 7, "i32"), -(2 ** 31) + 6);
  assert.equal(await last(2 ** 24 - 9, 2 ** 24, "f32"), 2 ** 24 - 1);
  const quarters = await list(arange(0, 1, { step: 0.25, backend: gpu }));
  assert.deepEqual(quarters, [0, 0.25, 0.5, 0.75]);
});

Deno.test("large transposed tensors are copied by tiles, edges and batches included; small and 16-bit ones are not", async () => {
  for (const dtype of ["f32", "i32", "bool"] as const) {
    const value = (i: number) => dtype === "bool" ? Number(i % 7 === 0) : i;
    for (const [batch, rows, columns] of [[1, 515, 513], [3, 290, 333]]) {
      const n = batch * rows * columns;
      const data = Int32Array.from({ length: n + 5 }, (_, i) => value(i));
      const flat = cast(tensor(data, { shape: [n + 5], backend: gpu }), dtype);
      const x = reshape(slice(flat, [5]), [batch, columns, rows]);
      const y = reshape(transpose(x), [n]);
      const got = await y.data();
      let i = 0;
      for (let b = 0; b < batch; b++) {
        for (let r = 0; r < rows; r++) {
          for (let c = 0; c < columns; c++) {
            const expected = value(5 + (b * columns + c) * rows + r);
            if (got[i++] !== expected) {
              assert.fail(`${dtype} [${b}, ${r}, ${c}] is ${got[i - 1]}, expected ${expected}`);
            }
          }
        }
      }
    }
  }
  const kernelOf = async (shape: number[], dtype: DType) => {
    const x = transpose(reshape(count(shape[0] * shape[1], dtype), shape));
    const { kernels } = await profile(() => reshape(x, [x.size]).dispose());
    return kernels.map(({ kernel }) => kernel);
  };
  assert.deepEqual(await kernelOf([512, 600], "f32"), ["turn_f32"]);
  assert.match((await kernelOf([64, 60], "f32"))[0], /^cast_strided2/);
  assert.match((await kernelOf([512, 600], "bf16"))[0], /^cast_strided2/);
});
