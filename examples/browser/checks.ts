/** Computations that give plain numbers, to be run in Deno and in a page: both must come near the same reference. */
import {
  add,
  cast,
  dispose,
  flashAttention,
  getBackend,
  grad,
  key,
  mul,
  naiveAttention,
  randn,
  scope,
  split,
  sum,
  type Tensor,
  tensor,
  webgpu,
} from "@flashtape/flashtape";
import { type AttentionAlgorithm, safetensors } from "@flashtape/flashtape/nn";

/** Results by name. */
export type Numbers = Readonly<Record<string, readonly number[]>>;

async function read(tensors: Readonly<Record<string, Tensor>>): Promise<Numbers> {
  const entries = Object.entries(tensors).map(async ([name, x]) => [name, [...await x.data()]] as const);
  const found = Object.fromEntries(await Promise.all(entries));
  dispose(tensors);
  return found;
}

/** Causal attention with grouped heads, forward and backward. Inputs are drawn on the backend, the same to the bit. */
export async function attention(algorithm: AttentionAlgorithm, dtype: "f32" | "f16" | "f64"): Promise<Numbers> {
  const f = algorithm === "flash" ? flashAttention : naiveAttention;
  return await read(scope(() => {
    const [q, k, v, w] = split(key(11), 4).map((each, i) => {
      const shape = [2, 37, i === 0 || i === 3 ? 4 : 2, 16];
      return cast(randn(each, shape), dtype);
    });
    const forward = (q: Tensor, k: Tensor, v: Tensor) => f(q, k, v, { causal: true });
    const out = forward(q, k, v);
    const [dq, dk, dv] = grad((q: Tensor, k: Tensor, v: Tensor) => sum(mul(forward(q, k, v), w)), [0, 1, 2])(q, k, v);
    return { out, dq, dk, dv };
  }));
}

/** f16 tensors, whether or not the device computes in f16: what is stored is read back to the bit. */
export async function halves(): Promise<Numbers> {
  const values = Array.from({ length: 4099 }, (_, i) => Math.sin(i) * 2 ** (i % 30 - 18));
  return await read(scope(() => {
    const x = tensor(values, { dtype: "f16" });
    return { stored: x, doubled: cast(cast(x, "f32"), "f16") };
  }));
}

/** What `dataSync()` does here: its numbers, or why it has none. */
export function sync(): string {
  const x = tensor([1, 2]);
  try {
    return `${getBackend().name}: ${[...x.dataSync()].join()}`;
  } catch (error) {
    return String(error);
  } finally {
    x.dispose();
  }
}

/** What a path is here: what reading and writing one say. */
export async function paths(): Promise<string[]> {
  const x = tensor([1]);
  try {
    const tries = [() => safetensors.read("nothing-of-this-name"), () => safetensors.write("/nowhere/x", { x })];
    return await Promise.all(tries.map((f) => f().then(() => "done", String)));
  } finally {
    x.dispose();
  }
}

/** What calls say when their device is lost: one that waits for it, a later read, a later op. */
export async function lost(): Promise<string[]> {
  let device: GPUDevice | undefined;
  const requestAdapter = async (options?: GPURequestAdapterOptions): Promise<GPUAdapter | null> => {
    const adapter = await navigator.gpu.requestAdapter(options);
    if (adapter === null) return null;
    const { info, limits, features } = adapter;
    const requestDevice = async (asked?: GPUDeviceDescriptor) => device = await adapter.requestDevice(asked);
    return { info, limits, features, requestDevice } as GPUAdapter;
  };
  const backend = await webgpu({ gpu: { requestAdapter } as GPU, fastReadback: false });
  const x = tensor(new Float32Array(1 << 20), { backend }), y = add(x, 1);
  await y.data();
  const waiting = mul(y, 2).data().then(() => "read", String);
  device!.destroy();
  await device!.lost;
  const later = y.data().then(() => "read", String);
  let op = "done";
  try {
    add(x, 1);
  } catch (error) {
    op = String(error);
  }
  return [await waiting, await later, op];
}
