/**
 * What attention's kernels on subgroup matrices share, as text.
 *
 * A workgroup is `down` subgroups, one below the other. Each owns `high · m` rows, of the scores as of the results:
 *
 *                step columns           size columns
 *               ┌────────────┐        ┌──────────────────┐
 *    high · m   │ subgroup 0 │  × B = │    subgroup 0    │
 *               ├────────────┤        ├──────────────────┤
 *    high · m   │ subgroup 1 │        │    subgroup 1    │        down = 2
 *               └────────────┘        └──────────────────┘
 *
 * so that a matrix of B that a subgroup has loaded is multiplied `high` times. Two subgroups may stand abreast over the
 * same rows, each with products of its own. A matrix cannot be indexed: scores go through workgroup memory (f32, a piece
 * for the rows of a subgroup), are turned into p by the lanes, a row to `laneCount` of them, and come back as f16: in the row's
 * pad where that has room, else over the scores, each lane's over its own, so that no lane writes what another reads.
 *
 * A piece is chosen by the subgroup and everything inside it by constants: the bounds check of a matrix load then falls
 * away at compile time, which would otherwise make its stride a variable. Rows of 16-bit operands are an odd number of
 * 16 bytes long, so that the eight rows that a matrix load touches at once lie in different banks.
 */
import { each } from "./kernel.ts";

/** How a tile is spread over subgroups, in matrices of the adapter's shape. */
export interface MatrixTile {
  /** Rows, columns and depth of one matrix product. */
  readonly m: number;
  readonly n: number;
  readonly k: number;
  /** Lanes of a subgroup. */
  readonly lanes: number;
  /** Subgroups, one below the other. */
  readonly down: number;
  /** Subgroups over the same rows. */
  readonly abreast: 1 | 2;
  /** Matrices that a subgroup owns, one below the other. */
  readonly high: number;
  /** Columns of scores of one step. */
  readonly step: number;
  /** Vec4f between a row of scratch and the next. */
  readonly pad: number;
}

/** Threads of a workgroup. */
export function matrixThreads({ down, abreast, lanes }: MatrixTile): number {
  return down * abreast * lanes;
}

/** Rows of a workgroup's tile. */
export function matrixRows({ down, high, m }: MatrixTile): number {
  return down * high * m;
}

/** Lanes that share a row of scores. */
export function laneCount({ lanes, abreast, high, m }: MatrixTile): number {
  return abreast * lanes / (high * m);
}

/** Part of a kernel's name. */
export function matrixTileName(tile: MatrixTile): string {
  const { m, n, k, lanes, abreast, high, step, pad } = tile;
  return `${matrixRows(tile)}x${step}_h${high}${abreast === 2 ? "_abreast" : ""}_m${m}x${n}x${k}_l${lanes}_p${pad}`;
}

const ceilTo = (x: number, unit: number): number => Math.ceil(x / unit) * unit;
const gcd = (a: number, b: number): number => b === 0 ? a : gcd(b, a % b);
const lcm = (a: number, b: number): number => a / gcd(a, b) * b;

/** A head size in whole matrices, whether it is summed over or made, and in 16 bytes. */
export function paddedSize({ n, k }: MatrixTile, size: number): number {
  return ceilTo(size, lcm(lcm(n, k), 8));
}

/** True when a tile comes out even. */
export function isMatrixTile(tile: MatrixTile): boolean {
  const { m, n, k, lanes, high, step } = tile, perRow = laneCount(tile);
  return Number.isInteger(high) && high > 0 && step % lcm(lcm(n, k), 8) === 0 && step % m === 0 &&
    Number.isInteger(perRow) && (perRow & (perRow - 1)) === 0 && perRow <= lanes && (step / 8) % perRow === 0 &&
    (isBeside(tile) || perRow === 1 || (perRow === 2 && step === 16));
}

/** The left operand of the scores on its way through the place of the right one, `step` rows at a time. */
export function leftStaged({ m, high, step }: MatrixTile, staged: Staged): Staged {
  let rows = high * m;
  while (rows > step) rows /= 2;
  return { ...staged, rows };
}

/** The types of matrices. */
function matrixTypes({ m, n, k }: MatrixTile): { left: string; right: string; result: string } {
  return {
    left: `subgroup_matrix_left<f16, ${k}, ${m}>`,
    right: `subgroup_matrix_right<f16, ${n}, ${k}>`,
    result: `subgroup_matrix_result<f32, ${n}, ${m}>`,
  };
}

/**
 * Declares the place of a thread: its subgroup `sg` from above and, where two are abreast, `side`; its `lane`; its `row` and
 * the one in the subgroup, and its `part` of it.
 */
