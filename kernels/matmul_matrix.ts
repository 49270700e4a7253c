/**
 * Matrix products on matrix units: C[b, m, n] = A[b, m, k] · B[b, k, n], f16 in memory and into the units, f32 sums.
 *
 *            ◀── bn ──▶              A workgroup makes a tile of C, a subgroup wm by wn of it, in matrices of the units' own
 *         bk ┌────┬────┐             shape (16x16 results from 16 terms on NVIDIA, 8x8x8 elsewhere). A slice of A and a
 *            └────┴────┘             slice of B lie in workgroup memory as they lie in their operands, so that transposes are
 *   ▲ ┌────┐ ┌────┬────┐             read in place; rows are eight halves longer than their elements, so that a matrix's
 *   bm├────┤ │ wn │    │ wm          rows start in different banks. The slices after them are on their way in registers.
 *   ▼ └────┘ └────┴────┘             Sums leave through a strip of workgroup memory: matrices can be stored whole or not at
 *                                    all, and there lanes convert, scale, add what C or a residual holds, and stop at C's
 *                                    edges.
 *
 * Nothing but the store knows ragged edges of m and n: loads repeat the last row. What is not f16 in whole vectors of eight
 * is packed first (matmul_matrix_pack.ts).
 *
 * Floor at 4096³: 137 GFLOP at 620 TFLOP/s, which these matrices reach from registers, 0.22 ms. cuBLAS 685, by instructions
 * that WGSL does not reach. H200, Dawn, TFLOP/s at 4096³, NN, f16 out; the same with robustness but for v1:
 *   v1  128x256x32, 64x64 a subgroup, loop by k < end                  262, with robustness 187
 *       128x128x32: 262 / 215    64x128, 128x64 and 64x64 a workgroup: 115 to 180 / the same or less
 *   v2  the loop's length is known to the compiler: Dawn counts every other loop, and a second exit costs as much
 *                                                                      128x128x32 271, 128x256x32 262
 *       64x32 a subgroup: 187    bk 16: 231    bk 64: 218    256x128x32: 247    128x192, 64x96 a subgroup: 189
 *       16 subgroups of 64x32 on 128x256x32: 265    matrices of 16x8: within 5 % of 16x16
 *       two slices in workgroup memory, stored after the products: 63 by index (175 without robustness), 174 unrolled by
 *       two (bk 16: 236); stored before them, loads two steps ahead: 64, 179 (bk 16: 254, 128x256x16: 235)
 *       loads issued after half of the products: 271
 *   v3  rows of slices stored in an order in which eight lanes meet eight banks              286   (NT 270)
 *       bands of 1 to 66 rows of tiles: 284 to 290; 4 is best                                290, 8192³ 302
 *   v4  f16 rounded without branches, on another day v3 283 / 208 with K 1024:           300, K 1024 245
 *       by the device, where it was found to round as we do                               305, K 1024 262
 *       loads before the barrier                                                          308, TN 322, NT 287   ◀ this file
 *       96x128 by 48x64, three workgroups: 248    128x160 264, 160x128 247 (TN 268)    256x128 281 (TN 307), 128x256 282
 *       loads two steps ahead, 32 registers more: 291    both sides' matrices before their products: 309    all of a step: 298
 *       lines of 128 bytes for A, every second step: 274    storage bound read_write: 261    bands of 1 to 16 rows: 303 to 305
 *       on a day of 312: loads one after each fourth of the products 306; A's matrices out of storage, without a slice, 99,
 *       B's 142; two slices by index 125, 128x256x16 118
 *       slices in panels of 8 columns without pad, units of 16x8x8: half; those units reach 456 from registers
 *   What is added read where it lies; silu(gate) · up by the store, from slices of B whose rows are the gate's and up's in
 *   turn; a compiled call's bias and activation in the store (matmul_matrix_ending.ts). In a prompt of 1,024 tokens of a Llama
 *   of 1B, bf16: gate and up with their gate 300 µs (229), down with 8192 terms 130 (264), q, k and v 80 (161)
 *   1024³: 128x128 76, 128x64 113, 64x64x64 135, 64x128x64 by 32x32 144. Loops of any length around 64 baked steps, as
 *   here, do as well as the whole length baked in.
 *
 * What bounds v4, by leaving parts out: without loads from storage 541, without their stores into slices either 549, without
 * barriers too 587; without barriers alone 301; without the loads of A 383, of B 358. Loads that always hit the cache, since
 * they repeat one address: 324, so that it is not the way to them but the path that they share with the loads of matrices
 * and the stores into slices: at 128 bytes a clock these take 384 clocks a step, loads 256 more at the 64 bytes a clock that
 * cached data comes at, of the step's 790. Larger tiles load less and leave one workgroup resident: workgroups share 48 KiB
 * of a processor's memory, whatever they take (up to 16 KiB each three run, up to 24 two, beyond one).
 */
