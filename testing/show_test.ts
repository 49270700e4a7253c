import assert from "node:assert/strict";
import { show } from "./show.ts";
import { cpu } from "../tensor/cpu.ts";
import { tensor } from "../tensor/create.ts";
import { transpose } from "../tensor/movement.ts";

Deno.test("show() writes plain values exactly", async () => {
  const value = { a: [1, -0, NaN, Infinity], "b-c": 'x"y', d: null, e: undefined, f: 2n, g: true, h: {} };
  assert.equal(
    await show(value),
    '{ a: [1, -0, NaN, Infinity], "b-c": "x\\"y", d: null, e: undefined, f: 2n, g: true, h: {} }',
  );
});

Deno.test("show() names the kind of what is not plain", async () => {
  class Point {
    constructor(readonly x: number) {}
  }
  assert.equal(await show(new Float32Array([1, 0.5])), "Float32Array(2) [1, 0.5]");
  assert.equal(await show(new Map([["a", new Set([1])]])), 'Map [["a", Set [1]]]');
  assert.equal(await show(new Point(3)), "Point { x: 3 }");
  assert.equal(await show(Math.abs), "[function abs]");
  assert.equal(await show(new TypeError("bad")), "TypeError: bad");
});

Deno.test("show() cuts long lists and deep objects", async () => {
  const shown = await show(Array.from({ length: 100 }, (_, i) => i));
  assert.match(shown, /^\[0, 1, .*47, … 52 more\]$/);
  const loop: Record<string, unknown> = {};
  loop.self = loop;
  assert.match(await show(loop), /…/);
});

Deno.test("show() shows a tensor by dtype, shape and values, and says when it is a view", async () => {
  using x = tensor([[1, 2, 3], [4, 5, 6]], { backend: cpu() });
  assert.equal(await show(x), "f32 [2,3] [[1, 2, 3], [4, 5, 6]]");
  using y = transpose(x);
  assert.equal(await show({ y }), "{ y: f32 [3,2] strides [1,3] offset 0 [[1, 4], [2, 5], [3, 6]] }");
  using empty = tensor([], { shape: [2, 0], backend: cpu() });
  assert.equal(await show(empty), "f32 [2,0] [[], []]");
  using long = tensor(new Float32Array(100), { shape: [10, 10], backend: cpu() });
  assert.match(await show(long), /\[0, 0, 0, 0, 0, 0, 0, 0, … 2 more\], … 5 more\]$/);
});

Deno.test("show() does not read a tensor that was disposed", async () => {
  const x = tensor([1], { backend: cpu() });
  x.dispose();
  assert.match(await show(x), /disposed/);
});
