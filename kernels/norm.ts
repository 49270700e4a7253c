/**
 * RMSNorm and LayerNorm over rows, forward and backward.
 *
 *   forward    one sweep for the statistics, one that writes; a row of up to 8192 elements is read once
 *   backward   dx by rows as the forward does; dw and db by columns: 32 loads wide, 8 rows at a time, partial sums in f32
 *
 *     columns ─▶  ┌────────┐ split 0 ─▶ partial[0, :] ┐
 *     rows │      │ 8 × 32 │                          ├─ sum in order ─▶ dw
 *          ▼      └────────┘ split 1 ─▶ partial[1, :] ┘
 *
 * No atomics: results are equal to the bit from run to run.
 *
 * Floor for RMSNorm of [4096, 1024] bf16: 16.8 MB at 4.07 TB/s = 0.004 ms. Measured on an H200:
 *   forward   v1  8-byte loads, 128 lanes a row        0.0073 ms
 *             v2  16-byte loads, 32 lanes a row        0.0065  ◀ this file
 *   backward  v1  partial sums by two reductions       0.0270 ms
 *             v2  by one thread a column               0.0480
 *             v3  by 8 slices a column                 0.0180  ◀ this file; 16-byte loads cost 0.0025 more
 */
import type { DType } from "../tensor/dtype.ts";
import { sizeOf } from "../tensor/shape.ts";
import { each, type Kernel, kernel } from "./kernel.ts";
import { copy, type Lowering, type View } from "./lowering.ts";
import {
  joinLanes,
  laneMemory,
  pickRows,
  pickVec,
  readRow,
  rounded,
  rowEntry,
  rowGrid,
  rowName,
  rowOutput,
  type RowTile,
  rowType,
  type RowVec,
  walkRows,
  writeRow,
} from "./rows.ts";
import { roundingFunctions } from "./storage.ts";

/** Statements for each element of a load. */
const forEach = (values: readonly string[], f: (x: string, j: number) => string): string => values.map(f).join(" ");

/** y = s·r·w, s = x + residual rounded as it is stored. */
const rmsNorm = (dtype: DType, weight: DType, tile: RowTile, residual: boolean): Kernel => {
  const output = rowOutput(dtype, tile), types = weight === dtype ? dtype : `${dtype}_${weight}`;
  return kernel(`rmsnorm_${rowName(tile)}_${types}${residual ? "_residual" : ""}`, {
    reads: {
      x: rowType(dtype, tile),
      weight: rowType(weight, tile),
      ...(residual ? { res: rowType(dtype, tile) } : {}),
    },
    writes: { y: rowType(output, tile), scales: "f32", ...(residual ? { total: rowType(output, tile) } : {}) },
    uniforms: { rows: "u32", loads: "u32", x: "u32", weight: "u32", res: "u32", inverse: "f32", eps: "f32" },
  }, () => {
    const walk = walkRows(tile, ["e"], ([e], at) => {
      const x = readRow(dtype, tile, "x", `u.x + ${at}`);
      if (!residual) return `${x.text} ${forEach(e, (v, j) => `${v} = ${x.parts[j]};`)}`;
      const q = readRow(dtype, tile, "res", `u.res + ${at}`);
      return `${x.text} ${q.text} ${
        forEach(e, (v, j) => `${v} = ${rounded(dtype, `${x.parts[j]} + ${q.parts[j]}`)};`)
      }`;
    });
    return `${roundingFunctions(dtype)}
${laneMemory(1)}
${rowEntry} {
  ${walk.open}
  var square = 0.0;
  ${
      walk.sweep(([e], at) =>
        forEach(e, (v) => `square = fma(${v}, ${v}, square);`) +
        (residual ? writeRow(output, tile, "total", at, e) : "")
      )
    }
  ${joinLanes(tile, ["square"])}
  let scale = 1.0 / sqrt(square * u.inverse + u.eps);
  if (lane == 0u && row < u.rows) { scales[row] = scale; }
  ${
      walk.sweep(([e], at, column) => {
        const w = readRow(weight, tile, "weight", `u.weight + ${column}`);
        return `${w.text} ${writeRow(output, tile, "y", at, e.map((v, j) => `${v} * scale * ${w.parts[j]}`))}`;
      })
    }
}`;
  });
};

