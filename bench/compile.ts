/**
 * A training step plain and compiled: times, what the CPU spends on a dispatch, what a replay allocates, and whether
 * both come to the same bits.
 *
 *     deno task bench compile [tiny] [small] [4x256] [medium] [large]
 */
import {
  type Backend,
  compile,
  dispose,
  init,
  key,
  profile,
  randint,
  scope,
  split,
  type Tensor,
  valueAndGrad,
} from "@flashtape/flashtape";
import { adamw, type AdamwState, clipGradNorm, cosineSchedule, llama } from "@flashtape/flashtape/nn";

/** Models in training: those of the demo, by its names, and the 4-layer, 256-wide one that a dispatch's cost is held to. */
export const compileSizes = {
  tiny: { layers: 2, hidden: 64, heads: 4, kvHeads: 2, context: 128, batch: 4, dropout: 0 },
  small: { layers: 4, hidden: 128, heads: 4, kvHeads: 2, context: 256, batch: 8, dropout: 0 },
  "4x256": { layers: 4, hidden: 256, heads: 8, kvHeads: 4, context: 256, batch: 8, dropout: 0 },
  medium: { layers: 6, hidden: 256, heads: 8, kvHeads: 4, context: 256, batch: 32, dropout: 0.2 },
  large: { layers: 8, hidden: 512, heads: 8, kvHeads: 4, context: 512, batch: 32, dropout: 0.3 },
} as const;

/** A model's name. */
export type CompileSize = keyof typeof compileSizes;

/** What one way of running a step takes, medians in milliseconds. */
export interface StepTimes {
  /** From step to step while steps follow one another. */
  readonly ms: number;
  /** Until the call returns, with the device idle before. */
  readonly cpuMs: number;
}

/** What is known of one model's step. */
export interface CompileFigures {
  readonly size: CompileSize;
  readonly tokens: number;
  readonly plain: StepTimes;
  readonly compiled: StepTimes;
  /** How much sooner a compiled step is done. */
  readonly speedup: number;
  /** Dispatches of a replay. */
  readonly dispatches: number;
  /** The CPU's part of one, in microseconds. */
  readonly cpuMicroseconds: number;
  /** GPU buffers and bind groups that ten replays made; null where the runtime's GPU is not the device's. */
  readonly newBuffers: number | null;
  readonly newBindGroups: number | null;
  /** Whether six steps of either kind gave the same losses and parameters. */
  readonly sameBits: boolean;
  /** The kernels of a step by the GPU's clock, and that sum over the time of a step; null without timestamps. */
  readonly profileMs: number | null;
  readonly profileShare: number | null;
}

interface State {
  readonly params: Record<string, Tensor>;
  readonly optimizer: AdamwState;
}

/** A step as a program would write it. */
function stepOf(name: CompileSize) {
  const { layers, hidden, heads, kvHeads, context, batch, dropout } = compileSizes[name];
  const config = {
    vocab_size: 256,
    hidden_size: hidden,
    intermediate_size: Math.round(hidden * 8 / 3 / 32) * 32,
    num_hidden_layers: layers,
    num_attention_heads: heads,
    num_key_value_heads: kvHeads,
    tie_word_embeddings: true,
  };
  const rate = cosineSchedule({ learningRate: 1e-3, totalSteps: 1000, warmupSteps: 10 });
  const optimizer = adamw({ learningRate: rate, decays: (_, x) => x.rank > 1 });
  const start = (): State =>
    scope(() => {
      const params = llama.init(key(0), config);
      return { params, optimizer: optimizer.init(params) };
    });
  const step = ({ params, optimizer: state }: State, key: Tensor) => {
    const [data, drops] = split(key);
    const ids = randint(data, [batch, context], { max: 256 });
    const drop = dropout === 0 ? undefined : { p: dropout, key: drops };
    const [loss, grads] = valueAndGrad((p: typeof params) => llama.loss(p, config, ids, ids, { dropout: drop }))(
      params,
    );
    const next = optimizer.update(params, clipGradNorm(grads, 1).grads, state);
    return { loss, next: { params: next.params, optimizer: next.state } };
  };
  return { start, step, tokens: batch * context };
}

type Step = ReturnType<typeof stepOf>["step"];

const median = (values: number[]) => values.sort((a, b) => a - b)[values.length >> 1];

/** Steps in a row, each from what the one before left. */
class Run {
  #state: State;
  readonly #step: Step;
  readonly #keys = Array.from({ length: 4 }, (_, i) => key(i));
  #done = 0;

  constructor(state: State, step: Step) {
    this.#state = state;
    this.#step = step;
  }

  get params(): Record<string, Tensor> {
    return this.#state.params;
  }

  once(): Tensor {
    const { loss, next } = this.#step(this.#state, this.#keys[this.#done++ % this.#keys.length]);
    this.#state = next;
    return loss;
  }

