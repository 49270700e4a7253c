/** Cross-entropy calls as dispatches: whole rows, and products in chunks of rows. */

import type { RowLoss } from "../tensor/loss.ts";
import { sizeOf } from "../tensor/shape.ts";
import { expressions, gridFor } from "./elementwise.ts";
import { foldedLoss, rowLoss, type RowLossKernel, rowLossUniforms } from "./loss.ts";
import { copy, elementwise, type Lowering, type View } from "./lowering.ts";
import { fill } from "./movement.ts";
import { folding, multiply, rewritten, sharing } from "./matmul_lowering.ts";
import { lowerReduce } from "./reduce_lowering.ts";
import { isPacked, storageBytes } from "./storage.ts";

/** Bytes that a chunk of logits takes at most. */
const chunkBytes = 128 * 2 ** 20;

/** What a sweep over rows of logits binds. */
interface Rows {
  readonly logits: View;
  readonly labels: View;
  /** The row of labels, losses and lse beside the first row of logits. */
  readonly first: number;
  /** Where the logits are those of some classes only: the first of them, and how many there are in all. */
  readonly among?: { readonly first: number; readonly classes: number };
  readonly known?: View;
  /** One number a row, or one for all. */
  readonly factor?: View;
  readonly dlogits?: View;
  readonly losses?: View;
  readonly lses?: View;
}

function sweep(call: Lowering<RowLoss>, writes: RowLossKernel["writes"], inPlace: boolean, rows: Rows): void {
  const { logits, labels, known, factor, dlogits, losses, lses, first } = rows;
  const [n, classes] = logits.shape, among = rows.among ?? { first: 0, classes };
  const vec = classes % 4 === 0 && logits.offset % 4 === 0 ? 4 : 1;
  const kernel = rowLoss({
    dtype: logits.dtype,
    vec,
    writes,
    known: !!known,
    inPlace,
    softcap: call.params.softcap > 0,
  });
  const views = [
    ...(inPlace ? [] : [logits]),
    labels,
    ...(known ? [known] : []),
    ...(writes === "loss" ? [] : [factor!]),
    ...(writes === "loss" ? [] : [inPlace ? logits : dlogits!]),
    ...(writes === "gradient" ? [] : [losses!]),
    ...(writes === "loss" ? [lses!] : []),
  ];
  const perRow = factor !== undefined && factor.shape.length === 1;
  const uniforms = {
    rows: n,
    loads: classes / vec,
    offset: logits.offset / vec,
    first,
    first_label: labels.offset + first,
    first_class: among.first,
    classes: among.classes,
    factor_first: factor === undefined ? 0 : factor.offset + (perRow ? first : 0),
    factor_step: perRow ? 1 : 0,
    ...rowLossUniforms(call.params),
  };
  call.dispatch(kernel, views, uniforms, gridFor(n * 256, call.capabilities.maxWorkgroups));
}

/** Loss and lse of rows of logits. */
export function lowerCrossEntropy(call: Lowering<RowLoss>): void {
  const logits = call.dense(call.inputs[0]), labels = call.dense(call.inputs[1], 1), [losses, lses] = call.outputs;
  if (logits.shape[1] === 0) throw new RangeError("[crossEntropy] no classes");
  sweep(call, "loss", false, { logits, labels, first: 0, losses, lses });
}

/** dlogits. */
export function lowerCrossEntropyBackward(call: Lowering<RowLoss>): void {
  const factor = call.dense(call.inputs[0], 1), [dlogits] = call.outputs;
  const logits = call.dense(call.inputs[1]), labels = call.dense(call.inputs[2], 1);
  const odd = isPacked(logits.dtype) && logits.shape[1] % 4 !== 0;
  const target = odd ? call.temporary(dlogits.shape, "f32") : dlogits;
  sweep(call, "gradient", false, { logits, labels, first: 0, factor, dlogits: target });
  if (target !== dlogits) copy(call, target, dlogits);
}

function fresh(call: Lowering<unknown>, x: View): View {
  const y = call.temporary(x.shape, x.dtype);
  copy(call, x, y);
  return y;
}

/** Rows of a chunk of logits. */
function chunkRows({ capabilities }: Pick<Lowering<unknown>, "capabilities">, rows: number, classes: number): number {
  const most = Math.min(chunkBytes, capabilities.maxBinding) / (4 * Math.max(1, classes));
  return Math.min(rows, Math.max(4, 2 ** Math.floor(Math.log2(Math.max(1, most)))));
}

/** Calls `f` with the logits of each chunk of rows, which share one buffer, and the chunk's rows of hidden. */
function forEachChunk(
  call: Lowering<RowLoss>,
  hidden: View,
  weight: View,
  f: (logits: View, rows: View, first: number) => void,
): void {
  const [n, width] = hidden.shape, [classes] = weight.shape;
  const size = chunkRows(call, n, classes);
  const buffer = call.temporary([size, classes], "f32"), shared = sharing(call);
  for (let first = 0; first < n; first += size) {
    const rows = Math.min(size, n - first);
    const part = { ...hidden, shape: [rows, width], offset: hidden.offset + first * hidden.strides[0] };
    const logits = { ...buffer, shape: [rows, classes] };
    multiply(shared, part, weight, { transposeA: false, transposeB: true }, logits);
    f(logits, part, first);
  }
}