/** y = (x − mean)·r·w + b. */
const layerNorm = (dtype: DType, tile: RowTile): Kernel => {
  const output = rowOutput(dtype, tile), type = rowType(dtype, tile);
  return kernel(`layernorm_${rowName(tile)}_${dtype}`, {
    reads: { x: type, weight: type, bias: type },
    writes: { y: rowType(output, tile), means: "f32", scales: "f32" },
    uniforms: { rows: "u32", loads: "u32", x: "u32", weight: "u32", bias: "u32", inverse: "f32", eps: "f32" },
  }, () => {
    const walk = walkRows(tile, ["e"], ([e], at) => {
      const x = readRow(dtype, tile, "x", `u.x + ${at}`);
      return `${x.text} ${forEach(e, (v, j) => `${v} = ${x.parts[j]};`)}`;
    });
    return `${roundingFunctions(output)}
${laneMemory(1)}
${rowEntry} {
  ${walk.open}
  var sum = 0.0;
  ${walk.sweep(([e]) => forEach(e, (v) => `sum += ${v};`))}
  ${joinLanes(tile, ["sum"])}
  let mean = sum * u.inverse;
  var square = 0.0;
  ${walk.sweep(([e]) => forEach(e, (v) => `square = fma(${v} - mean, ${v} - mean, square);`))}
  ${joinLanes(tile, ["square"])}
  let scale = 1.0 / sqrt(square * u.inverse + u.eps);
  if (lane == 0u && row < u.rows) { means[row] = mean; scales[row] = scale; }
  ${
      walk.sweep(([e], at, column) => {
        const w = readRow(dtype, tile, "weight", `u.weight + ${column}`);
        const b = readRow(dtype, tile, "bias", `u.bias + ${column}`);
        const values = e.map((v, j) => `fma((${v} - mean) * scale, ${w.parts[j]}, ${b.parts[j]})`);
        return `${w.text} ${b.text} ${writeRow(output, tile, "y", at, values)}`;
      })
    }
}`;
  });
};

/** dx of either norm; with `more`, another gradient of the same values is added. */
const backwardRows = (name: "rmsnorm" | "layernorm", dtype: DType, tile: RowTile, more: boolean): Kernel => {
  const output = rowOutput(dtype, tile), type = rowType(dtype, tile), centred = name === "layernorm";
  return kernel(`${name}_backward_${rowName(tile)}_${dtype}${more ? "_more" : ""}`, {
    reads: {
      dy: type,
      x: type,
      weight: type,
      scales: "f32",
      ...(centred ? { means: "f32" } : {}),
      ...(more ? { more: type } : {}),
    },
    writes: { dx: rowType(output, tile) },
    uniforms: {
      rows: "u32",
      loads: "u32",
      dy: "u32",
      x: "u32",
      weight: "u32",
      scales: "u32",
      means: "u32",
      more: "u32",
      inverse: "f32",
    },
  }, () => {
    // m = dy·w and n = (x − mean)·r, the normalised input.
    const walk = walkRows(tile, ["m", "n"], ([m, n], at, column) => {
      const dy = readRow(dtype, tile, "dy", `u.dy + ${at}`), x = readRow(dtype, tile, "x", `u.x + ${at}`);
      const w = readRow(dtype, tile, "weight", `u.weight + ${column}`);
      const normal = (v: string) => centred ? `(${v} - mean) * scale` : `${v} * scale`;
      return `${dy.text} ${x.text} ${w.text} ${forEach(m, (v, j) => `${v} = ${dy.parts[j]} * ${w.parts[j]};`)} ${
        forEach(n, (v, j) => `${v} = ${normal(x.parts[j])};`)
      }`;
    });
    const dx = (m: string, n: string) => `scale * (${m} - ${centred ? "level - " : ""}${n} * pull)`;
    return `${roundingFunctions(output)}
${laneMemory(centred ? 2 : 1)}
${rowEntry} {
  let own = min((group.y * groups.x + group.x) * ${256 / tile.lanes}u + me / ${tile.lanes}u, u.rows - 1u);
  let scale = scales[u.scales + own];
  ${centred ? "let mean = means[u.means + own];" : ""}
  ${walk.open}
  var dot = 0.0;
  ${centred ? "var sum = 0.0;" : ""}
  ${walk.sweep(([m, n]) => forEach(m, (v, j) => `dot = fma(${v}, ${n[j]}, dot);${centred ? ` sum += ${v};` : ""}`))}
  ${joinLanes(tile, centred ? ["dot", "sum"] : ["dot"])}
  let pull = dot * u.inverse;
  ${centred ? "let level = sum * u.inverse;" : ""}
  ${
      walk.sweep(([m, n], at) => {
        const q = readRow(dtype, tile, "more", `u.more + ${at}`);
        const values = m.map((v, j) => more ? `${dx(v, n[j])} + ${q.parts[j]}` : dx(v, n[j]));
        return `${more ? q.text : ""} ${writeRow(output, tile, "dx", at, values)}`;
      })
    }
}`;
  });
};

