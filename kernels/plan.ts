/** What a recording needs to run again: which dispatches matter, which can run once, and which buffers can be shared. */
import { fuse } from "./fuse.ts";
import type { PooledBuffer } from "./memory.ts";
import { merge, type MergeLimits } from "./merge.ts";
import type { Noted } from "./recorder.ts";

/** The parts of a plan. */
export interface Plan {
  /** Dispatches that depend on nothing that changes: run once. */
  readonly once: readonly Noted[];
  /** Dispatches of each replay. */
  readonly each: readonly Noted[];
  /** Bytes of the buffers that values between dispatches share. */
  readonly slots: readonly number[];
  /** Which slot holds a buffer. */
  readonly slotOf: ReadonlyMap<PooledBuffer, number>;
  /** Buffers that keep what ran once. */
  readonly constants: ReadonlySet<PooledBuffer>;
}

/** What a plan goes by. */
export interface PlanInputs {
  readonly dispatches: readonly Noted[];
  /** Whether a buffer was made while recording. */
  readonly made: (buffer: PooledBuffer) => boolean;
  /** Whether a buffer comes with each replay. */
  readonly given: (buffer: PooledBuffer) => boolean;
  /** Buffers that the caller gets. */
  readonly results: ReadonlySet<PooledBuffer>;
  /** What the device binds and runs at once. */
  readonly limits: MergeLimits;
}

/** Larger results are computed at each replay rather than kept. */
const maxConstantBytes = 2 ** 20;

const writesOf = ({ kernel, buffers }: Noted) => buffers.slice(kernel.reads.length);
const readsOf = ({ kernel, buffers }: Noted) => buffers.slice(0, kernel.reads.length);

/** Dispatches whose results reach the caller. */
function needed({ dispatches, given, results }: PlanInputs): Noted[] {
  const wanted = new Set(results);
  const kept: Noted[] = [];
  for (const dispatch of [...dispatches].reverse()) {
    if (!writesOf(dispatch).some((buffer) => wanted.has(buffer) || given(buffer))) continue;
    for (const buffer of dispatch.buffers) wanted.add(buffer); // what is written may be read or only written in part
    kept.push(dispatch);
  }
  return kept.reverse();
}

/** Buffers that one dispatch alone writes, from what never changes. */
function constantBuffers(dispatches: readonly Noted[], { made, given, results }: PlanInputs): Set<PooledBuffer> {
  const writers = new Map<PooledBuffer, number>();
  for (const dispatch of dispatches) {
    for (const buffer of writesOf(dispatch)) writers.set(buffer, (writers.get(buffer) ?? 0) + 1);
  }
  const constants = new Set<PooledBuffer>();
  for (const dispatch of dispatches) {
    const fixed = readsOf(dispatch).every((x) => constants.has(x) || !(made(x) || given(x)));
    const once = writesOf(dispatch).every((y) =>
      made(y) && !results.has(y) && writers.get(y) === 1 && y.bytes <= maxConstantBytes
    );
    if (fixed && once) { for (const buffer of writesOf(dispatch)) constants.add(buffer); }
  }
  return constants;
}

interface Slot {
  readonly bytes: number;
  /** First and last dispatch of each buffer that lies here. */
  readonly taken: (readonly [first: number, last: number])[];
}

/**
 * Shares buffers among values that are not needed at the same time: the largest first, each into the first slot that is
 * free from its first to its last dispatch (Pisarchyk and Lee 2020, arXiv:2001.03288, greedy by size).
 */
export function shareBuffers(
  lives: ReadonlyMap<PooledBuffer, readonly [first: number, last: number]>,
): { slots: number[]; slotOf: Map<PooledBuffer, number> } {
  const slots: Slot[] = [];
  const slotOf = new Map<PooledBuffer, number>();
  const bySize = [...lives].sort(([a], [b]) => b.bytes - a.bytes || a.id - b.id);
  for (const [buffer, [first, last]] of bySize) {
    let at = slots.findIndex(({ taken }) => taken.every(([from, to]) => last < from || to < first));
    if (at < 0) at = slots.push({ bytes: buffer.bytes, taken: [] }) - 1;
    slots[at].taken.push([first, last]);
    slotOf.set(buffer, at);
  }
  return { slots: slots.map(({ bytes }) => bytes), slotOf };
}

/** Plans the replay of what was recorded. */
export function planReplay(inputs: PlanInputs): Plan {
  const dispatches = needed(inputs);
  const constants = constantBuffers(dispatches, inputs);
  const isOnce = (dispatch: Noted) => writesOf(dispatch).every((buffer) => constants.has(buffer));
  const once = dispatches.filter(isOnce);
  const passing = (x: PooledBuffer) => inputs.made(x) && !inputs.results.has(x) && !constants.has(x);
  const fused = fuse(dispatches.filter((dispatch) => !isOnce(dispatch)), passing, inputs.limits);
  const each = merge(fused, passing, inputs.limits);
  const lives = new Map<PooledBuffer, readonly [number, number]>();
  each.forEach(({ buffers }, i) => {
    for (const buffer of buffers) {
      if (!passing(buffer)) continue;
      lives.set(buffer, [lives.get(buffer)?.[0] ?? i, i]);
    }
  });
  return { once, each, constants, ...shareBuffers(lives) };
}