export function placeText(tile: MatrixTile): string {
  const { lanes, abreast, high, m } = tile, all = abreast * lanes, rows = high * m;
  return [
    `let sg = li / ${all}u; let lane = li % ${lanes}u;${abreast === 2 ? ` let side = li / ${lanes}u % 2u;` : ""}`,
    `let rowIn = li % ${rows}u; let row = sg * ${rows}u + rowIn; let part = li % ${all}u / ${rows}u;`,
  ].join("\n");
}

/** Rows of an operand in workgroup memory. */
export interface Staged {
  readonly name: string;
  readonly rows: number;
  /** Elements of a row, whole matrices. */
  readonly size: number;
  /** The places of the left and the right half of its columns, where they are apart; the argument is 0 or 1 in WGSL. */
  readonly half?: (i: string) => string;
}

function strideOf({ size, half }: Pick<Staged, "size" | "half">): number {
  return (size / (half === undefined ? 8 : 16)) | 1;
}

/** Bytes that it takes, or half of it where halves are apart. */
export function stagedBytes(staged: Pick<Staged, "rows" | "size" | "half">): number {
  return staged.rows * strideOf(staged) * 16;
}

/** Declares it. */
export function stagedMemory(staged: Staged): string {
  return `var<workgroup> ${staged.name}: array<vec4u, ${stagedBytes(staged) / 16}>;`;
}

/** Where the operand's rows come from: `<name>_at` of a reader, and where the row of index `i` starts. */
export interface MatrixSource {
  readonly name: string;
  readonly start: (i: string) => string;
  /** First and last row that exist; others read one of these. */
  readonly least?: string;
  readonly most: string;
  /** It reads bf16: `<name>_narrow` makes f16 of it on the way from registers to workgroup memory. */
  readonly wide?: boolean;
}

/** Loads and stores that bring `rows` rows of a source from row `first` on into workgroup memory, through registers. */
export interface Transfer {
  /** Declares the registers. */
  readonly declare: string;
  /** Fills them with the rows from `first` on. */
  readonly load: (first: string) => string;
  /** Puts them into workgroup memory. */
  readonly store: string;
}

/** The transfer of a source into its place, by all threads of a workgroup. */
export function transfer(tile: MatrixTile, source: MatrixSource, staged: Staged, id = `${source.name}Next`): Transfer {
  const all = matrixThreads(tile), d8 = staged.size / 8, count = staged.rows * d8;
  const loads = Math.ceil(count / all), stride = strideOf(staged);
  const place = (i: number): { x: string; row: string; d: string; partial: boolean } => {
    const partial = (i + 1) * all > count;
    const x = partial ? `min(li + ${i * all}u, ${count - 1}u)` : `(li + ${i * all}u)`;
    return { x, row: `(${x} / ${d8}u)`, d: `(${x} % ${d8}u)`, partial };
  };
  return {
    declare: each(loads, (i) => `var ${id}${i} = vec4u();`).join(" "),
    load: (first) =>
      each(loads, (i) => {
        const { row, d } = place(i), { least, most } = source;
        const at = least === undefined
          ? `min(${first} + ${row}, ${most})`
          : `clamp(${first} + ${row}, ${least}, ${most})`;
        return `{ let i = ${at}; ${id}${i} = ${source.name}_at(${source.start("i")}, ${d}); }`;
      }).join("\n"),
    store: each(loads, (i) => {
      const { row, d, partial } = place(i);
      const value = source.wide ? `${source.name}_narrow(${id}${i})` : `${id}${i}`;
      const text = staged.half === undefined
        ? `${staged.name}[${row} * ${stride}u + ${d}] = ${value};`
        : `${staged.half(`${d} / ${d8 / 2}u`)}[${row} * ${stride}u + ${d} % ${d8 / 2}u] = ${value};`;
      return partial ? `if (li + ${i * all}u < ${count}u) { ${text} }` : text;
    }).join("\n"),
  };
}

/** A matrix load from a staged operand: rows from `row`, columns from `column`. */
function stagedLoad(
  staged: Staged,
  type: string,
  major: "row_major" | "col_major",
  row: number,
  column: number,
): string {
  const stride = strideOf(staged), { name, size, half } = staged, right = half !== undefined && column >= size / 2;
  const place = half?.(right ? "1" : "0") ?? name, at = row * stride + (column - (right ? size / 2 : 0)) / 8;
  return `subgroupMatrixLoad<${type}, ${major}>(&${place}, ${at}u, ${stride}u)`;
}

/** Vec4f from row to row of scratch: f32 rows, one piece a subgroup, for scores on their way to the lanes and results out. */
function scratchStride({ step, pad }: MatrixTile): number {
  return step / 4 + pad;
}

