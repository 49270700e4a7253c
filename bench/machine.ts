/** The machine and the device that a run is about. */
import { type Backend, cpu, init, setBackend } from "@flashtape/flashtape";
import { cpus, freemem, release, type } from "node:os";
import { UsageError } from "./files.ts";
import type { Settings } from "./options.ts";
import type { Io } from "./progress.ts";
import type { Result } from "./record.ts";
import { textIfThere, tilesFile, tilesFolder } from "./tiles.ts";

/** The settings that say which device. */
export type Where = Pick<Settings, "backend" | "provider" | "robustness" | "cache">;

const open = new Map<string, Promise<Backend>>(), tuned = new WeakSet<Backend>();

/**
 * The backend of these settings, made the default; opened once in a process.
 * @param io hears when it is not what one would expect
 */
export async function openBackend(where: Where, io?: Pick<Io, "err">): Promise<Backend> {
  const { backend, provider, robustness } = where;
  if (robustness === "off" && provider === "deno") {
    throw new UsageError(
      "--robustness off: Deno's WebGPU always checks bounds. Allowed: on, or off with --provider dawn",
    );
  }
  const id = backend === "cpu" ? "cpu" : [backend, provider, robustness, tilesFolder(where)].join(" ");
  let opening = open.get(id);
  if (opening === undefined) open.set(id, opening = make(where));
  try {
    const opened = await opening;
    setBackend(opened);
    if (opened.name === "cpu" && backend !== "cpu") {
      const other = provider === "dawn" ? "; --provider deno may find one" : "";
      io?.err(`${provider === "dawn" ? "Dawn" : "Deno"} found no WebGPU adapter, so this runs on the CPU${other}\n`);
    }
    return opened;
  } catch (error) {
    open.delete(id);
    if (error instanceof UsageError) throw error;
    const allowed = "allowed here: --backend auto, --backend cpu";
    throw new UsageError(`--backend ${backend} --provider ${provider}: ${(error as Error).message}\n${allowed}`);
  }
}

async function make(where: Where): Promise<Backend> {
  const { backend, provider, robustness } = where;
  if (backend === "cpu") return cpu();
  if (provider === "deno") return await init({ backend });
  const { dawn } = await dawnEntry();
  const made = await init({ backend, gpu: dawn({ robustness: robustness === "on" }) });
  if (made.name === "webgpu") await useTiles(made, where); // a refusal ends the program, and the device with it
  return made;
}

/** Loads the native module, so only where Dawn is asked for. */
const dawnEntry = () => import("@flashtape/flashtape/dawn");

/** Has products choose from the tiles that `tune` found on this card, if it was run here. */
async function useTiles(backend: Backend, where: Where): Promise<void> {
  const folder = tilesFolder(where);
  if (folder === null) return;
  const file = tilesFile(folder, backend.description, where.robustness), { useMatmulTuning } = await dawnEntry();
  try {
    const text = textIfThere(file);
    if (text === undefined) return;
    useMatmulTuning(backend, JSON.parse(text));
    tuned.add(backend);
  } catch (error) {
    throw new UsageError(
      `${file}: ${(error as Error).message}\nallowed: bench tune, which writes it anew, or --no-cache`,
    );
  }
}

/** Frees every backend that was opened. */
export async function closeBackends(): Promise<void> {
  for (const [id, opening] of open) {
    open.delete(id);
    (await opening.catch(() => null))?.dispose();
  }
}

/** Whether this process may ask about the system, without asking anybody. */
function told(kind: "cpus" | "osRelease" | "systemMemoryInfo"): boolean {
  return Deno.permissions.querySync({ name: "sys", kind }).state === "granted";
}

/** What a result says of where it was measured. */
export function describe(
  backend: Backend,
  { provider, robustness }: Pick<Where, "provider" | "robustness">,
): Pick<Result, "machine" | "device"> {
  const { capabilities: can } = backend, processors = told("cpus") ? cpus() : [];
  return {
    machine: {
      processor: `${processors.length} × ${processors[0]?.model ?? "unknown processor"}`,
      os: told("osRelease") ? `${type()} ${release().split("-")[0]}` : Deno.build.os, // not the name of a private build
      runtime: `Deno ${Deno.version.deno}`,
    },
    device: {
      name: backend.description,
      backend: backend.name,
      provider: backend.name === "webgpu" ? provider : null,
      ...backend.name === "webgpu" && provider === "dawn" &&
        { robustness: robustness === "on", tunedTiles: tuned.has(backend) },
      timestamps: can.timestamps,
      f16: can.f16,
      subgroups: can.subgroupSize,
      matrixUnits: can.subgroupMatrix.length > 0,
      maxBinding: Number.isFinite(can.maxBinding) ? can.maxBinding : Number.MAX_SAFE_INTEGER,
    },
  };
}

/** `NVIDIA H200 (WebGPU by Dawn, no bounds checks, tuned tiles)` */
export function deviceLine({ device }: Pick<Result, "device">): string {
  const { name, backend, provider, robustness = true, tunedTiles = false } = device;
  if (provider === null) return `${name} (${backend})`;
  const parts = [`WebGPU by ${provider === "deno" ? "Deno" : "Dawn"}`];
  if (!robustness) parts.push("no bounds checks");
  if (tunedTiles) parts.push("tuned tiles");
  return `${name} (${parts.join(", ")})`;
}

/** Whether a device's memory is the host's, and its processor the host's too. */
export function isHost(backend: Pick<Backend, "name" | "description">): boolean {
  return backend.name === "cpu" || /llvmpipe|lavapipe|swiftshader|software/i.test(backend.description);
}

/** Bytes that a configuration may need: what was asked for, else half of what is free where the device shares the host's memory. */
export function memoryLimit(
  backend: Pick<Backend, "name" | "description">,
  { memoryLimit }: Pick<Settings, "memoryLimit">,
): number {
  if (memoryLimit !== undefined) return memoryLimit * 2 ** 30;
  return isHost(backend) && told("systemMemoryInfo") ? freemem() / 2 : Infinity;
}
