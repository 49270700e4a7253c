/**
 * The operands of attention's kernels on subgroup matrices, which multiply f16: how they lie in storage, and the text that reads
 * eight elements at a time on their way to workgroup memory.
 *
 * bf16 is converted there and not by a dispatch before: a cache may be long, is read by every call, and a copy of it in
 * f16 costs three times its bytes, more than a call of few queries; what is converted twice is little beside the products
 * that each element takes part in.
 */
import { type AttentionOperand, type AttentionStorage, type AttentionStrides, isEven } from "./attention_common.ts";
import { packUnit } from "./attention_matrix_tiles.ts";
import { components, each } from "./kernel.ts";

/** The operand of rows of `size` elements that lie there: f16, or bf16 or f32 that is rounded on its way in. */
export function matrixOperandOf(storage: AttentionStorage, size: number, strides: AttentionStrides): AttentionOperand {
  const even = (unit: number): boolean => isEven(unit, size, strides);
  if (storage === "f32") return { storage, unit: even(4) ? 4 : 1 };
  return { storage, unit: even(8) ? 8 : even(2) ? 2 : 1 };
}

/** What is made of eight neighbouring elements: of four words with two of 16 bits each, or of two vec4f. */
export interface EightUse {
  readonly type: string;
  readonly words: (w: string) => string;
  readonly floats: (x0: string, x1: string) => string;
}

/**
 * WGSL of a function of (row, d8), what `use` makes of elements 8·d8 … 8·d8+7 of the row that starts at `row`, 0 for those
 * past `size`. It is called with d8 up to `padded`/8, and is 0 there.
 */
export function eightReader(
  call: string,
  name: string,
  { storage, unit }: AttentionOperand,
  size: number,
  padded: number,
  { type, words, floats }: EightUse,
): string {
  const head = `fn ${call}(row: u32, d8: u32) -> ${type} {`;
  const whole = Math.ceil(size / 8), guard = whole * 8 === padded ? "" : `if (d8 >= ${whole}u) { return ${type}(); }`;
  if (unit === 8) return `${head} ${guard} return ${words(`${name}[row + d8]`)}; }`;
  const last = Math.floor(size / 8);
  const read = (i: number, text: string): string =>
    size % 8 === 0 || i < size % 8 ? text : `if (d8 < ${last}u) { ${text} }`;
  if (storage === "f32") {
    const vec = (half: number): string =>
      unit === 4
        ? read(4 * half, `x${half} = ${name}[row + d8 * 2u + ${half}u];`)
        : each(4, (e) => read(4 * half + e, `x${half}[${e}] = ${name}[row + d8 * 8u + ${4 * half + e}u];`)).join(" ");
    return `${head} ${guard} var x0 = vec4f(); var x1 = vec4f(); ${vec(0)} ${vec(1)} return ${floats("x0", "x1")}; }`;
  }
  if (unit === 2) {
    const pairs = each(4, (i) => read(2 * i, `x[${i}] = ${name}[row + d8 * 4u + ${i}u];`));
    return `${head} ${guard} var x = vec4u(); ${pairs.join(" ")} return ${words("x")}; }`;
  }
  const parts = each(8, (i) =>
    read(
      i,
      `{ let at = row + d8 * 8u + ${i}u; x[${i >> 1}] |= ((${name}[at >> 1u] >> ((at & 1u) * 16u)) & 0xffffu) << ${
        (i & 1) * 16
      }u; }`,
    ));
  return `${head} ${guard} var x = vec4u(); ${parts.join(" ")} return ${words("x")}; }`;
}

/**
 * WGSL of `fn <name>_at(row, d8) -> vec4u`: elements 8·d8 … 8·d8+7 of the row that starts at `row`, 0 past `size`, up to
 * `padded`, as f16; bf16 comes as it is, so that nothing waits for the load, and is made f16 by `<name>_narrow`.
 *
 * @param scaled multiplies by `<name>_power`, which the text declares: always with bf16
 */
export function matrixReader(
  name: string,
  operand: AttentionOperand,
  size: number,
  padded: number,
  scaled = false,
): string {
  const times = (x: string): string => scaled ? `(${x} * ${name}_power)` : x;
  const pair = (c: string): string => `bitcast<u32>(vec2<f16>(vec2f(low.${c}, high.${c})))`;
  return [
    ...(scaled ? [`var<private> ${name}_power: f32;`] : []),
    ...(operand.storage === "bf16"
      ? [`fn ${name}_narrow(w: vec4u) -> vec4u {
  let low = bitcast<vec4f>(w << vec4u(16u)) * ${name}_power; let high = bitcast<vec4f>(w & vec4u(0xffff0000u)) * ${name}_power;
  return vec4u(${components.map(pair).join(", ")});
}`]
      : []),
    eightReader(`${name}_at`, name, operand, size, padded, {
      type: "vec4u",
      words: (w) => w,
      floats: (x0, x1) => packUnit(times(x0), times(x1)),
    }),
  ].join("\n");
}