/** Bytes of all subgroups' pieces. */
export function scratchBytes(tile: MatrixTile): number {
  return matrixRows(tile) * scratchStride(tile) * 16;
}

/** Declares the pieces, or `sets` of them. */
export function scratchMemory(tile: MatrixTile, name: string, sets = 1): string {
  const { down, high, m } = tile, pieces = `array<array<vec4f, ${high * m * scratchStride(tile)}>, ${down}>`;
  return `var<workgroup> ${name}: ${sets === 1 ? pieces : `array<${pieces}, ${sets}>`};`;
}

/** Stores the subgroup's matrix that is `r`-th from above and `c`-th from the left into its piece. */
function scratchStore(tile: MatrixTile, name: string, r: number, c: number, value: string): string {
  const stride = scratchStride(tile), at = r * tile.m * stride + c * tile.n / 4;
  return `subgroupMatrixStore<row_major>(&${name}[sg], ${at}u, ${value}, ${stride}u);`;
}

/** Whether 16-bit scores lie in the pad, beside those that they come from: the next step's may then be stored at once. */
export function isBeside({ step, pad }: MatrixTile): boolean {
  return pad >= step / 8;
}

/** Where a row of 16-bit scores begins. Of two lanes over 16 scores, each has one of vec4f 1 and 2 among its own four. */
function narrowStart(tile: MatrixTile): number {
  return isBeside(tile) ? tile.step / 4 : laneCount(tile) - 1;
}

/** Loads the subgroup's matrix of 16-bit scores that is `r`-th from above, columns from `column` on. */
function narrowLoad(tile: MatrixTile, name: string, r: number, column: number): string {
  const stride = scratchStride(tile), at = r * tile.m * stride + narrowStart(tile) + column / 8;
  return `subgroupMatrixLoad<${matrixTypes(tile).left}, row_major>(&${name}[sg], ${at}u, ${stride}u)`;
}

/** One unit of eight neighbouring scores of a lane's row. */
export interface Unit {
  /** First column in the step. */
  readonly column: string;
  /** The two vec4f in scratch. */
  readonly read: (name: string, half: 0 | 1) => string;
  /** Stores them, eight f16 in a vec4u. */
  readonly write: (name: string, value: string) => string;
}

/** Eight f16 of two vec4f. */
export function packUnit(a: string, b: string): string {
  return `vec4u(${
    [`${a}.xy`, `${a}.zw`, `${b}.xy`, `${b}.zw`].map((x) => `bitcast<u32>(vec2<f16>(${x}))`).join(", ")
  })`;
}

/** The units of eight scores that a lane owns. */
export function unitsOf(tile: MatrixTile): Unit[] {
  const perRow = laneCount(tile);
  return Array.from({ length: tile.step / 8 / perRow }, (_, i) => {
    const unit = perRow === 1 ? `${i}u` : `(${i * perRow}u + part)`;
    return {
      column: `${unit} * 8u`,
      read: (name, half) => `${name}[sg][rowIn * ${scratchStride(tile)}u + ${unit} * 2u + ${half}u]`,
      write: (name, value) => {
        const at = `rowIn * ${scratchStride(tile)}u + ${narrowStart(tile)}u + ${unit}`;
        return `${name}[sg][${at}] = bitcast<vec4f>(${value});`;
      },
    };
  });
}

/** Statements that join a lane's value with those of the other lanes of its row. */
export function joinRow(tile: MatrixTile, name: string, join: (a: string, b: string) => string): string {
  return each(
    Math.log2(laneCount(tile)),
    (i) => `${name} = ${join(name, `subgroupShuffleXor(${name}, ${tile.high * tile.m << i}u)`)};`,
  )
    .join(" ");
}

/** Scores of the subgroup: `${s}r_c` = A·Bᵀ with A in `${a}r_d` and B's rows staged. */
export function scoreProduct(tile: MatrixTile, s: string, a: string, b: Staged): string {
  const { n, k, high, step } = tile, { right, result } = matrixTypes(tile), wide = step / n;
  return [
    ...each(high, (r) => each(wide, (c) => `var ${s}${r}_${c} = ${result}();`).join(" ")),
    ...each(b.size / k, (d) =>
      each(wide, (c) => {
        const multiply = each(
          high,
          (r) => `${s}${r}_${c} = subgroupMatrixMultiplyAccumulate(${a}${r}_${d}, b, ${s}${r}_${c});`,
        );
        return `{ let b = ${stagedLoad(b, right, "col_major", c * n, d * k)}; ${multiply.join(" ")} }`;
      }).join("\n")),
  ].join("\n");
}

