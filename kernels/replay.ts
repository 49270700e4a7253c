/** Replaying: planned buffers, uniforms written once, bind groups kept; each replay is one list of dispatches. */
import type { RecordedKernel, Recording } from "../tensor/backend.ts";
import type { Storage } from "../tensor/tensor.ts";
import type { Kernel } from "./kernel.ts";
import type { BufferPool, PooledBuffer } from "./memory.ts";
import { type Pipeline, type Pipelines, slotBytes } from "./pipelines.ts";
import { planReplay } from "./plan.ts";
import type { LaunchLabel, Profiler } from "./profiler.ts";
import type { BoundDispatch, DispatchQueue } from "./queue.ts";
import type { Noted, Tracing } from "./recorder.ts";
import { writeUniform } from "./uniforms.ts";

/** Bind groups kept for one recording before those of other arguments are dropped. */
const maxGroups = 4096;

/** Buffers that are remembered for each result. */
const maxEarlier = 4;

/** What a replay needs of its backend. */
export interface ReplayParts {
  readonly device: GPUDevice;
  readonly pool: BufferPool;
  readonly queue: DispatchQueue;
  readonly pipelines: Pipelines;
  readonly maxWorkgroups: number;
}

interface Ready extends BoundDispatch {
  group: GPUBindGroup | null;
  readonly compiled: Pipeline;
  readonly kernel: Kernel;
  readonly label: LaunchLabel;
  /** Where each buffer is to be found. */
  readonly places: readonly Place[];
}

/** A buffer of its own, or the number of one that comes with each replay. */
type Place = PooledBuffer | number;

/** A recording with its buffers. */
export class Replay implements Recording {
  readonly bytes: number;
  readonly #parts: ReplayParts;
  readonly #profiler: () => Profiler | null;
  readonly #check: () => void;
  readonly #tracing: Tracing;
  readonly #results: readonly PooledBuffer[];
  /** The buffers that each result had in earlier replays. */
  readonly #earlier: readonly PooledBuffer[][];
  readonly #kept: readonly PooledBuffer[];
  readonly #uniforms: GPUBuffer;
  readonly #offsets: Uint32Array;
  readonly #ready: Ready[];
  /** Which dispatches bind each buffer that comes with a replay: given ones first, then results. */
  readonly #users: readonly Ready[][];
  readonly #bound: (PooledBuffer | null)[];
  #groups = new Map<string, GPUBindGroup>();

