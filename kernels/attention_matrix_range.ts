/**
 * What lets the units, which multiply f16, serve numbers that f16 does not hold: a power of two for each operand and key
 * head, found by a dispatch of its own.
 *
 *   q, k, v, dOut, dLse ─ a workgroup takes 128 rows of a key head ─▶ a head's largest number, and that of its smallest row
 *
 * An operand is multiplied by the power that puts its largest number between 2^14 and 2^15. bf16 has fewer digits than f16, so
 * only what comes below 2^-17 loses any: at most 2^-25, 2^-39 of the largest. Where the largest number of every row that is
 * not all zero lies within 16 binades of the head's, nothing is off by more than 2^-22 of its row's largest. Heads that have
 * other rows, an infinity or NaN are left to the portable kernel, whose dispatch follows; a workgroup whose head is not
 * its kernel's returns at once. The powers come off again in f32, exactly: q's and k's with the scale of the softmax, v's where
 * results are stored.
 *
 * dS, which is rounded to f16 as well, has a power of its own in the backward, of f16 too: |dOut|·|v| may pass what f16
 * holds, or be so small that P takes dS below it. No out is beyond all v, so |dS| ≤ 2·Dv·max|dOut|·max|v| + max|dLse|; the
 * power puts that bound at 2^15, and dS is off by 2^-12 of itself or 2^-40 of the bound. Rows of dOut may be as small as they
 * like, since those of tokens that a model foresees are; only where a head's largest row, 2^12 times beyond the others, has itself
 * no dS (it sees a single key, say) do the others' dq and dk have fewer digits than f16.
 *
 * A maximum does not depend on the order of its numbers, so the atomics always give the same bits.
 *
 * Floor: the operands at the speed of a copy, 6 µs for 4×1024 tokens, 32 heads and 8 key heads of 64, on an H200.
 */
import {
  type AttentionFeatures,
  type AttentionLayout,
  type AttentionOperand,
  type AttentionPlan,
  type AttentionShape,
  type AttentionStorage,
  operandName,
  operandType,
  plainAttention,
} from "./attention_common.ts";
import { eightReader } from "./attention_matrix_operands.ts";
import {
  attentionFields,
  type AttentionSettings,
  attentionUniforms,
  featureReads,
  keyRow,
  locateBatch,
  locateHead,
  locateKeys,
} from "./attention_options.ts";
import { rangeWords } from "./attention_matrix_powers.ts";
import { each, type Kernel, kernel } from "./kernel.ts";

/** What the ranges kernel depends on. */
export interface AttentionRangeParams {
  readonly headDim: number;
  readonly valueDim: number;
  /** The operands to look at: q, k and v, in the backward dOut too, [B, Sq, H, Dv]; v and dOut alone for the power of dS. */
  readonly operands: Readonly<Partial<Record<"q" | "k" | "v" | "dOut", AttentionOperand>>>;
  /** Storage `dLse`, f32 [B, H, Sq], is looked at. */
  readonly dLse: boolean;
  /** Lanes of a subgroup. */
  readonly lanes: number;
  /** Of these, what says where rows lie. */
  readonly features: AttentionFeatures;
}

/** Words of a key head: an operand's largest number, as bits of f32, and all but dOut's inverted one of its smallest row. */
const words = { q: 0, k: 2, v: 4, dOut: 6, dLse: 7 } as const;

/** Rows that a workgroup takes. */
const chunk = 128;

/** The features that say where rows lie. */
function placesOf({ lengths, leftpad, cacheIndex, paged }: AttentionFeatures): AttentionFeatures {
  return { ...plainAttention, lengths, leftpad, cacheIndex, paged };
}

