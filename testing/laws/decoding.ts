/** Samples of the ops that run a decoder: projections with what stands around them, and the way into the cache. */
import { type DType, hostArray, roundTo } from "../../tensor/dtype.ts";
import { DTypeError, IndexError, ShapeError, ValueError } from "../../tensor/errors.ts";
import { decodeAttention, decodeAttentionInputs, type DecodeAttentionParams } from "../../tensor/decode_attention.ts";
import { dense, type NdArray, ndarray } from "../../tensor/op.ts";
import { project, projectInputs, type ProjectOptions, type ProjectParams } from "../../tensor/project.ts";
import {
  rotaryAppend,
  rotaryAppendInputs,
  rotaryAppendOp,
  type RotaryAppendParams,
} from "../../tensor/rotary_append.ts";
import type { Tensor } from "../../tensor/tensor.ts";
import { boolean, compose, elementOf, integer, oneOf } from "../arbitrary.ts";
import { arbTensorData } from "../tensors.ts";
import { arbInput, callOf, few, given, type Naive, onUnits, plain, refuse, type Sample, typeOf } from "./sample.ts";
import { f } from "./elementwise.ts";
import { naiveSums, type Sum } from "./reduce.ts";

const stored = ["f32", "f16", "bf16"] as const, finite = { range: [-2, 2], specials: [0] } as const;

/** What a kernel is built for. */
const builds = compose((draw) => {
  const gated = draw(boolean()), normed = draw(boolean());
  return {
    ...{ gated, normed, count: gated ? 2 : draw(elementOf(1, 2, 3)), residual: draw(boolean()) },
    ...{ dtype: draw(elementOf(...stored)), norm: draw(elementOf(...stored)), rows: draw(elementOf(1, 2, 3, 8)) },
  };
});

const naiveProject = (sum: Sum, units = false): Naive<ProjectParams> => (inputs, params, y) => {
  const { x, norm, weights, residual } = projectInputs(inputs, params), columns = y.shape.at(-1)!;
  const length = x.shape.at(-1)!, rows = y.data.length / Math.max(1, columns);
  for (let row = 0; row < rows; row++) {
    let n = Array.from(x.data.subarray(row * length, (row + 1) * length));
    if (norm !== undefined) {
      const scale = f(1 / f(Math.sqrt(f(f(sum(n.map((v) => f(v * v))) / length) + f(params.eps!)))));
      n = n.map((v, i) => f(f(v * scale) * norm.data[i]));
    }
    if (units) n = n.map((v) => onUnits(weights[0].dtype, v));
    const dots = weights.flatMap(({ shape, data }) =>
      Array.from({ length: shape[0] }, (_, j) => sum(n.map((v, i) => f(v * data[j * length + i]))))
    );
    for (let j = 0; j < columns; j++) {
      const gate = dots[j];
      const value = params.gated ? f(f(gate / f(1 + f(Math.exp(-gate)))) * dots[columns + j]) : gate;
      y.data[row * columns + j] = residual ? f(value + residual.data[row * columns + j]) : value;
    }
  }
};

const projectCalls = (held: readonly DType[]) =>
  compose((draw) => {
    const { gated, normed, count, residual, dtype, norm, rows } = draw(few(builds, 10));
    const wide = draw(typeOf(held, ["f32", "f32", "f64"])); // f64 has no kernel
    const k = draw(elementOf(8, 24, 200, draw(integer(0, 40)))), n = draw(integer(0, 12));
    // One row more or less than the kernel has room for, or so many that it is another one.
    const many = draw(integer(0, 7)) === 7, lead = many ? [3, 5] : draw(elementOf([rows], [1, rows], [rows, 1]));
    const sizes = Array.from({ length: count }, () => gated ? n : draw(integer(0, 12)));
    const shape = [...lead, gated ? n : sizes.reduce((a, b) => a + b, 0)];
    return callOf([
      draw(arbInput([...lead, k], wide, finite)),
      ...(normed ? [draw(arbInput([k], norm, finite))] : []),
      ...sizes.map((size) => draw(arbInput([size, k], dtype, finite))),
      ...(residual ? [draw(arbInput(shape, wide, finite))] : []),
    ], { eps: normed ? draw(elementOf(1e-6, 1e-2)) : null, count, gated, residual });
  });

const by = (options: ProjectOptions = {}) => (x: Tensor, ...weights: Tensor[]) => project(x, weights, options);

/** Builds of the other kernel. */
const appends = compose((draw) => ({
  ...{ cache: draw(elementOf(...stored)), positioned: draw(boolean()), paged: draw(boolean()) },
}));