/** Loads side by side, and rows at a time, of a workgroup that sums columns. */
const width = 32, height = 8;

/** Partial sums of dy·n, and of dy for LayerNorm, over chunks of rows. */
const backwardColumns = (name: "rmsnorm" | "layernorm", dtype: DType, vec: RowVec): Kernel => {
  const type = rowType(dtype, { vec }), centred = name === "layernorm";
  return kernel(`${name}_columns_v${vec}_${dtype}`, {
    reads: { dy: type, x: type, scales: "f32", ...(centred ? { means: "f32" } : {}) },
    writes: { dw: "f32", ...(centred ? { db: "f32" } : {}) },
    uniforms: {
      rows: "u32",
      loads: "u32",
      chunk: "u32",
      dy: "u32",
      x: "u32",
      scales: "u32",
      means: "u32",
    },
  }, () => {
    const dy = readRow(dtype, { vec }, "dy", "u.dy + at"), x = readRow(dtype, { vec }, "x", "u.x + at");
    const sums = centred ? ["dw", "db"] : ["dw"];
    const take = each(vec, (j) => {
      const normal = centred ? `(${x.parts[j]} - mean) * scale` : `${x.parts[j]} * scale`;
      return `dw_${j} = fma(${dy.parts[j]}, ${normal}, dw_${j});${centred ? ` db_${j} += ${dy.parts[j]};` : ""}`;
    });
    const variables = sums.flatMap((id) => each(vec, (j) => `${id}_${j}`));
    const store = sums.flatMap((id) =>
      each(vec, (j) => {
        const terms = each(height, (i) =>
          `part[(lane + ${i * width}u) * ${variables.length}u + ${variables.indexOf(`${id}_${j}`)}u]`);
        return `${id}[(group.y * u.loads + column) * ${vec}u + ${j}u] = ${terms.join(" + ")};`;
      })
    );
    return `var<workgroup> part: array<f32, ${256 * variables.length}>;
${rowEntry} {
  let lane = me % ${width}u;
  let column = group.x * ${width}u + lane;
  let first = group.y * u.chunk;
  let end = select(first, min(first + u.chunk, u.rows), column < u.loads);
  ${variables.map((v) => `var ${v} = 0.0;`).join(" ")}
  for (var row = first + me / ${width}u; row < end; row += ${height}u) {
    let at = row * u.loads + column;
    let scale = scales[u.scales + row];
    ${centred ? "let mean = means[u.means + row];" : ""}
    ${dy.text} ${x.text}
    ${take.join(" ")}
  }
  ${variables.map((v, i) => `part[me * ${variables.length}u + ${i}u] = ${v};`).join(" ")}
  workgroupBarrier();
  if (me < ${width}u && column < u.loads) {
    ${store.join("\n    ")}
  }
}`;
  });
};

