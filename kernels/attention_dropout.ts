/** The mask of attention's dropout, for whoever wants to see it: one Philox block a thread, four keys of one query. */
import { dropThreshold } from "../tensor/attention_dropout.ts";
import { globalIndex, gridFor } from "./elementwise.ts";
import { type Kernel, kernel } from "./kernel.ts";
import type { Lowering } from "./lowering.ts";
import { philox4x32 } from "./random.ts";

/** y[b,h,i,j] = word j mod 4 of the block at [⌊j/4⌋, i, h, b] ≥ `below`. */
const dropoutMask = (): Kernel =>
  kernel("attention_dropout_mask", {
    reads: { key: "u32" },
    writes: { y: "u32" },
    uniforms: { blocks: "u32", keyAt: "u32", heads: "u32", rows: "u32", columns: "u32", row4: "u32", below: "u32" },
  }, () =>
    `${philox4x32}
@compute @workgroup_size(256) fn main(
  @builtin(workgroup_id) group: vec3u, @builtin(num_workgroups) groups: vec3u, @builtin(local_invocation_index) lane: u32,
) {
  let t = ${globalIndex};
  if (t >= u.blocks) { return; }
  let j4 = t % u.row4; let row = t / u.row4;
  let i = row % u.rows; let h = (row / u.rows) % u.heads; let b = row / u.rows / u.heads;
  let words = philox(vec4u(j4, i, h, b), vec2u(key[u.keyAt], key[u.keyAt + 1u]));
  for (var n = 0u; n < min(4u, u.columns - 4u * j4); n++) {
    y[row * u.columns + 4u * j4 + n] = select(0u, 1u, words[n] >= u.below);
  }
}`);

/** The mask, bool [B, H, Sq, Sk]. */
export function lowerDropoutMask(call: Lowering<{ readonly shape: readonly number[]; readonly p: number }>): void {
  const { shape: [batch, heads, rows, columns], p } = call.params, row4 = Math.ceil(columns / 4);
  const key = call.dense(call.inputs[0], 1), blocks = batch * heads * rows * row4;
  call.dispatch(
    dropoutMask(),
    [key, call.outputs[0]],
    { blocks, keyAt: key.offset, heads, rows, columns, row4, below: dropThreshold(p) },
    gridFor(blocks, call.capabilities.maxWorkgroups),
  );
}
