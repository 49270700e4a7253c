/** What the page and its workers say to each other. */
import type { Capabilities } from "@flashtape/flashtape";
import type { Point, SweepOptions } from "./sweep.ts";

/** Where to compute. */
export type Choice = "fast" | "frugal" | "cpu";

/** From the page to a worker. */
export type Request =
  | { readonly kind: "open"; readonly choice: Choice }
  | {
    readonly kind: "sweep";
    readonly options: Pick<SweepOptions, "causal" | "backward" | "patience">;
    readonly lengths?: readonly [number, number];
  }
  | { readonly kind: "train"; readonly size: string; readonly steps: number; readonly seed: number }
  | { readonly kind: "pause" | "resume" | "stop" }
  | { readonly kind: "write"; readonly prompt: string; readonly length: number; readonly seed: number }
  | { readonly kind: "load"; readonly files: readonly File[] }
  | { readonly kind: "say"; readonly text: string; readonly options: ChatOptions }
  | { readonly kind: "forget" }
  /** Destroys the device, to see what a page does then. */
  | { readonly kind: "lose" };

/** How a model that was loaded answers. */
export interface ChatOptions {
  readonly maxNewTokens: number;
  readonly temperature: number;
}

/** What was opened. */
export interface Opened {
  readonly name: string;
  readonly description: string;
  readonly capabilities: Capabilities;
  /** From the worker's start to the first result, in milliseconds. */
  readonly openMs: number;
  readonly firstMs: number;
  /** Why it is the CPU, where that was not asked for. */
  readonly why?: string;
}

/** What a training run is. */
export interface TrainingInfo {
  readonly size: string;
  readonly parameters: number;
  readonly layers: number;
  readonly hidden: number;
  readonly context: number;
  readonly batch: number;
  readonly steps: number;
  /** Bits a byte costs who knows only how often each comes. */
  readonly entropy: number;
}

/** From a worker to the page. */
export type Reply =
  | { readonly kind: "opened"; readonly device: Opened }
  | {
    readonly kind: "sizes";
    readonly heads: number;
    readonly headSize: number;
    readonly lengths: readonly [number, number];
  }
  | { readonly kind: "point"; readonly point: Point }
  | { readonly kind: "agreed"; readonly difference: number; readonly length: number }
  | { readonly kind: "training"; readonly info: TrainingInfo }
  | {
    readonly kind: "progress";
    readonly points: readonly (readonly [step: number, bits: number])[];
    readonly tokensPerSecond: number;
  }
  | { readonly kind: "heldOut"; readonly step: number; readonly bits: number }
  | { readonly kind: "paused" | "resumed" }
  | { readonly kind: "text"; readonly text: string }
  | { readonly kind: "loading"; readonly what: string }
  | { readonly kind: "model"; readonly summary: string; readonly chat: boolean }
  | { readonly kind: "said"; readonly tokens: number; readonly ms: number }
  | { readonly kind: "done" }
  /** A job ended by an error; the worker goes on. */
  | { readonly kind: "failed"; readonly error: string; readonly message: string }
  /** The device is gone, and with it what was on it. */
  | { readonly kind: "lost"; readonly message: string };
