import assert from "node:assert/strict";
import { type Backend, getBackend, matrixUnits, memory, resetPeak, setBackend } from "./backend.ts";
import { cpu } from "./cpu.ts";
import { tensor, zeros } from "./create.ts";
import { exp } from "./elementwise.ts";

/** The CPU under another name, as a backend of its own. */
function renamed(name: string): Backend {
  const own: Partial<Backend> = { name };
  return new Proxy(cpu(), {
    get: (real, key) => {
      const value: unknown = Reflect.get(key in own ? own : real, key);
      return typeof value === "function" ? value.bind(real) : value;
    },
  });
}

Deno.test("creators use the CPU until a backend is set, and then that one", () => {
  assert.equal(getBackend(), cpu());
  const other = renamed("elsewhere");
  try {
    setBackend(other);
    assert.equal(tensor([1]).backend, other);
    assert.equal(zeros([2], { backend: cpu() }).backend, cpu());
  } finally {
    setBackend(cpu());
  }
  assert.equal(tensor([1]).backend, cpu());
});

Deno.test("results live where their inputs do, whatever the current backend is", () => {
  const other = renamed("elsewhere");
  assert.equal(exp(tensor([1], { backend: other })).backend, other);
});

Deno.test("memory() counts what lives now and the most that ever did; resetPeak() starts the most anew", () => {
  const before = memory().current;
  resetPeak();
  const x = zeros([100]), y = zeros([50]);
  x.dispose();
  assert.deepEqual(memory(), { current: before + 200, peak: before + 600, pooled: 0 });
  resetPeak();
  assert.equal(memory().peak, before + 200);
  y.dispose();
});

Deno.test("matrixUnits() are the units that multiply f16 and sum in f32", () => {
  const unit = { m: 16, n: 8, k: 16 };
  const subgroupMatrix = [
    { ...unit, ab: "i8", acc: "i32" },
    { ...unit, ab: "f16", acc: "f32" },
    { ...unit, ab: "f16", acc: "f16" },
  ];
  assert.deepEqual(matrixUnits({ subgroupMatrix }), [unit]);
  assert.deepEqual(matrixUnits({}), []);
});
