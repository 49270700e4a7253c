import assert from "node:assert/strict";
import { valueAndGrad } from "../../autograd/grad.ts";
import { webgpu } from "../../mod.ts";
import { setBackend } from "../../tensor/backend.ts";
import { compile } from "../../tensor/compile.ts";
import { tensor } from "../../tensor/create.ts";
import { foldIn, key, randint } from "../../tensor/random.ts";
import { dispose, scope } from "../../tensor/scope.ts";
import type { Tensor } from "../../tensor/tensor.ts";
import { leaves } from "../../tensor/tree.ts";
import { needAdapter } from "../../testing/laws/adapter.ts";
import { adamw, type AdamwState } from "../adamw.ts";
import { clipGradNorm } from "../optimizer.ts";
import { cosineSchedule } from "../schedule.ts";
import { init, loss } from "./model.ts";

const gpu = await needAdapter(webgpu());
setBackend(gpu);

/** The width and depth of a model that a GPU finishes sooner than its ops can be issued one by one. */
const config = {
  vocab_size: 64,
  hidden_size: 256,
  intermediate_size: 512,
  num_hidden_layers: 4,
  num_attention_heads: 4,
  num_key_value_heads: 2,
  tie_word_embeddings: true,
};
const optimizer = adamw({
  learningRate: cosineSchedule({ learningRate: 3e-3, warmupSteps: 2, totalSteps: 20 }),
  decays: (_, x) => x.rank > 1,
});

interface Training {
  readonly params: Record<string, Tensor>;
  readonly state: AdamwState;
}

function step({ params, state }: Training, keys: Tensor, count: Tensor): Training & { loss: Tensor; norm: Tensor } {
  const ids = randint(foldIn(keys, count), [2, 16], { max: 64 });
  const [value, gradients] = valueAndGrad((p: Record<string, Tensor>) => loss(p, config, ids, ids))(params);
  const { grads, norm } = clipGradNorm(gradients, 1);
  return { loss: value, norm, ...optimizer.update(params, grads, state) };
}

const start = (): Training => {
  const params = init(key(1), config);
  return { params, state: optimizer.init(params) };
};

/** Losses and norms of some steps, and the parameters after them, to the bit. */
async function train(one: typeof step, steps: number): Promise<Uint8Array[]> {
  let now = start();
  const keys = key(2), seen: Tensor[] = [];
  for (let i = 0; i < steps; i++) {
    const count = tensor(i, { dtype: "u32" });
    const { loss, norm, ...next } = scope(() => one(now, keys, count));
    seen.push(loss, norm);
    now = next;
    count.dispose();
  }
  const bits = await Promise.all([...seen, ...leaves(now.params)].map((x) => x.bytes()));
  dispose([now.params, now.state.m, now.state.v, now.state.step, seen, keys]);
  return bits;
}

Deno.test("a compiled training step of a Llama gives the plain trajectory to the bit", async () => {
  using compiled = compile(step);
  assert.deepEqual(await train(compiled, 5), await train(step, 5));
});

Deno.test("a compiled training step makes no buffer, binds nothing anew, and holds no more memory", async () => {
  const gpu = await webgpu(); // a pool of its own, into which no other test's tensors come back
  setBackend(gpu);
  using compiled = compile(step);
  const keys = key(2), counts = [0, 1].map((i) => tensor(i, { dtype: "u32" }));
  let now = start();
  const run = async (steps: number) => {
    for (let i = 0; i < steps; i++) {
      const { loss, norm, ...next } = compiled(now, keys, counts[i % 2]);
      now = next;
      dispose([loss, norm]);
    }
    await gpu.synchronize();
  };
  await run(6);
  const { current } = gpu.memory();
  const { createBuffer, createBindGroup } = GPUDevice.prototype;
  const refuse = (what: string) => (): never => assert.fail(`made a ${what}`);
  Object.assign(GPUDevice.prototype, { createBuffer: refuse("buffer"), createBindGroup: refuse("bind group") });
  try {
    await run(4);
  } finally {
    Object.assign(GPUDevice.prototype, { createBuffer, createBindGroup });
  }
  assert.equal(gpu.memory().current, current);
  dispose([now.params, now.state.m, now.state.v, now.state.step, keys, counts]);
  gpu.dispose();
});
