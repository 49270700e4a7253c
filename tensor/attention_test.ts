import assert from "node:assert/strict";
import {
  type AttentionOptions,
  cast,
  checkpoint,
  cpu,
  cuSeqlensFromMask,
  dropoutMask,
  flashAttention,
  flashAttentionKvPacked,
  flashAttentionQkvPacked,
  flashAttentionV1,
  flashAttentionV2,
  flashAttentionVarlen,
  flashAttentionVarlenWithLse,
  flashAttentionWithLse,
  full,
  grad,
  key,
  mul,
  naiveAttention,
  naiveAttentionWithLse,
  ones,
  randn,
  reshape,
  slice,
  split,
  stack,
  sum,
  take,
  type Tensor,
  tensor,
  unpadInput,
  vjp,
  zeros,
} from "../mod.ts";
import { arbAttention, array, assertClose, checkGradients, integer, property } from "../testing/mod.ts";
import type { AttentionProblem } from "../testing/mod.ts";
import { observe, type Op } from "./op.ts";

const f64 = { dtype: "f64" } as const;
const everything = ["softmaxScale", "causal", "window", "softcap", "alibiSlopes", "bias", "mask", "sinks"] as const;
const problems = arbAttention({ dtype: "f64", features: everything, backend: cpu(), views: true });
/** Nothing for a third of the cases, else a probability and a seed. */
const drops = integer(0, 95);

function withDropout({ options }: AttentionProblem, drop: number): AttentionOptions {
  return drop < 32 ? options : { ...options, dropout: { p: (drop - 31) / 65, key: key(drop, { backend: cpu() }) } };
}

/** out, lse and the gradients of all that has one, from the same random cotangents. */
function through(
  f: (q: Tensor, k: Tensor, v: Tensor, options: AttentionOptions) => { out: Tensor; lse: Tensor },
  { q, k, v }: AttentionProblem,
  { bias, sinks, ...rest }: AttentionOptions,
): Tensor[] {
  const extra = { ...(bias && { bias }), ...(sinks && { sinks }) };
  const [{ out, lse }, pullback] = vjp(
    (q: Tensor, k: Tensor, v: Tensor, extra: AttentionOptions) => f(q, k, v, { ...rest, ...extra }),
    q,
    k,
    v,
    extra,
  );
  const [a, b] = split(key(1, { backend: cpu() }), 2);
  const [dq, dk, dv, others] = pullback({ out: randn(a, out.shape, f64), lse: randn(b, lse.shape, f64) });
  return [out, lse, dq, dk, dv, ...Object.values(others as Record<string, Tensor>)];
}

async function assertAll(actual: readonly Tensor[], expected: readonly Tensor[]): Promise<void> {
  assert.equal(actual.length, expected.length);
  for (const [i, x] of actual.entries()) await assertClose(x, expected[i], { atol: 1e-8, rtol: 1e-8 });
}

property("flashAttention() is naiveAttention(), and so are its gradients", [problems, drops], async (problem, drop) => {
  const options = withDropout(problem, drop);
  const actual = through(flashAttentionWithLse, problem, options);
  await assertAll(actual, through(naiveAttentionWithLse, problem, options));
}, { runs: 200 });

property("flashAttention() matches central differences", [
  arbAttention({ dtype: "f64", features: everything, backend: cpu(), maxSeqlen: 4, maxHeadDim: 3, maxBatch: 1 }),
  drops,
], async (problem, drop) => {
  const { q, k, v } = problem, { bias, sinks, ...rest } = withDropout(problem, drop);
  if (q.size + k.size === 0) return;
  // Rows without a key have lse −∞, which has no differences.
  const finite = (lse: Tensor) => mul(lse.dataSync().every(Number.isFinite) ? lse : zeros(lse.shape, f64), 1);
  await checkGradients(
    (q, k, v, extra) => {
      const { out, lse } = flashAttentionWithLse(q, k, v, { ...rest, ...extra });
      return [out, finite(lse)];
    },
    [q, k, v, { ...(bias && { bias }), ...(sinks && { sinks: cast(sinks, "f64") }) }],
    { rtol: 1e-5, atol: 1e-7 },
  );
}, { runs: 40 });