/** WGSL of the largest magnitude of eight numbers, as the bits of their dtype. Infinities and NaN set `unfit` and do not count. */
function largest(storage: AttentionStorage): string {
  if (storage === "f32") {
    return `fn largest_f32(x0: vec4f, x1: vec4f) -> u32 {
  let a = bitcast<vec4u>(x0) & vec4u(0x7fffffffu); let b = bitcast<vec4u>(x1) & vec4u(0x7fffffffu);
  return largest_of(a, b, 0x7f800000u);
}`;
  }
  return `fn largest_${storage}(w: vec4u) -> u32 {
  return largest_of(w & vec4u(0x7fffu), (w >> vec4u(16u)) & vec4u(0x7fffu), ${storage === "f16" ? 0x7c00 : 0x7f80}u);
}`;
}

const largestOf = `var<private> unfit = 0u;
fn largest_of(a: vec4u, b: vec4u, infinity: u32) -> u32 {
  var all = max(a, b);
  let most = max(max(all.x, all.y), max(all.z, all.w));
  if (most < infinity) { return most; }
  unfit = 0xffffffffu;
  all = max(select(a, vec4u(), a >= vec4u(infinity)), select(b, vec4u(), b >= vec4u(infinity)));
  return max(max(all.x, all.y), max(all.z, all.w));
}`;

/** A magnitude of that storage as the bits of an f32. */
function bitsOf({ storage }: AttentionOperand, magnitude: string): string {
  if (storage === "f16") return `bitcast<u32>(unpack2x16float(${magnitude}).x)`;
  return storage === "bf16" ? `(${magnitude} << 16u)` : magnitude;
}

/** The ranges kernel: reads operands and what says where their rows lie, raises words of `ranges`, which begin as 0. */
export function attentionRange(params: AttentionRangeParams): Kernel {
  const { headDim, valueDim, operands, dLse, lanes } = params, features = placesOf(params.features);
  const named = Object.entries(operands) as [keyof typeof operands, AttentionOperand][];
  const name = [
    `attention_matrix_range_d${headDim}x${valueDim}_l${lanes}`,
    ...named.map(([name, operand]) => `${name}_${operandName(operand)}`),
    ...(dLse ? ["dlse"] : []),
    ...(features.lengths === "dense" ? [] : [features.lengths]),
    ...(["leftpad", "cacheIndex", "paged"] as const).filter((name) => features[name]),
  ].join("_");
  return kernel(name, {
    reads: {
      ...Object.fromEntries(named.map(([name, operand]) => [name, operandType(operand)])),
      ...(dLse ? { dLse: "f32" } : {}),
      ...featureReads(features),
    },
    writes: { ranges: "atomic<u32>" },
    uniforms: attentionFields(features),
    requires: ["subgroups"],
  }, () => body({ ...params, features }));
}

