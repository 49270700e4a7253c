import assert from "node:assert/strict";
import { readFile } from "node:fs/promises";
import { webgpu } from "../../mod.ts";
import { valueAndGrad, vjp } from "../../autograd/grad.ts";
import { getBackend, matrixUnits, memory, setBackend } from "../../tensor/backend.ts";
import { compile } from "../../tensor/compile.ts";
import { cpu } from "../../tensor/cpu.ts";
import { arange, ones, tensor, zeros } from "../../tensor/create.ts";
import { bf16Bits, bf16Value } from "../../tensor/dtype.ts";
import { slice } from "../../tensor/movement.ts";
import { key, randint } from "../../tensor/random.ts";
import { dispose } from "../../tensor/scope.ts";
import type { Tensor } from "../../tensor/tensor.ts";
import { leaves } from "../../tensor/tree.ts";
import { needAdapter } from "../../testing/laws/adapter.ts";
import {
  adamw,
  type AttentionAlgorithm,
  clipGradNorm,
  emptyCache,
  type KvCache,
  llama,
  rotaryFrequencies,
  safetensors,
} from "../mod.ts";

const backends = [cpu(), await needAdapter(webgpu())];

/** A test that runs on every backend. */
function test(name: string, body: () => void | Promise<void>): void {
  for (const backend of backends) {
    Deno.test(`${name}, on ${backend.name}`, async () => {
      setBackend(backend);
      try {
        await body();
      } finally {
        setBackend(backends[0]);
      }
    });
  }
}

const folder = new URL("../fixtures/llama-a/", import.meta.url);
const config: llama.LlamaConfig = JSON.parse(await readFile(new URL("config.json", folder), "utf8"));
const load = (): Promise<Record<string, Tensor>> =>
  safetensors.read(new URL("model.safetensors", folder), { dtype: "f32" });
const answers = await readFile(new URL("expected.safetensors", folder));
const loadExpected = (): Promise<Record<string, Tensor>> => safetensors.read(answers);
const algorithms: readonly AttentionAlgorithm[] = ["flash", "naive"];

/** The largest |a − b| over the elements for which `counts` holds. */
function distance(a: ArrayLike<number>, b: ArrayLike<number>, counts: (i: number) => boolean = () => true): number {
  assert.equal(a.length, b.length);
  let worst = 0;
  for (let i = 0; i < a.length; i++) if (counts(i)) worst = Math.max(worst, Math.abs(a[i] - b[i]));
  assert(!Number.isNaN(worst));
  return worst;
}

const small: llama.LlamaConfig = {
  vocab_size: 61,
  hidden_size: 24,
  intermediate_size: 40,
  num_hidden_layers: 2,
  num_attention_heads: 4,
  num_key_value_heads: 2,
  initializer_range: 0.3,
  tie_word_embeddings: false,
};

/**
 * The fixture was computed by a model that had been cast to bf16 whole, its rotary frequencies too: with them rounded
 * it is met to the last digits, with the exact ones to about 1e-3.
 */
const rounded: llama.LlamaConfig = {
  ...config,
  rope_parameters: {
    inv_freq: [...rotaryFrequencies({
      headDim: 16,
      scaling: { type: "llama3", factor: 8, lowFreqFactor: 1, highFreqFactor: 4, originalMaxPositions: 32 },
    })].map((f) => bf16Value(bf16Bits(f))),
  },
};

for (const attention of algorithms) {
  test(`forward() with ${attention} attention gives the fixture's logits wherever it has any`, async () => {
    const params = await load(), expected = await loadExpected();
    const options = { attentionMask: expected.attention_mask, attention };
    const want = await expected.logits.data(); // NaN in the padded rows
    const compared = want.filter((x) => !Number.isNaN(x)).length;
    assert.equal(compared, 17 * config.vocab_size);
    for (const [c, tolerance] of [[rounded, 2e-5], [config, 2e-3]] as const) {
      const { logits } = llama.forward(params, c, expected.input_ids, options);
      const worst = distance(await logits.data(), want, (i) => !Number.isNaN(want[i]));
      assert(worst < tolerance, `off by ${worst}`);
    }
  });

  test(`loss() with ${attention} attention gives the fixture's loss and gradients`, async () => {
    const params = await load(), expected = await loadExpected();
    const f = (p: typeof params) => llama.loss(p, rounded, expected.train_ids, expected.train_labels, { attention });
    const [loss, grads] = valueAndGrad(f)(params);
    assert(Math.abs(await loss.item() - await expected.loss.item()) < 1e-4);
    assert.equal(Object.keys(grads).length, Object.keys(params).length);
    const given = Object.keys(expected).filter((name) => name.startsWith("grad."));
    assert(given.length > 3);
    for (const name of given) {
      const grad = grads[name.slice("grad.".length)];
      assert.deepEqual(grad.shape, expected[name].shape);
      const worst = distance(await grad.data(), await expected[name].data());
      assert(worst < 1e-5, `${name} off by ${worst}`);
    }
  });
}

