/** The machine and the device that a run is about. */
import { type Backend, cpu, init, setBackend } from "@flashtape/flashtape";
import { cpus, freemem, release, type } from "node:os";
import { UsageError } from "./files.ts";
import type { Settings } from "./options.ts";
import type { Result } from "./record.ts";

const open = new Map<string, Promise<Backend>>();

/** The backend of these settings, made the default; opened once in a process. */
export async function openBackend({ backend, provider }: Pick<Settings, "backend" | "provider">): Promise<Backend> {
  const id = backend === "cpu" ? "cpu" : `${backend} ${provider}`;
  let opening = open.get(id);
  if (opening === undefined) open.set(id, opening = make({ backend, provider }));
  try {
    const opened = await opening;
    setBackend(opened);
    return opened;
  } catch (error) {
    open.delete(id);
    const allowed = "allowed here: --backend auto, --backend cpu";
    throw new UsageError(`--backend ${backend} --provider ${provider}: ${(error as Error).message}\n${allowed}`);
  }
}

async function make({ backend, provider }: Pick<Settings, "backend" | "provider">): Promise<Backend> {
  if (backend === "cpu") return cpu();
  if (provider === "deno") return await init({ backend });
  const { dawn } = await import("@flashtape/flashtape/dawn");
  return await init({ backend, gpu: dawn() });
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
  provider: Settings["provider"],
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
      timestamps: can.timestamps,
      f16: can.f16,
      subgroups: can.subgroupSize,
      matrixUnits: can.subgroupMatrix.length > 0,
      maxBinding: Number.isFinite(can.maxBinding) ? can.maxBinding : Number.MAX_SAFE_INTEGER,
    },
  };
}

/** `NVIDIA H200, webgpu by Deno` */
export function deviceLine({ device: { name, backend, provider } }: Pick<Result, "device">): string {
  if (provider === null) return `${name} (${backend})`;
  return `${name} (WebGPU by ${provider === "deno" ? "Deno" : "Dawn"})`;
}

/** Bytes that a configuration may need: what was asked for, else half of what is free where the device shares the host's memory. */
export function memoryLimit(backend: Backend, { memoryLimit }: Pick<Settings, "memoryLimit">): number {
  if (memoryLimit !== undefined) return memoryLimit * 2 ** 30;
  const shared = backend.name === "cpu" || /llvmpipe|lavapipe|swiftshader|software/i.test(backend.description);
  return shared && told("systemMemoryInfo") ? freemem() / 2 : Infinity;
}
