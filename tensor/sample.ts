/** The next token: drawn from a model's scores where the scores are, so that no token waits for the host. */
import { ShapeError, show, ValueError } from "./errors.ts";
import { dense, expectDType, expectRank, type Op, runAll, type Spec } from "./op.ts";
import { philox4x32 } from "./philox.ts";
import { checkKey, streams } from "./random.ts";
import type { Tensor } from "./tensor.ts";

/** How a token is chosen. The steps go in this order, each on what the one before left. */
export interface SampleParams {
  /** Scores of tokens that the row has already: divided by it when above 0, else multiplied; 1 changes nothing. */
  readonly repetitionPenalty: number;
  /** Divides the scores; 0 takes the highest, and what follows does not matter. */
  readonly temperature: number;
  /** Keeps so many of the highest scores, and what is equal to the last of them; 0 keeps all. */
  readonly topK: number;
  /** Keeps a token while those above it hold less than this share of the probability; 1 keeps all. */
  readonly topP: number;
  /** Keeps tokens at least this often as likely as the likeliest; 0 keeps all. */
  readonly minP: number;
  /** What a finished row goes on with. */
  readonly pad: number;
}

/** Everything that a row of text is between two tokens. A call consumes one and gives the next. */
export interface SampleState {
  /** Tokens of each row, prompt first, i32 `[B, N]`; negative where there is none. */
  readonly ids: Tensor;
  /** Where the last token of each row stands, i32 `[B]`. */
  readonly places: Tensor;
  /** Not 0 once a row has met one of its stops, i32 `[B]`. */
  readonly finished: Tensor;
}

/** −log(1 − u) for the u that 32 random bits stand for: exponential numbers, exact where they are small. */
export function exponential(bits: number): number {
  return -Math.log1p(-(bits + 0.5) / 2 ** 32);
}

/** The scores among which a token is drawn: penalised, divided by the temperature; −∞ where it is left out. */
export function keptScores(
  logits: ArrayLike<number>,
  seen: Iterable<number>,
  { repetitionPenalty, temperature, topK, topP, minP }: Omit<SampleParams, "pad">,
): Float64Array {
  const scores = Float64Array.from(logits, (x) => Number.isNaN(x) ? -Infinity : x), size = scores.length;
  for (const id of new Set(seen)) {
    if (id < 0 || id >= size) continue;
    scores[id] = scores[id] > 0 ? scores[id] / repetitionPenalty : scores[id] * repetitionPenalty;
  }
  if (temperature === 0) return scores;
  for (let i = 0; i < size; i++) scores[i] /= temperature;
  const falling = scores.toSorted().reverse(), top = falling[0];
  let least = topK > 0 ? falling[Math.min(topK, size) - 1] : -Infinity;
  if (topP < 1) {
    const odds = falling.filter((x) => x >= least).map((x) => Math.exp(x - top));
    const total = odds.reduce((a, b) => a + b, 0);
    let above = 0; // what the tokens with a higher score hold
    for (let i = 0, sum = 0; i < odds.length; i++) {
      if (i === 0 || falling[i] < falling[i - 1]) above = sum;
      if (above >= topP * total) break;
      least = falling[i];
      sum += odds[i];
    }
  }
  if (minP > 0) least = Math.max(least, top + Math.log(minP));
  return scores.map((x) => x >= least ? x : -Infinity);
}

/**
 * The next token of each row that is not finished: the i with the largest kept score_i − log e_i, where e_i are exponential
 * numbers, which is i with the probability of its softmax; the first of equals, and 0 where no score is a number. Element i
 * of row b at place p draws from word i mod 4 of Philox-4x32-10 at counter [⌊i/4⌋, p, b, sample] under the key.
 *
 * Inputs: ids i32 `[B, N]`, places i32 `[B]` and finished i32 `[B]`, all three consumed; logits floats `[B, V]`; key u32 [2];
 * stops i32 `[E]`, ids that finish a row. The token is written at the place after the last one, if there is room.
 * Outputs: ids, places, finished, and the tokens i32 `[B, 1]`.
 */