import { each, type Kernel, kernel, type UniformType, wgsl } from "./kernel.ts";
import { type Added, addedName, type MatmulDType } from "./matmul.ts";
import { type Ending, endingName, endingReads, endingUniforms } from "./matmul_matrix_ending.ts";
import { foldUniforms, type MatrixFold } from "./matmul_matrix_fold.ts";
import { storer, typeOfC } from "./matmul_matrix_store.ts";

/** A shape of the matrix units: D[m, n] += A[m, k] · B[k, n]. */
export interface MatrixUnit {
  readonly m: number;
  readonly n: number;
  readonly k: number;
}

/** Sizes of a workgroup's tile, its step along k, and the part of the tile that a subgroup makes. */
export interface MatrixSizes {
  /** Rows of C that a workgroup makes. */
  readonly bm: number;
  /** Columns of C that a workgroup makes. */
  readonly bn: number;
  /** Terms between two barriers. */
  readonly bk: number;
  /** Rows of a subgroup's part. */
  readonly wm: number;
  /** Columns of a subgroup's part. */
  readonly wn: number;
  /** Slices in workgroup memory: 2 save a barrier, and take twice the memory. */
  readonly buffers: 1 | 2;
}

/** A tile on the matrix units of a device. */
export interface MatrixTile extends MatrixSizes {
  readonly kind: "matrix";
  readonly splits: number;
  readonly unit: MatrixUnit;
  /** Lanes of a subgroup. */
  readonly lanes: number;
}

/** What a kernel reads and writes. */
export interface MatrixParts {
  /** Whether rows of A are adjacent in memory, rather than its columns. */
  readonly transposedA: boolean;
  readonly transposedB: boolean;
  readonly out: MatmulDType;
  /** Elements of C that are sure to lie in C together; 16 bits need 2. */
  readonly outVec: 1 | 2 | 4 | 8;
  /** k ends with a step: nothing to mask. */
  readonly exactK: boolean;
  /** Steps along k that the compiler knows to follow one another; every split's steps are a multiple. */
  readonly inner: number;
  /** What is added before the store: see {@linkcode Added}. */
  readonly adds?: Added;
  /** Operands that come with exponents: a power of two a row of A, a column of B, by which C is multiplied. */
  readonly scaledA: boolean;
  readonly scaledB: boolean;
  /** f16 is rounded by the device, which does it as we do. */
  readonly deviceRounds: boolean;
  /**
   * C = silu(A · B₁) · (A · B₂), for B₁ and B₂ whose rows are adjacent along k: one below the other, or in buffers of their
   * own, `b` and `up`. Columns of the two come in turn, eight by eight: a lane stores those that belong together.
   */
  readonly gate?: "joined" | "apart";
  /** Steps after the product, which neither a gate nor anything added precedes. */
  readonly ending?: Ending;
  /** C is folded to what a loss needs of logits, and not stored. */
  readonly fold?: MatrixFold;
}

const letters = { f32: "f", f16: "h", bf16: "b" };

const uniforms: Record<string, UniformType> = Object.fromEntries(
  ("m n k offset_a offset_b offset_c offset_r stride_a stride_b batch1 batch2 a0 a1 a2 b0 b1 b2 tilesM tilesN splits " +
    "chunk partial offset_up workgroups").split(" ").map((name) => [name, "u32"]),
);

/** Halves by which a row of a slice is longer than its elements, so that the rows of a matrix start in different banks. */
const pad = 8;

interface Side {
  readonly x: "a" | "b";
  readonly alongK: boolean;
  readonly extent: number;
  readonly first: string;
  readonly size: string;
  /** vec4u from row to row of the slice. */
  readonly stride: number;
  readonly width: number;
  readonly words: number;
  readonly loads: number;
}

/** A slice lies as its operand does: rows adjacent along k or along the tile. */
function sidesOf({ bm, bn, bk, wm, wn, lanes }: MatrixTile, { transposedA, transposedB }: MatrixParts): [Side, Side] {
  const threads = bm / wm * (bn / wn) * lanes;
  const side = (x: "a" | "b", alongK: boolean, extent: number): Side => {
    const [height, width] = alongK ? [extent, bk] : [bk, extent];
    const stride = (width + pad) / 8;
    const loads = height * width / 8 / threads;
    return {
      x,
      alongK,
      extent,
      first: `first_${x}`,
      size: x === "a" ? "u.m" : "u.n",
      stride,
      width,
      words: height * stride,
      loads,
    };
  };
  return [side("a", !transposedA, bm), side("b", transposedB, bn)];
}

