/** Programs of this directory that are commands too: each runs in a process of its own, on the same terminal. */
import { fileURLToPath } from "node:url";
import { command } from "./options.ts";
import type { Tools } from "./plan.ts";

function script(name: string, argument: readonly [name: string, meaning: string], description: string) {
  return ({ run }: Tools) =>
    command(name, description)
      .argument(...argument)
      .allowUnknownOption()
      .passThroughOptions()
      .action((given: string | readonly string[] = []) =>
        run(async () => {
          const file = fileURLToPath(new URL(`./${name}.ts`, import.meta.url));
          const child = new Deno.Command(Deno.execPath(), {
            args: ["run", "--quiet", "--allow-all", file, ...[given].flat()],
            ...{ stdin: "inherit", stdout: "inherit", stderr: "inherit" } as const,
          });
          return (await child.output()).code;
        })
      );
}

/** The `compile` and `soak` commands. */
export const scripts = [
  script(
    "compile",
    ["[models...]", "some of tiny, small, 4x256, medium, large; all when none is named"],
    "A training step plain and compiled: time, the CPU's part, new buffers, equal bits.",
  ),
  script(
    "soak",
    ["[steps]", "how many, from 20; 1000 when not given"],
    "Memory over a thousand training steps in a plain loop.",
  ),
];
