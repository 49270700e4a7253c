/** Rotary position embedding (Su et al. 2021, arXiv:2104.09864): pairs of numbers turned by an angle that grows with the position. */
import { type DType, promote } from "./dtype.ts";
import { runAs } from "./elementwise.ts";
import { IndexError, ShapeError, show } from "./errors.ts";
import { checkRange } from "./gather.ts";
import { dense, expectDType, expectRank, type Op, type Spec } from "./op.ts";
import { sameShape } from "./shape.ts";
import { Tensor } from "./tensor.ts";

const floats: readonly DType[] = ["f64", "f32", "f16", "bf16"];

/** Which numbers make a pair, whether to turn back, and whether positions are given. */
export interface RotaryParams {
  readonly interleaved: boolean;
  readonly reverse: boolean;
  readonly positioned: boolean;
}

/** The tables, the positions if given, and what is turned. */
export function rotaryInputs<T>(
  [cos, sin, ...rest]: readonly T[],
  { positioned }: RotaryParams,
): { cos: T; sin: T; positions: T | undefined; xs: readonly T[] } {
  return { cos, sin, positions: positioned ? rest[0] : undefined, xs: positioned ? rest.slice(1) : rest };
}

function checkRotary(inputs: readonly Spec[], params: RotaryParams): void {
  const { cos, sin, positions, xs } = rotaryInputs(inputs, params), op = "rotaryEmbedding";
  expectRank(op, "cos", cos.shape, 2);
  expectDType(op, "cos", cos.dtype, ["f32", "f64"]);
  expectDType(op, "sin", sin.dtype, [cos.dtype]);
  if (!sameShape(cos.shape, sin.shape)) {
    throw new ShapeError(op, `cos and sin differ in shape: cos ${show(cos.shape)}, sin ${show(sin.shape)}`);
  }
  for (const x of xs) {
    expectDType(op, "x", x.dtype, floats);
    expectRank(op, "x", x.shape, 4);
    const [B, S, , D] = x.shape;
    const turned = 2 * cos.shape[1];
    if (turned > D) {
      throw new ShapeError(
        op,
        `the tables turn ${turned} dimensions, a head has ${D}: x ${show(x.shape)}, cos ${show(cos.shape)}`,
      );
    }
    if (positions === undefined) {
      if (S <= cos.shape[0]) continue;
      throw new IndexError(op, `position ${S - 1} is outside tables of ${cos.shape[0]} positions: x ${show(x.shape)}`);
    }
    expectDType(op, "positions", positions.dtype, ["i32"]);
    if (!sameShape(positions.shape, [S]) && !sameShape(positions.shape, [B, S])) {
      const got = `x ${show(x.shape)}, positions ${show(positions.shape)}`;
      throw new ShapeError(op, `positions are ${show([S])} or ${show([B, S])}: ${got}`);
    }
  }
}

/**
 * (y₁, y₂) = (x₁·cos − x₂·sin, x₂·cos + x₁·sin) for each pair of a head's first 2·R numbers, R the tables' width; with
 * `reverse`, sin changes sign. Inputs: cos, sin, positions when given, and what is turned.
 */
export const rotaryEmbeddingOp: Op<RotaryParams> = {
  name: "rotaryEmbedding",
  infer: (inputs, params) => {
    checkRotary(inputs, params);
    return rotaryInputs(inputs, params).xs;
  },
  reference: (inputs, params, ...outputs) => {
    const { xs, ...tables } = rotaryInputs(inputs, params), { interleaved, reverse } = params;
    const cos = dense(tables.cos).data, sin = dense(tables.sin).data;
    const positions = tables.positions === undefined ? undefined : dense(tables.positions).data;
    const [length, width] = tables.cos.shape;
    outputs.forEach((y, n) => {
      const [B, S, H, D] = y.shape, x = dense(xs[n]).data;
      y.data.set(x); // what is not turned passes through
      const stride = tables.positions?.shape.length === 2 ? S : 0; // positions of a batch row
      for (let row = 0; row < B * S; row++) {
        const s = row % S;
        const at = positions === undefined ? s : positions[(row - s) / S * stride + s];
        const outside = at < 0 || at >= length;
        for (let h = 0; h < H; h++) {
          const start = (row * H + h) * D;
          for (let i = 0; i < width; i++) {
            const first = start + (interleaved ? 2 * i : i), second = first + (interleaved ? 1 : width);
            const c = outside ? NaN : cos[at * width + i];
            const angle = outside ? NaN : sin[at * width + i], turn = reverse ? -angle : angle;
            y.data[first] = x[first] * c - x[second] * turn;
            y.data[second] = x[second] * c + x[first] * turn;
          }
        }
      }
    });
  },
};

/** Options of {@linkcode rotaryEmbedding}. */
export interface RotaryOptions {
  /** Whether neighbours make a pair, as in GPT-J; otherwise a number and the one half a head further, as in Llama. */
  readonly interleaved?: boolean;
  /** i32 `[S]` or `[B, S]`, rows of the tables; 0, 1, 2, … when not given. */
  readonly positions?: Tensor;
}

/**
 * Rotary position embedding on queries and keys as attention takes them, without a transpose.
 *
 * @param x floats, `[B, S, H, D]`; or several such tensors, as queries and keys, turned in one call
 * @param cos f32 `[maxPositions, R]`, cosines of the angles; the first 2·R numbers of a head are turned, the rest pass
 * @param sin f32 `[maxPositions, R]`, their sines. The tables are constants: no gradient flows to them
 * @returns the shape and dtype of `x`
 * @throws {ShapeError} when the tables are wider than a head or positions have another shape
 * @throws {IndexError} when a position that the host knows is outside the tables; one computed on the device gives NaN
 */
export function rotaryEmbedding(x: Tensor, cos: Tensor, sin: Tensor, options?: RotaryOptions): Tensor;
/** Several tensors in one call. */
export function rotaryEmbedding<T extends readonly Tensor[]>(
  x: readonly [...T],
  cos: Tensor,
  sin: Tensor,
  options?: RotaryOptions,
): { [K in keyof T]: Tensor };
export function rotaryEmbedding(
  x: Tensor | readonly Tensor[],
  cos: Tensor,
  sin: Tensor,
  { interleaved = false, positions }: RotaryOptions = {},
): Tensor | readonly Tensor[] {
  const xs = x instanceof Tensor ? [x] : x;
  if (xs.length === 0) throw new ShapeError("rotaryEmbedding", "needs at least one tensor");
  if (positions !== undefined) checkRange("rotaryEmbedding", positions, cos.shape[0] ?? 0);
  const table = promote("rotaryEmbedding", "f32", promote("rotaryEmbedding", cos.dtype, sin.dtype));
  const given = [...(positions === undefined ? [] : [positions]), ...xs];
  const params = { interleaved, reverse: false, positioned: positions !== undefined };
  const types = [table, table, ...given.map((x) => x.dtype)];
  const outputs = runAs(rotaryEmbeddingOp, [cos, sin, ...given], types, params);
  return x instanceof Tensor ? outputs[0] : outputs;
}
