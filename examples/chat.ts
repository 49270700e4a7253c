/**
 * A conversation with a model, in a terminal or through a pipe.
 *
 *     deno task chat Llama-3.2-1B-Instruct --system "You are terse."
 *
 * In a pipe every line is a question, answers go to standard output, and all else to standard error.
 */
import process from "node:process";
import { createInterface } from "node:readline";
import { FlashtapeError, UnsupportedError } from "@flashtape/flashtape";
import { generate } from "@flashtape/flashtape/nn";
import { Conversation } from "./conversation.ts";
import {
  contextOf,
  describe,
  endsOf,
  hearInterrupts,
  interruptible,
  modelFlags,
  modelUsage,
  type Opened,
  openModel,
  type OpenOptions,
  openOptionsOf,
  printable,
  type Sampling,
  samplingFlags,
  samplingOf,
  samplingUsage,
} from "./model_options.ts";
import { breathe, parseFlags, runProgram } from "./program.ts";

const usage = `deno task chat DIR [options]

  --system TEXT           what the model is told before
${samplingUsage}${modelUsage}`;

const help = `/reset    begin a new conversation
/exit     leave; so does Ctrl-D
/help     this text
A line that ends in \\ goes on in the next. Ctrl-C stops an answer.`;

/** What was asked for. */
export interface Options extends OpenOptions {
  readonly system: string | undefined;
  readonly stop: readonly string[];
  readonly sampling: Sampling;
}

/**
 * The options of a command line.
 * @throws {UsageError} for one that does not exist, or a value that it cannot have
 */
export function readOptions(args: readonly string[]): Options | "help" {
  const { values, positionals } = parseFlags(args, { system: { type: "string" }, ...samplingFlags, ...modelFlags });
  if (values.help) return "help";
  const { system, stop = [] } = values;
  return { ...openOptionsOf(values, positionals), system, stop, sampling: samplingOf(values) };
}

/** Where lines come from and where words go: a terminal, or pipes. */
interface Desk {
  /** Whether someone sits there who can be asked. */
  readonly live: boolean;
  /** The next line; null at the end. `remember` lets the arrow keys bring it back. */
  ask(prompt: string, remember: boolean): Promise<string | null>;
  /** Words of the program. */
  say(text: string): void;
  /** Words of the model. */
  write(text: string): void;
}

/** A person at a terminal. Between questions it is an ordinary one, where Ctrl-C is a signal. */
function terminal(): Desk {
  const dim = process.env.NO_COLOR === undefined ? (text: string) => `\x1b[2m${text}\x1b[22m` : (text: string) => text;
  let history: string[] = [];
  return {
    live: true,
    ask: (prompt, remember) =>
      new Promise((resolve) => {
        const reader = createInterface({
          input: process.stdin,
          output: process.stdout,
          history: remember ? history : [],
        });
        let answer: string | null = null;
        if (remember) reader.on("history", (lines) => history = lines);
        reader.on("SIGINT", () => {
          if (reader.line === "") return reader.close();
          reader.write(null, { ctrl: true, name: "e" });
          reader.write(null, { ctrl: true, name: "u" });
        });
        reader.on("close", () => {
          if (answer === null) process.stdout.write("\n");
          resolve(answer);
        });
        reader.question(prompt, (line) => {
          answer = line;
          reader.close();
        });
      }),
    say: (text) => console.log(dim(text)),
    write: (text) => process.stdout.write(printable(text)),
  };
}

/** Lines from a pipe. */
function pipe(): Desk {
  const lines = createInterface({ input: process.stdin })[Symbol.asyncIterator]();
  return {
    live: false,
    async ask() {
      const { done, value } = await lines.next();
      return done ? null : value;
    },
    say: (text) => console.error(text),
    write: (text) => process.stdout.write(text),
  };
}

/** The next question; several lines of it where they end in a backslash. */
async function question(desk: Desk): Promise<string | null> {
  let text = "";
  for (let prompt = "> ";; prompt = ". ") {
    const line = await desk.ask(prompt, true);
    if (line === null) return text === "" ? null : desk.live ? "" : text;
    if (!line.endsWith("\\")) return text + line;
    text += `${line.slice(0, -1)}\n`;
  }
}