/** The sum of partial sums, column by column: 8 slices of them side by side, then the slices in order. */
const sumSplits = (output: DType, vec: 1 | 4): Kernel =>
  kernel(`norm_splits_v${vec}_${output}`, {
    reads: { x: vec === 4 ? "vec4f" : "f32" },
    writes: { y: rowType(output, { vec }) },
    uniforms: { loads: "u32", splits: "u32" },
  }, () => {
    const type = vec === 4 ? "vec4f" : "f32";
    return `${roundingFunctions(output)}
var<workgroup> part: array<${type}, 256>;
${rowEntry} {
  let column = group.x * ${width}u + me % ${width}u;
  let slice = me / ${width}u;
  let inside = column < u.loads;
  var sum = ${type}();
  if (inside) {
    for (var i = slice; i < u.splits; i += ${4 * height}u) {
      ${
      each(4, (k) => `let i${k} = i + ${k * height}u; let v${k} = x[min(i${k}, u.splits - 1u) * u.loads + column];`)
        .join("\n      ")
    }
      ${each(4, (k) => `sum += select(${type}(), v${k}, i${k} < u.splits);`).join(" ")}
    }
  }
  part[me] = sum;
  workgroupBarrier();
  if (slice == 0u && inside) {
    ${each(height - 1, (k) => `sum += part[me + ${(k + 1) * width}u];`).join(" ")}
    ${writeRow(output, { vec }, "y", "column", vec === 4 ? each(4, (j) => `sum[${j}]`) : ["sum"])}
  }
}`;
  });

/** The view to write, and what brings it into y: a cast where rows of a packed type would share words. */
function target(call: Lowering<unknown>, y: View, tile: Pick<RowTile, "vec">): { to: View; finish: () => void } {
  const output = rowOutput(y.dtype, tile);
  if (output === y.dtype) return { to: y, finish: () => {} };
  const to = call.temporary(y.shape, output);
  return { to, finish: () => copy(call, to, y) };
}

interface Rows {
  readonly n: number;
  readonly rows: number;
  readonly tile: RowTile;
  readonly grid: [number, number, number];
  readonly uniforms: { rows: number; loads: number; inverse: number };
}

/** How x is walked; `widest` limits its loads where a lane keeps more than one row of numbers. */
function rowsOf(call: Lowering<unknown>, x: View, widest: 4 | 8): Rows {
  const n = x.shape.at(-1)!, rows = sizeOf(x.shape.slice(0, -1)), tile = pickRows(widest === 4 ? "f32" : x.dtype, n);
  const grid = rowGrid(tile, rows, call.capabilities.maxWorkgroups);
  return { n, rows, tile, grid, uniforms: { rows, loads: n / tile.vec, inverse: 1 / Math.max(1, n) } };
}

/** RMSNorm, with or without a residual; beside x of f32 the weight may be of 16 bits. */
export function lowerRmsNorm(call: Lowering<{ eps: number }>): void {
  const [weight, x, res] = call.inputs.map((v) => call.dense(v, 8)), [y, scales, total] = call.outputs;
  const { tile, grid, uniforms } = rowsOf(call, x, 8), { vec } = tile;
  const out = target(call, y, tile), sum = total === undefined ? undefined : target(call, total, tile);
  call.dispatch(
    rmsNorm(x.dtype, weight.dtype, tile, res !== undefined),
    [x, weight, ...(res === undefined ? [] : [res]), out.to, scales, ...(sum === undefined ? [] : [sum.to])],
    {
      ...uniforms,
      x: x.offset / vec,
      weight: weight.offset / vec,
      res: (res?.offset ?? 0) / vec,
      eps: call.params.eps,
    },
    grid,
  );
  out.finish();
  sum?.finish();
}

