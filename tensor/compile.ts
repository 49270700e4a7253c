/** `compile(f)`: the dispatches of a call are recorded once for each signature, and replayed. */
import { type Backend, getBackend, type Recorder, type Recording } from "./backend.ts";
import type { DType } from "./dtype.ts";
import { UnsupportedError } from "./errors.ts";
import { listening } from "./op.ts";
import { detoured, scope, track } from "./scope.ts";
import { isDense, type Layout, sameShape } from "./shape.ts";
import { consume, makeTensor, rangeOf, setRange, type Storage, storageOf, Tensor } from "./tensor.ts";
import { forEachTensor, mapTree } from "./tree.ts";

/** A compiled function. Disposing it frees what its recordings keep; it can be called again. */
export interface Compiled<A extends readonly unknown[], R> extends Disposable {
  (...args: A): R;
  /** The recordings it keeps, the latest used first. */
  readonly recordings: readonly RecordingInfo[];
}

/** What one recording of a compiled function is. */
export type RecordingInfo = Pick<Recording, "dispatches" | "bytes" | "kernels">;

/** Recordings that one compiled function keeps. */
const maxRecordings = 16;

const opening = Symbol("{"), closing = Symbol("}"), leaf = Symbol("tensor");

/** Arguments taken apart. */
interface Flat {
  readonly tensors: readonly Tensor[];
  /** All else: keys, host values, where the tensors stand. */
  readonly form: readonly unknown[];
}

function flatten(args: readonly unknown[]): Flat {
  const tensors: Tensor[] = [], form: unknown[] = [];
  const visit = (value: unknown, path: string): void => {
    if (value instanceof Tensor) {
      tensors.push(value);
      form.push(leaf);
    } else if (typeof value === "object" && value !== null) {
      const proto = Object.getPrototypeOf(value);
      const list = Array.isArray(value);
      if (!list && proto !== Object.prototype && proto !== null) refuse(path, proto.constructor?.name ?? "object");
      form.push(opening, list);
      for (const key of Object.keys(value)) {
        form.push(key);
        visit((value as Record<string, unknown>)[key], path === "" ? key : `${path}.${key}`);
      }
      form.push(closing);
    } else if (typeof value === "function" || typeof value === "symbol") refuse(path, typeof value);
    else form.push(value);
  };
  args.forEach((arg, i) => visit(arg, `${i}`));
  return { tensors, form };
}

function refuse(path: string, kind: string): never {
  throw new UnsupportedError(
    "compile",
    `argument ${path} is a ${kind}: arguments are tensors, host values, and plain objects and arrays of them`,
  );
}

/** A tensor among the arguments, as far as a recording depends on it. */
interface Given extends Layout {
  readonly dtype: DType;
  /** The first argument with the same handle. */
  readonly handle: number;
  /** Which of the distinct storages it sees. */
  readonly storage: number;
}

/** Where a tensor of the result comes from. */
type Source =
  | { readonly argument: number }
  | { readonly given: number }
  | { readonly made: number }
  | { readonly captured: Storage };

interface Result extends Layout {
  readonly from: Source;
  readonly dtype: DType;
  readonly origin: string;
}

/** The least and greatest element of an integer tensor, where the host knows them. */
type Range = readonly [min: number, max: number] | undefined;

/** Every value that an integer dtype has. */
const everything = (dtype: DType): Range => dtype === "u32" ? [0, 2 ** 32 - 1] : [-(2 ** 31), 2 ** 31 - 1];

/** One call as it was recorded. */
class Trace<R> {
  /** The result, with handles that are spent but for those that the function captured. */
  readonly result: R;
  readonly results: ReadonlyMap<Tensor, Result>;
  /** Handles that the call spends. */
  readonly spent: readonly number[];
  /** Distinct storages whose elements an op replaces. */
  readonly replaced: readonly number[];
  /** Storages made anew at each call. */
  readonly made: readonly Storage[];
  readonly recorder: Recorder;