/** Whole numbers as i32. */
const whole = (shape: readonly number[], min: number, max: number) =>
  arbTensorData({ shape, dtype: "i32", elements: integer(min, max), views: true });

const appendCalls = (held: readonly DType[]) =>
  compose((draw) => {
    const { cache, positioned, paged } = draw(few(appends, 8)), wide = draw(typeOf(held, ["f32", "f32", "f64"]));
    const batch = draw(integer(1, 3)), count = draw(integer(0, 3)), kvHeads = draw(integer(1, 2));
    const heads = kvHeads * draw(integer(1, 3)), size = 4 * draw(integer(1, 5)), known = draw(integer(1, 9));
    const page = draw(integer(1, 4)), pages = draw(integer(1, 3)), room = paged ? page * pages : page;
    const blocks = batch * pages, order = draw(integer(0, blocks - 1)); // every page of every row has its own block
    const kv = [...(paged ? [blocks, page] : [batch, room]), kvHeads, size];
    const table = Array.from({ length: blocks }, (_, i) => (i + order) % blocks);
    return callOf([
      draw(arbInput(kv, cache, finite)),
      draw(arbInput(kv, cache, finite)),
      draw(arbInput([batch, count, (heads + 2 * kvHeads) * size], wide, finite)),
      draw(arbInput([known, size / 2], wide, { range: [-1, 1], specials: [0] })),
      draw(arbInput([known, size / 2], wide, { range: [-1, 1], specials: [0] })),
      draw(whole([batch], -2, room + 1)),
      ...(positioned ? [draw(whole([batch, count], -1, known))] : []),
      ...(paged ? [draw(given(table, [batch, pages], "i32"))] : []),
    ], { heads, positioned, paged });
  });

/** In f32: the rotation's two products and their sum are rounded apart. */
const naiveAppend: Naive<RotaryAppendParams> = (inputs, params, k, v, q) => {
  const { qkv, cos, sin, kCache, lengths, positions } = rotaryAppendInputs(inputs.map(dense), params);
  const [batch, count, width] = qkv.shape, [, , kvHeads, size] = kCache.shape, half = size / 2;
  const turned: NdArray = { ...qkv, data: qkv.data.slice() };
  for (let token = 0; token < batch * count; token++) {
    const at = positions ? positions.data[token] : lengths.data[Math.floor(token / count)] + token % count;
    const inside = at >= 0 && at < cos.shape[0];
    for (let h = 0; h < params.heads + kvHeads; h++) {
      for (let i = 0; i < half; i++) {
        const first = token * width + h * size + i, [x1, x2] = [qkv.data[first], qkv.data[first + half]];
        const [c, s] = inside ? [cos.data[at * half + i], sin.data[at * half + i]] : [NaN, NaN];
        turned.data[first] = f(f(x1 * c) - f(x2 * s));
        turned.data[first + half] = f(f(x2 * c) + f(x1 * s));
      }
    }
  }
  // What is turned already goes its way by angles of 0, at a position that there is.
  const still = (value: number, x: NdArray): NdArray => ({ ...x, data: x.data.slice().fill(value) });
  const [one, zero] = [still(1, cos), still(0, sin)];
  const there: NdArray = {
    shape: [batch, count],
    dtype: "i32",
    strides: [count, 1],
    offset: 0,
    data: new Int32Array(batch * count),
  };
  const rest = inputs.slice(params.positioned ? 7 : 6);
  rotaryAppendOp.reference(
    [...inputs.slice(0, 2), turned, one, zero, lengths, there, ...rest],
    { ...params, positioned: true },
    k,
    v,
    q,
  );
};

/** Few, since each is a kernel: sizes that it takes, and 12, for which it is two; a split one has more keys than a part. */
const decodeBuilds = [
  { cache: "f32", size: 16, group: 2, padded: false, paged: false, split: false },
  { cache: "bf16", size: 64, group: 1, padded: true, paged: false, split: false },
  { cache: "f16", size: 8, group: 3, padded: false, paged: true, split: false },
  { cache: "bf16", size: 12, group: 2, padded: true, paged: true, split: false },
  { cache: "f16", size: 8, group: 1, padded: false, paged: false, split: true },
  { cache: "f32", size: 16, group: 2, padded: true, paged: true, split: true },
] as const;

