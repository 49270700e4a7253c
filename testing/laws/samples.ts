/** The table of samples: how each op is tried by the laws. */
import type { Op } from "../../tensor/op.ts";
import { type OpName, ops, type ParamsOfName } from "../../tensor/ops.ts";
import { attending } from "./attention.ts";
import { decoding } from "./decoding.ts";
import { elementwise } from "./elementwise.ts";
import { losses } from "./loss.ts";
import { multiply } from "./matmul.ts";
import { movement } from "./movement.ts";
import { layers } from "./norm.ts";
import { randomness } from "./random.ts";
import { reduce } from "./reduce.ts";
import type { Sample } from "./sample.ts";
import { sampling } from "./sampling.ts";
import { updates } from "./update.ts";

/** How to draw calls of every op. */
export const samples: { readonly [N in OpName]: Sample<ParamsOfName<N>> } = {
  ...elementwise,
  ...movement,
  ...reduce,
  ...multiply,
  ...randomness,
  ...sampling,
  ...updates,
  ...layers,
  ...losses,
  ...attending,
  ...decoding,
};

/** An op with its sample, whatever its parameters are. */
export interface Subject {
  readonly name: OpName;
  readonly op: Op<unknown>;
  readonly sample: Sample<unknown>;
}

/** Every op with its sample. */
export function subjects(): Subject[] {
  return (Object.keys(ops) as OpName[]).map((name) => ({
    name,
    // Each pair agrees on its parameters, which the table's type says and a list of all pairs cannot.
    op: ops[name] as unknown as Op<unknown>,
    sample: samples[name] as unknown as Sample<unknown>,
  }));
}
