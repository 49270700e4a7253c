/**
 * Elementwise kernels: one expression per op, and two ways to walk.
 *
 *   linear    inputs dense or scalar: thread t owns elements 4t … 4t+3, one 16-byte (packed: 8-byte) access a buffer
 *   strided   any views: thread t owns one element (packed results: a pair), and finds it in each input by its strides
 *
 * Floor for add on two tensors of 1 GiB f32: 3.2 GB at 4.07 TB/s = 0.79 ms.
 */
import type { DType } from "../tensor/dtype.ts";
import { collapse, isDense, type Layout, sizeOf } from "../tensor/shape.ts";
import type { OpName } from "../tensor/ops.ts";
import { each, type Kernel, kernel, madeKernel, type UniformType } from "./kernel.ts";
import { mathFunctions } from "./math.ts";
import {
  computeType,
  isPacked,
  load,
  pack2,
  pack4,
  roundingFunctions,
  storageType,
  storageType4,
  stored,
  unpack4,
} from "./storage.ts";

/** WGSL for one element from the inputs' elements, which are plain names or literals. */
export type Expression = (inputs: readonly string[], from: DType, to: DType) => string;

const isInt = (dtype: DType) => dtype === "i32" || dtype === "u32";
const call1 = (f: string): Expression => ([x]) => `${f}(${x})`;
const infix = (op: string): Expression => ([a, b]) => `(${a} ${op} ${b})`;
const extreme = (float: string, int: string): Expression => ([a, b], from) =>
  `${isInt(from) ? int : float}(${a}, ${b})`;

/** Every elementwise op without parameters. */
export const expressions = {
  add: infix("+"),
  sub: infix("-"),
  mul: infix("*"),
  div: infix("/"),
  pow: ([a, b]) => `ft_pow(${a}, ${b})`,
  maximum: extreme("ft_max", "max"),
  minimum: extreme("ft_min", "min"),
  equal: infix("=="),
  less: infix("<"),
  lessEqual: infix("<="),
  logicalAnd: infix("&&"),
  logicalOr: infix("||"),
  logicalNot: ([x]) => `(!${x})`,
  isFinite: ([x]) => `((bitcast<u32>(${x}) & 0x7f800000u) != 0x7f800000u)`,
  neg: ([x], from) => from === "u32" ? `(0u - ${x})` : `(-${x})`,
  abs: call1("abs"),
  sign: ([x], from) =>
    from === "u32" ? `min(${x}, 1u)` : from === "i32" ? `sign(${x})` : `select(sign(${x}), ${x}, ft_is_nan(${x}))`,
  square: ([x]) => `(${x} * ${x})`,
  relu: ([x], from) => isInt(from) ? `max(${x}, ${from}(0))` : `select(${x}, 0.0, ${x} < 0.0)`,
  exp: call1("ft_exp"),
  exp2: call1("ft_exp2"),
  log: call1("ft_log"),
  sqrt: call1("sqrt"),
  rsqrt: ([x]) => `(1.0 / sqrt(${x}))`,
  tanh: call1("ft_tanh"),
  sigmoid: call1("ft_sigmoid"),
  silu: ([x]) => `(${x} * ft_sigmoid(${x}))`,
  erf: call1("ft_erf"),
  sin: call1("ft_sin"),
  cos: call1("ft_cos"),
  where: ([condition, a, b]) => `select(${b}, ${a}, ${condition})`,
} satisfies Partial<Record<OpName, Expression>>;

/** GELU in both forms. */
export const geluExpression = (approximate: "none" | "tanh"): Expression =>
  call1(approximate === "tanh" ? "ft_gelu_tanh" : "ft_gelu");

/** A cast; what to and from share is decided by the types. */
export const castExpression: Expression = ([x], from, to) => {
  const [f, t] = [computeType(from), computeType(to)];
  if (f === t) return x;
  // By its bits: drivers take NaN ≠ 0 for false.
  if (t === "bool" && f === "f32") return `((bitcast<u32>(${x}) & 0x7fffffffu) != 0u)`;
  if (t === "bool") return `(${x} != ${f}(0))`;
  if (f === "bool") return `select(${t}(0), ${t}(1), ${x})`;
  if (f === "f32") return `ft_to_${t}(${x})`;
  return isInt(from) && isInt(to) ? `bitcast<${t}>(${x})` : `${t}(${x})`;
};

