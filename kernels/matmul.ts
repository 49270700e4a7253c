/**
 * Matrix products, batched: C[b, m, n] = A[b, m, k] · B[b, k, n], f32 f16 bf16 in memory, f32 in arithmetic.
 *
 *            ◀─── bn ───▶                A workgroup makes a tile of C. It walks along k in steps of bk: a slice of A and a
 *         bk ┌──────────┐                slice of B lie in workgroup memory as f32, both as [k][row or column], while
 *            │ slice of B                the slices after them are on their way in registers. A thread makes tm by tn
 *   ▲ ┌────┐ ├──┬───┬───┤                results: four neighbours, one stride of lanes on four more. An operand that is
 *   bm│ A  │ ├──┤tn │   │ tm             adjacent along k is turned while it is stored; its lanes are xor-ed with k, so
 *   ▼ └────┘ └──┴───┴───┘                that neither the stores nor the loads meet in one bank.
 *
 * A product with at most eight rows, or one column, streams its matrix instead: `rows` when the matrix is adjacent along k
 * (lanes share a dot product), `columns` when along n (a lane has columns, groups of lanes share k). A split of k writes
 * partial products, which a second kernel adds in a fixed order.
 *
 * naga checks every index it does not know and counts every loop: hence [constant][constant][lane] in workgroup memory,
 * where one check serves all loads, and no inner loop at all.
 *
 * Floor at 4096³ f32: 137 GFLOP at the 63 TFLOP/s of the FMA units, 2.2 ms. H200, Deno's WebGPU, TFLOP/s at 4096³ / 1024³:
 *   v1  128x128x16, 8x8 a thread, slices kept as they lie (rows of A padded), next slice loaded early   35.2 / 17.2
 *       not loaded early                                                                               36.2 / 14.5
 *       two slices in workgroup memory, one barrier                                                    39.6 / 19.1
 *       bk 8: 40.0 / 16.7     bk 32: 40.8 / 19.9     8x16 a thread: 40.9 / 12.4     16x8: 28.4 / 8.3
 *       128x256 and 256x128 with 128 results a thread: 26 to 38 / 8     256x128, 8x8: 34.7 / 8.5
 *       64x128: 43.2 / 25.8   64x64x32, 4x8: 36.6 / 34.1   64x64x32, 4x4: 33.0 / 30.6   32x32x32, 4x4: 29.9 / 24.0
 *       blocks of 16x2 or 4x8 threads for 8x4, bands of 1 or 16 tiles for 8: within 2, once each
 *   v2  turned while stored, rows padded: outer products from vec4f of rows and columns                42.3 / 19.3
 *       the same with 8x16 a thread: 45.7 / 12.2    with bk 32: 39.4 / 19.3    two slices: 40.6 / 19.6
 *       64x64x32, 4x8: 33.5 / 30.9, the banks of its stores
 *   v3  xor for padding, 16 KiB for 128x128x16                                                         44.6 /  -
 *       64x128 with k split in two                                                                      -   / 36.0
 *       8x16 a thread: 44.7, but f16 NT 39.3 for 43.1 and 48 x 2048x2048x64 34.6 for 37.5              ◀ this file, 8x8
 *   By layout, 128x128, NN / NT / TN / TT: f32 44.6 / 43.4 / 44.8 / 42.7, f16 43.8 / 43.1 / - / -, bf16 43.0 / 42.3 / - / -
 *   2048³ NT 42.4, 512³ 18.2, 256³ 4.3, 48 x 2048x2048x64 NT 37.5, 48 x 2048x64x2048 38.8, 1024x1024x4096 TN 43.5,
 *   4096x4096x1024 NT 42.9, 4096x128256x1024 NT bf16 43.6
 * GB/s where a copy moves 4206: one vector, matrix 16384x4096 f32 `rows` 4091, `columns` 4217, f16 3865 and 3718; 4096x4096
 * f32 3352 and 3031, f16 2739 (12 µs, of which a dispatch costs 3 to 4) and 1955; 128256x2048 bf16 4397. Eight vectors,
 * 8192x4096: f32 3181 and 1940, f16 2249 and 1481. For one vector a group of lanes does best with one row, for more with two.
 */