property("flashAttentionV1() and V2() are flashAttention(), and so are their gradients", [
  problems,
  drops,
  integer(1, 14),
], async (problem, drop, blockSize) => {
  const options = withDropout(problem, drop);
  for (const algorithm of [flashAttentionV1, flashAttentionV2]) {
    const outs = [algorithm, flashAttention].map((f) =>
      through(
        (q, k, v, options) => {
          const out = f(q, k, v, f === flashAttention ? options : { ...options, blockSize });
          return { out, lse: zeros([1], f64) };
        },
        problem,
        options,
      )
    );
    await assertAll(outs[0], outs[1]);
  }
}, { runs: 60 });

property("flashAttention() is equivariant under permuting keys", [
  arbAttention({ dtype: "f64", features: ["softmaxScale", "softcap", "bias", "mask", "sinks"], backend: cpu() }),
  integer(0, 1000),
], async ({ q, k, v, options, Sk }, seed) => {
  const order = Array.from({ length: Sk }, (_, j) => j).sort((a, b) =>
    Math.sin(seed + a * 7.7) - Math.sin(seed + b * 7.7)
  );
  const indices = tensor(Int32Array.from(order), { backend: cpu() });
  const columns = (x?: Tensor) => x && (x.shape[3] === 1 && Sk !== 1 ? x : take(x, indices, { axis: 3 }));
  const moved = { ...options, bias: columns(options.bias), mask: columns(options.mask) };
  const permuted = flashAttention(q, take(k, indices, { axis: 1 }), take(v, indices, { axis: 1 }), moved);
  await assertClose(permuted, flashAttention(q, k, v, options), { atol: 1e-9 });
});

property("flashAttention()'s heads read key/value head ⌊h / (H/Hk)⌋", [problems], async (problem) => {
  const { q, k, v, H, Hk, options } = problem;
  const heads = tensor(Int32Array.from({ length: H }, (_, h) => Math.floor(h / (H / Hk))), { backend: cpu() });
  const repeated = flashAttention(q, take(k, heads, { axis: 2 }), take(v, heads, { axis: 2 }), options);
  await assertClose(repeated, flashAttention(q, k, v, options), { atol: 1e-12 });
});

property("flashAttention() gives empty rows 0, lse −∞ and no gradient", [problems], (problem) => {
  const { q, v, B, H, Sq, Sk } = problem;
  const seen = naiveAttentionWithLse(q, problem.k, v, problem.options).lse.dataSync();
  const [out, lse, dq] = through(flashAttentionWithLse, problem, problem.options).map((x) => x.dataSync());
  const [D, Dv] = [problem.D, problem.Dv];
  for (let row = 0; row < B * H * Sq; row++) {
    assert.equal(lse[row] === -Infinity, seen[row] === -Infinity);
    if (seen[row] !== -Infinity) continue;
    const [b, h, i] = [Math.floor(row / (H * Sq)), Math.floor(row / Sq) % H, row % Sq];
    const at = (b * Sq + i) * H + h;
    assert.ok(out.subarray(at * Dv, (at + 1) * Dv).every((x) => x === 0));
    assert.ok(dq.subarray(at * D, (at + 1) * D).every((x) => x === 0));
  }
  if (Sk === 0) assert.ok(lse.every((x) => x === -Infinity));
});

