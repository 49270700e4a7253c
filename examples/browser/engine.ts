/// <reference lib="dom" />
/** A panel's worker, and what happens when its device is lost. */
import { find, make } from "./dom.ts";
import type { Choice, Opened, Reply, Request } from "./protocol.ts";

let choice: Choice = "fast";

/** Where workers that start from now on compute. */
export function choose(next: Choice): void {
  choice = next;
}

/** What a panel hears; a loss is told by the engine itself. */
export type Listener = (reply: Exclude<Reply, { kind: "opened" | "lost" }>) => void;

/** A worker with a device, started when it is first needed. */
export class Engine {
  readonly #panel: HTMLElement;
  readonly #listener: Listener;
  readonly #again: () => void;
  #worker: Worker | null = null;
  #opened: Promise<Opened> | null = null;

  /**
   * @param panel where a loss is told
   * @param again starts the panel from its beginning
   */
  constructor(panel: HTMLElement, listener: Listener, again: () => void) {
    this.#panel = panel;
    this.#listener = listener;
    this.#again = again;
  }

  /** Whether a worker runs. */
  get running(): boolean {
    return this.#worker !== null;
  }

  /** Starts the worker unless it runs, and resolves when its device is open. */
  open(): Promise<Opened> {
    return this.#opened ??= new Promise<Opened>((resolve, reject) => {
      const worker = new Worker("worker.js", { type: "module" });
      this.#worker = worker;
      worker.addEventListener("error", (event) => reject(new Error(event.message || "the worker did not start")));
      worker.addEventListener("message", ({ data }: MessageEvent<Reply>) => {
        if (worker !== this.#worker) return; // it was closed meanwhile
        if (data.kind === "opened") resolve(data.device);
        else if (data.kind === "lost") this.#lost(data.message);
        else {
          if (data.kind === "failed") reject(new Error(data.message));
          this.#listener(data);
        }
      });
      worker.postMessage({ kind: "open", choice } satisfies Request);
    });
  }

  /** Sends a request to the worker, which is started if it must be. */
  async send(request: Request): Promise<void> {
    await this.open();
    this.#worker?.postMessage(request);
  }

  /** Sends a request to a worker that runs; no other is started for it. */
  tell(request: Request): void {
    this.#worker?.postMessage(request);
  }

  /** Ends the worker, and with it all that it was doing. */
  close(): void {
    this.#worker?.terminate();
    this.#worker = null;
    this.#opened = null;
    const notice = this.#panel.querySelector<HTMLElement>(".lost");
    if (notice !== null) notice.hidden = true;
  }

  #lost(message: string): void {
    this.close();
    const again = make("button", "Start again", "main");
    again.type = "button";
    const notice = find(".lost", HTMLElement, this.#panel);
    again.addEventListener("click", () => {
      notice.hidden = true;
      this.#again();
    });
    notice.replaceChildren(make("span", `The GPU was lost, and what was on it is gone. (${message})`), again);
    notice.hidden = false;
    this.#panel.dispatchEvent(new CustomEvent("lost"));
  }
}
