/**
 * A thousand training steps of a small Llama in a plain loop, without one `dispose`: does memory stay flat?
 *
 *     deno task bench soak [steps]
 */
import { init, key, memory, tensor, valueAndGrad } from "@flashtape/flashtape";
import { adamw, clipGradNorm, llama } from "@flashtape/flashtape/nn";

const steps = Number(Deno.args[0] ?? 1000);
if (!Number.isSafeInteger(steps) || steps < 20) {
  console.error(`error: steps is "${Deno.args[0]}". Allowed: whole numbers from 20.`);
  Deno.exit(2);
}
const backend = await init();
console.log(`${backend.description}\n\n  step       loss   current bytes    peak bytes   process MB`);

const config = {
  ...{ vocab_size: 256, hidden_size: 64, intermediate_size: 128, num_hidden_layers: 2 },
  ...{ num_attention_heads: 4, num_key_value_heads: 2, tie_word_embeddings: true },
};
const text = new TextEncoder().encode("Call me Ishmael. Some years ago, never mind how long precisely. ".repeat(8));
const ids = tensor(new Int32Array(text.slice(0, 256)), { shape: [2, 128] });
const optimizer = adamw({ learningRate: 1e-3 });
let params = llama.init(key(0), config);
let state = optimizer.init(params);
const lossOf = valueAndGrad((p: typeof params) => llama.loss(p, config, ids, ids));
const seen: { current: number; rss: number }[] = [];
for (let step = 1; step <= steps; step++) {
  const [loss, grads] = lossOf(params);
  ({ params, state } = optimizer.update(params, clipGradNorm(grads, 1).grads, state));
  const value = await loss.item();
  if (step % Math.ceil(steps / 10) !== 0) continue;
  const { current, peak } = memory(), { rss } = Deno.memoryUsage();
  seen.push({ current, rss });
  const columns = [String(step).padStart(6), value.toFixed(4).padStart(11), String(current).padStart(16)];
  console.log([...columns, String(peak).padStart(14), (rss / 1e6).toFixed(1).padStart(13)].join(""));
}
const [first, last] = [seen[0], seen.at(-1)!];
console.log(`\nfrom a tenth of the way to the end: ${last.current - first.current} bytes of tensors, \
${((last.rss - first.rss) / 1e6).toFixed(1)} MB of process memory`);
backend.dispose();
