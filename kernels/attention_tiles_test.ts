import assert from "node:assert/strict";
import { columnOf, rowOf, tileMemory, workgroupBytes } from "./attention_tiles.ts";

const tiles = [
  { tx: 16, ty: 16, rows: 4, columns: 4, depth: 16 },
  { tx: 8, ty: 16, rows: 8, columns: 4, depth: 8 },
  { tx: 4, ty: 8, rows: 4, columns: 8, depth: 32 },
];

/** What WGSL text evaluates to for one thread. */
function evaluate(text: string, tx: number, ty: number): number {
  return Function("tx", "ty", `return ${text.replaceAll(/(\d)u/g, "$1")}`)(tx, ty);
}

Deno.test("every row and column of a tile belongs to exactly one thread", () => {
  for (const tile of tiles) {
    const rows: number[] = [], columns: number[] = [];
    for (let ty = 0; ty < tile.ty; ty++) {
      for (let r = 0; r < tile.rows; r++) rows.push(evaluate(rowOf(tile, r), 0, ty));
    }
    for (let tx = 0; tx < tile.tx; tx++) {
      for (let c = 0; c < tile.columns; c++) columns.push(evaluate(columnOf(tile, c), tx, 0));
    }
    const sorted = (places: number[]) => places.sort((a, b) => a - b);
    assert.deepEqual(sorted(rows), [...Array(tile.ty * tile.rows).keys()]);
    assert.deepEqual(sorted(columns), [...Array(tile.tx * tile.columns).keys()]);
  }
});

Deno.test("workgroupBytes() is what tileMemory() declares", () => {
  for (const tile of tiles) {
    for (const outs of [1, 2, 4]) {
      const declared = [
        ...tileMemory(tile, outs).matchAll(/array<array<array<array<vec4f, (\d+)>, (\d+)>, 4>, (\d+)>/g),
      ]
        .reduce((bytes, [, lanes, quads, depth]) => bytes + 16 * 4 * Number(lanes) * Number(quads) * Number(depth), 0);
      assert.equal(workgroupBytes(tile, outs, false), declared);
      const scratch = workgroupBytes(tile, outs, true) - declared;
      assert.equal(scratch, 4 * tile.tx * tile.ty * tile.rows);
    }
  }
});
