/**
 * Rotary embedding on [B, S, H, D], read by its strides and written dense.
 *
 *   a head   │ x1 ········ │ x2 ········ │ the rest │     a thread turns a load of pairs, x1[i …] with x2[i …],
 *            0             R             2R         D     or copies a load of the rest; interleaved: half as many pairs.
 *                                                        It does so for two or four heads, whose angles are the same
 *
 * On an H200, [4, 1024, 32, 128] bf16, where a copy takes 0.0217 ms:
 *   v1  a load of pairs a thread, one head               0.0235 ms, interleaved 0.0300
 *   v2  16-byte loads of 16-bit types                    0.0228, 0.0230
 *   v3  8-byte loads, two heads (four when interleaved)  0.0213, 0.0209  ◀ this file
 */
import type { DType } from "../tensor/dtype.ts";
import { rotaryInputs, type RotaryParams } from "../tensor/rotary.ts";
import { sizeOf } from "../tensor/shape.ts";
import { globalIndex, gridFor } from "./elementwise.ts";
import { each, type Kernel, kernel } from "./kernel.ts";
import { copy, type Lowering, type View } from "./lowering.ts";
import { mathFunctions } from "./math.ts";
import { readRow, rowOutput, rowType, writeRow } from "./rows.ts";
import { roundingFunctions } from "./storage.ts";

interface RotaryText {
  readonly dtype: DType;
  readonly vec: 1 | 4;
  readonly interleaved: boolean;
  readonly positioned: boolean;
  /** Heads that a thread turns by the same angles. */
  readonly heads: number;
}

/** Angles of a load of the tables. */
function anglesOf(vec: 1 | 4, interleaved: boolean): 1 | 4 {
  return interleaved ? 1 : vec;
}

const rotary = ({ dtype, vec, interleaved, positioned, heads }: RotaryText): Kernel => {
  const tile = { vec }, output = rowOutput(dtype, tile);
  const angles = anglesOf(vec, interleaved), table = angles === 4 ? "vec4f" : "f32";
  const name = `rotary_v${vec}_h${heads}_${dtype}${interleaved ? "_interleaved" : ""}${positioned ? "_positions" : ""}`;
  return kernel(name, {
    reads: { cosines: table, sines: table, ...(positioned ? { positions: "i32" } : {}), x: rowType(dtype, tile) },
    writes: { y: rowType(output, tile) },
    uniforms: {
      n: "u32",
      units: "u32",
      turns: "u32",
      heads: "u32",
      groups: "u32",
      steps: "u32",
      width: "u32",
      length: "u32",
      x: "u32",
      xBatch: "u32",
      xStep: "u32",
      xHead: "u32",
      loads: "u32",
      cosines: "u32",
      sines: "u32",
      positions: "u32",
      pBatch: "u32",
      pStep: "u32",
      sign: "f32",
    },
  }, () => {
    const adjacent = interleaved && vec > 1, count = adjacent ? vec / 2 : vec;
    const pairs = each(count, (j) => adjacent ? `a_${2 * j} a_${2 * j + 1}` : `a_${j} b_${j}`);
    const entry = (name: string, j: number) =>
      angles === 4 ? `${name}[u.${name} + angle + ${j >> 2}u][${j & 3}]` : `${name}[u.${name} + angle + ${j}u]`;
    const angleText = pairs.map((_, i) =>
      `let c${i} = select(hole, ${entry("cosines", i)}, inside);
    let s${i} = select(hole, u.sign * ${entry("sines", i)}, inside);`
    );
    const turned = pairs.map((pair, i) => {
      const [a, b] = pair.split(" ");
      return `let p${i} = ${a} * c${i} - ${b} * s${i}; let q${i} = ${b} * c${i} + ${a} * s${i};`;
    });
    const p = pairs.map((_, i) => `p${i}`), q = pairs.map((_, i) => `q${i}`);
    const second = interleaved ? "left + 1u" : `left + u.turns`;
    const eachHead = (text: string) =>
      each(heads, (h) =>
        `{ let start = first + ${h}u * u.xHead; let own = (row * u.heads + head + ${h}u) * u.loads;
    ${text} }`).join("\n    ");
    const turnHead = `${readRow(dtype, tile, "x", "start + left", "a").text}
    ${adjacent ? "" : readRow(dtype, tile, "x", `start + ${second}`, "b").text}
    ${turned.join("\n    ")}
    ${
      adjacent
        ? writeRow(output, tile, "y", "own + left", p.flatMap((v, i) => [v, q[i]]))
        : `${writeRow(output, tile, "y", "own + left", p)}
    ${writeRow(output, tile, "y", `own + ${second}`, q)}`
    }`;
    const copyHead = `${readRow(dtype, tile, "x", "start + rest", "a").text}
    ${writeRow(output, tile, "y", "own + rest", each(vec, (j) => `a_${j}`))}`;
    const body = `let t = ${globalIndex};
  if (t >= u.n) { return; }
  let unit = t % u.units;
  let head = t / u.units % u.groups * ${heads}u;
  let row = t / u.units / u.groups;
  let step = row % u.steps;
  let batch = row / u.steps;
  let first = u.x + batch * u.xBatch + step * u.xStep + head * u.xHead;
  if (unit < u.turns) {
    let at = ${positioned ? "u32(positions[u.positions + batch * u.pBatch + step * u.pStep])" : "step"};
    let inside = at < u.length;
    let hole = ft_nan();
    let angle = min(at, u.length - 1u) * u.width + unit * ${count / angles}u;
    let left = ${interleaved && vec === 1 ? "2u * unit" : "unit"};
    ${angleText.join("\n    ")}
    ${eachHead(turnHead)}
  } else {
    let rest = u.loads - u.units + unit;
    ${eachHead(copyHead)}
  }`;
    return `${mathFunctions(body)}
${roundingFunctions(output)}
@compute @workgroup_size(256) fn main(
  @builtin(workgroup_id) group: vec3u, @builtin(num_workgroups) groups: vec3u, @builtin(local_invocation_index) lane: u32,
) {
  ${body}
}`;
  });
};

