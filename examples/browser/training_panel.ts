/// <reference lib="dom" />
/** Panel B: trains a small Llama on Moby-Dick while you watch, then lets it write. */
import { Chart } from "./chart.ts";
import { find, make, short } from "./dom.ts";
import { Engine } from "./engine.ts";
import type { Opened, TrainingInfo } from "./protocol.ts";

/** The models, and what of them a person wants to know before choosing; training.ts holds them. */
const models: readonly (readonly [name: string, what: string])[] = [
  ["mini", "mini, 30 k"],
  ["tiny", "tiny, 120 k"],
  ["small", "small, 750 k"],
  ["medium", "medium, 4 M"],
  ["large", "large, 23 M"],
];

/** The model that suits a device: plain loops and software adapters are slow. */
function suited({ name, description }: Opened): string {
  if (name === "cpu") return "mini";
  return /swiftshader|llvmpipe|software|basic render/i.test(description) ? "tiny" : "small";
}

/** The most points that a curve is drawn with. */
const maxPoints = 2000;

/** Sets the panel up. */
export function trainingPanel(): {
  readonly engine: Engine;
  readonly draw: () => void;
  readonly reset: () => void;
  readonly suit: (device: Opened) => void;
} {
  const panel = find("#training", HTMLElement);
  const form = find("#training-form", HTMLFormElement), writing = find("#write-form", HTMLFormElement);
  const sizes = find("select[name=size]", HTMLSelectElement, form);
  const start = find("button.main", HTMLButtonElement, form);
  const pause = find("button[name=pause]", HTMLButtonElement, form);
  const reset = find("button[name=reset]", HTMLButtonElement, form);
  const write = find("button", HTMLButtonElement, writing);
  const status = find(".status", HTMLElement, panel), bar = find("progress", HTMLProgressElement, panel);
  const written = find("#written", HTMLOutputElement);
  const bits = (y: number) => y.toFixed(y < 10 ? 2 : 1);
  const chart = new Chart(find("#loss-chart", HTMLElement), {
    lines: [
      { name: "each step", color: "--quiet", width: 1 },
      { name: "smoothed", color: "--flash" },
      { name: "held-out chapters", color: "--naive", dots: true },
      { name: "byte counts alone", color: "--soft", dashed: true, width: 1 },
    ],
    x: "step",
    formatX: (x) => String(Math.round(x)),
    formatY: bits,
  });
  for (const [name, what] of models) sizes.append(new Option(what, name));

  let info: TrainingInfo | null = null, paused = false, stage: "training" | "writing" | "idle" = "idle";
  let train: [step: number, bits: number][] = [], sum = 0, mean: number | null = null;
  let smooth = new Map<number, number>(), heldOut = new Map<number, number>();
  let rate = 0, seed = 0, chosen = false, waiting = false;

  const drawCurve = () => {
    waiting = false;
    const every = Math.ceil(train.length / maxPoints);
    const shown = train.filter((_, i) => i % every === 0 || i === train.length - 1);
    const raw = new Map(shown);
    const steps = [...new Set([...raw.keys(), ...heldOut.keys()])].sort((a, b) => a - b);
    const column = (from: Map<number, number>) => steps.map((s) => from.get(s) ?? null);
    chart.set([steps, column(raw), column(smooth), column(heldOut), steps.map(() => info?.entropy ?? null)]);
  };
  /** Draws once a frame at most, whatever comes in. */
  const show = () => {
    if (!waiting) requestAnimationFrame(drawCurve);
    waiting = true;
  };
  const tell = () => {
    if (info === null) return;
    const step = train.at(-1)?.[0] ?? 0, score = [...heldOut.values()].at(-1);
    bar.value = step / info.steps;
    status.textContent = [
      `${short(info.parameters)} parameters, ${info.layers} layers of ${info.hidden}`,
      `step ${step} of ${info.steps}`,
      mean === null ? "" : `loss ${mean.toFixed(2)} bits a byte`,
      score === undefined ? "" : `held-out ${score.toFixed(2)}`,
      rate === 0 ? "" : `${short(rate)} tokens/s`,
      paused ? "paused" : "",
    ].filter((part) => part !== "").join(" · ");
  };
  const buttons = () => {
    start.disabled = stage === "training";
    pause.disabled = stage !== "training";
    pause.textContent = paused ? "Go on" : "Pause";
    reset.disabled = info === null;
    write.disabled = info === null || stage === "writing";
    panel.dataset.state = stage === "idle" ? info === null ? "empty" : "done" : paused ? "paused" : stage;
  };
  const clear = () => {
    info = null;
    paused = false;
    stage = "idle";
    train = [];
    sum = 0;
    mean = null;
    smooth = new Map();
    heldOut = new Map();
    rate = 0;
    bar.value = 0;
    status.textContent = "";
    written.textContent = "";
    drawCurve();
    buttons();
  };
  let over: (() => void) | null = null;

  const engine = new Engine(panel, (reply) => {
    if (reply.kind === "training") info = reply.info;
    if (reply.kind === "progress") {
      for (const [step, value] of reply.points) {
        // Without the division the first steps would stand in the mean for long (Kingma and Ba 2014).
        sum = 0.9 * sum + 0.1 * value;
        mean = sum / (1 - 0.9 ** (train.length + 1));
        train.push([step, value]);
        smooth.set(step, mean);
      }
      rate = reply.tokensPerSecond;
    }
    if (reply.kind === "heldOut") heldOut.set(reply.step, reply.bits);
    if (reply.kind === "paused" || reply.kind === "resumed") paused = reply.kind === "paused";
    if (reply.kind === "text") {
      written.append(reply.text);
      return;
    }
    if (reply.kind === "done") over?.();
    if (reply.kind === "failed") {
      stage = "idle";
      buttons();
      status.textContent = `It failed. ${reply.message}`;
      panel.dataset.state = "failed";
      return;
    }
    tell();
    show();
    buttons();
  }, () => form.requestSubmit());

  const fail = (error: Error) => {
    stage = "idle";
    buttons();
    status.textContent = error.message;
  };
  const compose = () => {
    const prompt = String(new FormData(writing).get("prompt") || "Call me Ishmael.");
    written.replaceChildren(make("b", prompt));
    const before = stage;
    stage = "writing";
    over = () => {
      stage = before;
      over = before === "training" ? trained : null;
    };
    buttons();
    engine.send({ kind: "write", prompt, length: 300, seed: ++seed }).catch(fail);
  };
  const trained = () => {
    stage = "idle";
    compose(); // what all this was for
  };

  form.addEventListener("submit", (event) => {
    event.preventDefault();
    engine.close();
    clear();
    stage = "training";
    over = trained;
    buttons();
    status.textContent = "Opening the device …";
    const fields = new FormData(form);
    engine.send({ kind: "train", size: String(fields.get("size")), steps: Number(fields.get("steps")), seed: 0 }).catch(
      fail,
    );
  });
  sizes.addEventListener("change", () => chosen = true);
  pause.addEventListener("click", () => engine.tell({ kind: paused ? "resume" : "pause" }));
  writing.addEventListener("submit", (event) => {
    event.preventDefault();
    if (!write.disabled) compose();
  });
  const restart = () => {
    engine.close();
    clear();
  };
  reset.addEventListener("click", restart);
  panel.addEventListener("lost", () => {
    clear();
    panel.dataset.state = "lost";
  });
  buttons();

  return {
    engine,
    draw: () => chart.draw(),
    reset: restart,
    suit(device) {
      if (!chosen) sizes.value = suited(device);
    },
  };
}
