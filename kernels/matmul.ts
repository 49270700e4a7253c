/** draft */
import { each, type Kernel, kernel, type UniformType, wgsl } from "./kernel.ts";

/** Element types a matmul reads and writes; f16 and bf16 are packed two to a u32. */
export type MatmulDType = "f32" | "f16" | "bf16";

/** What of an operand is baked into a kernel. */
export interface MatmulOperand {
  readonly dtype: MatmulDType;
  /** false: columns are adjacent in memory; true: rows are. */
  readonly transposed: boolean;
  /** Elements read by one load. */
  readonly vec: 1 | 4 | 8;
}

/** Where an operand lies: a batch of matrices in one buffer, counted in elements. */
export interface MatmulView {
  readonly dtype: MatmulDType;
  /** First element. */
  readonly offset: number;
  /** false: columns are adjacent and `stride` leads from row to row; true: rows are adjacent, `stride` leads from column to column. */
  readonly transposed: boolean;
  readonly stride: number;
  /** One stride for each batch dimension; 0 repeats the matrix. */
  readonly batchStrides: readonly number[];
}

/** C[batch, m, n] = A[batch, m, k] · B[batch, k, n]. */
export interface MatmulProblem {
  readonly m: number;
  readonly n: number;
  readonly k: number;
  readonly batch: readonly number[];
  readonly a: MatmulView;
  readonly b: MatmulView;
  /** Element type of C; a 16-bit C needs an even n. */
  readonly out: MatmulDType;
}

/** What `pickMatmul` must know of a device. */
export interface MatmulCapabilities {
  /** Bytes of workgroup memory. */
  readonly maxWorkgroupMemory: number;
  readonly maxInvocations: number;
}

/** Parameters of the tiled kernel: a workgroup's tile of C, its step along k, a thread's block. */
export interface MatmulTile {
  readonly kind: "tile";
  readonly bm: number;
  readonly bn: number;
  readonly bk: number;
  readonly tm: number;
  readonly tn: number;
  readonly stages: 1 | 2;
  readonly prefetch: boolean;
  readonly raster: number;
  readonly warp: number;
  readonly splits: number;
}

/** Parameters of the matrix-vector kernel for matrices adjacent along k: lanes share a row, a group of lanes has several rows. */
export interface MatmulRows {
  readonly kind: "rows";
  readonly m: number;
  readonly lanes: number;
  readonly groups: number;
  readonly rows: number;
  readonly unroll: number;
  readonly splits: number;
}

/** Parameters of the matrix-vector kernel for matrices adjacent along n: a lane has four columns, groups of lanes share k. */
export interface MatmulColumns {
  readonly kind: "columns";
  readonly m: number;
  readonly lanes: number;
  readonly groups: number;
  readonly unroll: number;
  readonly splits: number;
}

export type MatmulChoice = MatmulTile | MatmulRows | MatmulColumns;

/** A kernel with its workgroups and uniforms. */
export interface MatmulStep {
  readonly kernel: Kernel;
  readonly workgroups: readonly [number, number, number];
  readonly uniforms: Readonly<Record<string, number>>;
}

export interface MatmulPlan extends MatmulStep {
  readonly choice: MatmulChoice;
  readonly splits: number;
  readonly scratchBytes: number;
  readonly sum: MatmulStep | undefined;
}

const uniforms = {
  m: "u32",
  n: "u32",
  k: "u32",
  offsetA: "u32",
  offsetB: "u32",
  strideA: "u32",
  strideB: "u32",
  batch1: "u32",
  batch2: "u32",
  a0: "u32",
  a1: "u32",
  a2: "u32",
  b0: "u32",
  b1: "u32",
  b2: "u32",
  tilesM: "u32",
  tilesN: "u32",
  splits: "u32",
  chunkK: "u32",
  partial: "u32",
  workgroups: "u32",
} satisfies Record<string, UniformType>;

/** WGSL type of a buffer whose loads bring `vec` elements. */
function storage(dtype: MatmulDType, vec: 1 | 4 | 8): string {
  if (dtype === "f32") return vec === 1 ? "f32" : "vec4f";
  return vec === 1 ? "u32" : vec === 4 ? "vec2u" : "vec4u";
}

