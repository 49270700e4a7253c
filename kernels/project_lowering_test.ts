import assert from "node:assert/strict";
import { cpu } from "../tensor/cpu.ts";
import { tensor } from "../tensor/create.ts";
import { slice } from "../tensor/movement.ts";
import { project } from "../tensor/project.ts";
import { key, randn } from "../tensor/random.ts";
import type { Tensor } from "../tensor/tensor.ts";
import { compile } from "../tensor/compile.ts";
import { assertClose } from "../testing/close.ts";
import { needAdapter } from "../testing/laws/adapter.ts";
import { webgpu } from "./webgpu.ts";

const backends = [cpu(), await needAdapter(webgpu())];

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