import { each, type Kernel, kernel, type KernelInterface, type UniformType, wgsl } from "./kernel.ts";
import { pack2, roundingFunctions } from "./storage.ts";

/** Element types of an operand; f16 and bf16 are packed two to a u32. */
export type MatmulDType = "f32" | "f16" | "bf16";

/** What of an operand is baked into a kernel. */
export interface MatmulOperand {
  readonly dtype: MatmulDType;
  /** false: columns are adjacent in memory; true: rows are. */
  readonly transposed: boolean;
  /** Elements that one load brings. */
  readonly vec: 1 | 4 | 8;
}

/** The tiled kernel: a workgroup's tile of C, its step along k, a thread's results. */
export interface MatmulTile {
  readonly kind: "tile";
  readonly bm: number;
  readonly bn: number;
  readonly bk: number;
  readonly tm: number;
  readonly tn: number;
  readonly splits: number;
}

/** The streaming kernels: up to `m` vectors at once, `groups` of `lanes` a workgroup, `unroll` steps in flight. */
export interface MatmulStream {
  readonly kind: "rows" | "columns";
  readonly m: number;
  readonly lanes: number;
  readonly groups: number;
  /** Rows of the matrix that a group of lanes has at once; `columns` has 1. */
  readonly rows: number;
  readonly unroll: number;
  readonly splits: number;
}

/** What a kernel reads and writes, whichever it is. */
export interface MatmulParts {
  readonly a: MatmulOperand;
  readonly b: MatmulOperand;
  readonly out: MatmulDType;
  /** 4: rows of C start at whole vectors. */
  readonly outVec: 1 | 4;
  /** k ends with a step: nothing to mask. */
  readonly exactK: boolean;
  /** What is added before the store. */
  readonly adds?: Added;
}

/** What a store adds to a product: what C holds, or what lies in a buffer `r` of its own as C lies in its. */
export type Added = "c" | "r";

/** The end of the name of a kernel that adds something. */
export const addedName = (adds?: Added): string => adds === undefined ? "" : adds === "c" ? "_add" : "_residual";

/** Where the numbers to add to C's from element `start` on begin. */
export const addedFrom = (adds: Added, start: string): string =>
  adds === "c" ? start : `${start} - u.offset_c + u.offset_r`;

const letters = { f32: "f", f16: "h", bf16: "b" };
const operandName = ({ dtype, transposed, vec }: MatmulOperand) => `${letters[dtype]}${transposed ? "t" : "n"}${vec}`;
const partsName = ({ a, b, out, outVec, exactK, adds }: MatmulParts) =>
  `${operandName(a)}_${operandName(b)}_${letters[out]}${outVec}${exactK ? "_exact" : ""}${addedName(adds)}`;

/** WGSL type of a buffer whose loads bring `vec` elements. */
function storage(dtype: MatmulDType, vec: 1 | 4 | 8): string {
  if (dtype === "f32") return vec === 1 ? "f32" : "vec4f";
  return vec === 1 ? "u32" : vec === 4 ? "vec2u" : "vec4u";
}

const uniforms: Record<string, UniformType> = Object.fromEntries(
  ("m n k offset_a offset_b offset_c offset_r stride_a stride_b batch1 batch2 a0 a1 a2 b0 b1 b2 tilesM tilesN splits " +
    "chunk partial workgroups").split(" ").map((name) => [name, "u32"]),
);

const bindings = ({ a, b, out, outVec, adds }: MatmulParts): KernelInterface => ({
  reads: {
    ...{ a: storage(a.dtype, a.vec), b: storage(b.dtype, b.vec) },
    ...adds === "r" ? { r: storage(out, outVec) } : {},
  },
  writes: { c: storage(out, outVec) },
  uniforms,
});

