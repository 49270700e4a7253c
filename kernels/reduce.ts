/**
 * Reductions.
 *
 *   rows      [rows, n] with elements of a row in one stride: L lanes a row walk it, then meet in a tree
 *
 *     row 0  ──lanes stride, 16 bytes each──▶ accumulators ──tree──▶ y[0]          256 / L rows a workgroup
 *
 *   columns   [k, r, i] with i dense: one thread a column (or four), walking down r; loads of a workgroup are adjacent
 *
 * Where results are too few to fill a device the reduced axis is split and the parts are reduced again: always in the
 * same order, so results are equal to the bit from run to run.
 *
 * Floor for the sum of [65536, 4096] f32 over its last axis: 1.07 GB at 4.07 TB/s (a copy counts both ways) = 0.26 ms.
 */
import type { DType } from "../tensor/dtype.ts";
import { each, type Kernel, kernel } from "./kernel.ts";
import { mathFunctions } from "./math.ts";
import { computeType, load, storageType, storageType4, stored, unpack4 } from "./storage.ts";

/** What is kept of the elements seen so far, and how. */
export interface Accumulator {
  /** Variables: name, WGSL type, and value over no elements. */
  readonly state: readonly (readonly [name: string, type: string, empty: string])[];
  /** Statements that take in element `x` at place `j`. */
  take(x: string, j: string): string;
  /** Statements that take in another state, whose variables end in `suffix`. */
  merge(suffix: string): string;
  /** The result. */
  finish: string;
  /** The same from parts that were finished before; by default the reduction itself. */
  readonly type: string;
}

const lowest = "bitcast<f32>(0xff7fffffu)";

/** The accumulator of each reduction over elements that are computed in `type`. */
export function accumulator(name: ReduceName, type: string): Accumulator {
  const zero = `${type}(0)`;
  switch (name) {
    case "sum":
    case "mean":
      return {
        state: [["acc", type, zero]],
        take: (x) => `acc += ${x};`,
        merge: (s) => `acc += acc${s};`,
        finish: name === "mean" ? "acc / u.count" : "acc",
        type,
      };
    case "max":
    case "min": {
      const f = type === "f32" ? `ft_${name}` : name;
      const ends = { i32: ["i32(-2147483647 - 1)", "2147483647i"], u32: ["0u", "0xffffffffu"] };
      const ints = type === "i32" ? ends.i32 : ends.u32;
      const empty = type === "f32" ? (name === "max" ? "-ft_inf()" : "ft_inf()") : ints[name === "max" ? 0 : 1];
      return {
        state: [["acc", type, empty]],
        take: (x) => `acc = ${f}(acc, ${x});`,
        merge: (s) => `acc = ${f}(acc, acc${s});`,
        finish: "acc",
        type,
      };
    }
    case "logsumexp":
      // (m, s) stands for m + log s; s is 0 only over no elements or −∞ alone.
      return {
        state: [["m", type, lowest], ["s", type, zero]],
        take: (x) => `if (${x} > m) { s = s * ft_exp(m - ${x}) + 1.0; m = ${x}; } else { s += ft_lse_term(${x}, m); }`,
        merge: (t) =>
          `if (m${t} > m) { s = s * ft_exp(m - m${t}) + s${t}; m = m${t}; } else { s += s${t} * ft_lse_term(m${t}, m); }`,
        finish: "select(m + ft_log(s), -ft_inf(), s == 0.0)",
        type,
      };
    case "argmax":
    case "argmin":
      // Keys order as the elements do, NaN above all; of equal keys the first place wins.
      return {
        state: [["key", "u32", "0u"], ["place", "u32", "0xffffffffu"]],
        take: (x, j) =>
          `{ let k = ft_key(${x}); if (k > key || (k == key && ${j} < place)) { key = k; place = ${j}; } }`,
        merge: (s) =>
          `if (key${s} > key || (key${s} == key && place${s} < place)) { key = key${s}; place = place${s}; }`,
        finish: "i32(place)",
        type: "i32",
      };
  }
}

/** Reductions that these kernels do. */
export type ReduceName = "sum" | "mean" | "max" | "min" | "logsumexp" | "argmax" | "argmin";

/** WGSL that makes a u32 which orders as elements of a type do: NaN above all, equal zeros equal. */
export function keyFunction(dtype: DType, name: "argmax" | "argmin" = "argmax"): string {
  const flip = name === "argmin" ? "~" : "";
  if (dtype === "i32") return `fn ft_key(x: i32) -> u32 { return ${flip}(bitcast<u32>(x) ^ 0x80000000u); }`;
  if (dtype === "u32") return `fn ft_key(x: u32) -> u32 { return ${flip}x; }`;
  return `
fn ft_key(x: f32) -> u32 {
  let bits = bitcast<u32>(x);
  if ((bits & 0x7fffffffu) > 0x7f800000u) { return 0xffffffffu; }
  let whole = select(bits, 0u, (bits & 0x7fffffffu) == 0u);
  return ${flip}select(whole | 0x80000000u, ~whole, (whole >> 31u) == 1u);
}`;
}