/** `load_x(i)`: elements i … i + 3; for vec 8 `load_x` makes eight of them. */
function loader(x: string, { dtype, vec }: Pick<MatmulOperand, "dtype" | "vec">, stride = "1u"): string {
  const pair = dtype === "f16"
    ? `fn pair_${x}(w: u32) -> vec2f { return unpack2x16float(w); }`
    : `fn pair_${x}(w: u32) -> vec2f { return vec2f(bitcast<f32>(w << 16u), bitcast<f32>(w & 0xffff0000u)); }`;
  if (dtype === "f32") {
    return vec === 1
      ? wgsl`fn load1_${x}(i: u32) -> f32 { return ${x}[i]; }
fn load_${x}(i: u32) -> vec4f { return vec4f(${x}[i], ${x}[i + ${stride}], ${x}[i + 2u * ${stride}], ${x}[i + 3u * ${stride}]); }`
      : wgsl`fn load_${x}(i: u32) -> vec4f { return ${x}[i >> 2u]; }`;
  }
  if (vec === 1) {
    return wgsl`${pair}
fn load1_${x}(i: u32) -> f32 { let p = pair_${x}(${x}[i >> 1u]); return select(p.x, p.y, (i & 1u) == 1u); }
fn load_${x}(i: u32) -> vec4f { return vec4f(load1_${x}(i), load1_${x}(i + ${stride}), load1_${x}(i + 2u * ${stride}), load1_${x}(i + 3u * ${stride})); }`;
  }
  if (vec === 4) {
    return wgsl`${pair}
fn load_${x}(i: u32) -> vec4f { let w = ${x}[i >> 2u]; return vec4f(pair_${x}(w.x), pair_${x}(w.y)); }`;
  }
  return wgsl`${pair}
struct Eight_${x} { low: vec4f, high: vec4f }
fn load8_${x}(i: u32) -> Eight_${x} { let w = ${x}[i >> 3u]; return Eight_${x}(vec4f(pair_${x}(w.x), pair_${x}(w.y)), vec4f(pair_${x}(w.z), pair_${x}(w.w))); }`;
}

/** Two f32 → one u32 of 16-bit elements, rounded to the nearest, ties to even. */
function packer(dtype: MatmulDType): string {
  if (dtype === "f32") return "";
  if (dtype === "f16") return "fn pack(v: vec2f) -> u32 { return pack2x16float(v); }";
  return wgsl`fn round_bf16(v: f32) -> u32 {
  let b = bitcast<u32>(v);
  return select((b + 0x7fffu + ((b >> 16u) & 1u)) >> 16u, (b >> 16u) | 0x40u, (b & 0x7fffffffu) > 0x7f800000u);
}
fn pack(v: vec2f) -> u32 { return round_bf16(v.x) | (round_bf16(v.y) << 16u); }`;
}

/** `store(start, n, v)`: columns n … n + 3 of the row of C that starts at element `start`, as far as they exist. */
function storer(dtype: MatmulDType, vec: 1 | 4): string {
  const body = dtype === "f32"
    ? vec === 4
      ? "if (n < u.n) { c[(start + n) >> 2u] = v; }"
      : wgsl`${each(4, (i) => `if (n + ${i}u < u.n) { c[start + n + ${i}u] = v[${i}]; }`)}`
    : vec === 4
    ? "if (n < u.n) { c[(start + n) >> 2u] = vec2u(pack(v.xy), pack(v.zw)); }"
    : `if (n < u.n) { c[(start + n) >> 1u] = pack(v.xy); }
if (n + 2u < u.n) { c[(start + n + 2u) >> 1u] = pack(v.zw); }`;
  return wgsl`${packer(dtype)}
fn store(start: u32, n: u32, v: vec4f) { ${body} }`;
}

/** The workgroup's tile, part of k and batch index, from one number, since a dispatch dimension ends at 65535. */
const workgroupDecode = wgsl`
  let id = wid.y * 65535u + wid.x;
  if (id >= u.workgroups) { return; }
  let tiles = u.tilesM * u.tilesN;
  let tile = id % tiles;
  let split = (id / tiles) % u.splits;
  let z = id / tiles / u.splits;
  let z2 = z % u.batch2; let z1 = z / u.batch2 % u.batch1; let z0 = z / u.batch2 / u.batch1;
  let baseA = u.offsetA + z0 * u.a0 + z1 * u.a1 + z2 * u.a2;
  let baseB = u.offsetB + z0 * u.b0 + z1 * u.b1 + z2 * u.b2;
  let baseC = split * u.partial + z * u.m * u.n;
  let kBegin = split * u.chunkK;
  let kEnd = min(u.k, kBegin + u.chunkK);`;