  /** @param ranges what the function may know of integer arguments */
  constructor(
    f: (...args: never) => R,
    args: readonly unknown[],
    given: readonly Given[],
    { tensors }: Flat,
    at: Backend,
    ranges: readonly Range[],
  ) {
    const recorder = this.recorder = at.record!();
    const standIns: Storage[] = [];
    const handles = given.map(({ shape, strides, offset, dtype, handle, storage }, i) => {
      if (handle !== i) return null;
      const x = tensors[i];
      standIns[storage] ??= recorder.standIn(x);
      return setRange(makeTensor(at, standIns[storage], { shape, strides, offset }, dtype, x.origin), ranges[i]);
    });
    const handleAt = (i: number) => handles[given[i].handle]!;
    const made: Storage[] = [];
    const results = new Map<Tensor, Result>();
    let next = 0;
    const standingIn = mapTree(args, () => handleAt(next++)) as never[];
    try {
      this.result = recorder.during(() =>
        scope(() => {
          const result = f(...standingIn as never);
          checkResult(result, "");
          return result;
        })
      );
      forEachTensor(this.result, (x) => {
        if (results.has(x)) return;
        const storage = storageOf(x, "compile");
        const { shape, strides, offset, dtype, origin } = x;
        const argument = handles.indexOf(x), standIn = standIns.indexOf(storage);
        let from: Source;
        if (argument >= 0) from = { argument };
        else if (standIn >= 0) from = { given: standIn };
        else if (recorder.made(storage)) {
          if (!made.includes(storage)) made.push(storage);
          from = { made: made.indexOf(storage) };
        } else {
          storage.refs++;
          from = { captured: storage };
        }
        results.set(x, { from, shape, strides, offset, dtype, origin });
      });
    } catch (error) {
      recorder.free();
      throw error;
    }
    this.results = results;
    this.made = made;
    this.spent = handles.flatMap((x, i) => x?.disposed ? [i] : []);
    this.replaced = standIns.flatMap((storage, i) => recorder.replaced(storage) ? [i] : []);
    for (const [x, { from }] of results) if (!("captured" in from) && !("argument" in from)) x.dispose();
    for (const x of handles) x?.dispose();
  }

  /** What another trace of the same signature does otherwise. */
  difference(other: Trace<R>): string | null {
    const found = this.recorder.difference(other.recorder);
    if (found !== null) return found;
    const describe = (trace: Trace<R>) => {
      const { form } = flattenResult(trace.result);
      const leaves = [...trace.results.values()].map(({ from, ...rest }) =>
        JSON.stringify({ ...rest, from: "captured" in from ? "captured" : from })
      );
      return [...form, ...leaves, ...trace.spent];
    };
    const a = describe(this), b = describe(other);
    const at = a.findIndex((part, i) => !Object.is(part, b[i]));
    if (at < 0 && a.length === b.length) return null;
    return `its result had ${String(a[at] ?? "nothing")}, now ${String(b[at] ?? "nothing")}`;
  }

  free(): void {
    this.recorder.free();
    for (const { from } of this.results.values()) {
      if ("captured" in from && --from.captured.refs === 0) from.captured.free();
    }
  }
}

const flattenResult = (result: unknown): Flat => flatten([result]);

/** Refuses results that are no trees of tensors and host values. */
function checkResult(result: unknown, path: string): void {
  if (result instanceof Tensor) return;
  const at = path === "" ? "the result" : `the result at ${path}`;
  if (result instanceof Promise) {
    result.catch(() => {}); // this refusal says enough
    throw new UnsupportedError("compile", `${at} is a promise: the function runs once, and must end before it returns`);
  }
  if (typeof result === "object" && result !== null) {
    const proto = Object.getPrototypeOf(result);
    if (!Array.isArray(result) && proto !== Object.prototype && proto !== null) {
      throw new UnsupportedError("compile", `${at} is a ${proto.constructor?.name}: return tensors in plain objects`);
    }
    for (const [key, value] of Object.entries(result)) checkResult(value, path === "" ? key : `${path}.${key}`);
  } else if (typeof result === "function") {
    throw new UnsupportedError("compile", `${at} is a function: return tensors in plain objects`);
  }
}

/** A signature with its recording. */
class Entry<R> {
  readonly form: readonly unknown[];
  readonly given: readonly Given[];
  readonly backend: Backend;
  readonly recording: Recording;
  /** Whether a second call did the same as the first. */
  checked = false;
  readonly #trace: Trace<R>;
  readonly #expectedRefs: number[] = [];
  /** Ranges of integer arguments for which the function does what was recorded. */
  readonly #ranges: Range[];
  /** Arguments whose values matter to it. */
  readonly #bounded = new Set<number>();

  constructor(backend: Backend, flat: Flat, given: readonly Given[], trace: Trace<R>) {
    this.backend = backend;
    this.form = flat.form;
    this.given = given;
    this.#trace = trace;
    this.#ranges = flat.tensors.map(rangeOf);
    given.forEach(({ handle, storage }, i) => {
      if (handle === i) this.#expectedRefs[storage] = (this.#expectedRefs[storage] ?? 0) + 1;
    });
    try {
      this.recording = trace.recorder.plan(trace.made);
    } catch (error) {
      trace.free();
      throw error;
    }
  }