/** Rotary embedding of each input. */
export function lowerRotary(call: Lowering<RotaryParams>): void {
  const { cos, sin, positions, xs } = rotaryInputs(call.inputs, call.params);
  const tables = [call.dense(cos), call.dense(sin)],
    at = positions === undefined ? [] : [call.dense(positions, 1)];
  xs.forEach((x, i) => turn(call, tables, at, x, call.outputs[i]));
}

/** Threads that keep a large device busy: above them a thread turns several heads. */
const enoughThreads = 1 << 15;

function turn(
  call: Lowering<RotaryParams>,
  tables: readonly View[],
  positions: readonly View[],
  x: View,
  y: View,
): void {
  const { interleaved, reverse } = call.params, [B, S, H, D] = x.shape, [length, R] = tables[0].shape;
  if (sizeOf(x.shape) === 0) return;
  const direct = x.strides[3] === 1 || D === 1 ? x : call.dense(x);
  const places = [direct.offset, ...direct.strides.slice(0, 3)];
  const vec = [...places, D, interleaved ? 2 * R : R].every((n) => n % 4 === 0) ? 4 : 1,
    angles = anglesOf(vec, interleaved);
  const turns = interleaved ? 2 * R / Math.max(2, vec) : R / vec, units = turns + (D - 2 * R) / vec;
  const [offset, xBatch, xStep, xHead] = places.map((n) => n / vec);
  const out = rowOutput(y.dtype, { vec }) === y.dtype ? y : call.temporary(y.shape, "f32");
  const most = B * S * H * units / enoughThreads;
  const heads = (interleaved ? [4, 2] : [2]).find((count) => H % count === 0 && count <= most) ?? 1;
  const n = B * S * H / heads * units, rows = positions[0]?.shape.length === 2;
  const uniforms = {
    n,
    units,
    turns,
    heads: H,
    groups: H / heads,
    steps: S,
    width: R / angles,
    length,
    x: offset,
    xBatch,
    xStep,
    xHead,
    loads: D / vec,
    cosines: tables[0].offset / angles,
    sines: tables[1].offset / angles,
    positions: positions[0]?.offset ?? 0,
    pBatch: rows ? S : 0,
    pStep: 1,
    sign: reverse ? -1 : 1,
  };
  const kernel = rotary({ dtype: x.dtype, vec, interleaved, positioned: positions.length > 0, heads });
  call.dispatch(kernel, [...tables, ...positions, direct, out], uniforms, gridFor(n, call.capabilities.maxWorkgroups));
  if (out !== y) copy(call, out, y);
}
