/**
 * The derivative of every op, one entry each: given what the call kept, from the gradient of its result to those of
 * its inputs. Written with tensor functions, so that every entry differentiates again; only fused ops call a
 * `…Backward` op.
 */
import { isFloat } from "../tensor/dtype.ts";
import { attentionBackwardOp } from "../tensor/attention.ts";
import {
  add,
  cast,
  cos,
  div,
  equal,
  erf,
  exp,
  greater,
  less,
  log,
  mul,
  neg,
  pow,
  sigmoid,
  sign,
  sin,
  square,
  sub,
  tanh,
  where,
} from "../tensor/elementwise.ts";
import { UnsupportedError, ValueError } from "../tensor/errors.ts";
import { gegluBackwardOp, swigluBackwardOp } from "../tensor/gated.ts";
import { oneHot, scatterAdd, take } from "../tensor/gather.ts";
import {
  crossEntropyBackwardOp,
  linearCrossEntropyBackwardOp,
  linearCrossEntropySumBackwardOp,
} from "../tensor/loss.ts";
import { matmul } from "../tensor/matmul.ts";
import { broadcastTo, expandDims, padOp, permute, reshape, slice, sliceOp } from "../tensor/movement.ts";
import { layerNormBackwardOp, rmsNormBackwardOp } from "../tensor/norm.ts";
import { type Op, run, runAll } from "../tensor/op.ts";
import type { OpName, ParamsOfName } from "../tensor/ops.ts";
import { dropoutOp } from "../tensor/random.ts";
import { cumsumOp, reducedShape, type ReduceParams, sum } from "../tensor/reduce.ts";
import { rotaryEmbeddingOp } from "../tensor/rotary.ts";
import { sameShape, type Shape, sizeOf } from "../tensor/shape.ts";
import { zeros } from "../tensor/create.ts";
import { track } from "../tensor/scope.ts";
import { alias, type Tensor } from "../tensor/tensor.ts";
import { isAbsent, isOne } from "./absent.ts";
import type { Call, Pullback } from "./tape.ts";

/** What an op's entry is: its derivative, or null where there is none. */
type Vjp<Params> = ((call: Call<Params>) => Pullback | null) | null;

/** Sums a gradient over the axes along which its input was repeated. */
function sumTo(dy: Tensor, shape: Shape): Tensor {
  if (sameShape(dy.shape, shape)) return dy;
  const lead = dy.rank - shape.length;
  const axis = dy.shape.flatMap((n, i) => i < lead || (shape[i - lead] === 1 && n !== 1) ? [i] : []);
  return reshape(sum(dy, { axis }), shape);
}

/** A reduced tensor, repeated along the axes that were reduced. */
function spread(y: Tensor, shape: Shape, { axes }: Pick<ReduceParams, "axes">): Tensor {
  return broadcastTo(reshape(y, reducedShape(shape, { axes, keepDims: true })), shape);
}

/** e^(x − y) for y = log Σ e^x. In 16 bits y has lost what is small beside it, the same for all shares: they still sum to 1. */
function sharesOf(x: Tensor, y: Tensor, params: Pick<ReduceParams, "axes">): Tensor {
  if (x.dtype !== "f16" && x.dtype !== "bf16") return exp(sub(x, spread(y, x.shape, params)));
  const shares = exp(sub(cast(x, "f32"), cast(spread(y, x.shape, params), "f32")));
  return cast(div(shares, sum(shares, { axis: [...params.axes], keepDims: true })), x.dtype);
}

/** Both factors' gradients, each only when wanted. */
function pair(a: Shape, da: () => Tensor, b: Shape, db: () => Tensor): (() => Tensor)[] {
  return [() => sumTo(da(), a), () => sumTo(db(), b)];
}

/** The larger (or smaller) operand takes the gradient; equal ones share it. */
function choice(takesLeft: (a: Tensor, b: Tensor) => Tensor) {
  return ({ inputs: [a, b] }: Call<unknown>): Pullback => (dy) => {
    const half = mul(dy, 0.5), none = mul(dy, 0);
    const part = (x: Tensor, y: Tensor) => where(takesLeft(x, y), dy, where(equal(x, y), half, none));
    return pair(a.shape, () => part(a, b), b.shape, () => part(b, a));
  };
}

/** The extreme elements share the gradient evenly. */
function extreme({ inputs: [x], output: y, params }: Call<ReduceParams>): Pullback {
  return (dy) => {
    const hits = cast(equal(x, spread(y, x.shape, params)), dy.dtype);
    const count = sum(hits, { axis: params.axes, keepDims: true });
    return [div(mul(hits, spread(dy, x.shape, params)), count)];
  };
}

