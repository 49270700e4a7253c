import assert from "node:assert/strict";
import type { Backend } from "../tensor/backend.ts";
import { compile } from "../tensor/compile.ts";
import { cpu } from "../tensor/cpu.ts";
import { tensor } from "../tensor/create.ts";
import type { DType } from "../tensor/dtype.ts";
import { abs, cast } from "../tensor/elementwise.ts";
import { matmul } from "../tensor/matmul.ts";
import { crossEntropy, type CrossEntropyOptions, linearCrossEntropy } from "../tensor/loss.ts";
import { grad, valueAndGrad } from "../mod.ts";
import { key, randint } from "../tensor/random.ts";
import type { Tensor } from "../tensor/tensor.ts";

import { sum } from "../tensor/reduce.ts";
import { sizeOf, stridesOf } from "../tensor/shape.ts";
import { assertClose } from "../testing/mod.ts";
import { needAdapter } from "../testing/laws/adapter.ts";
import { assertSame, draw, stored } from "../testing/laws/both.ts";
import { matrixUnit } from "./matmul_matrix_plan.ts";
import type { View } from "./lowering.ts";
import {
  lowerLinearCrossEntropy,
  lowerLinearCrossEntropyBackward,
  lowerLinearCrossEntropySum,
} from "./loss_lowering.ts";
import type { PooledBuffer } from "./memory.ts";
import { storageBytes } from "./storage.ts";
import { webgpu } from "./webgpu.ts";

const gpu = await needAdapter(webgpu());

for (const dtype of stored) {
  Deno.test(`linearCrossEntropy() on the device equals its reference in ${dtype}`, async () => {
    const options: CrossEntropyOptions[] = [{}, { labelSmoothing: 0.1, zLoss: 0.01, softcap: 3 }, {
      reduction: "none",
    }];
    for (const [N, D, V] of [[1, 1, 1], [3, 5, 7], [9, 16, 64], [33, 24, 130]]) {
      const hidden = draw(1, [N, D], dtype), weight = draw(2, [V, D], dtype);
      const labels = randint(key(2, { backend: cpu() }), [N], { max: V }).dataSync();
      if (N > 1) labels[0] = -100;
      for (const option of options) {
        await assertSame(
          gpu,
          (h, w) => linearCrossEntropy(h, w, tensor(labels, { dtype: "i32", backend: h.backend }), option),
          [
            hidden,
            weight,
          ],
          8,
        );
      }
    }
  });
}

Deno.test("linearCrossEntropy() in many chunks of rows is what it is in one", async () => {
  const small = await webgpu();
  Object.assign(small.capabilities, { maxBinding: 4 * 4 * 130 }); // what its lowerings go by: four rows of 130 logits
  const [N, D, V] = [33, 24, 130], [h, w] = [draw(1, [N, D]), draw(2, [V, D])].map((x) => x.dataSync());
  const labels = randint(key(2, { backend: cpu() }), [N], { max: V }).dataSync();
  labels[5] = -100; // a mean over 32 rows, not over those of a chunk
  const [one, many] = [gpu, small].map((backend) => {
    const t = tensor(labels, { dtype: "i32", backend });
    const inputs = [tensor(h, { shape: [N, D], backend }), tensor(w, { shape: [V, D], backend })];
    return [{}, { reduction: "none" } as const].map((option) => {
      const loss = compile((h: Tensor, w: Tensor) => linearCrossEntropy(h, w, t, option));
      const step = compile((h: Tensor, w: Tensor) =>
        valueAndGrad((h: Tensor, w: Tensor) => sum(linearCrossEntropy(h, w, t, option)), [0, 1])(h, w)
      );
      const value = loss(inputs[0], inputs[1]), [total, gradients] = Object.values(step(inputs[0], inputs[1]));
      const sweeps = [loss, step].map(({ recordings: [{ kernels }] }) =>
        kernels.reduce((n, { name, calls }) => n + (name.startsWith("row_") ? calls : 0), 0)
      );
      return { results: [value, total, gradients].flat() as Tensor[], sweeps };
    });
  });
  for (const [i, { results, sweeps }] of many.entries()) {
    assert(sweeps.every((n, j) => n === 9 * one[i].sweeps[j]), `${sweeps} sweeps beside ${one[i].sweeps}`);
    for (const [j, y] of results.entries()) {
      await assertClose(y, await one[i].results[j].data(), { atol: 1e-5 }); // sums of some hundred terms of size 1
    }
  }
  small.dispose();
});

