import assert from "node:assert/strict";
import {
  isMatrixTile,
  laneCount,
  leftStaged,
  matrixRows,
  matrixThreads,
  type MatrixTile,
  mixMatrices,
  paddedSize,
  scoreProduct,
  scratchMemory,
  unitsOf,
} from "./attention_matrix_tiles.ts";

const tiles: MatrixTile[] = [
  { m: 16, n: 8, k: 16, lanes: 32, down: 4, abreast: 1, high: 2, step: 16, pad: 1 },
  { m: 16, n: 8, k: 16, lanes: 32, down: 4, abreast: 1, high: 2, step: 16, pad: 3 },
  { m: 16, n: 16, k: 16, lanes: 32, down: 4, abreast: 1, high: 1, step: 16, pad: 1 },
  { m: 16, n: 16, k: 16, lanes: 32, down: 2, abreast: 1, high: 1, step: 32, pad: 5 },
  { m: 16, n: 8, k: 16, lanes: 32, down: 2, abreast: 2, high: 2, step: 16, pad: 1 },
  { m: 8, n: 8, k: 8, lanes: 8, down: 2, abreast: 1, high: 1, step: 8, pad: 1 },
  { m: 8, n: 8, k: 8, lanes: 8, down: 1, abreast: 2, high: 2, step: 8, pad: 1 },
  { m: 8, n: 8, k: 8, lanes: 32, down: 4, abreast: 1, high: 4, step: 16, pad: 1 },
];

Deno.test("the lanes of a row own each of its scores once", () => {
  for (const tile of tiles) {
    assert.ok(isMatrixTile(tile));
    const owned: number[] = [];
    for (let part = 0; part < laneCount(tile); part++) {
      for (const { column } of unitsOf(tile)) {
        const first = Number(new Function("part", `return ${column.replaceAll("u", "")}`)(part));
        for (let i = 0; i < 8; i++) owned.push(first + i);
      }
    }
    assert.deepEqual(owned.sort((a, b) => a - b), Array.from({ length: tile.step }, (_, i) => i));
    assert.equal(laneCount(tile) * matrixRows(tile), matrixThreads(tile));
  }
});

Deno.test("16-bit scores lie where no other lane reads", () => {
  for (const tile of tiles) {
    for (const { read, write } of unitsOf(tile)) {
      const at = (text: string, part: number): number =>
        Number(
          new Function("part", "rowIn", `return ${text.match(/\[sg\]\[(.*?)\]/)![1].replace(/(\d)u/g, "$1")}`)(part, 0),
        );
      const all = Array.from({ length: laneCount(tile) }, (_, part) => part);
      const writes = all.map((part) => at(write("x", "y"), part));
      for (const part of all) {
        for (const half of [0, 1] as const) {
          const place = at(read("x", half), part);
          assert.ok(all.every((other) => other === part || writes[other] !== place), `${place} of ${writes}`);
        }
      }
    }
  }
});

Deno.test("isMatrixTile() refuses what does not come out even", () => {
  const [tile] = tiles;
  for (const changes of [{ high: 4 }, { high: 1.5 }, { step: 24 }, { step: 8 }, { high: 1, step: 32 }]) {
    assert.equal(isMatrixTile({ ...tile, ...changes }), false, JSON.stringify(changes));
  }
});

Deno.test("every matrix load of a product lies inside its operand, by constants alone", () => {
  for (const tile of tiles) {
    for (const size of [16, 40, 64, 128, 256].map((size) => paddedSize(tile, size))) {
      const staged = { name: "b", rows: tile.step, size };
      const length = tile.step * ((size / 8) | 1);
      const check = (text: string, rows: number, columns: number): number => {
        const loads = [...text.matchAll(/\(&b, (\d+)u, (\d+)u\)/g)].map((
          [, at, stride],
        ) => [Number(at), Number(stride)]);
        for (const [at, stride] of loads) assert.ok(at + (rows - 1) * stride + columns / 8 <= length);
        return new Set(loads.map(([at]) => at)).size;
      };
      const { n, k, step } = tile;
      assert.equal(check(scoreProduct(tile, "s", "a", staged), n, k), size / k * (step / n));
      assert.equal(check(mixMatrices(tile, "o", "p", staged), k, n), size / n * (step / k));
      assert.ok(leftStaged(tile, staged).rows <= step);
    }
    assert.match(scratchMemory(tile, "s"), new RegExp(`, ${tile.down}>;$`));
    assert.match(scratchMemory(tile, "s", 2), new RegExp(`, ${tile.down}>, 2>;$`));
  }
});
