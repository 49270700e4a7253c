/** Shapes: sizes, strides, axes and broadcasting. */
import { ShapeError, show } from "./errors.ts";

/** Axis lengths, outermost first. `[]` is a scalar; zero-length axes are legal. */
export type Shape = readonly number[];

/** How a tensor lies in its storage: element strides (0 where broadcast) and the offset of its first element. */
export interface Layout {
  /** Axis lengths, outermost first. */
  readonly shape: Shape;
  /** Elements to step over along each axis. */
  readonly strides: readonly number[];
  /** The first element's place. */
  readonly offset: number;
}

/** The number of elements. */
export function sizeOf(shape: Shape): number {
  let size = 1;
  for (let i = 0; i < shape.length; i++) size *= shape[i];
  return size;
}

/** Row-major strides. */
export function stridesOf(shape: Shape): number[] {
  const strides = new Array<number>(shape.length);
  for (let i = shape.length - 1, step = 1; i >= 0; i--) {
    strides[i] = step;
    step *= shape[i];
  }
  return strides;
}

/** Whether the elements lie in row-major order without gaps, whatever the offset. */
export function isDense({ shape, strides }: Layout): boolean {
  let step = 1;
  for (let i = shape.length - 1; i >= 0; i--) {
    if (shape[i] === 0) return true;
    if (shape[i] !== 1 && strides[i] !== step) return sizeOf(shape) === 0;
    step *= shape[i];
  }
  return true;
}

/** Whether two shapes are the same. */
export function sameShape(a: Shape, b: Shape): boolean {
  if (a === b) return true;
  if (a.length !== b.length) return false;
  for (let i = 0; i < a.length; i++) if (a[i] !== b[i]) return false;
  return true;
}

/**
 * Checks that a value is a shape.
 * @throws {ShapeError} when an axis is not a whole number of at least 0
 */
export function checkShape(op: string, shape: Shape): Shape {
  const bad = shape.find((n) => !Number.isSafeInteger(n) || n < 0);
  if (bad !== undefined) {
    throw new ShapeError(op, `axis lengths are whole numbers of at least 0: ${show(shape)} (${bad})`);
  }
  if (!Number.isSafeInteger(sizeOf(shape))) throw new ShapeError(op, `${show(shape)} has too many elements`);
  return shape;
}

/**
 * The axis as an index from the front.
 * @throws {ShapeError} when `shape` has no such axis
 */
export function axisOf(op: string, shape: Shape, axis: number): number {
  const index = axis < 0 ? axis + shape.length : axis;
  if (!Number.isInteger(axis) || index < 0 || index >= shape.length) {
    throw new ShapeError(op, `axis ${axis} does not exist in ${show(shape)} (${shape.length} axes)`);
  }
  return index;
}

/** Several axes as sorted indices from the front; `undefined` means all. */
export function axesOf(op: string, shape: Shape, axis?: number | readonly number[]): number[] {
  if (axis === undefined) return shape.map((_, i) => i);
  const axes = (typeof axis === "number" ? [axis] : axis).map((a) => axisOf(op, shape, a)).sort((a, b) => a - b);
  const twice = axes.find((a, i) => axes[i + 1] === a);
  if (twice !== undefined) throw new ShapeError(op, `axis ${twice} of ${show(shape)} is named twice`);
  return axes;
}

/**
 * The shape that both broadcast to, by NumPy's rule.
 * @throws {ShapeError} when they do not
 */
export function broadcastShapes(op: string, a: Shape, b: Shape): Shape {
  if (sameShape(a, b)) return a;
  const rank = Math.max(a.length, b.length);
  const out = new Array<number>(rank);
  for (let i = 1; i <= rank; i++) {
    const m = a[a.length - i] ?? 1, n = b[b.length - i] ?? 1;
    if (m !== n && m !== 1 && n !== 1) {
      throw new ShapeError(op, `shapes do not broadcast: left ${show(a)}, right ${show(b)} (${m} ≠ ${n})`);
    }
    out[rank - i] = m === 1 ? n : m;
  }
  return out;
}

/** The layout of `x` seen at the larger shape: stride 0 along axes that repeat. */
export function broadcastLayout(x: Layout, shape: Shape): Layout {
  const lead = shape.length - x.shape.length;
  const strides = shape.map((n, i) => i < lead || (x.shape[i - lead] === 1 && n !== 1) ? 0 : x.strides[i - lead]);
  return { shape, strides, offset: x.offset };
}

/**
 * The layout of `x` seen with another shape of the same size, when no copy is needed; otherwise null.
 *
 * Old and new axes are matched in groups of equal size; a group can be regrouped when its old axes are dense among
 * themselves.
 */
export function reshapeLayout(x: Layout, shape: Shape): Layout | null {
  if (sizeOf(shape) === 0) return { shape, strides: stridesOf(shape), offset: x.offset };
  const old = x.shape.map((n, i) => [n, x.strides[i]] as const).filter(([n]) => n !== 1);
  const strides = new Array<number>(shape.length);
  let o = 0, n = 0;
  while (n < shape.length) {
    if (o === old.length || shape[n] === 1) {
      strides[n++] = 1; // only axes of length 1 are left, or this is one
      continue;
    }
    const firstOld = o, firstNew = n;
    let olds = old[o++][0], news = shape[n++];
    while (olds !== news) {
      if (olds < news) olds *= old[o++][0];
      else news *= shape[n++];
    }
    for (let i = firstOld; i + 1 < o; i++) if (old[i][1] !== old[i + 1][0] * old[i + 1][1]) return null;
    for (let i = n - 1, step = old[o - 1][1]; i >= firstNew; i--) {
      strides[i] = step;
      step *= shape[i];
    }
  }
  return { shape, strides, offset: x.offset };
}

/**
 * Fewest axes that walk several layouts of one shape in step: axes of length 1 go, and neighbours merge where every
 * layout runs through both with one stride.
 */
export function collapse(
  shape: Shape,
  layouts: readonly (readonly number[])[],
): { shape: number[]; strides: number[][] } {
  const out: number[] = [], strides: number[][] = layouts.map(() => []);
  for (let i = 0; i < shape.length; i++) {
    if (shape[i] === 1) continue;
    const last = out.length - 1;
    if (last >= 0 && layouts.every((s, j) => strides[j][last] === s[i] * shape[i])) {
      out[last] *= shape[i];
      layouts.forEach((s, j) => strides[j][last] = s[i]);
    } else {
      out.push(shape[i]);
      layouts.forEach((s, j) => strides[j].push(s[i]));
    }
  }
  return { shape: out, strides };
}
