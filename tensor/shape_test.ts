import assert from "node:assert/strict";
import { arbShape, arbTensor, array, compose, elementOf, integer, property } from "../testing/mod.ts";
import "./cpu.ts";
import { ShapeError } from "./errors.ts";
import { forEachOffset } from "./op.ts";
import {
  axesOf,
  axisOf,
  broadcastLayout,
  broadcastShapes,
  checkShape,
  collapse,
  isDense,
  type Layout,
  reshapeLayout,
  type Shape,
  sizeOf,
  stridesOf,
} from "./shape.ts";

function placesOf(layout: Layout): number[] {
  const places: number[] = [];
  forEachOffset(layout, (at) => places.push(at));
  return places;
}

const rowMajor = (shape: Shape): Layout => ({ shape, strides: stridesOf(shape), offset: 0 });

Deno.test("broadcastShapes() repeats axes of length 1 and missing ones, and refuses the rest by both shapes", () => {
  assert.deepEqual(broadcastShapes("add", [3, 1], [2, 1, 4]), [2, 3, 4]);
  assert.deepEqual(broadcastShapes("add", [], [2, 3]), [2, 3]);
  assert.deepEqual(broadcastShapes("add", [0], [1]), [0]);
  assert.throws(
    () => broadcastShapes("add", [2, 3], [4, 3]),
    new ShapeError("add", "shapes do not broadcast: left [2,3], right [4,3] (2 ≠ 4)"),
  );
  assert.throws(() => broadcastShapes("add", [0], [2]), ShapeError);
});

Deno.test("broadcastLayout() steps over nothing along what repeats", () => {
  const column = { shape: [3, 1], strides: [2, 1], offset: 5 };
  assert.deepEqual(placesOf(broadcastLayout(column, [2, 3, 2])), [5, 5, 7, 7, 9, 9, 5, 5, 7, 7, 9, 9]);
});

property("isDense() holds exactly when the places count up by one", [arbTensor({ views: true })], (x) => {
  const places = placesOf(x);
  assert.equal(isDense(x), places.every((at, i) => at === x.offset + i));
});

/** Another shape with the elements of a shape, some axes split and neighbours merged. */
const reshaped = (from: Shape) =>
  compose((draw) => {
    const factors: number[] = [];
    for (let n = sizeOf(from); n > 1;) {
      const factor = [2, 3, 5, 7].find((p) => n % p === 0) ?? n;
      factors.push(factor);
      n /= factor;
    }
    const shape: number[] = [];
    for (const factor of factors.toSorted(() => draw(elementOf(-1, 1)))) {
      const kind = draw(integer(0, 4));
      if (kind === 0) shape.push(1);
      if (kind < 3 || shape.length === 0) shape.push(factor);
      else shape[shape.length - 1] *= factor;
    }
    return shape;
  });

/** All strides that could step through the places of a layout, found by looking at the places alone. */
function bruteForce(places: readonly number[], shape: Shape): number[] | null {
  const steps = stridesOf(shape);
  const strides = shape.map((n, i) => n === 1 ? 0 : places[steps[i]] - places[0]);
  const regular = placesOf({ shape, strides, offset: places[0] }).every((at, i) => at === places[i]);
  return regular ? strides : null;
}

property("reshapeLayout() sees the same places in the same order, and needs a copy only where no strides would do", [
  arbTensor({ shape: arbShape({ zeros: false, maxRank: 4 }), views: true }).with((x) => reshaped(x.shape)),
], ([x, shape]) => {
  const layout = reshapeLayout(x, shape), expected = bruteForce(placesOf(x), shape);
  assert.equal(layout === null, expected === null);
  if (layout !== null) assert.deepEqual(placesOf(layout), placesOf(x));
}, { runs: 500 });

const layoutsOfOneShape = compose((draw) => {
  const shape = draw(arbShape({ maxRank: 4, maxSize: 60 }));
  const layouts = draw(array(arbTensor({ shape, views: true }), { minLength: 1, maxLength: 3 }));
  return { shape, layouts };
});

property("collapse() keeps every layout's places in order, and merges all axes of dense ones", [
  layoutsOfOneShape,
], ({ shape, layouts }) => {
  const { shape: fewer, strides } = collapse(shape, layouts.map((x) => x.strides));
  layouts.forEach((x, i) => {
    assert.deepEqual(placesOf({ shape: fewer, strides: strides[i], offset: x.offset }), placesOf(x));
  });
  assert.ok(collapse(shape, [stridesOf(shape)]).shape.length <= 1 || sizeOf(shape) === 0);
});

Deno.test("axes count from either end, are named once, and must exist", () => {
  assert.equal(axisOf("sum", [2, 3, 4], -1), 2);
  assert.deepEqual(axesOf("sum", [2, 3, 4], [-1, 0]), [0, 2]);
  assert.deepEqual(axesOf("sum", [2, 3]), [0, 1]);
  assert.throws(() => axisOf("sum", [2, 3], 2), /\[sum\] axis 2 does not exist in \[2,3\] \(2 axes\)/);
  assert.throws(() => axisOf("sum", [], 0), ShapeError);
  assert.throws(() => axisOf("sum", [2], 0.5), ShapeError);
  assert.throws(() => axesOf("sum", [2, 3], [0, -2]), /axis 0 of \[2,3\] is named twice/);
});

Deno.test("checkShape() refuses lengths that are no lengths, and sizes that no number holds", () => {
  assert.deepEqual(checkShape("zeros", [0, 3]), [0, 3]);
  for (const bad of [[-1], [1.5], [NaN], [2 ** 30, 2 ** 30]]) assert.throws(() => checkShape("zeros", bad), ShapeError);
  assert.deepEqual(placesOf(rowMajor([2, 0, 3])), []);
});