/** LayerNorm. */
export function lowerLayerNorm(call: Lowering<{ eps: number }>): void {
  const [x, weight, bias] = call.inputs.map((v) => call.dense(v, 8)), [y, means, scales] = call.outputs;
  const { tile, grid, uniforms } = rowsOf(call, x, 8), { vec } = tile, out = target(call, y, tile);
  const places = { x: x.offset / vec, weight: weight.offset / vec, bias: bias.offset / vec };
  const values = { ...uniforms, ...places, eps: call.params.eps };
  call.dispatch(layerNorm(x.dtype, tile), [x, weight, bias, out.to, means, scales], values, grid);
  out.finish();
}

/** Workgroups that sum columns at once: enough to fill a large device, few enough that the partial sums stay small. */
const enoughGroups = 512;

/** What both backward passes share: dx by rows, then dw and db by columns. */
function backward(
  call: Lowering<unknown>,
  name: "rmsnorm" | "layernorm",
  { dy, x, weight, scales, means, more }:
    & Readonly<Record<string, View | undefined>>
    & Record<"dy" | "x" | "weight" | "scales", View>,
  dx: View,
  sums: readonly View[],
): void {
  const { n, rows, tile, grid, uniforms } = rowsOf(call, x, 4);
  const placesOf = (vec: number) => ({
    dy: dy.offset / vec,
    x: x.offset / vec,
    weight: weight.offset / vec,
    scales: scales.offset,
    means: means?.offset ?? 0,
    more: (more?.offset ?? 0) / vec,
  });
  const given = (...views: (View | undefined)[]) => views.filter((v) => v !== undefined);
  if (n > 0 && rows > 0) {
    const out = target(call, dx, tile);
    const kernel = backwardRows(name, x.dtype, tile, more !== undefined);
    call.dispatch(
      kernel,
      given(dy, x, weight, scales, means, more, out.to),
      { ...uniforms, ...placesOf(tile.vec) },
      grid,
    );
    out.finish();
  }
  if (n === 0) return;
  const narrow = pickVec("f32", [n]), across = Math.ceil(n / narrow / width); // wider loads would want too many sums a lane
  const wanted = Math.max(1, Math.min(Math.ceil(enoughGroups / across), Math.ceil(rows / height)));
  const chunk = Math.max(1, Math.ceil(rows / wanted)), splits = Math.max(1, Math.ceil(rows / chunk));
  const parts = sums.map(() => call.temporary([splits, n], "f32"));
  const kernel = backwardColumns(name, x.dtype, narrow);
  const values = { ...placesOf(narrow), rows, loads: n / narrow, chunk };
  call.dispatch(kernel, given(dy, x, scales, means, ...parts), values, [across, splits, 1]);
  sums.forEach((y, i) => {
    const vec = pickVec("f32", [n]) as 1 | 4, out = target(call, y, { vec });
    const groups = [Math.ceil(n / vec / width), 1, 1] as const;
    call.dispatch(sumSplits(out.to.dtype, vec), [parts[i], out.to], { loads: n / vec, splits }, groups);
    out.finish();
  });
}

/** dx and dw of RMSNorm. */
export function lowerRmsNormBackward(call: Lowering<unknown>): void {
  const [dy, x, weight, scales, more] = call.inputs.map((v, i) => call.dense(v, i === 3 ? 1 : 8));
  backward(call, "rmsnorm", { dy, x, weight, scales, more }, call.outputs[0], [call.outputs[1]]);
}

/** dx, dw and db of LayerNorm. */
export function lowerLayerNormBackward(call: Lowering<unknown>): void {
  const [dy, x, weight, means, scales] = call.inputs.map((v, i) => call.dense(v, i > 2 ? 1 : 8));
  backward(call, "layernorm", { dy, x, weight, scales, means }, call.outputs[0], call.outputs.slice(1));
}
