/** Law 2, for every op by the table: kernels are as accurate as plain f32, and give the same bits every time. */
import assert from "node:assert/strict";
import { decode, type HostArray } from "../tensor/dtype.ts";
import { type Op, runAll } from "../tensor/op.ts";
import { ops } from "../tensor/ops.ts";
import { track } from "../tensor/scope.ts";
import { stridesOf } from "../tensor/shape.ts";
import { makeTensor, type Tensor } from "../tensor/tensor.ts";
import { assertAccurate, specsOf } from "../testing/laws/accuracy.ts";
import { needAdapter } from "../testing/laws/adapter.ts";
import type { Call } from "../testing/laws/sample.ts";
import { subjects } from "../testing/laws/samples.ts";
import { property } from "../testing/property.ts";
import { lowerings } from "./lowerings.ts";
import { matrixUnit } from "./matmul_matrix_plan.ts";
import { webgpu } from "./webgpu.ts";

const gpu = await needAdapter(webgpu());
const { subgroupSize, f16 } = gpu.capabilities;
const units = f16 && subgroupSize >= 4 && matrixUnit(gpu.capabilities) !== undefined;

/** The results of a call on the GPU, as users get them. */
function run<P>(op: Op<P>, { inputs, params }: Call<P>): Tensor[] {
  return runAll(op, inputs.map((x) => x.tensor(gpu)), params, gpu);
}

/** The results of the op's dispatches, for ops that users get as views. */
function lower<P>(op: Op<P>, { inputs, params }: Call<P>): Tensor[] {
  const specs = specsOf(op, inputs, params);
  const storages = gpu.run(op, inputs.map((x) => x.tensor(gpu)), params, specs);
  return specs.map(({ shape, dtype }, i) =>
    track(makeTensor(gpu, storages[i], { shape, strides: stridesOf(shape), offset: 0 }, dtype, op.name))
  );
}

const read = (results: readonly Tensor[]) => Promise.all(results.map((y) => y.bytes()));

for (const { name, op, sample } of subjects()) {
  property(
    `${name}() on the GPU errs at most twice as much as naive f32, and equally each time`,
    [sample.calls(gpu.dtypes)],
    async (call) => {
      const results = run(op, call), accuracy = units ? sample.onUnits ?? sample.accuracy : sample.accuracy;
      const bytes = await read(results);
      const values = (bytes: Uint8Array[]): HostArray[] => bytes.map((b, i) => decode(results[i].dtype, b));
      assertAccurate(op, call, accuracy, values(bytes));
      assert.deepEqual(await read(run(op, call)), bytes);
      if (op.view !== undefined) assertAccurate(op, call, accuracy, values(await read(lower(op, call))));
    },
  );
}

Deno.test("every op of the table has dispatches", () => {
  assert.deepEqual(Object.keys(lowerings).sort(), Object.keys(ops).sort());
});