function helpers(name: ReduceName, dtype: DType, body: string): string {
  const own = [
    name === "logsumexp"
      ? "fn ft_lse_term(x: f32, m: f32) -> f32 { return select(ft_exp(x - m), 1.0, x == m && x > " + lowest + "); }"
      : "",
    name === "argmax" || name === "argmin" ? keyFunction(dtype, name) : "",
  ].join("\n");
  return mathFunctions(body + own) + own;
}

/** The kernel that reduces rows; `lanes` invocations share one, `vec` elements a load. */
export interface RowTile {
  readonly name: ReduceName;
  readonly dtype: DType;
  /** The type of the result's elements: 32 bits wide. */
  readonly output: DType;
  readonly lanes: number;
  readonly vec: 1 | 4;
}

/** y[row · splits + split] from x[start(row) + j · step], j in this split's part of the row. */
export function reduceRows({ name, dtype, output, lanes, vec }: RowTile): Kernel {
  const rows = 256 / lanes;
  return kernel(`${name}_rows_l${lanes}_v${vec}_${dtype}_${output}`, {
    reads: { x: vec === 4 ? storageType4(dtype) : storageType(dtype) },
    writes: { y: storageType(output) },
    uniforms: {
      rows: "u32",
      n: "u32",
      chunk: "u32",
      splits: "u32",
      step: "u32",
      offset: "u32",
      d1: "u32",
      d2: "u32",
      s0: "u32",
      s1: "u32",
      s2: "u32",
      count: "f32",
    },
  }, () => {
    const acc = accumulator(name, computeType(dtype));
    const shared = acc.state.map(([id, type]) => `var<workgroup> w_${id}: array<${type}, 256>;`);
    const walk = vec === 4
      ? `for (var j = begin / 4u + lane; j < to / 4u; j += ${lanes}u) {
    let v = x[start + j];
    ${
        unpack4(dtype, "v").map((part, i) => `{ let e = ${part}; let at = 4u * j + ${i}u; ${acc.take("e", "at")} }`)
          .join("\n    ")
      }
  }`
      : `for (var at = begin + lane; at < to; at += ${lanes}u) {
    let e = ${load(dtype, "x", "start + at * u.step")};
    ${acc.take("e", "at")}
  }`;
    const names = acc.state.map(([id]) => id);
    const tree: string[] = [];
    for (let half = lanes / 2; half >= 1; half /= 2) {
      tree.push(`workgroupBarrier();
  if (lane < ${half}u) {
    ${names.map((id) => `let ${id}_o = w_${id}[me + ${half}u];`).join(" ")}
    ${acc.merge("_o")}
    ${names.map((id) => `w_${id}[me] = ${id};`).join(" ")}
  }`);
    }
    const body = `
  let me = local.x;
  let lane = me % ${lanes}u;
  let row = (group.y * groups.x + group.x) * ${rows}u + me / ${lanes}u;
  let split = group.z;
  let i2 = row % u.d2; let rest = row / u.d2;
  let start = u.offset + (rest / u.d1) * u.s0 + (rest % u.d1) * u.s1 + i2 * u.s2;
  let begin = min(split * u.chunk, u.n);
  let to = select(begin, min(begin + u.chunk, u.n), row < u.rows);
  ${acc.state.map(([id, type, empty]) => `var ${id}: ${type} = ${empty};`).join("\n  ")}
  ${walk}
  ${names.map((id) => `w_${id}[me] = ${id};`).join(" ")}
  ${tree.join("\n  ")}
  if (lane == 0u && row < u.rows) { y[row * u.splits + split] = ${stored(output, acc.finish)}; }`;
    return `${helpers(name, dtype, body)}
${shared.join("\n")}
@compute @workgroup_size(256) fn main(
  @builtin(workgroup_id) group: vec3u, @builtin(num_workgroups) groups: vec3u, @builtin(local_invocation_id) local: vec3u,
) {${body}
}`;
  });
}

/** The kernel that reduces columns. */
export interface ColumnTile {
  readonly name: "sum" | "mean" | "max" | "min";
  readonly dtype: DType;
  readonly output: DType;
  readonly vec: 1 | 4;
}

