import assert from "node:assert/strict";
import { ones, tensor } from "../tensor/create.ts";
import { slice } from "../tensor/movement.ts";
import { foldIn, key, randn } from "../tensor/random.ts";
import { assertClose, elementOf, integer, property } from "../testing/mod.ts";
import { multiHeadAttention } from "./mod.ts";

const weight = (i: number, out: number, size: number) => ({ weight: randn(foldIn(key(1), i), [out, size]) });
const params = { q: weight(1, 8, 6), k: weight(2, 4, 6), v: weight(3, 4, 6), o: weight(4, 6, 8) };
const heads = { heads: 4, kvHeads: 2 };

property("multiHeadAttention() over a cache gives what it gives over the whole", [
  integer(1, 2),
  integer(1, 5),
  integer(1, 4),
  elementOf("flash", "naive"),
], async (batch, past, length, attention) => {
  const total = past + length, x = randn(key(2), [batch, total, 6]);
  const whole = multiHeadAttention(params, x, { ...heads, attention });
  const first = multiHeadAttention(params, slice(x, [0, 0, 0], [batch, past, 6]), {
    ...heads,
    attention,
    cache: { past: 0, capacity: 3 },
  });
  const then = multiHeadAttention(params, slice(x, [0, past, 0], [batch, total, 6]), {
    ...heads,
    attention,
    cache: { seen: first.cache, past, capacity: first.cache!.k.shape[1] },
  });
  await assertClose(then.out, slice(whole.out, [0, past, 0], [batch, total, 6]), { rtol: 1e-4, atol: 1e-5 });
});

Deno.test("a mask hides keys, also those in a cache with room to spare", async () => {
  const x = randn(key(3), [1, 4, 6]), mask = tensor([[[[false, true, true, true]]]]);
  const options = { ...heads, causal: false } as const, tail = slice(x, [0, 1, 0], [1, 4, 6]);
  const want = slice(multiHeadAttention(params, tail, options).out, [0, 2, 0], [1, 3, 6]);
  for (const attention of ["flash", "naive"] as const) {
    const direct = multiHeadAttention(params, x, { ...options, mask, attention }).out;
    await assertClose(slice(direct, [0, 3, 0], [1, 4, 6]), want, { rtol: 1e-4, atol: 1e-5 });
    const { cache } = multiHeadAttention(params, slice(x, [0, 0, 0], [1, 3, 6]), {
      ...options,
      attention,
      cache: { past: 0, capacity: 8 },
    });
    const { out } = multiHeadAttention(params, slice(x, [0, 3, 0], [1, 4, 6]), {
      ...options,
      mask,
      attention,
      cache: { seen: cache, past: 3, capacity: 8 },
    });
    await assertClose(out, want, { rtol: 1e-4, atol: 1e-5 });
  }
});

Deno.test("multiHeadAttention() refuses heads that do not divide, other shapes and other algorithms", () => {
  const x = ones([1, 3, 6]);
  assert.throws(() => multiHeadAttention(params, x, { heads: 4, kvHeads: 3 }), /3 key\/value heads divide 4/);
  assert.throws(() => multiHeadAttention(params, x, { heads: 3 }), /which divide 8/);
  assert.throws(() => multiHeadAttention(params, ones([3, 6]), heads), /x is \[B, S, size\]/);
  const attention = "fast" as "flash";
  assert.throws(() => multiHeadAttention(params, x, { ...heads, attention }), /"flash" or "naive", got "fast"/);
});
