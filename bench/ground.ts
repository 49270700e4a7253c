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
import { time, type Timing } from "./measure.ts";

/** One line of the table. */
export interface Figure extends Timing {
  readonly name: string;
  /** The rate, in `unit`. */
  readonly rate: number;
  readonly unit: "TFLOP/s" | "TB/s" | "µs/op";
}

interface Case {
  readonly name: string;
  readonly unit: Figure["unit"];
  /** FLOPs, bytes or ops of one call. */
  readonly work: number;
  readonly inputs: () => Tensor[];
  readonly run: (...inputs: Tensor[]) => unknown;
}

/** Fresh normal numbers. */
function random(seed: number, shape: number[]): Tensor {
  return scope(() => randn(key(seed), shape));
}

function matmulCase(n: number): Case {
  return {
    name: `matmul f32 ${n}³`,
    unit: "TFLOP/s",
    work: 2 * n ** 3,
    inputs: () => [random(1, [n, n]), random(2, [n, n])],
    run: (a, b) => matmul(a, b),
  };
}

function attentionCase(name: string, s: number, d: number, causal: boolean, backward: boolean): Case {
  const [b, h] = [4, 12];
  const forward = 4 * b * h * s * s * d * (causal ? 0.5 : 1);
  const attend = (q: Tensor, k: Tensor, v: Tensor) => flashAttention(q, k, v, { causal });
  const loss = grad((q: Tensor, k: Tensor, v: Tensor, w: Tensor) => sum(mul(attend(q, k, v), w)), [0, 1, 2]);
  return {
    name: `flash ${name} f32 B${b} H${h} S${s} D${d}${causal ? " causal" : ""}`,
    unit: "TFLOP/s",
    work: backward ? 3.5 * forward : forward,
    inputs: () => [1, 2, 3, 4].map((seed) => random(seed, [b, s, h, d])),
    run: (q, k, v, w) => backward ? loss(q, k, v, w) : attend(q, k, v),
  };
}

/** The cases; `scale` below 1 shrinks the large ones for slow devices. */
function cases(scale: number): Case[] {
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

/** Measures every case. */
export async function ground(
  backend: Backend,
  { scale, report }: { scale: number; report: (figure: Figure) => void },
): Promise<Figure[]> {
  const figures: Figure[] = [];
  for (const { name, unit, work, inputs, run } of cases(scale)) {
    const made = inputs();
    const timing = await time(backend, () => run(...made));
    for (const x of made) x.dispose();
    const rate = unit === "µs/op" ? timing.median * 1e3 / work : work / timing.median / 1e9;
    const figure = { name, unit, rate, ...timing };
    figures.push(figure);
    report(figure);
  }
  return figures;
}
