import assert from "node:assert/strict";
import { fromBytes, tensor } from "../tensor/create.ts";
import { type DType, encode } from "../tensor/dtype.ts";
import { cast, where } from "../tensor/elementwise.ts";
import { slice, transpose } from "../tensor/movement.ts";
import type { Tensor } from "../tensor/tensor.ts";
import { array, integer, property } from "../testing/mod.ts";
import { needAdapter } from "../testing/laws/adapter.ts";
import { load, pack4, storageBytes, storageType, storageType4, unpack4 } from "./storage.ts";
import { webgpu } from "./webgpu.ts";

const gpu = await needAdapter(webgpu());
const packed = ["f16", "bf16"] as const;

const halves = async (x: Tensor) => new Uint16Array(Uint8Array.from(await x.bytes()).buffer);
const infinity = { f16: 0x7c00, bf16: 0x7f80 };
const isNaN16 = (dtype: "f16" | "bf16", bits: number) => (bits & 0x7fff) > infinity[dtype];

/** The bits of f32 numbers as the device packs them, by fours and by twos. */
async function packs(dtype: DType, x: Tensor): Promise<Uint16Array[]> {
  const square = transpose(cast(transpose(x), dtype)); // [n, 2]: the strided walk, read back as it lay
  return [await halves(cast(x, dtype)), await halves(square)];
}

for (const dtype of packed) {
  Deno.test(`every ${dtype} comes through f32 on the device as it was, and NaN as some NaN`, async () => {
    const bits = Uint16Array.from({ length: 65536 }, (_, i) => i);
    const x = fromBytes(new Uint8Array(bits.buffer), { shape: [32768, 2], dtype, backend: gpu });
    const yes = tensor(true, { backend: gpu });
    const same = where(yes, x, x); // unpacked and packed by fours
    const turned = transpose(where(yes, transpose(x), transpose(x))); // loaded one by one, packed by twos
    for (const got of [await halves(same), await halves(turned)]) {
      for (const i of bits) {
        if (isNaN16(dtype, i)) assert(isNaN16(dtype, got[i]), `${i} became ${got[i]}`);
        else assert.equal(got[i], i);
      }
    }
  });

  Deno.test(`numbers round to the nearest ${dtype} on the device, halfway to even, and overflow to infinity`, async () => {
    const values: number[] = [
      NaN,
      0,
      -0,
      Infinity,
      -Infinity,
      65504,
      65519.996,
      65520,
      -65520,
      3.39e38,
      3.4e38,
      -3.4e38,
    ];
    // Between each number and the next: the middle, and just off it.
    const step = dtype === "f16" ? 2 ** -10 : 2 ** -7;
    for (let e = -30; e < 16; e++) {
      for (const n of [0, 1, 2, 3, 0.5 / step]) {
        for (const off of [-(2 ** -20), 0, 2 ** -20]) values.push((1 + (n + 0.5) * step) * (1 + off) * 2 ** e);
      }
    }
    if (values.length % 2 === 1) values.push(1);
    const x = tensor(Float32Array.from(values), { shape: [values.length / 2, 2], backend: gpu });
    const expected = new Uint16Array(encode(dtype, Float32Array.from(values)).buffer);
    for (const got of await packs(dtype, x)) {
      assert(isNaN16(dtype, got[0]));
      assert.deepEqual(got.slice(1), expected.slice(1));
    }
    assert.equal(expected[values.indexOf(3.4e38)], infinity[dtype]);
  });

  property(`any f32 packs to the same ${dtype} on the device and on the host`, [
    array(integer(0, 2 ** 32 - 1), { minLength: 64, maxLength: 64 }),
  ], async (words) => {
    // A device may take numbers below 2^-126 for 0.
    const floats = new Float32Array(Uint32Array.from(words).buffer).map((x) => Math.abs(x) < 2 ** -126 ? 0 : x);
    const expected = new Uint16Array(encode(dtype, floats).buffer);
    for (const got of await packs(dtype, tensor(floats, { shape: [32, 2], backend: gpu }))) {
      got.forEach((bits, i) => {
        if (Number.isNaN(floats[i])) assert(isNaN16(dtype, bits));
        else assert.equal(bits, expected[i], `${floats[i]}`);
      });
    }
  }, { runs: 30 });

  Deno.test(`${dtype} tensors of odd sizes and offsets read and write their own halves of a word`, async () => {
    const x = tensor([1, 2, 3, 4, 5, 6, 7], { dtype, backend: gpu });
    assert.deepEqual([...await slice(x, [1], [4]).data()], [2, 3, 4]);
    assert.deepEqual([...await cast(slice(x, [3]), "f32").data()], [4, 5, 6, 7]);
    assert.deepEqual([...await cast(cast(slice(x, [2], [7]), "i32"), dtype).data()], [3, 4, 5, 6, 7]);
  });
}

Deno.test("storage texts read and write as many elements as the type holds", () => {
  for (const dtype of ["f32", "f16", "bf16", "i32", "u32", "bool"] as const) {
    const words = { vec2u: 2, vec4u: 4, vec4i: 4, vec4f: 4 }[storageType4(dtype)];
    assert.equal(4 * storageBytes(dtype), 4 * words!);
    assert.match(storageType(dtype), /^[fiu]32$/);
    assert.equal(new Set(unpack4(dtype, "v")).size, 4);
    assert(pack4(dtype, ["p", "q", "r", "s"]).startsWith(storageType4(dtype)));
    assert.match(load(dtype, "x", "i"), /\bx\[/);
  }
});
