import assert from "node:assert/strict";
import type { Op } from "../tensor/op.ts";
import { definedLowering, defineLowering } from "./defined.ts";

Deno.test("an op outside of the table has the dispatches that it was given, by itself and not by its name", () => {
  const op = (): Op => ({ name: "twice", infer: ([x]) => x, reference: () => {} });
  const [a, b] = [op(), op()], lower = () => {};
  defineLowering(a, lower);
  assert.equal(definedLowering(a), lower);
  assert.equal(definedLowering(b), undefined);
});
