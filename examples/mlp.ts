/** A network of two layers learns exclusive or. `deno run examples/mlp.ts` */
import { init, key, mean, split, square, sub, tanh, tensor, valueAndGrad } from "@flashtape/flashtape";
import { adamw, linear, xavierUniform } from "@flashtape/flashtape/nn";

await init();
const x = tensor([[0, 0], [0, 1], [1, 0], [1, 1]]), y = tensor([[0], [1], [1], [0]]);
const [a, b] = split(key(0));

let params = {
  hidden: { weight: xavierUniform(a, [8, 2]), bias: tensor(new Float32Array(8)) },
  out: { weight: xavierUniform(b, [1, 8]), bias: tensor([0]) },
};
const model = (p: typeof params) => linear(p.out, tanh(linear(p.hidden, x)));
const step = valueAndGrad((p: typeof params) => mean(square(sub(model(p), y))));

const optimizer = adamw({ learningRate: 0.05, weightDecay: 0 });
let state = optimizer.init(params);
for (let i = 0; i <= 200; i++) {
  const [loss, grads] = step(params);
  if (i % 50 === 0) console.log(`step ${i}: loss ${(await loss.item()).toFixed(4)}`);
  ({ params, state } = optimizer.update(params, grads, state));
}
console.log("predictions", await model(params).array());
