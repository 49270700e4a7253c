/** Opening a backend and making it the default. */
import { type Backend, setBackend } from "../tensor/backend.ts";
import { cpu } from "../tensor/cpu.ts";
import { UnsupportedError, ValueError } from "../tensor/errors.ts";
import type { WebGpuOptions } from "./webgpu.ts";

/** Which backend to open. */
export interface InitOptions extends WebGpuOptions {
  /** `"auto"` takes WebGPU where there is an adapter, else the CPU. */
  readonly backend?: "auto" | "webgpu" | "cpu";
}

/**
 * The WebGPU backend on the fastest adapter. f64 is refused here.
 *
 * Its kernels are modules of their own, loaded while the device opens: a page without WebGPU never loads them.
 *
 * @throws {UnsupportedError} when there is no WebGPU or no adapter
 */
export async function webgpu(options: WebGpuOptions = {}): Promise<Backend> {
  const { gpu = globalThis.navigator?.gpu } = options;
  const opening = import("./device.ts").then(({ open }) => open(gpu));
  if (gpu === undefined) await opening; // which says so
  opening.catch(() => {}); // heard of below
  const { webgpu } = await import("./webgpu.ts");
  return await webgpu(options, opening);
}

/**
 * Opens a backend and makes it the one that creators use.
 *
 * @param options.backend `"auto"` (the default) falls back to the CPU where there is no adapter
 * @param options.gpu where adapters come from: a `GPU`, such as the one that `dawn()` gives
 * @throws {UnsupportedError} when `"webgpu"` is asked for and there is none
 *
 * @example
 * ```ts
 * import { init } from "@flashtape/flashtape";
 * const { name, description } = await init();
 * ```
 */
export async function init({ backend = "auto", ...options }: InitOptions = {}): Promise<Backend> {
  if (backend !== "auto" && backend !== "webgpu" && backend !== "cpu") {
    throw new ValueError("init", `backend is "auto", "webgpu" or "cpu", got "${backend}"`);
  }
  const opened = backend === "cpu" ? cpu() : await webgpu(options).catch((error) => {
    if (backend === "auto" && error instanceof UnsupportedError) return cpu();
    throw error;
  });
  setBackend(opened);
  return opened;
}
