/** The tiles of matrix-unit products that `tune` measured: a file for each adapter, in a folder of the user's. */
import { readFileSync } from "node:fs";
import { isAbsolute, join } from "node:path";
import type { Settings } from "./options.ts";

/**
 * The user's folder for what can be measured again.
 * @param env what the environment says
 * @returns null where the environment names no such folder
 */
export function userCache(os: string, env: (name: string) => string | undefined): string | null {
  const [of, ...under] = os === "windows"
    ? [env("LOCALAPPDATA")]
    : os === "darwin"
    ? [env("HOME"), "Library", "Caches"]
    : isAbsolute(env("XDG_CACHE_HOME") ?? "") // the standard has others ignored
    ? [env("XDG_CACHE_HOME")]
    : [env("HOME"), ".cache"];
  return of ? join(of, ...under, "flashtape") : null;
}

/** The folder that `--cache` names, or the user's; null after `--no-cache` and where there is none. */
export function tilesFolder({ cache }: Pick<Settings, "cache">): string | null {
  if (cache === false) return null;
  return typeof cache === "string" ? cache : userCache(Deno.build.os, (name) => Deno.env.get(name));
}

/** The file of an adapter; what is fastest with bounds checks is not what is fastest without. */
export function tilesFile(folder: string, adapter: string, robustness: Settings["robustness"]): string {
  const name = adapter.toLowerCase().replace(/[^a-z0-9]+/g, "-").replace(/^-|-$/g, "");
  return join(folder, `matmul-${name}${robustness === "on" ? "" : "-unchecked"}.json`);
}

/** The text of a file, or undefined where there is none. */
export function textIfThere(file: string): string | undefined {
  try {
    return readFileSync(file, "utf8");
  } catch (error) {
    if ((error as NodeJS.ErrnoException).code === "ENOENT") return undefined;
    throw error;
  }
}
