import assert from "node:assert/strict";
import { matrixUnits } from "../tensor/backend.ts";
import { cpu } from "../tensor/cpu.ts";
import { tensor } from "../tensor/create.ts";
import { abs } from "../tensor/elementwise.ts";
import { slice, transpose } from "../tensor/movement.ts";
import { project } from "../tensor/project.ts";
import { key, randn } from "../tensor/random.ts";
import type { Tensor } from "../tensor/tensor.ts";
import { compile } from "../tensor/compile.ts";
import { assertClose } from "../testing/close.ts";
import { needAdapter } from "../testing/laws/adapter.ts";
import { draw, stored } from "../testing/laws/both.ts";
import { webgpu } from "./webgpu.ts";

const backends = [cpu(), await needAdapter(webgpu())];

/** Whether products with 16-bit weights go through matrix units. */
const units = matrixUnits(backends[1].capabilities).length > 0;

Deno.test("one dispatch for up to 32 rows, and the same result for more", async () => {
  const draw = (seed: number, shape: number[]) => randn(key(seed, { backend: backends[0] }), shape);
  for (const [rows, dispatches] of [[8, 1], [9, 1], [32, 1], [33, undefined]] as const) {
    const host = [draw(1, [rows, 64]), draw(2, [64]), draw(3, [24, 64]), draw(4, [24, 64]), draw(5, [rows, 24])];
    const f = (x: Tensor, weight: Tensor, gate: Tensor, up: Tensor, residual: Tensor) =>
      project(x, [gate, up], { norm: { weight, eps: 1e-5 }, gated: true, residual });
    const want = await f(host[0], host[1], host[2], host[3], host[4]).data();
    const on = host.map((x) => tensor(x.dataSync(), { shape: x.shape, backend: backends[1] }));
    using compiled = compile(f);
    assertClose(await compiled(on[0], on[1], on[2], on[3], on[4]).data(), want, { rtol: 1e-4, atol: 1e-4 });
    if (dispatches !== undefined) assert.equal(compiled.recordings[0].dispatches, dispatches);
  }
});

Deno.test("weights that are views, or of odd lengths, give the same", async () => {
  for (const [k, from] of [[64, 3], [61, 0], [60, 1]]) {
    const [a, b] = await Promise.all(backends.map((backend) => {
      const at = (seed: number, shape: number[]) =>
        tensor(randn(key(seed, { backend: backends[0] }), shape).dataSync(), { shape, backend });
      const w = slice(at(2, [9, k + 4]), [0, from], [9, from + k]);
      return project(at(1, [2, 2, k]), [w, w]).data();
    }));
    assertClose(b, a, { rtol: 1e-4, atol: 1e-4 });
  }
});

Deno.test("a residual is added by the product's store, in place where it lies in rows", async () => {
  for (const dtype of stored) {
    for (
      const [rows, k, widths] of [[33, 24, [20]], [40, 61, [27]], [70, 40, [6]], [37, 24, [16, 24]]] as [
        number,
        number,
        number[],
      ][]
    ) {
      const n = widths.reduce((a, b) => a + b), dims = [[rows, k], [rows + 1, n], [n, rows]];
      const host = [...dims.map((shape, i) => draw(i, shape)), ...widths.map((w, i) => draw(3 + i, [w, k], dtype))];
      const on = host.map((x) => tensor(x.dataSync(), { shape: x.shape, dtype: x.dtype, backend: backends[1] }));
      const lies: ((below: Tensor, turned: Tensor) => Tensor)[] = [
        (below) => slice(below, [1, 0], [rows + 1, n]),
        (_, turned) => transpose(turned),
      ];
      for (const [i, residualOf] of lies.entries()) {
        const f = (x: Tensor, below: Tensor, turned: Tensor, ...w: Tensor[]) =>
          project(x, w, { residual: residualOf(below, turned) });
        using compiled = compile(f);
        const [x, below, turned, ...weights] = on, got = await compiled(x, below, turned, ...weights).data();
        const exact = f(host[0], host[1], host[2], ...host.slice(3)).dataSync();
        const size = project(abs(host[0]), host.slice(3).map((w) => abs(w))).dataSync();
        // Matrix units take eleven digits of x.
        exact.forEach((y, j) => assert.ok(Math.abs(got[j] - y) <= size[j] * 2 ** -11 + Math.abs(y) * 2 ** -22, `${j}`));
        const names = compiled.recordings[0].kernels.map(({ name }) => name);
        const copies = names.filter((name) => /^(cast|turn)/.test(name)).length;
        if (widths.length === 1) {
          assert.ok(copies <= (i === 0 && n % 4 === 0 ? 0 : k % 8 === 0 || i === 0 ? 1 : 2), `${names}`);
        }
        assert.equal(
          names.some((name) => name.includes("_residual")),
          widths.length === 1 || units && dtype !== "f32",
          `${names}`,
        );
      }
    }
  }
});

