/// <reference lib="dom" />
/** Line charts in the page's colours, by uPlot. */
import uPlot from "npm:uplot@1.6.32";

/** A line. */
export interface Line {
  readonly name: string;
  /** The CSS variable that holds its colour. */
  readonly color: string;
  /** Points without a line. */
  readonly dots?: boolean;
  readonly dashed?: boolean;
  readonly width?: number;
}

/** What a chart shows. */
export interface ChartOptions {
  readonly lines: readonly Line[];
  /** Both axes go by powers: of two along x, of ten along y. */
  readonly powers?: boolean;
  readonly x: string;
  formatX(value: number): string;
  formatY(value: number): string;
}

const height = 260;

const color = (name: string): string => getComputedStyle(document.documentElement).getPropertyValue(name).trim();

/** A chart in an element, as wide as the element is. */
export class Chart {
  readonly #element: HTMLElement;
  readonly #options: ChartOptions;
  #data: uPlot.AlignedData;
  #plot: uPlot | null = null;

  constructor(element: HTMLElement, options: ChartOptions) {
    this.#element = element;
    this.#options = options;
    this.#data = [[], ...options.lines.map(() => [])];
    new ResizeObserver(() => this.#plot?.setSize({ width: this.#width(), height })).observe(element);
    this.draw();
  }

  /** Draws anew, in the colours of now. */
  draw(): void {
    this.#plot?.destroy();
    const { lines, powers = false, x, formatX, formatY } = this.#options;
    const ink = color("--soft"), rule = color("--line");
    const axis = { stroke: ink, grid: { stroke: rule, width: 1 }, ticks: { stroke: rule, width: 1 } };
    const format = (f: (value: number) => string) => (_: uPlot, values: (number | null)[]) =>
      values.map((v) => v === null ? "" : f(v));
    this.#plot = new uPlot(
      {
        width: this.#width(),
        height,
        scales: {
          x: powers ? { time: false, distr: 3, log: 2 } : { time: false },
          y: powers ? { distr: 3, log: 10 } : {},
        },
        axes: [
          { ...axis, values: format(formatX) },
          { ...axis, size: 68, values: format(formatY) },
        ],
        series: [
          { label: x, value: (_, v) => v === null ? "–" : formatX(v) },
          ...lines.map(({ name, color: variable, dots, dashed, width = 2 }) => ({
            label: name,
            stroke: color(variable),
            width: dots ? 0 : width,
            ...(dashed && { dash: [6, 5] }),
            points: { show: dots || powers, size: dots ? 8 : 7, fill: color(variable) },
            ...(dots && { paths: () => null }),
            spanGaps: !dots,
            value: (_: uPlot, v: number | null) => v === null ? "–" : formatY(v),
          })),
        ],
      },
      this.#data,
      this.#element,
    );
  }

  /** Shows other data: x, then each line's y, null where a line has no point. */
  set(data: readonly (readonly (number | null)[])[]): void {
    this.#data = data as uPlot.AlignedData;
    this.#plot?.setData(this.#data);
  }

  #width(): number {
    return Math.max(240, Math.floor(this.#element.clientWidth));
  }
}