interface Operands {
  readonly hidden: View;
  readonly weight: View;
  readonly labels: View;
}

/** hidden and weight dense, labels and the rest dense from offset 0 where kernels count rows from there. */
function operands(call: Lowering<RowLoss>, at: number): Operands {
  const [hidden, weight, labels] = call.inputs.slice(at);
  return { hidden: call.dense(hidden), weight: call.dense(weight), labels: call.dense(labels, 1) };
}

/** Bytes of what folded logits leave, of a block of classes that is packed for matrix units, and of a block of logits. */
const foldedBytes = 64 * 2 ** 20, packedBytes = 8 * 2 ** 20, blockBytes = 16 * 2 ** 20;

/** Rows from `first` on, so many or as many as there are. */
const rowsOf = (x: View, first: number, count: number): View => ({
  ...x,
  shape: [Math.min(count, x.shape[0] - first), x.shape[1]],
  offset: x.offset + first * x.strides[0],
});

/**
 * Loss and lse by products on matrix units that fold logits instead of storing them, where a device has some for these
 * types. A weight that has to be packed is packed by blocks of classes: all of it at once would take as much memory again.
 * To make f16 of bf16 on the way into the units instead would take some twenty instructions for eight numbers in a loop
 * that instructions bound, again for each tile of rows; packing is one pass over the weight.
 */
function folded(
  call: Lowering<RowLoss>,
  { hidden, weight, labels }: Operands,
  losses: View,
  lses: View,
  bytes = foldedBytes,
): boolean {
  const { labelSmoothing, softcap } = call.params;
  const [n, width] = hidden.shape, [classes] = weight.shape, sum = labelSmoothing > 0;
  const { columns, packs, fold } = folding(call, hidden, weight, { softcap: softcap > 0, sum }) ?? {};
  if (columns === undefined) return false;
  const [kept, block] = [bytes, packedBytes].map((bytes) => Math.min(bytes, call.capabilities.maxBinding));
  const step = packs ? Math.max(128, 2 ** Math.floor(Math.log2(block / 2 / width))) : classes;
  const strips = Math.ceil(classes / columns), shared = sharing(call);
  const room = Math.floor(kept / (sum ? 12 : 8) / strips),
    rows = Math.min(n, room < 128 ? Math.max(16, room) : room & -128);
  const to = [[rows, strips, 2], [rows], ...sum ? [[rows, strips]] : []].map((shape) => call.temporary(shape, "f32"));
  for (let first = 0; first < n; first += rows) {
    const some = rowsOf(hidden, first, rows), first_label = labels.offset + first;
    for (let c = 0; c < classes; c += step) {
      const place = { strips, first_strip: c / columns, first_class: c, first_label };
      fold!(shared, some, rowsOf(weight, c, step), labels, to, { ...place, cap: softcap });
    }
    const values = { ...rowLossUniforms(call.params), rows: some.shape[0], strips, classes, first, first_label };
    const grid = gridFor(some.shape[0] * 256, call.capabilities.maxWorkgroups);
    call.dispatch(foldedLoss(sum), [...to, labels, losses, lses], values, grid);
  }
  return true;
}

/** Loss and lse of rows of hidden · weightᵀ. */
export function lowerLinearCrossEntropy(call: Lowering<RowLoss>): void {
  const given = operands(call, 0), { hidden, weight, labels } = given, [losses, lses] = call.outputs;
  if (folded(call, given, losses, lses)) return;
  forEachChunk(
    call,
    hidden,
    weight,
    (logits, _, first) => sweep(call, "loss", false, { logits, labels, first, losses, lses }),
  );
}

/**
 * Both gradients from a chunk's dlogits. Those of packed types with odd rows are made in f32 and cast at the end. So is a
 * dweight of packed type that several chunks are summed in, while its f32 sum takes no more than a chunk of logits does.
 * A larger one is rounded after each chunk: at [4096, 1024] → 128256 in bf16, 16 roundings in place of one. In f32 that
 * sum would take 525 MB, and going by blocks of classes instead of rows a fourth product.
 */
function gradients(call: Lowering<RowLoss>, dhidden: View, dweight: View) {
  const packed = isPacked(dhidden.dtype), odd = packed && dhidden.shape[1] % 2 === 1;
  const summed = packed && chunkRows(call, dhidden.shape[0], dweight.shape[0]) < dhidden.shape[0] &&
    4 * sizeOf(dweight.shape) <= chunkBytes;
  const dh = odd ? call.temporary(dhidden.shape, "f32") : dhidden;
  const dw = odd || summed ? call.temporary(dweight.shape, "f32") : dweight;
  if (dhidden.shape[0] === 0) { // no product would write dweight
    const n = Math.ceil(sizeOf(dw.shape) * storageBytes(dw.dtype) / 16);
    call.dispatch(fill(dw.dtype), [dw], { n, bits: 0 }, gridFor(n, call.capabilities.maxWorkgroups));
  }
  const shared = sharing(call);
  return {
    add(dlogits: View, rows: View, weight: View, first: number): void {
      rewritten(shared, dlogits);
      multiply(shared, dlogits, weight, { transposeA: false, transposeB: false }, dh, { row: first });
      multiply(shared, dlogits, rows, { transposeA: true, transposeB: false }, dw, { accumulate: first > 0 });
    },
    end(): void {
      for (const [from, to] of [[dh, dhidden], [dw, dweight]]) if (from !== to) copy(call, from, to);
    },
  };
}

