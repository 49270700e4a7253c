/** The charts of the suite, as Vega-Lite specifications. */
import type { TopLevelSpec } from "npm:vega-lite@6.5.0";
import { deviceLine } from "./machine.ts";
import { type Result, type Row, tflops } from "./record.ts";

/** Looks. */
export const themes = ["light", "dark"] as const;
/** One of {@linkcode themes}. */
export type Theme = typeof themes[number];

const looks = {
  light: { paper: "#ffffff", ink: "#1b1f24", soft: "#57606a", line: "#e4e7eb" },
  dark: { paper: "#0d1117", ink: "#e6edf3", soft: "#9da7b3", line: "#252c35" },
} as const;

// Okabe and Ito's colours, told apart by people who see few of them; each series has a shape of its own as well.
const colors = ["#d55e00", "#cc79a7", "#e69f00", "#0072b2", "#009e73"];
const colorsOnDark = ["#ff7f3f", "#e39ac4", "#f0b840", "#56b4e9", "#2dc99b"];
const shapes = ["square", "triangle-up", "triangle-down", "circle", "diamond"];

/** One point of a chart. */
interface Point {
  readonly series: string;
  readonly length: number;
  readonly pass: string;
  /** Whether it was measured; else it is what would be needed. */
  readonly measured: boolean;
  readonly bytes: number | null;
  readonly ms: number | null;
  readonly tflops: number | null;
}

/** What a row is a point of. */
export function seriesOf({ labels: { algorithm, heads, kvHeads } }: Row): string {
  return heads === kvHeads ? String(algorithm) : `${algorithm}, ${kvHeads} KV ${kvHeads === 1 ? "head" : "heads"}`;
}

function pointsOf({ rows }: Result): Point[] {
  return rows.map((row) => ({
    series: seriesOf(row),
    length: Number(row.labels.seqlen),
    pass: String(row.labels.pass),
    measured: row.skipped === undefined,
    bytes: row.peakBytes ?? row.skipped?.predictedBytes ?? null,
    ms: row.ms?.median ?? null,
    tflops: row.ms === null ? null : tflops(row, row.ms.median),
  }));
}

const bytesLabel = ["TiB", "GiB", "MiB", "KiB"].reduceRight(
  (rest, unit, i) =>
    `datum.value >= ${2 ** (40 - 10 * i)} ? format(datum.value / ${2 ** (40 - 10 * i)}, '~g') + ' ${unit}' : ${rest}`,
  "datum.value + ' B'",
);
const ratioLabel = "datum.value >= 1 ? format(datum.value, '~g') + '×' : '1/' + format(1 / datum.value, '~g') + '×'";
const timeLabel = "datum.value >= 1000 ? format(datum.value / 1000, '~g') + ' s' : " +
  "datum.value >= 1 ? format(datum.value, '~g') + ' ms' : format(datum.value * 1000, '~g') + ' µs'";

/** An axis that encloses some values: its ends on a grid of round numbers, and the ticks that there is room for. */
function axisOf(values: readonly number[], kind: "decimal" | "binary"): { domain: [number, number]; ticks: number[] } {
  const low = Math.min(...values), high = Math.max(...values);
  const steps = kind === "decimal" ? [1, 2, 5] : [1, 2, 4, 8], base = kind === "decimal" ? 10 : 16;
  const first = Math.floor(Math.log(low) / Math.log(base)) - 1, last = Math.ceil(Math.log(high) / Math.log(base)) + 1;
  const grid = Array.from({ length: last - first + 1 }, (_, i) => steps.map((step) => step * base ** (first + i)))
    .flat();
  const from = grid.findLastIndex((tick) => tick <= low * 1.0001), to = grid.findIndex((tick) => tick >= high * 0.9999);
  const end = Math.max(to, from + 1), inside = grid.slice(from, end + 1);
  const coarser = kind === "decimal" ? [1, 3, 6] : [1, 2, 3, 4, 6, 8];
  const every = coarser.find((step) => inside.length / step <= 7) ?? coarser.at(-1)!;
  // Counted from a power of the base, so that the ticks are the roundest of the grid.
  return { domain: [grid[from], grid[end]], ticks: grid.filter((_, i) => i >= from && i <= end && i % every === 0) };
}

/** Grouped heads often take as long and as much as all heads: their line is broad and lies below. */
function isGrouped({ series }: Point): boolean {
  return series.includes(" KV ");
}

interface PanelOptions {
  readonly title: string;
  readonly points: readonly Point[];
  readonly field: "bytes" | "ms" | "tflops" | "ratio";
  readonly axis: string;
  readonly label: string;
  readonly kind: "decimal" | "binary";
  readonly series: readonly string[];
  readonly theme: Theme;
  readonly width?: number;
  readonly height?: number;
}

