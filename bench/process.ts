/** Other programs, started beside this one, that report in lines of JSON. */
import { fileURLToPath } from "node:url";
import { stripVTControlCharacters } from "node:util";
import { mark } from "./peers/work.ts";

/** A program that runs. */
export interface Started {
  /** What it reports, as it comes. */
  readonly reports: AsyncIterable<unknown>;
  /** Why it ended, once its reports have. */
  readonly ended: Promise<string>;
}

/**
 * Starts a script of this directory, in Deno or in Python.
 * @param timeout seconds after which it is stopped
 */
export function start(script: string, job: unknown, timeout: number): Started {
  const path = fileURLToPath(new URL(script, import.meta.url)), python = script.endsWith(".py");
  const before = python ? [] : ["run", "--quiet", "--no-check", "--allow-all"];
  let child: Deno.ChildProcess;
  try {
    child = new Deno.Command(python ? "python3" : Deno.execPath(), {
      args: [...before, path, JSON.stringify(job)],
      ...{ stdin: "null", stdout: "piped", stderr: "piped" } as const,
    }).spawn();
  } catch (error) {
    return { reports: none(), ended: Promise.resolve(`it could not be started: ${(error as Error).message}`) };
  }
  const stopping = setTimeout(() => child.kill("SIGKILL"), 1000 * timeout);
  const said = new Response(child.stderr).text();
  const ended = child.status.then(async ({ code, signal }) => {
    clearTimeout(stopping);
    if (signal === "SIGKILL") return `its process was stopped after ${timeout} s`;
    const why = (await said).split("\n").find((line) => /uncaught|panic|fatal/i.test(line)) ?? "it did not say why";
    return `its process ended with ${signal ?? `exit code ${code}`}: ${stripVTControlCharacters(why).slice(0, 300)}`;
  });
  return { reports: reportsOf(child.stdout), ended };
}

async function* none(): AsyncGenerator<unknown> {}

/** The lines that are reports; libraries print others. */
async function* reportsOf(stdout: ReadableStream<Uint8Array<ArrayBuffer>>): AsyncGenerator<unknown> {
  let rest = "";
  for await (const text of stdout.pipeThrough(new TextDecoderStream())) {
    const lines = (rest + text).split("\n");
    rest = lines.pop()!;
    for (const line of lines) if (line.startsWith(mark)) yield JSON.parse(line.slice(mark.length));
  }
}
