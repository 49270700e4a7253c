/** jax-js: its `nn.dotProductAttention` and `matmul`, gradients by its `grad`, all under its `jit`. */
import {
  type Array as JaxArray,
  defaultDevice,
  getWebGPUDevice,
  grad,
  init,
  jit,
  nn,
  numpy as np,
} from "npm:@jax-js/jax@0.1.25";
import { serve } from "./work.ts";

// Its arrays are spent by each use; `.ref` is one more use.
type F = (...x: JaxArray[]) => JaxArray | JaxArray[];

await serve(async () => {
  const devices = await init("webgpu");
  if (!devices.includes("webgpu")) throw new Error("jax-js found no WebGPU device");
  defaultDevice("webgpu");
  const { description, device, vendor } = getWebGPUDevice().adapterInfo ?? {};
  return {
    adapter: description || device || vendor || "unknown",
    prepare: (work, inputs) => {
      const shape = work.kind === "matmul" ? [work.n, work.n] : [work.batch, work.seqlen, work.heads, work.headDim];
      const dtype = work.dtype === "f16" ? np.float16 : np.float32;
      const given = inputs.map((values) => np.array(values, { shape }).astype(dtype));
      const attend = (q: JaxArray, k: JaxArray, v: JaxArray) =>
        nn.dotProductAttention(q, k, v, { isCausal: work.kind !== "matmul" && work.causal });
      const gradients = grad(
        (q: JaxArray, k: JaxArray, v: JaxArray, w: JaxArray) => attend(q, k, v).mul(w).sum(),
        { argnums: [0, 1, 2] },
      ) as unknown as (...x: JaxArray[]) => JaxArray[];
      const f = jit(
        (work.kind === "matmul" ? np.matmul : work.kind === "forward" ? attend : gradients) as F,
      ) as unknown as F;
      // What a link passes on: the product, the output as the next queries, or what the gradients are added to.
      const link = work.kind === "gradients"
        ? jit((q: JaxArray, k: JaxArray, v: JaxArray, w: JaxArray) => {
          const [dq, dk, dv] = gradients(q.ref, k.ref, v.ref, w);
          return [q.add(dq), k.add(dk), v.add(dv)];
        }) as unknown as F
        : f;
      const listOf = (y: JaxArray | JaxArray[]) => Array.isArray(y) ? y : [y];
      return Promise.resolve({
        how: work.kind === "matmul"
          ? "numpy.matmul, jit"
          : `nn.dotProductAttention, jit${work.kind === "gradients" ? ", grad" : ""}`,
        results: async () => {
          const found = listOf(f(...given.map((x) => x.ref)));
          const values: Float32Array[] = [];
          for (const x of found) values.push(await x.astype(np.float32).data() as Float32Array);
          return values;
        },
        chain: async (n) => {
          let x = given.map((x) => x.ref);
          for (let i = 0; i < n; i++) {
            const next = listOf(link(...x));
            x = [...next, ...given.slice(next.length).map((x) => x.ref)];
          }
          const [first, ...rest] = x;
          for (const other of rest) other.dispose();
          await first.slice(...shape.map(() => 0)).astype(np.float32).data();
        },
        end: () => given.forEach((x) => x.dispose()),
      });
    },
  };
});