test("adamw() follows the fixture's losses with clipped gradients", async () => {
  let params = await load();
  const expected = await loadExpected();
  const optimizer = adamw({ learningRate: 1e-3, betas: [0.9, 0.95], weightDecay: 0.1 });
  let state = optimizer.init(params);
  const want = await expected.adamw_losses.data();
  assert(want.length >= 4);
  for (const value of want) {
    const f = (p: typeof params) => llama.loss(p, rounded, expected.train_ids, expected.train_labels);
    const [loss, grads] = valueAndGrad(f)(params);
    ({ params, state } = optimizer.update(params, clipGradNorm(grads, 1).grads, state));
    assert(Math.abs(await loss.item() - value) < 3e-3, `${await loss.item()} for ${value}`);
  }
});

test("dropout in training changes the loss, by the key alone", async () => {
  const params = llama.init(key(3), small), ids = randint(key(4), [2, 7], { max: 61 });
  const at = async (dropout?: { p: number; key: Tensor }) =>
    await llama.loss(params, small, ids, ids, { dropout }).item();
  assert.equal(await at({ p: 0, key: key(1) }), await at());
  assert.equal(await at({ p: 0.3, key: key(1) }), await at({ p: 0.3, key: key(1) }));
  assert.notEqual(await at({ p: 0.3, key: key(1) }), await at({ p: 0.3, key: key(2) }));
  assert.notEqual(await at({ p: 0.3, key: key(1) }), await at());
});

test("the gradient is the same with checkpointed blocks, dropout and all", async () => {
  const params = llama.init(key(3), small), ids = randint(key(4), [2, 7], { max: 61 });
  const dropout = { p: 0.2, key: key(5) };
  const at = (checkpoint: boolean) =>
    valueAndGrad((p: typeof params) => llama.loss(p, small, ids, ids, { checkpoint, dropout }))(params);
  const [loss, grads] = at(false), [again, gradsAgain] = at(true);
  assert.equal(await again.item(), await loss.item());
  for (const name of Object.keys(grads)) {
    assert.deepEqual(await gradsAgain[name].data(), await grads[name].data(), name);
  }
});

for (const attention of algorithms) {
  test(`decoding through a cache gives the logits of the whole, ${attention} attention, in pieces of any length`, async () => {
    const params = llama.init(key(5), small), ids = randint(key(6), [2, 9], { max: 61 });
    const whole = await llama.forward(params, small, ids).logits.data();
    for (const pieces of [[9], [1, 1, 1, 1, 1, 1, 1, 1, 1], [4, 1, 3, 1]]) {
      let cache: KvCache | undefined = emptyCache({ capacity: 2 }), at = 0;
      for (const length of pieces) {
        const next: { logits: Tensor; cache?: KvCache } = llama.forward(
          params,
          small,
          slice(ids, [0, at], [2, at + length]),
          {
            cache,
            attention,
          },
        );
        const rows = Array.from(
          { length: 2 },
          (_, b) => [...whole.slice((b * 9 + at) * 61, (b * 9 + at + length) * 61)],
        );
        assert(distance(await next.logits.data(), rows.flat()) < 1e-4);
        at += length;
        cache = next.cache;
      }
      assert.equal(cache?.length, 9);
    }
  });
}

test("decoding left-padded rows gives what each row gives alone", async () => {
  const params = llama.init(key(7), small);
  const rows = [[5, 9, 2, 33], [7, 8]], steps = [[11, 12], [50, 3]];
  const ids = tensor([[5, 9, 2, 33], [0, 0, 7, 8]], { dtype: "i32" });
  let attentionMask = tensor([[1, 1, 1, 1], [0, 0, 1, 1]], { dtype: "i32" });
  let { logits, cache } = llama.forward(params, small, ids, { attentionMask, cache: emptyCache() });
  for (let step = 0; step < 2; step++) {
    attentionMask = tensor([[1, 1, 1, 1], [0, 0, 1, 1]].map((row) => [...row, ...Array(step + 1).fill(1)]), {
      dtype: "i32",
    });
    ({ logits, cache } = llama.forward(params, small, tensor(steps.map((s) => [s[step]]), { dtype: "i32" }), {
      attentionMask,
      cache,
    }));
  }
  for (const [b, row] of rows.entries()) {
    const alone = llama.forward(params, small, tensor([[...row, ...steps[b]]], { dtype: "i32" })).logits;
    const last = (await alone.data()).slice(-61), batched = (await logits.data()).slice(b * 61, (b + 1) * 61);
    assert(distance(batched, last) < 1e-4);
  }
});

