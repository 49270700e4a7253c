/** The ground floor's figures: matmul, memory-bound ops, dispatch cost, flash attention; each beside its target. */
import {
  add,
  type Backend,
  flashAttention,
  grad,
  key,
  matmul,
  mul,
  randn,
  scope,
  softmax,
  sum,
  type Tensor,
} from "@flashtape/flashtape";
import { UsageError } from "./files.ts";
import { deviceLine, isHost, memoryLimit } from "./machine.ts";
import { time } from "./measure.ts";
import { above, measures, path, type Settings } from "./options.ts";
import type { Context, Take } from "./plan.ts";
import { emptyRow, type Result, type Row, toJson } from "./record.ts";
import { bytes, digits, ms, table } from "./table.ts";
import * as flops from "./flops.ts";

interface Ground {
  readonly name: string;
  readonly unit: "TFLOP/s" | "TB/s" | "µs/op";
  /** FLOPs, bytes or ops of one call. */
  readonly work: number;
  readonly inputs: () => Tensor[];
  readonly run: (...inputs: Tensor[]) => unknown;
}

/** Fresh normal numbers. */
function random(seed: number, shape: number[]): Tensor {
  return scope(() => randn(key(seed), shape));
}

function matmulCase(n: number): Ground {
  return {
    name: `matmul f32 ${n}³`,
    unit: "TFLOP/s",
    work: flops.matmul(n, n, n),
    inputs: () => [random(1, [n, n]), random(2, [n, n])],
    run: (a, b) => matmul(a, b),
  };
}

function attentionCase(name: string, s: number, d: number, causal: boolean, backward: boolean): Ground {
  const [b, h] = [4, 12];
  const sizes = { batch: b, heads: h, seqlenQ: s, seqlenK: s, headDim: d, causal };
  const attend = (q: Tensor, k: Tensor, v: Tensor) => flashAttention(q, k, v, { causal });
  const loss = grad((q: Tensor, k: Tensor, v: Tensor, w: Tensor) => sum(mul(attend(q, k, v), w)), [0, 1, 2]);
  return {
    name: `flash ${name} f32 B${b} H${h} S${s} D${d}${causal ? " causal" : ""}`,
    unit: "TFLOP/s",
    work: flops.attentionForward(sizes) + (backward ? flops.attentionBackward(sizes) : 0),
    inputs: () => [1, 2, 3, 4].map((seed) => random(seed, [b, s, h, d])),
    run: (q, k, v, w) => backward ? loss(q, k, v, w) : attend(q, k, v),
  };
}

/** The cases; `scale` below 1 shrinks the large ones for slow devices. */
function cases(scale: number): Ground[] {
  const gib = Math.round(2 ** 28 * scale),
    rows = Math.round(65536 * scale),
    n = Math.round(4096 * Math.cbrt(scale) / 64) * 64;
  const s = Math.max(128, Math.round(2048 * Math.sqrt(scale) / 64) * 64);
  return [
    {
      name: `copy ${gib * 4} bytes`,
      unit: "TB/s",
      work: gib * 8,
      inputs: () => [random(1, [gib])],
      run: (x) => mul(x, 1),
    },
    {
      name: `add two of ${gib * 4} bytes`,
      unit: "TB/s",
      work: gib * 12,
      inputs: () => [random(1, [gib]), random(2, [gib])],
      run: (a, b) => add(a, b),
    },
    {
      name: `sum [${rows}, 4096] over its last axis`,
      unit: "TB/s",
      work: rows * 4096 * 4,
      inputs: () => [random(1, [rows, 4096])],
      run: (x) => sum(x, { axis: -1 }),
    },
    {
      name: `softmax [${rows}, 4096]`,
      unit: "TB/s",
      work: rows * 4096 * 8,
      inputs: () => [random(1, [rows, 4096])],
      run: (x) => softmax(x),
    },
    {
      name: "1,000 adds on [32, 32]",
      unit: "µs/op",
      work: 1000,
      inputs: () => [random(1, [32, 32]), random(2, [32, 32])],
      run: (a, b) => {
        let x = a;
        for (let i = 0; i < 1000; i++) x = add(x, b);
      },
    },
    matmulCase(n),
    matmulCase(Math.round(n / 4)),
    attentionCase("forward", s, 64, false, false),
    attentionCase("forward", s, 64, true, false),
    attentionCase("forward + backward", s, 64, false, true),
  ];
}

