/**
 * The four laws as one function without a test runner, so that they can be tried where there is none: in a page. Tries ops
 * of every family, each with a few random calls.
 */
import { grad } from "../../autograd/grad.ts";
import type { Backend } from "../../tensor/backend.ts";
import { cpu } from "../../tensor/cpu.ts";
import { decode, isFloat } from "../../tensor/dtype.ts";
import { add, square } from "../../tensor/elementwise.ts";
import { FlashtapeError, LimitError, show } from "../../tensor/errors.ts";
import { runAll } from "../../tensor/op.ts";
import type { OpName } from "../../tensor/ops.ts";
import { sum } from "../../tensor/reduce.ts";
import type { Tensor } from "../../tensor/tensor.ts";
import { type Arbitrary, check, checkGradients } from "../mod.ts";
import { assertAccurate, specsOf } from "./accuracy.ts";
import type { Call } from "./sample.ts";
import { type Subject, subjects } from "./samples.ts";

/** Ops of each family. Law 2 is tried on their kernels, so each costs a device some compiling. */
export const families: Readonly<Record<string, readonly OpName[]>> = {
  create: ["full", "arange"],
  elementwise: ["add", "exp", "gelu", "where", "cast"],
  movement: ["permute", "pad", "concat"],
  reduce: ["sum", "argmax", "cumsum"],
  gather: ["take", "scatterAdd"],
  norm: ["softmax", "rmsNorm", "rmsNormBackward"],
  rotary: ["rotaryEmbedding"],
  gated: ["swiglu"],
  loss: ["crossEntropy", "linearCrossEntropy"],
  random: ["uniform", "dropout"],
  update: ["adamwUpdate"],
  matmul: ["matmul"],
  attention: ["attention", "attentionBackward", "cacheAttention"],
};

/** What was tried of one op, and what does not hold. */
export interface Finding {
  readonly op: string;
  readonly laws: readonly number[];
  readonly failures: readonly string[];
  /** Calls that the device is too small for, as it says by name and numbers. */
  readonly limits: readonly string[];
}

function differentiable({ op, sample }: Subject, { inputs, params }: Call<unknown>) {
  const constants = sample.constants?.(params) ?? [];
  const wanted = [...inputs.keys()].filter((i) => isFloat(inputs[i].dtype) && !constants.includes(i));
  const f = (xs: readonly Tensor[]): readonly Tensor[] => {
    const mixed = inputs.map((x, i) => wanted.includes(i) ? xs[wanted.indexOf(i)] : x.tensor(cpu()));
    const outputs = runAll(op, mixed, params);
    return (sample.results?.(outputs) ?? outputs).filter((y) => isFloat(y.dtype));
  };
  return { f, xs: wanted.map((i) => inputs[i].tensor(cpu())) };
}

/** Tries the laws on an op. */
export async function tryLaws(name: OpName, backend: Backend, runs: number, seed: number): Promise<Finding> {
  const subject = subjects().find((each) => each.name === name)!;
  const { op, sample } = subject;
  const laws: number[] = [], failures: string[] = [], limits: string[] = [];
  const law = async <T>(number: number, arbitrary: Arbitrary<T>, holds: (value: T) => void | Promise<void>) => {
    laws.push(number);
    try {
      await check([arbitrary], holds, { runs, seed, maxShrinks: 0 });
    } catch (error) {
      failures.push(`${name}, law ${number}: ${error instanceof Error ? error.message : error}`);
    }
  };
  await law(1, sample.calls(cpu().dtypes), ({ inputs, params }) => {
    const specs = specsOf(op, inputs, params);
    runAll(op, inputs.map((x) => x.tensor(cpu())), params, cpu()).forEach((y, i) => {
      const [found, inferred] = [y, specs[i]].map(({ shape, dtype }) => `${dtype} ${show(shape)}`);
      if (found !== inferred) throw new Error(`result ${i} is ${found}, inferred was ${inferred}`);
    });
  });
  await law(2, sample.calls(backend.dtypes), async (call) => {
    let results: Tensor[];
    try {
      results = runAll(op, call.inputs.map((x) => x.tensor(backend)), call.params, backend);
    } catch (error) {
      if (!(error instanceof LimitError)) throw error;
      return void limits.push(error.message);
    }
    const values = await Promise.all(results.map(async (y) => decode(y.dtype, await y.bytes())));
    assertAccurate(op, call, sample.accuracy, values);
  });
  if (sample.smooth !== null) {
    await law(3, sample.smooth, async (call) => {
      const { f, xs } = differentiable(subject, call);
      await checkGradients(f, [xs]);
      if (!sample.once) {
        const slopes = grad((xs: readonly Tensor[]) => f(xs).map((y) => sum(square(y))).reduce((a, b) => add(a, b)));
        await checkGradients(slopes, [xs]);
      }
    });
  }
  if (sample.refused !== null) {
    await law(4, sample.refused, ({ inputs, call, error }) => {
      const tensors = inputs.map((x) => x.tensor(backend));
      let thrown: unknown;
      try {
        call(...tensors);
      } catch (caught) {
        thrown = caught;
      }
      const expected = new error("op", "").name;
      if (!(thrown instanceof FlashtapeError) || thrown.name !== expected || !/^\[\w+\] ./.test(thrown.message)) {
        throw new Error(`expected ${expected}, got ${thrown}`);
      }
    });
  }
  return { op: name, laws, failures, limits };
}
