/** Files that are there whole or not at all. */
import { mkdirSync, renameSync, rmdirSync, rmSync, statSync, writeFileSync } from "node:fs";
import { dirname, resolve } from "node:path";
import process from "node:process";

/** A mistake of the caller's: shown without a stack, exit code 2. */
export class UsageError extends Error {
  override readonly name = "UsageError";
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
  const { code, message } = error as NodeJS.ErrnoException;
  return code ?? message;
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