const decodeCalls = (held: readonly DType[]) =>
  compose((draw) => {
    const { cache, padded, paged, size, group, split } =
      decodeBuilds[draw(integer(0, 11)) < 11 ? draw(integer(0, 3)) : draw(integer(4, 5))];
    const wide = draw(typeOf(held, ["f32", "f32", "f64"])),
      batch = split ? 1 : draw(integer(1, 2)),
      kvHeads = split ? 1 : draw(integer(1, 2));
    const heads = kvHeads * group, page = paged ? 8 : split ? 200 : draw(integer(1, 24));
    const pages = paged ? split ? 25 : draw(integer(1, 4)) : 1, room = page * pages;
    const kv = [...(paged ? [batch * pages, page] : [batch, room]), kvHeads, size];
    const table = Array.from({ length: batch * pages }, (_, i) => (i * 7 + 3) % (batch * pages));
    const apart = table.every((block, i) => table.indexOf(block) === i); // or else in order
    return callOf([
      draw(arbInput(kv, cache, finite)),
      draw(arbInput(kv, cache, finite)),
      draw(arbInput([batch, 1, (heads + 2 * kvHeads) * size], wide, finite)),
      draw(arbInput([room + 2, size / 2], wide, { range: [-1, 1], specials: [0] })),
      draw(arbInput([room + 2, size / 2], wide, { range: [-1, 1], specials: [0] })),
      draw(whole([batch], -1, room + 1)),
      ...(padded ? [draw(whole([batch], 0, room))] : []),
      ...(paged ? [draw(given(apart ? table : [...table.keys()], [batch, pages], "i32"))] : []),
    ], { heads, padded, paged });
  });

const naiveDecode = (sum: Sum): Naive<DecodeAttentionParams> => (inputs, params, k, v, out) => {
  const { lengths, leftpad, blockTable: table } = decodeAttentionInputs(inputs, params),
    [batch, , heads, size] = out.shape;
  const q = ndarray({ shape: out.shape, dtype: "f32" }), n = dense(lengths).data, pads = leftpad && dense(leftpad).data;
  const positions = ndarray({ shape: [batch, 1], dtype: "i32" });
  positions.data.set(Array.from(n, (length, b) => Math.max(0, length - (pads?.[b] ?? 0))));
  const rest = table ? [table] : [];
  naiveAppend([...inputs.slice(0, 6), positions, ...rest], { ...params, positioned: true }, k, v, q);
  const [, page, kvHeads] = k.shape, pages = table?.shape[1] ?? 1, blocks = table && dense(table).data;
  const keep = (x: NdArray) => { // what a cache of 16 bits gives back
    const data = hostArray(x.dtype, x.data.length);
    data.set(x.data);
    roundTo(x.dtype, data);
    return data;
  };
  const [keys, values] = [keep(k), keep(v)];
  for (let b = 0; b < batch; b++) {
    const seen = Array.from({ length: Math.max(0, Math.min(n[b] + 1, page * pages)) }, (_, j) => j)
      .slice(Math.max(0, pads?.[b] ?? 0));
    for (let h = 0; h < heads; h++) {
      const at = (j: number) => {
        const row = blocks ? blocks[b * pages + Math.floor(j / page)] * page + j % page : b * page + j;
        return (row * kvHeads + Math.floor(h * kvHeads / heads)) * size;
      };
      const own = (b * heads + h) * size;
      const scores = seen.map((j) =>
        f(sum(Array.from({ length: size }, (_, i) => f(q.data[own + i] * keys[at(j) + i]))) * f(1 / Math.sqrt(size)))
      );
      const top = Math.max(...scores), odds = scores.map((s) => f(Math.exp(f(s - top)))), total = sum(odds);
      for (let i = 0; i < size; i++) {
        out.data[own + i] = seen.length === 0 ? 0 : f(sum(odds.map((p, n) => f(p * values[at(seen[n]) + i]))) / total);
      }
    }
  }
};

const cached = (dtype: DType = "f32") => [plain([1, 5, 1, 4], dtype), plain([1, 5, 1, 4], dtype)] as const;
const tables = [plain([9, 2]), plain([9, 2])] as const;
const append = (k: Tensor, v: Tensor, qkv: Tensor, cos: Tensor, sin: Tensor, lengths: Tensor) =>
  rotaryAppend(qkv, { k, v }, { heads: 2, cos, sin, lengths });
const at = (n: number) => given([n], [1], "i32");
const decode = (k: Tensor, v: Tensor, qkv: Tensor, cos: Tensor, sin: Tensor, lengths: Tensor, leftpad?: Tensor) =>
  decodeAttention(qkv, { k, v }, { heads: 2, cos, sin, lengths, leftpad });