  matches(backend: Backend, { form, tensors }: Flat, given: readonly Given[]): boolean {
    if (backend !== this.backend || form.length !== this.form.length || tensors.length !== this.given.length) {
      return false;
    }
    for (let i = 0; i < form.length; i++) if (!Object.is(form[i], this.form[i])) return false;
    for (let i = 0; i < given.length; i++) {
      const a = given[i], b = this.given[i];
      if (a.dtype !== b.dtype || a.offset !== b.offset || a.handle !== b.handle || a.storage !== b.storage) {
        return false;
      }
      if (!sameShape(a.shape, b.shape) || !sameShape(a.strides, b.strides)) return false;
    }
    return true;
  }

  /** What the function does otherwise than was recorded, told by recording it again; null when it does the same. */
  difference(again: Trace<R>): string | null {
    const found = this.#trace.difference(again);
    again.free();
    return found;
  }

  /**
   * Whether what was recorded holds for integer arguments of these values, as far as the host knows them.
   * @param trace records the call again; throws what the function throws
   */
  admits(tensors: readonly Tensor[], trace: (ranges: readonly Range[]) => Trace<R>): boolean {
    const ranges = tensors.map(rangeOf);
    let known = true;
    ranges.forEach((now, i) => {
      const seen = this.#ranges[i];
      if (now === undefined || (seen !== undefined && seen[0] <= now[0] && now[1] <= seen[1])) return;
      // A count or a key may have any value: then this is asked once, and not at every call.
      const any = everything(tensors[i].dtype);
      if (!this.#bounded.has(i) && this.#does(() => trace(ranges.with(i, any)))) {
        this.#ranges[i] = any;
        return;
      }
      this.#bounded.add(i);
      known = false;
    });
    if (known) return true;
    if (this.difference(trace(ranges)) !== null) return false;
    ranges.forEach((now, i) => {
      const seen = this.#ranges[i];
      if (now === undefined) return;
      this.#ranges[i] = seen === undefined ? now : [Math.min(seen[0], now[0]), Math.max(seen[1], now[1])];
    });
    return true;
  }

  /** Whether a call can be recorded and is what was recorded. */
  #does(trace: () => Trace<R>): boolean {
    let again: Trace<R>;
    try {
      again = trace();
    } catch {
      return false;
    }
    return this.difference(again) === null;
  }

  run(tensors: readonly Tensor[], storages: readonly Storage[]): R {
    const { replaced, results, spent, result } = this.#trace;
    const given = [...storages];
    const copies: Storage[] = [];
    for (const i of replaced) {
      if (storages[i].refs === this.#expectedRefs[i]) continue;
      // Others see these bytes: the call writes into a copy, as it does when it is not compiled.
      const x = tensors[this.given.findIndex(({ storage }) => storage === i)];
      if (x.offset !== 0 || !isDense(x)) {
        throw new UnsupportedError("compile", `${x} is written in place and shares its bytes with another tensor`);
      }
      copies.push(given[i] = this.backend.copy(x));
    }
    const made = this.recording.replay(given);
    const handles = new Map<Tensor, Tensor>();
    for (const [x, { from, shape, strides, offset, dtype, origin }] of results) {
      if ("argument" in from) {
        handles.set(x, tensors[from.argument]);
        continue;
      }
      const storage = "given" in from ? given[from.given] : "made" in from ? made[from.made] : from.captured;
      handles.set(x, track(makeTensor(this.backend, storage, { shape, strides, offset }, dtype, origin)));
    }
    for (const i of spent) consume(tensors[i], "compile");
    for (const storage of copies) if (storage.refs === 0) storage.free();
    return mapTree(result, (x) => handles.get(x)!);
  }

  free(): void {
    this.recording.free();
    this.#trace.free();
  }
}

/** What the arguments' tensors are to a recording, and their distinct storages. */
function describe(tensors: readonly Tensor[]): { given: Given[]; storages: Storage[] } {
  const handles = new Map<Tensor, number>(), places = new Map<Storage, number>();
  const storages: Storage[] = [];
  const given = tensors.map((x, i): Given => {
    const bytes = storageOf(x, "compile");
    let handle = handles.get(x), storage = places.get(bytes);
    if (handle === undefined) handles.set(x, handle = i);
    if (storage === undefined) places.set(bytes, storage = storages.push(bytes) - 1);
    return { shape: x.shape, strides: x.strides, offset: x.offset, dtype: x.dtype, handle, storage };
  });
  return { given, storages };
}