/** `load_x(i)`: the vec4f of the elements i, i + stride, …; `load1_x(i)`: one element; `load8_x(i)`: eight, as low and high. */
function loader(x: string, { dtype, vec }: MatmulOperand, stride = "1u"): string {
  const pair = dtype === "f32"
    ? ""
    : dtype === "f16"
    ? `fn pair_${x}(w: u32) -> vec2f { return unpack2x16float(w); }`
    : `fn pair_${x}(w: u32) -> vec2f { return vec2f(bitcast<f32>(w << 16u), bitcast<f32>(w & 0xffff0000u)); }`;
  const four = (w: string, p: string, q: string) => `vec4f(pair_${x}(${w}.${p}), pair_${x}(${w}.${q}))`;
  if (vec === 8) {
    return wgsl`${pair}
struct Eight_${x} { low: vec4f, high: vec4f }
fn load8_${x}(i: u32) -> Eight_${x} { let w = ${x}[i >> 3u]; return Eight_${x}(${four("w", "x", "y")}, ${
      four("w", "z", "w")
    }); }`;
  }
  if (vec === 4) {
    const value = dtype === "f32" ? "w" : four("w", "x", "y");
    return wgsl`${pair}
fn load_${x}(i: u32) -> vec4f { let w = ${x}[i >> 2u]; return ${value}; }`;
  }
  const one = dtype === "f32"
    ? `return ${x}[i];`
    : `let p = pair_${x}(${x}[i >> 1u]); return select(p.x, p.y, (i & 1u) == 1u);`;
  return wgsl`${pair}
fn load1_${x}(i: u32) -> f32 { ${one} }
fn load_${x}(i: u32) -> vec4f { return vec4f(${each(4, (j) => `load1_${x}(i + ${j}u * ${stride})`).join(", ")}); }`;
}

/** Two f32 → one u32 of 16-bit elements, rounded to the nearest, ties to even. */
function packer(dtype: MatmulDType): string {
  if (dtype === "f32") return "";
  return `${roundingFunctions(dtype)}\nfn pack(v: vec2f) -> u32 { return ${pack2(dtype, "v.x", "v.y")}; }`;
}

/** The vec4f or vec2f that C holds in a word, for sums that go on. */
function held(dtype: MatmulDType, word: string): string {
  const pair = (w: string) =>
    dtype === "f16" ? `unpack2x16float(${w})` : `vec2f(bitcast<f32>(${w} << 16u), bitcast<f32>(${w} & 0xffff0000u))`;
  return word.endsWith("4") ? `vec4f(${pair(`${word}.x`)}, ${pair(`${word}.y`)})` : pair(word);
}

/** `store(start, n, v)`: columns n … n + 3 of the row of C that starts at element `start`, as far as they exist. */
function storer({ out, outVec, adds }: Pick<MatmulParts, "out" | "outVec" | "adds">): string {
  const plus = (value: string) => adds ? ` + ${value}` : "";
  const old = (shift: number) => adds ? `${adds}[(${addedFrom(adds, "at")}) >> ${shift}u]` : "";
  const two = (at: string, v: string) =>
    `{ let at = ${at}; ${adds ? `let old = ${old(1)}; ` : ""}c[at >> 1u] = pack(${v}${plus(held(out, "old"))}); }`;
  const body = out === "f32"
    ? outVec === 4
      ? `if (n < u.n) { let at = start + n; c[at >> 2u] = v${plus(old(2))}; }`
      : wgsl`${each(4, (j) => `if (n + ${j}u < u.n) { let at = start + n + ${j}u; c[at] = v[${j}]${plus(old(0))}; }`)}`
    : outVec === 4
    ? wgsl`if (n < u.n) { let at = start + n; ${adds ? `let old4 = ${old(2)}; ` : ""}let sum = v${
      plus(held(out, "old4"))
    }; c[at >> 2u] = vec2u(pack(sum.xy), pack(sum.zw)); }`
    : `if (n < u.n) ${two("start + n", "v.xy")}
if (n + 2u < u.n) ${two("start + n + 2u", "v.zw")}`;
  return wgsl`${packer(out)}
fn store(start: u32, n: u32, v: vec4f) { ${body} }`;
}