Deno.test("a gate closes in the product's store on matrix units, whatever the sizes, with a norm and a residual", async () => {
  for (const dtype of ["bf16", "f16"] as const) {
    for (
      const [rows, k, n, residual] of [[33, 24, 5, true], [40, 64, 27, false], [70, 40, 50, true], [
        37,
        8,
        16,
        false,
      ]] as const
    ) {
      const shapes = [[rows, k], [k], [n, k], [n, k], [rows, n]];
      const host = shapes.map((shape, i) => draw(i, shape, i === 2 || i === 3 ? dtype : "f32"));
      const on = host.map((x) => tensor(x.dataSync(), { shape: x.shape, dtype: x.dtype, backend: backends[1] }));
      const f = ([x, weight, gate, up, more]: Tensor[]) =>
        project(x, [gate, up], { gated: true, norm: { weight, eps: 1e-5 }, ...residual ? { residual: more } : {} });
      using compiled = compile((...given: Tensor[]) => f(given));
      const got = await compiled(...on).data(), want = f(host).dataSync();
      const [g, u, gSize, uSize] = [host[2], host[3], abs(host[2]), abs(host[3])].map((w, i) =>
        project(i < 2 ? host[0] : abs(host[0]), [w], {
          norm: { weight: i < 2 ? host[1] : abs(host[1]), eps: 1e-5 },
        }).dataSync()
      );
      want.forEach((y, i) => {
        // What eleven digits of the normed x leave open in both products: |silu'| < 1.1, |silu g| <= |g|.
        const [dg, du] = [gSize[i] * 2 ** -11, uSize[i] * 2 ** -11];
        const open = 1.1 * dg * (Math.abs(u[i]) + du) + Math.abs(g[i]) * du + Math.abs(y) * 2 ** -20;
        assert.ok(Math.abs(got[i] - y) <= open, `${dtype} ${[rows, k, n]}, ${i}: ${got[i]} for ${y}, ${open}`);
      });
      if (!units) continue;
      const names = compiled.recordings[0].kernels.map(({ name }) => name);
      const how = dtype === "f16" ? "apart" : "joined";
      assert.equal(names.filter((name) => name.startsWith("matmul_matrix")).length, 1, `${names}`);
      assert.ok(
        names.some((name) => name.includes(`_gate_${how}`)) && !names.some((name) => name.startsWith("swiglu")),
      );
    }
  }
});

Deno.test("many rows are normed on their way into matrix units, rows of any size, with weights of any type", async () => {
  for (
    const [k, n, eps] of [[24, [16], 1e-5], [264, [8, 16, 5], 1e-6], [61, [8], 1e-5]] as [number, number[], number][]
  ) {
    for (const [dtype, type] of [["bf16", "bf16"], ["f16", "f32"], ["bf16", "f16"], ["f16", "bf16"]] as const) {
      const rows = 36, values = draw(1, [rows, k]).dataSync(), held = draw(2, [k + 8], type).dataSync();
      // Rows from 10^-9 to 10^9, one of zeros, one that has a NaN.
      const x = values.map((v, i) => {
        const row = Math.floor(i / k);
        return row === 7 ? 0 : row === 8 && i % k === 3 ? NaN : v * 10 ** (row % 19 - 9);
      });
      const weights = n.map((n, i) => draw(3 + i, [n, k], dtype));
      const [host, on] = backends.map((backend) => [
        tensor(x, { shape: [rows, k], backend }),
        slice(tensor(held, { shape: [k + 8], dtype: type, backend }), [8], [k + 8]),
        ...weights.map((w) => tensor(w.dataSync(), { shape: w.shape, dtype, backend })),
      ]);
      const f = (x: Tensor, weight: Tensor, ...w: Tensor[]) => project(x, w, { norm: { weight, eps } });
      using compiled = compile(f);
      const [a, b, ...w] = on,
        got = await compiled(a, b, ...w).data(),
        want = f(host[0], host[1], ...host.slice(2)).dataSync();
      const size = f(abs(host[0]), abs(host[1]), ...host.slice(2).map((w) => abs(w))).dataSync();
      want.forEach((y, i) => {
        if (Number.isNaN(y)) assert.ok(Number.isNaN(got[i]), `${i}: ${got[i]}`);
        else assert.ok(Math.abs(got[i] - y) <= size[i] * 2 ** -11, `${dtype} ${type} ${k}, ${i}: ${got[i]} for ${y}`);
      });
      if (!units) continue;
      const names = compiled.recordings[0].kernels.flatMap(({ name, calls }) => Array<string>(calls).fill(name));
      const normed = names.filter((name) => name.startsWith("matmul_pack_f32") && name.includes("_norm_"));
      assert.deepEqual(
        [normed.length, names.filter((name) => name.startsWith("rmsnorm")).length],
        k % 8 ? [0, 1] : [1, 0],
      );
    }
  }
});
