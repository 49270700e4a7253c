import assert from "node:assert/strict";
import * as errors from "./errors.ts";
import { FlashtapeError, show, ValueError } from "./errors.ts";

Deno.test("an error's message opens with the function that refused", () => {
  const error = new ValueError("dropout", "p is from 0 to 1, got 2");
  assert.equal(error.message, "[dropout] p is from 0 to 1, got 2");
  assert.equal(error.op, "dropout");
  assert.equal(`${error}`, "ValueError: [dropout] p is from 0 to 1, got 2");
});

Deno.test("a program can tell every class of error by name and by instanceof", () => {
  const classes = Object.entries(errors).filter(([name]) => name.endsWith("Error"));
  assert.ok(classes.length > 5);
  for (const [name, make] of classes) {
    const error = new (make as typeof FlashtapeError)("op", "message");
    assert.equal(error.name, name);
    assert.ok(error instanceof FlashtapeError && error instanceof Error);
    const others = classes.filter(([other]) => other !== name && other !== "FlashtapeError");
    for (const [other, kind] of others) assert.ok(!(error instanceof (kind as typeof FlashtapeError)), other);
  }
});

Deno.test("an error keeps its cause", () => {
  const cause = new TypeError("broken pipe");
  assert.equal(new errors.DeviceLostError("matmul", "the device was lost", { cause }).cause, cause);
});

Deno.test("show() prints shapes as errors do", () => {
  assert.equal(show([2, 3]), "[2,3]");
  assert.equal(show([]), "[]");
});