Deno.test("bf16 gradients are rounded once, however many chunks or blocks they are summed over", async () => {
  // Columns of the two have ranges of their own, so that what one was packed by does not fit the other.
  const [N, D, V] = [64, 24, 130],
    [h, w] = [[N, D], [V, D]].map((shape, i) => {
      const values = draw(i + 1, shape).dataSync() as Float32Array;
      return tensor(values.map((x, j) => x * 2 ** (i * (j % D % 5 - 4))), { shape, dtype: "bf16", backend: cpu() });
    });
  const labels = randint(key(2, { backend: cpu() }), [N], { max: V }).dataSync();
  const gradients = (backend: Backend, dtype: DType) => {
    const inputs = [h, w].map((x) => tensor(x.dataSync(), { shape: x.shape, dtype, backend }));
    const t = tensor(labels, { dtype: "i32", backend });
    const f = grad((h: Tensor, w: Tensor) => linearCrossEntropy(h, w, t, { reduction: "sum" }), [0, 1]);
    return { f: (h: Tensor, w: Tensor) => [...f(h, w)] as Tensor[], inputs: inputs as [Tensor, Tensor] };
  };
  const { f, inputs } = gradients(cpu(), "f64"), expected = f(...inputs).map((x) => x.dataSync());
  // Matrix units take eleven digits of each slope.
  const [a, b] = inputs, loss = { reduction: "sum" } as const;
  const slopes = grad((z: Tensor) => crossEntropy(z, tensor(labels, { dtype: "i32", backend: cpu() }), loss))(
    matmul(a, b, { transposeB: true }),
  );
  const terms = [matmul(abs(slopes), abs(b)), matmul(abs(slopes), abs(a), { transposeA: true })]
    .map((x) => x.dataSync());
  // Rows of a chunk: few stream the weight, more go through matrix units where there are some, with 32 in blocks of classes.
  for (const rows of [4, 16, 32]) {
    const small = await webgpu();
    Object.assign(small.capabilities, { maxBinding: rows * 4 * 130 });
    const { f, inputs } = gradients(small, "bf16"), compiled = compile(f);
    const got = await Promise.all(compiled(...inputs).map((x) => x.data()));
    const units = rows > 8 && matrixUnit(small.capabilities) !== undefined;
    const sweeps = compiled.recordings[0].kernels.filter(({ name }) => /^row_(both|gradient)/.test(name));
    const blocks = units && rows === 32 ? Math.ceil(V / 64) : Math.ceil(N / rows);
    assert.equal(sweeps.reduce((n, { calls }) => n + calls, 0), blocks);
    expected.forEach((all, which) =>
      all.forEach((exact, i) => {
        const y = got[which][i], bound = 2 ** -8 * Math.abs(exact) + 1e-4 + (units ? 2 ** -12 * terms[which][i] : 0);
        assert.ok(Math.abs(y - exact) <= bound, `${rows} rows, ${which}, ${i}: ${y} for ${exact}, bound ${bound}`);
      })
    );
    small.dispose();
  }
});