/** One part of a product: what it reads and writes. */
export interface MatmulParts {
  readonly a: MatmulOperand;
  readonly b: MatmulOperand;
  readonly out: MatmulDType;
  readonly outVec: 1 | 4;
  /** k is a multiple of the tile's step: no masks. */
  readonly exactK: boolean;
}

const letter = { f32: "f", f16: "h", bf16: "b" };
const operandName = ({ dtype, transposed, vec }: MatmulOperand) => `${letter[dtype]}${transposed ? "t" : "n"}${vec}`;
const partsName = ({ a, b, out, outVec, exactK }: MatmulParts) =>
  `${operandName(a)}_${operandName(b)}_${letter[out]}${outVec}${exactK ? "_exact" : ""}`;

/** Bytes of workgroup memory of a tile. */
export function tileMemory({ bm, bn, bk, stages }: MatmulTile): number {
  return stages * 16 * (bm + bn) * (bk / 4 + 1);
}

/** The tiled kernel. */
export function matmulTile(tile: MatmulTile, parts: MatmulParts): Kernel {
  const { bm, bn, bk, tm, tn, stages, prefetch, raster, warp } = tile;
  const { a, b, out, outVec, exactK } = parts;
  const tx = bn / tn, ty = bm / tm, threads = tx * ty, k4 = bk / 4;
  const wx = Math.min(warp, tx), wy = Math.max(1, Math.min(32 / wx, ty));
  const sides = [
    {
      x: "a",
      v: a,
      alongK: !a.transposed,
      extent: bm,
      lanes: ty,
      per: tm,
      first: "row0",
      size: "u.m",
      base: "baseA",
      ld: "u.strideA",
    },
    {
      x: "b",
      v: b,
      alongK: b.transposed,
      extent: bn,
      lanes: tx,
      per: tn,
      first: "col0",
      size: "u.n",
      base: "baseB",
      ld: "u.strideB",
    },
  ];
  const name = `matmul_${bm}x${bn}x${bk}_${tm}x${tn}_s${stages}${prefetch ? "p" : ""}_r${raster}_w${warp}_${
    partsName(parts)
  }`;
  return kernel(name, {
    reads: { a: storage(a.dtype, a.vec), b: storage(b.dtype, b.vec) },
    writes: { c: storage(out, outVec) },
    uniforms,
  }, () => {
    const loads = (s: typeof sides[number]) => s.extent * bk / 4 / threads;
    const buf = (i: string) => stages === 2 ? `[${i}]` : "";
    const place = (s: typeof sides[number]) =>
      wgsl`${
        each(loads(s), (p) => {
          const q = `(li + ${p * threads}u)`;
          if (!s.alongK) {
            const row = s.extent / 4;
            return `let k_${s.x}${p} = ${q} / ${row}u;
  let g_${s.x}${p} = ${s.base} + k_${s.x}${p} * ${s.ld} + min(${s.first} + ${q} % ${row}u * 4u, (${s.size} - 1u) & ~3u);
  let i_${s.x}${p} = k_${s.x}${p}; let j_${s.x}${p} = ${q} % ${row}u / ${s.lanes}u; let h_${s.x}${p} = ${q} % ${row}u % ${s.lanes}u;`;
          }
          const r = `(${q} / ${k4}u)`;
          const [i, j] = s.x === "a"
            ? [`${r} / ${s.lanes}u`, `${r} % ${s.lanes}u`]
            : [`${r} / ${4 * s.lanes}u * 4u + ${r} % 4u`, `${r} / 4u % ${s.lanes}u`];
          return `let k_${s.x}${p} = ${q} % ${k4}u * 4u;
  let g_${s.x}${p} = ${s.base} + min(${s.first} + ${r}, ${s.size} - 1u) * ${s.ld} + k_${s.x}${p};
  let i_${s.x}${p} = ${i}; let j_${s.x}${p} = ${j}; let h_${s.x}${p} = ${q} % ${k4}u;`;
        })
      }`;
    const load = (at: string, declare: boolean) =>
      wgsl`${
        sides.flatMap((s) =>
          each(loads(s), (p) => {
            const value = `load_${s.x}(g_${s.x}${p} + ${s.alongK ? at : `${at} * ${s.ld}`})`;
            const masked = exactK
              ? value
              : s.alongK
              ? `select(vec4f(), ${value}, vec4u(0u, 1u, 2u, 3u) + (${at} + k_${s.x}${p}) < vec4u(u.k))`
              : `select(vec4f(), ${value}, ${at} + k_${s.x}${p} < u.k)`;
            return `    ${declare ? "var " : ""}v_${s.x}${p} = ${masked};`;
          })
        )
      }`;
    const save = (to: string) =>
      wgsl`${
        sides.flatMap((s) =>
          each(loads(s), (p) => `    s_${s.x}${buf(to)}[i_${s.x}${p}][j_${s.x}${p}][h_${s.x}${p}] = v_${s.x}${p};`)
        )
      }`;
    const compute = (from: string) =>
      wgsl`${
        each(k4, (q) => {
          const [va, vb] = sides.map((s) =>
            s.alongK ? wgsl`${each(s.per, (i) => `let ${s.x}${i} = s_${s.x}${buf(from)}[${i}][l_${s.x}][${q}];`)}` : ""
          );
          return wgsl`{ ${va} ${vb}
${
            each(4, (c) => {
              const comp = "xyzw"[c];
              const [ha, hb] = sides.map((s) =>
                s.alongK
                  ? ""
                  : wgsl`${
                    each(s.per / 4, (h) => `let ${s.x}${h} = s_${s.x}${buf(from)}[${q * 4 + c}][${h}][l_${s.x}];`)
                  }`
              );
              const va = (i: number) => sides[0].alongK ? `a${i}.${comp}` : `a${i >> 2}.${"xyzw"[i & 3]}`;
              const vb = (h: number) =>
                sides[1].alongK ? `vec4f(${each(4, (j) => `b${4 * h + j}.${comp}`).join(", ")})` : `b${h}`;
              return wgsl`{ ${ha} ${hb}
${
                each(tn / 4, (h) => `let w${h} = ${vb(h)};`)
              }
${
                each(tm, (i) =>
                  each(tn / 4, (h) => `c${i}_${h} = fma(vec4f(${va(i)}), w${h}, c${i}_${h});`).join(" "))
              } }`;
            })
          } }`;
        })
      }`;
    const memory = sides.map((s) => {
      const inner = s.alongK
        ? `array<array<array<vec4f, ${k4 + 1 - k4 % 2}>, ${s.lanes}>, ${s.per}>`
        : `array<array<array<vec4f, ${s.lanes}>, ${s.per / 4}>, ${bk}>`;
      return `var<workgroup> s_${s.x}: ${stages === 2 ? `array<${inner}, 2>` : inner};`;
    });
    const loop = stages === 2
      ? wgsl`${load("kBegin", true)}
${save("0")}
  workgroupBarrier();
  var stage = 0u;
  for (var k = kBegin; k < kEnd; k += ${bk}u) {
${load(`(k + ${bk}u)`, false)}
    ${compute("stage")}
    stage = 1u - stage;
${save("stage")}
    workgroupBarrier();
  }`
      : prefetch
      ? wgsl`${load("kBegin", true)}
  for (var k = kBegin; k < kEnd; k += ${bk}u) {
${save("")}
    workgroupBarrier();
${load(`(k + ${bk}u)`, false)}
    ${compute("")}
    workgroupBarrier();
  }`
      : wgsl`
  for (var k = kBegin; k < kEnd; k += ${bk}u) {
${load("k", true)}
${save("")}
    workgroupBarrier();
    ${compute("")}
    workgroupBarrier();
  }`;
    const rowOf = (i: number) =>
      sides[0].alongK ? `row0 + l_a + ${i * ty}u` : `row0 + ${(i >> 2) * 4 * ty + (i & 3)}u + 4u * l_a`;
    return wgsl`${loader("a", a)}
${loader("b", b)}
${storer(out, outVec)}
${memory}
@compute @workgroup_size(${threads})
fn main(@builtin(workgroup_id) wid: vec3u, @builtin(local_invocation_index) li: u32) {${workgroupDecode}
  let first = tile / (${raster}u * u.tilesN) * ${raster}u;
  let high = min(u.tilesM - first, ${raster}u);
  let within = tile % (${raster}u * u.tilesN);
  let row0 = (first + within % high) * ${bm}u;
  let col0 = within / high * ${bn}u;
  let l_b = li % ${wx}u + li / ${wx * wy}u % ${tx / wx}u * ${wx}u;
  let l_a = li / ${wx}u % ${wy}u + li / ${wy * tx}u * ${wy}u;
  ${sides.map(place)}
  ${each(tm, (i) => each(tn / 4, (h) => `var c${i}_${h} = vec4f();`).join(" "))}
  ${loop}
  ${
      each(tm, (i) =>
        wgsl`{ let row = ${rowOf(i)};
    if (row < u.m) { let start = baseC + row * u.n;
    ${each(tn / 4, (h) => `store(start, col0 + ${h * 4 * tx}u + 4u * l_b, c${i}_${h});`)} } }`)
    }
}`;
  });
}

