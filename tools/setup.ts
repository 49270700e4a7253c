/**
 * Makes sure that WebGPU has an adapter, then runs a command in a fresh process:
 *
 *     setup.ts [--require-gpu] [--no-setup] [COMMAND …]
 *
 *   adapter found ──────────────────────────────▶ run COMMAND
 *   none, Debian-like and root ──▶ apt-get ─────▶ run COMMAND
 *   none otherwise ──▶ --require-gpu: say what would help, exit 1
 *                  └▶ else: say that the CPU takes over, run COMMAND
 *
 * `--no-setup` may stand anywhere, so `deno task demo --no-setup` works; it is not passed on. A program that is told
 * `--provider dawn` may load native modules, as Dawn is one; others may not.
 */
import process from "node:process";
import { fileURLToPath } from "node:url";

const packages = ["mesa-vulkan-drivers", "libvulkan1"];

/** What the set-up asks of the machine that it runs on; tests bring their own. */
export type Host = {
  os: string;
  /** The name of the first adapter, asked of a new process: `navigator.gpu` remembers what it saw first. */
  findAdapter(): Promise<string | null>;
  isRoot(): boolean;
  /** Whether this is Debian or one of its children, with apt-get. */
  isDebian(): Promise<boolean>;
  /** Runs apt-get to its end. */
  aptGet(args: string[]): Promise<{ ok: boolean; output: string }>;
  say(line: string): void;
};

export type Options = { requireGpu: boolean; noSetup: boolean; command: string[] };

/** Splits the arguments: our own flags before the command, `--no-setup` from wherever it stands. */
export function parseArguments(args: string[]): Options {
  const rest = args.filter((argument) => argument !== "--no-setup");
  const requireGpu = rest[0] === "--require-gpu", command = requireGpu ? rest.slice(1) : rest;
  const dawn = command.some((x, i) => x === "--provider=dawn" || (x === "dawn" && command[i - 1] === "--provider"));
  if (dawn && command[0] === "deno" && command[1] === "run") command.splice(2, 0, "--allow-ffi");
  return { requireGpu, noSetup: rest.length < args.length, command };
}

/** Installs a software adapter where that is needed and possible. Returns whether the command may run. */
export async function setUp(host: Host, { requireGpu, noSetup }: Options): Promise<boolean> {
  if (await host.findAdapter() !== null) return true;
  const debian = host.os === "linux" && await host.isDebian();
  if (debian && host.isRoot() && !noSetup) {
    if (await installAdapter(host)) return true;
  }
  if (!requireGpu) {
    host.say("No WebGPU adapter was found, so this runs on the CPU backend: the same results, more slowly.");
    if (debian) host.say(`For a software adapter: ${installCommand(host.isRoot())}`);
    return true;
  }
  host.say(
    "No WebGPU adapter was found, and the tests compare the GPU kernels with their references, so they need one.",
  );
  host.say(
    debian
      ? `This installs a software one:\n\n    ${installCommand(host.isRoot())}\n`
      : host.os === "linux"
      ? "Install a Vulkan driver: your GPU's, or Mesa's software driver lavapipe."
      : "Update the graphics driver, and see that this session may use the GPU.",
  );
  return false;
}

/** The one command that a person can paste. */
function installCommand(root: boolean): string {
  const [update, install] = ["apt-get update", `apt-get install -y --no-install-recommends ${packages.join(" ")}`];
  return root ? `${update} && ${install}` : `sudo ${update} && sudo ${install}`;
}

async function installAdapter(host: Host): Promise<boolean> {
  host.say("WebGPU found no adapter on this machine.");
  host.say(`Installing Mesa's software Vulkan driver from this machine's own apt sources: ${packages.join(", ")}.`);
  host.say("It lets WebGPU kernels run on the CPU. Nothing else is changed; --no-setup leaves the machine as it is.");
  const wait = ["-o", "DPkg::Lock::Timeout=120"];
  const steps = [
    { name: "reading the package lists", args: [...wait, "update"] },
    { name: "installing", args: [...wait, "install", "-y", "--no-install-recommends", ...packages] },
  ];
  let outputs = "";
  for (const { name, args } of steps) {
    host.say(`  ${name} …`);
    const { ok, output } = await host.aptGet(args);
    if (ok) continue;
    outputs += `\n${output.trimEnd()}`;
    // A stale or unreachable list need not stop the installation, which has the last word.
    if (args.includes("update")) continue;
    host.say(`apt-get could not install them:${outputs}`);
    return false;
  }
  const adapter = await host.findAdapter();
  host.say(adapter === null ? "Installed, and WebGPU still finds no adapter." : `Ready: ${adapter}`);
  return adapter !== null;
}

/** Environment for every process that touches the GPU. */
function gpuEnvironment(): Record<string, string> {
  if (Deno.build.os !== "linux") return {};
  // The Vulkan loader prints an error when XDG_RUNTIME_DIR is unset. OpenGL is left out because the kernels are
  // not tested on it.
  return {
    XDG_RUNTIME_DIR: Deno.env.get("XDG_RUNTIME_DIR") ?? "/tmp",
    DENO_WEBGPU_BACKEND: Deno.env.get("DENO_WEBGPU_BACKEND") ?? "vulkan",
  };
}

/** The machine itself. */
export const thisMachine: Host = {
  os: Deno.build.os,
  async findAdapter() {
    const probe = fileURLToPath(new URL("./probe.ts", import.meta.url));
    const { success, stdout } = await new Deno.Command(Deno.execPath(), {
      args: ["run", "--quiet", "--no-lock", "--no-prompt", probe],
      env: gpuEnvironment(),
      stderr: "null",
    }).output();
    const name = new TextDecoder().decode(stdout).trim();
    return success && name !== "" ? name : null;
  },
  isRoot: () => Deno.uid() === 0,
  async isDebian() {
    try {
      await Deno.stat("/etc/debian_version");
      return (await new Deno.Command("apt-get", { args: ["--version"], stdout: "null", stderr: "null" }).output())
        .success;
    } catch (error) {
      if (error instanceof Deno.errors.NotFound) return false;
      throw error;
    }
  },
  async aptGet(args) {
    const { success, stdout, stderr } = await new Deno.Command("apt-get", {
      args,
      env: { DEBIAN_FRONTEND: "noninteractive" },
      stdin: "null",
    }).output();
    const text = new TextDecoder();
    return { ok: success, output: text.decode(stdout) + text.decode(stderr) };
  },
  say: (line) => console.error(line),
};

/** Runs the command with our terminal, hands signals on, and returns its exit code. */
export async function runCommand([program, ...args]: string[]): Promise<number> {
  const child = new Deno.Command(program === "deno" ? Deno.execPath() : program, {
    args,
    env: gpuEnvironment(),
    stdin: "inherit",
    stdout: "inherit",
    stderr: "inherit",
  }).spawn();
  const signals: Deno.Signal[] = Deno.build.os === "windows" ? ["SIGINT"] : ["SIGINT", "SIGTERM"];
  for (const signal of signals) {
    Deno.addSignalListener(signal, () => {
      // On Windows the console has told the child already.
      if (Deno.build.os !== "windows") child.kill(signal);
    });
  }
  return (await child.status).code;
}

if (import.meta.main) {
  const options = parseArguments(Deno.args);
  if (!await setUp(thisMachine, options)) process.exit(1);
  process.exit(options.command.length > 0 ? await runCommand(options.command) : 0);
}
