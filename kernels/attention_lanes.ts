/**
 * The tile products of attention for a device that runs a subgroup as one vector of a CPU: software adapters.
 *
 *   lane = rows of its own, whole, in registers;  workgroup = one subgroup of L lanes, a step = L rows of the other side
 *
 *   right side ──▶ a lane loads four numbers of one row ──subgroupBroadcast──▶ every lane multiplies them with its rows
 *
 * No workgroup memory, no barriers, no reductions over lanes. A load of single lanes is a loop over them there, some
 * hundred instructions; a broadcast is one. GFLOP/s of the forward kernel on lavapipe (subgroups of 8), two cores, f32
 * B1 H2 S512 D64:
 *   tiles through workgroup memory, 128×64 by 128 threads      4.8      (64×64: 4.6; one subgroup, 8×64: 2.0)
 *   a lane a row, every lane loading all of the other side     0.7      two rows 2.7, four 4.2
 *   broadcasts, a row a lane                                  13.4
 *   broadcasts, two rows                                      20.8  ◀
 *   broadcasts, four rows                                     11.7
 * Backward by the CPU's own clock: queries kernel 4.9 ─▶ 23, keys kernel 4.9 ─▶ 10 (a walk for dv and one for dk: 8).
 * B1 H4 S1024 D64, against naive attention: forward 5.0 (causal 11.6), backward 2.7 (5.8) times faster.
 */
import type { AttentionTile } from "./attention_common.ts";
import type { TileRows } from "./attention_tiles.ts";
import { components, each } from "./kernel.ts";

/** True for a software adapter, by its subgroups: GPUs have larger ones. */
export function isSoftware(subgroupSize: number): boolean {
  return subgroupSize > 0 && subgroupSize < 16;
}

/** Largest head size for which rows stay in registers, and the text short enough to compile in a second or two. */
export const lanesMost = 64;

/** The tile of subgroups of that size. */
export function lanesTile(subgroupSize: number): AttentionTile {
  return { tx: 1, ty: subgroupSize, rows: 2, columns: subgroupSize, depth: 4, lanes: true };
}

/** Declares the rows that a lane owns of a left side; "" for tiles that lie in workgroup memory. */
export function ownRows(tile: AttentionTile, operand: TileRows): string {
  if (!tile.lanes) return "";
  const { name, size, start, first, limit, scale = "" } = operand;
  return each(tile.rows, (r) => {
    const i = `(${first} + ty + ${r * tile.ty}u)`;
    return [
      `let ${name}Own${r} = ${start(`min(${i}, ${limit} - 1u)`)};`,
      ...each(Math.ceil(size / 4), (e) => `let ${name}${r}_${e} = ${name}_at(${name}Own${r}, ${e}u)${scale};`),
    ].join(" ");
  }).join("\n");
}

/** Declares `own`, four numbers of the row of a right side that is a lane's, as `use` wants them. */
function passed(
  { ty }: AttentionTile,
  { name, size, start, first, limit, least, scale = "" }: TileRows,
  use: (e: number, c: number) => string,
): string {
  const i = `(${first} + ty)`, exists = `${i} < ${limit}${least === undefined ? "" : ` && ${i} >= ${least}`}`;
  const steps = each(Math.ceil(size / 4), (e) =>
    [
      `{ let own = select(vec4f(), ${name}_at(place, ${e}u)${scale}, exists);`,
      ...each(ty, (c) => `{ let x = subgroupBroadcast(own, ${c}u); ${use(e, c)} }`),
      "}",
    ].join("\n"));
  return `{ let place = ${start(`min(${i}, ${limit} - 1u)`)}; let exists = ${exists};\n${steps.join("\n")} }`;
}

/** `${s}r_c` += A·Bᵀ, A as `ownRows` declared it. */
export function lanesDot(tile: AttentionTile, s: string, a: TileRows, b: TileRows): string {
  return passed(
    tile,
    b,
    (e, c) =>
      each(
        tile.rows,
        (r) => components.map((x) => `${s}${r}_${c} = fma(${a.name}${r}_${e}.${x}, x.${x}, ${s}${r}_${c});`).join(" "),
      ).join(" "),
  );
}

/** `${o}r_e` += P·B, P in `${p}r_c`. */
export function lanesMix(tile: AttentionTile, p: string, b: TileRows, o: string): string {
  return passed(
    tile,
    b,
    (e, c) => each(tile.rows, (r) => `${o}${r}_${e} = fma(vec4f(${p}${r}_${c}), x, ${o}${r}_${e});`).join(" "),
  );
}