/** The side of a matrix-vector product that holds the vectors; the other holds the matrix. */
type VectorSide = "a" | "b";

/** Names, on the side of the vectors and of the matrix. */
function vectorNames(x: VectorSide) {
  return x === "a"
    ? { x: "a", w: "b", baseX: "baseA", baseW: "baseB", strideX: "u.strideA", strideW: "u.strideB" }
    : { x: "b", w: "a", baseX: "baseB", baseW: "baseA", strideX: "u.strideB", strideW: "u.strideA" };
}

/** Matrix adjacent along k: rows of dot products. */
export function matmulRows(choice: MatmulRows, parts: MatmulParts, side: VectorSide): Kernel {
  const { m, lanes, groups, rows, unroll } = choice;
  const { a, b, out, outVec } = parts;
  const [xs, ws] = side === "a" ? [a, b] : [b, a];
  const threads = lanes * groups, perGroup = groups * rows;
  const width = ws.vec === 8 ? 8 : 4, halves = width / 4;
  const { x, w, baseX, baseW, strideX, strideW } = vectorNames(side);
  // A vector's elements are adjacent along k when a is not transposed or b is.
  const adjacent = side === "a" ? !a.transposed : b.transposed;
  const name = `matmul_rows_m${m}_l${lanes}_g${groups}_r${rows}_u${unroll}_${side}_${partsName(parts)}`;
  return kernel(name, {
    reads: { a: storage(a.dtype, a.vec), b: storage(b.dtype, b.vec) },
    writes: { c: storage(out, outVec) },
    uniforms,
  }, () => {
    const fetch = (v: string, operand: MatmulOperand, to: string, at: string, step: string) =>
      operand.vec === 8
        ? `let ${to} = load8_${v}(${at}); let ${to}_0 = ${to}.low; let ${to}_1 = ${to}.high;`
        : each(halves, (h) => `let ${to}_${h} = load_${v}(${at}${h === 0 ? "" : ` + ${4 * h}u * ${step}`});`).join(" ");
    const step = (u: number, masked: boolean) => {
      const at = `k${u}`;
      const mask = (v: string, h: number) =>
        masked
          ? `select(vec4f(), ${v}_${h}, vec4u(${at} + ${4 * h}u) + vec4u(0u, 1u, 2u, 3u) < vec4u(kEnd))`
          : `${v}_${h}`;
      return wgsl`{ ${
        each(m, (i) =>
          `${
            fetch(
              x,
              xs,
              `x${i}`,
              adjacent ? `at_x${i} + ${at}` : `at_x${i} + ${at} * ${strideX}`,
              adjacent ? "1u" : strideX,
            )
          } ${each(halves, (h) => `let xm${i}_${h} = ${mask(`x${i}`, h)};`).join(" ")}`)
      }
${
        each(rows, (r) =>
          each(halves, (h) =>
            `{ let wm = ${mask(`w${u}_${r}`, h)}; ${
              each(m, (i) =>
                `s${r}_${i} += dot(wm, xm${i}_${h});`).join(" ")
            } }`).join(" "))
      } }`;
    };
    const chunk = (us: number, masked: boolean) =>
      wgsl`${
        each(us, (u) =>
          `let k${u} = k + ${u * lanes * width}u; ${
            each(rows, (r) =>
              fetch(w, ws, `w${u}_${r}`, `at_w${r} + k${u}`, "1u")).join(" ")
          }`)
      }
${each(us, (u) => step(u, masked))}`;
    return wgsl`${loader(x, xs, adjacent ? "1u" : strideX)}
${loader(w, ws)}
${storer(out, outVec)}
var<workgroup> part: array<array<array<f32, ${lanes + 1}>, ${groups}>, ${rows}>;
var<workgroup> sums: array<vec4f, ${Math.ceil(perGroup / 4)}>;
@compute @workgroup_size(${threads})
fn main(@builtin(workgroup_id) wid: vec3u, @builtin(local_invocation_index) li: u32) {${workgroupDecode}
  let lane = li % ${lanes}u; let group = li / ${lanes}u;
  let row0 = tile * ${perGroup}u;
  ${each(rows, (r) => `let at_w${r} = ${baseW} + min(row0 + group * ${rows}u + ${r}u, u.n - 1u) * ${strideW};`)}
  ${
      each(m, (i) =>
        `let at_x${i} = ${baseX} + ${adjacent ? `min(${i}u, u.m - 1u) * ${strideX}` : `min(${i}u, u.m - 1u)`};`)
    }
  ${each(rows, (r) => each(m, (i) => `var s${r}_${i} = 0.0;`).join(" "))}
  var k = kBegin + lane * ${width}u;
  for (; k + ${(unroll - 1) * lanes * width + width - 1}u < kEnd; k += ${unroll * lanes * width}u) {
${chunk(unroll, false)}
  }
  for (; k < kEnd; k += ${lanes * width}u) {
${chunk(1, true)}
  }
  ${
      each(m, (i) =>
        wgsl`${i === 0 ? "" : "workgroupBarrier();"}
  ${each(rows, (r) => `part[${r}][group][lane] = s${r}_${i};`)}
  workgroupBarrier();
  if (li < ${perGroup}u) {
    let r = li % ${rows}u; let g = li / ${rows}u;
    sums[li / 4u][li % 4u] = ${each(lanes, (l) => `part[r][g][${l}]`).join(" + ")};
  }
  workgroupBarrier();
  if (li < ${Math.ceil(perGroup / 4)}u && ${i}u < u.m) { store(baseC + ${i}u * u.n, row0 + li * 4u, sums[li]); }`)
    }
}`;
  });
}

