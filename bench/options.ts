/** Flags: how they are read, what each allows, and those that every command shares. */
import { Command, type Help, InvalidArgumentError, Option } from "npm:@commander-js/extra-typings@15.1.0";

/** Reads a whole number. */
export function whole(min: number, max: number): (text: string) => number {
  return (text) => {
    const value = Number(text);
    if (text.trim() === "" || !Number.isInteger(value) || value < min || value > max) {
      throw new InvalidArgumentError(`Allowed: whole numbers from ${min} to ${max}.`);
    }
    return value;
  };
}

/** Reads a number above `min` and at most `max`. */
export function above(min: number, max: number): (text: string) => number {
  return (text) => {
    const value = Number(text);
    if (text.trim() === "" || !(value > min && value <= max)) {
      throw new InvalidArgumentError(`Allowed: numbers above ${min} and at most ${max}.`);
    }
    return value;
  };
}

/** Reads a number from `min` to `max`. */
export function within(min: number, max: number): (text: string) => number {
  return (text) => {
    const value = Number(text);
    if (text.trim() === "" || !(value >= min && value <= max)) {
      throw new InvalidArgumentError(`Allowed: numbers from ${min} to ${max}.`);
    }
    return value;
  };
}

/** Reads where a file or a folder is. */
export function path(text: string): string {
  if (text === "") throw new InvalidArgumentError("Allowed: a path.");
  return text;
}

/** Reads the keys that a query sees on its left and right: `256`, `256:0`, `-1:0`. */
export function windowOf(text: string): [left: number, right: number] {
  const sides = text.split(":").map(Number);
  if (!/^-?\d+(:-?\d+)?$/.test(text) || sides.some((side) => side < -1)) {
    throw new InvalidArgumentError("Allowed: LEFT or LEFT:RIGHT, each a number of keys or -1 for all, such as 256:0.");
  }
  const [left, right = left] = sides;
  return [left, right];
}

/** Reads names between commas. */
export function listOf<const Name extends string>(names: readonly Name[]): (text: string) => Name[] {
  return (text) => {
    const found = text.split(","), known = (name: string): name is Name => (names as readonly string[]).includes(name);
    if (!found.every(known)) throw new InvalidArgumentError(`Allowed: ${names.join(", ")}, with commas between them.`);
    return found as Name[];
  };
}

/** Reads whole numbers between commas. */
export function wholes(min: number, max: number): (text: string) => number[] {
  return (text) => text.split(",").map(whole(min, max));
}

/** Where to run. */
export const backends = ["auto", "webgpu", "cpu"] as const;
/** Where the WebGPU comes from. */
export const providers = ["deno", "dawn"] as const;
/** Whether kernels check bounds. */
export const robustnesses = ["on", "off"] as const;
/** Element types that a benchmark can ask for. */
export const dtypes = ["f32", "f16", "bf16"] as const;
/** One of {@linkcode dtypes}. */
export type BenchDType = typeof dtypes[number];

/** What every measuring command shares. */
export interface Settings {
  readonly backend: typeof backends[number];
  readonly provider: typeof providers[number];
  readonly robustness: typeof robustnesses[number];
  /** Where `tune` keeps tiles: a folder, or false for nowhere; the user's own when not given. */
  readonly cache?: string | boolean;
  readonly warmup: number;
  /** Milliseconds of calls before the timed ones. */
  readonly ramp: number;
  readonly repeats: number;
  readonly seed: number;
  /** Seconds that one figure may take. */
  readonly budget: number;
  /** GiB that a configuration may need. */
  readonly memoryLimit?: number;
  readonly csv?: string;
  readonly json?: string;
}

const measuring = "Measuring:";

/** The flags of measuring come after those of the command itself. */
export const help: Partial<Help> = {
  groupItems<T extends Command | Option>(unsorted: T[], visible: T[], getGroup: (item: T) => string): Map<string, T[]> {
    const groups = new Map<string, T[]>();
    for (const item of [...unsorted, ...visible]) groups.set(getGroup(item), []);
    for (const item of visible) groups.get(getGroup(item))!.push(item);
    const last = groups.get(measuring);
    if (last !== undefined && groups.delete(measuring)) groups.set(measuring, last);
    return groups;
  },
};

/** A command with a description and help, for {@linkcode measures} or on its own. */
export function command<Name extends string>(name: Name, description: string) {
  return new Command(name).description(description).helpOption("-h, --help", "this page");
}

/** What a command has otherwise than the others. */
interface Defaults {
  readonly repeats?: number;
  readonly provider?: Settings["provider"];
}

/** A command with the flags of measuring, and a heading for its own. */
export function measures<Name extends string>(name: Name, description: string, defaults: Defaults = {}) {
  return command(name, description)
    .optionsGroup(measuring)
    .addOption(new Option("--backend <name>", "where to run").choices(backends).default("auto" as const))
    .addOption(new Option("--provider <name>", "whose WebGPU").choices(providers).default(defaults.provider ?? "deno"))
    .addOption(
      new Option("--robustness <on|off>", "bounds checks in kernels; Dawn can leave them out").choices(robustnesses)
        .default("on" as const),
    )
    .option("--cache <dir>", "where tune keeps a card's tiles for Dawn (default: the user's cache folder)", path)
    .option("--no-cache", "neither use such tiles nor keep them")
    .option("--warmup <n>", "calls that are not counted, after the one that compiles", whole(0, 1000), 3)
    .option(
      "--ramp <ms>",
      "milliseconds of calls before the timed ones, for the card's clock to rise",
      whole(0, 60_000),
      200,
    )
    .option("--repeats <n>", "calls that are timed, at most", whole(1, 10_000), defaults.repeats ?? 30)
    .option("--seed <n>", "of the random inputs", whole(0, 2 ** 32 - 1), 0)
    .option("--budget <s>", "seconds that one figure may take", above(0, 3600), 10)
    .option("--memory-limit <GiB>", "leave out what would need more", above(0, 1e6))
    .option("--csv <file>", "write the rows as CSV", path)
    .option("--json <file>", "write the results as JSON", path)
    .optionsGroup("What to measure:");
}
