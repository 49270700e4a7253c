import assert from "node:assert/strict";
import { matrixOperandOf, matrixReader } from "./attention_matrix_operands.ts";

Deno.test("bf16 is read as it lies and made f16 apart, so that nothing waits for the load", () => {
  const operand = { storage: "bf16", unit: 8 } as const, text = matrixReader("k", operand, 64, 64, true);
  assert.match(text, /fn k_at\(row: u32, d8: u32\) -> vec4u \{\s+return k\[row \+ d8\]; \}/);
  assert.match(text, /fn k_narrow\(w: vec4u\) -> vec4u \{[^}]*k_power/);
  assert.match(matrixReader("q", { storage: "f32", unit: 4 }, 64, 64, true), /\(x0 \* q_power\)/);
  assert.doesNotMatch(matrixReader("k", { storage: "f16", unit: 8 }, 64, 64), /power/);
});

Deno.test("a reader takes as many elements a load as offset, strides and size allow", () => {
  const at = { offset: 0, batch: 4096, seq: 64, head: 64 };
  assert.equal(matrixOperandOf("f16", 64, at).unit, 8);
  assert.equal(matrixOperandOf("f16", 64, { ...at, offset: 2 }).unit, 2);
  assert.equal(matrixOperandOf("f16", 63, at).unit, 1);
  assert.match(matrixReader("q", { storage: "f16", unit: 8 }, 40, 48), /d8 >= 5u/);
  assert.doesNotMatch(matrixReader("q", { storage: "f16", unit: 8 }, 48, 48), /d8 >=/);
});
