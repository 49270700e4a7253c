/**
 * Merging: dispatches of one kernel on different tensors, of which none waits for another, become one dispatch. The
 * updates of a hundred parameters, or the squares that a norm of gradients sums, are hardly work for a GPU one by one:
 * each costs a start and a wait for the one before.
 *
 *   adamw(p0), adamw(p1), adamw(p2)          three dispatches
 *   adamw_x3(p0, p1, p2)                     one: its workgroups 0 … e0 − 1 are those of p0, e0 … e1 − 1 those of p1, …
 *
 * The text of a merged kernel holds what touches memory once for each member, under names of its own, since WGSL cannot
 * choose among bindings otherwise; a tree of comparisons, the same for a whole workgroup, finds the member. So results
 * stay the same to the bit.
 *
 * A training step on an H200, GPU time of small models, one dispatch for each (643, 403, 210 of them) and merged:
 *   6 layers of 256, 8192 tokens      11.14 ms    10.61
 *   4 layers of 128, 2048 tokens       2.61 ms     2.26
 *   2 layers of 64, 512 tokens         0.80 ms     0.62
 * For 2 × 64 tokens of the first it keeps 26 MB between dispatches where 22 would do, since squares of all gradients are
 * there at once. Products of small matrices gain too (2.12 and 0.54), but their text is long: compiling it several times
 * over takes longer than a thousand steps win back, and those of the first model were 0.08 ms slower.
 */
import { each, type Kernel, kernel, type UniformType } from "./kernel.ts";
import type { PooledBuffer } from "./memory.ts";
import type { Noted } from "./recorder.ts";

/** With more workgroups a kernel fills a device by itself. */
const maxGroups = 1024;
/** Characters of a kernel that is worth compiling again. */
const maxOne = 3000;
/** Characters of one merged kernel: compiling takes time. */
const maxText = 16_000;
/** Bytes that are needed for longer when a member runs earlier than it did, or later. */
const maxKept = 2 ** 20;

/** What a device binds and runs at once. */
export interface MergeLimits {
  /** Storage buffers of a kernel. */
  readonly maxBuffers: number;
  /** Workgroups along one axis. */
  readonly maxWorkgroups: number;
}

/** Text taken apart: what all members share, and what each has a copy of. */
interface Parts {
  readonly shared: string;
  /** Text of the functions that touch bindings, the entry among them as `main`. */
  readonly own: string;
  /** Names that get a member's number. */
  readonly names: readonly string[];
  readonly size: string;
  readonly parameters: readonly { readonly builtin: string; readonly id: string; readonly type: string }[];
}

const token = (names: readonly string[]) => new RegExp(`(?<![.\\w])(${names.join("|")})(?!\\w)`, "g");

/** Declarations at the top of a module, each with its end. */
function declarations(text: string): string[] {
  const found: string[] = [];
  let depth = 0, from = 0;
  for (let i = 0; i < text.length; i++) {
    const c = text[i];
    if (c === "{" || c === "(") depth++;
    if (c === "}" || c === ")") depth--;
    if (depth === 0 && (c === "}" || c === ";")) {
      found.push(text.slice(from, i + 1).trim());
      from = i + 1;
    }
  }
  return found;
}

const entryForm = /^@compute\s+@workgroup_size\(([^)]*)\)\s*fn main\(([^]*?)\)\s*\{([^]*)\}$/;
const passedOn = ["local_invocation_index", "local_invocation_id", "subgroup_invocation_id", "subgroup_size"];