/** How an input is walked: in step with the result, or one element for all. */
type Walk = "linear" | "scalar";

/** What an elementwise kernel is made from. */
export interface ElementwiseShape {
  /** Op with its parameters, as it stands in the kernel's name. */
  readonly name: string;
  readonly inputs: readonly DType[];
  readonly output: DType;
  readonly expression: Expression;
  /** Functions that the expression calls, which may use `u.zero`: a 0 that no compiler knows of. */
  readonly helpers?: string;
}

/** An elementwise dispatch: what it computes, and how it sees its inputs. */
export interface ElementwiseCall extends ElementwiseShape {
  /** Of each input, broadcast to the result's shape. */
  readonly layouts: readonly Layout[];
  /** Elements of the result, which is dense and at offset 0. */
  readonly size: number;
}

// No f: its offset would be `of`, a reserved word.
const names = ["a", "b", "c", "d", "e", "g", "h", "k", ...each(24, (i) => `i${i + 8}`)];
const lanes = 256;

/** Thread index over a grid of workgroups in x and y. */
export const globalIndex = "(group.y * groups.x + group.x) * " + lanes + "u + lane";
const entry = `@compute @workgroup_size(${lanes}) fn main(
  @builtin(workgroup_id) group: vec3u, @builtin(num_workgroups) groups: vec3u, @builtin(local_invocation_index) lane: u32,
)`;

const zero = (helpers: string | undefined): [string, UniformType][] => helpers === undefined ? [] : [["zero", "u32"]];

/** Four elements a thread over dense inputs of the result's shape, and scalars. */
function linear(
  { name, inputs, output, expression, helpers }: ElementwiseShape,
  walks: readonly Walk[],
): Kernel {
  let id = name + "_linear";
  for (let i = 0; i < inputs.length; i++) id += "_" + inputs[i] + (walks[i] === "scalar" ? "s" : "");
  id += "_" + output;
  const known = madeKernel(id);
  if (known !== undefined) return known;
  const reads = inputs.map((dtype, i) => [names[i], walks[i] === "scalar" ? storageType(dtype) : storageType4(dtype)]);
  const offsets = inputs.map((_, i) => [`o${names[i]}`, "u32"] as [string, UniformType]);
  return kernel(id, {
    reads: Object.fromEntries(reads),
    writes: { y: storageType4(output) },
    uniforms: Object.fromEntries([["n", "u32"], ...offsets, ...zero(helpers)]),
  }, () => {
    const loads = inputs.map((dtype, i) => {
      const id = names[i];
      if (walks[i] === "scalar") return `let ${id}0 = ${load(dtype, id, `u.o${id}`)};`;
      const parts = unpack4(dtype, `${id}4`);
      return `let ${id}4 = ${id}[t + u.o${id}];\n` + parts.map((part, j) => `let ${id}${j} = ${part};`).join("\n");
    });
    const lane = (j: number) => names.slice(0, inputs.length).map((id, i) => id + (walks[i] === "scalar" ? 0 : j));
    const results = each(4, (j) => `let y${j} = ${expression(lane(j), inputs[0], output)};`);
    const body = [...loads, ...results].join("\n");
    return `${mathFunctions(body + (helpers ?? ""))}
${roundingFunctions(output)}${helpers ?? ""}
${entry} {
  let t = ${globalIndex};
  if (t >= u.n) { return; }
  ${body}
  y[t] = ${pack4(output, each(4, (j) => `y${j}`))};
}`;
  });
}

/** Text that finds an element of each view: `i` in row-major order of the collapsed shape → `at_a`, `at_b`, … */
export function locate(inputs: number, rank: number, index: string, suffix = ""): string {
  const lines = [`var rest${suffix} = ${index};`];
  const at = names.slice(0, inputs);
  for (const id of at) lines.push(`var at_${id}${suffix} = u.o${id};`);
  for (let d = rank - 1; d >= 0; d--) {
    lines.push(
      d === 0
        ? `let c0${suffix} = rest${suffix};`
        : `let c${d}${suffix} = rest${suffix} % u.d${d}; rest${suffix} /= u.d${d};`,
    );
    for (const id of at) lines.push(`at_${id}${suffix} += c${d}${suffix} * u.s${id}${d};`);
  }
  return lines.join("\n");
}