/** Matrix adjacent along n: columns, four to a lane. */
export function matmulColumns(choice: MatmulColumns, parts: MatmulParts, side: VectorSide): Kernel {
  const { m, lanes, groups, unroll } = choice;
  const { a, b, out, outVec } = parts;
  const [xs, ws] = side === "a" ? [a, b] : [b, a];
  const { x, w, baseX, baseW, strideX, strideW } = vectorNames(side);
  const adjacent = side === "a" ? !a.transposed : b.transposed;
  const name = `matmul_columns_m${m}_l${lanes}_g${groups}_u${unroll}_${side}_${partsName(parts)}`;
  return kernel(name, {
    reads: { a: storage(a.dtype, a.vec), b: storage(b.dtype, b.vec) },
    writes: { c: storage(out, outVec) },
    uniforms,
  }, () => {
    const chunk = (us: number) =>
      wgsl`${each(us, (u) => `let k${u} = k + ${u * groups}u; let w${u} = load_${w}(at_w + k${u} * ${strideW});`)}
${
        each(us, (u) =>
          each(m, (i) =>
            `s${i} = fma(vec4f(load1_${x}(at_x${i} + k${u}${adjacent ? "" : ` * ${strideX}`})), w${u}, s${i});`).join(
              " ",
            ))
      }`;
    return wgsl`${loader(x, xs)}
${loader(w, ws)}
${storer(out, outVec)}
var<workgroup> part: array<array<vec4f, ${lanes}>, ${groups}>;
@compute @workgroup_size(${lanes * groups})
fn main(@builtin(workgroup_id) wid: vec3u, @builtin(local_invocation_index) li: u32) {${workgroupDecode}
  let lane = li % ${lanes}u; let group = li / ${lanes}u;
  let col = (tile * ${lanes}u + lane) * 4u;
  let at_w = ${baseW} + min(col, (u.n - 1u) & ~3u);
  ${
      each(m, (i) =>
        `let at_x${i} = ${baseX} + ${adjacent ? `min(${i}u, u.m - 1u) * ${strideX}` : `min(${i}u, u.m - 1u)`};`)
    }
  ${each(m, (i) => `var s${i} = vec4f();`)}
  var k = kBegin + group;
  for (; k + ${(unroll - 1) * groups}u < kEnd; k += ${unroll * groups}u) {
${chunk(unroll)}
  }
  for (; k < kEnd; k += ${groups}u) {
${chunk(1)}
  }
  ${
      each(m, (i) =>
        wgsl`${i === 0 ? "" : "workgroupBarrier();"}
  part[group][lane] = s${i};
  workgroupBarrier();
  if (group == 0u && ${i}u < u.m) {
    store(baseC + ${i}u * u.n, col, ${each(groups, (g) => `part[${g}][lane]`).join(" + ")});
  }`)
    }
}`;
  });
}

