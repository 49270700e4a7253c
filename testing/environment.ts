/** What the runtime offers a property: variables of the environment, and a place to register a test. */

import { UnsupportedError } from "../tensor/errors.ts";

interface Runtime {
  readonly Deno?: {
    readonly permissions: { querySync(descriptor: { name: "env"; variable: string }): { state: string } };
    readonly env: { get(name: string): string | undefined };
    test(name: string, body: () => Promise<void>): void;
  };
  readonly process?: {
    readonly env?: Readonly<Record<string, string | undefined>>;
    getBuiltinModule?(id: string): unknown;
  };
  readonly test?: Register;
  readonly it?: Register;
}

/** A function that registers a test with a runner. */
export type Register = (name: string, body: () => Promise<void>) => unknown;

const runtime: Runtime = globalThis as unknown as Runtime;

/** Whether variables of this name may be read without asking anyone. */
export function mayRead(name: string): boolean {
  if (runtime.Deno === undefined) return runtime.process?.env !== undefined;
  return runtime.Deno.permissions.querySync({ name: "env", variable: name }).state === "granted";
}

/** A variable of the environment; undefined where it is unset, empty, or may not be read. Never prompts, never throws. */
export function readVariable(name: string): string | undefined {
  if (!mayRead(name)) return undefined;
  const value = runtime.Deno === undefined ? runtime.process?.env?.[name] : runtime.Deno.env.get(name);
  return value === "" ? undefined : value;
}

/** The runtime's own way to register a test: Deno's, a global `test` or `it`, else Node's. */
export function testRunner(): Register {
  const { Deno: deno, process, test, it } = runtime;
  if (deno !== undefined) return (name, body) => deno.test(name, body);
  const found = test ?? it ?? process?.getBuiltinModule?.("node:test");
  if (typeof found === "function") return found as Register;
  throw new UnsupportedError("property", "found no test runner: use check() inside a test of your own");
}

/** The command that runs one test by name, as a shell takes it. */
export function commandFor(name: string): string {
  const quoted = `'${name.replaceAll("'", `'\\''`)}'`;
  if (runtime.Deno !== undefined) {
    const permission = mayRead("FLASHTAPE_SEED") ? "" : " --allow-env=FLASHTAPE_SEED,FLASHTAPE_PATH,FLASHTAPE_RUNS";
    return `deno test${permission} --filter ${quoted}`;
  }
  const pattern = `'${name.replace(/[.*+?^${}()|[\]\\]/g, "\\$&").replaceAll("'", `'\\''`)}'`;
  return `node --test --test-name-pattern=${pattern}`;
}
