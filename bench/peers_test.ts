import assert from "node:assert/strict";
import { mkdtempSync, readFileSync, rmSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { flashAttention, init, matmul, tensor } from "@flashtape/flashtape";
import { main } from "./bench.ts";
import { verify } from "./peers/verify.ts";
import { chainTimes, inputsOf, numbers, rounded, type Work } from "./peers/work.ts";
import { fromJson } from "./record.ts";

const attention: Work = {
  ...{ kind: "forward", batch: 2, seqlen: 20, heads: 2, headDim: 8, causal: true, dtype: "f32" },
};

async function forward(work: Work & { kind: "forward" }): Promise<Float32Array> {
  const shape = [work.batch, work.seqlen, work.heads, work.headDim];
  const [q, k, v] = inputsOf(work, 1).map((x) => tensor(x, { shape }));
  return await flashAttention(q, k, v, { causal: work.causal }).data() as Float32Array;
}

Deno.test("verify() takes what is right, and no result with a row, a head or a number wrong", async () => {
  await init({ backend: "webgpu" });
  const right = await forward(attention as Work & { kind: "forward" });
  const { error, objection } = await verify(attention, 1, [right]);
  assert(error < 1e-5 && objection === null);
  const wrong: [string, Float32Array[]][] = [
    ["another mask", [await forward({ ...attention, causal: false } as Work & { kind: "forward" })]],
    ["zeros", [new Float32Array(right.length)]],
    ["a NaN anywhere", [right.with(7, NaN)]],
    ["half of it", [right.subarray(0, right.length / 2)]],
    ["two results", [right, right]],
  ];
  for (const [what, results] of wrong) assert.notEqual((await verify(attention, 1, results)).objection, null, what);
});

Deno.test("verify() checks products and rounds its reference's inputs as the peer's are", async () => {
  const work: Work = { kind: "matmul", n: 24, dtype: "f16" };
  const [a, b] = inputsOf(work, 3).map((x) => tensor(x, { shape: [24, 24] }));
  const product = rounded(await matmul(a, b).data() as Float32Array<ArrayBuffer>, "f16");
  assert.equal((await verify(work, 3, [product])).objection, null);
  assert.notEqual((await verify(work, 4, [product])).objection, null);
});

Deno.test("numbers() have mean 0 and variance 1, and repeat", () => {
  const x = numbers(5, 20_000), mean = x.reduce((a, b) => a + b, 0) / x.length;
  const variance = x.reduce((a, b) => a + b * b, 0) / x.length;
  assert(Math.abs(mean) < 0.03 && Math.abs(variance - 1) < 0.03, `${mean} ${variance}`);
  assert.deepEqual(numbers(5, 10), x.subarray(0, 10));
});

Deno.test("chainTimes() leaves out what each chain costs once", async () => {
  const spin = async (ms: number) => {
    const end = performance.now() + ms;
    while (performance.now() < end) await Promise.resolve();
  };
  const { each } = await chainTimes((n) => spin(5 + 0.5 * n), { repeats: 3, budget: 200 });
  assert(each.every((ms) => ms > 0.3 && ms < 0.9), `${each}`);
});

Deno.test("peers runs libraries in processes of their own, checks them and says why one cannot", async () => {
  const directory = mkdtempSync(join(tmpdir(), "flashtape-peers-test-"));
  try {
    let out = "", err = "";
    const file = join(directory, "peers.json");
    const sizes = "--seqlens 16 --batch 1 --nheads 1 --headdim 8 --dtypes f32 --repeats 3 --budget 0.1";
    const line =
      `peers --only flashtape,flashtape-dawn,jax,pytorch --work forward ${sizes} --backend webgpu --json ${file}`;
    const io = { out: (text: string) => out += text, err: (text: string) => err += text, live: false };
    assert.equal(await main(line.split(" "), io), 0, err);
    const [ours, dawn, jax, torch] = fromJson(readFileSync(file, "utf8")).rows;
    for (const { ms, figures } of [ours, jax]) assert(ms!.median > 0 && figures!["relative error"] < 1e-5);
    // Dawn wants a newer driver than some machines have, PyTorch a card: where they cannot run, they say so.
    for (const { ms, skipped } of [dawn, torch]) {
      assert(ms !== null || /: .{10}/.test(skipped!.reason));
      assert(!skipped?.reason.includes("\x1b"), "files have no colours");
    }
    assert.match(out, /jax-js.*f32/);
  } finally {
    rmSync(directory, { recursive: true });
  }
});
