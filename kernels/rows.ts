/**
 * Text that kernels over rows share: L lanes walk a row, 16 bytes a load where rows allow, and meet in a tree.
 *
 *   row ──lanes stride──▶ registers ──▶ sums per lane ──tree──▶ sums per row ──▶ second sweep writes
 *
 * Rows of up to 8 loads a lane stay in registers; longer ones are read again at each sweep, mostly from cache.
 */
import type { DType } from "../tensor/dtype.ts";
import { gridFor } from "./elementwise.ts";
import { each } from "./kernel.ts";
import { isPacked, load, pack2, pack4, storageType, storageType4, stored, unpack4 } from "./storage.ts";

/** Elements of a load; 8 for packed types alone. */
export type RowVec = 1 | 4 | 8;

/** The widest load that every one of these counts is a multiple of. */
export function pickVec(dtype: DType, counts: readonly number[]): RowVec {
  const fits = (vec: number) => counts.every((n) => n % vec === 0);
  return isPacked(dtype) && fits(8) ? 8 : fits(4) ? 4 : 1;
}

/** How rows are walked: 256 / lanes of them a workgroup. */
export interface RowTile {
  readonly lanes: number;
  readonly vec: RowVec;
  /** Loads a lane that are kept in registers; 0 reads the row at each sweep. */
  readonly held: number;
}

/** Lanes and held loads, in rising order of their product. Few, so that rows of many lengths share a pipeline. */
const shapes = [[8, 1], [32, 1], [32, 4], [128, 2], [128, 4], [256, 4], [256, 8]] as const;

/** The tile for dense rows of n elements. */
export function pickRows(dtype: DType, n: number): RowTile {
  const vec = pickVec(dtype, [n]);
  const [lanes, held] = shapes.find(([lanes, held]) => lanes * held >= n / vec) ?? [256, 0];
  return { lanes, vec, held };
}

/** Part of a kernel's name. */
export function rowName({ lanes, vec, held }: RowTile): string {
  return `l${lanes}_v${vec}_h${held}`;
}

/** Workgroups for so many rows. */
export function rowGrid({ lanes }: RowTile, rows: number, maxWorkgroups: number): [number, number, number] {
  return gridFor(rows * lanes, maxWorkgroups);
}

/** The dtype that a kernel writes: f32, to be cast afterwards, where rows of a packed type would share words. */
export function rowOutput(dtype: DType, { vec }: Pick<RowTile, "vec">): DType {
  return isPacked(dtype) && vec === 1 ? "f32" : dtype;
}

/** The element type of a buffer of rows. */
export function rowType(dtype: DType, { vec }: Pick<RowTile, "vec">): string {
  return vec === 8 ? "vec4u" : vec === 4 ? storageType4(dtype) : storageType(dtype);
}

/** Statements that read a load of `buffer`, and the names of its elements. `id` keeps names apart. */
export function readRow(
  dtype: DType,
  { vec }: Pick<RowTile, "vec">,
  buffer: string,
  at: string,
  id = buffer,
): { text: string; parts: string[] } {
  if (vec === 1) return { text: `let ${id}_0 = ${load(dtype, buffer, at)};`, parts: [`${id}_0`] };
  const values = vec === 8
    ? ["xy", "zw"].flatMap((half) => unpack4(dtype, `${id}_v.${half}`))
    : unpack4(dtype, `${id}_v`);
  const lines = values.map((value, j) => `let ${id}_${j} = ${value};`);
  return { text: `let ${id}_v = ${buffer}[${at}]; ${lines.join(" ")}`, parts: each(vec, (j) => `${id}_${j}`) };
}

/** The statement that writes a load of `buffer`. Packed types need `roundingFunctions`. */
export function writeRow(
  dtype: DType,
  { vec }: Pick<RowTile, "vec">,
  buffer: string,
  at: string,
  values: readonly string[],
): string {
  if (vec === 1) return `${buffer}[${at}] = ${stored(dtype, values[0])};`;
  if (vec === 4) return `${buffer}[${at}] = ${pack4(dtype, values)};`;
  return `${buffer}[${at}] = vec4u(${[0, 2, 4, 6].map((j) => pack2(dtype, values[j], values[j + 1])).join(", ")});`;
}