for (const attention of algorithms) {
  test(`a cache in pages, padded, counted by the device: ${attention} attention gives what each row gives alone`, async () => {
    const params = llama.init(key(7), small), rows = [[5, 9, 2, 33, 11, 50], [7, 8, 12, 3]];
    const ids = tensor([[5, 9, 2, 33, 11, 50], [0, 0, 7, 8, 12, 3]], { dtype: "i32" });
    const leftpad = tensor([0, 2], { dtype: "i32" });
    const alone: Float64Array[] = [];
    for (const row of rows) {
      const { logits } = llama.forward(params, small, tensor([row], { dtype: "i32" }), { logitsToKeep: 2 });
      alone.push(Float64Array.from(await logits.data()));
    }
    for (const pageSize of [undefined, 2]) {
      for (const counted of [false, true]) {
        const part = (from: number, to: number) => slice(ids, [0, from], [2, to]);
        let { cache } = llama.forward(params, small, part(0, 4), {
          attention,
          cache: emptyCache({ capacity: 6, pageSize, leftpad }),
        });
        for (const at of [4, 5]) {
          const lengths = counted ? { lengths: tensor([at, at], { dtype: "i32" }) } : {};
          const next = llama.forward(params, small, part(at, at + 1), { attention, cache: { ...cache!, ...lengths } });
          cache = next.cache;
          const got = await next.logits.data();
          for (const b of [0, 1]) {
            assert(
              distance(got.subarray(b * 61, (b + 1) * 61), alone[b].subarray((at - 4) * 61, (at - 3) * 61)) < 1e-4,
            );
          }
        }
        if (counted) assert.deepEqual([...await cache!.lengths!.data()], [6, 6]);
        else assert.equal(cache!.length, 6);
      }
    }
  });
}

/** How far scores of bf16 parameters may lie from exact ones: `f32` where products keep f32 activations as they are. */
async function boundOf(
  f32: number,
  params: Record<string, Tensor>,
  ids: Tensor,
  want: ArrayLike<number>,
): Promise<number> {
  if (matrixUnits(getBackend().capabilities).length === 0) return f32;
  // Matrix units take eleven digits of them, a model all in bf16 eight: they err an eighth as much.
  const [plain, pullback] = vjp((p: Record<string, Tensor>) => llama.forward(p, small, ids).logits, params);
  const all = await plain.data();
  pullback[Symbol.dispose]();
  return distance(all.subarray(all.length - want.length), want) / 8;
}

test("a prompt can go through the model in parts of any length", async () => {
  const params = llama.init(key(7), small, { dtype: "bf16" }), ids = randint(key(6), [1, 40], { max: 61 });
  const whole = await llama.forward(params, small, ids, { logitsToKeep: 1 }).logits.data();
  let cache = emptyCache({ capacity: 4, pageSize: 3, dtype: "f32" }), last = whole;
  for (const [from, to] of [[0, 12], [12, 15], [15, 39], [39, 40]]) {
    const next = llama.forward(params, small, slice(ids, [0, from], [1, to]), { cache, logitsToKeep: 1 });
    cache = next.cache!;
    last = await next.logits.data();
  }
  assert(distance(last, whole) < await boundOf(1e-4, params, ids, whole));
});

test("scores are f32, as exact as products are for parameters of 16 bits, and of as many places as asked for", async () => {
  const params = llama.init(key(7), small, { dtype: "bf16" });
  const wide = Object.fromEntries(
    await Promise.all(
      Object.entries(params).map(async ([name, x]) => [name, tensor(await x.data(), { shape: x.shape })] as const),
    ),
  );
  const ids = randint(key(6), [2, 12], { max: 61 });
  const want = await llama.forward(wide, small, ids).logits.data();
  const { logits } = llama.forward(params, small, ids);
  assert.equal(logits.dtype, "f32");
  assert(distance(await logits.data(), want) < await boundOf(2e-5, params, ids, want));
  const { logits: last } = llama.forward(params, small, ids, { logitsToKeep: 3 });
  assert.deepEqual(last.shape, [2, 3, 61]);
  const three = await last.data(), whole = await slice(logits, [0, 9, 0], [2, 12, 61]).data();
  assert(distance(three, whole) < await boundOf(1e-5, params, ids, want));
});

test("positions given by hand are those counted by default", async () => {
  const params = llama.init(key(8), small), ids = randint(key(9), [2, 5], { max: 61 });
  const at = async (positions?: Tensor) => await llama.forward(params, small, ids, { positions }).logits.data();
  const counted = await at();
  assert.deepEqual(await at(arange(5)), counted);
  assert.deepEqual(await at(tensor([[0, 1, 2, 3, 4], [0, 1, 2, 3, 4]], { dtype: "i32" })), counted);
  assert(
    distance(await at(tensor([7, 8, 9, 10, 11], { dtype: "i32" })), counted) < 1e-4,
    "rotary sees distances alone",
  );
  assert(distance(await at(tensor([0, 2, 4, 6, 8], { dtype: "i32" })), counted) > 1e-3);
});