/** Makes room for a question. Returns whether it can be asked now. */
async function makeRoom(desk: Desk, conversation: Conversation, asked: string, context: number): Promise<boolean> {
  const { tokens, fits, cut } = conversation.fit(asked);
  if (fits) return true;
  const limit = `${tokens} tokens, and the model's context of ${context} has to hold the answer too`;
  if (cut === null) {
    desk.say(`Your message is too long: ${limit}. Shorten it.`);
    return false;
  }
  const turns = `the oldest ${cut.turns === 1 ? "turn" : `${cut.turns} turns`}`;
  desk.say(`The conversation is too long: ${limit}. Without ${turns} it has ${cut.tokens}.`);
  if (desk.live) {
    const answer = await desk.ask(`Forget ${turns}? [Y/n] `, false);
    if (answer === null || !/^(y|yes)?$/i.test(answer.trim())) {
      desk.say("Not sent. /reset begins a new conversation.");
      return false;
    }
  } else desk.say(`Forgetting ${turns}.`);
  conversation.drop(cut.turns);
  return true;
}

/** An answer as it comes, and what is told of it at the end. */
async function answer(
  desk: Desk,
  { model }: Opened,
  conversation: Conversation,
  asked: string,
  { sampling, stop }: Pick<Options, "sampling" | "stop">,
): Promise<void> {
  const begin = performance.now(), messages = conversation.prompt(asked), ends = [...stop, ...endsOf(model)];
  let text = "", count = 0, first = 0;
  const aborted = await interruptible(async (signal) => {
    for await (const step of generate(model, { ...sampling, messages, stop: ends, signal })) {
      first ||= performance.now() - begin;
      count++;
      text += step.text[0];
      desk.write(step.text[0]);
      await breathe();
    }
    return signal.aborted;
  });
  desk.write("\n");
  const seconds = (performance.now() - begin - first) / 1e3;
  const speed = count > 1 ? `, ${((count - 1) / seconds).toFixed(1)} tokens/s` : "";
  const stopped = aborted ? ", stopped" : "";
  desk.say(`[${count} ${count === 1 ? "token" : "tokens"}${speed}, the first after ${first.toFixed(0)} ms${stopped}]`);
  if (text !== "") conversation.add(asked, text);
}

async function main(options: Options): Promise<number> {
  hearInterrupts();
  const desk = process.stdin.isTTY && process.stdout.isTTY ? terminal() : pipe();
  const opened = await openModel(options), { model } = opened, context = contextOf(model);
  if (!model.tokenizer.hasChatTemplate) {
    const reason = model.tokenizer.size === 0 ? "no tokenizer.json" : "no chat template";
    throw new UnsupportedError("chat", `${options.dir} has ${reason}: deno task generate continues plain text`);
  }
  desk.say(`${describe(options.dir, opened)}, loaded in ${opened.seconds.toFixed(1)} s`);
  if (desk.live) desk.say(help);
  // An answer should have as much room as was asked for, but not most of the context.
  const room = Math.max(1, Math.min(options.sampling.maxNewTokens ?? 256, Math.floor(context / 4)));
  const conversation = new Conversation(model.tokenizer, context, room, options.system);
  const { seed } = options.sampling;
  for (let turn = 0;;) {
    const asked = await question(desk), command = asked?.trim();
    if (asked === null || command === "/exit" || command === "/quit") return 0;
    if (command === "") continue;
    if (command === "/help") desk.say(help);
    else if (command === "/reset") {
      conversation.reset();
      desk.say("A new conversation.");
    } else if (/^\/\w+$/.test(command!)) desk.say(`There is no command ${command}; /help lists them.`);
    else {
      // Every answer draws anew, and a seed repeats the whole conversation.
      const sampling = seed === undefined ? options.sampling : { ...options.sampling, seed: seed + turn++ };
      try {
        if (!await makeRoom(desk, conversation, asked, context)) continue;
        await answer(desk, opened, conversation, asked, { ...options, sampling });
      } catch (error) {
        if (!(error instanceof FlashtapeError)) throw error;
        desk.say(error.message);
      }
    }
  }
}

if (import.meta.main) await runProgram(readOptions, main, usage);