/** Takes a kernel apart, or null when it is not of the form that can be merged. */
function takeApart({ body, reads, writes, uniforms }: Kernel): Parts | null {
  const text = body.replaceAll(/\/\/.*$/gm, ""), items = declarations(text);
  // Where u is something else than the uniform block, renaming its fields would go wrong.
  const fields = uniforms.map(([id]) => `.${id}`);
  for (const [, field] of text.matchAll(/(?<![.\w])u(?!\w)(\.\w+)?/g)) if (!fields.includes(field)) return null;
  const entry = items.map((item) => entryForm.exec(item)).find((match) => match !== null);
  if (entry === undefined) return null;
  const [, size, list, main] = entry;
  const parameters = list.split(",").filter((part) => part.trim() !== "").map((part) => {
    const [, builtin, id, type] = /@builtin\((\w+)\)\s*(\w+)\s*:\s*(\w+)/.exec(part) ?? [];
    return { builtin, id, type };
  });
  const known = ["workgroup_id", "num_workgroups", ...passedOn];
  if (parameters.some(({ builtin }) => !known.includes(builtin))) return null;
  const nameOf = (item: string) => /^fn\s+(\w+)/.exec(item)?.[1];
  const names = [...reads, ...writes, "main"];
  const isOwn = new Set<string>();
  for (let before = -1; before < isOwn.size;) {
    before = isOwn.size;
    for (const item of items) {
      const name = nameOf(item);
      if (name === undefined || isOwn.has(item) || !token([...names, "u"]).test(item)) continue;
      isOwn.add(item);
      names.push(name);
    }
  }
  const shared = items.filter((item) => !isOwn.has(item) && !entryForm.test(item));
  // Anything else than a function that speaks of a binding would need a copy that is not made here.
  if (shared.some((item) => token([...names, "u"]).test(item))) return null;
  const types = parameters.map(({ id, type }) => `${id}: ${type}`).join(", ");
  return {
    shared: shared.join("\n"),
    own: [...isOwn, `fn main(${types}) {${main}}`].join("\n"),
    names,
    size,
    parameters,
  };
}

const apart = new Map<Kernel, Parts | null>();

/** What `takeApart` finds, found once. */
function partsOf(kernel: Kernel): Parts | null {
  const known = apart.get(kernel);
  if (known !== undefined) return known;
  const parts = kernel.requires.includes("subgroup-matrix") || all.has(kernel) ? null : takeApart(kernel);
  apart.set(kernel, parts);
  return parts;
}

/** How many members a merged kernel may have by its text and bindings; below 2 it cannot be merged. */
function room(one: Kernel, { maxBuffers }: MergeLimits): number {
  const parts = partsOf(one);
  if (parts === null || parts.own.length > maxOne) return 0;
  return Math.floor(Math.min(maxText / parts.own.length, maxBuffers / (one.reads.length + one.writes.length), 64));
}

const all = new WeakSet<Kernel>();

/** A kernel that does what `count` dispatches of another do. */
export function mergedKernel(one: Kernel, count: number): Kernel {
  const { shared, own, names, size, parameters } = partsOf(one)!;
  const at = (id: string, member: number) => `${id}_at${member}`;
  const members = Array.from({ length: count }, (_, i) => i);
  const copies = (types: Readonly<Record<string, string>>) =>
    Object.fromEntries(members.flatMap((i) => Object.entries(types).map(([id, type]) => [at(id, i), type])));
  const uniforms = members.flatMap((i): [string, UniformType][] => [
    ...["merged_end", "merged_x", "merged_y"].map((id): [string, UniformType] => [at(id, i), "u32"]),
    ...one.uniforms.map(([id, type]): [string, UniformType] => [at(id, i), type]),
  ]);
  const { reads = {}, writes } = one.binds;
  const merged = kernel(`${one.name}_x${count}`, {
    reads: copies(reads),
    writes: copies(writes),
    uniforms: Object.fromEntries(uniforms),
    requires: one.requires,
  }, () => {
    const renamed = each(
      count,
      (i) =>
        own.replaceAll(token(names), (id) => at(id, i)).replaceAll(/(?<![.\w])u\.(\w+)/g, (_, id) => `u.${at(id, i)}`),
    );
    const run = (i: number) => {
      const start = i === 0 ? "0u" : `u.${at("merged_end", i - 1)}`, end = `u.${at("merged_end", i)}`;
      const [x, y] = [`u.${at("merged_x", i)}`, `u.${at("merged_y", i)}`];
      const args = parameters.map(({ builtin, id }) => {
        if (builtin === "workgroup_id") return `vec3u(n % ${x}, n / ${x} % ${y}, n / ${x} / ${y})`;
        return builtin === "num_workgroups" ? `vec3u(${x}, ${y}, (${end} - ${start}) / ${x} / ${y})` : id;
      });
      return `let n = merged - ${start}; ${at("main", i)}(${args.join(", ")});`;
    };
    const choose = (from: number, to: number): string => {
      if (to - from === 1) return run(from);
      const half = (from + to) >> 1;
      const end = `u.${at("merged_end", half - 1)}`;
      return `if (merged < ${end}) { ${choose(from, half)} } else { ${choose(half, to)} }`;
    };
    const others = parameters.filter(({ builtin }) => passedOn.includes(builtin))
      .map(({ builtin, id, type }) => `, @builtin(${builtin}) ${id}: ${type}`);
    return `${shared}
${renamed.join("\n")}
@compute @workgroup_size(${size}) fn main(@builtin(workgroup_id) merged_group: vec3u${others.join("")}) {
  let merged = merged_group.x;
  ${choose(0, count)}
}`;
  });
  all.add(merged);
  return merged;
}

