/** Sums over products of named axes, by way of one matrix product a pair. */
import { cast } from "./elementwise.ts";
import { promote } from "./dtype.ts";
import { ShapeError, show, ValueError } from "./errors.ts";
import { matmul } from "./matmul.ts";
import { expandDims, permute, reshape } from "./movement.ts";
import { sum } from "./reduce.ts";
import { scope } from "./scope.ts";
import type { Tensor } from "./tensor.ts";

/** A tensor whose axes have names of one letter. */
interface Named {
  readonly x: Tensor;
  readonly axes: string;
}

/** `"bij,bjk->bik"` as the names of each input's axes and of the result's. */
function parse(equation: string, count: number): { inputs: string[]; output: string } {
  const [left, right, ...rest] = equation.replaceAll(" ", "").split("->");
  const inputs = left.split(",");
  if (rest.length > 0 || !/^[a-zA-Z,]*$/.test(left) || !/^[a-zA-Z]*$/.test(right ?? "")) {
    throw new ValueError("einsum", `"${equation}" is not of the form "ij,jk->ik" with letters for axes`);
  }
  if (inputs.length !== count) {
    throw new ValueError("einsum", `"${equation}" names ${inputs.length} inputs, got ${count}`);
  }
  const all = inputs.join("");
  const once = [...new Set(all)].filter((c) => all.split(c).length === 2).sort().join("");
  const output = right ?? once;
  const strange = [...output].find((c, i) => !all.includes(c) || output.indexOf(c) !== i);
  if (strange !== undefined) {
    throw new ValueError(
      "einsum",
      `axis ${strange} of the result stands in no input or twice in the result: "${equation}"`,
    );
  }
  return { inputs, output };
}

/** Every axis' length; those of one name must agree. */
function lengthsOf(named: readonly Named[], equation: string): Map<string, number> {
  const lengths = new Map<string, number>();
  named.forEach(({ x, axes }, i) => {
    if (x.rank !== axes.length) {
      throw new ShapeError("einsum", `input ${i} is ${show(x.shape)}, "${equation}" names ${axes.length} axes for it`);
    }
    [...axes].forEach((c, a) => {
      const known = lengths.get(c) ?? x.shape[a];
      if (known !== x.shape[a]) {
        throw new ShapeError("einsum", `axis ${c} is ${known} long, and ${x.shape[a]} in input ${i} ${show(x.shape)}`);
      }
      lengths.set(c, known);
    });
  });
  return lengths;
}

/** The axes in another order, those that are missing with length 1. */
function arrange({ x, axes }: Named, order: string): Tensor {
  const present = [...order].filter((c) => axes.includes(c));
  let y = permute(x, present.map((c) => axes.indexOf(c)));
  [...order].forEach((c, i) => {
    if (!axes.includes(c)) y = expandDims(y, i);
  });
  return y;
}

/** Sums over the axes that nobody asks for. */
function drop({ x, axes }: Named, keep: string): Named {
  const gone = [...axes].flatMap((c, i) => keep.includes(c) ? [] : [i]);
  return gone.length === 0
    ? { x, axes }
    : { x: sum(x, { axis: gone }), axes: [...axes].filter((c) => keep.includes(c)).join("") };
}

/** The product of two: shared kept axes are the batch, shared dropped ones the inner axis. */
function contract(a: Named, b: Named, keep: string, length: (c: string) => number): Named {
  const left = drop(a, keep + b.axes), right = drop(b, keep + a.axes);
  const batch = [...left.axes].filter((c) => right.axes.includes(c) && keep.includes(c));
  const inner = [...left.axes].filter((c) => right.axes.includes(c) && !keep.includes(c));
  const rows = [...left.axes].filter((c) => !right.axes.includes(c));
  const columns = [...right.axes].filter((c) => !left.axes.includes(c));
  const size = (axes: readonly string[]) => axes.reduce((n, c) => n * length(c), 1);
  const fold = (named: Named, first: readonly string[], second: readonly string[]) =>
    reshape(arrange(named, [...batch, ...first, ...second].join("")), [
      ...batch.map(length),
      size(first),
      size(second),
    ]);
  const product = matmul(fold(left, rows, inner), fold(right, inner, columns));
  const axes = [...batch, ...rows, ...columns];
  return { x: reshape(product, axes.map(length)), axes: axes.join("") };
}

/**
 * Einstein's sum: axes are letters, those missing on the right are summed over.
 *
 * @param equation such as `"bij,bjk->bik"`; without `->` the letters that stand once, in alphabetical order
 * @param xs one tensor for each term on the left; a letter may stand once in a term
 * @returns the named axes, in the widest dtype of the inputs
 * @throws {ValueError} when the equation cannot be read or does not fit the number of inputs
 * @throws {ShapeError} when axes of one name differ in length
 *
 * @example
 * ```ts
 * import { einsum, tensor } from "@flashtape/flashtape";
 * const y = einsum("ij,kj->ik", tensor([[1, 2]]), tensor([[3, 4], [5, 6]]));
 * console.log(await y.array()); // [[11, 17]]
 * ```
 */
export function einsum(equation: string, ...xs: readonly Tensor[]): Tensor {
  if (xs.length === 0) throw new ValueError("einsum", "needs at least one tensor");
  const { inputs, output } = parse(equation, xs.length);
  const twice = inputs.find((axes) => new Set(axes).size !== axes.length);
  if (twice !== undefined) {
    throw new ValueError(
      "einsum",
      `"${twice}" names an axis twice: diagonals are not taken, multiply by eye() instead`,
    );
  }
  const dtype = xs.map((x) => x.dtype).reduce((a, b) => promote("einsum", a, b));
  return scope(() => {
    const named = xs.map((x, i) => ({ x: cast(x, dtype), axes: inputs[i] }));
    const lengths = lengthsOf(named, equation);
    let result: Named = named[0];
    for (let i = 1; i < named.length; i++) {
      const later = output + inputs.slice(i + 1).join("");
      result = contract(result, named[i], later, (c) => lengths.get(c)!);
    }
    return arrange(drop(result, output), output);
  });
}
