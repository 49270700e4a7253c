/** `layers`: the fused layers against the same written op by op, each plain and compiled. */
import {
  arange,
  compile,
  eager,
  key,
  linearCrossEntropy,
  matmul,
  mul,
  randint,
  rmsNorm,
  rotaryEmbedding,
  scope,
  swiglu,
  type Tensor,
  vjp,
} from "@flashtape/flashtape";
import { rotaryFrequencies, rotaryTables } from "@flashtape/flashtape/nn";
import * as flops from "./flops.ts";
import { deviceLine } from "./machine.ts";
import { type Outputs, summary } from "./measure.ts";
import { type BenchDType, dtypes, listOf, measures, whole } from "./options.ts";
import { type Case, type Context, keptBy, normal, type Take } from "./plan.ts";
import { start } from "./process.ts";
import { Option } from "npm:@commander-js/extra-typings@15.1.0";
import { emptyRow, type Result, type Row } from "./record.ts";
import { bytes, digits, ms, table, times } from "./table.ts";

/** The layers, by the names that `--only` takes. */
export const layerNames = ["rmsNorm", "swiglu", "rotary", "mlp", "linearCrossEntropy"] as const;
type LayerName = typeof layerNames[number];

interface Sizes {
  readonly batch: number;
  readonly seqlen: number;
  readonly hidden: number;
  readonly intermediate: number;
  readonly vocab: number;
  readonly nheads: number;
  readonly dtype: BenchDType;
  readonly seed: number;
}

type F = (...inputs: Tensor[]) => Tensor;

/** One layer both ways. */
interface Layer {
  /** Differentiated by these, after which come what is not. */
  readonly floats: () => Tensor[];
  readonly others?: () => Tensor[];
  readonly fused: F;
  readonly eager: F;
  /** Operations and least bytes of a forward pass. */
  readonly flops?: number;
  readonly bytes: number;
}

function layerOf(name: LayerName, sizes: Sizes): Layer {
  const { batch, seqlen, hidden, intermediate, vocab, nheads, dtype, seed } = sizes;
  const width = dtype === "f32" ? 4 : 2, tokens = batch * seqlen;
  const random = (n: number, ...shape: number[]) => normal(seed + n, shape, dtype);
  const small = (n: number, ...shape: number[]) => scope(() => mul(random(n, ...shape), hidden ** -0.5));
  if (name === "rmsNorm") {
    return {
      floats: () => [random(0, batch, seqlen, hidden), random(1, hidden)],
      fused: (x, w) => rmsNorm(x, w),
      eager: (x, w) => eager.rmsNorm(x, w),
      bytes: 2 * tokens * hidden * width,
    };
  }
  if (name === "swiglu") {
    return {
      floats: () => [random(0, batch, seqlen, intermediate), random(1, batch, seqlen, intermediate)],
      fused: swiglu,
      eager: eager.swiglu,
      bytes: 3 * tokens * intermediate * width,
    };
  }
  if (name === "rotary") {
    const headDim = hidden / nheads;
    return {
      floats: () => [random(0, batch, seqlen, nheads, headDim)],
      others: () => {
        const { cos, sin } = rotaryTables(rotaryFrequencies({ headDim }), seqlen);
        return [cos, sin, arange(0, seqlen, { dtype: "i32" })];
      },
      fused: (x, cos, sin, positions) => rotaryEmbedding(x, cos, sin, { positions }),
      eager: (x, cos, sin, positions) => eager.rotaryEmbedding(x, cos, sin, { positions }),
      bytes: 2 * tokens * hidden * width,
    };
  }
  if (name === "mlp") {
    const both = (act: F): F => (x, gate, up, down) => {
      const by = (x: Tensor, w: Tensor) => matmul(x, w, { transposeB: true });
      return scope(() => by(act(by(x, gate), by(x, up)), down));
    };
    return {
      floats: () => [
        random(0, batch, seqlen, hidden),
        small(1, intermediate, hidden),
        small(2, intermediate, hidden),
        small(3, hidden, intermediate),
      ],
      fused: both(swiglu),
      eager: both(eager.swiglu),
      flops: 3 * flops.matmul(tokens, intermediate, hidden),
      bytes: (2 * tokens * hidden + 3 * hidden * intermediate) * width,
    };
  }
  return {
    floats: () => [random(0, batch, seqlen, hidden), small(1, vocab, hidden)],
    others: () => [scope(() => randint(key(seed + 2), [batch, seqlen], { max: vocab }))],
    fused: (x, w, labels) => linearCrossEntropy(x, w, labels),
    eager: (x, w, labels) => eager.linearCrossEntropy(x, w, labels),
    flops: flops.matmul(tokens, vocab, hidden),
    bytes: (tokens * hidden + vocab * hidden) * width,
  };
}

