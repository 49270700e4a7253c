import assert from "node:assert/strict";
import { tensor } from "../tensor/create.ts";
import { swigluMlp } from "./mod.ts";

Deno.test("swigluMlp() is down(silu(gate x) · up x)", async () => {
  const params = {
    gate: { weight: tensor([[1, 0], [0, 2]]) },
    up: { weight: tensor([[0, 1], [1, 1]]) },
    down: { weight: tensor([[1, -1]]) },
  };
  const [a, b] = [0.5, -3], silu = (v: number) => v / (1 + Math.exp(-v));
  const want = silu(a) * b - silu(2 * b) * (a + b);
  const [[got]] = await swigluMlp(params, tensor([[a, b]])).array() as number[][];
  assert(Math.abs(got - want) < 1e-6, `${got} for ${want}`);
});