test("a text is the same with a cache and without one, in the parameters' type too", async () => {
  const even = { ...small, hidden_size: 32 }, params = llama.init(key(7), even, { dtype: "bf16" });
  const ids = randint(key(6), [2, 40], { max: 61 });
  const whole = await llama.forward(params, even, ids).logits.data();
  const cached = llama.forward(params, even, ids, { cache: emptyCache({ capacity: 48 }) });
  assert.deepEqual(await cached.logits.data(), whole);
  dispose(cached.cache!.layers);
  const attentionMask = ones([2, 40], { dtype: "i32" }), positions = arange(40);
  assert.deepEqual(await llama.forward(params, even, ids, { attentionMask, positions }).logits.data(), whole);
});

const { capabilities } = backends[1];
const units = capabilities.f16 && matrixUnits(capabilities).length > 0;
Deno.test({ name: "a layer of many tokens is few dispatches on matrix units", ignore: !units }, () => {
  const [, backend] = backends;
  const launches = (layers: number) => {
    const deep = { ...small, hidden_size: 32, num_hidden_layers: layers };
    const params = llama.init(key(7, { backend }), deep, { dtype: "bf16" });
    using read = compile((p: Record<string, Tensor>, ids: Tensor) => llama.forward(p, deep, ids).logits);
    read(params, zeros([2, 40], { dtype: "i32", backend }));
    return read.recordings[0].dispatches;
  };
  assert.ok(launches(3) - launches(2) <= 13, `${launches(3) - launches(2)} dispatches`);
});

test("init() makes the tensors that the config names, the same ones for the same key", async () => {
  const params = llama.init(key(1), small);
  assert.deepEqual(
    Object.fromEntries(Object.entries(params).map(([n, x]) => [n, x.shape])),
    llama.parameterShapes(small),
  );
  const again = llama.init(key(1), small), other = llama.init(key(2), small);
  const name = "model.layers.1.mlp.up_proj.weight";
  assert.deepEqual(await again[name].data(), await params[name].data());
  assert.notDeepEqual(await other[name].data(), await params[name].data());
});

test("training holds no more memory after a hundred steps than after two", () => {
  let params: Record<string, Tensor> = llama.init(key(1), small);
  const optimizer = adamw({ learningRate: 1e-3 });
  let state = optimizer.init(params);
  const ids = randint(key(6), [1, 6], { max: 61 });
  let level = 0;
  for (let step = 0; step < 100; step++) {
    const [loss, grads] = valueAndGrad((p: typeof params) => llama.loss(p, small, ids, ids))(params);
    loss.dispose();
    const { grads: clipped, norm } = clipGradNorm(grads, 1);
    norm.dispose();
    ({ params, state } = optimizer.update(params, clipped, state));
    if (step === 1) level = memory().current;
  }
  assert.equal(memory().current, level);
  dispose([leaves(params), leaves(state)]);
});

test("parameters or inputs that do not fit are refused by name", () => {
  const params = llama.init(key(1), small), ids = tensor([[1, 2]], { dtype: "i32" });
  const { "model.norm.weight": _, ...less } = params;
  assert.throws(() => llama.forward(less, small, ids), /"model\.norm\.weight" is missing/);
  assert.throws(
    () => llama.forward({ ...params, "model.norm.weight": ids }, small, ids),
    /is \[1,2\], the config says \[24\]/,
  );
  assert.throws(() => llama.forward(params, small, tensor([1, 2], { dtype: "i32" })), /ids are i32 \[B, S\]/);
  const none = tensor([], { shape: [1, 0], dtype: "i32" });
  assert.throws(() => llama.forward(params, small, none), /ids have no token: \[B, S\] is \[1,0\]/);
  assert.throws(() => llama.loss(params, small, none, none), /ids have no token/);
  assert.throws(() => llama.forward(params, small, tensor([[1, 61]], { dtype: "i32" })), /index 61 is outside/);
  assert.throws(() => llama.forward(params, { ...small, max_position_embeddings: 1 }, ids), /2 tokens are more than/);
  assert.throws(() => llama.loss(params, small, ids, tensor([1, 2], { dtype: "i32" })), /labels \[2\]/);
  assert.throws(() => llama.loss(params, small, ids, tensor([[1, 99]], { dtype: "i32" })), /label 99 is outside/);
  assert.throws(
    () => llama.forward(params, small, ids, { attentionMask: ids, cache: { layers: [], length: 3, capacity: 8 } }),
    /past \+ S/,
  );
});