  /**
   * @param profiler the one that listens now, if any
   * @param check throws what the device reported
   */
  constructor(
    parts: ReplayParts,
    tracing: Tracing,
    results: readonly PooledBuffer[],
    profiler: () => Profiler | null,
    check: () => void,
  ) {
    this.#parts = parts;
    this.#tracing = tracing;
    this.#results = results;
    this.#earlier = results.map(() => []);
    this.#profiler = profiler;
    this.#check = check;
    const { pool, queue, pipelines, device } = parts;
    const { standIns } = tracing;
    const plan = planReplay({
      dispatches: tracing.dispatches,
      made: (buffer) => tracing.made.has(buffer),
      given: (buffer) => standIns.includes(buffer),
      results: new Set(results),
      limits: {
        maxBuffers: device.limits.maxStorageBuffersPerShaderStage,
        maxWorkgroups: parts.maxWorkgroups,
      },
    });
    const slots = plan.slots.map((bytes) => pool.take(bytes, "compile"));
    const constants = new Map([...plan.constants].map((buffer) => [buffer, pool.take(buffer.bytes, "compile")]));
    this.#kept = [...slots, ...constants.values()];
    this.bytes = this.#kept.reduce((sum, { capacity }) => sum + capacity, 0);
    const places = new Map<PooledBuffer, Place>(constants);
    for (const [buffer, slot] of plan.slotOf) places.set(buffer, slots[slot]);
    [...standIns, ...results].forEach((buffer, i) => places.set(buffer, i));
    for (const { kernel, buffers, uniforms, workgroups } of plan.once) {
      const named = Object.fromEntries(kernel.uniforms.map(([name], i) => [name, uniforms[i]]));
      queue.dispatch(pipelines, kernel, buffers.map((b) => (constants.get(b) ?? b)), named, workgroups);
    }
    const blocks = plan.each.map(({ kernel }) => slotBytes(4 * kernel.uniforms.length));
    this.#uniforms = device.createBuffer({
      size: Math.max(256, blocks.reduce((a, b) => a + b, 0)),
      usage: GPUBufferUsage.UNIFORM | GPUBufferUsage.COPY_DST,
    });
    device.queue.writeBuffer(this.#uniforms, 0, uniformBlocks(plan.each, this.#uniforms.size));
    const users: Ready[][] = [...standIns, ...results].map(() => []);
    this.#offsets = new Uint32Array(blocks.length);
    blocks.slice(0, -1).forEach((block, i) => this.#offsets[i + 1] = this.#offsets[i] + block);
    this.#ready = plan.each.map(({ kernel, buffers, workgroups: [x, y, z], label }, i) => {
      const compiled = pipelines.get(kernel);
      const at = buffers.map((buffer) => places.get(buffer) ?? buffer);
      // Those that bind what comes with a replay are bound by it.
      const fixed = at.every((place) => typeof place !== "number");
      const group = fixed ? this.#bind(compiled, at as PooledBuffer[]) : null;
      const ready: Ready = {
        pipeline: compiled.pipeline,
        compiled,
        group,
        kernel,
        label,
        places: at,
        offset: blocks[i] > 0 ? i : -1,
        x,
        y,
        z,
      };
      for (const place of new Set(at)) if (typeof place === "number") users[place].push(ready);
      return ready;
    });
    this.#users = users;
    this.#bound = users.map(() => null);
  }

  get dispatches(): number {
    return this.#ready.length;
  }

  get kernels(): RecordedKernel[] {
    const found = new Map<string, RecordedKernel>();
    for (const { kernel: { name, source }, label: { op } } of this.#ready) {
      const id = `${op} ${name}`;
      found.set(id, { op, name, calls: (found.get(id)?.calls ?? 0) + 1, source });
    }
    return [...found.values()];
  }

  replay(given: readonly Storage[]): Storage[] {
    this.#check();
    const { pool, queue } = this.#parts;
    const results = this.#results.map(({ bytes }, i) => {
      // One of its earlier buffers, if it is free again, for which there are bind groups.
      const earlier = this.#earlier[i];
      const again = earlier.find((buffer) => pool.retake(buffer, bytes));
      if (again !== undefined) return again;
      const taken = pool.take(bytes, "compile");
      earlier.unshift(taken);
      if (earlier.length > maxEarlier) earlier.pop();
      return taken;
    });
    this.#rebind([...given as PooledBuffer[], ...results]);
    const profiler = this.#profiler();
    for (const buffer of this.#bound) buffer!.usedIn = queue.batch;
    if (profiler === null) queue.replay(this.#ready, this.#offsets);
    else queue.replay(this.#ready, this.#offsets, (dispatch) => profiler.launch((dispatch as Ready).label));
    return results;
  }

  free(): void {
    this.#parts.queue.flush();
    for (const buffer of this.#kept) buffer.free();
    this.#uniforms.destroy();
    this.#tracing.free();
    this.#groups.clear();
    this.#ready.length = 0;
  }

  /** Binds what has changed since the last replay. */
  #rebind(buffers: readonly PooledBuffer[]): void {
    const stale = new Set<Ready>();
    for (let i = 0; i < buffers.length; i++) {
      if (this.#bound[i] === buffers[i]) continue;
      this.#bound[i] = buffers[i];
      for (const ready of this.#users[i]) stale.add(ready);
    }
    for (const ready of stale) {
      ready.group = this.#bind(
        ready.compiled,
        ready.places.map((place) => typeof place === "number" ? buffers[place] : place),
      );
    }
  }

  #bind(pipeline: Pipeline, buffers: readonly PooledBuffer[]): GPUBindGroup {
    let key = pipeline.signature;
    for (const { id } of buffers) key += "," + id;
    const known = this.#groups.get(key);
    if (known !== undefined) return known;
    if (this.#groups.size >= maxGroups) this.#groups = new Map();
    const group = this.#parts.pipelines.createGroup(pipeline, buffers, this.#uniforms);
    this.#groups.set(key, group);
    return group;
  }
}

/** The uniforms of all dispatches, each block where its offset says. */
function uniformBlocks(dispatches: readonly Noted[], bytes: number): Uint32Array<ArrayBuffer> {
  const words = new Uint32Array(bytes / 4);
  let word = 0;
  for (const { kernel, uniforms } of dispatches) {
    for (let i = 0; i < kernel.uniforms.length; i++) writeUniform(kernel, i, uniforms[i], words, word + i);
    word += slotBytes(4 * kernel.uniforms.length) / 4;
  }
  return words;
}
