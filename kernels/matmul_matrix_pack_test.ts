import assert from "node:assert/strict";
import { mostOfRows, packMatrix, type PackParts, packSide } from "./matmul_matrix_pack.ts";

const dtypes = ["f16", "bf16", "f32"] as const;

function* everyParts(): Generator<PackParts> {
  for (const dtype of dtypes) {
    for (const [lanes, rows] of [[8, 32], [4, 8], [256, 1]]) {
      for (const vec of [1, 8] as const) yield { dtype, alongK: true, vec, lanes, rows, operands: 1 };
      yield { dtype, alongK: true, vec: 8, lanes, rows, operands: 3 };
      for (const norm of dtypes) {
        if (dtype === "f32") yield { dtype, alongK: true, vec: 8, lanes, rows, operands: 1, norm };
      }
      yield { dtype, alongK: false, vec: 1, lanes, rows, operands: 1 };
    }
  }
}

Deno.test("packMatrix() names a kernel by all of its parameters", () => {
  const names = new Map<string, string>();
  for (const parts of everyParts()) {
    const { name, source } = packMatrix(parts), parameters = JSON.stringify(parts);
    assert.equal(names.get(name) ?? parameters, parameters, `two kernels are called ${name}`);
    names.set(name, parameters);
    assert.doesNotMatch(source, /undefined|NaN|enable |\[object/);
  }
});

Deno.test("packMatrix() writes exponents for bf16 and f32, whose range f16 lacks", () => {
  for (const parts of everyParts()) {
    assert.deepEqual(packMatrix(parts).writes, parts.dtype === "f16" ? ["y"] : ["y", "exponents"]);
  }
});

Deno.test("rows side by side are packed by two kernels for each dtype that needs exponents", () => {
  for (const dtype of ["bf16", "f32"] as const) {
    const [most, side] = [mostOfRows(dtype), packSide(dtype)];
    assert.deepEqual([most.name, side.name], [`matmul_most_${dtype}`, `matmul_pack_${dtype}_side`]);
    assert.deepEqual([most.writes, side.reads, side.writes], [["most"], ["x", "known"], ["y", "exponents"]]);
    for (const { source } of [most, side]) assert.doesNotMatch(source, /undefined|NaN|enable |\[object/);
  }
});
