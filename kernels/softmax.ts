/**
 * Softmax, its logarithm and log-sum-exp over rows: L lanes share a row, 256 / L rows a workgroup.
 *
 *   row ──lanes stride──▶ registers ──max──▶ tree ──▶ exp, sum ──▶ tree ──▶ write the row, or max + log sum alone
 *
 * Rows of up to 8 loads a lane stay in registers and are read once; longer ones are read three times (the second and
 * third mostly from cache).
 *
 * Floor for [65536, 4096] f32: 2.1 GB at 4.07 TB/s = 0.53 ms; for log-sum-exp of [16384, 4096] 0.066 ms, where one sweep
 * that rescales its sum at each new maximum took 0.19 on an H200, and this 0.078.
 */
import type { DType } from "../tensor/dtype.ts";
import { each, type Kernel, kernel } from "./kernel.ts";
import { mathFunctions } from "./math.ts";
import { isPacked, load, pack4, roundingFunctions, storageType, storageType4, stored, unpack4 } from "./storage.ts";

/** How a softmax kernel walks its rows. */
export interface SoftmaxTile {
  readonly name: "softmax" | "logSoftmax" | "logsumexp";
  readonly dtype: DType;
  /** The result's type; f32 when `dtype` is packed and rows are odd. */
  readonly output: DType;
  readonly lanes: number;
  readonly vec: 1 | 4;
  /** Loads a lane that are kept in registers; 0 reads the row again. */
  readonly held: number;
}

/** Loads of a row that stay in registers at most. */
const maxHeld = 8;

/** The tile for rows of n elements. */
export function pickSoftmax(name: SoftmaxTile["name"], dtype: DType, n: number): SoftmaxTile {
  const vec = n % 4 === 0 ? 4 : 1;
  const loads = Math.max(1, n / vec);
  const lanes = Math.min(256, 2 ** Math.ceil(Math.log2(Math.max(1, loads / 4))));
  const held = Math.ceil(loads / lanes);
  const output = name === "logsumexp" || (isPacked(dtype) && vec === 1) ? "f32" : dtype;
  return { name, dtype, output, lanes, vec, held: held <= maxHeld ? held : 0 };
}

/** y = softmax of each row of x, or one number for each row; both dense, x from `offset`. */
export function softmaxRows({ name, dtype, output, lanes, vec, held }: SoftmaxTile): Kernel {
  return kernel(`${name}_l${lanes}_v${vec}_h${held}_${dtype}_${output}`, {
    reads: { x: vec === 4 ? storageType4(dtype) : storageType(dtype) },
    writes: { y: vec === 4 && name !== "logsumexp" ? storageType4(output) : storageType(output) },
    uniforms: { rows: "u32", loads: "u32", offset: "u32" },
  }, () => {
    const parts = (v: string) => vec === 4 ? unpack4(dtype, v) : [v];
    const read = (at: string) => vec === 4 ? `x[${at}]` : load(dtype, "x", at);
    const write = (at: string, values: readonly string[]) =>
      `y[${at}] = ${vec === 4 ? pack4(output, values) : stored(output, values[0])};`;
    // Powers of two of a difference that is never positive: their error, relative to the row's largest, stays below one
    // rounding, so the device's own exp2 serves. A row held in registers keeps them for the last sweep.
    const power = (e: string) => `exp2((${e} - top) * ${Math.LOG2E})`;
    const keeps = name === "softmax" && held > 0;
    const result = (e: string) =>
      name === "logSoftmax" ? `${e} - top - scale` : `ft_share(${keeps ? e : power(e)}, scale, rest)`;
    const add = (e: string) => keeps ? `${e} = ${power(e)}; sum += ${e};` : `sum += ${power(e)};`;
    const tree = (op: (a: string, b: string) => string): string => {
      const steps: string[] = [];
      for (let half = lanes / 2; half >= 1; half /= 2) {
        steps.push(`workgroupBarrier();
  if (lane < ${half}u) { w[me] = ${op("w[me]", `w[me + ${half}u]`)}; }`);
      }
      return [...steps, "workgroupBarrier();"].join("\n  ");
    };
    const inRow = (i: number) => `lane + ${i * lanes}u < count`;
    const sweep = (body: (values: readonly string[], at: string) => string) =>
      held > 0
        ? each(
          held,
          (i) => `if (${inRow(i)}) { ${body(each(vec, (j) => `e${i}_${j}`), `start + lane + ${i * lanes}u`)} }`,
        )
          .join("\n  ")
        : `for (var j = lane; j < count; j += ${lanes}u) { let v = ${read("u.offset + start + j")};
    ${body(parts("v"), "start + j")} }`;
    const holding = each(held, (i) => `
  ${each(vec, (j) => `var e${i}_${j} = 0.0;`).join(" ")}
  if (${inRow(i)}) { let v = ${read(`u.offset + start + lane + ${i * lanes}u`)}; ${
      parts("v").map((p, j) => `e${i}_${j} = ${p};`).join(" ")
    } }`);
    const body = `
  let lane = me % ${lanes}u;
  let row = (group.y * groups.x + group.x) * ${256 / lanes}u + me / ${lanes}u;
  let start = row * u.loads;
  let count = select(0u, u.loads, row < u.rows);
  ${holding.join("")}
  var highest = -ft_inf();
  ${sweep((es) => es.map((e) => `highest = ft_max(highest, ${e});`).join(" "))}
  w[me] = highest;
  ${tree((a, b) => `ft_max(${a}, ${b})`)}
  let top = w[me - lane];
  workgroupBarrier();
  var sum = 0.0;
  ${sweep((es) => es.map(add).join(" "))}
  w[me] = sum;
  ${tree((a, b) => `${a} + ${b}`)}
  let total = w[me - lane];
  let scale = ${name === "softmax" ? "1.0 / total" : "select(ft_log(total), 0.0, abs(top) == ft_inf())"};
  ${name === "softmax" ? "let rest = fma(-total, scale, 1.0) * scale;" : ""}
  ${
      name === "logsumexp"
        ? "if (lane == 0u && row < u.rows) { y[row] = top + scale; }"
        : sweep((es, at) => write(at, es.map(result)))
    }`;
    return `${mathFunctions(body)}
${roundingFunctions(output)}
// A power's share of the total, with what the reciprocal's rounding lost put back.
fn ft_share(p: f32, scale: f32, rest: f32) -> f32 { return fma(p, scale, p * rest); }
var<workgroup> w: array<f32, 256>;
@compute @workgroup_size(256) fn main(
  @builtin(workgroup_id) group: vec3u, @builtin(num_workgroups) groups: vec3u, @builtin(local_invocation_index) me: u32,
) {${body}
}`;
  });
}