/** y[(k · splits + split) · width + i] from x[offset + k · sk + r · sr + i], r in this split's part. */
export function reduceColumns({ name, dtype, output, vec }: ColumnTile): Kernel {
  return kernel(`${name}_columns_v${vec}_${dtype}_${output}`, {
    reads: { x: vec === 4 ? storageType4(dtype) : storageType(dtype) },
    writes: { y: storageType(output) },
    uniforms: {
      outer: "u32",
      width: "u32",
      n: "u32",
      chunk: "u32",
      splits: "u32",
      offset: "u32",
      sk: "u32",
      sr: "u32",
      count: "f32",
    },
  }, () => {
    const one = accumulator(name, computeType(dtype));
    const [[, type, empty]] = one.state;
    const parts = each(vec, (i) => `acc${i}`);
    const take = (i: number, x: string) => one.take(x, "r").replaceAll("acc", `acc${i}`);
    const read = vec === 4
      ? `let v = x[base + r * u.sr];\n    ` + unpack4(dtype, "v").map((part, i) => take(i, part)).join("\n    ")
      : take(0, load(dtype, "x", "base + r * u.sr"));
    const body = `
  let t = (group.y * groups.x + group.x) * 64u + lane;
  let wide = u.width / ${vec}u;
  if (t >= u.outer * wide) { return; }
  let k = t / wide; let i = t % wide;
  let split = group.z;
  let base = u.offset + k * u.sk + i;
  let begin = min(split * u.chunk, u.n);
  let to = min(begin + u.chunk, u.n);
  ${parts.map((id) => `var ${id}: ${type} = ${empty};`).join("\n  ")}
  for (var r = begin; r < to; r++) {
    ${read}
  }
  let at = (k * u.splits + split) * u.width + i * ${vec}u;
  ${parts.map((id, i) => `y[at + ${i}u] = ${stored(output, one.finish.replaceAll("acc", id))};`).join("\n  ")}`;
    return `${helpers(name, dtype, body)}
@compute @workgroup_size(64) fn main(
  @builtin(workgroup_id) group: vec3u, @builtin(num_workgroups) groups: vec3u, @builtin(local_invocation_index) lane: u32,
) {${body}
}`;
  });
}

/** Running sums of rows: a workgroup walks a row in blocks of 256 and carries the sum over. */
export const cumsumRows = (dtype: DType): Kernel =>
  kernel(`cumsum_${dtype}`, {
    reads: { x: storageType(dtype) },
    writes: { y: storageType(dtype) },
    uniforms: { rows: "u32", n: "u32", offset: "u32", reverse: "u32" },
  }, () => `
var<workgroup> w: array<${dtype}, 256>;
@compute @workgroup_size(256) fn main(
  @builtin(workgroup_id) group: vec3u, @builtin(num_workgroups) groups: vec3u, @builtin(local_invocation_index) lane: u32,
) {
  let row = group.y * groups.x + group.x;
  if (row >= u.rows) { return; }
  var carry = ${dtype}(0);
  for (var block = 0u; block < u.n; block += 256u) {
    let j = block + lane;
    let at = row * u.n + select(j, u.n - 1u - min(j, u.n - 1u), u.reverse == 1u);
    var sum = ${dtype}(0);
    if (j < u.n) { sum = x[u.offset + at]; }
    w[lane] = sum;
    workgroupBarrier();
    for (var reach = 1u; reach < 256u; reach *= 2u) {
      var other = ${dtype}(0);
      if (lane >= reach) { other = w[lane - reach]; }
      workgroupBarrier();
      sum += other;
      w[lane] = sum;
      workgroupBarrier();
    }
    if (j < u.n) { y[at] = carry + sum; }
    carry += w[255];
    workgroupBarrier();
  }
}`);

/** The k largest of each row: k sweeps, each for the best element that comes after the one found before. */
export const topKRows = (dtype: DType): Kernel =>
  kernel(`topk_${dtype}`, {
    reads: { x: storageType(dtype) },
    writes: { values: storageType(dtype), indices: "i32" },
    uniforms: { rows: "u32", n: "u32", k: "u32", offset: "u32" },
  }, () => `
${keyFunction(dtype)}
var<workgroup> keys: array<u32, 256>;
var<workgroup> places: array<u32, 256>;
@compute @workgroup_size(256) fn main(
  @builtin(workgroup_id) group: vec3u, @builtin(num_workgroups) groups: vec3u, @builtin(local_invocation_index) lane: u32,
) {
  let row = group.y * groups.x + group.x;
  if (row >= u.rows) { return; }
  let start = u.offset + row * u.n;
  var last_key = 0xffffffffu;
  var last_place = 0u;
  for (var t = 0u; t < u.k; t++) {
    var key = 0u;
    var place = 0xffffffffu;
    for (var j = lane; j < u.n; j += 256u) {
      let k = ft_key(x[start + j]);
      let after = t == 0u || k < last_key || (k == last_key && j > last_place);
      if (after && (place == 0xffffffffu || k > key)) { key = k; place = j; }
    }
    keys[lane] = key;
    places[lane] = place;
    for (var half = 128u; half > 0u; half /= 2u) {
      workgroupBarrier();
      if (lane < half) {
        let k = keys[lane + half]; let p = places[lane + half];
        if (p != 0xffffffffu && (places[lane] == 0xffffffffu || k > keys[lane] || (k == keys[lane] && p < places[lane]))) {
          keys[lane] = k;
          places[lane] = p;
        }
      }
    }
    workgroupBarrier();
    last_key = keys[0];
    last_place = places[0];
    if (lane == 0u) {
      values[row * u.k + t] = x[start + last_place];
      indices[row * u.k + t] = i32(last_place);
    }
    workgroupBarrier();
  }
}`);
