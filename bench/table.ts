/** Text for people: tables, numbers with units. */
import Table from "npm:cli-table3@0.6.5";

const bare = { top: "", bottom: "", left: "", right: "", mid: "", middle: "  " };
const corners = ["top", "bottom", "left", "right"].flatMap((side) => [`${side}-mid`, `${side}-left`, `${side}-right`]);
const chars = { ...bare, ...Object.fromEntries([...corners, "mid-mid"].map((name) => [name, ""])) };

/**
 * Lines of text, columns aligned: the first to the left, the others to the right.
 * @param left how many columns stand to the left
 */
export function table(head: readonly string[], rows: readonly (readonly string[])[], left = 1): string {
  const made = new Table({
    head: [...head],
    chars,
    colAligns: head.map((_, i) => i < left ? "left" : "right"),
    style: { head: [], border: [], "padding-left": 0, "padding-right": 0, compact: true },
  });
  for (const row of rows) made.push([...row]);
  return made.toString().split("\n").map((line) => line.trimEnd()).join("\n");
}

/** Three or four digits that count: `0.0123`, `1.23`, `12.3`, `1,234`. */
export function digits(value: number): string {
  if (!Number.isFinite(value)) return String(value);
  if (value !== 0 && Math.abs(value) < 1e-4) return value.toExponential(2);
  if (Math.abs(value) >= 1000) return Math.round(value).toLocaleString("en-US");
  return String(Number(value.toPrecision(3)));
}

/** A time, with enough places to compare. */
export function ms(value: number | null | undefined): string {
  if (value === null || value === undefined) return "";
  return value >= 100 ? value.toFixed(1) : value >= 1 ? value.toFixed(2) : value.toFixed(4);
}

/** `96.0 MiB` */
export function bytes(value: number | null | undefined): string {
  if (value === null || value === undefined) return "";
  for (const [unit, name] of [[2 ** 40, "TiB"], [2 ** 30, "GiB"], [2 ** 20, "MiB"], [2 ** 10, "KiB"]] as const) {
    if (value >= unit) return `${(value / unit).toFixed(value >= 100 * unit ? 0 : 1)} ${name}`;
  }
  return `${value} B`;
}

/** `3.21×` */
export function times(value: number): string {
  return `${value >= 100 ? value.toFixed(0) : value >= 10 ? value.toFixed(1) : value.toFixed(2)}×`;
}

/** Lines of a name and a value. */
export function pairs(lines: readonly (readonly [name: string, value: string])[]): string {
  const width = Math.max(...lines.map(([name]) => name.length));
  return lines.map(([name, value]) => `  ${name.padEnd(width)}  ${value}`).join("\n");
}
