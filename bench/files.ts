/** Files that are there whole or not at all. */
import { mkdirSync, renameSync, rmdirSync, rmSync, statSync, writeFileSync } from "node:fs";
import { dirname, resolve } from "node:path";
import process from "node:process";

/** A mistake of the caller's: shown without a stack, exit code 2. */
export class UsageError extends Error {
  override readonly name = "UsageError";
}

/** Whether an argument is a flag that names what a command writes. */
export function namesFile(arg: string | undefined): boolean {
  return ["--json", "--csv", "--save", "--save-dir"].includes(arg?.split("=")[0] ?? "");
}

/**
 * A command inside another writes nothing.
 * @param allowed where such flags go
 * @throws {UsageError} when it was told to
 */
export function refuseFiles(command: string, args: readonly string[], allowed: string): void {
  const flag = args.find(namesFile);
  if (flag === undefined) return;
  throw new UsageError(`${command}: ${flag.split("=")[0]} after the command would write nothing. Allowed: ${allowed}`);
}

/**
 * Sees to it that a file can be written, before anything is measured.
 * @param flag the flag that named it
 * @throws {UsageError} when it cannot
 */
export function expectWritable(flag: string, file: string): void {
  const directory = dirname(resolve(file));
  try {
    const made = mkdirSync(directory, { recursive: true });
    const probe = `${resolve(file)}.${process.pid}.tmp`; // what may be written shows only when one writes
    writeFileSync(probe, "");
    rmSync(probe);
    // Folders come back with the file: what is refused later leaves none.
    for (let at = directory; made !== undefined; at = dirname(at)) {
      rmdirSync(at);
      if (at === resolve(made)) break;
    }
  } catch (error) {
    throw new UsageError(`${flag} ${file}: ${directory} cannot be written (${reasonOf(error)})`);
  }
  if (statSync(file, { throwIfNoEntry: false })?.isDirectory()) throw new UsageError(`${flag} ${file}: is a directory`);
}

function reasonOf(error: unknown): string {
  // "EACCES: permission denied, mkdir '/x'"
  return (error as Error).message.replace(/^E[A-Z]+: |, \w+ '.*$/g, "");
}

/** Writes files beside their places, and moves them there once all are written. */
export function writeAll(files: Readonly<Record<string, string | Uint8Array>>): void {
  const moves = Object.entries(files).map(([file, content]) => ({
    file,
    content,
    beside: `${file}.${process.pid}.tmp`,
  }));
  try {
    for (const { file, content, beside } of moves) {
      mkdirSync(dirname(resolve(file)), { recursive: true });
      writeFileSync(beside, content);
    }
    for (const { file, beside } of moves) renameSync(beside, file);
  } finally {
    for (const { beside } of moves) rmSync(beside, { force: true });
  }
}