/** The workgroup's tile, part of k and batch index, out of one number, since a dispatch dimension ends at 65535. */
const main = (threads: number) =>
  wgsl`@compute @workgroup_size(${threads})
fn main(@builtin(workgroup_id) wid: vec3u, @builtin(local_invocation_index) li: u32) {
  let id = wid.y * 65535u + wid.x;
  if (id >= u.workgroups) { return; }
  let tiles = u.tilesM * u.tilesN; let tile = id % tiles; let split = id / tiles % u.splits; let z = id / tiles / u.splits;
  let z2 = z % u.batch2; let z1 = z / u.batch2 % u.batch1; let z0 = z / u.batch2 / u.batch1;
  let base_a = u.offset_a + z0 * u.a0 + z1 * u.a1 + z2 * u.a2;
  let base_b = u.offset_b + z0 * u.b0 + z1 * u.b1 + z2 * u.b2;
  let base_c = u.offset_c + split * u.partial + z * u.m * u.n;
  let begin = split * u.chunk; let end = min(u.k, begin + u.chunk);`;

/** Bytes of workgroup memory of a tile. */
export function tileMemory({ bm, bn, bk }: Pick<MatmulTile, "bm" | "bn" | "bk">): number {
  return 4 * bk * (bm + bn);
}

/** The tiled kernel. */
export function matmulTile(tile: MatmulTile, parts: MatmulParts): Kernel {
  const { bm, bn, bk, tm, tn } = tile;
  const name = `matmul_${bm}x${bn}x${bk}_${tm}x${tn}_${partsName(parts)}`;
  return kernel(name, bindings(parts), () => tileBody(tile, parts));
}