/** Lines against length, both axes logarithmic. What was not measured is hollow, and dashed to it. */
function panel({ title, points, field, axis, label, kind, series, theme, width = 380, height = 260 }: PanelOptions) {
  const known = (points as readonly (Point & { ratio?: number })[]).filter((point) => (point[field] ?? 0) > 0);
  const lengths = [...new Set(points.map(({ length }) => length))];
  const { domain, ticks } = axisOf(known.length === 0 ? [1] : known.map((point) => point[field]!), kind);
  const palette = theme === "dark" ? colorsOnDark : colors;
  const color = { field: "series", type: "nominal", scale: { domain: series, range: palette }, legend: null } as const;
  const x = {
    field: "length",
    type: "quantitative",
    title: "sequence length",
    scale: { type: "log", base: 2, domain: [Math.min(...lengths), Math.max(...lengths)], nice: false, padding: 14 },
    axis: { values: lengths, format: ",d", grid: false },
  } as const;
  const y = {
    field,
    type: "quantitative",
    title: axis,
    scale: { type: "log", domain, nice: false },
    axis: { values: ticks, labelExpr: label, minExtent: 58 },
  } as const;
  const shape = { field: "series", type: "nominal", scale: { domain: series, range: shapes }, legend: null } as const;
  const measured = known.filter((point) => point.measured), needed = known.filter((point) => !point.measured);
  // The dashed line starts at the last point that was measured.
  const bridges = series.flatMap((name) => {
    const mine = needed.filter((point) => point.series === name);
    const last = measured.filter((point) => point.series === name).at(-1);
    return mine.length === 0 ? [] : [...last === undefined ? [] : [last], ...mine];
  });
  const { paper, ink } = looks[theme];
  return {
    width,
    height,
    layer: [
      {
        // A mark and no title: titles keep away from the axis's labels, and those of a row would not be level.
        data: { values: [{}] },
        mark: { type: "text", text: title, x: 0, y: -20, align: "left", fontSize: 13, fontWeight: "bold", color: ink },
      },
      {
        data: { values: bridges },
        mark: { type: "line", strokeDash: [4, 4], strokeWidth: 1.5 },
        encoding: { x, y, color },
      },
      ...[measured.filter(isGrouped), measured.filter((point) => !isGrouped(point))].flatMap((values, i) => [
        { data: { values }, mark: { type: "line", strokeWidth: i === 0 ? 6 : 2.5 }, encoding: { x, y, color } },
        {
          data: { values },
          mark: { type: "point", filled: true, size: i === 0 ? 190 : 70, opacity: 1 },
          encoding: { x, y, color, shape },
        },
      ]),
      {
        data: { values: needed },
        mark: { type: "point", fill: paper, size: 80, strokeWidth: 2, opacity: 1 },
        encoding: { x, y, color, shape },
      },
    ],
  } as const;
}

/** The key of all panels, once. */
function key(series: readonly string[], theme: Theme, hollow: boolean, width: number) {
  const palette = theme === "dark" ? colorsOnDark : colors, { ink, paper, soft } = looks[theme];
  const names = [...series, ...hollow ? ["needed, does not fit"] : []];
  let at = 0;
  const entries = names.map((name) => {
    const entry = { name, at, text: at + 12 };
    at += 12 + 7.2 * name.length + 26;
    return entry;
  });
  const place = (
    field: string,
  ) => ({ field, type: "quantitative", scale: { domain: [0, width] }, axis: null } as const);
  const shown = { type: "nominal", legend: null } as const;
  const last = entries.slice(series.length);
  return {
    width,
    height: 14,
    view: { stroke: null },
    layer: [
      {
        data: { values: entries.slice(0, series.length) },
        mark: { type: "point", filled: true, size: 80, opacity: 1 },
        encoding: {
          x: place("at"),
          color: { ...shown, field: "name", scale: { domain: series, range: palette } },
          shape: { ...shown, field: "name", scale: { domain: series, range: shapes } },
        },
      },
      {
        data: { values: last },
        mark: { type: "point", fill: paper, stroke: soft, size: 80, strokeWidth: 2, opacity: 1 },
        encoding: { x: place("at") },
      },
      {
        data: { values: entries },
        mark: { type: "text", align: "left", baseline: "middle", color: ink, fontSize: 12 },
        encoding: { x: place("text"), text: { field: "name", type: "nominal" } },
      },
    ],
  } as const;
}

function range(counts: readonly number[]): string {
  const low = Math.min(...counts), high = Math.max(...counts);
  return low === high ? String(low) : `${low} to ${high}`;
}

/** What every chart of a result says of it. */
function caption(result: Result): string[] {
  const { batch, heads, headDim, dtype, causal } = result.rows[0].labels;
  const clocks = [...new Set(result.rows.map(({ clock }) => clock).filter((clock) => clock !== null))];
  const counts = result.rows.flatMap(({ ms }) => ms === null ? [] : [ms.each.length]);
  const calls = counts.length === 0 ? "" : `, medians of ${range(counts)} calls`;
  const sizes = `batch ${batch}, ${heads} heads of ${headDim}, ${dtype}, ${causal ? "causal" : "not causal"}`;
  const when = [result.date.slice(0, 10), ...clocks.length > 0 ? [clocks.join(" and ").replace("gpu", "GPU")] : []];
  return [sizes, deviceLine(result), `${when.join("; ")}${calls}`];
}

