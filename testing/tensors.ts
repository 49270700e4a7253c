/** Arbitraries of shapes, element types, axes and tensors, views included. */

import { type Backend, getBackend } from "../tensor/backend.ts";
import { tensor } from "../tensor/create.ts";
import { type DType, dtypes, type HostArray, hostArray, isFloat, roundTo } from "../tensor/dtype.ts";
import { ShapeError, show, ValueError } from "../tensor/errors.ts";
import { broadcastTo, permute, slice } from "../tensor/movement.ts";
import { forEachOffset } from "../tensor/op.ts";
import { broadcastLayout, type Layout, type Shape, sizeOf, stridesOf } from "../tensor/shape.ts";
import type { Tensor } from "../tensor/tensor.ts";
import { Arbitrary, constant, elementOf, integer, real } from "./arbitrary.ts";
import { type Distribution, Random, Source } from "./choices.ts";

/** The shapes of {@link arbShape}. */
export interface ShapeOptions {
  /** The fewest axes, 0 by default. */
  readonly minRank?: number;
  /** The most axes, 4 by default. */
  readonly maxRank?: number;
  /** The most elements, 256 by default. */
  readonly maxSize?: number;
  /** Whether axes may have length zero, as is the default. */
  readonly zeros?: boolean;
}

/**
 * A shape. Axes of length 1 and, unless `zeros` is false, of length 0 come up often; a shape of ones is simplest.
 *
 * @throws {ValueError} unless 0 ≤ `minRank` ≤ `maxRank` and `maxSize` is at least 1
 *
 * @example
 * ```ts
 * import { arbShape, check } from "@flashtape/flashtape/testing";
 *
 * await check([arbShape({ maxRank: 3, maxSize: 64 })], (shape) => shape.reduce((size, n) => size * n, 1) <= 64);
 * ```
 */
export function arbShape(
  { minRank = 0, maxRank = Math.max(4, minRank), maxSize = 256, zeros = true }: ShapeOptions = {},
): Arbitrary<number[]> {
  if (![minRank, maxRank, maxSize].every(Number.isSafeInteger) || minRank < 0 || maxRank < minRank || maxSize < 1) {
    throw new ValueError(
      "arbShape",
      `needs whole numbers 0 ≤ minRank ≤ maxRank and maxSize ≥ 1: got ${minRank}, ${maxRank}, ${maxSize}`,
    );
  }
  return new Arbitrary((source) => {
    const rank = minRank + source.draw(maxRank - minRank);
    const shape: number[] = [];
    for (let left = maxSize; shape.length < rank;) {
      // Of the axes still to come, each gets about the same share of the elements that are left.
      const share = Math.ceil(2 * left ** (1 / (rank - shape.length)));
      const length = drawLength(source, left, zeros, (random) => {
        const kind = random.upTo(15);
        if (kind < 2) return kind === 0 ? 0 : left;
        return kind < 4 ? 1 : 1 + random.upTo(Math.min(left, share) - 1);
      });
      shape.push(length);
      left = Math.floor(left / Math.max(1, length));
    }
    return shape;
  });
}

/**
 * Draws a length up to `most`; 1 is simplest, then 0 where it is allowed, then 2, 3, …
 *
 * @param pick a fresh length
 */
export function drawLength(source: Source, most: number, zeros: boolean, pick: (random: Random) => number): number {
  if (!zeros) return 1 + source.draw(most - 1, (random) => Math.max(1, pick(random)) - 1);
  const swapped = (n: number) => n < 2 ? 1 - n : n;
  return swapped(source.draw(most, (random) => swapped(pick(random))));
}

/**
 * Two shapes that broadcast to a common one: axes are missing in front, or 1, on either side.
 *
 * @example
 * ```ts
 * import { arbBroadcastable, arbTensor, check, tuple } from "@flashtape/flashtape/testing";
 * import { add } from "@flashtape/flashtape";
 *
 * const pair = arbBroadcastable().chain(([a, b]) => tuple(arbTensor({ shape: a }), arbTensor({ shape: b })));
 * await check([pair], ([x, y]) => add(x, y).rank === Math.max(x.rank, y.rank));
 * ```
 */
export function arbBroadcastable(options: ShapeOptions = {}): Arbitrary<[number[], number[]]> {
  const whole = arbShape(options);
  return new Arbitrary((source) => {
    const shape = whole.draw(source);
    const part = (inner: Source) => {
      const kept = inner.draw(3) === 0 ? shape.slice(inner.draw(shape.length)) : shape;
      return kept.map((n) => inner.draw(3) === 1 ? 1 : n);
    };
    return [source.group(part), source.group(part)];
  });
}