/**
 * Both gradients by blocks of classes, from the lse of each row, where matrix units make the products: a block of the
 * weight is packed once, a block of dweight is written once, by sums over all rows, and dhidden is summed in f32. By chunks
 * of rows the weight would have to be packed whole, twice, or again for each chunk.
 */
function gradientsByClasses(
  call: Lowering<RowLoss>,
  { hidden, weight, labels }: Operands,
  { known, factor }: { readonly known: View; readonly factor: View },
  [dhidden, dweight]: readonly View[],
): void {
  const [n, width] = hidden.shape, [classes] = weight.shape, size = blockOf(call, n);
  const buffer = call.temporary([n, size], "f32"), sum = call.temporary([n, width], "f32");
  const [forward, back] = [sharing(call), sharing(call)];
  for (let first = 0; first < classes; first += size) {
    const some = rowsOf(weight, first, size), [count] = some.shape;
    const logits = { ...buffer, shape: [n, count], strides: [count, 1] };
    multiply(forward, hidden, some, { transposeA: false, transposeB: true }, logits);
    sweep(call, "gradient", true, { logits, labels, first: 0, among: { first, classes }, known, factor });
    rewritten(back, buffer);
    multiply(back, logits, some, { transposeA: false, transposeB: false }, sum, { accumulate: first > 0 });
    multiply(back, logits, hidden, { transposeA: true, transposeB: false }, dweight, { row: first });
  }
  copy(call, sum, dhidden);
}

/** Classes of a block. */
const blockOf = ({ capabilities }: Pick<Lowering<unknown>, "capabilities">, rows: number) =>
  Math.max(64, 2 ** Math.floor(Math.log2(Math.min(blockBytes, capabilities.maxBinding) / 4 / Math.max(1, rows))));

/** Whether gradients go by blocks of classes. */
function byClasses(call: Lowering<RowLoss>, { hidden, weight }: Operands): boolean {
  const [n, width] = hidden.shape;
  return width % 2 === 0 && 4 * n * blockOf(call, n) <= Math.min(chunkBytes, call.capabilities.maxBinding) &&
    folding(call, hidden, weight, { softcap: false, sum: false }) !== null;
}

/** dhidden and dweight, the logits computed again. */
export function lowerLinearCrossEntropyBackward(call: Lowering<RowLoss>): void {
  const given = operands(call, 1), { hidden, weight, labels } = given, [dhidden, dweight] = call.outputs;
  const factor = call.dense(call.inputs[0], 1);
  if (byClasses(call, given)) {
    return gradientsByClasses(call, given, { known: fresh(call, call.inputs[4]), factor }, call.outputs);
  }
  const sums = gradients(call, dhidden, dweight);
  forEachChunk(call, hidden, weight, (logits, rows, first) => {
    sweep(call, "gradient", true, { logits, labels, first, factor });
    sums.add(logits, rows, weight, first);
  });
  sums.end();
}

/**
 * scale · Σ loss and its gradients: in one walk over chunks of rows, or by classes once the lse are known. That takes a
 * fourth product, for which dweight is written once, not read and written for each chunk, and nothing packed takes more
 * than a block: at 4096 × 1024 → 128256 in bf16 137 MB in all, where packing the weight for both products takes 526.
 */
export function lowerLinearCrossEntropySum(call: Lowering<RowLoss>): void {
  const given = operands(call, 0), { hidden, weight, labels } = given, [total, dhidden, dweight] = call.outputs;
  const factor = call.dense(call.inputs[3], 1), rows = [hidden.shape[0]];
  const losses = call.temporary(rows, "f32"), sum = call.temporary([], "f32");
  if (byClasses(call, given)) {
    const known = call.temporary(rows, "f32");
    folded(call, given, losses, known, foldedBytes / 2);
    gradientsByClasses(call, given, { known, factor }, [dhidden, dweight]);
  } else {
    const sums = gradients(call, dhidden, dweight);
    forEachChunk(call, hidden, weight, (logits, rows, first) => {
      sweep(call, "both", true, { logits, labels, first, factor, losses });
      sums.add(logits, rows, weight, first);
    });
    sums.end();
  }
  lowerReduce(call, "sum", losses, [0], sum);
  elementwise(call, "mul", expressions.mul, [sum, factor], total);
}

/** The gradients that the forward pass made, times the loss's. */
export function lowerLinearCrossEntropySumBackward(call: Lowering<unknown>): void {
  const [g, ...made] = call.inputs;
  made.forEach((x, i) => elementwise(call, "mul", expressions.mul, [x, g], call.outputs[i]));
}
