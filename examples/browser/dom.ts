/// <reference lib="dom" />
/** Small helpers for the page. */

/** The one element for a selector. */
export function find<T extends Element>(selector: string, kind: new () => T, within: ParentNode = document): T {
  const found = within.querySelector(selector);
  if (!(found instanceof kind)) throw new Error(`the page has no ${kind.name} ${selector}`);
  return found;
}

/** A new element with text. */
export function make<K extends keyof HTMLElementTagNameMap>(
  tag: K,
  text = "",
  className = "",
): HTMLElementTagNameMap[K] {
  const element = document.createElement(tag);
  element.textContent = text;
  if (className !== "") element.className = className;
  return element;
}

/** `12.3 ms`, `1.24 s`. */
export function duration(ms: number): string {
  if (ms >= 1000) return `${digits(ms / 1000)} s`;
  return ms >= 1 ? `${digits(ms)} ms` : `${digits(1000 * ms)} µs`;
}

/** `12.3 MB`. */
export function size(bytes: number): string {
  for (const [unit, name] of [[1e9, "GB"], [1e6, "MB"], [1e3, "kB"]] as const) {
    if (bytes >= 0.9995 * unit) return `${digits(bytes / unit)} ${name}`;
  }
  return `${bytes} B`;
}

/** `12.3k`. */
export function short(value: number): string {
  for (const [unit, letter] of [[1e9, "G"], [1e6, "M"], [1e3, "k"]] as const) {
    if (value >= 0.9995 * unit) return `${digits(value / unit)}${letter}`;
  }
  return digits(value);
}

/** A number to three digits. */
function digits(value: number): string {
  return String(Number(value.toPrecision(3)));
}
