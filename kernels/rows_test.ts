import assert from "node:assert/strict";
import { decode, type DType, encode } from "../tensor/dtype.ts";
import { needAdapter } from "../testing/laws/adapter.ts";
import { open } from "./device.ts";
import { kernel } from "./kernel.ts";
import { BufferPool } from "./memory.ts";
import { Pipelines } from "./pipelines.ts";
import { DispatchQueue } from "./queue.ts";
import { Readback } from "./readback.ts";
import {
  joinLanes,
  laneMemory,
  pickRows,
  pickVec,
  readRow,
  rowEntry,
  rowGrid,
  rowName,
  rowOutput,
  type RowTile,
  rowType,
  walkRows,
  writeRow,
} from "./rows.ts";
import { roundingFunctions } from "./storage.ts";

const opened = await needAdapter(open());
const fail = (error: Error) => {
  throw error;
};
const queue = new DispatchQueue(opened.device);
const pipelines = new Pipelines(opened, queue.uniforms, fail);
const pool = new BufferPool(opened.device, 2 ** 24, () => {}, fail);
const readback = new Readback(opened.device, queue);
const dtypes: DType[] = ["f32", "f16", "bf16"];

/** y = x + the sum of x's row + its largest element: a walk that takes in a row, meets twice, and writes. */
const shifted = (dtype: DType, tile: RowTile) => {
  const output = rowOutput(dtype, tile);
  return kernel(`rows_test_${rowName(tile)}_${dtype}`, {
    reads: { x: rowType(dtype, tile) },
    writes: { y: rowType(output, tile) },
    uniforms: { rows: "u32", loads: "u32" },
  }, () => {
    const walk = walkRows(tile, ["e"], ([e], at) => {
      const { text, parts } = readRow(dtype, tile, "x", at);
      return `${text} ${e.map((v, j) => `${v} = ${parts[j]};`).join(" ")}`;
    });
    return `${roundingFunctions(output)}
${laneMemory(2)}
${rowEntry} {
  ${walk.open}
  var sum = 0.0; var top = -1e9;
  ${walk.sweep(([e]) => e.map((v) => `sum += ${v}; top = max(top, ${v});`).join(" "))}
  ${joinLanes(tile, ["sum"])}
  ${joinLanes(tile, ["top"], (a, b) => `max(${a}, ${b})`)}
  ${walk.sweep(([e], at) => writeRow(output, tile, "y", at, e.map((v) => `${v} + sum + top`)))}
}`;
  });
};

async function run(dtype: DType, tile: RowTile, rows: number, n: number): Promise<void> {
  const values = Float32Array.from({ length: rows * n }, (_, i) => i * 37 % 11 - 5), output = rowOutput(dtype, tile);
  const bytes = encode(dtype, values);
  const [x, y] = [pool.take(bytes.byteLength, "test"), pool.take(4 * values.length, "test")];
  queue.write(x, new Uint8Array([...bytes, ...Array((4 - bytes.byteLength % 4) % 4).fill(0)]));
  const { maxWorkgroups } = opened.capabilities;
  queue.dispatch(
    pipelines,
    shifted(dtype, tile),
    [x, y],
    { rows, loads: n / tile.vec },
    rowGrid(tile, rows, maxWorkgroups),
  );
  const size = output === "f32" ? 4 : 2;
  const got = decode(output, await readback.read(y.buffer, 0, Math.ceil(size * values.length / 4) * 4));
  const expected = values.map((v, i) => {
    const row = values.slice(i - i % n, i - i % n + n);
    return v + row.reduce((a, b) => a + b) + Math.max(...row);
  });
  assert.deepEqual([...got.subarray(0, values.length)], [
    ...decode(output, encode(output, expected)),
  ]);
  x.free();
  y.free();
}

for (const dtype of dtypes) {
  Deno.test(`a walk over ${dtype} rows takes in every element of a row once, and writes each`, async () => {
    for (const [rows, n] of [[1, 1], [5, 3], [40, 8], [3, 30], [3, 100], [7, 256], [2, 1000], [2, 2051], [1, 4096]]) {
      await run(dtype, pickRows(dtype, n), rows, n);
    }
    for (const vec of [1, 4] as const) await run(dtype, { lanes: 8, vec, held: 0 }, 33, 68); // reads at each sweep
  });
}

Deno.test("pickRows() covers a row, and keeps it in registers while it fits", () => {
  for (const dtype of dtypes) {
    for (let n = 1; n < 20_000; n += n < 300 ? 1 : 77) {
      const { lanes, vec, held } = pickRows(dtype, n);
      assert.equal(n % vec, 0);
      assert.equal(256 % lanes, 0);
      if (held > 0) assert(lanes * held * vec >= n, `${n}: ${[lanes, vec, held]}`);
      else assert(n / vec > 2048, `${n} would fit`);
    }
  }
});

Deno.test("pickVec() gives the widest load that all counts are multiples of", () => {
  assert.deepEqual(["f32", "bf16"].map((dtype) => pickVec(dtype as DType, [16, 8])), [4, 8]);
  assert.deepEqual(["f32", "bf16"].map((dtype) => pickVec(dtype as DType, [16, 12])), [4, 4]);
  assert.deepEqual(["f32", "bf16"].map((dtype) => pickVec(dtype as DType, [16, 6])), [1, 1]);
});
