import assert from "node:assert/strict";
import { decode, type DType, encode, type HostArray } from "../tensor/dtype.ts";
import { needAdapter } from "../testing/laws/adapter.ts";
import { draw } from "../testing/laws/both.ts";
import { open } from "./device.ts";
import { each, kernel } from "./kernel.ts";
import type { MatrixParts } from "./matmul_matrix.ts";
import { storer, typeOfC } from "./matmul_matrix_store.ts";
import { BufferPool } from "./memory.ts";
import { Pipelines } from "./pipelines.ts";
import { DispatchQueue } from "./queue.ts";
import { Readback } from "./readback.ts";

/** Rows of C, and rows and columns that sums come for; where C and what is added begin. */
const rows = 3, [height, width] = [4, 24], offset_c = 16, offset_r = 8;

/** Digits of an element, those of arithmetic where it has as many. */
const digits = { f32: 20, f16: 11, bf16: 8 };

/** A kernel that has sums from a buffer where a product has them from a strip, and stores them. */
const storing = (name: string, parts: MatrixParts) => {
  const sums = parts.gate ? 4 : 2, type = typeOfC(parts);
  return kernel(name, {
    reads: { x: "vec4f", scale_a: "i32", scale_b: "i32", ...parts.adds === "r" ? { r: type } : {} },
    writes: { c: type },
    uniforms: { m: "u32", n: "u32", offset_c: "u32", offset_r: "u32" },
  }, () => {
    const exponents = each(
      sums,
      (i) => `vec4i(${each(4, (j) => `scale_b[${i < 2 ? 0 : width}u + n + ${4 * (i % 2) + j}u]`).join(", ")})`,
    );
    const given = [
      ...["u.offset_c", "li / 3u", "n", ...each(sums, (i) => `x[li * ${sums}u + ${i}u]`)],
      ...parts.scaledA ? ["0u"] : [],
      ...parts.scaledB ? exponents : [],
    ];
    return `${storer(parts, width)}
@compute @workgroup_size(${height * width / 8}) fn main(@builtin(local_invocation_index) li: u32) {
  let n = li % 3u * 8u; let unused = scale_a[0] + scale_b[0];
  store(${given.join(", ")});
}`;
  });
};

Deno.test("sums are scaled, gated, added to and rounded into C, in every type and width, and nothing beside C changes", async () => {
  const opened = await needAdapter(open()), { device, capabilities } = opened;
  const fail = (error: Error) => {
    throw error;
  };
  const queue = new DispatchQueue(device), pipelines = new Pipelines(opened, queue.uniforms, fail);
  const pool = new BufferPool(device, capabilities.maxBinding, () => {}, fail), readback = new Readback(device, queue);
  const upload = (dtype: DType, data: HostArray) => {
    const bytes = encode(dtype, data), buffer = pool.take(bytes.length, "test");
    queue.write(buffer, bytes);
    return { buffer, bytes };
  };
  for (const out of ["f32", "f16", "bf16"] as const) {
    for (const [n, outVec] of [[16, 8], [12, 4], [10, 2], [7, 1]] as const) {
      if (outVec === 1 && out !== "f32") continue;
      for (const adds of [undefined, "c", "r"] as const) {
        for (const gate of [undefined, "joined"] as const) {
          const scaled = gate !== undefined, sums = gate ? 2 : 1;
          const parts: MatrixParts = {
            ...{ transposedA: false, transposedB: true, out, outVec, exactK: true, inner: 1, adds, gate },
            ...{ scaledA: scaled, scaledB: scaled, deviceRounds: false },
          };
          const x = draw(n, [height, 3, sums, 8]).dataSync();
          const a = Int32Array.from({ length: height }, (_, i) => i - 1);
          const b = Int32Array.from({ length: 2 * width }, (_, i) => i % 5 - 2);
          const size = offset_c + rows * n + 8, held = Float32Array.from({ length: size }, (_, i) => i % 13 - 6);
          const more = held.map((v) => 2 * v + 1), c = upload(out, held);
          const given = [
            upload("f32", x),
            upload("i32", a),
            upload("i32", b),
            ...adds === "r" ? [upload(out, more)] : [],
          ];
          const uniforms = { m: rows, n, offset_c, offset_r };
          const name = `store_${out}_${n}_${adds}_${gate}`;
          queue.dispatch(pipelines, storing(name, parts), [...given, c].map(({ buffer }) => buffer), uniforms, [
            1,
            1,
            1,
          ]);
          const got = decode(out, await readback.read(c.buffer.buffer, 0, c.bytes.length));
          held.forEach((before, i) => {
            const at = i - offset_c, row = Math.floor(at / n), column = at % n;
            if (at < 0 || row >= rows) return assert.equal(got[i], before, `${name} ${i}`);
            const [value, up = 1] = Array.from(
              { length: sums },
              (_, s) =>
                x[((row * 3 + Math.floor(column / 8)) * sums + s) * 8 + column % 8] *
                (scaled ? 2 ** (a[row] + b[s * width + column]) : 1),
            );
            const product = gate ? value / (1 + Math.exp(-value)) * up : value;
            const exact = product + (adds === "c" ? before : adds === "r" ? more[at + offset_r] : 0);
            const slack = Math.abs(exact) * 2 ** -digits[out] + Math.abs(product) * 2 ** -20 + 2 ** -24;
            assert.ok(Math.abs(got[i] - exact) <= slack, `${name} ${i}: ${got[i]} for ${exact}`);
          });
        }
      }
    }
  }
  device.destroy();
});