Deno.test("flashAttention() with causal sees keys up to i + Sk − Sq", async () => {
  // The two pictures in the flash-attention project's documentation of causal masks, bottom-right aligned.
  const pictures: [number, number, number[][]][] = [
    [2, 5, [[1, 1, 1, 1, 0], [1, 1, 1, 1, 1]]],
    [5, 2, [[0, 0], [0, 0], [0, 0], [1, 0], [1, 1]]],
  ];
  for (const [Sq, Sk, seen] of pictures) {
    const q = zeros([1, Sq, 1, 1], f64), k = zeros([1, Sk, 1, 1], f64);
    const v = tensor(Array.from({ length: Sk * Sk }, (_, i) => Number(i % (Sk + 1) === 0)), {
      shape: [1, Sk, 1, Sk],
      ...f64,
    });
    const p = flashAttention(q, k, v, { causal: true });
    const expected = seen.map((row) => row.map((x) => x / Math.max(1, row.reduce((a, b) => a + b))));
    await assertClose(reshape(p, [Sq, Sk]), expected);
  }
});

Deno.test("flashAttention() has a window that includes both ends, and causal closes its right", async () => {
  const q = zeros([1, 4, 1, 1], f64), k = zeros([1, 4, 1, 1], f64);
  const seen = (options: AttentionOptions) => flashAttentionWithLse(q, k, k, options).lse;
  await assertClose(seen({ window: [1, 0] }), [[[Math.log(1), Math.log(2), Math.log(2), Math.log(2)]]]);
  await assertClose(seen({ window: [-1, 1] }), [[[Math.log(2), Math.log(3), Math.log(4), Math.log(4)]]]);
  await assertClose(seen({ window: [1, 2], causal: true }), [[[Math.log(1), Math.log(2), Math.log(2), Math.log(2)]]]);
});

Deno.test("flashAttention() takes slope·|i + Sk − Sq − j| away, with causal in the same form", async () => {
  const q = zeros([1, 2, 1, 1], f64), k = zeros([1, 3, 1, 1], f64), alibiSlopes = tensor([0.5]);
  const lse = (distances: number[]) => Math.log(distances.reduce((s, d) => s + Math.exp(-0.5 * d), 0));
  const causal = flashAttentionWithLse(q, k, k, { alibiSlopes, causal: true }).lse;
  await assertClose(causal, [[[lse([1, 0]), lse([2, 1, 0])]]]);
  await assertClose(flashAttentionWithLse(q, k, k, { alibiSlopes }).lse, [[[lse([1, 0, 1]), lse([2, 1, 0])]]]);
});

Deno.test("flashAttention() works in the order scale, softcap, ALiBi, bias, sink", async () => {
  const q = tensor([[[[3]]]], f64), k = tensor([[[[2]], [[-1]]]], f64);
  const { lse } = flashAttentionWithLse(q, k, k, {
    softmaxScale: 0.5,
    softcap: 2,
    alibiSlopes: tensor([0.25]),
    bias: tensor([[0.1, -0.2]], f64),
    sinks: tensor([0.3]),
  });
  const score = (product: number, distance: number, bias: number) =>
    2 * Math.tanh(product / 2) - 0.25 * distance + bias;
  const total = Math.exp(score(3, 1, 0.1)) + Math.exp(score(-1.5, 0, -0.2)) + Math.exp(Math.fround(0.3));
  await assertClose(lse, [[[Math.log(total)]]]);
});

