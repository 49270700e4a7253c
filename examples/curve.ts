/** A small line chart as SVG text. */

/** A line, or points when `marks` is set. */
export interface Series {
  readonly name: string;
  readonly color: string;
  /** Pairs of x and y, x rising. */
  readonly points: readonly (readonly [x: number, y: number])[];
  readonly marks?: boolean;
}

/** What a chart shows. */
export interface Chart {
  readonly title: string;
  readonly x: string;
  readonly y: string;
  readonly series: readonly Series[];
  /** Horizontal lines to compare with. */
  readonly levels: readonly { readonly name: string; readonly y: number }[];
}

const width = 760, height = 420, left = 56, right = 24, top = 48, bottom = 48;

/** Round numbers from `min` to `max`, about `count` of them. */
export function ticks(min: number, max: number, count: number): number[] {
  const rough = (max - min) / count || 1;
  const power = 10 ** Math.floor(Math.log10(rough));
  const step = [1, 2, 5, 10].map((n) => n * power).find((n) => n >= rough)!;
  const first = Math.ceil(min / step - 1e-9);
  return Array.from(
    { length: Math.floor(max / step + 1e-9) - first + 1 },
    (_, i) => Number(((first + i) * step).toPrecision(12)),
  );
}

function escape(text: string): string {
  return text.replace(/[&<>"]/g, (c) => `&#${c.charCodeAt(0)};`);
}

/** The chart as an SVG document. */
export function svg({ title, x, y, series, levels }: Chart): string {
  const points = series.flatMap((s) => s.points).filter(([, v]) => Number.isFinite(v));
  const xs = points.map(([v]) => v), ys = [...points.map(([, v]) => v), ...levels.map((l) => l.y)];
  const maxX = xs.reduce((a, b) => Math.max(a, b), 1);
  const low = ys.reduce((a, b) => Math.min(a, b), Infinity), high = ys.reduce((a, b) => Math.max(a, b), -Infinity);
  const [minY, maxY] = ys.length === 0 ? [0, 1] : [Math.floor(low - 0.05), Math.ceil(high + 0.05)];
  const px = (v: number) => (left + (v / maxX) * (width - left - right)).toFixed(1);
  const py = (v: number) => (height - bottom - ((v - minY) / (maxY - minY)) * (height - top - bottom)).toFixed(1);
  const text = (at: string, content: string) => `<text ${at}>${escape(content)}</text>`;
  const parts: string[] = [
    `<rect width="${width}" height="${height}" fill="#fff"/>`,
    text(`x="${left}" y="26" font-size="15" font-weight="600" fill="#111"`, title),
  ];
  for (const v of ticks(minY, maxY, 6)) {
    parts.push(`<path d="M${left} ${py(v)}H${width - right}" stroke="#e4e4e4"/>`);
    parts.push(text(`x="${left - 8}" y="${py(v)}" dy="4" text-anchor="end"`, String(v)));
  }
  for (const v of ticks(0, maxX, 8)) {
    parts.push(text(`x="${px(v)}" y="${height - bottom + 18}" text-anchor="middle"`, v.toLocaleString("en")));
  }
  parts.push(text(`x="${(left + width - right) / 2}" y="${height - 10}" text-anchor="middle"`, x));
  parts.push(text(`transform="translate(16 ${(top + height - bottom) / 2}) rotate(-90)" text-anchor="middle"`, y));
  for (const level of levels) {
    parts.push(`<path d="M${left} ${py(level.y)}H${width - right}" stroke="#888" stroke-dasharray="5 4"/>`);
    parts.push(text(`x="${width - right}" y="${py(level.y)}" dy="-6" text-anchor="end" fill="#666"`, level.name));
  }
  series.forEach(({ name, color, points, marks }, i) => {
    const finite = points.filter(([, v]) => Number.isFinite(v));
    const d = finite.map(([a, b], i) => `${i === 0 ? "M" : "L"}${px(a)} ${py(b)}`).join("");
    parts.push(
      `<path d="${d}" fill="none" stroke="${color}" stroke-width="${marks ? 2 : 1.5}" stroke-linejoin="round"/>`,
    );
    if (marks) parts.push(...finite.map(([a, b]) => `<circle cx="${px(a)}" cy="${py(b)}" r="3" fill="${color}"/>`));
    const at = width - right - 150, row = top + 14 + 18 * i; // the legend: curves fall, so this corner is free
    parts.push(`<path d="M${at} ${row - 4}h18" stroke="${color}" stroke-width="2.5"/>`);
    parts.push(text(`x="${at + 26}" y="${row}"`, name));
  });
  return `<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 ${width} ${height}" width="${width}" height="${height}" ` +
    `font-family="system-ui, sans-serif" font-size="12" fill="#444">\n${parts.join("\n")}\n</svg>\n`;
}
