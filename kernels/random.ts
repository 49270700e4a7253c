/**
 * Random numbers: Philox blocks by thread, four numbers each, in integers so that every device draws the CPU's bits.
 *
 *   thread t ──▶ counter [t, 0, 0, stream] ──ten rounds──▶ 4 words ──▶ elements 4t … 4t + 3
 *
 * Bound by integer products, not by memory. Measured on an H200 for 2^26 f32: randn 0.555 ms, uniform 0.162, dropout 0.165.
 */
import type { DType } from "../tensor/dtype.ts";
import { streams, uniformBits } from "../tensor/random.ts";
import { sizeOf } from "../tensor/shape.ts";
import { globalIndex, gridFor } from "./elementwise.ts";
import { each, type Kernel, kernel } from "./kernel.ts";
import type { Lowering, View } from "./lowering.ts";
import { mathFunctions } from "./math.ts";
import { pack4, roundingFunctions, storageType4, unpack4 } from "./storage.ts";

/** WGSL of `fn philox(counter: vec4u, key: vec2u) -> vec4u`: Philox-4x32-10, as `tensor/philox.ts` has it. */
export const philox4x32: string = `${mathFunctions("ft_mulhi()")}
fn philox(counter: vec4u, key: vec2u) -> vec4u {
  var c = counter;
  ${
  each(10, (i) => {
    const k0 = Math.imul(i, 0x9e3779b9) >>> 0, k1 = Math.imul(i, 0xbb67ae85) >>> 0;
    return `c = vec4u(ft_mulhi(0xcd9e8d57u, c.z) ^ c.y ^ (key.x + ${k0}u), 0xcd9e8d57u * c.z,
    ft_mulhi(0xd2511f53u, c.x) ^ c.w ^ (key.y + ${k1}u), 0xd2511f53u * c.x);`;
  }).join("\n  ")
}
  return c;
}`;

/** The normal distribution's inverse at 32 random bits, as `tensor/normal.ts` has it. */
const normalFunction = `
fn mulhi_signed(a: i32, b: i32) -> i32 {
  let high = ft_mulhi(bitcast<u32>(a), bitcast<u32>(b));
  return bitcast<i32>(high - select(0u, bitcast<u32>(b), a < 0) - select(0u, bitcast<u32>(a), b < 0));
}
fn normal_of(bits: u32) -> f32 {
  let tail = (bits << 1u) | 1u;
  let c = countLeadingZeros(tail);
  let xi = bitcast<i32>(((tail << c) - 0xc0000000u) << 1u);
  let row = c * 8u;
  var sum = table[row + 7u];
  ${each(7, (i) => `sum = table[row + ${6 - i}u] + mulhi_signed(sum, xi);`).join("\n  ")}
  let magnitude = u32(max(sum, 0));
  let drop = 8u - min(8u, countLeadingZeros(magnitude));
  let leading = i32(((magnitude + ((1u << drop) >> 1u)) >> drop) << drop);
  return f32(select(leading, -leading, (bits >> 31u) == 1u)) * ${2 ** -28};
}`;

const entry = `@compute @workgroup_size(256) fn main(
  @builtin(workgroup_id) group: vec3u, @builtin(num_workgroups) groups: vec3u, @builtin(local_invocation_index) lane: u32,
)`;

interface DrawOptions {
  /** Philox blocks that a thread draws. */
  readonly blocks?: number;
  readonly helpers?: string;
  /** Storage beside the key: name → element type. */
  readonly reads?: Readonly<Record<string, string>>;
  readonly before?: string;
}

/** A kernel whose thread t writes four elements from words of its own Philox blocks. */
function draws(
  name: string,
  output: DType,
  uniforms: Readonly<Record<string, "u32" | "i32" | "f32">>,
  values: (word: (j: number) => string) => readonly string[],
  { blocks = 1, helpers = "", reads = {}, before = "" }: DrawOptions = {},
): Kernel {
  return kernel(name, {
    reads: { key: "u32", ...reads },
    writes: { y: storageType4(output) },
    uniforms: { n: "u32", key: "u32", ...uniforms },
  }, () =>
    `${philox4x32}
${helpers}
${roundingFunctions(output)}
${entry} {
  let t = ${globalIndex};
  if (t >= u.n) { return; }
  let seed = vec2u(key[u.key], key[u.key + 1u]);
  ${
      each(blocks, (b) => `let w${b} = philox(vec4u(${blocks}u * t + ${b}u, 0u, 0u, ${streams.draw}u), seed);`).join(
        "\n  ",
      )
    }
  ${before}
  y[t] = ${pack4(output, values((j) => `w${Math.floor(j / 4)}[${j % 4}]`))};
}`);
}

/** Normal numbers. */
const randn = (dtype: DType): Kernel =>
  draws(`randn_${dtype}`, dtype, {}, (word) => each(4, (j) => `normal_of(${word(j)})`), {
    helpers: normalFunction,
    reads: { table: "i32" },
  });

