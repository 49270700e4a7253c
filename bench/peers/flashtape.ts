/** flashtape as one of the peers: measured like them. */
import {
  add,
  cast,
  dispose,
  flashAttention,
  grad,
  matmul,
  mul,
  slice,
  sum,
  type Tensor,
  tensor,
} from "@flashtape/flashtape";
import { describe, deviceLine, openBackend } from "../machine.ts";
import { serve, type Work } from "./work.ts";

function shapeOf(work: Work): number[] {
  if (work.kind === "matmul") return [work.n, work.n];
  return [work.batch, work.seqlen, work.heads, work.headDim];
}

/** Waits for a tensor: one number of it is read. */
async function wait(x: Tensor): Promise<void> {
  const one = slice(x, x.shape.map(() => 0), x.shape.map(() => 1));
  await one.data();
  one.dispose();
}

await serve(async ({ provider, robustness, cache }) => {
  const where = { backend: "webgpu", provider: provider === "dawn" ? "dawn" : "deno", robustness, cache } as const;
  const device = describe(await openBackend(where), where);
  return {
    adapter: deviceLine(device),
    prepare: (work, inputs) => {
      const shape = shapeOf(work);
      const given = inputs.map((values) => {
        const x = tensor(values, { shape }), y = cast(x, work.dtype);
        if (y !== x) x.dispose();
        return y;
      });
      const causal = work.kind !== "matmul" && work.causal;
      const once = (x: readonly Tensor[]): Tensor[] => {
        if (work.kind === "matmul") return [matmul(x[0], given[1])];
        if (work.kind === "forward") return [flashAttention(x[0], given[1], given[2], { causal })];
        const loss = (q: Tensor, k: Tensor, v: Tensor) => sum(mul(flashAttention(q, k, v, { causal }), given[3]));
        return [...grad(loss, [0, 1, 2])(x[0], x[1], x[2])];
      };
      return Promise.resolve({
        how: work.kind === "matmul" ? "matmul" : "flashAttention",
        results: async () => {
          const found = once(given);
          const values: Float32Array[] = [];
          for (const x of found) {
            const wide = cast(x, "f32");
            values.push(await wide.data() as Float32Array);
            wide.dispose();
          }
          dispose(found);
          return values;
        },
        chain: async (n) => {
          let x: readonly Tensor[] = given;
          for (let i = 0; i < n; i++) {
            let next = once(x);
            if (work.kind === "gradients") next = next.map((dx, j) => swap(add(x[j], dx), dx));
            if (x !== given) dispose(x);
            x = next;
          }
          await wait(x[0]);
          dispose(x);
        },
        end: () => dispose(given),
      });
    },
  };
});

/** Frees one tensor and passes on the other. */
function swap(keep: Tensor, gone: Tensor): Tensor {
  gone.dispose();
  return keep;
}
