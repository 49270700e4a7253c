/// <reference lib="dom" />
/** Panel A: times flash against naive attention and draws both curves. */
import { Chart } from "./chart.ts";
import { duration, find, make, size } from "./dom.ts";
import { Engine } from "./engine.ts";
import type { Point } from "./sweep.ts";

/** Milliseconds a call may take before greater lengths are given up. */
const patience = 1500;

/** Sets the panel up. */
export function attentionPanel(): { readonly engine: Engine; readonly draw: () => void; readonly reset: () => void } {
  const panel = find("#attention", HTMLElement);
  const form = find("#attention-form", HTMLFormElement);
  const status = find(".status", HTMLElement, panel);
  const start = find("button.main", HTMLButtonElement, form), stop = find("button[name=stop]", HTMLButtonElement, form);
  const rows = find("#attention-table tbody", HTMLElement);
  const lines = [{ name: "flash", color: "--flash" }, { name: "naive", color: "--naive" }];
  const chart = (id: string, formatY: (value: number) => string) =>
    new Chart(find(id, HTMLElement), {
      lines,
      powers: true,
      x: "length",
      formatX: (x) => x.toLocaleString("en"),
      formatY,
    });
  const charts = { ms: chart("#time-chart", duration), bytes: chart("#bytes-chart", size) };
  let points: Point[] = [], agreed = "", shape = "";

  const at = (length: number, algorithm: string) =>
    points.find((p) => p.length === length && p.algorithm === algorithm);
  const show = () => {
    const lengths = [...new Set(points.map((p) => p.length))];
    for (const what of ["ms", "bytes"] as const) {
      charts[what].set([lengths, ...lines.map(({ name }) => lengths.map((n) => at(n, name)?.[what] ?? null))]);
    }
    rows.replaceChildren(...lengths.map((n) => {
      const row = make("tr");
      const cell = (text: string, title = "") => Object.assign(make("td", text), { title });
      const both = (f: (p: Point) => string | null) =>
        lines.map(({ name }) => {
          const point = at(n, name);
          return cell(point === undefined ? "…" : f(point) ?? "–", point?.reason);
        });
      row.append(
        cell(n.toLocaleString("en")),
        ...both((p) => p.ms === null ? null : duration(p.ms)),
        ...both((p) => p.bytes === null ? null : size(p.bytes)),
      );
      return row;
    }));
  };
  const verdict = (): string => {
    const last = points.filter((p) => p.algorithm === "naive" && p.ms !== null).at(-1);
    const flash = last && at(last.length, "flash");
    if (!last?.ms || !flash?.ms || !last.bytes || !flash.bytes) return "";
    const faster = last.ms / flash.ms, smaller = last.bytes / flash.bytes;
    const speed = faster >= 1 ? `${faster.toFixed(1)}× as fast` : `${(1 / faster).toFixed(1)}× slower`;
    return `At ${last.length.toLocaleString("en")}, flash is ${speed} and holds ${smaller.toFixed(1)}× less.`;
  };
  const busy = (running: boolean) => {
    start.disabled = running;
    stop.disabled = !running;
  };
  const clear = () => {
    points = [];
    agreed = shape = "";
    show();
  };

  const engine = new Engine(panel, (reply) => {
    if (reply.kind === "sizes") shape = `${reply.heads} heads of ${reply.headSize}, f32.`;
    if (reply.kind === "agreed") agreed = `Both agree to ${reply.difference.toExponential(1)}.`;
    if (reply.kind === "point") {
      points.push(reply.point);
      const done = reply.point.ms === null ? "given up" : duration(reply.point.ms);
      status.textContent = `${shape} ${reply.point.algorithm} at ${reply.point.length.toLocaleString("en")}: ${done} …`;
      show();
    }
    if (reply.kind === "done") {
      busy(false);
      status.textContent = `${shape} ${agreed} ${verdict()}`;
      panel.dataset.state = "done";
    }
    if (reply.kind === "failed") {
      busy(false);
      status.textContent = `It failed. ${reply.message}`;
      panel.dataset.state = "failed";
    }
  }, () => form.requestSubmit());

  form.addEventListener("submit", async (event) => {
    event.preventDefault();
    clear();
    busy(true);
    panel.dataset.state = "running";
    status.textContent = "Opening the device …";
    const fields = new FormData(form);
    const options = { causal: fields.has("causal"), backward: fields.has("backward"), patience };
    // A shorter sweep can be asked for in the address: ?lengths=128,512.
    const asked = new URLSearchParams(location.search).get("lengths")?.split(",").map(Number);
    const lengths = asked?.length === 2 && asked.every((n) => n > 0) ? [asked[0], asked[1]] as const : undefined;
    await engine.send({ kind: "sweep", options, lengths }).catch((error: Error) => {
      busy(false);
      status.textContent = error.message;
    });
  });
  const halt = (what: string) => {
    engine.close();
    busy(false);
    panel.dataset.state = "stopped";
    status.textContent = what;
  };
  stop.addEventListener("click", () => halt(`Stopped. ${verdict()}`));
  panel.addEventListener("lost", () => {
    busy(false);
    panel.dataset.state = "lost";
    status.textContent = "";
  });

  return {
    engine,
    draw: () => Object.values(charts).forEach((c) => c.draw()),
    reset: () => {
      clear();
      halt("");
    },
  };
}