const variants = [
  { way: "eager", compiled: false },
  { way: "eager", compiled: true },
  { way: "fused", compiled: false },
  { way: "fused", compiled: true },
] as const;

function casesOf(name: LayerName, sizes: Sizes, pass: "forward" | "gradients"): Case[] {
  const layer = layerOf(name, sizes);
  return variants.map(({ way, compiled }) => ({
    name: `${name} ${pass} ${way}${compiled ? " compiled" : ""} ${sizes.dtype}`,
    labels: { layer: name, pass, way, compiled, dtype: sizes.dtype },
    flops: layer.flops === undefined ? undefined : layer.flops * (pass === "forward" ? 1 : 3),
    bytes: pass === "forward" ? layer.bytes : undefined,
    wall: true,
    prepare: () => {
      const floats = layer.floats(), others = layer.others?.() ?? [], all = [...floats, ...others];
      const of = (f: F): (...inputs: Tensor[]) => Outputs => {
        if (pass === "forward") return f;
        // The result stands in for its own gradient: it has the shape, and is no constant that could be folded.
        return (...inputs) =>
          scope(() => {
            const given = inputs.slice(0, floats.length), rest = inputs.slice(floats.length);
            const [y, pullback] = vjp((...x: Tensor[]) => f(...x, ...rest), ...given);
            return [...pullback(y)];
          });
      };
      const f = of(layer[way]), run = compiled ? compile(f) : null;
      const call = () => (run ?? f)(...all);
      const plain = way === "eager" && !compiled ? undefined : { name: "eager", call: () => of(layer.eager)(...all) };
      return { inputs: all, call, against: plain, kept: () => keptBy(run), end: () => run?.[Symbol.dispose]() };
    },
  }));
}

/** The `layers` command. */
export function layers(take: Take) {
  return measures("layers", "Fused layers against eager ones, plain and compiled: time, memory, difference.")
    .option("--only <list>", `some of ${layerNames.join(",")}`, listOf(layerNames), [...layerNames])
    .option("--batch <n>", "sequences", whole(1, 65_536), 4)
    .option("--seqlen <n>", "tokens of each", whole(1, 2 ** 20), 1024)
    .option("--hidden <n>", "width of the residual stream", whole(2, 65_536), 1024)
    .option("--intermediate <n>", "width inside the MLP", whole(1, 2 ** 20), 4096)
    .option("--vocab <n>", "tokens that there are", whole(2, 2 ** 20), 32_000)
    .option("--nheads <n>", "heads that rotary turns: hidden / nheads is even", whole(1, 1024), 16)
    .addOption(new Option("--dtype <type>", "element type").choices(dtypes).default("f32" as const))
    .option("--no-grad", "leave out the gradients")
    .option("--torch", "measure PyTorch beside them, where python3 has it with CUDA")
    .action((options, command) => {
      if (options.hidden % (2 * options.nheads) !== 0) {
        command.error(
          `error: option '--nheads <n>' argument '${options.nheads}' is invalid. Allowed: hidden / nheads even, hidden is ${options.hidden}.`,
        );
      }
      const passes = options.grad ? ["forward", "gradients"] as const : ["forward"] as const;
      take({
        command: "layers",
        settings: options,
        sizedBy: ["--batch", "--seqlen", "--hidden", "--intermediate", "--vocab"],
        cases: () => options.only.flatMap((name) => passes.flatMap((pass) => casesOf(name, options, pass))),
        ...options.torch
          ? { more: (context) => torchRows({ sizes: options, only: options.only, passes }, context) }
          : {},
        report,
      });
    });
}

