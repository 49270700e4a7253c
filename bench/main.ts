/** `deno task bench`: measures this machine. */
import process from "node:process";
import { main } from "./bench.ts";
import { closeBackends } from "./machine.ts";

const encoder = new TextEncoder();
const write = (to: { writeSync(bytes: Uint8Array): number }) => (text: string) => {
  const bytes = encoder.encode(text);
  for (let at = 0; at < bytes.length;) at += to.writeSync(bytes.subarray(at));
};

const code = await main(Deno.args, {
  out: write(Deno.stdout),
  err: write(Deno.stderr),
  live: process.stderr.isTTY === true,
});
await closeBackends();
Deno.exit(code);
