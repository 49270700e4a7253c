import assert from "node:assert/strict";
import { add, cast, mul } from "../tensor/elementwise.ts";
import { concat, pad, permute, slice } from "../tensor/movement.ts";
import { key, randn } from "../tensor/random.ts";
import { dispose, scope } from "../tensor/scope.ts";
import { softmax } from "../tensor/norm.ts";
import { storageOf, type Tensor } from "../tensor/tensor.ts";
import { needAdapter } from "../testing/laws/adapter.ts";
import { builtInTable, useMatrixTable } from "./matmul_matrix_plan.ts";
import { kindOf, Scripts } from "./script.ts";
import { webgpu } from "./webgpu.ts";

const gpu = await needAdapter(webgpu());
const draw = (seed: number, shape: number[]) => randn(key(seed, { backend: gpu }), shape);

/** The kind of a call, with a result like its first input. */
function kind(op: string, inputs: readonly Tensor[], params: unknown, own = true): string | null {
  const [{ shape, dtype }] = inputs, buffers = inputs.map((x) => storageOf(x, op));
  return kindOf(op, inputs, params, [{ shape, dtype }], [...buffers, own ? storageOf(draw(9, [1]), op) : buffers[0]]);
}

Deno.test("calls are of one kind when op, layouts, dtypes, parameters and shared buffers are the same", () =>
  scope(() => {
    const [x, y, z] = [1, 2, 3].map((seed) => draw(seed, [4, 6]));
    assert.equal(kind("add", [x, y], { a: [1, 2] }), kind("add", [z, x], { a: [1, 2] }));
    const kinds = [
      kind("add", [x, y], {}),
      kind("mul", [x, y], {}),
      kind("add", [x, x], {}),
      kind("add", [x, y], {}, false),
      kind("add", [x], {}),
      kind("add", [x, permute(draw(4, [6, 4]), [1, 0])], {}),
      kind("add", [x, slice(draw(4, [5, 6]), [1, 0])], {}),
      kind("add", [x, cast(y, "f16")], {}),
      kind("add", [draw(5, [46]), y], {}),
      kind("add", [draw(5, [4, 6, 1]), y], {}),
      ...[0, -0, NaN, Infinity, "0", "", true, null, undefined, [0], [[0]], [], {}, { b: 0 }, [0, 0], "[0,"].map((a) =>
        kind("add", [x, y], { a })
      ),
      kind("add", [x, y], { b: 0 }),
    ];
    assert.equal(new Set(kinds).size, kinds.length);
  }));

Deno.test("parameters that hold functions, or objects of a class, are of no kind", () =>
  scope(() => {
    const x = draw(1, [4]);
    for (const a of [() => 1, new Map(), new Uint8Array(2), Symbol("a"), 1n]) {
      assert.equal(kind("add", [x], { a }), null);
    }
    assert.equal(kind("concat", Array(20).fill(x), {}), null);
  }));

Deno.test("a call by a script gives the bits of the call that it was written by, on other tensors too", async () => {
  const f = (x: Tensor, y: Tensor) => [
    softmax(permute(x, [1, 0])),
    add(mul(x, x), y),
    pad(cast(y, "f16"), [[1, 0], [2, 1]]),
    concat([x, y, x], { axis: 1 }),
  ];
  const inputs = [1, 2, 3].map((seed) => [draw(seed, [5, 7]), draw(seed + 10, [5, 7])]);
  const read = () =>
    Promise.all(inputs.flatMap(([x, y]) => f(x, y)).map(async (z) => [...await z.data() as Iterable<number>]));
  const other = await needAdapter(webgpu());
  const before = gpu.memory().current;
  const found = await scope(read);
  assert.deepEqual(await scope(read), found);
  assert.equal(gpu.memory().current, before);
  const alone: number[][] = []; // each planned, as the first of its kind
  for (const [i] of inputs.entries()) {
    const fresh = i === 0 ? other : await needAdapter(webgpu());
    await scope(async () => {
      const xy = [i + 1, i + 11].map((seed) => randn(key(seed, { backend: fresh }), [5, 7]));
      for (const z of f(xy[0], xy[1])) alone.push([...await z.data() as Iterable<number>]);
    });
  }
  assert.deepEqual(found, alone);
  dispose(inputs);
});

Deno.test("scripts are dropped when the tiles to choose from change, and when there are too many", () => {
  const scripts = new Scripts(), none = { temporaries: [], steps: [] };
  scripts.keep("a", none);
  assert.equal(scripts.find("a"), none);
  const before = useMatrixTable(gpu.capabilities, builtInTable(gpu.capabilities));
  useMatrixTable(gpu.capabilities, before);
  assert.equal(scripts.find("a"), undefined);
  for (let i = 0; i <= 4096; i++) scripts.keep(`${i}`, none);
  assert.equal(scripts.find("0"), undefined);
  assert.equal(scripts.find("4096"), none);
});