property("flashAttention()'s dropout is its mask: probabilities fall where dropoutMask() is false", [
  arbAttention({ dtype: "f64", features: ["causal", "bias"], backend: cpu(), zeros: false }),
  integer(1, 90),
], ({ q, k, options, B, H, Sq, Sk }, percent) => {
  const p = percent / 100, dropout = { p, key: key(percent, { backend: cpu() }) };
  // The probabilities themselves, by the identity as values.
  const eye = Array.from({ length: Sk * Sk }, (_, i) => Number(i % (Sk + 1) === 0));
  const identity = (heads: number) =>
    stack(
      Array.from({ length: B }, () =>
        stack(
          Array.from({ length: heads }, () => tensor(eye, { shape: [Sk, Sk], ...f64 })),
          { axis: 1 },
        )),
    );
  const whole = flashAttention(q, k, identity(k.shape[2]), options); // [B, Sq, H, Sk]
  const dropped = flashAttention(q, k, identity(k.shape[2]), { ...options, dropout });
  const mask = dropoutMask(dropout.key, p, [B, H, Sq, Sk]).dataSync();
  const a = whole.dataSync(), b = dropped.dataSync();
  for (let i = 0; i < a.length; i++) {
    const [bi, si, h, j] = [
      Math.floor(i / (Sq * H * Sk)),
      Math.floor(i / (H * Sk)) % Sq,
      Math.floor(i / Sk) % H,
      i % Sk,
    ];
    const kept = mask[((bi * H + h) * Sq + si) * Sk + j];
    assertClose(b[i], kept ? a[i] / (1 - p) : 0, { atol: 1e-12 });
  }
}, { runs: 40 });

property("checkpoint() around flashAttention() changes nothing", [problems, drops], async (problem, drop) => {
  const options = withDropout(problem, drop);
  const again: typeof flashAttentionWithLse = (...args) => checkpoint(flashAttentionWithLse)(...args);
  await assertAll(through(again, problem, options), through(flashAttentionWithLse, problem, options));
}, { runs: 30 });

property("flashAttentionQkvPacked() and KvPacked() are flashAttention(), with one gradient", [
  arbAttention({ dtype: "f64", features: everything, backend: cpu(), maxGroup: 1 }),
], async ({ k, v, q, options, B, Sk, H, D, Dv, Sq }) => {
  if (D !== Dv) return;
  const kv = stack([k, v], { axis: 2 });
  const dOut = randn(key(3, { backend: cpu() }), [B, Sq, H, D], f64);
  const [out, pullback] = vjp((q: Tensor, kv: Tensor) => flashAttentionKvPacked(q, kv, options), q, kv);
  const [dq, dkv] = pullback(dOut);
  const [expected, back] = vjp((q: Tensor, k: Tensor, v: Tensor) => flashAttention(q, k, v, options), q, k, v);
  const [eq, ek, ev] = back(dOut);
  await assertAll([out, dq, dkv], [expected, eq, stack([ek, ev], { axis: 2 })]);
  if (Sq !== Sk) return;
  const [outs, all] = vjp((qkv: Tensor) => flashAttentionQkvPacked(qkv, options), stack([q, k, v], { axis: 2 }));
  const [dqkv] = all(dOut);
  await assertAll([outs, dqkv], [expected, stack([eq, ek, ev], { axis: 2 })]);
});