/** Adds the partial products of a split k, first to last. */
export function matmulSum(out: MatmulDType): Kernel {
  return kernel(`matmul_sum_${letter[out]}`, {
    reads: { partials: "vec4f" },
    writes: { c: storage(out, 4) },
    uniforms: { count: "u32", splits: "u32" },
  }, () =>
    wgsl`${packer(out)}
@compute @workgroup_size(256)
fn main(@builtin(workgroup_id) wid: vec3u, @builtin(local_invocation_index) li: u32) {
  let i = (wid.y * 65535u + wid.x) * 256u + li;
  if (i >= u.count) { return; }
  var sum = partials[i];
  for (var s = 1u; s < u.splits; s++) { sum += partials[s * u.count + i]; }
  c[i] = ${out === "f32" ? "sum" : "vec2u(pack(sum.xy), pack(sum.zw))"};
}`);
}

/** Workgroups in a line, folded at the limit of a dispatch dimension. */
function line(count: number): [number, number, number] {
  return count <= 65535 ? [count, 1, 1] : [65535, Math.ceil(count / 65535), 1];
}

const multiple = (values: readonly number[], of: number) => values.every((v) => v % of === 0);

/** draft pick */
export function pickMatmul(_c: MatmulCapabilities, p: Pick<MatmulProblem, "m" | "n" | "k">): MatmulChoice {
  const t = {
    kind: "tile",
    bm: 64,
    bn: 64,
    bk: 16,
    tm: 4,
    tn: 4,
    stages: 1,
    prefetch: true,
    raster: 8,
    warp: 8,
    splits: 1,
  } as const;
  return p.m >= 128 && p.n >= 128 ? { ...t, bm: 128, bn: 128, tm: 8, tn: 8 } : t;
}