export const sampleOp: Op<SampleParams> = {
  name: "sample",
  inPlace: [0, 1, 2],
  infer: ([ids, places, finished, logits, key, stops]) => {
    const op = "sample";
    const integers = { ids, places, finished, stops };
    for (const [name, x] of Object.entries(integers)) expectDType(op, name, x.dtype, ["i32"]);
    expectDType(op, "logits", logits.dtype, ["f64", "f32", "f16", "bf16"]);
    checkKey(op, key);
    for (const [name, x] of [["ids", ids], ["logits", logits]] as const) expectRank(op, name, x.shape, 2);
    expectRank(op, "stops", stops.shape, 1);
    const batch = logits.shape[0];
    if (logits.shape[1] === 0) throw new ShapeError(op, `logits ${show(logits.shape)} are scores of no token`);
    if (ids.shape[0] !== batch) throw new ShapeError(op, `ids ${show(ids.shape)} are not [B, N] with B = ${batch}`);
    for (const [name, { shape }] of [["places", places], ["finished", finished]] as const) {
      if (show(shape) !== show([batch])) throw new ShapeError(op, `${name} ${show(shape)} is not [B] = [${batch}]`);
    }
    const same = ({ shape, dtype }: Spec) => ({ shape, dtype });
    return [same(ids), same(places), same(finished), { shape: [batch, 1], dtype: "i32" }];
  },
  reference: ([ids, places, finished, logits, key, stops], params, idsOut, placesOut, finishedOut, tokens) => {
    for (const [from, to] of [[ids, idsOut], [places, placesOut], [finished, finishedOut]]) {
      if (from.data !== to.data) to.data.set(dense(from).data);
    }
    const [batch, size] = logits.shape, room = ids.shape[1], scores = dense(logits).data;
    const [k0, k1] = dense(key).data, ends = [...dense(stops).data], words = new Uint32Array(4);
    for (let b = 0; b < batch; b++) {
      const place = placesOut.data[b], next = place + 1;
      let token = params.pad;
      if (finishedOut.data[b] === 0) {
        const seen = idsOut.data.subarray(b * room, b * room + Math.max(0, Math.min(room, next)));
        const kept = keptScores(scores.subarray(b * size, (b + 1) * size), seen, params);
        token = 0;
        let best = -Infinity, block = -1;
        for (let i = 0; i < size; i++) {
          if (kept[i] === -Infinity) continue;
          if (block !== i >> 2) philox4x32(block = i >> 2, place, b, streams.sample, k0, k1, words);
          const score = params.temperature === 0 ? kept[i] : kept[i] - Math.log(exponential(words[i % 4]));
          if (score > best) [best, token] = [score, i];
        }
        if (ends.includes(token)) finishedOut.data[b] = 1;
      }
      if (next >= 0 && next < room) idsOut.data[b * room + next] = token;
      placesOut.data[b] = next;
      tokens.data[b] = token;
    }
  },
};

/**
 * Draws the next token of each row and notes it down. Rows that are finished go on with the pad token.
 *
 * @param logits scores, floats `[B, V]`
 * @param state consumed; the next one is in the result
 * @param options.key u32 [2]; draws differ by row and place, so one key serves a whole text
 * @param options.stops i32 `[E]`, tokens that finish a row
 * @returns the state with the tokens in it, and the tokens i32 `[B, 1]`
 * @throws {ValueError} when an option is out of its range
 */
export function sampleTokens(
  logits: Tensor,
  { ids, places, finished }: SampleState,
  { key, stops, ...params }: SampleParams & { readonly key: Tensor; readonly stops: Tensor },
): SampleState & { readonly tokens: Tensor } {
  checkSampling("sampleTokens", params);
  const next = runAll(sampleOp, [ids, places, finished, logits, key, stops], params);
  return { ids: next[0], places: next[1], finished: next[2], tokens: next[3] };
}

/**
 * Refuses options that are out of their range.
 * @throws {ValueError} naming the option and its value
 */
export function checkSampling(op: string, params: Omit<SampleParams, "pad">): void {
  const { temperature, topK, topP, minP, repetitionPenalty } = params;
  const refuse = (name: string, value: unknown, expected: string) => {
    throw new ValueError(op, `${name} is ${expected}, got ${value}`);
  };
  if (!(temperature >= 0 && temperature < Infinity)) refuse("temperature", temperature, "0 for the likeliest, or more");
  if (!Number.isSafeInteger(topK) || topK < 0) refuse("topK", topK, "a whole number of at least 1, or 0 for all");
  if (!(topP > 0 && topP <= 1)) refuse("topP", topP, "above 0 and at most 1");
  if (!(minP >= 0 && minP <= 1)) refuse("minP", minP, "from 0 to 1");
  if (!(repetitionPenalty > 0 && repetitionPenalty < Infinity)) {
    refuse("repetitionPenalty", repetitionPenalty, "a number above 0");
  }
}
