/**
 * Cross-entropy over rows of logits, and straight from the last layer's input in chunks of rows.
 *
 *   row ──256 lanes──▶ (max, Σ exp, Σ z) ──tree──▶ lse, loss ──▶ second sweep writes the gradient over the logits
 *
 * The logits of hidden · weightᵀ exist for one chunk at a time; the chunk's gradient replaces them in place and goes into
 * both products while it is there: dhidden's rows, and a sum in dweight.
 *
 * Floor for 4096 × 1024 → 128256 in f32 with gradients: 3 products of 1.08 TFLOP at 44 TFLOP/s = 73 ms.
 */
import type { DType } from "../tensor/dtype.ts";
import type { RowLoss } from "../tensor/loss.ts";
import { type Kernel, kernel } from "./kernel.ts";
import { mathFunctions } from "./math.ts";
import { isPacked, load, pack4, roundingFunctions, storageType, storageType4, unpack4 } from "./storage.ts";

/** What a kernel over rows of logits does. */
export interface RowLossKernel {
  /** The logits' type. */
  readonly dtype: DType;
  readonly vec: 1 | 4;
  /** `loss` writes loss and lse; `gradient` writes dlogits; `both` writes loss, and dlogits over f32 logits. */
  readonly writes: "loss" | "gradient" | "both";
  /** Whether a gradient goes by the rows' lse, where the columns are not all classes. */
  readonly known: boolean;
  /** Whether the gradient takes the logits' place. */
  readonly inPlace: boolean;
  readonly softcap: boolean;
}

const power = (z: string, from: string) => `exp2((${z} - ${from}) * ${Math.LOG2E})`;

/**
 * From the lanes' (m, s, t) to the row's lse, top + rest; the sum of t is in w_t[0] then. Rounded, lse has lost what is
 * small beside it: where both parts are there, loss and gradient go by these.
 */
const joined = (): string => `
  w_m[lane] = m; w_s[lane] = s; w_t[lane] = t;
  for (var half = 128u; half > 0u; half /= 2u) {
    workgroupBarrier();
    if (lane < half) {
      let a = w_m[lane]; let b = w_m[lane + half]; let top = max(a, b);
      w_s[lane] = w_s[lane] * ${power("a", "top")} + w_s[lane + half] * ${power("b", "top")};
      w_m[lane] = top;
      w_t[lane] += w_t[lane + half];
    }
  }
  workgroupBarrier();
  let top = w_m[0]; let endless = bitcast<u32>(top) == 0x7f800000u;
  let rest = select(ft_log(w_s[0]), 0.0, endless);
  let lse = top + rest;`;

/** Writes a row's loss: (1 − ε)·(top − z_t) + ε·(top − mean z) + rest + zLoss·lse². */
const lossOf = (chosen: string, lse: boolean) => `
  if (lane == 0u) {
    let z = ${chosen};
    var loss = (1.0 - u.smoothing) * (top - z) + rest + u.z_loss * lse * lse;
    if (u.smoothing > 0.0) { loss += u.smoothing * (top - w_t[0] / classes); }
    losses[u.first + row] = select(select(ft_nan(), loss, inside), 0.0, ignored);
    ${lse ? "lses[u.first + row] = lse;" : ""}
  }`;

const laneMemory = (): string => ["m", "s", "t"].map((x) => `var<workgroup> w_${x}: array<f32, 256>;`).join("\n");

/**
 * Loss and lse of rows from the (max, Σ exp) of strips of their logits, the sums of strips where labels are smoothed, and
 * the logit of the label; `first` is the row of labels, losses and lse that stands beside row 0 of the strips.
 */
export const foldedLoss = (sum: boolean): Kernel =>
  kernel(`row_loss_folded${sum ? "_sum" : ""}`, {
    reads: { x: "vec2f", chosen: "f32", ...(sum ? { sums: "f32" } : {}), labels: "i32" },
    writes: { losses: "f32", lses: "f32" },
    uniforms: {
      ...{ rows: "u32", strips: "u32", classes: "u32", first: "u32", first_label: "u32" },
      ...{ ignore: "i32", smoothing: "f32", z_loss: "f32", cap: "f32" },
    },
  }, () => {
    const body = `
  let row = group.y * groups.x + group.x;
  if (row >= u.rows) { return; }
  let classes = f32(u.classes);
  let label = labels[u.first_label + row];
  let ignored = label == u.ignore;
  let inside = label >= 0 && label < i32(u.classes);
  var m = bitcast<f32>(0xff7fffffu); var s = 0.0; var t = 0.0;
  for (var j = lane; j < u.strips; j += 256u) {
    let v = x[row * u.strips + j]; let top = max(m, v.x);
    s = s * ${power("m", "top")} + v.y * ${power("v.x", "top")}; m = top;${sum ? " t += sums[row * u.strips + j];" : ""}
  }
  ${joined()}
  ${lossOf("chosen[row]", true)}`;
    return `${mathFunctions(body)}
${laneMemory()}
@compute @workgroup_size(256) fn main(
  @builtin(workgroup_id) group: vec3u, @builtin(num_workgroups) groups: vec3u, @builtin(local_invocation_index) lane: u32,
) {${body}
}`;
  });

/**
 * A kernel over rows of logits; `first` is the row of labels, losses and lse that stands beside row 0 of the logits. A
 * gradient may be that of some classes, from `first_class` on.
 */
