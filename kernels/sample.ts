/**
 * The next token of each row: one workgroup a row walks the scores a few times, from the cache after the first.
 *
 *   scores ──▶ highest ──▶ code = (highest − score)·2²⁴, a whole number ──▶ which code is the last that is kept
 *                                                                      └─▶ highest kept score − log e ──▶ token
 *
 * The last kept code is found by digits: codes fall into 256 bins, the bins are added up from the highest score on, and the
 * bin in which the sum reaches its goal is split into 256 again. What is added up is 1 for topK and the odds for topP, in
 * whole numbers, so that no order of the additions shows. A first digit of a sixteenth spreads usual scores over the bins.
 *
 * Floor for V = 128,256 f32: 0.5 MB through one multiprocessor, a few µs a walk. Measured on an H200, µs a token: the highest
 * score 14, a plain draw 124, topK 50 113, topP 0.9 of flat scores 231; 8 or 16 loads under way for 4 the same within 2 %, but
 * topP with 16 of them 320.
 */
import type { DType } from "../tensor/dtype.ts";
import { streams } from "../tensor/random.ts";
import type { SampleParams } from "../tensor/sample.ts";
import { each, type Kernel, kernel } from "./kernel.ts";
import { copy, type Lowering, type View } from "./lowering.ts";
import { mathFunctions } from "./math.ts";
import { philox4x32 } from "./random.ts";
import { load, storageType, storageType4, unpack4 } from "./storage.ts";

/** Everything that the text depends on. */
interface SampleKernel {
  readonly dtype: DType;
  /** Four scores a load: rows are multiples of four. */
  readonly vector: boolean;
  /** Threads, a power of two of at least 256. */
  readonly threads: number;
  /** Loads that a thread has under way. */
  readonly unroll: number;
  /** Takes the highest score. */
  readonly greedy: boolean;
}

/** A score that nothing can choose. */
const never = "-3.0e38f";

/** Text that runs `body(s, i)` for four scores at a time, of tokens 4·i … 4·i + 3. */
function walk({ threads, unroll }: SampleKernel, body: (scores: string, i: string) => string): string {
  return `for (var at = li; at < u.quads; at += ${threads * unroll}u) {
    ${each(unroll, (n) => `let i${n} = at + ${n * threads}u; let s${n} = quad(start, i${n});`).join(" ")}
    ${each(unroll, (n) => body(`s${n}`, `i${n}`)).join("\n    ")}
  }`;
}

/** Text that leaves the largest `value`, the first `index` of equals, of all threads in `values[0]`, `places[0]`. */
function highest({ threads }: SampleKernel): string {
  return `values[li] = value; indices[li] = index;
  workgroupBarrier();
  for (var half = ${threads / 2}u; half > 0u; half >>= 1u) {
    if (li < half) {
      let v = values[li + half]; let j = indices[li + half];
      if (v > values[li] || (v == values[li] && j < indices[li])) { values[li] = v; indices[li] = j; }
    }
    workgroupBarrier();
  }`;
}

