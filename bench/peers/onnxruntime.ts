/** ONNX Runtime on its WebGPU provider (Dawn inside): GroupQueryAttention where causal, MultiHeadAttention where not. */
import ort from "npm:onnxruntime-node@1.30.0";
import { type Constant, modelOf, type Node } from "./onnx.ts";
import { serve, type Work } from "./work.ts";

/** The work as nodes: `n` times, each over what the one before gave. */
function nodesOf(work: Work, n: number): Node[] {
  const last = (i: number) => i === 0 ? "x0" : `y${i}`;
  return Array.from({ length: n }, (_, i): Node => {
    const [from, to] = [last(i), `y${i + 1}`];
    if (work.kind === "matmul") return { op: "MatMul", inputs: [from, "x1"], outputs: [to] };
    const { heads, causal } = work, domain = "com.microsoft";
    if (!causal) {
      return {
        op: "MultiHeadAttention",
        domain,
        inputs: [from, "x1", "x2"],
        outputs: [to],
        attributes: { num_heads: heads },
      };
    }
    return {
      ...{ op: "GroupQueryAttention", domain, attributes: { num_heads: heads, kv_num_heads: heads } },
      inputs: [from, "x1", "x2", "", "", "seqlens", "total"],
      outputs: [to, `keys${i}`, `values${i}`],
    };
  });
}

/** The whole result in f32, or one number of it. */
function modelFor(work: Work, constants: readonly Constant[], n: number, shape: readonly number[], whole: boolean) {
  const nodes = nodesOf(work, n), last = `y${n}`;
  if (whole) {
    nodes.push({ op: "Cast", inputs: [last], outputs: ["out"], attributes: { to: 1 } });
    return modelOf(nodes, constants, { name: "out", type: "f32", shape });
  }
  const place = (name: string, at: bigint): Constant => ({
    ...{ name, type: "i64", shape: [shape.length] },
    values: new BigInt64Array(shape.length).fill(at),
  });
  nodes.push({ op: "Slice", inputs: [last, "from", "to"], outputs: ["one"] });
  nodes.push({ op: "Cast", inputs: ["one"], outputs: ["out"], attributes: { to: 1 } });
  const one = { name: "out", type: "f32", shape: shape.map(() => 1) } as const;
  return modelOf(nodes, [...constants, place("from", 0n), place("to", 1n)], one);
}

await serve(() => {
  const open = (model: Uint8Array) =>
    ort.InferenceSession.create(model, {
      executionProviders: ["webgpu"],
      graphOptimizationLevel: "disabled", // or what depends on constants alone is computed while the session opens
      logSeverityLevel: 3,
    });
  return Promise.resolve({
    adapter: "chosen by ONNX Runtime, which does not say",
    prepare: (work, inputs) => {
      if (work.kind === "gradients") return Promise.resolve({ cannot: "ONNX Runtime for JavaScript has no gradients" });
      const shape = work.kind === "matmul" ? [work.n, work.n] : [work.batch, work.seqlen, work.heads * work.headDim];
      const constants: Constant[] = inputs.map((values, i) => ({
        ...{ name: `x${i}`, type: work.dtype, shape },
        values: work.dtype === "f16" ? new Float16Array(values) : values,
      }));
      if (work.kind === "forward" && work.causal) {
        const { batch, seqlen } = work;
        constants.push(
          { name: "seqlens", type: "i32", shape: [batch], values: new Int32Array(batch).fill(seqlen - 1) },
          { name: "total", type: "i32", shape: [], values: new Int32Array([seqlen]) },
        );
      }
      const sessions = new Map<number, Promise<ort.InferenceSession>>();
      const run = async (session: ort.InferenceSession) => {
        const { out } = await session.run({});
        return out.data as Float32Array;
      };
      return Promise.resolve({
        how: work.kind === "matmul" ? "MatMul" : work.causal ? "GroupQueryAttention" : "MultiHeadAttention",
        results: async () => {
          const session = await open(modelFor(work, constants, 1, shape, true));
          try {
            return [await run(session)];
          } finally {
            await session.release();
          }
        },
        chain: async (n) => {
          let session = sessions.get(n);
          if (session === undefined) sessions.set(n, session = open(modelFor(work, constants, n, shape, false)));
          await run(await session);
        },
        end: async () => {
          for (const session of sessions.values()) await (await session).release();
        },
      });
    },
  });
});