/** What `baselines/torch.py` tells of a layer. */
interface TorchReport {
  readonly layer: LayerName;
  readonly pass: "forward" | "gradients";
  readonly way: string;
  readonly each: readonly number[];
  readonly peakBytes: number;
}

async function torchRows(
  job: { readonly sizes: Sizes; readonly only: readonly LayerName[]; readonly passes: readonly string[] },
  { settings: { repeats }, progress }: Context,
): Promise<Row[]> {
  const rows: Row[] = [], { reports, ended } = start("./baselines/torch.py", { ...job, repeats }, 600);
  for await (const report of reports as AsyncIterable<TorchReport | { readonly adapter: string }>) {
    if ("adapter" in report) continue;
    const { layer, pass, way, each, peakBytes } = report, { dtype } = job.sizes, times = summary(each);
    const known = layerOf(layer, job.sizes);
    rows.push({
      ...emptyRow(`${layer} ${pass} PyTorch ${way} ${dtype}`, {
        layer,
        pass,
        way: `PyTorch ${way}`,
        compiled: false,
        dtype,
      }),
      ...{ clock: "wall clock", ms: times, wall: times, peakBytes },
      flops: known.flops === undefined ? null : known.flops * (pass === "forward" ? 1 : 3),
      bytes: pass === "forward" ? known.bytes : null,
    });
    progress.done(rows.at(-1)!);
  }
  if (rows.length > 0) return rows;
  const skipped = { reason: await ended, predictedBytes: null };
  return [{ ...emptyRow("PyTorch", { layer: "all", pass: "", way: "PyTorch", compiled: false }), skipped }];
}

function report(result: Result): string {
  const head = [
    "layer",
    "pass",
    "way",
    "GPU ms",
    "wall ms",
    "kernels",
    "peak memory",
    "GB/s",
    "TFLOP/s",
    "faster",
    "max diff",
  ];
  const lines = result.rows.map((row) => {
    const { labels: at, skipped, ms: gpu, wall = null, launches, peakBytes, difference } = row;
    const way = `${at.way}${at.compiled ? ", compiled" : ""}`;
    if (skipped !== undefined) return [String(at.layer), String(at.pass), way, "left out", "", "", "", "", "", "", ""];
    const base = result.rows.find(({ labels: other }) =>
      other.layer === at.layer && other.pass === at.pass && other.way === "eager" && !other.compiled
    );
    const onGpu = row.clock === "gpu timestamps", total = wall ?? gpu!;
    const faster = base === undefined || base === row || base.ms === null
      ? ""
      : times((base.wall ?? base.ms).median / total.median);
    return [
      String(at.layer),
      String(at.pass),
      way,
      onGpu ? ms(gpu!.median) : "",
      ms(total.median),
      String(launches ?? ""),
      bytes(peakBytes),
      rateOf(row.bytes, row),
      row.flops === null ? "" : digits(row.flops / (onGpu ? gpu! : total).median / 1e9),
      faster,
      difference === undefined ? "" : digits(difference.max),
    ];
  });
  const left = result.rows.filter(({ skipped }) => skipped !== undefined);
  const notes = left.map(({ name, skipped }) => `\n${name} was left out: ${skipped!.reason}`);
  return `${deviceLine(result)}; faster: wall clock against plain eager\n\n${table(head, lines, 3)}${notes.join("")}`;
}

function rateOf(amount: number | null, { ms: gpu }: Row): string {
  return amount === null || gpu === null ? "" : digits(amount / gpu.median / 1e6);
}