export function rowLoss({ dtype, vec, writes, known, inPlace, softcap }: RowLossKernel): Kernel {
  const output: DType = inPlace || (isPacked(dtype) && vec === 1) ? "f32" : dtype;
  const wide = (t: DType) => vec === 4 ? storageType4(t) : storageType(t);
  const gradient = writes !== "loss";
  const name = `row_${writes}${known ? "_known" : ""}${inPlace ? "_in_place" : ""}${
    softcap ? "_softcap" : ""
  }_v${vec}_${dtype}`;
  return kernel(name, {
    reads: {
      ...(inPlace ? {} : { x: wide(dtype) }),
      labels: "i32",
      ...(known ? { known: "f32" } : {}),
      ...(gradient ? { factor: "f32" } : {}),
    },
    writes: {
      ...(gradient ? { [inPlace ? "x" : "dx"]: wide(output) } : {}),
      ...(writes === "gradient" ? {} : { losses: "f32" }),
      ...(writes === "loss" ? { lses: "f32" } : {}),
    },
    uniforms: {
      rows: "u32",
      loads: "u32",
      offset: "u32",
      first: "u32",
      first_label: "u32",
      first_class: "u32",
      classes: "u32",
      factor_first: "u32",
      factor_step: "u32",
      ignore: "i32",
      smoothing: "f32",
      z_loss: "f32",
      cap: "f32",
    },
  }, () => {
    const parts = vec === 4 ? unpack4(dtype, "v") : ["v"];
    const read = (at: string) => vec === 4 ? `x[${at}]` : load(dtype, "x", at);
    const write = (at: string, values: readonly string[]) =>
      `${inPlace ? "x" : "dx"}[${at}] = ${vec === 4 ? pack4(output, values) : values[0]};`;
    const bent = (e: string) => softcap ? `u.cap * ft_tanh(${e} / u.cap)` : e;
    // tanh stays beside what it bends: out of z / cap, 1 - tanh² has lost what two more roundings take from near 1.
    const tanhs = softcap ? parts.map((p, i) => `let t${i} = ft_tanh(${p} / u.cap);`).join(" ") : "";
    const max4 = parts.map((_, i) => `z${i}`).reduce((a, b) => `max(${a}, ${b})`);
    const sweep = `
  var m = bitcast<f32>(0xff7fffffu); var s = 0.0; var t = 0.0;
  for (var j = lane; j < u.loads; j += 256u) {
    let v = ${read("base + j")};
    ${parts.map((p, i) => `let z${i} = ${bent(p)};`).join(" ")}
    let high = ${max4};
    if (high > m) { s *= ${power("m", "high")}; m = high; }
    s += ${parts.map((_, i) => power(`z${i}`, "m")).join(" + ")};
    t += ${parts.map((_, i) => `z${i}`).join(" + ")};
  }
${joined()}`;
    const slope = (i: number) => {
      const hit = `select(0.0, 1.0 - u.smoothing, ${vec === 4 ? `4u * j + ${i}u` : "j"} == own)`;
      const bend = softcap ? ` * ((1.0 - t${i}) * (1.0 + t${i}))` : "";
      const p = known ? power(`z${i}`, "lse") : `${power(`z${i}`, "top")} * part`;
      return `let d${i} = select(scale * (${p} * pull - ${hit} - share)${bend}, aside, apart);`;
    };
    const back = `
  let pull = 1.0 + 2.0 * u.z_loss * lse;${known ? "" : "\n  let part = select(1.0 / w_s[0], 1.0, endless);"}
  let share = u.smoothing / classes;
  let scale = factor[u.factor_first + row * u.factor_step];
  let apart = ignored || !inside;
  let aside = select(ft_nan(), 0.0, ignored);
  for (var j = lane; j < u.loads; j += 256u) {
    let v = ${read("base + j")}; ${tanhs}
    ${parts.map((p, i) => `let z${i} = ${softcap ? `u.cap * t${i}` : p};`).join(" ")}
    ${parts.map((_, i) => slope(i)).join("\n    ")}
    ${write("row * u.loads + j", parts.map((_, i) => `d${i}`))}
  }`;
    const at = "base * " + vec + "u + u32(label)";
    const body = `
  let row = group.y * groups.x + group.x;
  if (row >= u.rows) { return; }
  let classes = f32(u.classes);
  let base = u.offset + row * u.loads;
  let label = labels[u.first_label + row];
  let ignored = label == u.ignore;
  let inside = label >= 0 && label < i32(u.classes);
  let own = u32(label) - u.first_class; // beyond all columns where the label is not among them
  ${
      writes === "gradient" ? "" : `
  var chosen = 0.0;
  if (inside) { ${
        vec === 4
          ? `let v = x[(${at}) / 4u]; let four = array<f32, 4>(${parts.join(", ")}); chosen = four[(${at}) % 4u];`
          : `chosen = ${load(dtype, "x", at)};`
      } }`
    }
  ${known ? "let lse = known[u.first + row];" : sweep}
  ${writes === "gradient" ? "" : lossOf(bent("chosen"), writes === "loss")}
  ${gradient ? back : ""}`;
    return `${mathFunctions(body)}
${roundingFunctions(output)}
${laneMemory()}
@compute @workgroup_size(256) fn main(
  @builtin(workgroup_id) group: vec3u, @builtin(num_workgroups) groups: vec3u, @builtin(local_invocation_index) lane: u32,
) {${body}
}`;
  });
}

/** The uniforms that every such kernel takes from the call's options. */
export function rowLossUniforms({ ignoreIndex, labelSmoothing, zLoss, softcap }: RowLoss): Record<string, number> {
  return { ignore: ignoreIndex, smoothing: labelSmoothing, z_loss: zLoss, cap: softcap };
}