  async times(backend: Backend, budgetMs: number): Promise<StepTimes> {
    const many = async (count: number) => {
      const start = performance.now();
      for (let i = 0; i < count; i++) this.once().dispose();
      await backend.synchronize();
      return (performance.now() - start) / count;
    };
    await many(3);
    const count = Math.max(2, Math.min(50, Math.round(budgetMs / 6 / await many(2))));
    const each: number[] = [], cpu: number[] = [];
    for (let i = 0; i < 5; i++) each.push(await many(count));
    for (let i = 0; i < 10; i++) {
      const start = performance.now();
      this.once().dispose();
      cpu.push(performance.now() - start);
      await backend.synchronize();
    }
    return { ms: median(each), cpuMs: median(cpu) };
  }

  end(): void {
    dispose([this.#state.params, this.#state.optimizer, this.#keys]);
  }
}

/** How often a method of GPUDevice is called while `f` runs; null where the runtime has no such class. */
function counted(method: "createBuffer" | "createBindGroup", f: () => void): number | null {
  if (!("GPUDevice" in globalThis)) return null;
  const real = Object.getOwnPropertyDescriptor(GPUDevice.prototype, method)!;
  let calls = 0;
  const call = function (this: GPUDevice, ...args: unknown[]): unknown {
    calls++;
    return Reflect.apply(real.value, this, args);
  };
  Object.defineProperty(GPUDevice.prototype, method, { ...real, value: call });
  try {
    f();
  } finally {
    Object.defineProperty(GPUDevice.prototype, method, real);
  }
  return calls;
}

async function sameBits({ start, step }: ReturnType<typeof stepOf>): Promise<boolean> {
  using compiled = compile(step);
  const runs = [new Run(start(), (...args) => scope(() => step(...args))), new Run(start(), compiled)];
  let same = true;
  for (let i = 0; i < 6; i++) {
    const losses = runs.map((run) => run.once());
    const [a, b] = await Promise.all(losses.map((loss) => loss.item()));
    dispose(losses);
    same &&= Object.is(a, b);
  }
  for (const [name, x] of Object.entries(runs[0].params)) {
    const [a, b] = [await x.bytes(), await runs[1].params[name].bytes()];
    same &&= a.every((byte, i) => byte === b[i]);
  }
  for (const run of runs) run.end();
  return same;
}

/**
 * Measures one model's training step both ways, with the backend that creators use.
 * @param options.budgetMs about how long to spend on each way
 */
export async function compileFigures(
  backend: Backend,
  size: CompileSize,
  { budgetMs = 1500 }: { readonly budgetMs?: number } = {},
): Promise<CompileFigures> {
  const model = stepOf(size), { start, step, tokens } = model;
  const same = await sameBits(model);
  const plainRun = new Run(start(), (...args) => scope(() => step(...args)));
  const plain = await plainRun.times(backend, budgetMs);
  plainRun.end();
  using compiledStep = compile(step);
  const run = new Run(start(), compiledStep);
  const compiled = await run.times(backend, budgetMs);
  const ten = () => {
    for (let i = 0; i < 10; i++) run.once().dispose();
  };
  const newBuffers = counted("createBuffer", ten), newBindGroups = counted("createBindGroup", ten);
  const dispatches = compiledStep.recordings[0]?.dispatches ?? 0;
  let profileMs: number | null = null;
  if (backend.capabilities.timestamps) {
    const sums: number[] = [];
    for (let i = 0; i < 3; i++) sums.push((await profile(() => run.once().dispose())).ms);
    profileMs = median(sums);
  }
  run.end();
  return {
    size,
    tokens,
    plain,
    compiled,
    speedup: plain.ms / compiled.ms,
    dispatches,
    cpuMicroseconds: dispatches === 0 ? NaN : 1000 * compiled.cpuMs / dispatches,
    newBuffers,
    newBindGroups,
    sameBits: same,
    profileMs,
    profileShare: profileMs === null ? null : profileMs / compiled.ms,
  };
}

if (import.meta.main) {
  const names = Object.keys(compileSizes) as CompileSize[];
  const unknown = Deno.args.find((name) => !names.some((known) => known === name));
  if (unknown !== undefined) {
    console.error(`error: "${unknown}" is no model. Allowed: ${names.join(", ")}; all of them when none is named.`);
    Deno.exit(2);
  }
  const wanted = names.filter((name) => Deno.args.length === 0 || Deno.args.includes(name));
  const backend = await init();
  console.log(backend.description);
  for (const name of wanted) {
    const f = await compileFigures(backend, name);
    const rate = (ms: number) => `${ms.toFixed(3)} ms, ${(f.tokens / ms).toFixed(0)}k tokens/s`;
    console.log(`
${name}: ${f.tokens} tokens a step
  plain      ${rate(f.plain.ms)}, CPU ${f.plain.cpuMs.toFixed(2)} ms
  compiled   ${rate(f.compiled.ms)}, CPU ${f.compiled.cpuMs.toFixed(2)} ms: ${f.speedup.toFixed(2)} times as fast
  a replay   ${f.dispatches} dispatches of ${f.cpuMicroseconds.toFixed(2)} µs; ten make ${f.newBuffers} buffers and \
${f.newBindGroups} bind groups
  profile    ${f.profileMs?.toFixed(3)} ms, ${(100 * (f.profileShare ?? NaN)).toFixed(1)} % of a step
  six steps  ${f.sameBits ? "the same bits" : "OTHER BITS"}`);
  }
  backend.dispose();
}
