/** Training on Moby-Dick, step by step, with a pause between any two. */
import { dispose, scope, stopGradient, type Tensor, tensor } from "@flashtape/flashtape";
import {
  bitsPerByte,
  configOf,
  countParameters,
  type Size,
  sizes as known,
  Trainer,
  windowsOf,
  write,
} from "../byte_model.ts";
import type { TrainingInfo } from "./protocol.ts";

/** What the page offers: the demo's models, and one that plain loops can train. */
export const sizes: readonly Size[] = [
  {
    name: "mini",
    layers: 2,
    hidden: 32,
    heads: 2,
    kvHeads: 1,
    context: 32,
    batch: 4,
    learningRate: 1e-2,
    dropout: 0,
    worth: 0,
  },
  ...known,
];

/** The book, and chapters that are not shown to the model. */
export interface Book {
  readonly train: Uint8Array;
  readonly heldOut: Uint8Array;
}

/** What a run tells as it goes. */
export interface Listener {
  progress(points: readonly (readonly [step: number, bits: number])[], tokensPerSecond: number): void;
  heldOut(step: number, bits: number): void;
}

/** Bits that a byte costs who knows only how often each comes. */
export function entropyOf(bytes: Uint8Array): number {
  const counts = new Float64Array(256);
  for (const byte of bytes) counts[byte]++;
  return counts.reduce((sum, n) => n === 0 ? sum : sum - n / bytes.length * Math.log2(n / bytes.length), 0);
}

/** Lets messages in, which come only when nothing else is waiting to run. */
function breathe(): Promise<void> {
  return new Promise((resolve) => setTimeout(resolve, 0));
}

/** A training run. */
export class TrainingRun implements Disposable {
  readonly info: TrainingInfo;
  readonly #size: Size;
  readonly #text: Tensor;
  readonly #windows: Tensor;
  readonly #trainer: Trainer;
  readonly #listener: Listener;
  #paused = false;
  #stopped = false;
  #running = false;
  /** Ends a wait of the run. */
  #wake: (() => void) | null = null;
  /** Tells whoever asked for a pause that the run waits, or will no more. */
  #held: (() => void) | null = null;
  #writing = 0;

  constructor(book: Book, name: string, steps: number, seed: number, listener: Listener) {
    const size = sizes.find((s) => s.name === name) ?? sizes[0];
    this.#size = size;
    this.#text = tensor(book.train, { dtype: "i32" });
    this.#windows = windowsOf(book.heldOut.subarray(0, 4 * size.batch * size.context), size);
    this.#trainer = new Trainer(size, this.#text, seed);
    this.#listener = listener;
    const config = configOf(size);
    const { layers, hidden, context, batch } = size;
    const parameters = countParameters(config);
    this.info = {
      size: size.name,
      parameters,
      layers,
      hidden,
      context,
      batch,
      steps,
      entropy: entropyOf(book.heldOut),
    };
  }

  get paused(): boolean {
    return this.#paused;
  }

  /** Resolves once the step that is under way is done. */
  async pause(): Promise<void> {
    this.#paused = true;
    if (this.#running && this.#wake === null) await new Promise<void>((resolve) => this.#held = resolve);
  }

  resume(): void {
    this.#paused = false;
    this.#held?.();
    this.#wake?.();
  }

  stop(): void {
    this.#stopped = true;
    this.#wake?.();
  }

  /** Trains to the last step, or until it is stopped. */
  async run(): Promise<void> {
    const trainer = this.#trainer, { steps } = this.info;
    this.#running = true;
    let waiting: [step: number, loss: Tensor][] = [];
    let every = 1, begin = performance.now(), from = trainer.steps, nextScore = 0;
    const score = async () => {
      const at = performance.now();
      this.#listener.heldOut(
        trainer.steps,
        await bitsPerByte(trainer.params, trainer.config, this.#windows, this.#size.batch),
      );
      begin += performance.now() - at;
    };
    while (trainer.steps < steps && !this.#stopped) {
      if (this.#paused || this.#writing > 0) {
        const at = performance.now();
        await new Promise<void>((resolve) => {
          this.#wake = resolve;
          this.#held?.();
        });
        this.#wake = null;
        begin += performance.now() - at;
        continue;
      }
      if (trainer.steps >= nextScore) {
        await score();
        nextScore += Math.max(10, steps / 10);
      }
      const loss = trainer.step(trainer.steps / steps);
      waiting.push([trainer.steps, loss]);
      // Reading waits for the device: often enough to draw, seldom enough not to slow it down.
      if (waiting.length < every && trainer.steps < steps) continue;
      const points: [step: number, bits: number][] = [];
      for (const [step, x] of waiting) {
        points.push([step, await x.item() / Math.LN2]);
        x.dispose();
      }
      waiting = [];
      const seconds = (performance.now() - begin) / 1e3, done = trainer.steps - from;
      this.#listener.progress(points, done * trainer.bytesPerStep / seconds);
      every = Math.max(1, Math.min(16, Math.floor(0.1 * done / seconds)));
      if (seconds > 5) { // a rate of the last seconds, not of all time
        begin = performance.now();
        from = trainer.steps;
      }
      await breathe();
    }
    for (const [, x] of waiting) x.dispose();
    if (!this.#stopped) await score();
    this.#running = false;
    this.#held?.();
  }

  /** Bytes that the model writes as it is now; training waits meanwhile. */
  async *write(prompt: string, length: number, seed: number): AsyncGenerator<number> {
    this.#writing++;
    const params = scope(() => stopGradient(this.#trainer.params)); // handles of its own, which no step consumes
    try {
      yield* write(params, this.#trainer.config, { prompt, length, seed });
    } finally {
      dispose(params);
      this.#writing--;
      this.#wake?.();
    }
  }

  [Symbol.dispose](): void {
    this.#trainer[Symbol.dispose]();
    dispose([this.#text, this.#windows]);
  }
}
