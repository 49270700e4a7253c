/** Where results go, looked at before the work that leads to them. */
import { mkdir, rm, writeFile } from "node:fs/promises";
import { join } from "node:path";
import process from "node:process";

/** Makes the folder and finds out, before any work is done, whether it can be written to. */
export async function prepareFolder(folder: string): Promise<void> {
  const probe = join(folder, `.writable-${process.pid}`);
  await mkdir(folder, { recursive: true });
  await writeFile(probe, "");
  await rm(probe);
}