/** One dispatch for several of the same kernel. */
function mergedDispatch(members: readonly Noted[]): Noted {
  const [{ kernel: one, label }] = members;
  const merged = mergedKernel(one, members.length);
  let end = 0;
  const uniforms = members.flatMap(({ uniforms, workgroups: [x, y, z] }) => [end += x * y * z, x, y, ...uniforms]);
  const sum = (amount: (noted: Noted) => number | undefined) => {
    const amounts = members.map(amount);
    return amounts.some((n) => n === undefined) ? undefined : amounts.reduce<number>((a, b) => a + b!, 0);
  };
  const reads = ({ buffers }: Noted) => buffers.slice(0, one.reads.length);
  const writes = ({ buffers }: Noted) => buffers.slice(one.reads.length);
  return {
    kernel: merged,
    buffers: [...members.flatMap(reads), ...members.flatMap(writes)],
    uniforms,
    workgroups: [end, 1, 1],
    label: {
      op: label.op,
      kernel: merged.name,
      bytes: sum(({ label }) => label.bytes),
      flops: sum(({ label }) => label.flops),
    },
  };
}

/** A dispatch of the list to come, with those that joined it. */
interface Place {
  readonly members: Noted[];
  /** How many it can hold; at most 1 when it takes no other. */
  readonly room: number;
  groups: number;
}

/**
 * Merges what can be merged: first dispatches into earlier ones, then into later ones.
 *
 * A dispatch joins another of its kernel when none from there to here writes what it reads, or touches what it writes.
 *
 * @param vanishes whether a buffer is for these dispatches alone, so that it need not last longer than they need it
 */
export function merge(
  dispatches: readonly Noted[],
  vanishes: (buffer: PooledBuffer) => boolean,
  limits: MergeLimits,
): Noted[] {
  const sizeOf = (buffers: readonly PooledBuffer[]) =>
    buffers.reduce((sum, buffer) => sum + (vanishes(buffer) ? buffer.bytes : 0), 0);
  const earlier = joined(dispatches, limits, (_, writes) => sizeOf(writes));
  return joined(earlier.reverse(), limits, (reads) => sizeOf(reads)).reverse();
}

/**
 * Dispatches in the order that they come in, some in places of earlier ones.
 * @param kept bytes that are needed for longer when a dispatch moves that way
 */
function joined(
  dispatches: readonly Noted[],
  limits: MergeLimits,
  kept: (reads: readonly PooledBuffer[], writes: readonly PooledBuffer[]) => number,
): Noted[] {
  const places: Place[] = [];
  const open = new Map<Kernel, number[]>();
  /** The last places that read and that wrote a buffer. */
  const lastRead = new Map<PooledBuffer, number>(), lastWrite = new Map<PooledBuffer, number>();
  for (const noted of dispatches) {
    const { kernel, buffers, workgroups: [x, y, z] } = noted, groups = x * y * z;
    const reads = buffers.slice(0, kernel.reads.length), writes = buffers.slice(kernel.reads.length);
    const fits = groups <= maxGroups && kept(reads, writes) <= maxKept ? room(kernel, limits) : 0;
    let at = places.length;
    if (fits > 1) {
      const earliest = 1 + Math.max(
        ...reads.map((b) => lastWrite.get(b) ?? -1),
        ...writes.map((b) => Math.max(lastWrite.get(b) ?? -1, lastRead.get(b) ?? -1)),
      );
      const found = open.get(kernel)?.find((i) =>
        i >= earliest && places[i].members.length < places[i].room && places[i].groups + groups <= limits.maxWorkgroups
      );
      if (found !== undefined) at = found;
    }
    if (at === places.length) {
      places.push({ members: [noted], room: fits, groups });
      if (fits > 1) {
        const known = open.get(kernel);
        if (known === undefined) open.set(kernel, [at]);
        else known.push(at);
      }
    } else {
      places[at].members.push(noted);
      places[at].groups += groups;
    }
    for (const b of reads) lastRead.set(b, Math.max(at, lastRead.get(b) ?? -1));
    for (const b of writes) lastWrite.set(b, Math.max(at, lastWrite.get(b) ?? -1));
  }
  return places.map(({ members }) => members.length === 1 ? members[0] : mergedDispatch(members));
}
