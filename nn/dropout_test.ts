import assert from "node:assert/strict";
import { ones } from "../tensor/create.ts";
import { key } from "../tensor/random.ts";
import { dropout } from "./mod.ts";

Deno.test("dropout() drops with a key and is off without one", async () => {
  const x = ones([1000]);
  assert.equal(dropout(x, { p: 0.5 }), x);
  const values = await dropout(x, { p: 0.5, key: key(1) }).data(), kept = values.filter((v) => v !== 0);
  assert(kept.length > 400 && kept.length < 600 && kept.every((v) => v === 2));
  assert.throws(() => dropout(x, { p: 1, key: key(1) }), /p is below 1/);
});
