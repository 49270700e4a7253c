/**
 * llama-a's answers were computed in f64 by a model that had been cast to bf16 whole, its rotary frequencies too. A model
 * that is loaded has them exact, in transformers as here, and its logits then differ from those answers by 9.7e-4 whatever
 * the arithmetic; with `rotaryDtype: "bf16"` it is that model.
 */
import assert from "node:assert/strict";
import { valueAndGrad } from "../../autograd/grad.ts";
import { webgpu } from "../../mod.ts";
import { setBackend } from "../../tensor/backend.ts";
import { cpu } from "../../tensor/cpu.ts";
import { dispose } from "../../tensor/scope.ts";
import type { Tensor } from "../../tensor/tensor.ts";
import { needAdapter } from "../../testing/laws/adapter.ts";
import { adamw, clipGradNorm, generate, safetensors } from "../mod.ts";
import { forward, load, type LoadedLlama, type LoadOptions, loss } from "./mod.ts";

const gpu = await needAdapter(webgpu());
const folder = new URL("../fixtures/llama-a/", import.meta.url);

/** The largest distance where the fixture has a number: rows that were padded are NaN in it. */
function distance(a: ArrayLike<number>, b: ArrayLike<number>): number {
  assert.equal(a.length, b.length);
  let worst = 0, compared = 0;
  for (let i = 0; i < a.length; i++) {
    if (Number.isNaN(b[i])) continue;
    worst = Math.max(worst, Math.abs(a[i] - b[i]));
    compared++;
  }
  assert(compared > 0 && !Number.isNaN(worst));
  return worst;
}

type Expected = Record<string, Tensor>;

async function logitsOf({ params, config }: LoadedLlama, expected: Expected): Promise<ArrayLike<number>> {
  const { logits } = forward(params, config, expected.input_ids, { attentionMask: expected.attention_mask });
  return await logits.data();
}

/** How far loss and gradients are from the fixture's. */
async function training({ params, config }: LoadedLlama, expected: Expected): Promise<{ loss: number; grads: number }> {
  const f = (p: Record<string, Tensor>) => loss(p, config, expected.train_ids, expected.train_labels);
  const [value, grads] = valueAndGrad(f)(params);
  let worst = 0;
  for (const [name, given] of Object.entries(expected)) {
    if (!name.startsWith("grad.")) continue;
    worst = Math.max(worst, distance(await grads[name.slice("grad.".length)].data(), await given.data()));
  }
  return { loss: Math.abs(await value.item() - await expected.loss.item()), grads: worst };
}

/** The reference: the same forward pass in f64. */
const exact64 = await load(folder, { backend: cpu(), dtype: "f64" });
const padded = await safetensors.read(new URL("expected.safetensors", folder), { backend: cpu() });
const given = await padded.logits.data();
const reference = Array.from(await logitsOf(exact64, padded), (x, i) => Number.isNaN(given[i]) ? NaN : x);

for (const backend of [cpu(), gpu]) {
  const test = (name: string, f: (expected: Expected) => Promise<void>) =>
    Deno.test(`${name}, on ${backend.name}`, async () => {
      setBackend(backend);
      try {
        await f(await safetensors.read(new URL("expected.safetensors", folder)));
      } finally {
        setBackend(cpu());
      }
    });
  const llamaA = (options: LoadOptions) => load(folder, { dtype: "f32", ...options });

  test("llama-a as it is loaded: f64's logits, the fixture's loss, gradients and tokens", async (expected) => {
    const model = await llamaA({});
    const logits = await logitsOf(model, expected);
    assert(distance(logits, reference) < 1e-5, `${distance(logits, reference)}`);
    const fromFixture = distance(logits, await expected.logits.data());
    assert(fromFixture > 9.6e-4 && fromFixture < 9.8e-4, `the rounded frequencies show: ${fromFixture}`);
    const { loss, grads } = await training(model, expected);
    assert(loss < 1e-5, `${loss}`);
    assert(grads < 1.03e-4, `${grads}`); // 1.02e-4 of it are the frequencies
    const row = (await expected.generated.data()).slice(0, 41); // the padded rows continue NaN there
    const tokens: number[] = [];
    const options = { inputIds: Array.from(row.slice(0, 17)), temperature: 0, maxNewTokens: 24 };
    for await (const step of generate(model, options)) tokens.push(step.tokens[0]);
    assert.deepEqual(tokens, Array.from(row.slice(17)));
  });

  test("llama-a with rotaryDtype bf16: the fixture's logits, loss and gradients", async (expected) => {
    const model = await llamaA({ rotaryDtype: "bf16" });
    const off = distance(await logitsOf(model, expected), await expected.logits.data());
    assert(off < 5e-6, `${off}`);
    const { loss, grads } = await training(model, expected);
    assert(loss < 1e-5 && grads < 2e-6, `loss off by ${loss}, gradients by ${grads}`);
  });

  test("llama-a trains along the fixture's losses, which were computed with exact frequencies", async (expected) => {
    const optimizer = adamw({ learningRate: 1e-3, betas: [0.9, 0.95], weightDecay: 0.1 });
    const { config, ...model } = await llamaA({});
    let { params }: { params: Record<string, Tensor> } = model, state = optimizer.init(params);
    for (const want of await expected.adamw_losses.data()) {
      const f = (p: typeof params) => loss(p, config, expected.train_ids, expected.train_labels);
      const [value, grads] = valueAndGrad(f)(params);
      ({ params, state } = optimizer.update(params, clipGradNorm(grads, 1).grads, state));
      assert(Math.abs(await value.item() - want) < 5e-6, `${await value.item()} for ${want}`);
    }
    dispose([params, state.m, state.v]);
  });
}
