/** Uniform values as a kernel's block holds them. */
import type { Kernel } from "./kernel.ts";

const one = new ArrayBuffer(4);
const asFloat = new Float32Array(one), asWord = new Uint32Array(one);

/** The words of a kernel's uniform block. */
export function uniformWords(kernel: Kernel, values: Readonly<Record<string, number>>): Uint32Array<ArrayBuffer> {
  const words = new Uint32Array(kernel.uniforms.length);
  writeUniforms(kernel, values, words, 0);
  return words;
}

/** Writes a kernel's uniform block, from a word on. */
export function writeUniforms(
  kernel: Kernel,
  values: Readonly<Record<string, number>>,
  words: Uint32Array,
  at: number,
): void {
  const fields = kernel.uniforms;
  for (let i = 0; i < fields.length; i++) writeUniform(kernel, i, values[fields[i][0]], words, at + i);
}

/** Writes field i of a kernel's uniform block to a word. */
export function writeUniform(
  kernel: Kernel,
  i: number,
  value: number | undefined,
  words: Uint32Array,
  at: number,
): void {
  const [name, type] = kernel.uniforms[i];
  if (value === undefined) throw new Error(`${kernel.name}: no value for uniform ${name}`);
  if (type === "f32") {
    asFloat[0] = value;
    words[at] = asWord[0];
  } else words[at] = value;
}
