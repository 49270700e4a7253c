import assert from "node:assert/strict";
import { cpu } from "./cpu.ts";
import { flashAttentionWithKvCache } from "./attention_cache.ts";
import { tensor, zeros } from "./create.ts";
import { broadcastTo, reshape, slice } from "./movement.ts";
import { foldIn, key, randn } from "./random.ts";
import { rotaryEmbedding } from "./rotary.ts";
import { rotaryAppend } from "./rotary_append.ts";
import { assertClose, integer, property } from "../testing/mod.ts";

const backend = cpu();

property("rotaryAppend() turns as rotaryEmbedding() does and writes as attention over a cache does", [
  integer(1, 2),
  integer(1, 3),
  integer(1, 3),
  integer(0, 3),
], async (batch, count, group, past) => {
  const [kvHeads, size] = [2, 8], heads = group * kvHeads;
  const draw = (i: number, shape: number[]) => randn(foldIn(key(3, { backend }), i), shape);
  const qkv = draw(1, [batch, count, (heads + 2 * kvHeads) * size]), cos = draw(2, [9, 4]), sin = draw(3, [9, 4]);
  const part = (from: number, to: number) =>
    reshape(slice(qkv, [0, 0, from * size], [batch, count, to * size]), [batch, count, to - from, size]);
  const empty = () => ({
    k: zeros([batch, 6, kvHeads, size], { backend }),
    v: zeros([batch, 6, kvHeads, size], { backend }),
  });
  const lengths = tensor(new Int32Array(batch).fill(past), { backend });
  const { q, cache } = rotaryAppend(qkv, empty(), { heads, cos, sin, lengths });
  const positions = tensor(Int32Array.from({ length: count }, (_, i) => past + i), { backend });
  for (const given of [positions, broadcastTo(positions, [batch, count])]) {
    assert.deepEqual(
      await rotaryAppend(qkv, empty(), { heads, cos, sin, lengths, positions: given }).q.data(),
      await q.data(),
    );
  }
  const [turned] = rotaryEmbedding([part(0, heads)], cos, sin, { positions });
  await assertClose(q, turned, { rtol: 1e-6, atol: 1e-6 });
  const { cache: want } = flashAttentionWithKvCache(part(0, heads), empty(), {
    k: part(heads, heads + kvHeads),
    v: part(heads + kvHeads, heads + 2 * kvHeads),
    cacheSeqlens: past,
    rotary: { cos, sin },
    causal: true,
  });
  await assertClose(cache.k, want.k, { rtol: 1e-6, atol: 1e-6 });
  assert.deepEqual(await cache.v.data(), await want.v.data());
});