function tileBody({ bm, bn, bk, tm, tn }: MatmulTile, parts: MatmulParts): string {
  const { a, b, exactK } = parts;
  const tx = bn / tn, ty = bm / tm, threads = tx * ty;
  // What holds for A along m holds for B along n.
  const sides = [
    { x: "a", alongK: !a.transposed, extent: bm, lanes: ty, quads: tm / 4, loads: bm * bk / 4 / threads },
    { x: "b", alongK: b.transposed, extent: bn, lanes: tx, quads: tn / 4, loads: bn * bk / 4 / threads },
  ];
  const every = (f: (side: typeof sides[number], id: string, p: number) => string) =>
    sides.flatMap((side) => each(side.loads, (p) => f(side, `${side.x}${p}`, p)));

  // Where a thread's loads start (g) and where they land (k, quad, lane, and the row r within four).
  const places = every(({ x, alongK, extent, lanes }, id, p) => {
    const q = `(li + ${p * threads}u)`;
    return alongK
      ? wgsl`  let k_${id} = ${q} % ${bk / 4}u * 4u; let r_${id} = ${q} / ${bk / 4}u;
  let g_${id} = base_${x} + min(first_${x} + r_${id}, size_${x} - 1u) * u.stride_${x} + k_${id};
  let quad_${id} = r_${id} / ${4 * lanes}u; let lane_${id} = (r_${id} / 4u % ${lanes}u) ^ (k_${id} / ${bk / 8}u);`
      : wgsl`  let k_${id} = ${q} / ${extent / 4}u; let r_${id} = ${q} % ${extent / 4}u;
  let g_${id} = base_${x} + k_${id} * u.stride_${x} + min(first_${x} + r_${id} * 4u, (size_${x} - 1u) & ~3u);
  let quad_${id} = r_${id} / ${lanes}u; let lane_${id} = r_${id} % ${lanes}u;`;
  });
  const load = (at: string) =>
    every(({ x, alongK }, id) => {
      const value = `load_${x}(g_${id} + ${alongK ? at : `${at} * u.stride_${x}`})`;
      if (exactK) return `    v_${id} = ${value};`;
      return alongK
        ? `    v_${id} = select(vec4f(), ${value}, vec4u(0u, 1u, 2u, 3u) + (${at} + k_${id}) < vec4u(u.k));`
        : `    v_${id} = select(vec4f(), ${value}, ${at} + k_${id} < u.k);`;
    });
  const save = every(({ x, alongK }, id) =>
    alongK
      ? each(4, (c) => `    s_${x}[k_${id} + ${c}u][quad_${id}][lane_${id}][r_${id} & 3u] = v_${id}[${c}];`).join("\n")
      : `    s_${x}[k_${id}][quad_${id}][lane_${id}] = v_${id};`
  );
  const multiply = each(bk, (k) => {
    const fragments = sides.flatMap(({ x, alongK, quads }) => {
      const lane = alongK ? `(l_${x} ^ ${Math.floor(k / 4) * 32 / bk}u)` : `l_${x}`;
      return each(quads, (q) => `let ${x}${q} = s_${x}[${k}][${q}][${lane}];`);
    });
    const sums = each(
      tm,
      (i) => each(tn / 4, (j) => `c${i}_${j} = fma(vec4f(a${i >> 2}[${i & 3}]), b${j}, c${i}_${j});`).join(" "),
    );
    return wgsl`    { ${fragments.join(" ")}\n${sums} }`;
  });

  return wgsl`${loader("a", a)}
${loader("b", b)}
${storer(parts)}
${sides.map(({ x, quads, lanes }) => `var<workgroup> s_${x}: array<array<array<vec4f, ${lanes}>, ${quads}>, ${bk}>;`)}
${main(threads)}
  // Eight rows of tiles at a time, so that neighbours in time share their operands in the cache.
  let band = tile / (8u * u.tilesN) * 8u; let high = min(u.tilesM - band, 8u); let within = tile % (8u * u.tilesN);
  let first_a = (band + within % high) * ${bm}u; let first_b = within / high * ${bn}u;
  let size_a = u.m; let size_b = u.n;
  // 32 neighbouring threads make a block of 8 by 4, which needs the fewest words of workgroup memory.
  let l_b = li % 8u + li / 32u % ${tx / 8}u * 8u; let l_a = li / 8u % 4u + li / ${4 * tx}u * 4u;
${places}
${each(tm, (i) => each(tn / 4, (j) => `var c${i}_${j} = vec4f();`).join(" "))}
${every((_, id) => `var v_${id} = vec4f();`)}
${load("begin")}
  for (var k = begin; k < end; k += ${bk}u) {
${save}
    workgroupBarrier();
${load(`(k + ${bk}u)`)}
${multiply}
    workgroupBarrier();
  }
${
    each(tm, (i) =>
      wgsl`  { let row = first_a + ${(i >> 2) * 4 * ty + (i & 3)}u + 4u * l_a;
  if (row < u.m) { let start = base_c + row * u.n; ${
        each(tn / 4, (j) => `store(start, first_b + ${j * 4 * tx}u + 4u * l_b, c${i}_${j});`).join(" ")
      } } }`)
  }
}`;
}

/** The operand that holds the vectors; the other is the matrix. */
export type MatmulSide = "a" | "b";

/** What the streaming kernels share: names by role, and where vector i starts and how it steps along k. */
function roles({ kind, m, lanes, groups, rows, unroll }: MatmulStream, parts: MatmulParts, x: MatmulSide) {
  const w = x === "a" ? "b" : "a";
  const vectors = parts[x], matrix = parts[w];
  const adjacent = vectors.transposed === (x === "b");
  return {
    ...{ w, vectors, matrix, halves: matrix.vec === 8 ? 2 : 1, width: matrix.vec === 8 ? 8 : 4 },
    name: `matmul_${kind}_m${m}_${lanes}x${groups}x${rows}_u${unroll}_${x}_${partsName(parts)}`,
    stepX: adjacent ? "1u" : `u.stride_${x}`,
    starts: each(m, (i) => `  let x${i} = base_${x} + min(${i}u, u.m - 1u)${adjacent ? ` * u.stride_${x}` : ""};`),
  };
}

