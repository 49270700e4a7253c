/**
 * Fusing: elementwise dispatches that feed one another become one kernel, which reads what they read and writes what the
 * last one wrote.
 *
 *   t0 = mul(a, b);  t1 = sigmoid(t0);  y = add(t1, c)      three kernels, two values that go to memory and back
 *   y = fused(a, b, c)                                      one kernel
 *   t = matmul(x, w);  y = relu(add(t, b))                  one kernel on matrix units, whose store adds and bends
 *
 * Results stay the same to the bit: each step rounds to its dtype, and takes its operands through a zero that the
 * compiler does not know of. It would else multiply and add with one rounding, and make x / x a 1.
 */
import type { DType } from "../tensor/dtype.ts";
import { isDense, type Layout, sameShape, type Shape, stridesOf } from "../tensor/shape.ts";
import { type ElementwiseCall, gridFor, planElementwise } from "./elementwise.ts";
import type { PooledBuffer } from "./memory.ts";
import type { MergeLimits } from "./merge.ts";
import { distinctBytes } from "./profiler.ts";
import type { Noted } from "./recorder.ts";
import { computeType, isPacked, roundingFunctions, storageBytes } from "./storage.ts";

/** Inputs of a fused kernel, where a device binds so many buffers. */
const maxInputs = 24;

/** What the steps that a product ends in read beside it, at most. */
const mostEnding = 4;

interface Elementwise extends Noted {
  readonly elementwise: ElementwiseCall;
}

/** The same elements under another shape, where they are dense or all one; else null. */
function relayout(layout: Layout, shape: Shape): Layout | null {
  if (sameShape(layout.shape, shape)) return layout;
  if (layout.strides.every((s, i) => s === 0 || layout.shape[i] === 1)) {
    return { shape, strides: shape.map(() => 0), offset: layout.offset };
  }
  return isDense(layout) ? { shape, strides: stridesOf(shape), offset: layout.offset } : null;
}

/** An input that a fused kernel reads from memory. */
interface Input {
  readonly buffer: PooledBuffer;
  readonly layout: Layout;
  readonly dtype: DType;
}

const sameInput = (a: Input, b: Input) =>
  a.buffer === b.buffer && a.dtype === b.dtype && a.layout.offset === b.layout.offset &&
  sameShape(a.layout.strides, b.layout.strides);

/** Dispatches that become one, by their places in the list; the last of them keeps its place. */
class Group {
  readonly members: readonly number[];
  readonly inputs: readonly Input[];
  readonly #list: readonly Noted[];

  private constructor(list: readonly Noted[], members: readonly number[], inputs: readonly Input[]) {
    this.#list = list;
    this.members = members;
    this.inputs = inputs;
  }

  /** The group of these members; null when their shapes do not allow it. */
  static of(list: readonly Noted[], members: readonly number[], most: number): Group | null {
    const last = list[members.at(-1)!] as Elementwise;
    const shape = last.elementwise.layouts[0].shape;
    const made = new Map(members.map((i) => [list[i].buffers.at(-1)!, list[i].elementwise!]));
    const inputs: Input[] = [];
    for (const i of members) {
      const { elementwise, buffers } = list[i] as Elementwise;
      for (const [j, own] of elementwise.layouts.entries()) {
        const layout = relayout(own, shape), from = made.get(buffers[j]);
        if (layout === null) return null;
        if (from !== undefined) {
          const inStep = isDense(layout) && layout.offset === 0 && from.size === elementwise.size;
          if (!inStep || from.output !== elementwise.inputs[j]) return null;
          continue;
        }
        const input = { buffer: buffers[j], layout, dtype: elementwise.inputs[j] };
        if (!inputs.some((known) => sameInput(known, input))) inputs.push(input);
      }
    }
    return inputs.length <= most ? new Group(list, members, inputs) : null;
  }

  /** One dispatch for all. */
  dispatch(maxWorkgroups: number): Noted {
    const last = this.#list[this.members.at(-1)!] as Elementwise;
    const { size, output } = last.elementwise;
    const target = last.buffers.at(-1)!;
    const { helpers, name } = this.#text(output);
    const call: ElementwiseCall = {
      name,
      inputs: this.inputs.map(({ dtype }) => dtype),
      output,
      expression: (inputs) => `fused(${inputs.join(", ")})`,
      helpers,
      layouts: this.inputs.map(({ layout }) => layout),
      size,
    };
    const { kernel, uniforms, threads } = planElementwise(call, call.layouts, size);
    const bytes = this.inputs.reduce((sum, { layout, dtype }) => sum + distinctBytes(layout, dtype), 0);
    return {
      kernel,
      buffers: [...this.inputs.map(({ buffer }) => buffer), target],
      uniforms: kernel.uniforms.map(([id]) => uniforms[id]),
      workgroups: gridFor(threads, maxWorkgroups),
      label: { op: "fused", kernel: kernel.name, bytes: bytes + size * storageBytes(output) },
      elementwise: call,
    };
  }

