import assert from "node:assert/strict";
import { arbTensor, arbTensorData, property } from "../testing/mod.ts";
import type { Backend } from "./backend.ts";
import { cpu } from "./cpu.ts";
import { arange, tensor } from "./create.ts";
import { DTypeError, ShapeError, UnsupportedError } from "./errors.ts";
import { add } from "./elementwise.ts";
import { slice, transpose } from "./movement.ts";
import {
  checkDType,
  dense,
  expectDType,
  expectRank,
  forEachOffset,
  observe,
  observeOnly,
  type Observer,
  type Op,
  run,
  runAll,
} from "./op.ts";
import { sizeOf, stridesOf } from "./shape.ts";
import { rangeOf } from "./tensor.ts";

/** The CPU under another name, as a backend of its own. */
function renamed(name: string, dtypes = cpu().dtypes): Backend {
  const own: Partial<Backend> = { name, dtypes };
  return new Proxy(cpu(), {
    get: (real, key) => {
      const value: unknown = Reflect.get(key in own ? own : real, key);
      return typeof value === "function" ? value.bind(real) : value;
    },
  });
}

/** x + 1 into the storage of x. */
const incrementOp: Op = {
  name: "increment",
  infer: ([x]) => x,
  inPlace: [0],
  reference: ([x], _, y) => {
    y.data.forEach((_, i) => y.data[i] = dense(x).data[i] + 1);
  },
};

const bytesHeld = () => cpu().memory().current;

Deno.test("a view takes no bytes and reads the same storage", async () => {
  const x = tensor([[1, 2], [3, 4]]), before = bytesHeld();
  const column = slice(transpose(x), [1], [2]);
  assert.equal(bytesHeld(), before);
  assert.deepEqual(await column.array(), [[2, 4]]);
});

Deno.test("an in-place op writes the storage that nobody else sees, and spends the handle", async () => {
  const x = tensor([1, 2]), before = bytesHeld();
  const y = run(incrementOp, [x], {});
  assert.equal(bytesHeld(), before);
  assert.throws(() => x.dataSync(), /consumed by increment/);
  assert.deepEqual(await y.array(), [2, 3]);
});

Deno.test("an in-place op leaves alone what somebody else sees, and what is not all of its storage", async () => {
  const x = tensor([[1, 2], [3, 4]]), same = transpose(x);
  assert.deepEqual(await run(incrementOp, [x], {}).array(), [[2, 3], [4, 5]]);
  assert.deepEqual(await same.array(), [[1, 3], [2, 4]]);
  const turned = run(incrementOp, [same], {});
  assert.deepEqual(await turned.array(), [[2, 4], [3, 5]]);
});

Deno.test("tensors of different backends are refused by both names", () => {
  const other = renamed("elsewhere");
  const x = tensor([1]), y = tensor([1], { backend: other });
  assert.throws(
    () => add(x, y),
    new UnsupportedError(
      "add",
      "tensors live on different backends: cpu and elsewhere; move one by tensor(await x.data(), …)",
    ),
  );
});

Deno.test("a dtype that the backend does not hold is refused before anything runs", () => {
  const narrow = renamed("narrow", ["f32", "i32"]);
  assert.throws(
    () => checkDType("zeros", narrow, "f64"),
    new UnsupportedError("zeros", "narrow has no f64, only f32 i32: cast, or use cpu()"),
  );
  assert.throws(() => arange(0, 1, { dtype: "f64", backend: narrow }), UnsupportedError);
});

Deno.test("observers hear of each op with its inputs, its parameters and its results, and only while they listen", () => {
  const heard: string[] = [];
  const ear = (name: string): Observer => ({
    note: (op, inputs, _, outputs) => void heard.push(`${name}: ${op.name} ${inputs.length} to ${outputs.length}`),
  });
  const x = tensor([1, 2]);
  observe(ear("outer"), () => {
    observe(ear("inner"), () => add(x, x));
    observeOnly([ear("only")], () => run(incrementOp, [tensor([1])], {}));
    assert.throws(() => observe(ear("inner"), () => assert.fail()), assert.AssertionError);
    add(x, x);
  });
  add(x, x);
  assert.deepEqual(heard, ["outer: add 2 to 1", "inner: add 2 to 1", "only: increment 1 to 1", "outer: add 2 to 1"]);
});

Deno.test("a view of all elements keeps the range that is known of them, a part of them does not", () => {
  const x = tensor([[5, 1], [2, 3]], { dtype: "i32" });
  assert.deepEqual(rangeOf(transpose(x)), [1, 5]);
  assert.equal(rangeOf(slice(x, [1])), undefined);
});

Deno.test("an op may have several results", async () => {
  const twice: Op = {
    name: "twice",
    infer: ([x]) => [x, { shape: [], dtype: "i32" }],
    reference: ([x], _, y, n) => {
      y.data.set(dense(x).data);
      n.data[0] = sizeOf(x.shape);
    },
  };
  const [same, count] = runAll(twice, [tensor([7, 8])], {});
  assert.deepEqual([await same.array(), await count.array(), count.origin], [[7, 8], 2, "twice"]);
});

property("dense() gives the elements that a view sees, in row-major order", [
  arbTensorData({ views: true }),
], async (x) => {
  assert.deepEqual(await x.tensor(cpu()).data(), x.data);
});

property("forEachOffset() visits as many places as there are elements", [arbTensor({ views: true })], (x) => {
  let count = 0;
  forEachOffset(x, () => count++);
  assert.equal(count, x.size);
});

Deno.test("dense() copies only what is not dense", () => {
  const x = { shape: [2, 2], dtype: "f32" as const, strides: [2, 1], offset: 0, data: Float32Array.of(1, 2, 3, 4) };
  assert.equal(dense(x), x);
  const row = dense({ ...x, shape: [2], strides: [1], offset: 2 });
  assert.equal(row.data.buffer, x.data.buffer);
  const turned = dense({ ...x, strides: [1, 2] });
  assert.deepEqual([[...turned.data], turned.strides], [[1, 3, 2, 4], stridesOf([2, 2])]);
  assert.deepEqual([...row.data], [3, 4]);
});

Deno.test("expectDType() and expectRank() say what they were given and what they want", () => {
  assert.throws(
    () => expectDType("take", "indices", "f32", ["i32", "u32"]),
    new DTypeError("take", "indices is f32, expected i32 or u32"),
  );
  assert.throws(
    () => expectRank("rotaryEmbedding", "x", [2, 3], 4),
    new ShapeError("rotaryEmbedding", "x has 2 axes, expected 4: [2,3]"),
  );
});