/** Frees recordings of functions that were collected. */
const net = new FinalizationRegistry<Entry<unknown>[]>((entries) => freeAll(entries));

function freeAll(entries: Entry<unknown>[]): void {
  for (const entry of entries.splice(0)) entry.free();
}

/**
 * A function whose work is recorded at its first call with each signature and replayed from then on: on a GPU nothing
 * is allocated, bound or planned again, and no tape is kept, so a small model runs as fast as its kernels. Elementwise
 * ops that feed one another run as one kernel, or in that of the product on matrix units that they follow; small calls of
 * one kernel that do not wait for each other, such as the updates of many parameters, go out as one. `recordings` shows
 * their text. Results are those of the plain function, to the bit.
 *
 * A signature is the form of the arguments, their dtypes, shapes and views, and every host value among them; up to 16
 * are kept, each with buffers of its own. What the function captures from outside (tensors, numbers) is a constant of
 * the recording; what changes from call to call (a batch, a random key, a step count) is an argument. At its second
 * call a recording is compared with a fresh one, and a function that did something else is refused.
 *
 * Arguments that the function consumes (an optimiser's parameters and state) are consumed and written in place. Inside
 * a function that is differentiated, and on a backend that does not record (the CPU), `f` runs as it is.
 *
 * @param f takes tensors, host values, and plain objects and arrays of them; returns tensors likewise. Pure, and not
 * asynchronous
 * @returns a function of the same type; what `f` makes and does not return is freed
 * @throws {UnsupportedError} from a call: when `f` reads a tensor, returns a promise or function, replaces a tensor that
 * is no argument, or does not do the same at each call
 *
 * @example
 * ```ts
 * import { compile, mul, sub, sum, type Tensor, tensor, valueAndGrad } from "@flashtape/flashtape";
 * const step = compile((w: Tensor, rate: Tensor) => {
 *   const [loss, dw] = valueAndGrad((w) => sum(mul(w, w)))(w);
 *   return { loss, w: sub(w, mul(dw, rate)) };
 * });
 * let w = tensor([1, -2]);
 * for (let i = 0; i < 10; i++) ({ w } = step(w, tensor(0.1)));
 * ```
 */
export function compile<A extends readonly unknown[], R>(f: (...args: A) => R): Compiled<A, R> {
  const entries: Entry<R>[] = []; // the latest used first
  const call = (...args: A): R => {
    if (detoured() || listening().length > 0) return scope(() => f(...args));
    const flat = flatten(args);
    const { tensors } = flat;
    const backend = tensors[0]?.backend ?? getBackend();
    for (const x of tensors) if (x.backend !== backend) throw otherBackends(backend, x.backend);
    if (backend.record === undefined) return scope(() => f(...args));
    const { given, storages } = describe(tensors);
    const trace = (ranges: readonly Range[]) =>
      new Trace(f as (...args: never) => R, args, given, flat, backend, ranges);
    let at = entries.findIndex((entry) => entry.matches(backend, flat, given));
    const entry = entries[at];
    if (entry !== undefined && !entry.checked) {
      const difference = entry.difference(trace(tensors.map(rangeOf)));
      if (difference !== null) {
        entries.splice(at, 1)[0].free();
        throw new UnsupportedError(
          "compile",
          `the function is not the same at every call: ${difference}. Make what changes an argument`,
        );
      }
      entry.checked = true;
    }
    if (entry !== undefined && !entry.admits(tensors, trace)) {
      entries.splice(at, 1)[0].free();
      at = -1;
    }
    if (at < 0) {
      entries.unshift(new Entry(backend, flat, given, trace(tensors.map(rangeOf))));
      if (entries.length > maxRecordings) entries.pop()!.free();
    } else if (at > 0) entries.unshift(...entries.splice(at, 1));
    return entries[0].run(tensors, storages);
  };
  const compiled = Object.defineProperties(call, {
    recordings: {
      get: () => entries.map(({ recording: { dispatches, bytes, kernels } }) => ({ dispatches, bytes, kernels })),
    },
    [Symbol.dispose]: { value: () => freeAll(entries) },
  }) as Compiled<A, R>;
  net.register(compiled, entries);
  return compiled;
}

function otherBackends(a: Backend, b: Backend): UnsupportedError {
  return new UnsupportedError("compile", `arguments live on different backends: ${a.name} and ${b.name}`);
}
