/** `model`: a random-weight Llama, fused against eager: forward, loss, train step. */
import { Option } from "npm:@commander-js/extra-typings@15.1.0";
import { compile, dispose, key, randint, scope, type Tensor, valueAndGrad } from "@flashtape/flashtape";
import { adamw, llama, rotaryFrequencies, rotaryTables } from "@flashtape/flashtape/nn";
import { eagerForward, eagerLoss } from "./eager_model.ts";
import { transformerForward, transformerStep } from "./flops.ts";
import { deviceLine } from "./machine.ts";
import { configOf, modelNames, type ModelSizes, parameterCount, sizesOf } from "./model_sizes.ts";
import { type BenchDType, dtypes, listOf, measures, whole } from "./options.ts";
import { type Case, keptBy, type Prepared, type Take } from "./plan.ts";
import type { Result, Row } from "./record.ts";
import { bytes, digits, ms, table, times } from "./table.ts";

/** What is measured of a model. */
export const works = ["forward", "loss", "step"] as const;
type Work = typeof works[number];
type Params = Record<string, Tensor>;

interface Run {
  readonly sizes: ModelSizes;
  readonly batch: number;
  readonly seqlen: number;
  readonly dtype: BenchDType;
  readonly seed: number;
}

type Way = "eager" | "fused";

function forwardOf(way: Way, { sizes }: Run, cos: Tensor, sin: Tensor) {
  const config = configOf(sizes);
  if (way === "eager") return (params: Params, ids: Tensor) => eagerForward(params, sizes, ids, { cos, sin });
  return (params: Params, ids: Tensor) => llama.forward(params, config, ids).logits;
}

function lossOf(way: Way, { sizes }: Run, cos: Tensor, sin: Tensor) {
  const config = configOf(sizes);
  if (way === "eager") return (params: Params, ids: Tensor) => eagerLoss(params, sizes, ids, { cos, sin });
  return (params: Params, ids: Tensor) => llama.loss(params, config, ids, ids);
}

function prepare(work: Work, way: Way, compiled: boolean, run: Run): Prepared {
  const { sizes, batch, seqlen, dtype, seed } = run, config = configOf(sizes);
  const fresh = () => scope(() => llama.init(key(seed), config, { dtype })) as Params;
  const ids = scope(() => randint(key(seed + 1), [batch, seqlen], { max: sizes.vocabulary }));
  const { cos, sin } = rotaryTables(rotaryFrequencies({ headDim: sizes.headDim, theta: sizes.theta }), seqlen);
  if (work === "step") return { ...step(fresh(), ids, lossOf(way, run, cos, sin), compiled), inputs: [ids, cos, sin] };
  const params = fresh(), inputs = [params, ids, cos, sin];
  const of = (way: Way) => work === "forward" ? forwardOf(way, run, cos, sin) : lossOf(way, run, cos, sin);
  const f = of(way), again = compiled ? compile(f) : null;
  const against = { name: "eager", call: () => of("eager")(params, ids) };
  return {
    inputs,
    call: () => (again ?? f)(params, ids),
    ...(way === "eager" && !compiled ? {} : { against }),
    kept: () => keptBy(again),
    end: () => again?.[Symbol.dispose](),
  };
}

/** A train step writes its parameters in place and keeps them to the next. */
export function step(
  start: Params,
  ids: Tensor,
  lossOf: (params: Params, ids: Tensor) => Tensor,
  compiled: boolean,
): Omit<Prepared, "inputs"> {
  const optimizer = adamw({ learningRate: 1e-4 });
  const update = (params: Params, state: ReturnType<typeof optimizer.init<Params>>, ids: Tensor) => {
    const [loss, grads] = valueAndGrad(lossOf)(params, ids);
    return { loss, ...optimizer.update(params, grads, state) };
  };
  const f = compiled ? compile(update) : null;
  let params = start, state = optimizer.init(params);
  return {
    keeps: true,
    call: () => {
      const next = (f ?? update)(params, state, ids);
      ({ params, state } = next);
      return next.loss;
    },
    kept: () => keptBy(f),
    end: () => {
      f?.[Symbol.dispose]();
      dispose([params, state]);
    },
  };
}

