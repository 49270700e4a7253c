/** Laws 1 and 4, for every op by the table: results are as inferred, and what is not valid is refused. */
import assert from "node:assert/strict";
import { assertAccurate, assertSame, exactly, onHost, rounded, specsOf } from "../testing/laws/accuracy.ts";
import { needAdapter } from "../testing/laws/adapter.ts";
import type { Call } from "../testing/laws/sample.ts";
import { samples, subjects } from "../testing/laws/samples.ts";
import { property } from "../testing/property.ts";
import type { TensorData } from "../testing/tensors.ts";
import { webgpu } from "../mod.ts";
import { cpu } from "./cpu.ts";
import { type HostArray, hostArray, isFloat } from "./dtype.ts";
import { DisposedError, FlashtapeError, UnsupportedError } from "./errors.ts";
import { type NdArray, type Op, runAll, type Spec } from "./op.ts";
import { ops } from "./ops.ts";
import { sizeOf, stridesOf } from "./shape.ts";

const gpu = await needAdapter(webgpu());

/** An output that refuses writes outside it, and knows which of its elements were written. */
function watched({ shape, dtype }: Spec): { y: NdArray; data: HostArray; unwritten: () => number } {
  const size = sizeOf(shape), data = hostArray(dtype, size), isWritten = new Uint8Array(size);
  const note = (from: number, to: number) => {
    assert.ok(Number.isInteger(from) && from >= 0 && to <= size, `wrote elements ${from} to ${to} of ${size}`);
    isWritten.fill(1, from, to);
  };
  const methods: Readonly<Record<string, unknown>> = {
    set: (values: ArrayLike<number>, at = 0) => (note(at, at + values.length), data.set(values, at)),
    fill: (value: number, from = 0, to = size) => (note(from, to), data.fill(value, from, to)),
    subarray: (from: number, to = size) => (note(from, to), data.subarray(from, to)),
  };
  const proxy = new Proxy(data, {
    get: (_, key) => methods[String(key)] ?? Reflect.get(data, key, data),
    set: (_, key, value) => {
      note(Number(key), Number(key) + 1);
      if (dtype === "bool") assert.ok(Number(value) === 0 || Number(value) === 1, `${value} is no bool`);
      data[Number(key)] = value;
      return true;
    },
  });
  const y = { shape, dtype, strides: stridesOf(shape), offset: 0, data: proxy };
  return { y, data, unwritten: () => isWritten.indexOf(0) };
}

/** The reference's results; unless it leaves zeros, it must write every element. */
function reference<P>(op: Op<P>, inputs: readonly NdArray[], params: P, leavesZeros = false): HostArray[] {
  const outputs = specsOf(op, inputs, params).map(watched);
  if (outputs.some(({ data }) => data.length > 0)) op.reference(inputs, params, ...outputs.map(({ y }) => y));
  outputs.forEach(({ unwritten }, i) => {
    if (!leavesZeros) assert.equal(unwritten(), -1, `an element of result ${i} is not written`);
  });
  return outputs.map(({ data }) => data);
}

/** A tensor as references see it on the CPU backend: with its view. */
function seen(x: TensorData): NdArray {
  let found: NdArray | undefined;
  const look: Op = {
    name: "look",
    infer: ([x]) => x,
    reference: ([x]) => {
      found = x;
    },
  };
  cpu().run(look, [x.tensor(cpu())], {}, [{ shape: [1], dtype: "f32" }]);
  return found!;
}

const onDevice = ({ inputs }: Call<unknown>, backend = cpu()) => inputs.map((x) => x.tensor(backend));

Deno.test("every op of the table stands under its own name", () => {
  for (const [key, op] of Object.entries(ops)) assert.equal(op.name, key);
  assert.deepEqual(Object.keys(samples).sort(), Object.keys(ops).sort());
});

for (const { name, op, sample } of subjects()) {
  property(`${name}(): the reference writes what infer says, from views as from copies`, [
    sample.calls(cpu().dtypes),
  ], ({ inputs, params }) => {
    const results = reference(op, inputs.map((x) => onHost(x)), params, sample.leavesZeros);
    reference(op, inputs.map(seen), params, sample.leavesZeros).forEach((y, i) => assertSame(y, results[i]));
  });

  property(`${name}() on the CPU is the f64 reference, rounded once`, [sample.calls(cpu().dtypes)], (call) => {
    const specs = specsOf(op, call.inputs, call.params);
    const results = runAll(op, onDevice(call), call.params, cpu());
    assert.deepEqual(
      results.map(({ shape, dtype }) => ({ shape, dtype })),
      specs.map(({ shape, dtype }) => ({ shape, dtype })),
    );
    if (sample.roundsBetween) {
      return assertAccurate(op, call, sample.accuracy, results.map((y) => y.dataSync()));
    }
    const exact = exactly(op, call);
    results.forEach((y, i) => {
      assertSame(y.dataSync(), isFloat(y.dtype) ? rounded(y.dtype, exact[i].data) : exact[i].data);
    });
  });

  property(`${name}() refuses tensors that are disposed or live elsewhere`, [sample.calls(gpu.dtypes)], (call) => {
    call.inputs.forEach((_, i) => {
      const inputs = onDevice(call);
      inputs[i].dispose();
      assert.throws(() => runAll(op, inputs, call.params, cpu()), DisposedError);
      if (inputs.length === 1) return;
      const mixed = onDevice(call).with(i, call.inputs[i].tensor(gpu));
      assert.throws(() => runAll(op, mixed, call.params, cpu()), UnsupportedError);
    });
  });

  if (sample.refused === null) continue;
  for (const backend of [cpu(), gpu]) {
    property(`${name}() on ${backend.name} refuses what is not valid before it allocates`, [
      sample.refused,
    ], ({ inputs, call, error }) => {
      const tensors = inputs.map((x) => x.tensor(backend));
      backend.resetPeak();
      const before = backend.memory();
      assert.throws(() => call(...tensors), (thrown) => {
        assert.ok(thrown instanceof FlashtapeError, `${thrown}`);
        assert.equal(thrown.name, error.name, thrown.message);
        assert.match(thrown.message, /^\[\w+\] ./);
        return true;
      });
      assert.deepEqual(backend.memory(), before);
    });
  }
}