/** How a subgroup's sums pass through workgroup memory: `columns` at a time, rows of `stride` f32; `words` of vec4u in all. */
function stripOf({ bm, bn, wm, wn, unit }: MatrixTile, { gate }: Pick<MatrixParts, "gate">, words: number) {
  const subgroups = bm / wm * (bn / wn), least = gate ? 16 : 8;
  let columns = wn & -wn; // lanes share rows evenly
  const size = () => subgroups * unit.m * (columns + 8) / 4;
  while (columns % (2 * unit.n) === 0 && columns / 2 % least === 0 && size() > words) columns /= 2;
  return { columns, stride: columns + 8, words: size() };
}

/** Bytes of workgroup memory of a tile. */
export function matrixMemory(tile: MatrixTile, parts: MatrixParts): number {
  const [a, b] = sidesOf(tile, parts), words = (a.words + b.words) * tile.buffers;
  return 16 * Math.max(words, stripOf(tile, parts, words).words);
}

/** Columns of a strip. */
export function stripColumns(tile: MatrixTile, parts: MatrixParts): number {
  const [a, b] = sidesOf(tile, parts);
  return stripOf(tile, parts, (a.words + b.words) * tile.buffers).columns;
}

/** The kernel of a tile. */
export function matmulMatrix(tile: MatrixTile, parts: MatrixParts): Kernel {
  const { bm, bn, bk, wm, wn, buffers, unit, lanes } = tile;
  const {
    transposedA,
    transposedB,
    out,
    outVec,
    exactK,
    inner,
    adds,
    scaledA,
    scaledB,
    deviceRounds,
    gate,
    ending,
    fold,
  } = parts;
  const name = `matmul_matrix_${bm}x${bn}x${bk}_${wm}x${wn}_${buffers}_u${unit.m}x${unit.n}x${unit.k}_s${lanes}_` +
    `${transposedA ? "t" : "n"}${transposedB ? "t" : "n"}_` +
    (fold ? `fold${fold.softcap ? "_cap" : ""}${fold.sum ? "_sum" : ""}` : `${letters[out]}${outVec}`) +
    `${exactK ? "_exact" : ""}${inner > 1 ? `_i${inner}` : ""}${addedName(adds)}` +
    `${scaledA ? "_sa" : ""}${scaledB ? "_sb" : ""}${deviceRounds ? "_r" : ""}${gate ? `_gate_${gate}` : ""}${
      ending ? endingName(ending) : ""
    }`;
  return kernel(name, {
    reads: {
      ...{ a: "vec4u", b: "vec4u" },
      ...gate === "apart" ? { up: "vec4u" } : {},
      ...scaledA ? { scale_a: "i32" } : {},
      ...scaledB ? { scale_b: "i32" } : {},
      ...fold ? { labels: "i32" } : {},
      ...adds === "r" ? { r: typeOfC(parts) } : {},
      ...ending ? endingReads(ending) : {},
    },
    writes: fold ? { c: "vec2f", chosen: "f32", ...fold.sum ? { sums: "f32" } : {} } : { c: typeOfC(parts) },
    uniforms: { ...uniforms, ...fold ? foldUniforms : ending ? endingUniforms(ending) : {} },
    requires: ["f16", "subgroups", "subgroup-matrix"],
  }, () => body(tile, parts));
}

