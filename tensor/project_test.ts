import { eager } from "./eager.ts";
import "./cpu.ts";
import { add } from "./elementwise.ts";
import { matmul } from "./matmul.ts";
import { concat } from "./movement.ts";
import { project } from "./project.ts";
import { foldIn, key, randn } from "./random.ts";
import { assertClose, boolean, integer, property, tuple } from "../testing/mod.ts";

property("project() is the norm, the products and the sum, one after another", [
  tuple(integer(1, 3), integer(1, 7), integer(1, 6)),
  boolean(),
  boolean(),
], async ([rows, k, n], normed, gated) => {
  const draw = (i: number, shape: number[]) => randn(foldIn(key(1), i), shape);
  const x = draw(1, [2, rows, k]), weight = draw(2, [k]), w = [draw(3, [n, k]), draw(4, [n, k])];
  const residual = draw(5, [2, rows, gated ? n : 2 * n]);
  const from = normed ? eager.rmsNorm(x, weight, { eps: 0.1 }) : x;
  const [a, b] = w.map((w) => matmul(from, w, { transposeB: true }));
  const want = add(gated ? eager.swiglu(a, b) : concat([a, b], { axis: 2 }), residual);
  const got = project(x, w, { norm: normed ? { weight, eps: 0.1 } : undefined, gated, residual });
  await assertClose(got, want, { rtol: 1e-5, atol: 1e-5 });
});
