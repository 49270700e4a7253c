/** The worker behind each panel: a backend of its own, and the panel's jobs, one after another. */
import { type Backend, dispose, FlashtapeError, getBackend, init, matmul, tensor } from "@flashtape/flashtape";
import { ChatRun } from "./chat.ts";
import type { Choice, Opened, Reply, Request } from "./protocol.ts";
import { difference, sizesFor, sweep } from "./sweep.ts";
import { type Book, TrainingRun } from "./training.ts";

const reply = (message: Reply): void => postMessage(message);

/** The device under the backend, the last that was opened: to hear when it is lost. */
let device: GPUDevice | null = null;

/** The runtime's WebGPU, with a preference of ours, and told to show us the device. */
function watched(gpu: GPU, powerPreference: GPUPowerPreference): GPU {
  const requestAdapter = async (options?: GPURequestAdapterOptions): Promise<GPUAdapter | null> => {
    const adapter = await gpu.requestAdapter({ ...options, powerPreference });
    if (adapter === null) return null;
    const requestDevice = async (descriptor?: GPUDeviceDescriptor): Promise<GPUDevice> => {
      const opened = await adapter.requestDevice(descriptor);
      return device = opened;
    };
    return { info: adapter.info, limits: adapter.limits, features: adapter.features, requestDevice } as GPUAdapter;
  };
  return { requestAdapter } as GPU;
}

async function open(choice: Choice): Promise<Opened> {
  const begin = performance.now();
  let backend: Backend, why: string | undefined;
  const gpu = (navigator as Partial<Navigator>).gpu;
  if (choice === "cpu" || gpu === undefined) {
    if (choice !== "cpu") {
      why = isSecureContext
        ? "This browser has no WebGPU."
        : "WebGPU is there only for pages that come over https or from localhost.";
    }
    backend = await init({ backend: "cpu" });
  } else {
    backend = await init({ gpu: watched(gpu, choice === "frugal" ? "low-power" : "high-performance") });
    if (backend.name === "cpu") why = "This browser has WebGPU, and found no adapter for it.";
  }
  device?.lost.then(({ reason, message }) => reply({ kind: "lost", message: message || `the device was ${reason}` }));
  const openMs = performance.now() - begin;
  const x = tensor([[1, 2], [3, 4]]), y = matmul(x, x);
  await y.data();
  dispose([x, y]);
  const { name, description, capabilities } = backend;
  return { name, description, capabilities, openMs, firstMs: performance.now() - begin, why };
}

let book: Promise<Book> | null = null;

function readBook(): Promise<Book> {
  const read = async (name: string) => {
    const response = await fetch(name);
    if (!response.ok) throw new Error(`${name}: the server answered ${response.status}`);
    return new Uint8Array(await response.arrayBuffer());
  };
  return book ??= Promise.all([read("moby-dick.txt"), read("held-out.txt")]).then(([train, heldOut]) => ({
    train,
    heldOut,
  }));
}

let training: TrainingRun | null = null;
let chat: ChatRun | null = null;

/** Streams bytes as text, whole characters at a time. */
async function type(bytes: AsyncIterable<number>): Promise<void> {
  const decoder = new TextDecoder();
  for await (const byte of bytes) {
    reply({ kind: "text", text: decoder.decode(new Uint8Array([byte]), { stream: true }) });
  }
  reply({ kind: "text", text: decoder.decode() });
}

const jobs: { readonly [K in Request["kind"]]: (request: Extract<Request, { kind: K }>) => unknown } = {
  async open({ choice }) {
    reply({ kind: "opened", device: await open(choice) });
  },
  async sweep({ options, lengths }) {
    const sizes = { ...sizesFor(getBackend()), ...(lengths && { lengths }) };
    reply({ kind: "sizes", ...sizes });
    const length = sizes.lengths[0];
    reply({
      kind: "agreed",
      length,
      difference: await difference(length, sizes.heads, sizes.headSize, options.causal),
    });
    for await (const point of sweep({ ...options, ...sizes })) reply({ kind: "point", point });
    reply({ kind: "done" });
  },
  async train({ size, steps, seed }) {
    training?.[Symbol.dispose]();
    training = new TrainingRun(await readBook(), size, steps, seed, {
      progress: (points, tokensPerSecond) => reply({ kind: "progress", points, tokensPerSecond }),
      heldOut: (step, bits) => reply({ kind: "heldOut", step, bits }),
    });
    reply({ kind: "training", info: training.info });
    await training.run();
    reply({ kind: "done" });
  },
  async pause() {
    await training?.pause();
    reply({ kind: "paused" });
  },
  resume() {
    training?.resume();
    reply({ kind: "resumed" });
  },
  stop() {
    training?.stop();
    chat?.stop();
  },
  async write({ prompt, length, seed }) {
    if (training === null) throw new Error("there is no model yet: start training first");
    await type(training.write(prompt, length, seed));
    reply({ kind: "done" });
  },
  async load({ files }) {
    chat?.[Symbol.dispose]();
    chat = await ChatRun.load(files, (what) => reply({ kind: "loading", what }));
    reply({ kind: "model", summary: chat.summary, chat: chat.talks });
  },
  async say({ text, options }) {
    if (chat === null) throw new Error("there is no model yet: open one first");
    const begin = performance.now();
    let tokens = 0;
    for await (const piece of chat.say(text, options)) {
      tokens++;
      reply({ kind: "text", text: piece });
    }
    reply({ kind: "said", tokens, ms: performance.now() - begin });
  },
  forget() {
    chat?.forget();
  },
  lose() {
    device?.destroy();
  },
};

addEventListener("message", async ({ data }: MessageEvent<Request>) => {
  try {
    // Each entry takes its own kind, which the table's type says and a lookup cannot.
    await (jobs[data.kind] as (request: Request) => unknown)(data);
  } catch (error) {
    const { name, message } = error instanceof Error ? error : new Error(String(error));
    // A device that is gone says so itself, once.
    if (error instanceof FlashtapeError && error.name === "DeviceLostError") return;
    reply({ kind: "failed", error: name, message });
  }
});
