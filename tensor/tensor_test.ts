import assert from "node:assert/strict";
import { cpu } from "./cpu.ts";
import { arange, tensor, zeros } from "./create.ts";
import { add } from "./elementwise.ts";
import { DisposedError, ShapeError } from "./errors.ts";
import { transpose } from "./movement.ts";
import { alias, consume, detach, rangeOf, valuesOf } from "./tensor.ts";

const bytesHeld = () => cpu().memory().current;

Deno.test("a tensor knows its shape, rank, size, dtype, and what made it", () => {
  using x = zeros([2, 0, 3], { dtype: "f16" });
  assert.deepEqual([x.rank, x.size, x.dtype, x.origin], [3, 0, "f16", "full"]);
  assert.equal(`${x}`, "Tensor f16 [2,0,3] on cpu");
  assert.equal(Deno.inspect(x), "Tensor f16 [2,0,3] on cpu");
});

Deno.test("reading gives elements in row-major order, nested by shape, whatever the view", async () => {
  using x = tensor([[1, 2, 3], [4, 5, 6]]);
  using y = transpose(x);
  assert.deepEqual(await y.array(), [[1, 4], [2, 5], [3, 6]]);
  assert.deepEqual([...await y.data()], [1, 4, 2, 5, 3, 6]);
  assert.deepEqual([...y.dataSync()], [1, 4, 2, 5, 3, 6]);
  assert.deepEqual(await zeros([2, 0]).array(), [[], []]);
  assert.equal(await tensor(7).array(), 7);
});

Deno.test("what was read is the reader's: writing to it changes no tensor", async () => {
  using x = tensor([1, 2]);
  (await x.data())[0] = 9;
  x.dataSync()[0] = 9;
  (await x.bytes()).fill(255);
  assert.deepEqual(await x.array(), [1, 2]);
});

Deno.test("item() reads one element of any rank and refuses more", async () => {
  assert.equal(await tensor([[3]]).item(), 3);
  await assert.rejects(tensor([1, 2]).item(), new ShapeError("item", "needs one element: [2] has 2"));
});

Deno.test("`using` and dispose() give the bytes back when the last handle goes, and twice is harmless", () => {
  const before = bytesHeld();
  {
    using x = zeros([2, 4]);
    const view = transpose(x);
    assert.equal(bytesHeld(), before + 32);
    view.dispose();
    view.dispose();
    assert.deepEqual([view.disposed, x.disposed, bytesHeld()], [true, false, before + 32]);
  }
  assert.equal(bytesHeld(), before);
});

Deno.test("a disposed tensor says so, with the op that made it and the one that wanted it", () => {
  const x = add(tensor([1, 2]), 1);
  x.dispose();
  const because = "tensor f32 [2] made by add was disposed";
  assert.throws(() => add(x, 1), new DisposedError("add", because));
  assert.throws(() => x.dataSync(), new DisposedError("dataSync", because));
  assert.equal(`${x}`, "Tensor f32 [2] on cpu (disposed)");
});

Deno.test("a consumed tensor names the call that took its value over", async () => {
  const x = tensor([1, 2]);
  consume(x, "adamw.update");
  assert.ok(x.disposed);
  await assert.rejects(
    x.data(),
    new DisposedError(
      "data",
      "tensor f32 [2] made by tensor was consumed by adamw.update: use the value that call returned",
    ),
  );
});

Deno.test("an alias is the same value with a lifetime of its own; a detached handle is another value", async () => {
  const x = tensor([1, 2]), same = alias(x), other = detach(x);
  assert.equal(same.id, x.id);
  assert.notEqual(other.id, x.id);
  x.dispose();
  assert.deepEqual(await same.array(), [1, 2]);
  same.dispose();
  assert.deepEqual(await other.array(), [1, 2]);
});

Deno.test("integers made from host numbers keep their range and elements for checks; floats need none", () => {
  assert.deepEqual(rangeOf(tensor([3, -1, 2], { dtype: "i32" })), [-1, 3]);
  assert.deepEqual(rangeOf(arange(5)), [0, 4]);
  assert.equal(rangeOf(tensor([1, 2])), undefined);
  assert.deepEqual(valuesOf(tensor([3, -1], { dtype: "i32" })), Int32Array.of(3, -1));
});

Deno.test("storage lives as long as any view of it", () => {
  const x = tensor([[1, 2]]);
  const views = Array.from({ length: 3 }, () => transpose(x));
  const before = bytesHeld();
  x.dispose();
  for (const view of views.slice(1)) view.dispose();
  assert.equal(bytesHeld(), before);
  assert.deepEqual([...views[0].dataSync()], [1, 2]);
  views[0].dispose();
  assert.equal(bytesHeld(), before - 8);
});
