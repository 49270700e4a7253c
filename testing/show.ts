/** Values as a failing test prints them: one line, exact, and cut where it would be long. */

import { Tensor } from "../tensor/tensor.ts";
import { show as showShape } from "../tensor/errors.ts";
import { isDense } from "../tensor/shape.ts";

/** How many elements of a list are printed. */
const MOST_ELEMENTS = 48;
const DEEPEST = 8;

/**
 * A value as text. Tensors are read and shown by dtype, shape, strides where they are a view, and values.
 */
export async function show(value: unknown, depth = 0): Promise<string> {
  if (typeof value === "string") return JSON.stringify(value);
  if (typeof value === "bigint") return `${value}n`;
  if (typeof value === "function") return `[function ${value.name || "anonymous"}]`;
  if (typeof value !== "object" || value === null) return showScalar(value);
  if (depth > DEEPEST) return "…";
  if (value instanceof Tensor) return await showTensor(value);
  if (value instanceof Error) return `${value.name}: ${value.message}`;
  if (value instanceof Date || value instanceof RegExp) return String(value);
  if (ArrayBuffer.isView(value) && !(value instanceof DataView)) {
    const list = value as unknown as ArrayLike<number | bigint>;
    return `${value.constructor.name}(${list.length}) ${await showList(list, depth)}`;
  }
  if (Array.isArray(value)) return await showList(value, depth);
  if (value instanceof Set) return `Set ${await showList([...value], depth)}`;
  if (value instanceof Map) return `Map ${await showList([...value], depth)}`;
  const fields = Object.entries(value).map(async ([key, field]) =>
    `${/^[A-Za-z_$][\w$]*$/.test(key) ? key : JSON.stringify(key)}: ${await show(field, depth + 1)}`
  );
  const name = Object.getPrototypeOf(value)?.constructor?.name ?? "Object";
  const shown = fields.length === 0 ? "{}" : `{ ${(await Promise.all(fields)).join(", ")} }`;
  return name === "Object" ? shown : `${name} ${shown}`;
}

async function showTensor(x: Tensor): Promise<string> {
  if (x.disposed) return x.toString();
  const head = `${x.dtype} ${showShape(x.shape)}`;
  const view = x.offset > 0 || !isDense(x) ? ` strides ${showShape(x.strides)} offset ${x.offset}` : "";
  return `${head}${view} ${showNested(await x.data(), x.shape, { left: MOST_ELEMENTS })}`;
}

/** Row-major numbers in the brackets of their shape, cut after `budget.left` numbers in all. */
function showNested(data: ArrayLike<number>, shape: readonly number[], budget: { left: number }, start = 0): string {
  if (shape.length === 0) {
    budget.left--;
    return showScalar(data[start]);
  }
  const [length, ...inner] = shape;
  const step = inner.reduce((product, n) => product * n, 1);
  const parts: string[] = [];
  for (let i = 0; i < length; i++) {
    if (budget.left <= 0) {
      parts.push(`… ${length - i} more`);
      break;
    }
    parts.push(showNested(data, inner, budget, start + i * step));
  }
  return `[${parts.join(", ")}]`;
}

async function showList(list: ArrayLike<unknown>, depth: number): Promise<string> {
  const shown = await Promise.all(Array.from(list).slice(0, MOST_ELEMENTS).map((item) => show(item, depth + 1)));
  const rest = list.length - shown.length;
  return `[${[...shown, ...(rest > 0 ? [`… ${rest} more`] : [])].join(", ")}]`;
}

function showScalar(value: unknown): string {
  return Object.is(value, -0) ? "-0" : String(value);
}
