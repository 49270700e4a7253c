/**
 * Runs Deno with a software adapter that has matrix units, so that subgroup-matrix kernels are tested on any Debian:
 *
 *     software_tensor_cores.ts [--root DIR] DENO-ARGUMENTS …
 *
 * Mesa 26's lavapipe offers cooperative matrices to Dawn: f16 · f16 → f16 and f32, 8x8x8, subgroups of 8. Debian's
 * unstable release has it. Its packages (66 MB) are unpacked into DIR beside the system, nothing is installed, and no root
 * is needed: the release's own dynamic loader starts Deno with the release's libraries.
 *
 *   apt-get update, --download-only (lists and state in DIR) ──▶ dpkg-deb -x ──▶ ld-linux --library-path DIR/… deno …
 *
 * Where that cannot be had (no Debian, no network), the exit code is 77 and the last line says why.
 */
import process from "node:process";

/** The exit code of a program that could not try. */
export const cannotTry = 77;

/** Processors by Debian's names, with where their libraries lie and what their loader is called. */
const machines: Readonly<Record<string, { libraries: string; loader: string }>> = {
  amd64: { libraries: "usr/lib/x86_64-linux-gnu", loader: "ld-linux-x86-64.so.2" },
  arm64: { libraries: "usr/lib/aarch64-linux-gnu", loader: "ld-linux-aarch64.so.1" },
};

/** How often a process that was ended by a signal is started anew, and after how many milliseconds it is ended. */
const attempts = 3, limit = 240_000;

const packages = ["mesa-vulkan-drivers", "libvulkan1", "libstdc++6"];

/** Runs a program to its end. */
export type Run = (program: string, args: readonly string[]) => Promise<{ ok: boolean; output: string }>;

/** What was unpacked: how to start Deno in it. */
export interface Root {
  readonly loader: string;
  readonly libraries: string;
  readonly driver: string;
}

/** The URI of the machine's Debian mirror, from its apt sources of either format. */
export function mirrorOf(sources: string): string {
  const uri = sources.match(/^(?:URIs:|deb(?: \[[^\]]*\])?) *(https?:\/\/\S+)/m)?.[1];
  return uri === undefined || uri.includes("security") ? "http://deb.debian.org/debian" : uri;
}

/** Options by which apt-get keeps lists, state and archives to a folder, and knows unstable alone. */
export function aptOptions(state: string): string[] {
  const options = {
    "Dir::State": state,
    "Dir::State::Lists": `${state}/lists`,
    "Dir::State::status": `${state}/status`,
    "Dir::Cache": `${state}/cache`,
    "Dir::Etc::sourcelist": `${state}/sources.list`,
    "Dir::Etc::sourceparts": "/dev/null",
    "APT::Sandbox::User": "",
    "APT::Install-Recommends": "false",
    "Acquire::Languages": "none",
    "Acquire::Retries": "2",
    "Acquire::Check-Valid-Until": "false", // a mirror may lag behind unstable; what it has is signed all the same
    "Debug::NoLocking": "1",
  };
  return ["-qq", "-y", ...Object.entries(options).flatMap(([name, value]) => ["-o", `${name}=${value}`])];
}

/**
 * Unpacks the release into a folder, unless that was done before.
 * @throws {Error} saying which step failed, with what it printed
 */
export async function build(root: string, run: Run): Promise<Root> {
  const checked = async (program: string, args: readonly string[]) => {
    const { ok, output } = await run(program, args);
    if (!ok) throw new Error(`${program} ${args.at(-1)} failed: ${output.trim() || "it printed nothing"}`);
    return output;
  };
  const machine = machines[(await checked("dpkg", ["--print-architecture"])).trim()];
  if (machine === undefined) throw new Error(`only ${Object.keys(machines).join(" and ")} are known`);
  const libraries = `${root}/${machine.libraries}`;
  const made = {
    loader: `${libraries}/${machine.loader}`,
    libraries,
    driver: `${root}/usr/share/vulkan/icd.d/lvp_icd.json`,
  };
  const ready = `${root}/.ready`;
  if (await exists(ready)) return made;
  const state = `${root}/.apt`, archives = `${state}/cache/archives`;
  for (const folder of [`${state}/lists/partial`, `${archives}/partial`]) await Deno.mkdir(folder, { recursive: true });
  const key = "/usr/share/keyrings/debian-archive-keyring.gpg";
  const sources = await Promise.all(["/etc/apt/sources.list.d/debian.sources", "/etc/apt/sources.list"].map(read));
  await Deno.writeTextFile(
    `${state}/sources.list`,
    `deb [signed-by=${key}] ${mirrorOf(sources.join("\n"))} sid main\n`,
  );
  await Deno.writeTextFile(`${state}/status`, "");
  const options = aptOptions(state);
  await checked("apt-get", [...options, "update"]);
  await checked("apt-get", [...options, "--download-only", "install", ...packages]);
  for await (const { name } of Deno.readDir(archives)) {
    if (name.endsWith(".deb")) await checked("dpkg-deb", ["-x", `${archives}/${name}`, root]);
  }
  await Deno.remove(state, { recursive: true });
  await Deno.writeTextFile(ready, "");
  return made;
}

const read = (path: string): Promise<string> => Deno.readTextFile(path).catch(() => "");

const exists = (path: string): Promise<boolean> => Deno.stat(path).then(() => true, () => false);

const onThisMachine: Run = async (program, args) => {
  try {
    const { success, stdout, stderr } = await new Deno.Command(program, { args: [...args], stdin: "null" }).output();
    const text = new TextDecoder();
    return { ok: success, output: text.decode(stdout) + text.decode(stderr) };
  } catch (error) {
    return { ok: false, output: error instanceof Error ? error.message : String(error) };
  }
};

if (import.meta.main) {
  const own = Deno.args[0] === "--root";
  const root = own ? Deno.args[1] : "/tmp/flashtape-software-tensor-cores";
  let made: Root;
  try {
    made = await build(root, onThisMachine);
  } catch (error) {
    console.log(`No software tensor cores: ${error instanceof Error ? error.message : error}`);
    process.exit(cannotTry);
  }
  for (let attempt = 1;; attempt++) {
    const child = new Deno.Command(made.loader, {
      args: ["--library-path", made.libraries, Deno.execPath(), ...Deno.args.slice(own ? 2 : 0)],
      env: {
        VK_DRIVER_FILES: made.driver,
        XDG_RUNTIME_DIR: Deno.env.get("XDG_RUNTIME_DIR") ?? "/tmp",
        MESA_SHADER_CACHE_DISABLE: "true", // processes that share it wait for one another
      },
    }).spawn();
    const timer = setTimeout(() => child.kill("SIGKILL"), limit);
    const { code, signal } = await child.status;
    clearTimeout(timer);
    if (signal === null || attempt === attempts) process.exit(code);
    console.log(
      `Deno ended by ${signal}: Dawn's module dies or hangs inside it now and then. Attempt ${
        attempt + 1
      } of ${attempts}.`,
    );
  }
}
