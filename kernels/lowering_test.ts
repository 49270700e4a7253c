import assert from "node:assert/strict";
import type { DType } from "../tensor/dtype.ts";
import { broadcastLayout, stridesOf } from "../tensor/shape.ts";
import { expressions } from "./elementwise.ts";
import type { Kernel } from "./kernel.ts";
import { copy, elementwise, type Lowering, type View } from "./lowering.ts";
import { PooledBuffer } from "./memory.ts";

interface Dispatch {
  readonly kernel: Kernel;
  readonly views: readonly View[];
  readonly uniforms: Readonly<Record<string, number>>;
  readonly workgroups: readonly number[];
}

/** A call that notes its dispatches. */
function noted(): { call: Pick<Lowering<unknown>, "dispatch" | "capabilities">; dispatches: Dispatch[] } {
  const dispatches: Dispatch[] = [];
  const capabilities = {
    f16: false,
    roundsF16: false,
    subgroups: false,
    subgroupSize: 0,
    subgroupMatrix: [],
    timestamps: false,
    maxBinding: 2 ** 27,
    maxWorkgroupMemory: 16384,
    maxInvocations: 256,
    maxWorkgroups: 100,
  };
  const call: Pick<Lowering<unknown>, "dispatch" | "capabilities"> = {
    capabilities,
    dispatch: (kernel, views, uniforms, workgroups) => void dispatches.push({ kernel, views, uniforms, workgroups }),
  };
  return { call, dispatches };
}

const nowhere = {} as GPUBuffer;
let ids = 0;
const view = (shape: number[], dtype: DType = "f32", offset = 0): View => ({
  buffer: new PooledBuffer({ give() {} }, ids++, nowhere, 256),
  shape,
  strides: stridesOf(shape),
  offset,
  dtype,
});

Deno.test("elementwise() binds inputs where they lie, then the result, in one dispatch", () => {
  const { call, dispatches } = noted();
  const [a, b, y] = [view([4, 6]), view([6], "f32", 12), view([4, 6])];
  elementwise(call, "add", expressions.add, [a, b], y);
  assert.equal(dispatches.length, 1);
  const [{ kernel, views, uniforms }] = dispatches;
  assert.deepEqual(views.map((v) => v.buffer.id), [a, b, y].map((v) => v.buffer.id));
  assert.deepEqual([kernel.reads.length, kernel.writes.length], [2, 1]);
  assert.deepEqual(Object.keys(uniforms).sort(), kernel.uniforms.map(([name]) => name).sort());
  assert.equal(uniforms.ob, 12);
  assert.match(kernel.name, /^add_strided/); // b repeats along an axis
});

Deno.test("elementwise() spreads threads over y where x has no room", () => {
  const { call, dispatches } = noted();
  const x = view([4 * 256 * 101]); // 101 workgroups of 256 threads with four elements each
  elementwise(call, "neg", expressions.neg, [x], x);
  const [{ workgroups: [gx, gy, gz] }] = dispatches;
  assert(gx <= 100 && gx * gy >= 101 && gz === 1, `${[gx, gy, gz]}`);
});

Deno.test("copy() reads any view, of any type, and writes the type of its target", () => {
  const { call, dispatches } = noted();
  const x = view([3, 5], "f16"), turned = { ...x, shape: [5, 3], strides: [1, 5] };
  copy(call, turned, view([5, 3], "i32"));
  copy(call, x, view([3, 5], "bf16"));
  copy(call, { ...view([1], "f32", 3), ...broadcastLayout({ shape: [1], strides: [1], offset: 3 }, [9]) }, view([9]));
  assert.deepEqual(dispatches.map(({ kernel }) => kernel.name), [
    "cast_strided2_f16_i32",
    "cast_linear_f16_bf16",
    "cast_linear_f32s_f32",
  ]);
  assert.deepEqual(dispatches.map(({ uniforms }) => uniforms.n), [15, 4, 3]);
  assert.equal(dispatches[2].uniforms.oa, 3);
});