/** The uniforms that {@linkcode locate} reads. */
export function locateUniforms(inputs: number, rank: number): Record<string, UniformType> {
  const fields: [string, UniformType][] = each(rank, (d) => `d${d}`).map((id) => [id, "u32"]);
  for (const id of names.slice(0, inputs)) {
    fields.push([`o${id}`, "u32"], ...each(rank, (d) => `s${id}${d}`).map((s): [string, UniformType] => [s, "u32"]));
  }
  return Object.fromEntries(fields);
}

/** The values of those uniforms for views that were broadcast to one shape. */
export function locateValues(
  shape: readonly number[],
  layouts: readonly Pick<Layout, "strides" | "offset">[],
): { rank: number; values: Record<string, number> } {
  const { shape: dims, strides } = collapse(shape, layouts.map((l) => l.strides));
  const values: Record<string, number> = {};
  dims.forEach((n, d) => values[`d${d}`] = n);
  layouts.forEach(({ offset }, i) => {
    values[`o${names[i]}`] = offset;
    dims.forEach((_, d) => values[`s${names[i]}${d}`] = strides[i][d]);
  });
  return { rank: dims.length, values };
}

/** One element a thread (packed results: two) from any views. */
function strided({ name, inputs, output, expression, helpers }: ElementwiseShape, rank: number): Kernel {
  return kernel(`${name}_strided${rank}_${inputs.join("_")}_${output}`, {
    reads: Object.fromEntries(inputs.map((dtype, i) => [names[i], storageType(dtype)])),
    writes: { y: storageType(output) },
    uniforms: { n: "u32", ...locateUniforms(inputs.length, rank), ...Object.fromEntries(zero(helpers)) },
  }, () => {
    const value = (suffix: string, index: string) => {
      const loads = inputs.map((dtype, i) =>
        `let ${names[i]}${suffix} = ${load(dtype, names[i], `at_${names[i]}${suffix}`)};`
      );
      const args = inputs.map((_, i) => names[i] + suffix);
      return [
        locate(inputs.length, rank, index, suffix),
        ...loads,
        `let y${suffix} = ${expression(args, inputs[0], output)};`,
      ].join("\n");
    };
    const body = isPacked(output)
      ? `${value("0", "2u * t")}\n${value("1", "min(2u * t + 1u, u.n - 1u)")}\ny[t] = ${pack2(output, "y0", "y1")};`
      : `${value("0", "t")}\ny[t] = ${stored(output, "y0")};`;
    return `${mathFunctions(body + (helpers ?? ""))}
${roundingFunctions(output)}${helpers ?? ""}
${entry} {
  let t = ${globalIndex};
  if (t >= ${isPacked(output) ? "(u.n + 1u) / 2u" : "u.n"}) { return; }
  ${body}
}`;
  });
}

/** What to dispatch for an elementwise call on views that were broadcast to the result's shape. */
export function planElementwise(shape: ElementwiseShape, views: readonly Layout[], size: number): {
  kernel: Kernel;
  uniforms: Record<string, number>;
  threads: number;
} {
  const walks = views.map((view): Walk | null => {
    if (view.offset % 4 === 0 && isDense(view)) return sizeOf(view.shape) === 1 ? "scalar" : "linear";
    if (view.strides.every((s, d) => s === 0 || view.shape[d] === 1)) return "scalar";
    return null;
  });
  if (walks.every((walk) => walk !== null)) {
    const uniforms: Record<string, number> = { n: Math.ceil(size / 4) };
    if (shape.helpers !== undefined) uniforms.zero = 0;
    views.forEach(({ offset }, i) => uniforms[`o${names[i]}`] = walks[i] === "scalar" ? offset : offset / 4);
    return { kernel: linear(shape, walks), uniforms, threads: uniforms.n };
  }
  const { rank, values } = locateValues(views[0].shape, views);
  const threads = isPacked(shape.output) ? Math.ceil(size / 2) : size;
  if (shape.helpers !== undefined) values.zero = 0;
  return { kernel: strided(shape, rank), uniforms: { n: size, ...values }, threads };
}

/** Workgroups for so many threads of an elementwise kernel, spread over x and y within the device's limit. */
export function gridFor(threads: number, maxWorkgroups: number): [number, number, number] {
  const groups = Math.ceil(threads / lanes);
  if (groups <= maxWorkgroups) return [groups, 1, 1];
  const y = Math.ceil(groups / maxWorkgroups);
  return [Math.ceil(groups / y), y, 1];
}