/** A matrix adjacent along k: lanes share the dot products of a row of it with every vector. */
export function matmulRows(choice: MatmulStream, parts: MatmulParts, x: MatmulSide): Kernel {
  const { m, lanes, groups, rows, unroll } = choice;
  const { w, vectors, matrix, halves, width, name, stepX, starts } = roles(choice, parts, x);
  const perWorkgroup = groups * rows;
  const every = (f: (r: number, i: number) => string) => each(rows, (r) => each(m, (i) => f(r, i)).join(" "));
  // vec4f `to`_0, and `to`_1 where a step takes eight elements.
  const fetch = (to: string, from: string, v: MatmulOperand, at: string, step: string) =>
    v.vec === 8
      ? `let ${to} = load8_${from}(${at}); let ${to}_0 = ${to}.low; let ${to}_1 = ${to}.high;`
      : each(halves, (h) => `let ${to}_${h} = load_${from}(${at} + ${4 * h}u * ${step});`).join(" ");
  const steps = (n: number, masked: boolean) => {
    const value = (id: string, u: number, h: number) =>
      masked ? `select(vec4f(), ${id}_${h}, vec4u(0u, 1u, 2u, 3u) + (k${u} + ${4 * h}u) < vec4u(end))` : `${id}_${h}`;
    return wgsl`${
      each(n, (u) =>
        wgsl`    let k${u} = k + ${u * lanes * width}u;
${each(rows, (r) => `    ${fetch(`w${u}_${r}`, w, matrix, `w${r} + k${u}`, "1u")}`)}`)
    }
${
      each(n, (u) =>
        wgsl`    {
${each(m, (i) => `    ${fetch(`v${i}`, x, vectors, `x${i} + k${u} * ${stepX}`, stepX)}`)}
${
          each(halves, (h) =>
            wgsl`${each(m, (i) => `    let p${i}_${h} = ${value(`v${i}`, u, h)};`)}
${each(rows, (r) => `    let q${r}_${h} = ${value(`w${u}_${r}`, u, h)};`)}
    ${every((r, i) => `s${r}_${i} += dot(q${r}_${h}, p${i}_${h});`)}`)
        }
    }`)
    }`;
  };
  return kernel(name, bindings(parts), () =>
    wgsl`${loader(x, vectors, stepX)}
${loader(w, matrix)}
${storer(parts)}
var<workgroup> part: array<array<array<f32, ${lanes + 1}>, ${groups}>, ${rows}>;
var<workgroup> sums: array<vec4f, ${perWorkgroup / 4}>;
${main(lanes * groups)}
  let lane = li % ${lanes}u; let group = li / ${lanes}u; let row = tile * ${perWorkgroup}u;
${each(rows, (r) => `  let w${r} = base_${w} + min(row + group * ${rows}u + ${r}u, u.n - 1u) * u.stride_${w};`)}
${starts}
  ${every((r, i) => `var s${r}_${i} = 0.0;`)}
  var k = begin + lane * ${width}u;
  for (; k + ${(unroll - 1) * lanes * width + width - 1}u < end; k += ${unroll * lanes * width}u) {
${steps(unroll, false)}
  }
  for (; k < end; k += ${lanes * width}u) {
${steps(1, true)}
  }
${
      each(m, (i) =>
        wgsl`  ${each(rows, (r) => `part[${r}][group][lane] = s${r}_${i};`)}
  workgroupBarrier();
  if (li < ${perWorkgroup}u) {
    let r = li % ${rows}u; let g = li / ${rows}u;
    sums[li / 4u][li % 4u] = ${each(lanes, (l) => `part[r][g][${l}]`).join(" + ")};
  }
  workgroupBarrier();
  if (li < ${perWorkgroup / 4}u && ${i}u < u.m) { store(base_c + ${i}u * u.n, row + li * 4u, sums[li]); }`)
    }
}`);
}