/** Reads scores, key and stops; writes ids, places, finished and the tokens. */
function sampleKernel(params: SampleKernel): Kernel {
  const { dtype, vector, threads, unroll, greedy } = params;
  const name = `sample_${greedy ? "greedy_" : ""}${threads}_u${unroll}_${dtype}${vector ? "v" : ""}`;
  return kernel(name, {
    reads: { scores: vector ? storageType4(dtype) : storageType(dtype), key: "u32", stops: "i32" },
    writes: { ids: "i32", places: "i32", finished: "i32", tokens: "i32" },
    uniforms: {
      ...{ size: "u32", quads: "u32", first: "u32", row: "u32", room: "u32", pad: "i32" },
      ...{ key: "u32", stops: "u32", stopCount: "u32" },
      ...{ temperature: "f32", topK: "u32", topP: "f32", reach: "f32" },
    },
  }, () => {
    const read = vector
      ? `let raw = scores[start + min(i, u.quads - 1u)]; let x = vec4f(${unpack4(dtype, "raw").join(", ")});`
      : `let x = vec4f(${
        each(4, (j) => load(dtype, "scores", `start + min(4u * i + ${j}u, u.size - 1u)`)).join(", ")
      });`;
    const best = each(4, (j) => `if (s[${j}] > value) { value = s[${j}]; index = 4u * i + ${j}u; }`).join(" ");
    const scan = each(
      8,
      (n) =>
        `{ let here = sums[${n % 2}][li & 255u]; let more = sums[${n % 2}][(max(li & 255u, ${2 ** n}u)) - ${2 ** n}u];
      if (li < 256u) { sums[${(n + 1) % 2}][li] = here + select(0.0f, more, li >= ${2 ** n}u); } }
      workgroupBarrier();`,
    ).join("\n      ");
    const choose = `
// The code at which the sum over codes from 0 on, up to \`last\`, reaches \`goal\`; a goal below 0 is a share of the whole sum.
fn reached(start: u32, li: u32, top: f32, byOdds: bool, last: u32, share: f32) -> u32 {
  var goal = share; var low = 0u; var width = 20u;
  for (var digit = 0u; digit < 6u; digit++) {
    if (li < 256u) { atomicStore(&fine[li], 0u); atomicStore(&coarse[li], 0u); }
    workgroupBarrier();
    ${
      walk(params, (s, i) =>
        each(4, (j) =>
          `{ let code = code_of(top - ${s}[${j}]);
      if (code >= low && code <= last && 4u * ${i} + ${j}u < u.size) {
        let bin = (code - low) >> width;
        if (bin < 256u || digit == 0u) {
          let odds = select(1u, u32(exp(${s}[${j}] - top) * ${2 ** 28}f + 0.5f), byOdds);
          if (odds > 0u) {
            atomicAdd(&fine[min(bin, 255u)], odds & 16383u);
            if (odds > 16383u) { atomicAdd(&coarse[min(bin, 255u)], odds >> 14u); }
          }
        }
      } }`).join("\n      "))
    }
    workgroupBarrier();
    if (li < 256u) { sums[0][li] = f32(atomicLoad(&coarse[li])) * 16384.0f + f32(atomicLoad(&fine[li])); }
    if (li == 0u) { found = 255u; rest = goal; }
    workgroupBarrier();
    ${scan}
    if (digit == 0u && byOdds) { goal *= sums[0][255]; }
    if (li < 256u) {
      let before = select(0.0f, sums[0][max(li, 1u) - 1u], li > 0u);
      if (sums[0][li] >= goal && before < goal) { found = li; rest = goal - before; }
    }
    let bin = workgroupUniformLoad(&found); goal = workgroupUniformLoad(&rest);
    low += bin << width;
    if (width == 0u) { break; }
    // The last bin of the first pass holds all that is far from the highest score.
    width = select(max(width, 8u) - 8u, 24u, digit == 0u && bin == 255u);
  }
  return low;
}`;
    return `${philox4x32}
${mathFunctions("ft_log() ft_is_nan()")}
var<workgroup> values: array<f32, ${threads}>;
var<workgroup> indices: array<u32, ${threads}>;
fn quad(start: u32, i: u32) -> vec4f {
  ${read}
  ${each(4, (j) => `let inside${j} = !ft_is_nan(x[${j}]) && 4u * i + ${j}u < u.size;`).join(" ")}
  return select(vec4f(${never}), max(x / u.temperature, vec4f(${never})), vec4<bool>(${
      each(4, (j) => `inside${j}`).join(", ")
    }));
}
${
      greedy ? "" : `
var<workgroup> fine: array<atomic<u32>, 256>;
var<workgroup> coarse: array<atomic<u32>, 256>;
var<workgroup> sums: array<array<f32, 256>, 2>;
var<workgroup> found: u32;
var<workgroup> rest: f32;
fn code_of(distance: f32) -> u32 { return u32(min(distance, 255.0f) * ${2 ** 24}f); }
// −log(1 − x) for x = (bits + 1/2)·2⁻³²: its series where it is small, and from the other end where it is large.
fn exponential(bits: u32) -> f32 {
  let x = (f32(bits) + 0.5f) * ${2 ** -32}f;
  if (bits < 0x10000000u) {
    return x * (1.0f + x * (0.5f + x * (0.33333333f + x * (0.25f + x * (0.2f + x * 0.16666667f)))));
  }
  return -ft_log((f32(~bits) + 0.5f) * ${2 ** -32}f);
}
${choose}`
    }
@compute @workgroup_size(${threads})
fn main(@builtin(workgroup_id) group: vec3u, @builtin(local_invocation_index) li: u32) {
  let b = group.x; let start = u.first + b * u.row;
  let place = places[b];
  var value = ${never}; var index = 0u;
  ${walk(params, (s, i) => `{ let s = ${s}; let i = ${i}; ${best} }`)}
  ${highest(params)}
  ${
      greedy ? "" : `
  let top = workgroupUniformLoad(&values[0]);
  workgroupBarrier();
  var last = code_of(u.reach);
  if (u.topK > 0u) { last = min(last, reached(start, li, top, false, 0xffffffffu, f32(u.topK))); }
  // Shares are of what the steps before have kept; the reach comes after them.
  if (u.topP < 1.0f) {
    let kept = select(0xffffffffu, last, u.topK > 0u);
    last = min(last, reached(start, li, top, true, kept, u.topP));
  }
  value = ${never}; index = 0u;
  let seed = vec2u(key[u.key], key[u.key + 1u]);
  ${
        walk(params, (s, i) =>
          `{
      let kept = vec4<bool>(${each(4, (j) => `${s}[${j}] > ${never} && code_of(top - ${s}[${j}]) <= last`).join(", ")});
      if (any(kept)) {
        let words = philox(vec4u(${i}, u32(place), b, ${streams.sample}u), seed);
        ${
            each(4, (j) =>
              `if (kept[${j}]) { let race = ${s}[${j}] - ft_log(exponential(words[${j}]));
          if (race > value || value == ${never}) { value = race; index = 4u * ${i} + ${j}u; } }`).join("\n        ")
          }
      }
    }`)
      }
  ${highest(params)}`
    }
  if (li == 0u) {
    var token = i32(indices[0]);
    if (finished[b] != 0) { token = u.pad; }
    else {
      for (var n = 0u; n < u.stopCount; n++) { if (stops[u.stops + n] == token) { finished[b] = 1; } }
    }
    let next = place + 1;
    if (next >= 0 && u32(next) < u.room) { ids[b * u.room + u32(next)] = token; }
    places[b] = next;
    tokens[b] = token;
  }
}`;
  });
}

