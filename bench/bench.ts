/** The program: its commands, and how a command line becomes figures and files. */
import { Command, CommanderError, type CommandUnknownOpts } from "npm:@commander-js/extra-typings@15.1.0";
import { FlashtapeError } from "@flashtape/flashtape";
import { attention } from "./attention.ts";
import { check } from "./check.ts";
import { compare } from "./compare.ts";
import { namesFile, UsageError, writeAll } from "./files.ts";
import { generates } from "./generate.ts";
import { ground } from "./ground.ts";
import { layers } from "./layers.ts";
import { llama } from "./llama.ts";
import { model } from "./model.ts";
import { help } from "./options.ts";
import { peers } from "./peers.ts";
import { execute, expectFigures, type Plan, type Take, type Tools } from "./plan.ts";
import { profiled } from "./profile.ts";
import { type Io, progressOn } from "./progress.ts";
import { toCsv, toJson } from "./record.ts";
import { reports } from "./report.ts";
import { scripts } from "./scripts.ts";
import { suite } from "./suite.ts";
import { sweep } from "./sweep.ts";
import { tune } from "./tune.ts";

const measuring: readonly ((take: Take) => CommandUnknownOpts)[] = [
  ground,
  attention,
  compare,
  layers,
  model,
  generates,
  llama,
  suite,
  peers,
  tune,
];
const using: readonly ((tools: Tools) => CommandUnknownOpts)[] = [profiled, sweep, check, reports, ...scripts];

const description = `Measures flashtape on this machine.

Times come from the GPU's own clock where it has one, and the output says so. Without a command: ground.`;

const examples = `
Examples:
  deno task bench attention --seqlen 2048 --causal
  deno task bench compare --preset gpt2
  deno task bench suite --max-seq-len 8192 --save-dir out/bench
  deno task bench report --save-dir out/report
  deno task bench sweep attention --seqlen 512,1024,2048 --causal on,off
  deno task bench profile --trace out/trace.json model --preset small
  deno task bench attention --json before.json; deno task bench check --baseline before.json`;

/** The program with some of its commands. */
function programOf(io: Io, commands: readonly CommandUnknownOpts[]): CommandUnknownOpts {
  const program = new Command("bench").description(description).addHelpText("after", examples)
    .configureHelp(help).helpOption("-h, --help", "this page").helpCommand(false)
    .exitOverride().enablePositionalOptions().showHelpAfterError("(bench --help lists the commands)")
    .configureOutput({ writeOut: io.out, writeErr: io.err, getOutHelpWidth: () => 110, getErrHelpWidth: () => 110 });
  for (const command of commands) {
    command.copyInheritedSettings(program).showHelpAfterError(`(bench ${command.name()} --help says more)`);
    program.addCommand(command);
  }
  return program;
}

/** Refuses a command that there is not, naming those that there are. */
function expectCommand(name: string | undefined, commands: readonly CommandUnknownOpts[]): void {
  const names = commands.map((command) => command.name());
  if (name === undefined || name.startsWith("-") || names.includes(name)) return;
  throw new UsageError(`unknown command '${name}'. Allowed: ${names.join(", ")}`);
}

/** A command line without the files that it writes: what measures the same again. */
function withoutFiles(args: readonly string[]): string[] {
  return args.filter((arg, i) => !namesFile(arg) && !(namesFile(args[i - 1]) && !args[i - 1].includes("=")));
}

/** What a command line asks for. */
function planOf(args: readonly string[], io: Io): Plan {
  let plan: Plan | undefined;
  const commands = measuring.map((make) => make((draft) => plan = { ...draft, arguments: withoutFiles(args) }));
  expectCommand(args[0], commands);
  programOf(io, commands).parse(args, { from: "user" });
  return plan!;
}

/** Measures, prints and writes. */
async function runPlan(plan: Plan, io: Io): Promise<number> {
  const result = await execute(plan, io, progressOn(io));
  expectFigures(result.rows, plan);
  io.out(`${plan.report(result)}\n`);
  const { csv, json } = plan.settings;
  const files = {
    ...json && { [json]: toJson(result) },
    ...csv && { [csv]: toCsv(result) },
    ...await plan.files?.(result),
  };
  writeAll(files);
  if (Object.keys(files).length > 0) io.out(`\nwritten: ${Object.keys(files).join(", ")}\n`);
  return 0;
}

/**
 * Runs a command line.
 * @returns the exit code: 0, 1 when a check failed, 2 when the command line asks for what cannot be
 */
export async function main(args: readonly string[], io: Io): Promise<number> {
  let task: (() => Promise<number>) | undefined;
  const tools: Tools = {
    io,
    planOf: (inner) => planOf(inner, io),
    execute: (plan) => execute(plan, io, progressOn(io)),
    run: (it) => task = it,
  };
  try {
    const line = args.length === 0 ? ["ground"] : args;
    const commands = [
      ...measuring.map((make) =>
        make((draft) => task = () => runPlan({ ...draft, arguments: withoutFiles(line) }, io))
      ),
      ...using.map((make) => make(tools)),
    ];
    expectCommand(line[0], commands);
    programOf(io, commands).parse(line, { from: "user" });
    return await task?.() ?? 0;
  } catch (error) {
    if (error instanceof CommanderError) return error.exitCode === 0 ? 0 : 2;
    if (error instanceof UsageError || error instanceof FlashtapeError) {
      io.err(`error: ${error.message}\n`);
      return 2;
    }
    throw error;
  }
}
