/** `deno task bench`: measures this machine and keeps the result as JSON. */
import { init } from "@flashtape/flashtape";
import { mkdirSync, writeFileSync } from "node:fs";
import { cpus } from "node:os";
import { parseArgs } from "node:util";
import { ground } from "./ground.ts";

const usage = `Usage: deno task bench [--backend auto|webgpu|cpu] [--scale N] [--save FILE]

  --backend   where to run; auto takes WebGPU where there is an adapter
  --scale     shrinks the large cases, 0 < N ≤ 1: full size needs 4 GiB on the device (default 1)
  --save      the JSON file; by default bench/results/ground-<adapter>.json`;

/** Ends with a message as a mistake of the caller's. */
function refuse(message: string): never {
  console.error(`${message}\n\n${usage}`);
  Deno.exit(2);
}

function readArguments() {
  try {
    return parseArgs({
      options: {
        backend: { type: "string", default: "auto" },
        scale: { type: "string", default: "1" },
        save: { type: "string" },
        help: { type: "boolean", default: false },
      },
    }).values;
  } catch (error) {
    refuse((error as Error).message);
  }
}

const { backend: wanted, scale: text, save, help } = readArguments();
if (help) {
  console.log(usage);
  Deno.exit(0);
}
if (wanted !== "auto" && wanted !== "webgpu" && wanted !== "cpu") {
  refuse(`--backend is auto, webgpu or cpu, got ${wanted}`);
}
const scale = Number(text);
if (!(scale > 0 && scale <= 1)) refuse(`--scale is above 0 and at most 1, got ${text}`);

const backend = await init({ backend: wanted });
const machine = `${cpus().length} × ${cpus()[0]?.model ?? "unknown processor"}, Deno ${Deno.version.deno}`;
console.log(`machine  ${machine}\nadapter  ${backend.description}\n`);
console.log(`${"case".padEnd(58)}${"median ms".padStart(11)}${"rate".padStart(16)}`);
const figures = await ground(backend, {
  scale,
  report: ({ name, median, rate, unit }) =>
    console.log(`${name.padEnd(58)}${median.toFixed(3).padStart(11)}${`${rate.toFixed(2)} ${unit}`.padStart(16)}`),
});
const slug = backend.description.toLowerCase().replace(/[^a-z0-9]+/g, "-").replace(/^-|-$/g, "");
const file = save ?? `bench/results/ground-${slug}.json`;
mkdirSync(file.replace(/[^/]*$/, "") || ".", { recursive: true });
const result = { date: new Date().toISOString(), machine, adapter: backend.description, scale, figures };
writeFileSync(file, JSON.stringify(result, null, 2) + "\n");
console.log(`\nkept in ${file}`);
backend.dispose();