property("flashAttentionVarlen() is flashAttention() sequence by sequence", [
  array(arbAttention({ dtype: "f64", features: [], backend: cpu(), maxBatch: 1, maxSeqlen: 7 }), {
    maxLength: 4,
    minLength: 1,
  }),
  integer(0, 63),
], async (pieces, bits) => {
  const [first] = pieces, { H, Hk, D, Dv } = first, lengths = pieces.map(({ Sq, Sk }) => [Sq, Sk]);
  const [a, b, c, d] = split(key(bits, { backend: cpu() }), 4);
  const [Tq, Tk] = [0, 1].map((n) => lengths.reduce((s, l) => s + l[n], 0));
  const q = randn(a, [Tq, H, D], f64), k = randn(b, [Tk, Hk, D], f64), v = randn(c, [Tk, Hk, Dv], f64);
  const starts = (n: number) => [0, ...lengths.map((_, i) => lengths.slice(0, i + 1).reduce((s, l) => s + l[n], 0))];
  const cu = (n: number) => tensor(Int32Array.from(starts(n)), { backend: cpu() });
  const [maxSeqlenQ, maxSeqlenK] = [0, 1].map((n) => Math.max(...lengths.map((l) => l[n])));
  const bias = bits & 4 ? randn(d, [pieces.length, H, maxSeqlenQ, maxSeqlenK], f64) : undefined;
  const options: AttentionOptions = {
    causal: (bits & 1) > 0,
    ...(bits & 2 && { window: [3, 1] }),
    ...(bits & 8 && { softcap: 3 }),
    ...(bits & 16 && { alibiSlopes: tensor(Array.from({ length: H }, (_, h) => h / 3), { backend: cpu() }) }),
    ...(bits & 32 && { sinks: full([H], 0.4, { backend: cpu() }) }),
  };
  const packed = { ...options, bias, cuSeqlensQ: cu(0), cuSeqlensK: cu(1), maxSeqlenQ, maxSeqlenK };
  const [{ out, lse }, pullback] = vjp(
    (q: Tensor, k: Tensor, v: Tensor) => flashAttentionVarlenWithLse(q, k, v, packed),
    q,
    k,
    v,
  );
  const dOut = randn(d, out.shape, f64), dLse = zeros(lse.shape, f64);
  const grads = pullback({ out: dOut, lse: dLse });
  assert.deepEqual(lse.shape, [H, Tq]);
  for (const [i, [Sq, Sk]] of lengths.entries()) {
    const rows = (x: Tensor, n: number) =>
      reshape(slice(x, [starts(n)[i]], [starts(n)[i + 1]]), [1, lengths[i][n], ...x.shape.slice(1)]);
    const own = bias && slice(bias, [i, 0, 0, 0], [i + 1, H, Sq, Sk]);
    const [one, back] = vjp(
      (q: Tensor, k: Tensor, v: Tensor) => flashAttentionWithLse(q, k, v, { ...options, bias: own }),
      rows(q, 0),
      rows(k, 1),
      rows(v, 1),
    );
    const expected = back({ out: rows(dOut, 0), lse: zeros(one.lse.shape, f64) });
    await assertAll([rows(out, 0), ...[0, 1, 1].map((n, g) => rows(grads[g], n))], [one.out, ...expected]);
    const own2 = slice(lse, [0, starts(0)[i]], [H, starts(0)[i + 1]]);
    await assertClose(own2, reshape(one.lse, [H, Sq]));
  }
});

property("flashAttentionVarlen() of unpadded sequences is flashAttention() under a mask, dropout included", [
  arbAttention({ dtype: "f64", features: ["softcap", "sinks"], backend: cpu(), maxBatch: 3 }),
  integer(0, 99),
  drops,
], async (problem, seed, drop) => {
  const { k, v, B, Sk, options, H, D } = problem, dropout = withDropout(problem, drop).dropout;
  const q = randn(key(seed, { backend: cpu() }), [B, Sk, H, D], f64);
  const lengths = Array.from({ length: B }, (_, b) => (seed * 7 + b * 5) % (Sk + 1));
  const mask = tensor(Array.from({ length: B * Sk }, (_, i) => i % Sk < lengths[Math.floor(i / Sk)]), {
    shape: [B, Sk],
    dtype: "bool",
    backend: cpu(),
  });
  const [uq, uk, uv] = [q, k, v].map((x) => unpadInput(x, mask));
  const { cuSeqlens, maxSeqlen } = cuSeqlensFromMask(mask);
  const out = flashAttentionVarlen(uq.x, uk.x, uv.x, {
    ...options,
    dropout,
    cuSeqlensQ: cuSeqlens,
    cuSeqlensK: cuSeqlens,
    maxSeqlenQ: maxSeqlen,
    maxSeqlenK: maxSeqlen,
  });
  const padded = flashAttention(q, k, v, { ...options, dropout, mask: reshape(mask, [B, 1, 1, Sk]) });
  await assertClose(out, unpadInput(padded, mask).x, { atol: 1e-12 });
});