function body(tile: MatrixTile, parts: MatrixParts): string {
  const { bm, bn, bk, wm, wn, buffers, unit, lanes } = tile;
  const { exactK, inner, gate } = parts;
  const subgroups = bm / wm * (bn / wn), threads = subgroups * lanes;
  const rows = wm / unit.m, columns = wn / unit.n;
  const left = `subgroup_matrix_left<f16, ${unit.k}, ${unit.m}>`;
  const right = `subgroup_matrix_right<f16, ${unit.n}, ${unit.k}>`;
  const result = `subgroup_matrix_result<f32, ${unit.n}, ${unit.m}>`;
  const sides = sidesOf(tile, parts);
  const slice = sides[0].words + sides[1].words;
  const start = { a: 0, b: sides[0].words };
  const strip = stripOf(tile, parts, slice * buffers);
  const every = (f: (side: Side, id: string, p: number) => string) =>
    sides.flatMap((side) => each(side.loads, (p) => f(side, `${side.x}${p}`, p)));

  // Where a thread's loads start (g) and where they land (s). Those of B₁ and of B₂ take turns, and so do their rows.
  const isGated = (x: "a" | "b") => gate !== undefined && x === "b";
  const places = every(({ x, alongK, first, size, width, stride }, id, p) => {
    const second = isGated(x) && p % 2 === 1;
    const q = `(li + ${(isGated(x) ? p >> 1 : p) * threads}u)`, column = `${q} % ${width / 8}u`;
    // Rows of four vectors are five apart: rows 0, 4, 1, 5, … let eight lanes write to eight different banks.
    const row = width === 32
      ? `(((${q} / 4u) & ~7u) | ((${q} >> 3u) & 3u) | (((${q} / 4u) & 1u) << 2u))`
      : `${q} / ${width / 8}u`;
    const at = alongK
      ? `${second ? "u.offset_up" : `base_${x}`} + min(${first} + ${row}, ${size} - 1u) * u.stride_${x}${
        exactK ? ` + ${column} * 8u` : ""
      }`
      : `base_${x} + ${exactK ? `${row} * u.stride_${x} + ` : ""}min(${first} + ${column} * 8u, ${size} - 8u)`;
    const to = isGated(x) ? `((${row}) / 8u * 16u + (${row}) % 8u + ${second ? 8 : 0}u)` : row;
    return wgsl`  let g_${id} = (${at}) >> 3u; let s_${id} = ${start[x]}u + ${to} * ${stride}u + ${column};${
      exactK ? "" : ` let k_${id} = ${alongK ? `${column} * 8u` : row};`
    }`;
  });
  const load = (at: string) =>
    every(({ x, alongK }, id, p) => {
      const from = gate === "apart" && isGated(x) && p % 2 === 1 ? "up" : x;
      const steps = (k: string) => alongK ? `(${k} >> 3u)` : `${k} * (u.stride_${x} >> 3u)`;
      if (exactK) return `    v_${id} = ${from}[g_${id} + ${steps(at)}];`;
      const k = `${at} + k_${id}`;
      return `    v_${id} = select(vec4u(), ${from}[g_${id} + ${
        steps(`min(${k}, ${alongK ? "(u.k - 1u) & ~7u" : "u.k - 1u"})`)
      }], ${k} < end);`;
    });
  const plus = (buffer: string, at: string) => buffer === "" ? at : `${buffer} + ${at}`;
  const save = (buffer: string) => every((_, id) => `    slices[${plus(buffer, `s_${id}`)}] = v_${id};`);
  const fragment = ({ x, alongK, stride }: Side, i: number, kk: number, buffer: string) => {
    const at = alongK
      ? `at_${x} + ${start[x] + i * stride + kk * unit.k / 8}u`
      : `at_${x} + ${start[x] + kk * unit.k * stride + i / 8}u`;
    return `subgroupMatrixLoad<${x === "a" ? left : right}, ${alongK === (x === "a") ? "row" : "col"}_major>(&slices, ${
      plus(buffer, at)
    }, ${stride}u)`;
  };
  const multiply = (buffer: string) =>
    each(bk / unit.k, (kk) =>
      wgsl`    {
${each(rows, (i) => `      let a${i} = ${fragment(sides[0], i * unit.m, kk, buffer)};`)}
${
        each(columns, (j) =>
          wgsl`      let b${j} = ${fragment(sides[1], j * unit.n, kk, buffer)};
${each(rows, (i) => `      c${i}_${j} = subgroupMatrixMultiplyAccumulate(a${i}, b${j}, c${i}_${j});`)}`)
      }
    }`);
  // A bound that the compiler knows spares the counter that it would add to the loop.
  const [head, tail, bound] = inner === 1 ? ["  while (k < end) {", "  }", "last"] : [
    wgsl`  for (var outer = 0u; outer < (end - begin) / ${inner * bk}u; outer++) {
  for (var step = 0u; step < ${inner}u; step++) {`,
    "  } }",
    `end - ${bk}u`,
  ];
  const ahead = `    k += ${bk}u; let next = min(k, ${bound});`;
  const loop = buffers === 1
    ? wgsl`${head}
${save("")}
${ahead}
${load("next")}
    workgroupBarrier();
${multiply("")}
    workgroupBarrier();
${tail}`
    : wgsl`${save("")}
  workgroupBarrier();
  var now = 0u;
${head}
${ahead}
${load("next")}
${multiply("now")}
    now = ${slice}u - now;
${save("now")}
    workgroupBarrier();
${tail}`;
  const exponentsAt = ({ x, alongK }: Side) => `base_${x} / ${alongK ? `u.stride_${x}` : "u.k"}`;
  // A lane has eight columns of C, and so many of a strip for each. They are the same in every row that it stores: their
  // exponents are read once.
  const share = gate ? 2 : 1;
  const exponents = (h: number) =>
    each(
      2 * share,
      (i) =>
        `let e_b${h}_${i} = vec4i(${
          each(4, (j) =>
            `scale_b[scales_b + ${i < 2 ? "" : "u.n + "}min(n + ${
              h * strip.columns / share + 4 * (i % 2) + j
            }u, u.n - 1u)]`).join(", ")
        });`,
    ).join(" ");
  const perRow = strip.columns / 8 / share, atOnce = Math.min(unit.m, lanes / perRow);
  const at = ({ x, alongK, stride }: Side, i: string) => `let at_${x} = ${i}${alongK ? ` * ${stride}u` : " / 8u"};`;
  return wgsl`var<workgroup> slices: array<vec4u, ${Math.max(slice * buffers, strip.words)}>;
${storer(parts, strip.columns)}
@compute @workgroup_size(${threads})
fn main(@builtin(workgroup_id) wid: vec3u, @builtin(local_invocation_index) li: u32) {
  let id = wid.y * 65535u + wid.x;
  if (id >= u.workgroups) { return; }
  let tiles = u.tilesM * u.tilesN; let tile = id % tiles; let split = id / tiles % u.splits; let z = id / tiles / u.splits;
  let z2 = z % u.batch2; let z1 = z / u.batch2 % u.batch1; let z0 = z / u.batch2 / u.batch1;
  let base_a = u.offset_a + z0 * u.a0 + z1 * u.a1 + z2 * u.a2;
  let base_b = u.offset_b + z0 * u.b0 + z1 * u.b1 + z2 * u.b2;
  let base_c = u.offset_c + split * u.partial + z * u.m * u.n;
  let begin = split * u.chunk; let end = min(u.k, begin + u.chunk);
  var k = begin;${inner === 1 ? ` let last = begin + (end - begin - 1u) / ${bk}u * ${bk}u;` : ""}
  // A few rows of tiles at a time, so that neighbours in time share their operands in the cache.
  let band = tile / (4u * u.tilesN) * 4u; let high = min(u.tilesM - band, 4u); let within = tile % (4u * u.tilesN);
  let first_a = (band + within % high) * ${bm}u; let first_b = within / high * ${bn / share}u;
  let subgroup = li / ${lanes}u; let lane = li % ${lanes}u;
  let row = subgroup / ${bn / wn}u * ${wm}u; let column = subgroup % ${bn / wn}u * ${wn}u;
  ${at(sides[0], "row")} ${at(sides[1], "column")}
${places}
${each(rows, (i) => each(columns, (j) => `  var c${i}_${j} = ${result}();`).join("\n"))}
${every((_, id) => `  var v_${id} = vec4u();`)}
${load("begin")}
${loop}
  // Each subgroup's sums pass through a strip of its own, from where its lanes store eight neighbours at a time.
  let mine = subgroup * ${unit.m * strip.stride / 4}u;
  let r = lane / ${perRow}u; let source = mine + r * ${strip.stride / 4}u + lane % ${perRow}u * ${2 * share}u;
  let m = first_a + row + r; let n = first_b + column${gate ? " / 2u" : ""} + lane % ${perRow}u * 8u;
${parts.scaledA ? `  let scales_a = ${exponentsAt(sides[0])};` : ""}${
    parts.scaledB
      ? `  let scales_b = ${exponentsAt(sides[1])};\n${each(wn / strip.columns, (h) => `  ${exponents(h)}`).join("\n")}`
      : ""
  }
${
    each(rows, (i) =>
      each(wn / strip.columns, (h) =>
        wgsl`${
          each(strip.columns / unit.n, (j) =>
            `  subgroupMatrixStore<row_major>(&slices, mine + ${j * unit.n / 4}u, c${i}_${
              h * strip.columns / unit.n + j
            }, ${strip.stride / 4}u);`)
        }
  workgroupBarrier();
  for (var p = 0u; p < ${unit.m / atOnce}u; p++) {
    let word = source + p * ${atOnce * strip.stride / 4}u;
    store(${
          [
            ...["base_c", `m + ${i * unit.m}u + p * ${atOnce}u`, `n + ${h * strip.columns / share}u`],
            ...each(2 * share, (w) =>
              `bitcast<vec4f>(slices[word + ${w}u])`),
            ...parts.scaledA ? ["scales_a"] : [],
            ...parts.scaledB
              ? each(2 * share, (w) => `e_b${h}_${w}`)
              : [],
          ].join(", ")
        });
  }
  workgroupBarrier();`).join("\n"))
  }
}`;
}