  /** The dispatch of a product that ends in these steps; null where its store cannot do them. */
  end({ kernel: plain, buffers, product, label, workgroups }: Noted, maxBuffers: number): Noted | null {
    const last = this.#list[this.members.at(-1)!] as Elementwise, target = last.buffers.at(-1)!;
    const { size, output } = last.elementwise, made = buffers.at(-1)!, { n } = product!;
    if (size !== product!.size || output !== product!.output) return null;
    const inputs = this.inputs.map(({ buffer, layout, dtype }) => {
      const { shape, strides, offset } = layout, still = (d: number) => strides[d] === 0 || shape[d] === 1;
      if (buffer === made) return isDense(layout) && offset === 0 && dtype === output ? "product" : null;
      if (shape.every((_, d) => still(d))) return { dtype, at: "one" } as const;
      if (isDense(layout)) return { dtype, at: "element" } as const;
      const column = shape.at(-1) === n && strides.at(-1) === 1 && shape.slice(0, -1).every((_, d) => still(d));
      return column ? { dtype, at: "column" } as const : null;
    });
    if (!inputs.every((input) => input !== null)) return null;
    const others = this.inputs.filter(({ buffer }) => buffer !== made);
    const reads = [...buffers.slice(0, plain.reads.length), ...others.map(({ buffer }) => buffer)];
    if (others.length > mostEnding || reads.length >= maxBuffers || reads.includes(target)) return null;
    const whole = inputs.every((input, i) =>
      input === "product" || input.at === "one" || this.inputs[i].layout.offset % 4 === 0
    );
    const ending = { ...this.#text(output), inputs, vec: n % 4 === 0 && whole ? 4 : 1 } as const;
    const { kernel, uniforms } = product!.end(ending, others.map(({ layout }) => layout.offset));
    const more = others.reduce((sum, { layout, dtype }) => sum + distinctBytes(layout, dtype), 0);
    return {
      kernel,
      buffers: [...reads, target],
      uniforms: kernel.uniforms.map(([id]) => uniforms[id]),
      workgroups,
      label: { ...label, kernel: kernel.name, bytes: label.bytes && label.bytes + more },
    };
  }

  /** The function that computes one element, and a name for it. */
  #text(output: DType): { helpers: string; name: string } {
    const steps = new Map<PooledBuffer, string>();
    const lines: string[] = [], ops: string[] = [], packed = new Set<DType>();
    for (const i of this.members) {
      const { elementwise, buffers } = this.#list[i] as Elementwise;
      const shape = (this.#list[this.members.at(-1)!] as Elementwise).elementwise.layouts[0].shape;
      const args = elementwise.layouts.map((own, j) => {
        const step = steps.get(buffers[j]);
        if (step !== undefined) return step;
        const input = { buffer: buffers[j], layout: relayout(own, shape)!, dtype: elementwise.inputs[j] };
        return `x${this.inputs.findIndex((known) => sameInput(known, input))}`;
      });
      const n = ops.push(elementwise.name) - 1;
      const operands = args.map((arg, j) => {
        if (computeType(elementwise.inputs[j]) !== "f32") return arg;
        const operand = `${String.fromCharCode(97 + j)}${n}`;
        lines.push(`let ${operand} = bitcast<f32>(bitcast<u32>(${arg}) ^ (u.zero & ${8 * n + j + 1}u));`);
        return operand;
      });
      const text = elementwise.expression(operands, elementwise.inputs[0], elementwise.output);
      const isLast = i === this.members.at(-1);
      if (!isLast && isPacked(elementwise.output)) packed.add(elementwise.output);
      lines.push(isLast ? `return ${text};` : `let t${n} = ${rounded(elementwise.output, text)};`);
      steps.set(buffers.at(-1)!, `t${n}`);
    }
    packed.delete(output); // whose functions the kernel has already
    const parameters = this.inputs.map(({ dtype }, i) => `x${i}: ${computeType(dtype)}`).join(", ");
    const helpers = `${[...packed].map((dtype) => roundingFunctions(dtype)).join("")}
fn fused(${parameters}) -> ${computeType(output)} {
  ${lines.join("\n  ")}
}`;
    const shown = ops.length <= 6 ? ops : [...ops.slice(0, 5), `${ops.length - 5}more`];
    return { helpers, name: `fused${numberOf(helpers)}_${shown.join("_")}` };
  }
}

/** A step's value as memory would give it back. */
function rounded(dtype: DType, text: string): string {
  if (dtype === "bf16") return `bitcast<f32>(ft_bf16(${text}) << 16u)`;
  return dtype === "f16" ? `unpack2x16float(ft_f16(${text})).x` : text;
}

const numbers = new Map<string, number>();

/** Names tell kernels apart, and these texts are too long for names: they are numbered. */
function numberOf(text: string): number {
  const known = numbers.get(text) ?? numbers.size + 1;
  numbers.set(text, known);
  return known;
}

/**
 * Fuses what can be fused.
 *
 * A dispatch joins the one that reads its result when nobody else does, both go through the same elements in step, and
 * nothing between them writes what it reads.
 *
 * Where what is left reads a product that nobody else reads, and whose store can do more, the product's kernel does it.
 *
 * @param vanishes whether a buffer is for these dispatches alone, so that it need not be written
 */
export function fuse(
  dispatches: readonly Noted[],
  vanishes: (buffer: PooledBuffer) => boolean,
  { maxBuffers, maxWorkgroups }: MergeLimits,
): Noted[] {
  const most = Math.min(maxInputs, maxBuffers - 1); // one for the result
  const readers = new Map<PooledBuffer, number[]>(), writers = new Map<PooledBuffer, number[]>();
  dispatches.forEach(({ kernel, buffers }, i) =>
    buffers.forEach((buffer, j) => {
      const users = j < kernel.reads.length ? readers : writers;
      const known = users.get(buffer);
      if (known === undefined) users.set(buffer, [i]);
      else if (known.at(-1) !== i) known.push(i);
    })
  );
  /** Whether nothing writes what a dispatch reads before `last` has run. */
  const stays = (i: number, last: number) =>
    dispatches[i].buffers.slice(0, dispatches[i].kernel.reads.length).every((x) =>
      (writers.get(x) ?? []).every((writer) => writer < i || writer > last)
    );
  /** The dispatch before `last` that can join the members, if there is one. */
  const candidate = (members: readonly number[], last: number, inputs: readonly Input[]): number | undefined => {
    for (const { buffer } of inputs) {
      const [i, ...others] = writers.get(buffer) ?? [];
      if (i === undefined || others.length > 0 || i >= last || !vanishes(buffer)) continue;
      if (
        dispatches[i].elementwise === undefined || !readers.get(buffer)!.every((reader) => members.includes(reader))
      ) continue;
      if (stays(i, last) && Group.of(dispatches, [i, ...members].sort((a, b) => a - b), most) !== null) return i;
    }
  };
  /** The product before `last` that a group reads, when nobody else does and its operands stay. */
  const productOf = ({ members, inputs }: Group, last: number): number | undefined =>
    inputs.flatMap(({ buffer }) => {
      const [i, ...others] = writers.get(buffer) ?? [];
      const alone = i !== undefined && others.length === 0 && i < last && vanishes(buffer) &&
        dispatches[i].product !== undefined && readers.get(buffer)!.every((reader) => members.includes(reader));
      return alone && stays(i, last) ? [i] : [];
    })[0];
  const gone = new Set<number>(), fused = new Map<number, Noted>();
  for (let last = dispatches.length - 1; last >= 0; last--) {
    if (gone.has(last) || dispatches[last].elementwise === undefined) continue;
    let group = Group.of(dispatches, [last], most);
    while (group !== null) {
      const next = candidate(group.members, last, group.inputs);
      if (next === undefined) break;
      group = Group.of(dispatches, [next, ...group.members].sort((a, b) => a - b), most);
    }
    if (group === null) continue;
    const product = productOf(group, last);
    const ended = product === undefined ? null : group.end(dispatches[product], maxBuffers);
    if (ended === null && group.members.length === 1) continue;
    for (const i of group.members) if (i !== last) gone.add(i);
    if (ended !== null) gone.add(product!);
    fused.set(last, ended ?? group.dispatch(maxWorkgroups));
  }
  return dispatches.flatMap((dispatch, i) => gone.has(i) ? [] : [fused.get(i) ?? dispatch]);
}