/** A view [rows, cols] of which a vector is called adjacent along k, and a stride that nothing follows is 0, so that it aligns. */
function settle(
  v: MatmulView,
  rows: number,
  cols: number,
  side: VectorSide,
  batchStrides: readonly number[],
): MatmulView {
  const alongK = v.transposed === (side === "b");
  if ((side === "a" ? rows : cols) === 1 && !alongK && v.stride === 1) {
    return { ...v, transposed: !v.transposed, stride: 0, batchStrides };
  }
  return { ...v, stride: (v.transposed ? cols : rows) === 1 ? 0 : v.stride, batchStrides };
}

/** Batch dimensions of size 1 dropped, neighbours that step as one merged, and a batch that only continues A's rows made rows. */
function collapse(p: MatmulProblem): MatmulProblem {
  const dims: { n: number; a: number; b: number }[] = [];
  p.batch.forEach((n, i) => {
    if (n === 1) return;
    const [a, b] = [p.a.batchStrides[i], p.b.batchStrides[i]];
    const last = dims.at(-1);
    if (last !== undefined && last.a === a * n && last.b === b * n) dims[dims.length - 1] = { n: last.n * n, a, b };
    else dims.push({ n, a, b });
  });
  let m = p.m;
  const last = dims.at(-1);
  if (last !== undefined && last.b === 0 && !p.a.transposed && last.a === (m === 1 ? last.a : m * p.a.stride)) {
    m *= last.n;
    dims.pop();
    if (p.m === 1) p = { ...p, a: { ...p.a, stride: last.a } };
  }
  return {
    ...p,
    m,
    batch: dims.map((d) => d.n),
    a: settle(p.a, m, p.k, "a", dims.map((d) => d.a)),
    b: settle(p.b, p.k, p.n, "b", dims.map((d) => d.b)),
  };
}