function predicted(work: Work, way: Way, { sizes, batch, seqlen, dtype }: Run): number {
  const width = dtype === "f32" ? 4 : 2, weights = parameterCount(sizes) * width, tokens = batch * seqlen;
  const logits = work === "forward" || way === "eager" ? tokens * sizes.vocabulary * width : 0;
  const scores = way === "eager" ? 2 * batch * sizes.heads * seqlen ** 2 * width : 0;
  if (work !== "step") return weights + logits + scores;
  const kept = sizes.layers * (tokens * (8 * sizes.size + 3 * sizes.hidden) * width + scores);
  return 2 * weights + 2 * logits + kept + parameterCount(sizes) * 8; // gradients, and two moments in f32
}

function casesOf(work: Work, run: Run): Case[] {
  const { sizes, batch, seqlen, dtype } = run;
  const count = work === "step" ? transformerStep : transformerForward;
  return (["eager", "fused"] as const).flatMap((way) =>
    [false, true].map((compiled) => ({
      name: `${work} ${way}${compiled ? " compiled" : ""} B${batch} S${seqlen} L${sizes.layers} ${dtype}`,
      labels: { work, way, compiled, batch, seqlen, dtype, parameters: parameterCount(sizes) },
      flops: count(sizes, batch, seqlen),
      predictedBytes: predicted(work, way, run),
      wall: true,
      prepare: () => prepare(work, way, compiled, run),
    }))
  );
}

/** The `model` command. */
export function model(take: Take) {
  return measures("model", "A random-weight Llama, fused against eager: forward, loss, train step.", {
    repeats: 10,
  })
    .addOption(new Option("--preset <name>", "sizes of the model").choices(modelNames).default("small" as const))
    .option("--only <list>", `some of ${works.join(",")}`, listOf(works), [...works])
    .option("--layers <n>", "blocks (default: the preset's)", whole(1, 1000))
    .option("--vocab <n>", "tokens that there are (default: the preset's)", whole(2, 2 ** 20))
    .option("--batch <n>", "sequences", whole(1, 65_536), 4)
    .option("--seqlen <n>", "tokens of each", whole(2, 131_072), 512)
    .addOption(new Option("--dtype <type>", "element type of the weights").choices(dtypes).default("f32" as const))
    .action((options) => {
      const { batch, seqlen, dtype, seed } = options, sizes = sizesOf(options.preset, options);
      const run = { sizes, batch, seqlen, dtype, seed };
      take({
        command: "model",
        settings: options,
        sizedBy: ["--preset", "--layers", "--vocab", "--batch", "--seqlen"],
        cases: () => options.only.flatMap((work) => casesOf(work, run)),
        report: (result) =>
          `Llama, ${digits(parameterCount(sizes) / 1e6)} M parameters, batch ${batch} × ${seqlen}, ${dtype}\n` +
          report(result, batch * seqlen),
      });
    });
}

function report(result: Result, tokens: number): string {
  const head = [
    "work",
    "way",
    "GPU ms",
    "wall ms",
    "tokens/s",
    "TFLOP/s",
    "kernels",
    "peak memory",
    "faster",
    "max diff",
  ];
  const lines = result.rows.map((row) => {
    const { labels: at, skipped, ms: gpu, wall = null, launches, peakBytes, difference } = row;
    const way = `${at.way}${at.compiled ? ", compiled" : ""}`;
    if (skipped !== undefined) return [String(at.work), way, "left out", "", "", "", "", "", "", ""];
    const onGpu = row.clock === "gpu timestamps", total = wall ?? gpu!;
    return [
      String(at.work),
      way,
      onGpu ? ms(gpu!.median) : "",
      ms(total.median),
      digits(1000 * tokens / total.median),
      digits(row.flops! / total.median / 1e9),
      String(launches ?? ""),
      bytes(peakBytes),
      faster(result, row),
      difference === undefined ? "" : digits(difference.max),
    ];
  });
  const left = result.rows.filter(({ skipped }) => skipped !== undefined);
  const notes = left.map(({ name, skipped }) => `\n${name} was left out: ${skipped!.reason}`);
  return `${deviceLine(result)}; faster: wall clock against plain eager\n\n${table(head, lines, 2)}${notes.join("")}`;
}

function faster({ rows }: Result, row: Row): string {
  const base = rows.find(({ labels: at }) => at.work === row.labels.work && at.way === "eager" && !at.compiled);
  if (base === undefined || base === row || base.ms === null) return "";
  return times((base.wall ?? base.ms).median / (row.wall ?? row.ms!).median);
}
