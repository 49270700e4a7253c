/**
 * What a compiled call has the store of a product on matrix units do beside: elementwise steps that read the product, such as
 * a bias and an activation. C is then what the last of them gives, and the product itself is never in memory.
 *
 *   t = matmul(x, w);  u = add(t, b);  y = gelu(u)      y = matmul(x, w) ending in gelu(t + b)
 */
import type { DType } from "../tensor/dtype.ts";
import { each, type Kernel, type UniformType, wgsl } from "./kernel.ts";
import { mathFunctions } from "./math.ts";
import type { MatmulDType } from "./matmul.ts";
import { rounded } from "./rows.ts";
import { load, storageType, storageType4, unpack4 } from "./storage.ts";

/** What a step reads beside the product: its element at the product's own, at its column, or a single one. */
export interface EndingInput {
  readonly dtype: DType;
  readonly at: "element" | "column" | "one";
}

/** The steps. */
export interface Ending {
  /** Tells texts apart. */
  readonly name: string;
  /** `fn fused(x0, x1, …) -> f32`, and what else it needs; it may read `u.zero`. */
  readonly helpers: string;
  /** What x0, x1, … are. */
  readonly inputs: readonly (EndingInput | "product")[];
  /** 4 where rows of C, and all that is read by elements or columns, start at whole vectors of four. */
  readonly vec: 1 | 4;
}

/** A product whose store can do more. */
export interface Endable {
  /** Columns of C. */
  readonly n: number;
  /** Elements of C. */
  readonly size: number;
  readonly output: MatmulDType;
  /**
   * The kernel that ends so: what the ending reads is bound before C.
   * @param offsets where each input begins, in elements
   */
  end(ending: Ending, offsets: readonly number[]): {
    readonly kernel: Kernel;
    readonly uniforms: Readonly<Record<string, number>>;
  };
}

const read = ({ inputs }: Ending) => inputs.filter((input) => input !== "product");

/** The end of a kernel's name. */
export function endingName({ name, inputs, vec }: Ending): string {
  const given = inputs.map((input) => input === "product" ? "_product" : `_${input.at}_${input.dtype}`);
  return `_${name}${given.join("")}_v${vec}`;
}

/** What the steps read. */
export function endingReads(ending: Ending): Record<string, string> {
  const typeOf = ({ dtype, at }: EndingInput) =>
    ending.vec === 4 && at !== "one" ? storageType4(dtype) : storageType(dtype);
  return Object.fromEntries(read(ending).map((input, i) => [`e${i}`, typeOf(input)]));
}

/** Uniforms beside those of the product. */
export function endingUniforms(ending: Ending): Record<string, UniformType> {
  return Object.fromEntries(["zero", ...read(ending).map((_, i) => `offset_e${i}`)].map((id) => [id, "u32"]));
}

/** Their values. */
export function endingValues(offsets: readonly number[]): Record<string, number> {
  return { zero: 0, ...Object.fromEntries(offsets.map((offset, i) => [`offset_e${i}`, offset])) };
}

/** `ending(v, at, n)`: what becomes of four elements of C from its element `at` on, in columns n to n + 3 as far as they exist. */
export function endingText(ending: Ending, out: MatmulDType): string {
  const { helpers, inputs, vec } = ending;
  const places = vec === 4
    ? ["let column = min(n, u.n - 4u); let element = at + column - n;"]
    : each(4, (j) => `let column${j} = min(n + ${j}u, u.n - 1u); let element${j} = at + column${j} - n;`);
  const loads: string[] = [];
  const values = read(ending).map(({ dtype, at }, i) => {
    const id = `e${i}`, offset = `u.offset_${id}`;
    if (at === "one") return each(4, () => load(dtype, id, offset));
    if (vec === 1) return each(4, (j) => load(dtype, id, `(${offset} + ${at}${j})`));
    loads.push(`let four${i} = ${id}[(${offset} + ${at}) >> 2u];`);
    return unpack4(dtype, `four${i}`);
  });
  const results = each(4, (j) => {
    let other = 0;
    const args = inputs.map((input) => input === "product" ? rounded(out, `v[${j}]`) : values[other++][j]);
    return `fused(${args.join(", ")})`;
  });
  return wgsl`${mathFunctions(helpers)}
${helpers}
fn ending(v: vec4f, at: u32, n: u32) -> vec4f {
  ${[...places, ...loads].join("\n  ")}
  return vec4f(${results.join(", ")});
}`;
}