/** Plans. */
export function planMatmul(
  capabilities: MatmulCapabilities,
  problem: MatmulProblem,
  pick: (capabilities: MatmulCapabilities, problem: MatmulProblem) => MatmulChoice = pickMatmul,
): MatmulPlan {
  const p = collapse(problem);
  const { m, n, k } = p;
  const choice = pick(capabilities, p);
  const { splits } = choice;
  const batches = p.batch.reduce((x, y) => x * y, 1);
  // A column of results is a row of results with the operands in each other's place.
  const side: VectorSide = choice.kind !== "tile" && n === 1 && m !== 1 ? "b" : "a";
  const [rows, cols] = side === "b" ? [n, m] : [m, n];
  const vec = (v: MatmulView, vector: boolean): 1 | 4 | 8 => {
    const steps = [v.offset, v.stride, ...v.batchStrides];
    if (choice.kind === "columns" && vector) return 1;
    if (choice.kind === "rows") {
      const adjacent = vector ? (side === "a" ? !v.transposed : v.transposed) : true;
      if (!adjacent) return 1;
      if (v.dtype !== "f32" && multiple(steps, 8) && (!vector || wide)) return 8;
    }
    return multiple(steps, 4) ? 4 : 1;
  };
  const matrix = side === "a" ? p.b : p.a;
  const wide = choice.kind === "rows" && matrix.dtype !== "f32" &&
    multiple([matrix.offset, matrix.stride, ...matrix.batchStrides], 8);
  const out = splits > 1 ? "f32" : p.out;
  const parts: MatmulParts = {
    a: { dtype: p.a.dtype, transposed: p.a.transposed, vec: vec(p.a, side === "a") },
    b: { dtype: p.b.dtype, transposed: p.b.transposed, vec: vec(p.b, side === "b") },
    out,
    outVec: cols % 4 === 0 ? 4 : 1,
    exactK: choice.kind === "tile" && k % choice.bk === 0,
  };
  const step = choice.kind === "tile" ? choice.bk : 8;
  const chunkK = Math.max(step, Math.ceil(Math.ceil(k / splits) / step) * step);
  const [kern, tilesM, tilesN] = choice.kind === "tile"
    ? [matmulTile(choice, parts), Math.ceil(rows / choice.bm), Math.ceil(cols / choice.bn)]
    : choice.kind === "rows"
    ? [matmulRows(choice, parts, side), 1, Math.ceil(cols / (choice.groups * choice.rows))]
    : [matmulColumns(choice, parts, side), 1, Math.ceil(cols / (4 * choice.lanes))];
  const workgroups = tilesM * tilesN * splits * batches;
  const [n0, n1, n2] = [...Array(3 - p.batch.length).fill(1), ...p.batch];
  const strides = (v: MatmulView) => [...Array(3 - p.batch.length).fill(0), ...v.batchStrides];
  const [a0, a1, a2] = strides(p.a), [b0, b1, b2] = strides(p.b);
  void n0;
  const partial = Math.ceil(batches * m * n / 4) * 4;
  return {
    choice,
    kernel: kern,
    workgroups: line(workgroups),
    uniforms: {
      m: rows,
      n: cols,
      k,
      offsetA: p.a.offset,
      offsetB: p.b.offset,
      strideA: p.a.stride,
      strideB: p.b.stride,
      batch1: n1,
      batch2: n2,
      a0,
      a1,
      a2,
      b0,
      b1,
      b2,
      tilesM,
      tilesN,
      splits,
      chunkK,
      partial,
      workgroups,
    },
    splits,
    scratchBytes: splits > 1 ? partial * splits * 4 : 0,
    sum: splits > 1
      ? {
        kernel: matmulSum(p.out),
        workgroups: line(Math.ceil(partial / 4 / 256)),
        uniforms: { count: partial / 4, splits },
      }
      : undefined,
  };
}
