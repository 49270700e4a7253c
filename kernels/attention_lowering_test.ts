/** Attention's kernels against the loops in f64, on the adapter as it is and on what it can be made to look like. */
import assert from "node:assert/strict";
import { attentionBackwardOp, attentionOp } from "../tensor/attention.ts";
import { dropoutMask } from "../tensor/attention_dropout.ts";
import type { Backend, Capabilities } from "../tensor/backend.ts";
import { broadcastTo, permute, reshape, slice } from "../tensor/movement.ts";
import { runAll } from "../tensor/op.ts";
import { key } from "../tensor/random.ts";
import type { Tensor } from "../tensor/tensor.ts";
import { needAdapter } from "../testing/laws/adapter.ts";
import {
  assertNear,
  dense,
  dropoutKey,
  everyOption,
  host,
  normal,
  on,
  opCall,
  packed,
  type Problem,
} from "../testing/laws/attention_problem.ts";
import { webgpu } from "./webgpu.ts";

async function device(changes: Partial<Capabilities> = {}): Promise<Backend> {
  const backend = await needAdapter(webgpu());
  Object.assign(backend.capabilities, changes);
  return backend;
}

const adapter = await device();
// Without subgroups rows are reduced through workgroup memory, and the tiles are those of a real GPU.
const portable = await device({ subgroupSize: 0, subgroups: false });
const least = await device({ subgroupSize: 0, subgroups: false, maxWorkgroupMemory: 16384, maxInvocations: 256 });

interface Gradients extends Problem {
  readonly gradients?: readonly ("bias" | "sinks")[];
}

/** Runs forward and backward on a backend and in f64, and twice on the backend. */
async function check(backend: Backend, { gradients = [], ...problem }: Gradients): Promise<void> {
  const { q } = problem, { params, inputs } = opCall(problem);
  const [x, exact] = [backend, host].map((at) => inputs.map((input) => on(at, input)));
  const results = runAll(attentionOp, x, params), wanted = runAll(attentionOp, exact, params);
  for (const [i, name] of ["out", "lse"].entries()) {
    assertNear(name, await results[i].data(), await wanted[i].data(), results[i].dtype);
  }
  const dOut = await normal(results[0].shape, q.dtype), dLse = await normal(results[1].shape);
  const back = (at: Backend, x: Tensor[], y: Tensor[]): Tensor[] =>
    runAll(attentionBackwardOp, [on(at, dOut), on(at, dLse), ...x.slice(0, 3), ...y, ...x.slice(3)], {
      ...params,
      gradients,
    });
  // The gradient of the results as they are: rounded ones, when they are 16-bit.
  const given = await Promise.all(results.map(async (y) => on(host, { ...y, values: await y.data() })));
  const grads = back(backend, x, results), wantedGrads = back(host, exact, q.dtype === "f32" ? wanted : given);
  for (const [i, name] of ["dq", "dk", "dv", ...gradients].entries()) {
    assertNear(name, await grads[i].data(), await wantedGrads[i].data(), grads[i].dtype);
  }
  const bytes = (all: Tensor[]) => Promise.all(all.map((y) => y.bytes()));
  const again = runAll(attentionOp, x, params);
  assert.deepEqual(await bytes(again), await bytes(results));
  assert.deepEqual(await bytes(back(backend, x, again)), await bytes(grads));
}

async function everything(): Promise<Gradients> {
  return {
    ...await dense([2, 37, 45, 4, 2, 20, 12]),
    optional: { ...await everyOption(), key: dropoutKey },
    window: [20, 4],
    softcap: 3,
    dropout: 0.3,
    gradients: ["bias", "sinks"],
  };
}

for (const size of [32, 40, 59, 64, 80, 96, 111, 128, 192, 256]) {
  const window = size % 3 === 0 ? [-1, -1] as const : [-1, 0] as const;
  Deno.test(`attention of head size ${size} is exact, forward and backward`, async () => {
    await check(adapter, { ...await dense([1, 67, 101, 2, 1, size, size]), window });
  });
}