/**
 * An axis of a shape, counted from the front or, negative, from the end.
 *
 * @throws {ShapeError} when the shape has no axes: draw it with `minRank: 1`
 *
 * @example
 * ```ts
 * import { arbAxis, arbTensor, arbShape, assertClose, check } from "@flashtape/flashtape/testing";
 * import { softmax, sum } from "@flashtape/flashtape";
 *
 * const shape = arbShape({ minRank: 1, zeros: false });
 * await check([arbTensor({ shape }).with((x) => arbAxis(x.shape))], async ([x, axis]) => {
 *   await assertClose(sum(softmax(x, { axis }), { axis }), 1);
 * });
 * ```
 */
export function arbAxis(shape: Shape): Arbitrary<number> {
  if (shape.length === 0) throw new ShapeError("arbAxis", "[] has no axis: draw the shape with { minRank: 1 }");
  return integer(-shape.length, shape.length - 1);
}

/**
 * An element type: one of those given, or of those that the current backend holds. Earlier ones count as simpler.
 *
 * @example
 * ```ts
 * import { arbDType, arbTensor, check } from "@flashtape/flashtape/testing";
 * import { neg } from "@flashtape/flashtape";
 *
 * await check([arbTensor({ dtype: arbDType("f32", "f16", "i32") })], (x) => neg(x).dtype === x.dtype);
 * ```
 */
export function arbDType(...of: readonly DType[]): Arbitrary<DType> {
  if (of.length > 0) return elementOf(...of);
  return new Arbitrary((source) => elementOf(...byUse.filter((d) => getBackend().dtypes.includes(d))).draw(source));
}

const byUse: readonly DType[] = ["f32", "f16", "bf16", "i32", "u32", "bool", "f64"];

/** What {@link arbTensor} makes. */
export interface TensorOptions {
  /** The shape, or what draws it; {@link arbShape} by default. */
  readonly shape?: Shape | Arbitrary<Shape>;
  /** The element type, or what draws it; f32 by default. */
  readonly dtype?: DType | Arbitrary<DType>;
  /** The smallest value, −8 by default, or 0 for u32; bool takes no notice. */
  readonly min?: number;
  /** The largest value, 8 by default. */
  readonly max?: number;
  /** What draws each element, instead of `min` and `max`: rounded to the type; infinities and NaN are possible this way. */
  readonly elements?: Arbitrary<number>;
  /** Where the tensor lives; the current backend by default. */
  readonly backend?: Backend;
  /**
   * Whether the tensor may be a view, permuted, sliced or broadcast. What a view leaves out is NaN for floats, so that an
   * op which reads it shows. False by default.
   */
  readonly views?: boolean;
}

/**
 * A tensor with finite values. Up to 512 elements they are drawn one by one, with bounds, 0, −0 and ±1 more often than
 * others; larger tensors are filled at random from a single choice, and shrink by their shape alone.
 *
 * The tensor belongs to the case: `property` and `check` dispose it.
 *
 * @throws {ValueError} unless `min` and `max` are finite, in order, and hold a value of the type
 *
 * @example
 * ```ts
 * import { arbShape, arbTensor, assertClose, check } from "@flashtape/flashtape/testing";
 * import { exp, log } from "@flashtape/flashtape";
 *
 * await check([arbTensor({ shape: arbShape({ maxRank: 2 }), views: true })], async (x) => {
 *   await assertClose(log(exp(x)), x, { atol: 1e-4 });
 * }, { runs: 20 });
 * ```
 */
export function arbTensor(options: TensorOptions = {}): Arbitrary<Tensor> {
  return arbTensorData(options).map((data) => data.tensor(options.backend));
}

/**
 * What {@link arbTensor} makes a tensor of, so that the same tensor can be made again: on another backend, to compare
 * two, or with another type.
 *
 * @throws as {@link arbTensor} does
 *
 * @example
 * ```ts
 * import { arbTensorData, assertClose, check } from "@flashtape/flashtape/testing";
 * import { cpu, square, sum } from "@flashtape/flashtape";
 *
 * await check([arbTensorData({ views: true })], async (x) => {
 *   const exact = sum(square(x.tensor(cpu(), "f64")));
 *   await assertClose(sum(square(x.tensor())), exact, { rtol: 1e-5 });
 * });
 * ```
 */