/** @param memoryOf the passes whose memory is shown: what did not fit is hollow there */
function page(
  title: string,
  result: Result,
  theme: Theme,
  panels: readonly (readonly object[])[],
  memoryOf: readonly string[],
): TopLevelSpec {
  const { paper, ink, soft, line } = looks[theme], points = pointsOf(result);
  const series = [...new Set(points.map(({ series }) => series))];
  const columns = Math.max(...panels.map((row) => row.length));
  const hollow = points.some(({ measured, bytes, pass }) => !measured && bytes !== null && memoryOf.includes(pass));
  return {
    $schema: "https://vega.github.io/schema/vega-lite/v6.json",
    background: paper,
    padding: 24,
    title: {
      ...{ text: title, subtitle: caption(result), anchor: "start", fontSize: 18, offset: 16 },
      ...{ subtitleFontSize: 12, subtitleColor: soft, subtitlePadding: 6, subtitleLineHeight: 16 },
    },
    spacing: 22,
    vconcat: [
      key(series, theme, hollow, columns * 430),
      ...panels.map((row) => ({ hconcat: row, spacing: 112, bounds: "flush" })),
    ],
    config: {
      font: "Inter, Helvetica Neue, Arial, DejaVu Sans, sans-serif",
      title: { color: ink },
      view: { stroke: null },
      axis: {
        ...{ labelColor: soft, titleColor: soft, domainColor: soft, tickColor: soft, gridColor: line },
        ...{ labelFontSize: 11, titleFontSize: 11, titleFontWeight: "normal", titlePadding: 8 },
      },
    },
  } as unknown as TopLevelSpec;
}

function setOf(result: Result, theme: Theme) {
  const points = pointsOf(result), series = [...new Set(points.map(({ series }) => series))];
  const of = (pass: string) => points.filter((point) => point.pass === pass);
  const against = (pass: string, field: "bytes" | "ms") =>
    of(pass).flatMap((point) => {
      const naive = of(pass).find(({ series, length }) => series === "naive" && length === point.length);
      const ratio = naive?.[field] != null && naive.measured && point[field] !== null
        ? naive[field] / point[field]
        : null;
      return ratio === null || naive === point || !point.measured ? [] : [{ ...point, ratio }];
    });
  const shared = { series, theme };
  const memory = (pass: string, title: string, more: Partial<PanelOptions> = {}) =>
    panel({
      ...shared,
      title,
      points: of(pass),
      field: "bytes",
      axis: "peak beside the inputs",
      label: bytesLabel,
      kind: "binary",
      ...more,
    });
  const time = (pass: string, title: string) =>
    panel({
      ...shared,
      title,
      points: of(pass),
      field: "ms",
      axis: "time of a call",
      label: timeLabel,
      kind: "decimal",
    });
  const rate = (pass: string, title: string) =>
    panel({
      ...shared,
      title,
      points: of(pass),
      field: "tflops",
      axis: "TFLOP/s",
      label: "format(datum.value, '~g')",
      kind: "decimal",
    });
  const ratio = (pass: string, field: "bytes" | "ms", title: string) =>
    panel({
      ...shared,
      ...{
        title,
        points: against(pass, field),
        field: "ratio",
        axis: "naive ÷ this",
        label: ratioLabel,
        kind: "binary",
      },
    });
  return { memory, time, rate, ratio, hasBackward: of("backward").length > 0 };
}

/** Memory against sequence length. */
export function memoryChart(result: Result, theme: Theme): TopLevelSpec {
  const { memory, hasBackward } = setOf(result, theme);
  const panels = [memory("forward", "Forward"), ...hasBackward ? [memory("backward", "Forward and backward")] : []];
  return page("Memory of attention", result, theme, [panels], ["forward", "backward"]);
}

/** Time and rate against sequence length. */
export function performanceChart(result: Result, theme: Theme): TopLevelSpec {
  const { time, rate, hasBackward } = setOf(result, theme);
  const rows = [[time("forward", "Forward, time"), rate("forward", "Forward, rate")]];
  if (hasBackward) rows.push([time("backward", "Backward, time"), rate("backward", "Backward, rate")]);
  return page("Speed of attention", result, theme, rows, []);
}

/** All of it at a glance. */
export function dashboardChart(result: Result, theme: Theme): TopLevelSpec {
  const { memory, time, ratio } = setOf(result, theme);
  return page("Attention: memory and speed", result, theme, [
    [memory("forward", "Memory, forward"), time("forward", "Time, forward")],
    [ratio("forward", "bytes", "Less memory than naive"), ratio("forward", "ms", "Faster than naive")],
  ], ["forward"]);
}
