/**
 * From a projection to dispatches: one for few rows; for many the products by themselves, which norm
 * what they pack, and gate and add where they store.
 */
import { projectInputs, type ProjectParams } from "../tensor/project.ts";
import { type Shape, sizeOf, stridesOf } from "../tensor/shape.ts";
import { expressions, gridFor, locateValues } from "./elementwise.ts";
import { lowerSwiglu } from "./gated.ts";
import { elementwise, type Lowering, partCall, type View } from "./lowering.ts";
import type { MatmulDType } from "./matmul.ts";
import { type Left, multiply, multiplyJoined, sharing } from "./matmul_lowering.ts";
import { matvec, matvecWidth, pickMatvec } from "./matvec.ts";
import { place } from "./movement.ts";
import { lowerRmsNorm } from "./norm.ts";

/** Rows up to which weights are streamed: for more, packing them for matrix units, or tiles in workgroup memory, pay. */
const fewRows = 32;
/** Rows that a workgroup streams weights for. */
const rowsTogether = 8;

/** The same elements as a matrix of rows. */
function matrix(x: View): View {
  const shape = [sizeOf(x.shape.slice(0, -1)), x.shape.at(-1)!];
  return { ...x, shape, strides: stridesOf(shape) };
}

/** Linear layers with what stands around them. */
export function lowerProject(call: Lowering<ProjectParams>): void {
  const { eps, gated } = call.params, [out] = call.outputs;
  const { x: given, norm, weights, residual } = projectInputs(call.inputs, call.params);
  const x = matrix(call.dense(given)), y = matrix(out), [rows, k] = x.shape;
  const dtype = weights[0].dtype as MatmulDType, width = matvecWidth(dtype);
  if (rows > fewRows || k === 0 || k % width !== 0) {
    return many(call, x, y, norm && call.dense(norm, 8), weights, residual);
  }
  const dense = weights.map((w) => call.dense(w, width)), scale = norm && call.dense(norm);
  const added = residual && call.dense(residual, 1);
  const sections = dense.map((w) => w.shape[0]), m = Math.min(rowsTogether, 2 ** Math.ceil(Math.log2(rows)));
  const parts = {
    ...{ m, weights: dense.length, dtype, gated, residual: added !== undefined },
    norm: scale === undefined ? null : scale.dtype as MatmulDType,
  };
  const tile = pickMatvec(call.capabilities, { ...parts, k, sections, blocks: Math.ceil(rows / m) });
  const n = y.shape[1], groups = Math.ceil(n / (tile.teams * tile.rows)), across = Math.min(groups, 65535);
  const uniforms: Record<string, number> = {
    ...{ m: rows, n, loads: k / width, groups: across, x: x.offset / 4 },
    norm: (scale?.offset ?? 0) / 4,
    residual: added?.offset ?? 0,
    ...{ eps: eps ?? 0, inverse: 1 / k },
  };
  dense.forEach((w, i) => {
    uniforms[`n_w${i}`] = w.shape[0];
    uniforms[`o_w${i}`] = w.offset / width;
  });
  const views = [x, ...(scale ? [scale] : []), ...dense, ...(added ? [added] : []), y];
  const flops = 2 * rows * k * sections.reduce((a, b) => a + b, 0);
  call.dispatch(matvec(tile, parts), views, uniforms, [
    Math.ceil(rows / m),
    across,
    Math.ceil(groups / across),
  ], { flops });
}

function many(
  call: Lowering<ProjectParams>,
  given: View,
  y: View,
  norm: View | undefined,
  weights: readonly View[],
  residual: View | undefined,
): void {
  const { eps, gated } = call.params, [rows] = given.shape;
  const temporary = (shape: Shape) => call.temporary(shape, "f32");
  let normed: View | undefined;
  const whole = () => {
    if (normed !== undefined) return normed;
    normed = temporary(given.shape);
    lowerRmsNorm(partCall(call, [norm!, given], [normed, temporary([rows])], { eps: eps! }));
    return normed;
  };
  const x: Left = norm === undefined ? given : { ...given, norm: { weight: norm, eps: eps!, whole } };
  const products = sharing(call); // x is packed once for all
  const added = residual && matrix(call.dense(residual));
  const product = (w: View, to: View, residual?: View) =>
    multiply(products, x, w.strides[1] === 1 ? w : call.dense(w), { transposeA: false, transposeB: true }, to, {
      residual,
    });
  if (weights.length === 1) return product(weights[0], y, added);
  if (multiplyJoined(products, x, weights, y, { gated, residual: added })) return;
  const all = added === undefined ? y : temporary(y.shape);
  const made = weights.map((w) => {
    const one = temporary([rows, w.shape[0]]);
    product(w, one);
    return one;
  });
  if (gated) lowerSwiglu(partCall(call, made, [all], {}));
  else {
    let column = 0;
    for (const one of made) {
      const at = { shape: one.shape, strides: y.strides, offset: column };
      const { rank, values } = locateValues(one.shape, [one, at]), n = sizeOf(one.shape);
      call.dispatch(place("f32", rank), [one, all], { n, ...values }, gridFor(n, call.capabilities.maxWorkgroups));
      column += one.shape[1];
    }
  }
  if (added !== undefined) elementwise(call, "add", expressions.add, [all, added], y);
}
