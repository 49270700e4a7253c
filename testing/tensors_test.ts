import assert from "node:assert/strict";
import { cpu } from "../tensor/cpu.ts";
import { type DType, dtypes, isFloat } from "../tensor/dtype.ts";
import { broadcastShapes, isDense, sizeOf } from "../tensor/shape.ts";
import { scope } from "../tensor/scope.ts";
import { add } from "../tensor/elementwise.ts";
import { sum } from "../tensor/reduce.ts";
import { type Arbitrary, elementOf } from "./arbitrary.ts";
import { Random, SIMPLEST, Source } from "./choices.ts";
import { PropertyError, settingsOf, tryLaw } from "./property.ts";
import { arbAxis, arbBroadcastable, arbDType, arbShape, arbTensor, arbTensorData } from "./tensors.ts";

function samples<T>(arbitrary: Arbitrary<T>, count = 300): T[] {
  return Array.from({ length: count }, (_, i) => arbitrary.draw(new Source(new Random(1, i))));
}

async function counterexample<T>(
  arbitrary: Arbitrary<T>,
  law: (value: T) => boolean | Promise<boolean>,
  seed: number,
): Promise<string> {
  try {
    await tryLaw(undefined, [arbitrary], law, settingsOf({ seed, runs: 1000 }, () => undefined));
  } catch (error) {
    if (error instanceof PropertyError) return error.counterexample[0];
    throw error;
  }
  throw new Error("the law was expected to fail");
}

const all = Object.keys(dtypes) as DType[];

Deno.test("arbShape() keeps to its bounds and covers ranks, ones and zeros", () => {
  const shapes = samples(arbShape(), 1000);
  assert.ok(shapes.every((shape) => shape.length <= 4 && sizeOf(shape) <= 256));
  for (const rank of [0, 1, 2, 3, 4]) assert.ok(shapes.some((shape) => shape.length === rank));
  assert.ok(shapes.some((shape) => shape.includes(0)) && shapes.some((shape) => shape.includes(1)));
  assert.ok(shapes.some((shape) => sizeOf(shape) > 64) && shapes.some((shape) => shape.some((n) => n === 256)));
  const solid = samples(arbShape({ minRank: 2, maxRank: 3, maxSize: 10, zeros: false }));
  assert.ok(
    solid.every((shape) => shape.length >= 2 && shape.length <= 3 && sizeOf(shape) >= 1 && sizeOf(shape) <= 10),
  );
});

Deno.test("arbShape() refuses bounds that hold no shape", () => {
  for (const options of [{ minRank: -1 }, { minRank: 3, maxRank: 2 }, { maxSize: 0 }, { maxRank: NaN }]) {
    assert.throws(() => arbShape(options), { name: "ValueError", message: /^\[arbShape\]/ });
  }
});

Deno.test("arbBroadcastable() gives shapes that broadcast, on either side", () => {
  const pairs = samples(arbBroadcastable());
  for (const [a, b] of pairs) broadcastShapes("test", a, b);
  assert.ok(pairs.some(([a, b]) => a.length < b.length) && pairs.some(([a, b]) => a.length > b.length));
  assert.ok(pairs.some(([a, b]) => a.length === b.length && String(a) !== String(b)));
});

Deno.test("arbAxis() gives every axis from both ends, and refuses a scalar", () => {
  assert.deepEqual([...new Set(samples(arbAxis([4, 5])))].toSorted((a, b) => a - b), [-2, -1, 0, 1]);
  assert.throws(() => arbAxis([]), { name: "ShapeError", message: /minRank: 1/ });
});

Deno.test("arbDType() gives the types named, else all that the backend holds", () => {
  assert.deepEqual(new Set(samples(arbDType("f16", "i32"))), new Set(["f16", "i32"]));
  assert.equal(arbDType().draw(new Source(SIMPLEST)), "f32");
});

Deno.test("arbTensor() holds the values that it says, for every type, views included", async () => {
  for (const dtype of all) {
    let views = 0;
    for (const drawn of samples(arbTensorData({ dtype, views: true }), 150)) {
      await scope(async () => {
        const x = drawn.tensor(cpu());
        assert.deepEqual([x.shape, x.dtype], [drawn.shape, dtype]);
        assert.deepEqual([...await x.data()], [...drawn.data], `${dtype} ${drawn.view}`);
        if (!isDense(x)) views++;
      });
    }
    assert.ok(views > 20, `${views} views`);
  }
});

