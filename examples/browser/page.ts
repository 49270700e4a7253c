/// <reference lib="dom" />
/** The page: picks where to compute, says what that can do, and sets the panels up. */
import { attentionPanel } from "./attention_panel.ts";
import { chatPanel } from "./chat_panel.ts";
import { duration, find, make, size } from "./dom.ts";
import { choose, Engine } from "./engine.ts";
import type { Choice, Opened, Reply } from "./protocol.ts";
import { trainingPanel } from "./training_panel.ts";

const attention = attentionPanel(), training = trainingPanel(), chat = chatPanel();
const panels = [attention, training, chat];

const select = find("#choice", HTMLSelectElement), adapter = find("#adapter", HTMLElement);
const notice = find("#no-webgpu", HTMLElement), facts = find("#facts", HTMLElement);

function tellFacts({ name, capabilities, firstMs }: Opened): void {
  const { f16, subgroups, subgroupSize, subgroupMatrix, timestamps } = capabilities;
  const { maxBinding, maxWorkgroupMemory, maxInvocations } = capabilities;
  const known: [string, string][] = name === "cpu" ? [] : [
    ["16-bit arithmetic", f16 ? "yes" : "no; 16-bit storage works"],
    ["subgroups", subgroups ? `of ${subgroupSize}` : "no"],
    [
      "matrix units",
      subgroupMatrix.length > 0 ? [...new Set(subgroupMatrix.map((s) => `${s.ab}→${s.acc}`))].join(", ") : "no",
    ],
    ["largest tensor", size(maxBinding)],
    ["workgroup memory", size(maxWorkgroupMemory)],
    ["threads a workgroup", String(maxInvocations)],
    ["GPU clock", timestamps ? "yes" : "no"],
  ];
  known.push(["first result after", duration(firstMs)]);
  facts.replaceChildren(...known.map(([what, value]) => {
    const fact = make("div");
    fact.append(make("dt", what), make("dd", value));
    return fact;
  }));
}

/** The worker that the document starts before this program is here. */
declare const early: Worker & { readonly answer: Promise<Reply> };

/** Opens the device once to say what it is. The panels open it anew, each in its worker. */
async function look(worker = new Engine(find("#device", HTMLElement), () => {}, () => {})): Promise<void> {
  try {
    tell(await worker.open());
  } catch (error) {
    adapter.textContent = "No device could be opened";
    notice.hidden = false;
    notice.textContent = error instanceof Error ? error.message : String(error);
  } finally {
    worker.close();
  }
}

function tell(device: Opened): void {
  adapter.textContent = device.name === "cpu" ? "The CPU: plain loops" : `WebGPU on ${device.description}`;
  notice.hidden = device.why === undefined;
  notice.textContent = `${device.why} The panels work all the same, on the CPU and at small sizes. ` +
    "Recent Chrome, Edge, Safari and Firefox have WebGPU; on Linux it may need to be switched on.";
  tellFacts(device);
  training.suit(device);
  document.documentElement.dataset.ready = device.name;
}

select.addEventListener("change", () => {
  choose(select.value as Choice);
  for (const panel of panels) panel.reset();
  adapter.textContent = "Looking for an adapter …";
  look();
});

const theme = find("#theme", HTMLButtonElement), dark = matchMedia("(prefers-color-scheme: dark)");
const redraw = () => panels.forEach((panel) => panel.draw());
theme.addEventListener("click", () => {
  const now = document.documentElement.dataset.theme ?? (dark.matches ? "dark" : "light");
  document.documentElement.dataset.theme = now === "dark" ? "light" : "dark";
  redraw();
});
dark.addEventListener("change", redraw);

find("#lose", HTMLButtonElement).addEventListener("click", () => {
  const running = panels.filter((panel) => panel.engine.running);
  if (running.length === 0) adapter.textContent += " (nothing runs on it now: start a panel first)";
  for (const { engine } of running) engine.tell({ kind: "lose" });
});

early.answer.then((reply) => {
  early.terminate();
  if (reply.kind === "opened") tell(reply.device);
  else look(); // for what went wrong
});