export function arbTensorData(
  { shape = arbShape(), dtype = "f32", min, max, elements, views = false }: TensorOptions = {},
): Arbitrary<TensorData> {
  const shapes = shape instanceof Arbitrary ? shape : constant(shape);
  const types = dtype instanceof Arbitrary ? dtype : constant(dtype);
  return new Arbitrary((source) => {
    const [shape, dtype] = [shapes.draw(source), types.draw(source)];
    const element = elements === undefined ? within(dtype, min, max) : from(elements, dtype);
    const { base, steps } = views ? source.group((inner) => drawView(inner, shape)) : { base: shape, steps: [] };
    const layout = steps.reduce<Layout>((seen, step) => step.layout(seen), rowMajor(base));
    const values = hostArray(dtype, sizeOf(base));
    if (isFloat(dtype)) values.fill(NaN);
    fill(source, layout, values, element);
    return new DrawnTensor(dtype, base, values, steps, layout);
  });
}

/** A tensor yet to be made: its values on the host, and how it sees them. */
export interface TensorData {
  /** Axis lengths. */
  readonly shape: Shape;
  /** The element type. */
  readonly dtype: DType;
  /** The elements in row-major order, f16 and bf16 as the f32 values that they hold. */
  readonly data: HostArray;
  /** The steps from dense values to the view, in words. */
  readonly view: readonly string[];
  /** Makes the tensor, by default on the current backend and with its own element type. */
  tensor(backend?: Backend, dtype?: DType): Tensor;
}

class DrawnTensor implements TensorData {
  readonly shape: Shape;
  readonly dtype: DType;
  readonly data: HostArray;
  readonly view: readonly string[];
  readonly #base: Shape;
  readonly #values: HostArray;
  readonly #steps: readonly ViewStep[];

  constructor(dtype: DType, base: Shape, values: HostArray, steps: readonly ViewStep[], layout: Layout) {
    this.shape = layout.shape;
    this.dtype = dtype;
    this.data = hostArray(dtype, sizeOf(layout.shape));
    this.view = steps.map((step) => step.name);
    this.#base = base;
    this.#values = values;
    this.#steps = steps;
    let i = 0;
    forEachOffset(layout, (at) => {
      this.data[i++] = values[at];
    });
  }

