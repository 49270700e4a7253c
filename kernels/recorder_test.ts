import assert from "node:assert/strict";
import { UnsupportedError } from "../tensor/errors.ts";
import { type Kernel, kernel } from "./kernel.ts";
import { PooledBuffer } from "./memory.ts";
import { Tracing } from "./recorder.ts";

const nowhere = {} as GPUBuffer; // recordings bind nothing
const real = (id: number) => new PooledBuffer({ give() {} }, id, nowhere, 256);
const scale = kernel(
  "recorder_test_scale",
  { reads: { x: "f32" }, writes: { y: "f32" }, uniforms: { by: "f32" } },
  () => "",
);
const shift = kernel(
  "recorder_test_shift",
  { reads: { x: "f32" }, writes: { y: "f32" }, uniforms: { by: "f32" } },
  () => "",
);

/** What a recording can differ in. */
interface Program {
  readonly second?: Kernel;
  readonly by?: number;
  readonly groups?: number;
  readonly captured?: PooledBuffer;
  readonly bytes?: readonly number[];
  readonly more?: boolean;
}

const shared = real(7);

/** y = second(scale(x, by)); then scales a captured tensor and host data. */
function record({ second = shift, by = 2, groups = 1, captured = shared, bytes = [1, 2], more = false }: Program = {}) {
  const tracing = new Tracing(nowhere);
  const run = (what: Kernel, from: PooledBuffer, value: number) => {
    const to = tracing.take(100, what.name);
    tracing.launch({ op: what.name.slice(14), kernel: what.name });
    tracing.dispatch(null, what, [from, to], { by: value }, [groups, 1, 1]);
    return to;
  };
  const host = real(100 + Math.floor(1000 * Math.random())); // host data comes in another buffer each time
  tracing.upload(host, Uint8Array.from(bytes));
  run(second, run(scale, tracing.standIn(100), by), 3);
  run(scale, captured, 1);
  run(scale, host, 1);
  if (more) run(shift, captured, 1);
  return tracing;
}

Deno.test("two recordings of the same calls do not differ, whatever buffers host data came in", () => {
  assert.equal(record().difference(record()), null);
});

Deno.test("a recording says what another does otherwise", () => {
  const cases: [Program, RegExp][] = [
    [{ second: scale }, /dispatch 2 \(shift: recorder_test_shift\) has become scale: recorder_test_scale/],
    [{ by: NaN }, /dispatch 1 .* had by = 2, now NaN/],
    [{ groups: 2 }, /dispatch 1 .* has another size/],
    [{ captured: real(8) }, /dispatch 3 .* works on other tensors/],
    [{ bytes: [1, 3] }, /host data number 1 .* has changed/],
    [{ bytes: [1] }, /host data number 1/],
    [{ more: true }, /shift has been added/],
  ];
  for (const [program, expected] of cases) assert.match(record().difference(record(program))!, expected);
  assert.match(record({ more: true }).difference(record())!, /dispatch 5 .* is not there any more/);
});

Deno.test("captured tensors and host data live as long as the recording", () => {
  const captured = real(9);
  const tracing = record({ captured });
  assert.equal(captured.refs, 1);
  const [host] = tracing.uploads.keys();
  assert.equal(host.refs, 1);
  tracing.free();
  assert.deepEqual([captured.refs, host.refs], [0, 0]);
});

Deno.test("a captured tensor is not written in place", () => {
  const tracing = new Tracing(nowhere);
  tracing.launch({ op: "update", kernel: scale.name });
  assert.throws(() => tracing.dispatch(null, scale, [tracing.standIn(4), real(1)], { by: 1 }, [1, 1, 1]), (error) => {
    return error instanceof UnsupportedError && /\[compile\] update writes in place/.test(error.message);
  });
});