Deno.test("losses of 16 bits fold logits on matrix units, by blocks of classes and of rows, and store none", async () => {
  const small = await webgpu();
  Object.assign(small.capabilities, { maxBinding: 4 * 4 * 130 });
  const [N, V] = [40, 300], labels = randint(key(2, { backend: cpu() }), [N], { max: V }).dataSync();
  labels[5] = -100, labels[0] = V - 1, labels[39] = 0;
  const options: CrossEntropyOptions[] = [{}, { labelSmoothing: 0.1, zLoss: 0.01, softcap: 3 }];
  for (const [dtype, D] of [["bf16", 24], ["f16", 24], ["f16", 21]] as const) {
    for (const option of options) {
      const host = [draw(1, [N, D], dtype), draw(2, [V, D], dtype)];
      host[0] = tensor((host[0].dataSync() as Float32Array).map((x, i) => Math.floor(i / D) === 7 ? NaN : x), {
        ...{ shape: [N, D], dtype, backend: cpu() },
      });
      const f = (h: Tensor, w: Tensor) =>
        linearCrossEntropy(h, w, tensor(labels, { dtype: "i32", backend: h.backend }), {
          ...option,
          reduction: "none",
        });
      const [h, w] = host.map((x) => tensor(x.dataSync(), { shape: x.shape, dtype, backend: small }));
      const compiled = compile(f), got = await compiled(h, w).data();
      const [exactH, exactW] = host.map((x) => cast(x, "f64"));
      assertClose(got, await f(exactH, exactW).data(), { rtol: 1e-5, atol: 1e-5 });
      if (matrixUnit(small.capabilities) === undefined) continue;
      const { kernels } = compiled.recordings[0],
        named = (part: string) => kernels.filter(({ name }) => name.includes(part));
      const calls = named("matmul_matrix").reduce((n, { calls }) => n + calls, 0);
      assert.equal(calls, 3 * (dtype === "f16" && D === 24 ? 1 : 3), kernels.map(({ name }) => name).join());
      assert.deepEqual(named("row_").map(({ name }) => name.startsWith("row_loss_folded")), [true]);
    }
  }
  small.dispose();
});

Deno.test("the vocabulary of a large model takes at most 150 MB beside inputs and outputs, with matrix units and without", () => {
  const [N, D, V] = [4096, 1024, 128256], params = { ignoreIndex: -100, labelSmoothing: 0.1, zLoss: 0, softcap: 0 };
  const units = [{ m: 16, n: 16, k: 16, ab: "f16", acc: "f32" }];
  for (const subgroupMatrix of [units, []]) {
    for (const dtype of ["f32", "f16", "bf16"] as const) {
      let made = 0;
      const view = (shape: number[], dtype: DType): View => {
        const size = sizeOf(shape) * storageBytes(dtype);
        return { shape, dtype, strides: stridesOf(shape), offset: 0, buffer: { bytes: size } as PooledBuffer };
      };
      const capabilities = {
        ...{ ...gpu.capabilities, subgroupMatrix, subgroupSize: 32, f16: true, maxBinding: 2 ** 31 - 4 },
        ...{ maxInvocations: 1024, maxWorkgroupMemory: 49152, maxWorkgroups: 65535 },
      };
      const call = (inputs: View[], outputs: View[]) => ({
        ...{ inputs, outputs, params, capabilities, dense: (x: View) => x, dispatch: () => {} },
        temporary: (shape: readonly number[], dtype: DType) => {
          const x = view([...shape], dtype);
          made += x.buffer.bytes;
          return x;
        },
      });
      const [h, w, labels] = [view([N, D], dtype), view([V, D], dtype), view([N], "i32")];
      const row = () => view([N], "f32"), one = () => view([], "f32");
      for (
        const lower of [
          () => lowerLinearCrossEntropy(call([h, w, labels], [row(), row()])),
          () => lowerLinearCrossEntropySum(call([h, w, labels, one()], [one(), h, w])),
          () => lowerLinearCrossEntropyBackward(call([one(), h, w, labels, row()], [h, w])),
        ]
      ) {
        made = 0;
        lower();
        assert.ok(made <= 150e6, `${dtype}, ${subgroupMatrix.length} shapes of matrix units, ${lower}: ${made} bytes`);
      }
    }
  }
});