  tensor(backend: Backend = getBackend(), dtype: DType = this.dtype): Tensor {
    const base = tensor(this.#values, { shape: this.#base, dtype, backend });
    return this.#steps.reduce((x, step) => step.tensor(x), base);
  }
}

/** One step from a tensor to a view of it. */
interface ViewStep {
  /** What it does, in words. */
  readonly name: string;
  /** The view. */
  tensor(x: Tensor): Tensor;
  /** Where the view's elements lie, worked out apart from the ops. */
  layout(x: Layout): Layout;
}

const MOST_STEPS = 2;

/** Draws a shape and steps that lead from it to a view of `shape`, last step first. */
function drawView(source: Source, shape: Shape): { base: Shape; steps: ViewStep[] } {
  const steps: ViewStep[] = [];
  let base = shape;
  const count = source.draw(MOST_STEPS);
  for (let i = 0; i < count; i++) {
    const { base: from, step } = source.group((inner) => kinds[inner.draw(kinds.length - 1)](inner, base));
    steps.unshift(step);
    base = from;
  }
  return { base, steps };
}

type Backwards = (source: Source, shape: Shape) => { base: Shape; step: ViewStep };

/** Ways to arrive at a view of a shape. */
const kinds: readonly Backwards[] = [
  (source, shape) => {
    const rest = shape.map((_, axis) => axis);
    const axes = shape.map(() => rest.splice(source.draw(rest.length - 1), 1)[0]);
    const base = axes.map((_, axis) => shape[axes.indexOf(axis)]);
    const layout = ({ strides, offset }: Layout) => ({ shape, strides: axes.map((a) => strides[a]), offset });
    return { base, step: { name: `permute ${show(axes)}`, tensor: (x) => permute(x, axes), layout } };
  },
  (source, shape) => {
    const few: Distribution = (random, bound) => random.upTo(1) === 0 ? 0 : random.upTo(bound);
    const cuts = shape.map((n) => {
      const [before, stride, after] = [source.draw(2, few), 1 + source.draw(2, few), source.draw(2, few)];
      return { before, stride, end: before + Math.max(0, (n - 1) * stride + 1), after };
    });
    const [begin, end, strides] = [cuts.map((c) => c.before), cuts.map((c) => c.end), cuts.map((c) => c.stride)];
    const base = cuts.map((c) => c.end + c.after);
    const layout = (x: Layout) => ({
      shape,
      strides: x.strides.map((s, axis) => s * strides[axis]),
      offset: begin.reduce((offset, from, axis) => offset + from * x.strides[axis], x.offset),
    });
    const name = `slice ${show(begin)} to ${show(end)} by ${show(strides)}`;
    return { base, step: { name, tensor: (x) => slice(x, begin, end, { strides }), layout } };
  },
  (source, shape) => {
    const kept = source.draw(2) === 1 ? shape.slice(source.draw(shape.length)) : shape;
    const base = kept.map((n) => source.draw(1) === 1 ? 1 : n);
    const layout = (x: Layout) => broadcastLayout(x, shape);
    return { base, step: { name: `broadcast to ${show(shape)}`, tensor: (x) => broadcastTo(x, shape), layout } };
  },
];

function rowMajor(shape: Shape): Layout {
  return { shape, strides: stridesOf(shape), offset: 0 };
}

/** Up to here, elements are drawn one by one. */
const MOST_ELEMENTS = 512;

/** Draws the elements that a layout sees. */
function fill(source: Source, layout: Layout, values: HostArray, element: Element): void {
  const size = sizeOf(layout.shape);
  const pick: Distribution = (random, bound) => size <= MOST_ELEMENTS ? 0 : 1 + random.upTo(bound - 1);
  const block = source.draw(2 ** 32, pick);
  const random = new Random(block, 0);
  const seen = new Set<number>();
  source.group((inner) =>
    forEachOffset(layout, (at) => {
      if (seen.has(at)) return;
      seen.add(at);
      values[at] = block === 0 ? element.draw(inner) : element.any(random);
    })
  );
}

/** How the elements of a type are drawn: one by one, or many from a generator. */
interface Element {
  draw(source: Source): number;
  any(random: Random): number;
}

/** Elements of an arbitrary, rounded to a type. */
function from(elements: Arbitrary<number>, dtype: DType): Element {
  const cell = hostArray(dtype, 1);
  const draw = (source: Source) => {
    cell[0] = elements.draw(source);
    roundTo(dtype, cell);
    return cell[0];
  };
  return { draw, any: (random) => draw(new Source(random)) };
}

function within(dtype: DType, min = dtype === "u32" ? 0 : -8, max = 8): Element {
  if (!Number.isFinite(min) || !Number.isFinite(max) || min > max) {
    throw new ValueError("arbTensor", `needs finite min ≤ max: got min ${min}, max ${max}`);
  }
  if (dtype === "bool") return { draw: (source) => source.draw(1), any: (random) => random.upTo(1) };
  if (!isFloat(dtype)) {
    const limits = dtype === "u32" ? [0, 2 ** 32 - 1] : [-(2 ** 31), 2 ** 31 - 1];
    const [low, high] = [Math.ceil(Math.max(min, limits[0])), Math.floor(Math.min(max, limits[1]))];
    if (low > high) throw new ValueError("arbTensor", `no ${dtype} lies from min ${min} to max ${max}`);
    const each = integer(low, high);
    return { draw: (source) => each.draw(source), any: (random) => low + random.upTo(high - low) };
  }
  const rounded = rounding(dtype, min, max);
  const each = real(min, max, []);
  return {
    draw: (source) => rounded(each(source)),
    any: (random) => rounded(min + random.unit() * (max - min)),
  };
}

/** Rounds to the nearest value of a float type that does not leave [min, max]. */
function rounding(dtype: DType, min: number, max: number): (x: number) => number {
  const cell = hostArray(dtype, 1);
  const nearest = (x: number) => {
    cell[0] = x;
    roundTo(dtype, cell);
    return cell[0];
  };
  const isInside = (x: number) => x >= min && x <= max;
  const inwards = (x: number) => {
    const value = nearest(x);
    if (isInside(value)) return value;
    // One unit in the last place back.
    const step = Math.max(Math.abs(x) * dtypes[dtype].epsilon, 2 ** -126);
    return nearest(value > max ? x - step : x + step);
  };
  const [lowest, highest] = [inwards(min), inwards(max)];
  if (!isInside(lowest) || !isInside(highest)) {
    throw new ValueError("arbTensor", `no ${dtype} lies from min ${min} to max ${max}`);
  }
  return (x) => {
    const value = inwards(x);
    return isInside(value) ? value : lowest;
  };
}
