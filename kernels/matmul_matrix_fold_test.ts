import assert from "node:assert/strict";
import { matmulMatrix, type MatrixParts, type MatrixTile, stripColumns } from "./matmul_matrix.ts";

const tile: MatrixTile = {
  ...{ kind: "matrix", bm: 128, bn: 128, bk: 32, wm: 64, wn: 64, buffers: 1, splits: 1, lanes: 32 },
  unit: { m: 16, n: 16, k: 16 },
};
const parts: MatrixParts = {
  ...{ transposedA: false, transposedB: true, out: "f32", outVec: 8, exactK: true, inner: 4 },
  ...{ scaledA: true, scaledB: true, deviceRounds: false },
};

Deno.test("folded products name their options, and write strips and no C", () => {
  assert.equal(stripColumns(tile, parts), 64);
  const names = new Set([matmulMatrix(tile, parts).name]);
  for (const softcap of [false, true]) {
    for (const sum of [false, true]) {
      const { name, source, reads, writes } = matmulMatrix(tile, { ...parts, fold: { softcap, sum } });
      assert.ok(!names.has(name), name);
      names.add(name);
      assert.deepEqual(reads, ["a", "b", "scale_a", "scale_b", "labels"]);
      assert.deepEqual(writes, ["c", "chosen", ...sum ? ["sums"] : []]);
      assert.match(source, /n \/ 64u/);
      assert.doesNotMatch(source, /undefined|NaN|\[object/);
    }
  }
});