function body({ headDim, valueDim, operands, dLse, lanes, features }: AttentionRangeParams): string {
  const threads = Math.min(256, 8 * lanes), sizes = { q: headDim, k: headDim, v: valueDim, dOut: valueDim };
  const named = Object.entries(operands) as [keyof typeof operands, AttentionOperand][];
  /** Lanes beside one another that share a row, and how often they load. */
  const spread = (size: number): { perRow: number; loads: number } => {
    const eights = Math.ceil(size / 8), perRow = Math.min(lanes, 2 ** Math.ceil(Math.log2(eights)));
    return { perRow, loads: Math.ceil(eights / perRow) };
  };
  const scan = (name: keyof typeof operands, start: (i: string) => string, from: string, to: string): string => {
    if (operands[name] === undefined) return "";
    const { perRow, loads } = spread(sizes[name]);
    return `for (var r = ${from}; r < ${to}; r += ${threads / perRow}u) {
      let at = ${start(`min(r + li / ${perRow}u, ${to} - 1u)`)};
      var most = 0u;
      ${each(loads, (n) => `most = max(most, ${name}_most(at, li % ${perRow}u + ${n * perRow}u));`).join("\n")}
      ${each(Math.log2(perRow), (n) => `most = max(most, subgroupShuffleXor(most, ${1 << n}u));`).join(" ")}
      ${name}Most = max(${name}Most, most); ${name}Least = min(${name}Least, select(0xffffffffu, most, most > 0u));
    }`;
  };
  const found = [
    ...named.flatMap(([name, operand]) => [
      { word: words[name], value: bitsOf(operand, `${name}Most`) },
      ...(name === "dOut" ? [] : [{
        word: words[name] + 1,
        value: `select(0u, ~${bitsOf(operand, `${name}Least`)}, ${name}Most > 0u)`,
      }]),
    ]),
    ...(dLse ? [{ word: words.dLse, value: "dLseMost" }] : []),
    { word: words.v + 1, value: "unfit" },
  ];
  const dOutUnits = operands.dOut === undefined ? 0 : valueDim / operands.dOut.unit;
  return `
${largestOf}
${[...new Set(named.map(([, { storage }]) => largest(storage)))].join("\n")}
${
    named.map(([name, operand]) => {
      const { perRow, loads } = spread(sizes[name]), call = `largest_${operand.storage}`;
      return eightReader(`${name}_most`, name, operand, sizes[name], perRow * loads * 8, {
        type: "u32",
        words: (w) => `${call}(${w})`,
        floats: (x0, x1) => `${call}(${x0}, ${x1})`,
      });
    }).join("\n")
  }
var<workgroup> found: array<atomic<u32>, ${rangeWords}>;
@compute @workgroup_size(${threads})
fn main(@builtin(workgroup_id) group: vec3u, @builtin(local_invocation_index) li: u32) {
  let first = group.x * ${chunk}u; let g = group.y; let b = group.z;
  ${locateBatch(features)}
  ${named.map(([name]) => `var ${name}Most = 0u; var ${name}Least = 0xffffffffu;`).join(" ")}
  ${dLse ? "var dLseMost = 0u;" : ""}
  {
    ${locateKeys(features)}
    let begin = max(first, keyFirst); let to = min(first + ${chunk}u, sk);
    ${scan("k", (j) => keyRow(features, "k", j), "begin", "to")}
    ${scan("v", (j) => keyRow(features, "v", j), "begin", "to")}
  }
  let to = min(first + ${chunk}u, sq);
  for (var h = g * u.group; h < (g + 1u) * u.group; h++) {
    ${locateHead(features)}
    ${scan("q", (i) => `qBase + ${i} * u.qSeq`, "first", "to")}
    ${scan("dOut", (i) => `((outRow + ${i}) * u.heads + h) * ${dOutUnits}u`, "first", "to")}
    ${
    dLse
      ? `for (var i = first + li; i < to; i += ${threads}u) {
      let most = bitcast<u32>(dLse[lseAt + i]) & 0x7fffffffu;
      if (most < 0x7f800000u) { dLseMost = max(dLseMost, most); } else { unfit = 0xffffffffu; }
    }`
      : ""
  }
  }
  ${
    found.map(({ word, value }) =>
      `{ let all = subgroupMax(${value}); if (li % ${lanes}u == 0u) { atomicMax(&found[${word}], all); } }`
    ).join("\n")
  }
  workgroupBarrier();
  if (li < ${rangeWords}u) {
    atomicMax(&ranges[(b * (u.heads / u.group) + g) * ${rangeWords}u + li], atomicLoad(&found[li]));
  }
}`;
}

/** Workgroups and uniforms of the ranges kernel. */
export function planAttentionRange(
  { operands, features }: AttentionRangeParams,
  shape: AttentionShape,
  at: AttentionLayout,
  settings: AttentionSettings,
): AttentionPlan {
  const { batch, seqlenQ, seqlenK, kvHeads } = shape, unread: AttentionOperand = { storage: "f16", unit: 1 };
  const { q = unread, k = unread, v = unread } = operands;
  return {
    workgroups: [Math.ceil(Math.max(seqlenQ, seqlenK) / chunk), kvHeads, batch],
    uniforms: attentionUniforms({ q, k, v, features: placesOf(features) }, shape, at, settings),
  };
}
