/**
 * Dawn as a provider of WebGPU: the implementation that Chrome uses, as a native module for Deno and Node. WGSL reaches
 * the matrix units of a card through it, which Deno's own WebGPU does not offer.
 *
 * ```ts ignore
 * import { init } from "@flashtape/flashtape";
 * import { dawn } from "@flashtape/flashtape/dawn";
 * const { capabilities } = await init({ gpu: dawn() });
 * console.log(capabilities.subgroupMatrix);
 * ```
 *
 * Needs `--allow-ffi --allow-read --allow-env`. Importing this entry loads the package `webgpu`, which holds the module
 * for Linux, macOS and Windows; nothing else in the library loads it.
 *
 * @module
 */
import { UnsupportedError, ValueError } from "../tensor/errors.ts";

export { builtInMatmulTable, type MatmulTuning, tuneMatmul, type TuneOptions, useMatmulTuning } from "./matmul_tune.ts";
export type { MatrixSizes } from "./matmul_matrix.ts";
export type { MatrixTable, RatedTile } from "./matmul_matrix_plan.ts";

/** How to open Dawn. */
export interface DawnOptions {
  /**
   * Whether the compiler adds bounds checks to every access of a kernel, as browsers must; on by default. Kernels of this
   * library stay in bounds by themselves, so results are the same without, and matrix products faster.
   */
  readonly robustness?: boolean;
  /**
   * Which graphics API to use: `"vulkan"`, `"metal"` or `"d3d12"`; the platform's own when not given.
   */
  readonly backend?: "vulkan" | "metal" | "d3d12";
}

/** What the native module exports. */
interface Dawn {
  create(options: string[]): GPU;
  readonly globals: object;
}

/** What Deno or Node tell of the process. */
interface Runtime {
  readonly Deno?: {
    readonly build: { readonly os: string };
    readonly env: { get(name: string): string | undefined };
    readonly permissions: { querySync(descriptor: { name: "env"; variable: string }): { state: string } };
    readonly exitCode: number;
    exit(code: number): never;
  };
  readonly process?: {
    readonly env: Readonly<Record<string, string | undefined>>;
    readonly platform: string;
  };
  readonly setImmediate?: (f: (...args: unknown[]) => void, ...args: unknown[]) => unknown;
}

const runtime = globalThis as unknown as Runtime;

/** The native module, or why there is none. A static import would leave no room to say what helps. */
const loaded: Dawn | Error = await load().catch((error: unknown) =>
  error instanceof Error ? error : new Error(String(error))
);

async function load(): Promise<Dawn> {
  const path = modulePath();
  if (path !== undefined) {
    const { createRequire } = await import("node:module");
    return createRequire(import.meta.url)(path) as Dawn;
  }
  return await import("npm:webgpu@0.6.2");
}

/** `DAWN_NODE` names the module's file where no package can be installed; read only where nobody is asked for it. */
function modulePath(): string | undefined {
  const { Deno: deno } = runtime;
  if (deno === undefined) return runtime.process?.env.DAWN_NODE || undefined;
  const { state } = deno.permissions.querySync({ name: "env", variable: "DAWN_NODE" });
  return state === "granted" ? deno.env.get("DAWN_NODE") || undefined : undefined;
}

/** Devices outlive the object that made them only in name: when that is collected, the process dies somewhere else. */
const kept: GPU[] = [];
Reflect.set(globalThis, Symbol.for("flashtape.dawn"), kept);

/**
 * A GPU for `init({ gpu })`, provided by Dawn.
 *
 * The process ends by itself when the program does: at its end, before the runtime tears down what Dawn's threads still
 * use, the exit is made at once, with the exit code that was set.
 *
 * @param options.robustness whether kernels run with bounds checks; true when not given
 * @throws {UnsupportedError} when the native module cannot be loaded, saying why and how to install it
 * @throws {ValueError} when an option is not one of its values
 *
 * @example
 * ```ts ignore
 * import { init } from "@flashtape/flashtape";
 * import { dawn } from "@flashtape/flashtape/dawn";
 * await init({ gpu: dawn({ robustness: false }) });
 * ```
 */
export function dawn({ robustness = true, backend = platformBackend() }: DawnOptions = {}): GPU {
  if (typeof robustness !== "boolean") throw new ValueError("dawn", `robustness is true or false, got ${robustness}`);
  if (!["vulkan", "metal", "d3d12"].includes(backend)) {
    throw new ValueError("dawn", `backend is "vulkan", "metal" or "d3d12", got "${backend}"`);
  }
  const { create, globals } = available(loaded);
  // GPUBufferUsage and its like, where the runtime has no WebGPU of its own.
  for (const [name, value] of Object.entries(globals)) if (!(name in globalThis)) Reflect.set(globalThis, name, value);
  const toggles = ["allow_unsafe_apis", "vulkan_enable_f16_on_nvidia", ...robustness ? [] : ["disable_robustness"]];
  const gpu = create([
    `backend=${backend}`,
    `enable-dawn-features=${toggles}`,
    "disable-dawn-features=timestamp_quantization", // a page may not know time this well; a profile must
  ]);
  if (kept.length === 0) {
    leaveQuickly();
    pollSlowly();
  }
  kept.push(gpu);
  return gpu;
}

/** The module, unless loading it failed. */
function available(module: Dawn | Error): Dawn {
  if (!(module instanceof Error)) return module;
  throw new UnsupportedError(
    "dawn",
    `the native module of the package "webgpu" could not be loaded: ${module.message}\n` +
      "install it with `deno add npm:webgpu@0.6.2` or `npm install webgpu@0.6.2`, run with --allow-ffi, --allow-read and " +
      "--allow-env, or name the file of a dawn.node in the environment variable DAWN_NODE",
  );
}

function platformBackend(): NonNullable<DawnOptions["backend"]> {
  const os = runtime.Deno?.build.os ?? runtime.process?.platform;
  return os === "darwin" ? "metal" : os === "windows" || os === "win32" ? "d3d12" : "vulkan";
}

/** How long Dawn may ask without a pause whether the GPU has finished, and the pause after that, in milliseconds. */
const eager = 3, pause = 1;

/**
 * Dawn waits by asking again and again through `setImmediate`, each time with a new native function. Work of seconds then
 * takes a processor for as long, and Deno minutes to collect those functions. After a few milliseconds its questions
 * wait for a timer; other callers of `setImmediate` are not touched.
 */
function pollSlowly(): void {
  const { setImmediate: immediate } = runtime;
  if (immediate === undefined) return;
  let began = 0, last = 0;
  const asking = (f: (...args: unknown[]) => void, ...args: unknown[]): unknown => {
    if (args.length > 0 || !Function.prototype.toString.call(f).includes("[native code]")) return immediate(f, ...args);
    const now = performance.now();
    if (now - last > 10 * pause) began = now;
    last = now;
    return now - began < eager ? immediate(f) : setTimeout(f, pause);
  };
  Reflect.set(globalThis, "setImmediate", asking);
}

/** Ends the process at its end without the clean-up in which Dawn can crash. */
function leaveQuickly(): void {
  const { Deno: deno } = runtime;
  if (deno !== undefined) globalThis.addEventListener("unload", () => deno.exit(deno.exitCode));
}