/** Even numbers. The product crosses an integer, where no compiler can fuse it with the sum and round once less. */
const uniform = (dtype: DType): Kernel => {
  const bits = uniformBits[dtype];
  return draws(
    `uniform_${dtype}`,
    dtype,
    { min: "f32", range: "f32", zero: "u32" },
    (word) =>
      each(4, (j) => {
        const part = `f32(${word(j)} >> ${32 - bits}u) * ${2 ** -bits}`;
        return `u.min + bitcast<f32>(bitcast<u32>(u.range * (${part})) ^ u.zero)`;
      }),
  );
};

/** Whole numbers: the high half of range times 64 bits. A range of 0 stands for 2³². */
const randint = (): Kernel =>
  draws(
    "randint",
    "i32",
    { min: "u32", range: "u32" },
    (word) => each(4, (j) => `bitcast<i32>(u.min + scale_words(${word(2 * j)}, ${word(2 * j + 1)}))`),
    {
      blocks: 2,
      helpers: `
fn scale_words(high: u32, low: u32) -> u32 {
  if (u.range == 0u) { return high; }
  let a = ft_mulhi(low, u.range);
  return ft_mulhi(high, u.range) + select(0u, 1u, a + high * u.range < a);
}`,
    },
  );

/** True below a threshold. */
const bernoulli = (): Kernel =>
  draws("bernoulli", "bool", { threshold: "u32" }, (word) => each(4, (j) => `(${word(j)} >> 1u) < u.threshold`));

/** x scaled where bernoulli is false. */
const dropout = (dtype: DType): Kernel =>
  draws(
    `dropout_${dtype}`,
    dtype,
    { threshold: "u32", scale: "f32", offset: "u32" },
    (word) => unpack4(dtype, "v").map((x, j) => `select(${x} * u.scale, 0.0, (${word(j)} >> 1u) < u.threshold)`),
    { reads: { x: storageType4(dtype) }, before: "let v = x[u.offset + t];" },
  );

/** Key i of a split, or the one key of a fold. */
const derive = (name: "split" | "foldIn"): Kernel =>
  kernel(name, {
    reads: { key: "u32", ...(name === "foldIn" ? { data: "u32" } : {}) },
    writes: { y: "u32" },
    uniforms: { n: "u32", key: "u32", data: "u32" },
  }, () =>
    `${philox4x32}
${entry} {
  let t = ${globalIndex};
  if (t >= u.n) { return; }
  let first = ${name === "foldIn" ? "data[u.data]" : "t"};
  let words = philox(vec4u(first, 0u, 0u, ${streams[name]}u), vec2u(key[u.key], key[u.key + 1u]));
  y[2u * t] = words.x;
  y[2u * t + 1u] = words.y;
}`);

function draw<P>(
  call: Lowering<P>,
  kernel: Kernel,
  uniforms: Readonly<Record<string, number>> = {},
  more: readonly View[] = [],
): void {
  const key = call.dense(call.inputs[0], 1), [y] = call.outputs;
  const n = Math.ceil(sizeOf(y.shape) / 4);
  const values = { n, key: key.offset, ...uniforms };
  call.dispatch(kernel, [key, ...more, y], values, gridFor(n, call.capabilities.maxWorkgroups));
}

/** Keys from a key. */
export function lowerSplit(call: Lowering<{ count: number }>): void {
  const key = call.dense(call.inputs[0], 1), { count } = call.params;
  const uniforms = { n: count, key: key.offset, data: 0 };
  call.dispatch(derive("split"), [key, call.outputs[0]], uniforms, gridFor(count, call.capabilities.maxWorkgroups));
}

/** A key from a key and a number. */
export function lowerFoldIn(call: Lowering<unknown>): void {
  const [key, data] = call.inputs.map((x) => call.dense(x, 1));
  const uniforms = { n: 1, key: key.offset, data: data.offset };
  call.dispatch(derive("foldIn"), [key, data, call.outputs[0]], uniforms, [1, 1, 1]);
}

/** Even numbers. */
export function lowerUniform(call: Lowering<{ dtype: DType; min: number; range: number }>): void {
  const { dtype, min, range } = call.params;
  draw(call, uniform(dtype), { min, range, zero: 0 });
}

/** Normal numbers. */
export function lowerRandn(call: Lowering<{ dtype: DType }>): void {
  draw(call, randn(call.params.dtype), {}, [call.dense(call.inputs[1])]);
}

/** Whole numbers. */
export function lowerRandint(call: Lowering<{ min: number; range: number }>): void {
  const { min, range } = call.params;
  draw(call, randint(), { min: min >>> 0, range: range % 2 ** 32 });
}

/** Chances. */
export function lowerBernoulli(call: Lowering<{ threshold: number }>): void {
  draw(call, bernoulli(), { threshold: call.params.threshold });
}

/** Dropout, forward and backward. */
export function lowerDropout(call: Lowering<{ threshold: number; scale: number }>): void {
  const x = call.dense(call.inputs[1]);
  draw(call, dropout(x.dtype), { ...call.params, offset: x.offset / 4 }, [x]);
}
