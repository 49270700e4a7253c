/** `peers`: the same work through other WebGPU libraries, each in a process of its own on the same adapter. */
import { mkdtempSync, readFileSync, rmSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import * as flops from "./flops.ts";
import { deviceLine } from "./machine.ts";
import { summary } from "./measure.ts";
import { listOf, measures, whole, wholes } from "./options.ts";
import { verify } from "./peers/verify.ts";
import type { Job, Report, Work } from "./peers/work.ts";
import type { Context, Take } from "./plan.ts";
import { start } from "./process.ts";
import { emptyRow, type Result, type Row, tflops } from "./record.ts";
import { digits, ms, table, times } from "./table.ts";

/** The peers, by the names that `--only` takes, with what they are. */
const libraries = {
  "flashtape": { script: "peers/flashtape.ts", provider: "deno", title: "flashtape, Deno's WebGPU" },
  "flashtape-dawn": { script: "peers/flashtape.ts", provider: "dawn", title: "flashtape, Dawn" },
  "onnxruntime": { script: "peers/onnxruntime.ts", provider: "dawn", title: "onnxruntime-node 1.30.0, Dawn" },
  "jax": { script: "peers/jax.ts", provider: "deno", title: "@jax-js/jax 0.1.25, Deno's WebGPU" },
  "tensorflow": { script: "peers/tensorflow.ts", provider: "deno", title: "TensorFlow.js 4.22.0, Deno's WebGPU" },
  "pytorch": { script: "baselines/torch.py", provider: "fused", title: "PyTorch, CUDA" },
  "pytorch-math": { script: "baselines/torch.py", provider: "math", title: "PyTorch, eager math, CUDA" },
} as const;
type Name = keyof typeof libraries;
const names = Object.keys(libraries) as Name[];
const types = ["f32", "f16"] as const;
const kinds = ["matmul", "forward", "gradients"] as const;

interface PeersOptions {
  readonly only: readonly Name[];
  readonly work: readonly typeof kinds[number][];
  readonly sizes: readonly number[];
  readonly seqlens: readonly number[];
  readonly batch: number;
  readonly nheads: number;
  readonly headdim: number;
  readonly causal: boolean;
  readonly dtypes: readonly ("f32" | "f16")[];
  readonly timeout: number;
}

function worksOf({ work, sizes, seqlens, batch, nheads, headdim, causal, dtypes }: PeersOptions): Work[] {
  const shared = { batch, heads: nheads, headDim: headdim, causal };
  return work.flatMap((kind): Work[] => {
    if (kind === "matmul") return sizes.flatMap((n) => dtypes.map((dtype) => ({ kind, n, dtype })));
    const types = kind === "forward" ? dtypes : ["f32"] as const;
    return seqlens.flatMap((seqlen) => types.map((dtype) => ({ kind, ...shared, seqlen, dtype })));
  });
}

/** The work without its element type: rows of one title are compared. */
function titleOf(work: Work): string {
  if (work.kind === "matmul") return `matmul ${work.n}³`;
  const { kind, batch, seqlen, heads, headDim, causal } = work;
  const what = kind === "forward" ? "attention forward" : "attention forward + gradients";
  return `${what} B${batch} H${heads} S${seqlen} D${headDim}${causal ? " causal" : ""}`;
}

function flopsOf(work: Work): number {
  if (work.kind === "matmul") return flops.matmul(work.n, work.n, work.n);
  const sizes = { ...work, seqlenQ: work.seqlen, seqlenK: work.seqlen };
  return flops.attentionForward(sizes) + (work.kind === "gradients" ? flops.attentionBackward(sizes) : 0);
}

/** Runs one library's process and checks what it reports. */
async function rowsOf(name: Name, works: readonly Work[], options: PeersOptions, context: Context): Promise<Row[]> {
  const { settings, progress } = context, { script, provider, title } = libraries[name];
  const directory = mkdtempSync(join(tmpdir(), "flashtape-peers-"));
  const rows = works.map((work): Row => ({
    ...emptyRow(`${titleOf(work)} ${work.dtype} ${name}`, { work: titleOf(work), dtype: work.dtype, peer: title }),
    flops: flopsOf(work),
  }));
  const skip = (i: number, reason: string) => {
    rows[i] = { ...rows[i], skipped: { reason, predictedBytes: null } };
    progress.done(rows[i]);
  };
  const { repeats, seed, budget, cache } = settings;
  const robustness = provider === "dawn" ? settings.robustness : "on";
  const job: Job = { works, seed, repeats, budget: 1000 * budget, directory, provider, robustness, cache };
  const child = start(script, job, options.timeout);
  try {
    const checked = new Map<number, { error: number; how: string }>();
    const settled = new Set<number>();
    for await (const report of child.reports as AsyncIterable<Report>) {
      if ("adapter" in report) {
        for (const row of rows) row.labels.adapter = report.adapter;
        continue;
      }
      const i = report.work;
      if (settled.has(i)) continue;
      if ("cannot" in report) {
        settled.add(i);
        skip(i, report.cannot);
      } else if ("files" in report) {
        const results = report.files.map((file) => new Float32Array(new Uint8Array(readFileSync(file)).buffer));
        const { error, objection } = await verify(works[i], seed, results);
        for (const file of report.files) rmSync(file);
        if (objection === null) checked.set(i, { error, how: report.how });
        else {
          settled.add(i);
          skip(i, `not counted: ${objection}`);
        }
      } else {
        settled.add(i);
        const found = checked.get(i), timing = summary(report.each);
        if (found === undefined) skip(i, "not counted: it gave no result to check");
        else if (timing.median <= 0) skip(i, "not counted: its time vanishes in the noise of a chain");
        else {
          rows[i] = {
            ...rows[i],
            ...{ clock: "wall clock", ms: timing, figures: { "relative error": found.error, "chain": report.chain } },
            labels: { ...rows[i].labels, how: found.how },
          };
          progress.done(rows[i]);
        }
      }
    }
    const reason = await child.ended;
    works.forEach((_, i) => settled.has(i) || skip(i, reason));
  } finally {
    rmSync(directory, { recursive: true, force: true });
  }
  return rows;
}

async function measureAll(options: PeersOptions, context: Context): Promise<Row[]> {
  const works = worksOf(options), rows: Row[] = [];
  context.progress.start(works.length * options.only.length);
  try {
    for (const name of options.only) {
      context.progress.on(libraries[name].title);
      rows.push(...await rowsOf(name, works, options, context));
    }
  } finally {
    context.progress.stop();
  }
  return rows;
}

/** The `peers` command. */
export function peers(take: Take) {
  return measures("peers", "The same work through other WebGPU libraries, each checked and in a process of its own.", {
    repeats: 9,
  })
    .option("--only <list>", `some of ${names.join(",")}`, listOf(names), [...names])
    .option("--work <list>", `some of ${kinds.join(",")}`, listOf(kinds), [...kinds])
    .option("--sizes <list>", "rows and columns of the matrices", wholes(1, 65_536), [1024, 4096])
    .option("--seqlens <list>", "queries and keys of attention", wholes(1, 2 ** 20), [512, 2048, 4096])
    .option("--batch <n>", "sequences", whole(1, 65_536), 4)
    .option("--nheads <n>", "heads", whole(1, 4096), 12)
    .option("--headdim <n>", "size of a head", whole(1, 256), 64)
    .option("--no-causal", "every query sees every key")
    .option("--dtypes <list>", "some of f32,f16; gradients are f32", listOf(types), [...types])
    .option("--timeout <s>", "seconds that one library's process may take", whole(1, 86_400), 600)
    .action((options) =>
      take({
        command: "peers",
        settings: options,
        measure: (context) => measureAll(options, context),
        report,
      })
    );
}

function report(result: Result): string {
  const head = ["work", "peer", "type", "median ms", "min", "TFLOP/s", "time of flashtape", "rel. error"];
  const lines: string[][] = [], reasons = new Map<string, string[]>();
  for (const work of new Set(result.rows.map(({ labels }) => String(labels.work)))) {
    const rows = result.rows.filter(({ labels }) => labels.work === work);
    const ours = rows.find(({ labels: at, ms }) => ms && at.dtype === "f32" && at.peer === libraries.flashtape.title);
    let title = work;
    for (const row of rows.sort((a, b) => (a.ms?.median ?? Infinity) - (b.ms?.median ?? Infinity))) {
      const { labels: { peer, dtype }, ms: timing, skipped, figures } = row;
      if (skipped !== undefined) {
        const why = `${peer}: ${skipped.reason}`;
        reasons.set(why, [...reasons.get(why) ?? [], `${work} ${dtype}`]);
        continue;
      }
      const ratio = ours?.ms ? times(timing!.median / ours.ms.median) : "";
      const rate = digits(tflops(row, timing!.median)!), error = figures!["relative error"].toExponential(1);
      lines.push([title, String(peer), String(dtype), ms(timing!.median), ms(timing!.min), rate, ratio, error]);
      title = "";
    }
  }
  const said = [...reasons].map(([why, works]) => `\n${why}\n  (${works.join("; ")})`).join("");
  const own = [libraries.flashtape.title, libraries["flashtape-dawn"].title] as string[];
  const adapters = new Set(
    result.rows.flatMap(({ labels: { peer, adapter } }) =>
      own.includes(String(peer)) && adapter !== undefined ? [String(adapter)] : []
    ),
  );
  const where = `${[...adapters].join(" and ") || deviceLine(result)}; wall clock over chains; ` +
    "ratios to flashtape in f32 on Deno's WebGPU";
  return `${where}\n\n${table(head, lines, 3)}\n${said}`;
}