/** Scores of tokens that a row has: every thread looks at one place of a row. Two that meet write the same. */
const penalize = (dtype: DType): Kernel =>
  kernel(`penalize_${dtype}`, {
    reads: { logits: storageType(dtype), ids: "i32", places: "i32" },
    writes: { scores: "f32" },
    uniforms: { size: "u32", room: "u32", first: "u32", row: "u32", penalty: "f32" },
  }, () =>
    `@compute @workgroup_size(64)
fn main(@builtin(global_invocation_id) at: vec3u) {
  let b = at.y;
  if (at.x >= u.room || i32(at.x) > places[b]) { return; }
  let id = ids[b * u.room + at.x];
  if (id < 0 || u32(id) >= u.size) { return; }
  let x = ${load(dtype, "logits", "u.first + b * u.row + u32(id)")};
  scores[b * u.size + u32(id)] = select(x * u.penalty, x / u.penalty, x > 0.0f);
}`);

/** Tokens from scores. */
export function lowerSample(call: Lowering<SampleParams>): void {
  const { temperature, topK, topP, minP, repetitionPenalty, pad } = call.params;
  const [ids, places, finished, tokens] = call.outputs;
  const logits = call.dense(call.inputs[3], 1), key = call.dense(call.inputs[4], 1);
  const stops = call.dense(call.inputs[5], 1);
  const [batch, size] = logits.shape, room = ids.shape[1];
  if (batch === 0) return;
  let scores: View = logits;
  if (repetitionPenalty !== 1) {
    copy(call, logits, scores = call.temporary(logits.shape, "f32"));
    const uniforms = { size, room, first: logits.offset, row: size, penalty: repetitionPenalty };
    const views = [logits, ids, places, scores];
    call.dispatch(penalize(logits.dtype), views, uniforms, [Math.ceil(room / 64), batch, 1]);
  }
  const { maxInvocations, subgroupSize } = call.capabilities;
  const software = subgroupSize > 0 && subgroupSize <= 8;
  const vector = size % 4 === 0 && scores.offset % 4 === 0, unit = vector ? 4 : 1;
  const greedy = temperature === 0;
  const threads = software || maxInvocations < 1024 || size <= 2048 ? 256 : 1024;
  const unroll = software ? 1 : 4; // Chromium's software adapter does not come to an end with the longer text
  const shape = sampleKernel({ dtype: scores.dtype, vector, threads, unroll, greedy });
  call.dispatch(shape, [scores, key, stops, ids, places, finished, tokens], {
    ...{ size, quads: Math.ceil(size / 4), first: scores.offset / unit, row: size / unit, room, pad },
    ...{ key: key.offset, stops: stops.offset, stopCount: stops.shape[0] },
    ...{ temperature: greedy ? 1 : temperature, topK: Math.min(topK, size), topP },
    reach: minP > 0 ? -Math.log(minP) : 255,
  }, [batch, 1, 1]);
}