/** The largest tensor at scale 1, and all that its case holds and leaves behind. */
const largest = 2 ** 30, most = 4 * 2 ** 30;

/**
 * The scale that was asked for, or the largest that suits the device.
 * @throws {UsageError} when what was asked for does not fit
 */
export function scaleOn(
  { backend, settings }: {
    readonly backend: Pick<Backend, "name" | "description" | "capabilities">;
    readonly settings: Pick<Settings, "memoryLimit">;
  },
  asked: number | undefined,
): number {
  const { maxBinding } = backend.capabilities;
  const fits = Math.min(1, maxBinding / largest, memoryLimit(backend, settings) / most);
  if (asked === undefined) return !isHost(backend) ? fits : Math.min(fits, backend.name === "cpu" ? 2 ** -10 : 2 ** -6);
  if (asked <= fits) return asked;
  const room = `${bytes(asked * most)} in all, ${bytes(asked * largest)} in one tensor`;
  throw new UsageError(
    `--scale ${asked} needs ${room}. Allowed on this device: at most ${Number(fits.toPrecision(3))}`,
  );
}

async function rows(scale: number, { backend, progress, settings }: Context): Promise<Row[]> {
  const all = cases(scale), found: Row[] = [];
  progress.start(all.length);
  try {
    for (const { name, unit, work, inputs, run } of all) {
      progress.on(name);
      const made = inputs(), samples = Math.min(7, settings.repeats);
      const timing = await time(backend, () => run(...made), {
        samples,
        budget: Math.min(1000, 1000 * settings.budget),
      });
      for (const x of made) x.dispose();
      const { repeats, ...wall } = timing;
      const rate = unit === "µs/op" ? wall.median * 1e3 / work : work / wall.median / 1e9;
      const row: Row = {
        ...emptyRow(name, { repeats }),
        ...{ clock: "wall clock", ms: wall, figures: { [unit]: rate } },
        ...(unit === "TFLOP/s" ? { flops: work } : unit === "TB/s" ? { bytes: work } : {}),
      };
      found.push(row);
      progress.done(row);
    }
  } finally {
    progress.stop();
  }
  return found;
}

/** The `ground` command. */
export function ground(take: Take) {
  return measures("ground", "What this machine can do: matmul, memory-bound ops, the cost of a dispatch, attention.")
    .option(
      "--scale <n>",
      "shrinks the large cases, which need 4 GiB at 1 (default: 1, or what suits the device)",
      above(0, 1),
    )
    .option("--save <file>", "the JSON file (default: out/bench/ground-<adapter>.json)", path)
    .action((options) =>
      take({
        command: "ground",
        settings: options,
        writes: [["--save", options.save ?? "out/bench/ground.json"]],
        measure: (context) => rows(scaleOn(context, options.scale), context),
        files: (result) => Promise.resolve({ [options.save ?? fileOf(result)]: toJson(result) }),
        report,
      })
    );
}

function fileOf({ device }: Result): string {
  const slug = device.name.toLowerCase().replace(/[^a-z0-9]+/g, "-").replace(/^-|-$/g, "");
  return `out/bench/ground-${slug}.json`;
}

function report(result: Result): string {
  const lines = result.rows.map(({ name, ms: wall, figures = {} }) => {
    const [[unit, rate]] = Object.entries(figures);
    return [name, ms(wall?.median), `${digits(rate)} ${unit}`];
  });
  return `${deviceLine(result)}, wall clock\n\n${table(["case", "median ms", "rate"], lines)}`;
}
