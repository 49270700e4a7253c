import assert from "node:assert/strict";
import { type AttentionFeatures, featuresName, fits, operandOf, plainAttention, unpack4 } from "./attention_common.ts";

Deno.test("featuresName() tells every set of features apart", () => {
  const flags = ["window", "softcap", "alibi", "mask", "sinks", "dropout", "leftpad", "cacheIndex", "paged"] as const;
  const names = new Set<string>();
  let count = 0;
  for (let bits = 0; bits < 2 ** flags.length; bits++) {
    for (const bias of ["none", "f32", "f16", "bf16"] as const) {
      for (const lengths of ["dense", "varlen", "cache"] as const) {
        const on = Object.fromEntries(flags.map((flag, i) => [flag, (bits >> i & 1) === 1]));
        for (const range of ["none", "slopes", "scaled", "left"] as const) {
          names.add(featuresName({ ...plainAttention, ...on, bias, lengths, range } as AttentionFeatures));
          count++;
        }
      }
    }
  }
  assert.equal(names.size, count);
  assert.equal(featuresName(plainAttention), "");
});

Deno.test("operandOf() loads four numbers at once only where all of an operand's steps allow it", () => {
  const at = { offset: 8, batch: 64, seq: 16, head: 4 };
  assert.equal(operandOf("f32", 4, at).unit, 4);
  for (const changed of [{ offset: 2 }, { batch: 62 }, { seq: 15 }, { head: 5 }]) {
    assert.equal(operandOf("f32", 4, { ...at, ...changed }).unit, 1);
  }
  assert.equal(operandOf("f32", 5, at).unit, 1);
});

Deno.test("fits() counts threads and workgroup memory", () => {
  const tile = { tx: 8, ty: 8, rows: 4, columns: 4, depth: 8 };
  const device = { subgroupSize: 0, maxWorkgroupMemory: 1024, maxInvocations: 64 };
  assert.ok(fits(device, tile, 1024));
  assert.ok(!fits(device, tile, 1025));
  assert.ok(!fits({ ...device, maxInvocations: 63 }, tile, 16));
});

Deno.test("unpack4() reads the halves of two words in order", () => {
  assert.equal(unpack4("f16", "a", "b"), "vec4f(unpack2x16float(a), unpack2x16float(b))");
  assert.match(unpack4("bf16", "a", "b"), /a << 16u, a & 0xffff0000u, b << 16u, b & 0xffff0000u/);
});