/** Stores the scores `${s}r_c` into scratch. */
export function storeScores(tile: MatrixTile, s: string, scratch: string): string {
  return each(
    tile.high,
    (r) => each(tile.step / tile.n, (c) => scratchStore(tile, scratch, r, c, `${s}${r}_${c}`)).join(" "),
  ).join("\n");
}

/** Declares the subgroup's results, zeros: `${o}r_c` of `size` columns. */
export function zeroResults(tile: MatrixTile, o: string, size: number, declare = "var "): string {
  const { result } = matrixTypes(tile);
  return each(tile.high, (r) => each(size / tile.n, (c) => `${declare}${o}${r}_${c} = ${result}();`).join(" "))
    .join("\n");
}

/** Adds to the subgroup's results: `${o}r_c` += P·B, P's 16-bit scores in `p`, B's `step` rows staged. */
export function mixMatrices(tile: MatrixTile, o: string, p: string, b: Staged): string {
  const { n, k, high, step } = tile, { right } = matrixTypes(tile);
  return each(step / k, (d) =>
    [
      "{",
      ...each(high, (r) => `let p${r} = ${narrowLoad(tile, p, r, d * k)};`),
      ...each(b.size / n, (c) => {
        const multiply = each(
          high,
          (r) => `${o}${r}_${c} = subgroupMatrixMultiplyAccumulate(p${r}, b, ${o}${r}_${c});`,
        );
        return `{ let b = ${stagedLoad(b, right, "row_major", d * k, c * n)}; ${multiply.join(" ")} }`;
      }),
      "}",
    ].join("\n")).join("\n");
}

/**
 * Passes the subgroup's results out through its piece of scratch, as many columns at a time as fit there: `use` is text
 * that takes the vec4f of columns 4·d4 … of row `inRow` of the workgroup's tile. All threads must come here.
 */
export function passResults(
  tile: MatrixTile,
  o: string,
  size: number,
  scratch: string,
  use: (vec: string, inRow: string, d4: string) => string,
): string {
  const { n, m, high, step, lanes } = tile, stride = scratchStride(tile), wide = size / n, most = step / n;
  return each(Math.ceil(wide / most), (chunk) => {
    const columns = Math.min(most, wide - chunk * most), width4 = columns * n / 4;
    const stores = each(
      high,
      (r) => each(columns, (c) => scratchStore(tile, scratch, r, c, `${o}${r}_${chunk * most + c}`)).join(" "),
    );
    const vec = `${scratch}[sg][e / ${width4}u * ${stride}u + e % ${width4}u]`;
    return `workgroupBarrier();
    ${stores.join("\n")}
    workgroupBarrier();
    for (var e = lane; e < ${high * m * width4}u; e += ${lanes}u) {
      ${use(vec, `(sg * ${high * m}u + e / ${width4}u)`, `(${chunk * most * n / 4}u + e % ${width4}u)`)}
    }`;
  }).join("\n");
}

/** Declares the matrices that `leftText` fills. */
export function leftMatrices({ high, k, ...tile }: MatrixTile, size: number, to: string): string {
  const { left } = matrixTypes({ high, k, ...tile });
  return each(high, (r) => each(size / k, (d) => `var ${to}${r}_${d}: ${left};`).join(" ")).join("\n");
}

/**
 * Text that brings a subgroup's rows of a source into matrices `${to}r_d`, through the place of a staged operand, which
 * nobody may be using; it is free again afterwards.
 *
 * @param side of two subgroups abreast, the one whose rows these are
 */
export function leftText(
  tile: MatrixTile,
  source: MatrixSource,
  staged: Staged,
  first: string,
  to: string,
  side?: 0 | 1,
): string {
  const left = leftStaged(tile, staged), { high, m, k } = tile, { left: type } = matrixTypes(tile);
  const perGroup = high * m / left.rows;
  const rounds = Array.from({ length: matrixRows(tile) / left.rows }, (_, z) => {
    const at = z % perGroup * left.rows / m, take = transfer(tile, source, left, `${source.name}First${z}_`);
    const load = (r: number, d: number): string =>
      `${to}${at + r}_${d} = ${stagedLoad(left, type, "row_major", r * m, d * k)};`;
    return {
      before: `${take.declare} ${take.load(`${first} + ${z * left.rows}u`)}`,
      text: `${take.store}
    workgroupBarrier();
    if (sg == ${Math.floor(z / perGroup)}u${side === undefined ? "" : ` && side == ${side}u`}) {
      ${each(left.rows / m, (r) => each(staged.size / k, (d) => load(r, d)).join("\n")).join("\n")}
    }
    workgroupBarrier();`,
    };
  });
  return ["{", ...rounds.map(({ before }) => before), ...rounds.map(({ text }) => text), "}"].join("\n");
}
