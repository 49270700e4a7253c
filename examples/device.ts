/** Which device the programs run on, as their flags say it. */
import { type Backend, init } from "@flashtape/flashtape";
import { choiceOf, type FlagValues } from "./program.ts";

/** What `--backend` may be, the usual one first. */
const backends = ["auto", "webgpu", "cpu"] as const;
/** What `--provider` may be, the usual one first. */
const providers = ["deno", "dawn"] as const;

/** The device that was asked for. */
export interface DeviceOptions {
  readonly backend: typeof backends[number];
  /** Whose WebGPU. */
  readonly provider: typeof providers[number];
}

/**
 * What the two flags do, for a program's help.
 * @param column where its other lines begin to explain
 */
export function deviceUsage(column: number): string {
  return [
    ["  --backend B", "auto, webgpu or cpu; auto when not given"],
    ["  --provider P", "whose WebGPU: deno, or dawn, which has f16 and bf16 on a card's matrix units;"],
    ["", "deno when not given"],
  ].map(([flag, meaning]) => `${flag.padEnd(column)}${meaning}\n`).join("");
}

/**
 * What the two flags say.
 * @throws {UsageError} for a value that a flag cannot have
 */
export function deviceOf(values: FlagValues): DeviceOptions {
  return {
    backend: choiceOf(values, "backend", backends) ?? backends[0],
    provider: choiceOf(values, "provider", providers) ?? providers[0],
  };
}

/**
 * Opens the device and makes it the default.
 * @throws {UnsupportedError} when there is none, or Dawn's native module cannot be loaded
 */
export async function openDevice({ backend, provider }: DeviceOptions): Promise<Backend> {
  if (provider === "deno" || backend === "cpu") return await init({ backend });
  const { dawn } = await import("@flashtape/flashtape/dawn"); // loads a native module, so only where it is asked for
  const opened = await init({ backend, gpu: dawn() });
  if (opened.name === "cpu") {
    console.error("Dawn found no WebGPU adapter, so this runs on the CPU; --provider deno may find one");
  }
  return opened;
}