Deno.test("attention takes one query or one key as well as several tiles", async () => {
  for (const [sq, sk] of [[1, 239], [239, 1], [113, 203], [203, 113]]) {
    for (const window of [[-1, -1], [-1, 0], [20, 7]] as const) {
      await check(adapter, { ...await dense([1, sq, sk, 2, 1, 64, 64]), window });
    }
  }
});

for (const dtype of ["f16", "bf16"] as const) {
  Deno.test(`attention reads and writes ${dtype}, odd sizes included`, async () => {
    for (const [headDim, valueDim] of [[64, 64], [20, 42], [7, 5]]) {
      await check(adapter, { ...await dense([2, 35, 45, 4, 2, headDim, valueDim], dtype), window: [-1, 0] });
    }
  });
}

Deno.test("attention's options together are exact, with the gradients of bias and sinks", async () => {
  await check(adapter, await everything());
});

Deno.test("attention without subgroups, in a GPU's tiles, is as exact", async () => {
  await check(portable, await everything());
  await check(portable, { ...await dense([2, 70, 90, 2, 1, 100, 128], "f16") });
  await check(portable, { ...await dense([1, 1, 300, 8, 2, 64, 64]) });
});

Deno.test("attention of few rows shares its walks among workgroups, forward and backward", async () => {
  const sinks = await normal([2]), problem = { ...await dense([1, 600, 513, 2, 1, 64, 64]), optional: { sinks } };
  await check(portable, { ...problem, window: [-1, 0], gradients: ["sinks"] });
});

Deno.test("attention fits the least device that WebGPU allows", async () => {
  await check(least, { ...await dense([1, 70, 90, 2, 1, 64, 64]), window: [-1, 0] });
  await check(least, { ...await dense([1, 40, 50, 1, 1, 256, 256]) });
});

Deno.test("attention over sequences of varying length leaves rows of no sequence empty", async () => {
  const problem = await packed(), { optional } = problem;
  await check(adapter, { ...problem, window: [-1, 0] });
  const bias = await normal([4, 4, 20, 30]);
  await check(adapter, { ...problem, optional: { bias, ...optional }, maxSeqlens: [20, 30], gradients: ["bias"] });
});

Deno.test("attention over no keys gives zeros and −∞", async () => {
  await check(adapter, await dense([2, 5, 0, 2, 1, 8, 8]));
  const none = runAll(
    attentionOp,
    [await normal([1, 3, 2, 8]), await normal([1, 0, 1, 8]), await normal([1, 0, 1, 8])]
      .map((x) => on(adapter, x)),
    { scale: 1, window: [-1, -1], softcap: 0, dropout: 0, maxSeqlens: null, optional: [] },
  );
  assert.deepEqual([...await none[1].data()], Array(6).fill(-Infinity));
});

Deno.test("attention reads views in place: packed, transposed and repeated ones", async () => {
  const params = { scale: 0.25, window: [-1, 0], softcap: 0, dropout: 0, maxSeqlens: null, optional: [] } as const;
  const values = await normal([2, 3, 4, 30, 16]); // batch, part, heads, positions, size
  const shared = await normal([1, 30, 1, 16]);
  const outs = [adapter, host].map((at) => {
    const whole = on(at, values);
    const part = (i: number) => permute(tensorPart(whole, i), [0, 2, 1, 3]);
    return runAll(attentionOp, [part(0), part(1), broadcastTo(on(at, shared), [2, 30, 4, 16])], params)[0];
  });
  assertNear("out", await outs[0].data(), await outs[1].data(), "f32");
});

function tensorPart(x: Tensor, i: number): Tensor {
  const [batch, , ...rest] = x.shape;
  return reshape(slice(x, [0, i, 0, 0, 0], [batch, i + 1, ...rest]), [batch, ...rest]);
}

Deno.test("dropoutMask() on the GPU is the CPU's", async () => {
  const masks = await Promise.all(
    [adapter, host].map((at) => dropoutMask(key(7, { backend: at }), 0.3, [2, 3, 5, 7]).data()),
  );
  assert.deepEqual(masks[0], masks[1]);
});