Deno.test("arbTensor() draws permuted, sliced and broadcast views", () => {
  const names = samples(arbTensorData({ views: true })).flatMap((drawn) =>
    drawn.view.map((step) => step.split(" ")[0])
  );
  assert.deepEqual(new Set(names), new Set(["permute", "slice", "broadcast"]));
  assert.deepEqual(new Set(samples(arbTensorData()).flatMap((drawn) => drawn.view)), new Set());
});

Deno.test("arbTensor() keeps its values in range after rounding to their type", () => {
  const check = (dtype: DType, min: number, max: number) => {
    for (const { data } of samples(arbTensorData({ dtype, min, max }), 60)) {
      assert.ok(data.every((x) => x >= min && x <= max), `${dtype} ${min} ${max}: ${data}`);
    }
  };
  for (const dtype of all) {
    if (dtype !== "bool") { for (const [min, max] of [[0.1, 1.7], [0, 100.7]]) check(dtype, min, max); }
    if (isFloat(dtype)) { for (const [min, max] of [[1.001, 1.9], [-3.3, 3.3], [-0.7, -0.1]]) check(dtype, min, max); }
  }
  check("i32", -3.3, 3.3);
});

Deno.test("arbTensor() refuses ranges that hold no value of the type", () => {
  const draw = (options: Parameters<typeof arbTensorData>[0]) => () =>
    arbTensorData(options).draw(new Source(SIMPLEST));
  assert.throws(draw({ min: 1, max: 0 }), { name: "ValueError", message: /min 1, max 0/ });
  assert.throws(draw({ dtype: "i32", min: 0.2, max: 0.8 }), { name: "ValueError", message: /no i32/ });
  assert.throws(draw({ dtype: "u32", min: -2, max: -1 }), { name: "ValueError", message: /no u32/ });
  assert.throws(draw({ dtype: "f16", min: 1.0001, max: 1.0002 }), { name: "ValueError", message: /no f16/ });
});

Deno.test("arbTensor() reaches its bounds, both zeros, and values from a single choice", () => {
  const values = samples(arbTensorData(), 300).flatMap(({ data }) => [...data]);
  for (const edge of [-8, 8, 1, -1, 0, -0]) assert.ok(values.some((x) => Object.is(x, edge)), `${edge}`);
  const [large] = samples(arbTensorData({ shape: [4000] }), 1);
  assert.ok(new Set(large.data).size > 3000);
});

Deno.test("a false law over tensors shrinks to the smallest shape and values", async () => {
  for (let seed = 0; seed < 10; seed++) {
    const small = arbTensor({ shape: arbShape({ maxSize: 64 }), backend: cpu() });
    const below = async (x: { data(): Promise<ArrayLike<number>> }) => Array.from(await x.data()).every((v) => v < 5);
    const shown = await counterexample(small, below, seed);
    assert.equal(shown, "f32 [] 5", `seed ${seed}`);
    const rank = await counterexample(small, (x) => x.rank < 2 || x.size < 6, seed);
    assert.match(rank, /^f32 \[(1,6|6,1|2,3|3,2)\]/, `seed ${seed}: ${rank}`);
    const view = await counterexample(arbTensor({ views: true, backend: cpu() }), isDense, seed);
    assert.match(view, /strides/);
  }
});

Deno.test("tensors made by a case are disposed when it ends, also when it fails", async () => {
  const before = cpu().memory().current;
  const settings = settingsOf({ runs: 30, seed: 1 }, () => undefined);
  const arbitrary = arbTensor({ backend: cpu(), views: true });
  await tryLaw(undefined, [arbitrary], async (x) => void await sum(add(x, x)).data(), settings);
  assert.equal(cpu().memory().current, before);
  await assert.rejects(tryLaw(undefined, [arbitrary], async (x) => (await add(x, x).data()).length < 3, settings));
  assert.equal(cpu().memory().current, before);
});

Deno.test("arbTensorData() draws elements from an arbitrary, rounded to the type, in small and large tensors", () => {
  const elements = elementOf(0.1, NaN, -Infinity);
  for (const shape of [[100], [1000]]) {
    const [{ data }] = samples(arbTensorData({ shape, dtype: "bf16", elements }), 1);
    assert.deepEqual(new Set(data), new Set([0.10009765625, NaN, -Infinity]));
  }
});
