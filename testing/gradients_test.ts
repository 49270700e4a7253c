import assert from "node:assert/strict";
import { stopGradient } from "../autograd/grad.ts";
import { getBackend } from "../tensor/backend.ts";
import { cpu } from "../tensor/cpu.ts";
import { tensor } from "../tensor/create.ts";
import { add, cast, exp, mul, relu, sin, square, tanh } from "../tensor/elementwise.ts";
import { take } from "../tensor/gather.ts";
import { matmul } from "../tensor/matmul.ts";
import { transpose } from "../tensor/movement.ts";
import { softmax } from "../tensor/norm.ts";
import { argmax, sum } from "../tensor/reduce.ts";
import { scope } from "../tensor/scope.ts";
import type { Tensor } from "../tensor/tensor.ts";
import { AssertionError } from "./close.ts";
import { checkGradients } from "./gradients.ts";

const on = (values: Parameters<typeof tensor>[0], dtype: Tensor["dtype"] = "f32") =>
  tensor(values, { dtype, backend: cpu() });

/** A test that leaves no tensor to the finaliser, which would change the memory that another test counts. */
function test(name: string, body: () => Promise<void>): void {
  Deno.test(name, () => scope(body));
}

async function message(check: Promise<void>): Promise<string> {
  try {
    await check;
  } catch (error) {
    if (error instanceof AssertionError) return error.message;
    throw error;
  }
  throw new Error("the gradients were expected to differ");
}

test("checkGradients() accepts right gradients of any output shape", async () => {
  await checkGradients((x) => sum(square(x)), [on([1, 2, 3])]);
  await checkGradients((x) => softmax(x), [on([[1, 2, 3], [0.5, -1, 0]])]);
  await checkGradients((a, b) => matmul(a, b), [on([[1, 2], [3, 4]]), on([[0.5], [2]])]);
  await checkGradients((x) => exp(x), [on(0.3)]);
  await checkGradients((x) => add(x, 1), [on([])]);
});

test("checkGradients() takes nested inputs and outputs, and passes integers and options through", async () => {
  type Params = { layers: { weight: Tensor; bias: Tensor }[]; scale: number };
  const model = (x: Tensor, { layers, scale }: Params, ids: Tensor) => ({
    out: layers.reduce((h, { weight, bias }) => mul(tanh(add(matmul(h, weight), bias)), scale), x),
    picked: [take(x, ids), argmax(x)],
  });
  const layer = (k: number) => ({ weight: on([[k, -1], [2, 0.3]]), bias: on([0.1, k]) });
  await checkGradients(model, [on([[1, 2]]), { layers: [layer(0.5), layer(-0.2)], scale: 2 }, on([0, 0], "i32")]);
});

test("checkGradients() names argument, path and element of a wrong gradient", async () => {
  // The derivative of x·y with y held constant.
  const wrong = (x: Tensor, { w }: { w: Tensor[] }) => mul(x, add(w[0], mul(stopGradient(w[1]), w[1])));
  const text = await message(checkGradients(wrong, [on([1, 2]), { w: [on([3, 4]), on([0, 6])] }]));
  assert.match(
    text,
    /^\[checkGradients\] 1 of 6 derivatives are off; the worst is argument 1 at w\.1, element \[1\]: /,
  );
  assert.match(text, /grad gives -?[\d.]+, central differences -?[\d.]+, error [\d.]+, bound/);
});

test("checkGradients() finds a gradient of zero, a sign, and a small factor", async () => {
  const x = on([0.7, -0.4]);
  const minus = (x: Tensor) => add(sin(x), mul(-2, stopGradient(sin(x))));
  for (const wrong of [(x: Tensor) => stopGradient(sin(x)), minus]) {
    await assert.rejects(checkGradients(wrong, [x]), AssertionError);
  }
  const slightly = (x: Tensor) => add(mul(0.99999, sin(x)), mul(0.00001, stopGradient(sin(x))));
  await assert.rejects(checkGradients(slightly, [x]), AssertionError);
  await checkGradients(slightly, [x], { rtol: 1e-4 });
});

test("checkGradients() does not let outputs or elements cancel", async () => {
  const opposite = (x: Tensor) => {
    const y = stopGradient(x);
    return [y, mul(y, -1)];
  };
  await assert.rejects(checkGradients(opposite, [on([1, 2])]), AssertionError);
  const swapped = (x: Tensor) => add(transpose(stopGradient(x)), mul(0, x));
  await assert.rejects(checkGradients(swapped, [on([[1, 2], [3, 4]])]), AssertionError);
});

test("checkGradients() says where a kink may be", async () => {
  const text = await message(checkGradients((x) => relu(x), [on([1, 0])]));
  assert.match(text, /argument 0, element \[1\].*the slope is \S+ to the right and \S+ to the left: is there a kink\?/);
});

test("checkGradients() refuses what it cannot check", async () => {
  const refused = (check: Promise<void>, name: string, message: RegExp) => assert.rejects(check, { name, message });
  await refused(checkGradients((x) => x, [on([1], "i32")]), "ValueError", /needs a float tensor/);
  await refused(checkGradients((_: Tensor) => 3, [on([1])]), "ValueError", /must return a float tensor/);
  await refused(checkGradients((x) => cast(x, "f32"), [on([1])]), "DTypeError", /returned f32/);
  await refused(checkGradients((x) => exp(x), [on([1000])]), "ValueError", /not finite/);
  await refused(checkGradients((x) => x, [on([1])], { eps: 0 }), "ValueError", /eps/);
  await refused(checkGradients((x) => x, [on([1])], { rtol: NaN }), "ValueError", /rtol/);
});

test("checkGradients() leaves the backend and the memory as they were", async () => {
  const backend = getBackend();
  const x = on([1, 2]);
  const before = cpu().memory().current;
  await checkGradients((x) => exp(x), [x]);
  await assert.rejects(checkGradients((x) => stopGradient(x), [x]), AssertionError);
  assert.equal(cpu().memory().current, before);
  assert.equal(getBackend(), backend);
});