/** Samples of the ops that run a decoder. */
export const decoding = {
  project: {
    calls: projectCalls,
    accuracy: { kind: "worst", naive: naiveSums.map((sum) => naiveProject(sum)) },
    onUnits: { kind: "worst", naive: naiveSums.map((sum) => naiveProject(sum, true)) },
    smooth: null,
    refused: oneOf(
      refuse(ShapeError, [plain([2, 3]), plain([4, 2])], by()),
      refuse(ShapeError, [plain([2, 3]), plain([3])], by()),
      refuse(ShapeError, [plain([]), plain([2, 1])], by()),
      refuse(ShapeError, [plain([2, 3])], by()),
      refuse(ShapeError, [plain([2, 3]), plain([4, 3])], by({ gated: true })),
      refuse(ShapeError, [plain([2, 3]), plain([4, 3]), plain([5, 3])], by({ gated: true })),
      refuse(
        ShapeError,
        [plain([2, 3]), plain([4, 3]), plain([2])],
        (x, w, weight) => project(x, [w], { norm: { weight, eps: 1 } }),
      ),
      refuse(
        ShapeError,
        [plain([2, 3]), plain([4, 3]), plain([2, 3])],
        (x, w, residual) => project(x, [w], { residual }),
      ),
      refuse(
        ValueError,
        [plain([2, 3]), plain([4, 3]), plain([3])],
        (x, w, weight) => project(x, [w], { norm: { weight, eps: NaN } }),
      ),
      refuse(DTypeError, [plain([2, 3], "f16"), plain([4, 3], "f16")], by()),
      refuse(DTypeError, [plain([2, 3]), plain([4, 3], "i32")], by()),
      refuse(DTypeError, [plain([2, 3]), plain([4, 3]), plain([4, 3], "f16")], by()),
      refuse(
        DTypeError,
        [plain([2, 3]), plain([4, 3]), plain([2, 4], "f16")],
        (x, w, residual) => project(x, [w], { residual }),
      ),
    ),
  } satisfies Sample<ProjectParams>,
  rotaryAppend: {
    calls: appendCalls,
    accuracy: { kind: "each", naive: [naiveAppend] },
    smooth: null,
    refused: oneOf(
      refuse(ShapeError, [...cached(), plain([1, 1, 15]), ...tables, at(0)], append),
      refuse(ShapeError, [...cached(), plain([1, 16]), ...tables, at(0)], append),
      refuse(ShapeError, [...cached(), plain([1, 1, 16]), plain([9, 3]), plain([9, 3]), at(0)], append),
      refuse(ShapeError, [...cached(), plain([2, 1, 16]), ...tables, given([0, 0], [2], "i32")], append),
      refuse(ShapeError, [...cached(), plain([1, 1, 16]), ...tables, given([0, 0], [2], "i32")], append),
      refuse(ShapeError, [plain([1, 5, 1, 6]), plain([1, 5, 1, 6]), plain([1, 1, 24]), ...tables, at(0)], append),
      refuse(DTypeError, [...cached(), plain([1, 1, 16], "f16"), ...tables, at(0)], append),
      refuse(DTypeError, [...cached("i32"), plain([1, 1, 16]), ...tables, at(0)], append),
      refuse(DTypeError, [...cached(), plain([1, 1, 16]), ...tables, plain([1])], append),
      refuse(IndexError, [...cached(), plain([1, 2, 16]), ...tables, at(4)], append),
      refuse(IndexError, [...cached(), plain([1, 1, 16]), ...tables, at(-1)], append),
    ),
  } satisfies Sample<RotaryAppendParams>,
  decodeAttention: {
    leavesZeros: true,
    roundsBetween: true,
    calls: decodeCalls,
    accuracy: { kind: "worst", naive: naiveSums.map(naiveDecode) },
    smooth: null,
    refused: oneOf(
      refuse(ShapeError, [...cached(), plain([1, 2, 16]), ...tables, at(0)], decode),
      refuse(ShapeError, [...cached(), plain([1, 1, 15]), ...tables, at(0)], decode),
      refuse(ShapeError, [...cached(), plain([1, 1, 16]), ...tables, at(0), given([0, 0], [2], "i32")], decode),
      refuse(DTypeError, [...cached(), plain([1, 1, 16]), ...tables, at(0), plain([1])], decode),
      refuse(IndexError, [...cached(), plain([1, 1, 16]), ...tables, at(5)], decode),
      refuse(
        ShapeError,
        [plain([1, 5, 2, 4]), plain([1, 5, 2, 4]), plain([1, 1, 28]), ...tables, at(0)],
        (k, v, qkv, cos, sin, lengths) => decodeAttention(qkv, { k, v }, { heads: 3, cos, sin, lengths }),
      ),
    ),
  } satisfies Sample<DecodeAttentionParams>,
};
