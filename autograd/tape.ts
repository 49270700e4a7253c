/** The tape: notes what ran on values that matter, then walks back through it. */
import { type DType, isFloat } from "../tensor/dtype.ts";
import { observe, type Observer, type Op } from "../tensor/op.ts";
import { depth, scope, track, untrack } from "../tensor/scope.ts";
import type { Shape } from "../tensor/shape.ts";
import { alias, type Tensor } from "../tensor/tensor.ts";
import { add } from "../tensor/elementwise.ts";
import { zeros } from "../tensor/create.ts";
import { absent } from "./absent.ts";
import { pullbackOf } from "./vjps.ts";

/** One gradient for each input: null where it has none, a function where it is costly and may not be wanted. */
export type Gradients = readonly (Tensor | null | (() => Tensor))[];

/** From the gradients of the outputs to those of the inputs. */
export type Pullback = (...gradients: Tensor[]) => Gradients;

/** What a derivative may look at. What it takes from `inputs` or `output` is kept alive until the walk passes. */
export interface Call<Params> {
  /** Taking an element keeps it. */
  readonly inputs: Iterable<Tensor>;
  /** The first result; looking keeps it. */
  readonly output: Tensor;
  /** All results; looking keeps them. */
  readonly outputs: readonly Tensor[];
  /** Looking keeps nothing. */
  readonly shapes: readonly Shape[];
  /** Input dtypes; looking keeps nothing. */
  readonly dtypes: readonly DType[];
  /** Which inputs a gradient goes on to: the others' need not be computed. */
  readonly wanted: readonly boolean[];
  /** What else the op was called with. */
  readonly params: Params;
}

interface Entry {
  readonly name: string;
  readonly inputs: readonly number[];
  readonly outputs: readonly { readonly id: number; readonly shape: Shape; readonly dtype: DType }[];
  readonly pullback: Pullback;
  readonly saved: readonly Tensor[];
}

/** Notes the ops that a set of values takes part in. */
export class Tape implements Observer {
  readonly #tracked = new Set<number>();
  readonly #entries: Entry[] = [];
  readonly #pinned: Tensor[] = [];
  readonly #depth = depth();

  /** @param watched the values that gradients are wanted for */
  constructor(watched: readonly Tensor[]) {
    for (const x of watched) this.#tracked.add(x.id);
  }

  /** Whether a value depends on a watched one. */
  tracks(x: Tensor): boolean {
    return this.#tracked.has(x.id);
  }

  /** Keeps a handle that was made under this tape until the walk is over, whatever scope made it. */
  pin(x: Tensor): void {
    if (untrack(x, this.#depth)) this.#pinned.push(x);
  }

  note<P>(op: Op<P>, inputs: readonly Tensor[], params: P, outputs: readonly Tensor[]): void {
    if (!inputs.some((x) => this.#tracked.has(x.id))) return;
    if (!outputs.some((y) => isFloat(y.dtype))) return;
    const saved: Tensor[] = [];
    const keep = (x: Tensor): Tensor => {
      const kept = alias(x);
      saved.push(kept);
      return kept;
    };
    let results: Tensor[] | undefined;
    const call: Call<P> = {
      inputs: {
        *[Symbol.iterator]() {
          for (const x of inputs) yield keep(x);
        },
      },
      get outputs() {
        return results ??= outputs.map(keep);
      },
      get output() {
        return this.outputs[0];
      },
      shapes: inputs.map((x) => x.shape),
      dtypes: inputs.map((x) => x.dtype),
      wanted: inputs.map((x) => this.#tracked.has(x.id)),
      params,
    };
    const pullback = pullbackOf(op, call);
    if (pullback === null) return;
    this.record(op.name, inputs, outputs, pullback, saved);
  }

  /** Notes a step with a pullback of its own. */
  record(
    name: string,
    inputs: readonly Tensor[],
    outputs: readonly Tensor[],
    pullback: Pullback,
    saved: readonly Tensor[] = [],
  ): void {
    for (const y of outputs) this.#tracked.add(y.id);
    this.#entries.push({
      name,
      inputs: inputs.map((x) => x.id),
      outputs: outputs.map(({ id, shape, dtype }) => ({ id, shape, dtype })),
      pullback,
      saved,
    });
  }

  /** Runs `f` while this tape listens. */
  during<T>(f: () => T): T {
    return observe(this, f);
  }

  /**
   * Walks back from outputs with their gradients to the gradients of `wanted`; zeros where nothing depends on one.
   * @param keep leaves what was saved for another walk
   */
  walk(
    seeds: readonly (readonly [output: Tensor, gradient: Tensor])[],
    wanted: readonly Tensor[],
    { keep = false }: { readonly keep?: boolean } = {},
  ): Tensor[] {
    const gradients = new Map<number, Tensor>();
    const collect = (id: number, gradient: Tensor): void => {
      const before = gradients.get(id);
      if (before === undefined) return void gradients.set(id, gradient);
      gradients.set(id, add(before, gradient));
      before.dispose();
      gradient.dispose();
    };
    return scope(() => {
      for (const [output, gradient] of seeds) if (this.tracks(output)) collect(output.id, track(alias(gradient)));
      const leaf = new Set(wanted.map((x) => x.id));
      for (let i = this.#entries.length - 1; i >= 0; i--) {
        const { inputs, outputs, pullback, saved, name } = this.#entries[i];
        if (outputs.some(({ id }) => gradients.has(id))) {
          const incoming = outputs.map(({ id, shape, dtype }) =>
            gradients.get(id) ?? absent(shape, dtype, seeds[0][0].backend)
          );
          const made = scope(() => {
            const found = pullback(...incoming);
            const seen = new Set<Tensor>(incoming);
            return inputs.map((id, j) => {
              if (!this.#tracked.has(id)) return null;
              const entry = found[j];
              const gradient = typeof entry === "function" ? entry() : entry;
              if (gradient === undefined) throw new Error(`the derivative of ${name} has no entry for input ${j}`);
              if (gradient === null || !seen.has(gradient)) {
                if (gradient !== null) seen.add(gradient);
                return gradient;
              }
              return track(alias(gradient)); // handed through: each owner has a handle of its own
            });
          });
          made.forEach((gradient, j) => {
            if (gradient !== null) collect(inputs[j], gradient);
          });
          for (const [j, { id }] of outputs.entries()) {
            if (leaf.has(id)) continue;
            incoming[j].dispose();
            gradients.delete(id);
          }
        }
        if (!keep) {
          for (const x of saved) x.dispose();
          this.#entries.length = i;
        }
      }
      return wanted.map((x) => gradients.get(x.id) ?? zeros(x.shape, { dtype: x.dtype, backend: x.backend }));
    });
  }

  /** Frees all that is still saved. */
  free(): void {
    for (const { saved } of this.#entries) for (const x of saved) x.dispose();
    for (const x of this.#pinned) x.dispose();
    this.#entries.length = this.#pinned.length = 0;
  }
}
