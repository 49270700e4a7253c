import assert from "node:assert/strict";
import { cpu } from "./cpu.ts";
import { flashAttentionWithKvCache } from "./attention_cache.ts";
import { tensor } from "./create.ts";
import { decodeAttention } from "./decode_attention.ts";
import { mul } from "./elementwise.ts";
import { reshape, slice } from "./movement.ts";
import { foldIn, key, randn } from "./random.ts";
import { assertClose, boolean, integer, property } from "../testing/mod.ts";

const backend = cpu();

property("decodeAttention() is flashAttentionWithKvCache() of the same queries, keys and values", [
  integer(1, 2),
  integer(1, 3),
  integer(0, 5),
  boolean(),
], async (batch, group, past, paged) => {
  const [kvHeads, size] = [2, 8], heads = group * kvHeads;
  const draw = (i: number, shape: number[]) => randn(foldIn(key(3, { backend }), i), shape);
  const qkv = draw(1, [batch, 1, (heads + 2 * kvHeads) * size]), cos = draw(2, [9, 4]), sin = draw(3, [9, 4]);
  const part = (from: number, to: number) =>
    reshape(slice(qkv, [0, 0, from * size], [batch, 1, to * size]), [batch, 1, to - from, size]);
  const shape = [...(paged ? [batch * 3, 2] : [batch, 6]), kvHeads, size];
  const cache = () => ({ k: mul(draw(4, shape), 1), v: mul(draw(5, shape), 1) });
  const blockTable = paged
    ? tensor(Int32Array.from({ length: batch * 3 }, (_, i) => batch * 3 - 1 - i), { shape: [batch, 3], backend })
    : undefined;
  const lengths = tensor(new Int32Array(batch).fill(past), { backend });
  const got = decodeAttention(qkv, cache(), { heads, cos, sin, lengths, blockTable });
  const want = flashAttentionWithKvCache(part(0, heads), cache(), {
    k: part(heads, heads + kvHeads),
    v: part(heads + kvHeads, heads + 2 * kvHeads),
    ...{ cacheSeqlens: lengths, rotary: { cos, sin }, causal: true, blockTable },
  });
  await assertClose(got.out, want.out, { rtol: 1e-5, atol: 1e-5 });
  await assertClose(got.cache.k, want.cache.k, { rtol: 1e-6, atol: 1e-6 });
  assert.deepEqual(await got.cache.v.data(), await want.cache.v.data());
});
