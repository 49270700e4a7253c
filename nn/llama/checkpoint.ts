/** Whether a checkpoint's tensors are those that its config asks for. */
import { type DType, isFloat } from "../../tensor/dtype.ts";
import { FormatError, show } from "../../tensor/errors.ts";
import { sameShape, type Shape } from "../../tensor/shape.ts";
import type { TensorInfo } from "../safetensors.ts";
import { dimensions, type LlamaConfig } from "./config.ts";
import { parameterShapes } from "./model.ts";

/** A tensor that a checkpoint has and the config does not know, or the other way round. */
export interface WrongTensor {
  /** Its name. */
  readonly name: string;
  /** Its type in the checkpoint; absent where that has no such tensor. */
  readonly dtype?: DType;
  /** Its shape in the checkpoint; absent where that has no such tensor. */
  readonly found?: Shape;
  /** The shape that the config asks for; absent for a tensor that it does not know. */
  readonly expected?: Shape;
}

/** Tensors that are not those of the config: each by name and shape. */
export class CheckpointError extends FormatError {
  static {
    this.prototype.name = "CheckpointError";
  }
  /** Every tensor that is missing, of another shape or type, or unknown. */
  readonly tensors: readonly WrongTensor[];
  /** An error that lists tensors. */
  constructor(op: string, where: string, tensors: readonly WrongTensor[]) {
    super(op, `${where}: the tensors are not those of the config${describe(tensors)}`);
    this.tensors = tensors;
  }
}

/** Tensors of each kind that a message lists. */
const listed = 20;

/** A text of a stranger's file as errors print it: never long. */
function brief(text: string): string {
  return text.length > 120 ? `${text.slice(0, 120)}…` : text;
}

function describe(tensors: readonly WrongTensor[]): string {
  const kinds: [string, (x: WrongTensor) => boolean, (x: WrongTensor) => string][] = [
    ["missing", (x) => x.found === undefined, (x) => show(x.expected!)],
    [
      "wrong",
      (x) => x.found !== undefined && x.expected !== undefined,
      (x) => `${x.dtype} ${show(x.found!)}, the config says ${show(x.expected!)}`,
    ],
    ["unknown", (x) => x.expected === undefined, (x) => `${x.dtype} ${show(x.found!)}`],
  ];
  return kinds.map(([kind, is, text]) => {
    const these = tensors.filter(is);
    const lines = these.slice(0, listed).map((x) => `\n  ${kind}: ${brief(JSON.stringify(x.name))} ${brief(text(x))}`);
    const more = these.length - lines.length;
    return lines.join("") + (more > 0 ? `\n  ${kind}: ${more} more` : "");
  }).join("");
}

/** What the checkpoints of tied and of old models hold beside their parameters. */
function isIgnored(name: string, tied: boolean): boolean {
  return (tied && name === "lm_head.weight") || name.endsWith(".rotary_emb.inv_freq");
}

type Found = ReadonlyMap<string, Pick<TensorInfo, "dtype" | "shape">>;

/**
 * Refuses tensors that are not those of the config.
 * @throws {CheckpointError} with all of them
 */
export function checkTensors(op: string, where: string, found: Found, config: LlamaConfig): void {
  const { layers, tied } = dimensions(config);
  if (layers > found.size) { // says so without making names for all the layers that a config may claim
    throw new FormatError(op, `${where}: the config says ${layers} layers, there are ${found.size} tensors in all`);
  }
  const shapes = parameterShapes(config), wrong: WrongTensor[] = [];
  for (const [name, expected] of Object.entries(shapes)) {
    const there = found.get(name);
    if (there === undefined) wrong.push({ name, expected });
    else if (!isFloat(there.dtype) || !sameShape(there.shape, expected)) {
      wrong.push({ name, dtype: there.dtype, found: there.shape, expected });
    }
  }
  for (const [name, { dtype, shape }] of found) {
    if (!Object.hasOwn(shapes, name) && !isIgnored(name, tied)) wrong.push({ name, dtype, found: shape });
  }
  if (wrong.length > 0) throw new CheckpointError(op, where, wrong);
}