/** For the backward ops of fused functions: a second derivative is refused, not taken as 0. */
function once(name: string): () => Pullback {
  return () => () => {
    throw new UnsupportedError(name, `has no second derivative: take it through eager.${name}, which has`);
  };
}

/** For ops through which no gradient goes. */
function refuse(name: string, message: string): () => Pullback {
  return () => () => {
    throw new UnsupportedError(name, message);
  };
}

/** The derivative of every op. */
export const vjps: { readonly [N in OpName]: Vjp<ParamsOfName<N>> } = {
  // create
  full: null,
  arange: null,
  // elementwise
  add: ({ shapes: [a, b] }) => (dy) => pair(a, () => dy, b, () => dy),
  sub: ({ shapes: [a, b] }) => (dy) => pair(a, () => dy, b, () => neg(dy)),
  mul: ({ inputs: [a, b] }) => (dy) => pair(a.shape, () => mul(dy, b), b.shape, () => mul(dy, a)),
  div: ({ inputs: [a, b] }) => (dy) => pair(a.shape, () => div(dy, b), b.shape, () => neg(div(mul(dy, div(a, b)), b))),
  pow: ({ inputs: [a, b], output: y }) => (dy) =>
    pair(
      a.shape,
      () => mul(dy, where(equal(b, 0), mul(y, 0), mul(b, pow(a, sub(b, 1))))),
      b.shape,
      () => mul(dy, where(equal(a, 0), mul(y, 0), mul(y, log(a)))),
    ),
  maximum: choice(greater),
  minimum: choice(less),
  equal: null,
  less: null,
  lessEqual: null,
  logicalAnd: null,
  logicalOr: null,
  logicalNot: null,
  isFinite: null,
  neg: () => (dy) => [neg(dy)],
  abs: ({ inputs: [x] }) => (dy) => [mul(dy, sign(x))],
  sign: null,
  square: ({ inputs: [x] }) => (dy) => [mul(dy, mul(x, 2))],
  relu: ({ inputs: [x] }) => (dy) => [where(greater(x, 0), dy, mul(dy, 0))],
  exp: ({ output: y }) => (dy) => [mul(dy, y)],
  exp2: ({ output: y }) => (dy) => [mul(dy, mul(y, Math.LN2))],
  log: ({ inputs: [x] }) => (dy) => [div(dy, x)],
  sqrt: ({ output: y }) => (dy) => [div(mul(dy, 0.5), y)],
  rsqrt: ({ inputs: [x], output: y }) => (dy) => [mul(mul(dy, -0.5), div(y, x))],
  tanh: ({ output: y }) => (dy) => [mul(dy, sub(1, square(y)))],
  sigmoid: ({ output: y }) => (dy) => [mul(dy, mul(y, sub(1, y)))],
  silu: ({ inputs: [x] }) => (dy) => {
    const s = sigmoid(x);
    return [mul(dy, mul(s, add(1, mul(x, sub(1, s)))))];
  },
  gelu: ({ inputs: [x], params: { approximate } }) => (dy) => {
    if (approximate === "none") {
      const density = mul(exp(mul(square(x), -0.5)), 1 / Math.sqrt(2 * Math.PI));
      return [mul(dy, add(mul(add(erf(mul(x, Math.SQRT1_2)), 1), 0.5), mul(x, density)))];
    }
    const c = Math.sqrt(2 / Math.PI);
    const t = tanh(mul(mul(x, add(mul(square(x), 0.044715), 1)), c));
    const slope = mul(mul(x, sub(1, square(t))), add(mul(square(x), 3 * 0.044715 * c), c));
    return [mul(dy, mul(add(add(t, 1), slope), 0.5))];
  },
  erf: ({ inputs: [x] }) => (dy) => [mul(dy, mul(exp(neg(square(x))), 2 / Math.sqrt(Math.PI)))],
  sin: ({ inputs: [x] }) => (dy) => [mul(dy, cos(x))],
  cos: ({ inputs: [x] }) => (dy) => [neg(mul(dy, sin(x)))],
  where: ({ inputs: [condition], shapes: [, a, b] }) => (dy) => [
    null,
    () => sumTo(where(condition, dy, mul(dy, 0)), a),
    () => sumTo(where(condition, mul(dy, 0), dy), b),
  ],
  cast: ({ dtypes: [from], params: { dtype } }) => isFloat(from) && isFloat(dtype) ? (dy) => [cast(dy, from)] : null,
  // movement
  reshape: ({ shapes: [x] }) => (dy) => [reshape(dy, x)],
  permute: ({ params: { axes } }) => (dy) => [permute(dy, axes.map((_, i) => axes.indexOf(i)))],
  broadcastTo: ({ shapes: [x] }) => (dy) => [sumTo(dy, x)],
  slice: ({ shapes: [x], params: { begin, strides } }) => (dy) => {
    const reach = (i: number) => dy.shape[i] === 0 ? 0 : (dy.shape[i] - 1) * strides[i] + 1;
    const after = x.map((n, i) => n - begin[i] - reach(i));
    return [run(padOp, [dy], { before: begin, after, interior: strides.map((s) => s - 1), value: 0 })];
  },
  pad: ({ shapes: [x], params: { before, interior } }) => (dy) => {
    const end = before.map((b, i) => x[i] === 0 ? b : b + (x[i] - 1) * (interior[i] + 1) + 1);
    return [run(sliceOp, [dy], { begin: before, end, strides: interior.map((n) => n + 1) })];
  },
  concat: ({ shapes, params: { axis } }) => (dy) => {
    const starts = shapes.map((_, i) => shapes.slice(0, i).reduce((n, s) => n + s[axis], 0));
    return shapes.map((s, i) => () => {
      const begin = s.map((_, a) => a === axis ? starts[i] : 0);
      return slice(dy, begin, begin.map((b, a) => b + s[a]));
    });
  },
  // reduce
  sum: ({ shapes: [x], params }) => (dy) => [spread(dy, x, params)],
  mean: ({ shapes: [x], params }) => (dy) => [
    spread(mul(dy, 1 / sizeOf(params.axes.map((a) => x[a]))), x, params),
  ],
  max: extreme,
  min: extreme,
  logsumexp: ({ inputs: [x], output: y, params }) => (dy) => [
    mul(spread(dy, x.shape, params), sharesOf(x, y, params)),
  ],
  argmax: null,
  argmin: null,
  cumsum: ({ params: { axis, reverse } }) => (dy) => [run(cumsumOp, [dy], { axis, reverse: !reverse })],
  topK: ({ shapes: [x], outputs: [, indices] }) => (dy) => [
    sum(mul(expandDims(dy, -1), oneHot(indices, x.at(-1)!, { dtype: dy.dtype })), { axis: -2 }),
  ],
  // gather
  take: ({ inputs: [, indices], shapes: [x], params }) => (dy) => [
    scatterAdd(zeros(x, { dtype: dy.dtype, backend: dy.backend }), indices, dy, params),
    null,
  ],
  scatterAdd: ({ inputs: [, indices], params }) => (dy) => [dy, null, () => take(dy, indices, params)],
  // norm
  softmax: ({ output: y, params: { axis } }) => (dy) => [mul(y, sub(dy, sum(mul(dy, y), { axis, keepDims: true })))],
  logSoftmax: ({ output: y, params: { axis } }) => (dy) => [
    sub(dy, mul(exp(y), sum(dy, { axis, keepDims: true }))),
  ],
  rmsNorm: ({ inputs, outputs: [, r, sum], shapes: [, , residual] }) => {
    if (residual === undefined) {
      const [weight, x] = inputs;
      return (dy) => runAll(rmsNormBackwardOp, [dy, x, weight, r], {}).reverse();
    }
    const [weight] = inputs;
    return (dy, _, dsum) => {
      const more = isAbsent(dsum) ? [] : [dsum];
      const [ds, dweight] = runAll(rmsNormBackwardOp, [dy, sum, weight, r, ...more], {});
      return [dweight, ds, ds];
    };
  },
  rmsNormBackward: once("rmsNorm"),
  layerNorm: ({ inputs: [x, weight], outputs: [, mean, r] }) => (dy) =>
    runAll(layerNormBackwardOp, [dy, x, weight, mean, r], {}),
  layerNormBackward: once("layerNorm"),
  // rotary
  rotaryEmbedding: ({ inputs, params }) => {
    const rest = inputs[Symbol.iterator]();
    const tables = Array.from({ length: params.positioned ? 3 : 2 }, () => rest.next().value as Tensor);
    return (...dys) => [
      ...tables.map(() => null),
      ...runAll(rotaryEmbeddingOp, [...tables, ...dys], { ...params, reverse: !params.reverse }),
    ];
  },
  // gated
  swiglu: ({ inputs: [gate, up] }) => (dy) => runAll(swigluBackwardOp, [dy, gate, up], {}),
  swigluBackward: once("swiglu"),
  geglu: ({ inputs: [gate, up], params }) => (dy) => runAll(gegluBackwardOp, [dy, gate, up], params),
  gegluBackward: once("geglu"),
  // loss
  crossEntropy: ({ inputs: [logits, labels], outputs: [, lse], params }) => (dloss) => [
    run(crossEntropyBackwardOp, [dloss, logits, labels, lse], params),
    null,
  ],
  crossEntropyBackward: once("crossEntropy"),
  linearCrossEntropy: ({ inputs: [hidden, weight, labels], outputs: [, lse], params }) => (dloss) => [
    ...runAll(linearCrossEntropyBackwardOp, [dloss, hidden, weight, labels, lse], params),
    null,
  ],
  linearCrossEntropyBackward: once("linearCrossEntropy"),
  linearCrossEntropySum: ({ outputs: [, dhidden, dweight] }) => (dtotal, ...second) => {
    if (!second.every(isAbsent)) once("linearCrossEntropy")()();
    const scaled = isOne(dtotal)
      ? [dhidden, dweight].map((x) => track(alias(x)))
      : runAll(linearCrossEntropySumBackwardOp, [dtotal, dhidden, dweight], {});
    return [...scaled, null, null];
  },
  linearCrossEntropySumBackward: once("linearCrossEntropy"),
  // random
  split: null,
  foldIn: null,
  uniform: null,
  randn: null,
  randint: null,
  bernoulli: null,
  sample: null,
  dropout: ({ inputs: [key], params }) => (dy) => [null, run(dropoutOp, [key, dy], params)],
  // update
  adamwUpdate: null,
  sgdUpdate: null,
  momentumUpdate: null,
  // matmul
  matmul: ({ inputs: [a, b], params: { transposeA: ta, transposeB: tb } }) => (dy) =>
    pair(
      a.shape,
      () => ta ? matmul(b, dy, { transposeA: tb, transposeB: true }) : matmul(dy, b, { transposeB: !tb }),
      b.shape,
      () => tb ? matmul(dy, a, { transposeA: true, transposeB: ta }) : matmul(a, dy, { transposeA: !ta }),
    ),
  project: refuse("project", "has no derivative: use linear, rmsNorm and swiglu"),
  // attention
  attention: ({ inputs, outputs: [out, lse], wanted, params }) => {
    const [q, k, v, ...rest] = inputs, { optional } = params;
    const gradients = (["bias", "sinks"] as const).filter((name) =>
      wanted[3 + optional.indexOf(name)] && optional.includes(name)
    );
    return (dOut, dLse) => {
      const given = [dOut, dLse, q, k, v, out, lse, ...rest];
      const [dq, dk, dv, ...others] = runAll(attentionBackwardOp, given, { ...params, gradients });
      return [dq, dk, dv, ...optional.map((name) => others[gradients.findIndex((found) => found === name)] ?? null)];
    };
  },
  attentionBackward: refuse("flashAttention", "has no second derivative: take it through naiveAttention, which has"),
  cacheAppend: refuse("flashAttentionWithKvCache", "has no derivative: use flashAttention"),
  cacheAttention: refuse("flashAttentionWithKvCache", "has no derivative: use flashAttention"),
  decodeAttention: refuse("decodeAttention", "has no derivative: use flashAttention"),
  rotaryAppend: refuse("rotaryAppend", "has no derivative: use rotaryEmbedding"),
  dropoutMask: null,
};

/** Derivatives of ops that are not in the table. */
const defined = new WeakMap<object, Vjp<never>>();

/**
 * Gives an op outside of the table its derivative.
 * @throws {ValueError} when an op of the table has its name
 */
export function defineVjp<P>(op: Op<P>, vjp: Vjp<P>): void {
  if (Object.hasOwn(vjps, op.name)) throw new ValueError("defineOp", `the library has an op "${op.name}" of its own`);
  defined.set(op, vjp as Vjp<never>);
}

/** The pullback of a call, or null when the op has no derivative. */
export function pullbackOf<P>(op: Op<P>, call: Call<P>): Pullback | null {
  const own = defined.get(op);
  const vjp = (own === undefined ? vjps[op.name as OpName] : own) as Vjp<P> | undefined;
  if (vjp === undefined) throw new Error(`${op.name} is not in the table of derivatives`);
  return vjp === null ? null : vjp(call);
}
