/// <reference lib="dom" />
/** Panel C: opens a checkpoint from disk and chats with it. */
import { find, make, short } from "./dom.ts";
import { Engine } from "./engine.ts";

/** The files of a model's folder; the rest of it, such as other formats of the weights, is not read. */
const wanted = /^[^/]+\.(json|safetensors|jinja)$/;

/** What the File System Access API adds to a page, where there is one. */
interface Pickers {
  showDirectoryPicker?(): Promise<FileSystemDirectoryHandle>;
}

/** What iterating a directory gives; DOM types lag behind browsers here. */
type Listing = { values(): AsyncIterable<FileSystemDirectoryHandle | FileSystemFileHandle> };

async function filesOf(handle: FileSystemDirectoryHandle): Promise<File[]> {
  const files: File[] = [];
  for await (const entry of (handle as unknown as Listing).values()) {
    if (entry.kind === "file" && wanted.test(entry.name)) files.push(await (entry as FileSystemFileHandle).getFile());
  }
  return files;
}

/** The files of what was dropped: a folder, or files as they are. */
async function dropped(transfer: DataTransfer): Promise<File[]> {
  const entries = [...transfer.items].map((item) => item.webkitGetAsEntry()).filter((entry) => entry !== null);
  const read = (reader: FileSystemDirectoryReader): Promise<FileSystemEntry[]> =>
    new Promise((resolve, reject) => reader.readEntries(resolve, reject));
  const files: File[] = [], loose = [...transfer.files];
  const take = (entry: FileSystemEntry): Promise<File> =>
    new Promise((resolve, reject) => (entry as FileSystemFileEntry).file(resolve, reject));
  for (const entry of entries) {
    if (!entry.isDirectory) continue;
    const reader = (entry as FileSystemDirectoryEntry).createReader();
    for (let some = await read(reader); some.length > 0; some = await read(reader)) {
      for (const each of some) if (each.isFile && wanted.test(each.name)) files.push(await take(each));
    }
  }
  return files.length > 0 ? files : loose.filter((file) => wanted.test(file.name));
}

/** Sets the panel up. */
export function chatPanel(): { readonly engine: Engine; readonly draw: () => void; readonly reset: () => void } {
  const panel = find("#chat", HTMLElement), drop = find("#drop", HTMLElement);
  const input = find("#folder", HTMLInputElement), button = find("#open-folder", HTMLButtonElement);
  const status = find(".status", HTMLElement, panel), log = find("#conversation", HTMLElement);
  const form = find("#chat-form", HTMLFormElement), text = find("input[name=text]", HTMLInputElement, form);
  const say = find("button.main", HTMLButtonElement, form), stop = find("button[name=stop]", HTMLButtonElement, form);
  let files: readonly File[] = [], summary = "", answer: HTMLElement | null = null;

  const busy = (running: boolean) => {
    say.disabled = running;
    stop.disabled = !running;
  };
  const turn = (role: "user" | "assistant", content = "") => {
    const element = make("div", content, `turn ${role}`);
    element.setAttribute("aria-label", role === "user" ? "you" : "the model");
    log.append(element);
    log.scrollTop = log.scrollHeight;
    return element;
  };

  const engine = new Engine(panel, (reply) => {
    if (reply.kind === "loading") status.textContent = `Loading: ${reply.what}`;
    if (reply.kind === "model") {
      summary = reply.summary;
      status.textContent = summary;
      log.hidden = form.hidden = false;
      panel.dataset.state = "ready";
      text.focus();
    }
    if (reply.kind === "text") {
      answer?.append(reply.text);
      log.scrollTop = log.scrollHeight;
    }
    if (reply.kind === "said") {
      busy(false);
      panel.dataset.state = "ready";
      status.textContent = `${summary} · ${reply.tokens} tokens, ${short(1e3 * reply.tokens / reply.ms)} a second`;
    }
    if (reply.kind === "failed") {
      busy(false);
      status.textContent = `It failed. ${reply.message}`;
      panel.dataset.state = "failed";
    }
  }, () => load(files));

  const reset = () => {
    engine.close();
    busy(false);
    log.replaceChildren();
    log.hidden = form.hidden = true;
    status.textContent = "";
    panel.dataset.state = "empty";
  };
  const load = (picked: readonly File[]) => {
    reset();
    files = picked;
    if (!files.some((file) => file.name === "config.json")) {
      status.textContent = files.length === 0
        ? "There is no model in that folder: no .json or .safetensors files."
        : `There is no config.json among ${files.map((file) => file.name).join(", ")}.`;
      return;
    }
    status.textContent = "Opening the device …";
    panel.dataset.state = "loading";
    engine.send({ kind: "load", files }).catch((error: Error) => status.textContent = error.message);
  };

  button.addEventListener("click", async () => {
    const { showDirectoryPicker } = globalThis as Pickers;
    if (showDirectoryPicker === undefined) return input.click();
    try {
      load(await filesOf(await showDirectoryPicker.call(globalThis)));
    } catch (error) {
      if (!(error instanceof DOMException && error.name === "AbortError")) throw error; // they changed their mind
    }
  });
  input.addEventListener("change", () => {
    // Paths begin with the folder that was picked: files of folders in it are not the model's.
    const own = (file: File) => file.webkitRelativePath.split("/").length <= 2 && wanted.test(file.name);
    load([...input.files ?? []].filter(own));
  });
  drop.addEventListener("dragover", (event) => {
    event.preventDefault();
    drop.classList.add("over");
  });
  drop.addEventListener("dragleave", () => drop.classList.remove("over"));
  drop.addEventListener("drop", async (event) => {
    event.preventDefault();
    drop.classList.remove("over");
    if (event.dataTransfer !== null) load(await dropped(event.dataTransfer));
  });

  form.addEventListener("submit", (event) => {
    event.preventDefault();
    if (say.disabled || text.value.trim() === "") return;
    const fields = new FormData(form);
    const options = {
      maxNewTokens: Number(fields.get("maxNewTokens")),
      temperature: Number(fields.get("temperature")),
    };
    turn("user", text.value);
    answer = turn("assistant");
    busy(true);
    panel.dataset.state = "writing";
    engine.tell({ kind: "say", text: text.value, options });
    text.value = "";
  });
  stop.addEventListener("click", () => engine.tell({ kind: "stop" }));
  find("button[name=forget]", HTMLButtonElement, form).addEventListener("click", () => {
    engine.tell({ kind: "forget" });
    log.replaceChildren();
    text.focus();
  });
  panel.addEventListener("lost", () => {
    busy(false);
    log.hidden = form.hidden = true;
    status.textContent = "";
    panel.dataset.state = "lost";
  });

  return { engine, draw: () => {}, reset };
}
