/** TensorFlow.js on its WebGPU backend: it has no attention of its own, so softmax(q·kᵀ/√D)·v out of its ops. */
import * as tf from "npm:@tensorflow/tfjs@4.22.0";
import { serve } from "./work.ts";

await serve(async () => {
  Reflect.set(globalThis, "window", globalThis); // it looks for a page before it looks for WebGPU
  await import("npm:@tensorflow/tfjs-backend-webgpu@4.22.0");
  if (!await tf.setBackend("webgpu")) throw new Error("TensorFlow.js could not start its WebGPU backend");
  await tf.ready();
  const { info } = await navigator.gpu.requestAdapter({ powerPreference: "high-performance" }) ?? {};
  return {
    adapter: info?.description || "unknown", // the one that it asks for
    prepare: (work, inputs) => {
      if (work.dtype !== "f32") return Promise.resolve({ cannot: "TensorFlow.js has no f16" });
      const shape = work.kind === "matmul" ? [work.n, work.n] : [work.batch, work.seqlen, work.heads, work.headDim];
      const given = inputs.map((values) => tf.tensor(values, shape));
      const mask = work.kind !== "matmul" && work.causal
        ? tf.tidy(() => {
          const place = tf.range(0, work.seqlen);
          return tf.where(tf.greater(tf.expandDims(place, 0), tf.expandDims(place, 1)), tf.scalar(-1e9), tf.scalar(0));
        })
        : null;
      const attend = (q: tf.Tensor, k: tf.Tensor, v: tf.Tensor) => {
        const [a, b, c] = [q, k, v].map((x) => tf.transpose(x, [0, 2, 1, 3]));
        const scores = tf.matMul(tf.mul(a, shape[3] ** -0.5), b, false, true);
        const p = tf.softmax(mask === null ? scores : tf.add(scores, mask));
        return tf.transpose(tf.matMul(p, c), [0, 2, 1, 3]);
      };
      const gradients = tf.grads((q, k, v) => tf.sum(tf.mul(attend(q, k, v), given[3])));
      const once = (x: tf.Tensor[]): tf.Tensor[] => {
        if (work.kind === "matmul") return [tf.matMul(x[0], given[1])];
        if (work.kind === "forward") return [attend(x[0], given[1], given[2])];
        return gradients(x.slice(0, 3));
      };
      return Promise.resolve({
        how: work.kind === "matmul" ? "matMul" : "matMul, softmax, matMul",
        results: async () => {
          const found = tf.tidy(() => once(given));
          const values: Float32Array[] = [];
          for (const x of found) values.push(await x.data() as Float32Array);
          tf.dispose(found);
          return values;
        },
        chain: async (n) => {
          let x: tf.Tensor[] = given;
          for (let i = 0; i < n; i++) {
            const next = tf.tidy(() => {
              const y = once(x);
              return work.kind === "gradients" ? y.map((dx, j) => tf.add(x[j], dx)) : y;
            });
            if (x !== given) tf.dispose(x);
            x = next;
          }
          const one = tf.slice(x[0], shape.map(() => 0), shape.map(() => 1));
          await one.data();
          tf.dispose([...x, one]);
        },
        end: () => tf.dispose([...given, ...mask === null ? [] : [mask]]),
      });
    },
  };
});
