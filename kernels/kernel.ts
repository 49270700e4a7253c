/**
 * What a kernel is: a value made of text. No device in sight; `pipelines.ts` turns one into a pipeline.
 *
 * The body names its storage bindings and uniforms as plain WGSL variables; this file writes their declarations, so
 * that every kernel binds in the same order: reads, then writes, then one uniform block `u`.
 */

/** The type of one field of a kernel's uniform block. */
export type UniformType = "u32" | "i32" | "f32";

/** A device feature that a kernel's text needs. `enable` lines differ between WGSL dialects, so kernels never write them. */
export type Feature = "subgroups" | "f16" | "subgroup-matrix";

/** What stands around a kernel's body. */
export interface KernelInterface {
  /** Read-only storage: variable name → element type, for example `{ x: "vec4f" }`. */
  readonly reads?: Readonly<Record<string, string>>;
  /** Read-write storage: variable name → element type. */
  readonly writes: Readonly<Record<string, string>>;
  /** Fields of the uniform block `u`, in order. */
  readonly uniforms?: Readonly<Record<string, UniformType>>;
  /** Features without which the text does not compile. */
  readonly requires?: readonly Feature[];
}

/** WGSL text with the interface that it binds. The name carries the parameters, as in `matmul_128x128x16_f32_nt`. */
export interface Kernel {
  /** What profiles show, and what tells it from other kernels. */
  readonly name: string;
  /** Variables of the read-only bindings, in order. */
  readonly reads: readonly string[];
  /** Variables of the bindings after those, which it writes. */
  readonly writes: readonly string[];
  /** Fields of the uniform block, in order; none without one. */
  readonly uniforms: readonly (readonly [name: string, type: UniformType])[];
  /** Features without which it does not compile. */
  readonly requires: readonly Feature[];
  /** What it was made with. */
  readonly binds: KernelInterface;
  /** The shader without the declarations of bindings and uniforms. */
  readonly body: string;
  /** The whole shader without `enable` lines. */
  readonly source: string;
}

const made = new Map<string, Kernel>();

/** The kernel of that name, if it was made: spares a hot path what it takes to describe one. */
export function madeKernel(name: string): Kernel | undefined {
  return made.get(name);
}

/**
 * Makes a kernel, or returns the one of that name made before: a name therefore says every parameter that the text
 * depends on.
 *
 * @param name the kernel's name with its parameters
 * @param shape the storage and uniforms that the body uses
 * @param body WGSL with an entry point `main`; called once a name
 */
export function kernel(name: string, shape: KernelInterface, body: () => string): Kernel {
  const known = made.get(name);
  if (known !== undefined) return known;
  const { reads = {}, writes, uniforms = {}, requires = [] } = shape;
  const storage = [
    ...Object.entries(reads).map(([id, type]) => [id, type, "read"]),
    ...Object.entries(writes).map(([id, type]) => [id, type, "read_write"]),
  ];
  const fields = Object.entries(uniforms);
  const text = body();
  const lines = [
    ...storage.map(([id, type, access], i) =>
      `@group(0) @binding(${i}) var<storage, ${access}> ${id}: array<${type}>;`
    ),
    ...(fields.length === 0 ? [] : [
      `struct Uniforms { ${fields.map(([id, type]) => `${id}: ${type}`).join(", ")} }`,
      `@group(0) @binding(${storage.length}) var<uniform> u: Uniforms;`,
    ]),
    text,
  ];
  const value: Kernel = {
    name,
    reads: Object.keys(reads),
    writes: Object.keys(writes),
    uniforms: fields,
    requires,
    binds: shape,
    body: text,
    source: lines.join("\n"),
  };
  made.set(name, value);
  return value;
}

/**
 * WGSL text. Arrays are joined by newlines, so that unrolled lines are written `${each(4, (i) => wgsl`…`)}`.
 */
export function wgsl(strings: TemplateStringsArray, ...values: (string | number | readonly string[])[]): string {
  return strings.reduce((text, part, i) => {
    const value = values[i - 1];
    return text + (Array.isArray(value) ? value.join("\n") : String(value)) + part;
  });
}

/** The components of a vec4. */
export const components = ["x", "y", "z", "w"];

/** `[f(0), …, f(n − 1)]`: the lines of an unrolled loop. */
export function each(n: number, f: (i: number) => string): string[] {
  return Array.from({ length: n }, (_, i) => f(i));
}