/** A matrix adjacent along n: a lane has four columns, or eight where one load brings them; groups of lanes share k. */
export function matmulColumns(choice: MatmulStream, parts: MatmulParts, x: MatmulSide): Kernel {
  const { m, lanes, groups, unroll } = choice;
  const { w, vectors, matrix, halves, width, name, stepX, starts } = roles(choice, parts, x);
  const halfOf = (id: string, h: number) => halves === 1 ? id : `${id}.${["low", "high"][h]}`;
  const every = (f: (i: number, h: number) => string) => each(m, (i) => each(halves, (h) => f(i, h)).join("\n"));
  const steps = (n: number) =>
    wgsl`${
      each(n, (u) =>
        `    let k${u} = k + ${u * groups}u; let q${u} = load${
          halves === 2 ? "8" : ""
        }_${w}(w0 + k${u} * u.stride_${w});`)
    }
${
      each(n, (u) =>
        wgsl`    {
${each(m, (i) => `    let p${i} = vec4f(load1_${x}(x${i} + k${u} * ${stepX}));`)}
${every((i, h) => `    s${i}_${h} = fma(p${i}, ${halfOf(`q${u}`, h)}, s${i}_${h});`)}
    }`)
    }`;
  return kernel(name, bindings(parts), () =>
    wgsl`${loader(x, vectors)}
${loader(w, matrix)}
${storer(parts)}
var<workgroup> part: array<array<vec4f, ${lanes}>, ${groups}>;
${main(lanes * groups)}
  let lane = li % ${lanes}u; let group = li / ${lanes}u;
  let col = (tile * ${lanes}u + lane) * ${width}u;
  let w0 = base_${w} + min(col, (u.n - 1u) & ~${width - 1}u);
${starts}
${every((i, h) => `  var s${i}_${h} = vec4f();`)}
  var k = begin + group;
  for (; k + ${(unroll - 1) * groups}u < end; k += ${unroll * groups}u) {
${steps(unroll)}
  }
  for (; k < end; k += ${groups}u) {
${steps(1)}
  }
${
      every((i, h) =>
        wgsl`  part[group][lane] = s${i}_${h};
  workgroupBarrier();
  if (group == 0u && ${i}u < u.m) {
    store(base_c + ${i}u * u.n, col + ${4 * h}u, ${each(groups, (g) => `part[${g}][lane]`).join(" + ")});
  }
  workgroupBarrier();`
      )
    }
}`);
}

/** Adds the partial products of a split k, first to last, and then what a sum goes on from. */
export function matmulSum(out: MatmulDType, adds?: Added): Kernel {
  const at = adds === "r" ? "u.offset_r + i" : "at", old = out === "f32" ? `${adds}[${at}]` : held(out, "old4");
  return kernel(`matmul_sum_${letters[out]}${addedName(adds)}`, {
    reads: { partials: "vec4f", ...adds === "r" ? { r: storage(out, 4) } : {} },
    writes: { c: storage(out, 4) },
    uniforms: { count: "u32", splits: "u32", offset: "u32", offset_r: "u32" },
  }, () =>
    wgsl`${packer(out)}
@compute @workgroup_size(256)
fn main(@builtin(workgroup_id) wid: vec3u, @builtin(local_invocation_index) li: u32) {
  let i = (wid.y * 65535u + wid.x) * 256u + li;
  if (i >= u.count) { return; }
  var sum = partials[i];
  for (var s = 1u; s < u.splits; s++) { sum += partials[s * u.count + i]; }
  let at = u.offset + i;
  ${adds ? `${out === "f32" ? "" : `let old4 = ${adds}[${at}]; `}sum += ${old};` : ""}
  c[at] = ${out === "f32" ? "sum" : "vec2u(pack(sum.xy), pack(sum.zw))"};
}`);
}
