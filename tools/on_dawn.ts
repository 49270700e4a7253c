/**
 * For `deno test --preload tools/on_dawn.ts …`: the tests run on Dawn instead of the runtime's own WebGPU, matrix units
 * included where the adapter has them, robustness on.
 */
import { dawn } from "@flashtape/flashtape/dawn";

// A file of tests ends, the process goes on to the next: `dawn()` must not end it.
globalThis.addEventListener("unload", (event) => event.stopImmediatePropagation());
Object.defineProperty(navigator, "gpu", { value: dawn(), configurable: true });