Deno.test("flashAttentionVarlen() gives rows of no sequence 0 and −∞", async () => {
  const q = ones([5, 1, 2], f64), cu = tensor([1, 3], { dtype: "i32" });
  const options = { cuSeqlensQ: cu, cuSeqlensK: cu, maxSeqlenQ: 2, maxSeqlenK: 2 };
  const { out, lse } = flashAttentionVarlenWithLse(q, q, q, options);
  await assertClose(sum(out, { axis: [1, 2] }), [0, 2, 2, 0, 0]);
  const row = Math.log(2) + Math.SQRT2;
  await assertClose(lse, [[-Infinity, row, row, -Infinity, -Infinity]]);
});

Deno.test("flashAttention() is the same in 16-bit storage as in f32 of the same numbers, rounded", async () => {
  const [a, b, c] = split(key(5), 3);
  for (const dtype of ["f16", "bf16"] as const) {
    const [q, k, v] = [a, b, c].map((s) => randn(s, [2, 9, 2, 8], { dtype }));
    const { out, lse } = flashAttentionWithLse(q, k, v, { causal: true });
    assert.equal(out.dtype, dtype);
    assert.equal(lse.dtype, "f32");
    const wide = flashAttentionWithLse(cast(q, "f32"), cast(k, "f32"), cast(v, "f32"), { causal: true });
    await assertClose(out, cast(wide.out, dtype), { rtol: 0, atol: 0 });
    await assertClose(lse, wide.lse);
  }
});

Deno.test("flashAttention() keeps scaled-up scores finite", async () => {
  const [a, b, c] = split(key(6), 3);
  const [q, k, v] = [a, b, c].map((s, i) => mul(randn(s, [1, 33, 2, 16]), i < 2 ? 1e4 : 1));
  const [{ out, lse }, pullback] = vjp((q: Tensor, k: Tensor, v: Tensor) => flashAttentionWithLse(q, k, v), q, k, v);
  for (const x of [out, lse, ...pullback({ out: ones(out.shape), lse: ones(lse.shape) })]) {
    assert.ok((await x.data()).every(Number.isFinite));
  }
});

Deno.test("flashAttention() gives the same bits fifty times, forward and backward", () => {
  const [a, b, c] = split(key(7), 3);
  const q = randn(a, [2, 37, 4, 16]), k = randn(b, [2, 41, 2, 16]), v = randn(c, [2, 41, 2, 16]);
  const dropout = { p: 0.17, key: key(1) };
  const runs = Array.from(
    { length: 50 },
    () =>
      [...grad((q: Tensor, k: Tensor, v: Tensor) => sum(flashAttention(q, k, v, { dropout })), [0, 1, 2])(q, k, v)]
        .map((x) => x.dataSync()),
  );
  for (const run of runs) assert.deepEqual(run, runs[0]);
});

Deno.test("flashAttention() has no second derivative and names naiveAttention()", () => {
  const q = ones([1, 2, 1, 2], f64);
  const twice = (f: typeof flashAttention) =>
    grad((q: Tensor) => sum(mul(q, grad((q: Tensor) => sum(f(q, q, q)))(q))))(q);
  assert.throws(() => twice(flashAttention), /\[flashAttention\].*naiveAttention/);
  assert.equal(twice(naiveAttention).size, 4);
});

Deno.test("flashAttention() computes a bias' gradient only when it is wanted", () => {
  const q = ones([1, 2, 1, 2], f64),
    bias = zeros([2, 2], f64),
    f = (q: Tensor, bias: Tensor) => sum(flashAttention(q, q, q, { bias }));
  const outputs: number[] = [];
  const note = <P>(op: Op<P>, _: readonly Tensor[], __: P, made: readonly Tensor[]): void => {
    if (op.name === "attentionBackward") outputs.push(made.length);
  };
  observe({ note }, () => {
    grad((q: Tensor) => f(q, bias))(q);
    grad(f, [0, 1])(q, bias);
  });
  assert.deepEqual(outputs, [3, 4]);
});