/** `x` rounded to a dtype, as an f32. Packed types need `roundingFunctions`. */
export function rounded(dtype: DType, x: string): string {
  if (dtype === "f16") return `unpack2x16float(ft_f16(${x})).x`;
  return dtype === "bf16" ? `bitcast<f32>(ft_bf16(${x}) << 16u)` : x;
}

/** A walk over rows: `names` are f32 values an element, which `fetch` assigns. */
export interface RowWalk {
  /** Declares `lane`, `row`, `start`, `count` (loads of a row; 0 past the last row), and holds the row where it fits. */
  readonly open: string;
  /** Runs `body` over the row; `at` counts loads from the first row, `column` from the row's start. */
  sweep(body: (values: readonly string[][], at: string, column: string) => string): string;
}

/**
 * The text of a walk. Uniforms: `rows`, and `loads`, the loads of a row.
 * @param fetch statements that assign to variables: one list a name, one variable an element
 */
export function walkRows(
  { lanes, vec, held }: RowTile,
  names: readonly string[],
  fetch: (values: readonly string[][], at: string, column: string) => string,
): RowWalk {
  const values = (i: number) => names.map((name) => each(vec, (j) => `${name}${i}_${j}`));
  const declare = (i: number) => values(i).flat().map((v) => `var ${v} = 0.0;`).join(" ");
  const inRow = (i: number) => `if (lane + ${i * lanes}u < count)`;
  const at = (i: number) => `(start + lane + ${i * lanes}u)`;
  const column = (i: number) => `(lane + ${i * lanes}u)`;
  const held_ = each(held, (i) => `${declare(i)}\n  ${inRow(i)} { ${fetch(values(i), at(i), column(i))} }`);
  return {
    open: `let lane = me % ${lanes}u;
  let row = (group.y * groups.x + group.x) * ${256 / lanes}u + me / ${lanes}u;
  let start = row * u.loads;
  let count = select(0u, u.loads, row < u.rows);
  ${held_.join("\n  ")}`,
    sweep: (body) =>
      held > 0
        ? each(held, (i) => `${inRow(i)} { ${body(values(i), at(i), column(i))} }`).join("\n  ")
        : `for (var c = lane; c < count; c += ${lanes}u) { ${declare(0)}
    ${fetch(values(0), "(start + c)", "c")}
    ${body(values(0), "(start + c)", "c")} }`,
  };
}

/** Statements after which each variable holds its combination over the lanes of a row, in an order that never changes. */
export function joinLanes(
  { lanes }: Pick<RowTile, "lanes">,
  names: readonly string[],
  combine: (a: string, b: string) => string = (a, b) => `${a} + ${b}`,
): string {
  const steps = ["workgroupBarrier();", ...names.map((name, i) => `lanes${i}[me] = ${name};`)];
  for (let width = lanes; width > 1;) {
    const fan = width >= 4 ? 4 : 2;
    width /= fan;
    const sums = names.map((_, i) => {
      const terms = each(fan, (j) => `lanes${i}[me + ${j * width}u]`);
      return `lanes${i}[me] = ${terms.reduce(combine)};`;
    });
    steps.push(`workgroupBarrier();\n  if (lane < ${width}u) { ${sums.join(" ")} }`);
  }
  steps.push("workgroupBarrier();", ...names.map((name, i) => `${name} = lanes${i}[me - lane];`));
  return steps.join("\n  ");
}

/** Declares what {@linkcode joinLanes} of so many names goes through. */
export function laneMemory(names: number): string {
  return each(names, (i) => `var<workgroup> lanes${i}: array<f32, 256>;`).join("\n");
}

/** A kernel's entry with what {@linkcode walkRows} reads. */
export const rowEntry = `@compute @workgroup_size(256) fn main(
  @builtin(workgroup_id) group: vec3u, @builtin(num_workgroups) groups: vec3u, @builtin(local_invocation_index) me: u32,
)`;
