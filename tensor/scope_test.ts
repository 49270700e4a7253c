import assert from "node:assert/strict";
import { cpu } from "./cpu.ts";
import { tensor } from "./create.ts";
import { exp, mul } from "./elementwise.ts";
import { DisposedError } from "./errors.ts";
import { transpose } from "./movement.ts";
import { depth, detour, detoured, dispose, scope, track, unscoped, untrack } from "./scope.ts";
import { alias, type Tensor } from "./tensor.ts";

const bytesHeld = () => cpu().memory().current;

Deno.test("scope() frees all but what it returns, wherever in the result it stands", async () => {
  using outside = tensor([1, 2]);
  const before = bytesHeld();
  const { list: [y], n } = scope(() => {
    const x = mul(outside, outside);
    return { list: [exp(x)], n: 3 };
  });
  assert.equal(bytesHeld(), before + 8);
  assert.equal(n, 3);
  assert.ok(!outside.disposed);
  assert.equal((await y.array() as number[])[0], Math.fround(Math.E));
  y.dispose();
});

Deno.test("scope() keeps the bytes of a view that it returns", () => {
  const before = bytesHeld();
  const y = scope(() => transpose(tensor([[1, 2]])));
  assert.deepEqual([...y.dataSync()], [1, 2]);
  y.dispose();
  assert.equal(bytesHeld(), before);
});

Deno.test("a nested scope's result belongs to the scope around it", () => {
  const before = bytesHeld();
  let inner: Tensor | undefined;
  scope(() => {
    inner = scope(() => exp(tensor([1])));
    assert.ok(!inner.disposed);
  });
  assert.ok(inner!.disposed);
  assert.equal(bytesHeld(), before);
});

Deno.test("scope() frees everything when its function throws, and closes", () => {
  const before = bytesHeld();
  const failing = () => {
    exp(tensor([1]));
    throw new RangeError("no");
  };
  assert.throws(() => scope(failing), RangeError);
  assert.equal(bytesHeld(), before);
  assert.equal(depth(), 0);
});

Deno.test("an async scope closes when its promise settles, either way", async () => {
  const before = bytesHeld();
  const y = await scope(async () => {
    const x = tensor([1, 2]);
    await x.data();
    return exp(x);
  });
  assert.equal(bytesHeld(), before + 8);
  y.dispose();
  await assert.rejects(
    scope(async () => {
      await exp(tensor([1])).data();
      throw new RangeError("no");
    }),
    RangeError,
  );
  assert.equal(bytesHeld(), before);
  assert.equal(depth(), 0);
});

Deno.test("scope() refuses to return what its function disposed", () => {
  const gone = () => {
    const x = tensor([1]);
    x.dispose();
    return x;
  };
  assert.throws(() => scope(gone), DisposedError);
});

Deno.test("untrack() takes a handle out of scopes from a depth on, and out of no other", () => {
  scope(() => {
    const outer = tensor([1]);
    const [kept, left] = scope(() => {
      const inner = tensor([2]);
      assert.equal(untrack(outer, 1), false);
      assert.equal(untrack(inner, 1), true);
      return [inner, track(alias(inner))];
    });
    assert.ok(!kept.disposed && !left.disposed);
    kept.dispose();
  });
});

Deno.test("unscoped() makes what outlives every scope", () => {
  const before = bytesHeld();
  const x = scope(() => {
    const made = { it: unscoped(() => tensor([1])) };
    assert.equal(depth(), 1);
    return () => made.it;
  })();
  assert.equal(bytesHeld(), before + 4);
  x.dispose();
});

Deno.test("a detour is entered, left even when its function throws, and stepped out of by unscoped()", () => {
  const log: string[] = [];
  const by = { enter: () => log.push("in"), leave: () => log.push("out") };
  const failing = () => {
    assert.ok(detoured());
    unscoped(() => log.push(`unscoped ${detoured()}`));
    throw new RangeError("no");
  };
  assert.throws(() => detour(by, failing), RangeError);
  assert.deepEqual(log, ["in", "out", "unscoped false", "in", "out"]);
  assert.ok(!detoured());
});

Deno.test("dispose() ends every tensor of a tree", () => {
  const tree = { a: [tensor([1]), tensor([2])], b: { c: tensor([3]) }, d: 4 };
  dispose(tree);
  assert.ok([...tree.a, tree.b.c].every((x) => x.disposed));
});
